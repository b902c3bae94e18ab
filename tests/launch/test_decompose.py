"""The price rung by rung, from end to end on a toy; killed and gone on with; and mistakes in one line."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from problems import toy_sae

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.launch import decompose, decompose_parts, flagged
from amortjax.metrics.ladder import PARTS
from amortjax.saes.formats.native import save_native
from amortjax.training import ladder as fitting

SMALL = [
    "--fit_tokens=512", "--validation_tokens=128", "--fit_steps=20", "--fit_batch=64", "--mlp_hidden=8",
    "--lista_layers=2", "--relearn_rounds=1", "--relearn_tokens=256", "--calibration_tokens=256",
    "--eval_tokens=256", "--chunk=256",
]  # fmt: skip


@functools.cache
def store(splits=("sae_train", "sae_train", "calibrate", "probe_train", "test")):
    r, sae = np.random.default_rng(7), toy_sae()
    n_documents, per = 400, 4
    z = np.zeros((n_documents * per, sae.n_latents))
    for row in z:
        row[r.choice(sae.n_latents, 4, replace=False)] = r.exponential(size=4) + 0.3
    x = z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec) + 0.02 * r.standard_normal((len(z), sae.d_in))
    names = [splits[i % len(splits)] for i in range(n_documents)]
    return MemoryStore.build(x.astype(np.float32), np.repeat(np.arange(n_documents), per), names)


def config_of(folder, *flags):
    return flagged.parse(
        decompose.Config, [f"--ckpt={folder}/sae", "--acts=x", f"--out={folder}/out", *SMALL, *flags]
    )


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """A folder with a toy SAE, and a store that stands in for the one on disk."""
    save_native(toy_sae(), tmp_path / "sae")
    monkeypatch.setattr("amortjax.activations.store.open_store", lambda path: store())
    return tmp_path


def test_from_end_to_end_and_again_after_a_kill(ready, monkeypatch, capsys):
    fit_rung = fitting.fit_rung

    def killed(name, *rest):
        if name == "mlp":
            raise KeyboardInterrupt
        return fit_rung(name, *rest)

    config = config_of(ready)
    monkeypatch.setattr(decompose_parts.fitting, "fit_rung", killed)
    with pytest.raises(KeyboardInterrupt):
        decompose.run(config)
    made = []
    monkeypatch.setattr(
        decompose_parts.fitting, "fit_rung", lambda name, *rest: made.append(name) or fit_rung(name, *rest)
    )
    rows = decompose.run(config)
    assert made == ["mlp", "lista"]  # what was finished is not fitted again
    made.clear()
    again = decompose.run(config)
    assert made == [] and again == rows
    whole = decompose.run(dataclasses.replace(config, out=f"{ready}/other"))
    assert made == list(fitting.FITTED)
    for a, b in zip(rows, whole, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }
    _check_rows([row for row in rows if row["condition"] == "ladder"])
    _check_files(ready / "out", capsys.readouterr().out)


def _check_rows(ladder):
    assert [row["mode"] for row in ladder] == list(decompose_parts.RUNGS)
    by_name = {row["mode"]: row for row in ladder}
    assert all(row["excess_upper"] >= -1e-4 for row in ladder[:-1])
    assert len({row["lam"] for row in ladder}) == 1
    assert sum(row["share"] for row in ladder[1:-1]) == pytest.approx(1)
    assert by_name["optimum"]["certified"] == 1
    # What latents did sums to what P says, and what an interval says of P lies around it.
    for row in ladder[:-2]:
        parts = sum(row[f"price_{name}"] for name in ("missed", "spurious", "rescaled")) - row["price_slack"]
        assert parts == pytest.approx(row["objective"] - by_name["optimum"]["objective"], rel=1e-6)
        assert row["price_amplitude"] + row["price_support"] == pytest.approx(
            row["suboptimality_lower"], rel=1e-6
        )
        assert row["objective_lo"] < row["objective"] < row["objective_hi"]
    assert by_name["relearned"]["fit_train"] <= by_name["relearned"]["fit_train_start"] * (1 + 1e-4)
    assert by_name["relearned"].get("price_amplitude") is None


def _check_files(folder, said):
    assert "a scale per latent" in said and "NMSE at equal L0" in said
    for name in ("results.parquet", "results.csv", "ladder.svg", "latents.png", "latents.csv", "report.html"):
        assert (folder / name).stat().st_size > 300, name
    assert (folder / "ladder.png").read_bytes()[:4] == b"\x89PNG"
    page = (folder / "report.md").read_text()
    assert "MLP, 8 hidden" in page and "not over documents" in page
    kept = json.loads((folder / "results.json").read_text())
    modes = [row["mode"] for row in kept if row["condition"] == "same_l0"]
    assert modes == ["amortized", "encoder_refit", "optimal_refit", "omp"]
    table = json.loads((folder / "latents.json").read_text())
    assert {row["predictor"] for row in table} == {"density", "avar", "angle", "neighbour"}
    header = (folder / "latents.csv").read_text().splitlines()[0].split(",")
    assert {"latent", *PARTS, "avar", "angle", "neighbour", "price_per_firing"} <= set(header)


def test_documents_of_the_fit_are_not_those_it_is_chosen_by():
    rows = decompose_parts.fit_rows(store(), 400, 200, seed=0)
    ids = store().doc_ids
    assert not set(ids[rows.train]) & set(ids[rows.validation])
    assert 0.15 < len(rows.validation) / 600 < 0.55
    other = decompose_parts.fit_rows(store(), 400, 200, seed=1)
    assert set(other.validation.tolist()) != set(rows.validation.tolist())


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--fit_steps=-5", "--fit_steps=-5: must be above 0"),
        ("--fit_lr=nan", "--fit_lr=nan: must be above 0"),
        ("--lista_layers=0", "--lista_layers=0"),
        ("--relearn_rounds=-1", "--relearn_rounds=-1: must be 0 or more"),
        ("--lam=-2", "--lam=-2.0: must be above 0"),
        ("--tol=inf", "--tol=inf"),
        ("--seed=-1", "--seed=-1"),
    ],
)
def test_flags_that_mean_nothing_are_refused_before_anything_is_read(tmp_path, flag, text):
    with pytest.raises(AmortjaxError, match=text) as caught:
        decompose.run(config_of(tmp_path, flag))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def _transcoder():
    sae = toy_sae("standard")
    return dataclasses.replace(
        sae, W_dec=np.concatenate([np.asarray(sae.W_dec)] * 2, axis=1), b_dec=np.zeros(32)
    )


@pytest.mark.parametrize(
    ("sae", "splits", "text"),
    [
        (toy_sae, ("calibrate", "probe_train", "test"), "no document of split 'sae_train'"),
        (_transcoder, None, "this is a transcoder"),
        (lambda: toy_sae("signed_topk"), None, "codes may be negative"),
        (lambda: dataclasses.replace(toy_sae(), k=20), None, "an optimum at most 16"),
        (lambda: toy_sae(d=8), None, "width 8"),
        (
            lambda: dataclasses.replace(toy_sae("jumprelu"), extra={"threshold": np.full(64, 1e9)}),
            None,
            "fires on no",
        ),
    ],
)
def test_what_cannot_be_decomposed_is_said_in_one_line(tmp_path, monkeypatch, sae, splits, text):
    acts = store(splits) if splits else store()
    monkeypatch.setattr("amortjax.activations.store.open_store", lambda path: acts)
    monkeypatch.setattr("amortjax.saes.formats.load_sae", lambda path: sae())
    with pytest.raises(AmortjaxError, match=text) as caught:
        decompose.run(config_of(tmp_path))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_one_document_can_not_be_divided(monkeypatch):
    with pytest.raises(AmortjaxError, match="none are left to"):
        decompose_parts.fit_rows(store(), 3, 1, seed=0)
