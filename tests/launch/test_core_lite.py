"""`core_lite` from end to end: tables, resuming, mistakes."""

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.activations import models, splice
from amortjax.errors import AmortjaxError
from amortjax.launch import core_lite, core_parts, flagged
from amortjax.metrics.definitions import METRICS
from amortjax.report import core, figures_core
from amortjax.report.tables import read_results
from amortjax.saes.formats import save_sae
from tests.activations import tiny
from tests.mistakes import refuses
from tests.problems import toy_sae

MODES = ("amortized", "encoder_refit", "omp")  # the others compile for long; test_fidelity has one


def perfect(d: int):
    """An SAE whose encoder misses nothing: an atom for each direction and its opposite."""
    base = toy_sae("standard", d=d, m=2 * d)
    atoms = jnp.concatenate([jnp.eye(d), -jnp.eye(d)])
    zero = jnp.zeros(d)
    return dataclasses.replace(
        base, W_enc=atoms.T, W_dec=atoms, b_enc=jnp.zeros(2 * d), b_dec=zero, pre_bias=zero
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = np.array(re.findall(r"\w+", core_lite.__doc__ or ""))
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, rng.integers(3, 9))) + "." for _ in range(1200)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def config(text: str, tmp_path_factory: pytest.TempPathFactory) -> core_lite.Config:
    folder = tmp_path_factory.mktemp("core")
    save_sae(toy_sae(d=128, m=256, k=8), folder / "toy", "native")
    return core_lite.Config(
        ckpts=(str(folder / "toy"),), out=str(folder / "out"), model_name="embedded",
        layer_index=2, dataset=text, max_seq_len=24, encode_modes=MODES, calibration_tokens=256, eval_tokens=800,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small gain nothing from threads that wait for one another."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def rows(config: core_lite.Config) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_parts, "PART_TOKENS", 256)
        return core_lite.run(config)


def by_mode(rows: list[dict], checkpoint: str) -> dict[str, dict]:
    return {row["mode"]: row for row in rows if row["checkpoint"] == checkpoint}


def test_rows_say_what_the_model_notices(rows, config):
    toy = by_mode(rows, "toy")
    assert list(toy) == list(MODES)
    for row in toy.values():
        assert row["n_documents"] >= 50 and row["n_tokens"] >= 800 > row["n_tokens"] - row["n_scored_tokens"]
        wanted = (row["ce_zero"] - row["ce"]) / (row["ce_zero"] - row["ce_clean"])
        assert row["ce_recovered"] == pytest.approx(wanted)
        assert row["ce_recovered_lo"] < row["ce_recovered"] < row["ce_recovered_hi"]
        assert {"kl", "nmse", "l0", "kl_recovered", "ce_added"} <= set(row) & set(METRICS)
    assert toy["encoder_refit"]["nmse"] < toy["amortized"]["nmse"]
    assert toy["encoder_refit"]["nmse_minus_amortized_hi"] < 0
    assert toy["omp"]["record"]["form"] == "half" and toy["omp"]["l0_target"] == pytest.approx(8, abs=0.1)
    alone = by_mode(rows, core_lite.NO_SAE)
    assert alone["zero_ablation"]["ce"] == toy["amortized"]["ce_zero"]
    assert alone["zero_ablation"]["ce_recovered"] == 0
    assert alone["mean_ablation"]["kl"] == toy["omp"]["kl_mean"]
    assert alone["zero_kept"]["ce"] != alone["zero_ablation"]["ce"]


def test_an_sae_that_loses_nothing_is_not_noticed(config, tmp_path):
    save_sae(perfect(128), tmp_path / "perfect", "native")
    own = {"ckpts": (str(tmp_path / "perfect"),), "out": str(tmp_path / "o"), "encode_modes": ("amortized",)}
    row = core_lite.run(dataclasses.replace(config, **own))[0]
    assert row["nmse"] < 1e-10 and row["kl"] < 1e-6 and abs(row["ce_added"]) < 1e-5
    assert row["ce_recovered"] == pytest.approx(1, abs=1e-6)


def test_files_and_page_hold_the_rows(rows, config):
    out = Path(config.out)
    assert [row["mode"] for row in read_results(out)] == [row["mode"] for row in rows]
    assert all((out / f"results.{ending}").stat().st_size > 500 for ending in ("parquet", "csv", "json"))
    page = (out / "report.md").read_text()
    assert "SAEBench" in page and "ce_recovered_zero.v1" in page and "(figures/core.png)" in page
    assert (out / "figures" / "core.svg").read_text().startswith("<?xml")
    said = core.headlines(rows)
    assert any("the model's loss is" in line for line in said) and any("best first" in line for line in said)
    html = (out / "report.html").read_text()
    assert "Does the model notice?" in html and "CE recovered" in html and html.count("<svg") == 1
    assert json.loads((out / "config.json").read_text())["batch_tokens"] == 2048


def without_time(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_results(path)]


def test_a_second_run_makes_only_what_is_missing(rows, config, monkeypatch):
    """The same numbers from the parts on disk; one that is lost or damaged is made again, and no other."""
    monkeypatch.setattr(core_parts, "PART_TOKENS", 256)
    out, calls = Path(config.out), []
    before = without_time(out)
    score = splice.score
    monkeypatch.setattr(splice, "score", lambda *a, **k: calls.append(a[3].keys()) or score(*a, **k))
    core_lite.run(config)
    assert not calls and without_time(out) == before
    lost, damaged = sorted((out / "parts").glob("omp_*.npz"))[:2]
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    core_lite.run(config)
    assert [list(names) for names in calls] == [["omp"], ["omp"]]
    assert without_time(out) == before


def test_batches_and_parts_change_only_rounding(rows, config, tmp_path):
    """Other batches, and one part instead of three."""
    one = dataclasses.replace(config, out=str(tmp_path), batch_tokens=100)
    found = by_mode(core_lite.run(one), "toy")
    for mode, row in by_mode(rows, "toy").items():
        for name in (
            "ce",
            "ce_zero",
            "ce_mean",
            "kl",
            "kl_zero",
            "nmse",
            "l0",
            "ce_recovered_lo",
            "kl_recovered",
        ):
            assert found[mode][name] == pytest.approx(row[name], rel=2e-4), (mode, name)


def test_sentences_say_no_more_than_the_intervals():
    def row(mode: str, nmse: float, ce: float, low: float, high: float) -> dict:
        made = {
            "checkpoint": "a",
            "mode": mode,
            "condition": "same_l0",
            "l0": 8.0,
            "n_documents": 90,
            "flags": (),
        }
        made |= {"nmse": nmse, "ce": ce, "kl": ce - 3, "ce_clean": 3.0, "ce_zero": 9.0, "ce_mean": 7.0}
        made |= {"ce_recovered": (9 - ce) / 6, "kl_recovered": 0.9, "l0_target": 8.0}
        made |= {f"ce_added_minus_amortized_{end}": v for end, v in (("lo", low), ("hi", high))}
        return made | {"nmse_minus_amortized_lo": -0.2, "nmse_minus_amortized_hi": -0.1}

    made = [
        row("amortized", 0.3, 3.5, 0, 0),
        row("omp", 0.1, 3.6, 0.05, 0.15),
        row("encoder_refit", 0.2, 3.5, -1, 1),
    ]
    said = core.headlines(made)
    assert "squared error lower; for the model, CE: worse, KL: no paired interval" in said[2]
    assert "CE: not told apart" in said[1]
    assert "best first by NMSE: OMP (best found); encoder support, refit; encoder | by CE:" in said[3]


def test_figure_leaves_out_what_was_not_measured(tmp_path):
    row = {"checkpoint": "a", "condition": "same_l0", "mode": "optimal", "flags": ("unmatchable",)}
    assert figures_core.draw_core([row], tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--ckpts="], "--ckpts is empty"),
        (["--layer_index=none"], "give --model_name and --layer_index"),
        (["--eval_tokens=0"], "--eval_tokens=0: must be above 0"),
        (["--encode_modes="], "--encode_modes is empty"),
        (["--seed=-1"], "--seed=-1"),
        (["--tol=nan"], "--tol=nan"),
        (["--ckpts=nowhere"], "nowhere: no such file"),
    ],
)
def test_mistakes_are_one_line(flags, text, tmp_path, monkeypatch):
    given = ["--ckpts=x", "--out=o", "--model_name=embedded", "--layer_index=2", *flags]
    refuses(core_lite, given, text, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_index": 9}, "blocks 0 to 3"),
        ({"max_seq_len": 1}, "--max_seq_len=1"),
        ({"num_sequences": 3}, "no document fell into"),
    ],
)
def test_a_place_or_text_that_is_not_there_is_one_line(config, changes, said, tmp_path):
    with pytest.raises(AmortjaxError, match=said) as caught:
        core_lite.run(dataclasses.replace(config, out=str(tmp_path / "o"), **changes))
    assert "\n" not in str(caught.value)


def test_a_transcoder_and_an_encoder_only_model_are_refused(config, tmp_path):
    skip = dataclasses.replace(toy_sae(d=128), extra={"W_skip": jnp.eye(128)})
    save_sae(skip, tmp_path / "skip", "native")
    with pytest.raises(AmortjaxError, match="is a transcoder"):
        core_lite.run(dataclasses.replace(config, ckpts=(str(tmp_path / "skip"),), out=str(tmp_path / "o")))
    tiny.module("bert").save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(AmortjaxError, match="predicts no next token"):
        core_lite.run(dataclasses.replace(config, model_name=str(tmp_path / "bert"), out=str(tmp_path / "o")))
    assert not (tmp_path / "o").exists()


def test_another_place_than_the_saes_is_said(config, capsys):
    info = dataclasses.replace(toy_sae().info, layer_index=1, hook="mlp_out")
    core_lite._warn(config, dataclasses.replace(toy_sae(), info=info))
    assert "trained on mlp_out of block 1, not on resid_post of block 2" in capsys.readouterr().err
    core_lite._warn(config, toy_sae())
    assert not capsys.readouterr().err


def test_stories_model_notices_zeros(test_data: Path, tmp_path: Path):
    """A real small model on text of its kind: its loss is that of its record, and zeros cost much more."""
    folder = str(test_data / "models" / "stories260K-hf")
    save_sae(perfect(64), tmp_path / "perfect", "native")
    config = flagged.parse(
        core_lite.Config,
        [
            f"--ckpts={tmp_path / 'perfect'}", f"--out={tmp_path / 'o'}", f"--model_name={folder}", "--layer_index=4",
            f"--dataset={test_data / 'text' / 'tinystories_valid.jsonl.gz'}", "--encode_modes=amortized",
            "--calibration_tokens=256", "--eval_tokens=2048",
        ],
    )  # fmt: skip
    row = core_lite.run(config)[0]
    assert 1.0 < row["ce_clean"] < 2.0 and row["ce_zero"] > 3
    assert row["ce_recovered"] == pytest.approx(1, abs=1e-5)  # the last block, whose hidden state is normed
    assert models.load_model(folder).special_ids == {1, 2}
