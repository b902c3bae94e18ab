"""Section 4.3's launcher: checkpoints trained here, resuming, parts, and checkpoints that can't be measured."""

import dataclasses
import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from mistakes import refuses
from problems import toy_sae

import amortjax as aj
from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, section5, section43, train
from amortjax.launch.section43_changes import with_changes
from amortjax.report import trajectories
from amortjax.report.tables import read_results

DENSE, SILENT, BROKEN = "standard l1=0.3 step 0", "standard l1=0.5 step 7", "standard l1=0.7 step 9"


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    """1 024 tokens of 512 documents, some to train on, made of toy_sae's atoms. In a split as many as the solver's
    buffers hold, so that it is compiled for few shapes."""
    r, sae = np.random.default_rng(7), toy_sae()
    z = np.zeros((1024, sae.n_latents))
    for row in z:
        row[r.choice(sae.n_latents, 4, replace=False)] = r.exponential(size=4) + 0.3
    x = z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec) + 0.02 * r.standard_normal((1024, sae.d_in))
    splits = np.array(["sae_train", "calibrate", "probe_train", "test"])[np.arange(512) % 4]
    labels = [f"class {i}" for i in r.integers(0, 2, 512)]
    return MemoryStore.build(x.astype(np.float32), np.repeat(np.arange(512), 2), list(splits), labels)


@pytest.fixture(scope="module")
def ckpts(store, tmp_path_factory):
    """TopK at 2 sparsities x 2 steps, an L1 SAE at 2 steps, and two checkpoints that can't be measured."""
    folder = tmp_path_factory.mktemp("ckpts")
    same = {"acts": "unused", "n_latents": 64, "steps": 40, "batch_size": 100, "lr": 1e-2, "save_at": (0.0,)}
    for variant, sweep in (("topk", "k:2/4"), ("standard", "lam:0.3")):
        train.train(train.Config(out=str(folder / variant), variant=variant, sweep=(sweep,), **same), store)
    plain = dataclasses.replace(toy_sae("standard"), k=None)
    silent = dataclasses.replace(plain, b_enc=jnp.full(64, -1e6))
    aj.save_sae(silent, folder / "standard" / "l1=0.5" / "7" / "sae.safetensors")
    broken = aj.save_sae(plain, folder / "standard" / "l1=0.7" / "9" / "sae.safetensors")
    arrays = safetensors.numpy.load_file(broken)
    arrays["W_dec"][3] = np.nan
    broken.write_bytes(safetensors.numpy.save(arrays))
    settings = json.loads(broken.with_suffix(".json").read_text())
    settings["sha256"] = hashlib.sha256(broken.read_bytes()).hexdigest()
    broken.with_suffix(".json").write_text(json.dumps(settings))
    return folder


def config(ckpts, out, **flags) -> section43.Config:
    given = {"ckpts": ckpts, "acts": "unused", "out": out, "ista_steps": 20, "semi_steps": 5, "chunk": 512,
             "explorer_latents": 4}  # fmt: skip
    return flagged.parse(section43.Config, [f"--{name}={value}" for name, value in (given | flags).items()])


@pytest.fixture(scope="module")
def whole(store, ckpts, tmp_path_factory):
    """All checkpoints measured: the folder of the results and its rows."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(section5, "activations", lambda config: store)
        return out, section43.run(config(ckpts, out))


@pytest.fixture
def activations(store, monkeypatch):
    monkeypatch.setattr(section5, "activations", lambda config: store)


def of(rows, name):
    return {(row["condition"], row["mode"]): row for row in rows if row["checkpoint"] == name}


def test_every_checkpoint_has_its_rows(whole):
    out, rows = whole
    names = {row["checkpoint"] for row in rows}
    assert len(names) == 8 and {row["step"] for row in rows} == {0, 40, 7, 9}
    row = of(rows, "topk k=4 step 40")["same_l0", "optimal"]
    assert (row["variant"], row["sparsity"], row["sparsity_value"], row["final"]) == ("topk", "k=4", 4, True)
    assert row["path"].endswith("k_4/sae.safetensors")
    assert set(of(rows, "topk k=2 step 0")) == {
        (condition, mode)
        for condition in ("same_lambda", "same_l0")
        for mode in ("amortized", "semi_amortized", "non_amortized", "optimal")
    }
    assert len(read_results(out)) == len(rows)
    for name in ("report.md", "report.html", "config.json", "results.csv", "figures/trajectories.svg"):
        assert (out / name).stat().st_size > 300
    assert not list(out.rglob("*.part"))


def test_the_gap_to_ista_keeps_its_sign(whole):
    for name in ("topk k=2 step 40", "topk k=4 step 0"):
        rows = of(whole[1], name)
        ista, own, best = (rows["same_lambda", mode] for mode in ("non_amortized", "amortized", "optimal"))
        assert own["gap_to_ista"] == pytest.approx(own["objective"] - ista["objective"])
        assert own["gap_to_ista_lo"] <= own["gap_to_ista"] <= own["gap_to_ista_hi"]
        assert own["relative_gap_to_ista"] == pytest.approx(own["gap_to_ista"] / ista["objective"])
        assert best["gap_to_ista"] < 0 == ista["gap_to_ista"]
        assert "gap_to_ista" not in rows["same_l0", "amortized"]
        # The gap to the optimum is the larger one, by what ISTA lacks.
        assert own["gap_upper"] >= own["gap_to_ista"] - best["gap_to_ista"] - 1e-9


def test_changes_from_step_to_step_are_paired(whole):
    out, rows = whole
    first, last = (of(rows, f"topk k=4 step {step}") for step in (0, 40))
    for condition in ("same_l0", "same_lambda"):
        a, b = first[condition, "amortized"], last[condition, "amortized"]
        assert (b["before_step"], b["first_step"]) == (0, 0) and a.get("first_step") is None
        for since in ("before", "first"):
            change, low, high = (b[f"nmse_minus_{since}{end}"] for end in ("", "_lo", "_hi"))
            assert change == pytest.approx(b["nmse"] - a["nmse"], rel=1e-5) and low < change < high < 0
            # Tokens that are hard are so at every step: pairing takes that out.
            assert high - low < (a["nmse_hi"] - a["nmse_lo"]) + (b["nmse_hi"] - b["nmse_lo"])
    gap = last["same_lambda", "amortized"]
    assert gap["suboptimality_upper_minus_first_lo"] < gap["suboptimality_upper_minus_first_hi"]
    assert "suboptimality_upper_minus_first" not in last["same_l0", "amortized"]  # no gap is told there
    assert "nmse_minus_first" not in last["same_l0", "optimal"]
    # From an encoder too dense to match nothing is counted.
    assert of(rows, "standard l1=0.3 step 40")["same_l0", "amortized"].get("first_step") is None
    told = [line for line in (out / "report.md").read_text().splitlines() if "| k=4 | 40 |" in line]
    assert any("*)" in line for line in told)
    # Without the measurements' files there are no intervals, and no columns.
    bare = [{key: value for key, value in row.items() if "_minus_" not in key} for row in rows]
    assert not any("nmse_minus_first" in row for row in with_changes(bare, out / "nowhere"))


def test_an_encoder_too_dense_to_match_is_kept_and_quick(whole):
    rows = of(whole[1], DENSE)
    assert set(rows) == {("same_l0", "amortized")}
    row = rows["same_l0", "amortized"]
    assert row["l0"] > 16 and "unmatchable" in row["flags"] and row["unmatchable"]
    assert row["nmse"] > 0 and row["df1"] is not None and row["dense@0.1"] > 0


def test_what_cannot_be_measured_is_a_row_with_the_reason(whole):
    out, rows = whole
    [silent], [broken] = of(rows, SILENT).values(), of(rows, BROKEN).values()
    assert "fires on no calibration token" in silent["reason"]
    assert "W_dec" in broken["reason"] and "NaN" in broken["reason"]
    assert any("not measured" in flag for flag in broken["flags"])
    assert "not measured: " in (out / "report.md").read_text()
    assert read_results(out)[0]["checkpoint"]


def test_a_second_run_measures_nothing_but_what_failed(whole, ckpts, activations, monkeypatch):
    out, before = whole
    tried = []
    inner = section43.rows_of_entry
    monkeypatch.setattr(
        section43, "rows_of_entry", lambda entry, *a: tried.append(entry.name) or inner(entry, *a)
    )
    again = section43.run(config(ckpts, out))
    assert tried == [SILENT, BROKEN]
    assert [row.get("nmse") for row in again] == [row.get("nmse") for row in before]


def test_parts_are_gathered_by_a_run_without(whole, ckpts, activations, tmp_path, monkeypatch):
    flags = {"variants": "topk", "conditions": "same_lambda", "encode_modes": "amortized,optimal"}
    parts = [section43.run(config(ckpts, tmp_path, part=f"{i}/3", **flags)) for i in (1, 2, 3)]
    names = [[row["checkpoint"] for row in rows] for rows in parts]
    assert [sorted(set(part)) for part in names] == [
        ["topk k=2 step 0", "topk k=4 step 40"], ["topk k=2 step 40"], ["topk k=4 step 0"],
    ]  # fmt: skip
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(section43, "measure", lambda *a: pytest.fail("measured again"))
    rows = section43.run(config(ckpts, tmp_path, **flags))
    assert sorted(row["checkpoint"] for row in rows) == sorted(name for part in names for name in part)
    assert (tmp_path / "report.html").exists()


def test_a_killed_run_has_written_what_was_finished(whole, ckpts, activations, tmp_path, monkeypatch):
    flags = {
        "variants": "topk",
        "conditions": "same_lambda",
        "encode_modes": "amortized,optimal",
        "steps": "final",
    }
    inner = section43.rows_of_entry

    def killed(entry, *rest):
        if entry.sparsity == "k=4":
            raise KeyboardInterrupt
        return inner(entry, *rest)

    monkeypatch.setattr(section43, "rows_of_entry", killed)
    with pytest.raises(KeyboardInterrupt):
        section43.run(config(ckpts, tmp_path, **flags))
    assert {row["sparsity"] for row in read_results(tmp_path)} == {"k=2"}
    monkeypatch.setattr(section43, "rows_of_entry", lambda entry, *rest: inner(entry, *rest))
    assert {row["sparsity"] for row in section43.run(config(ckpts, tmp_path, **flags))} == {"k=2", "k=4"}


def test_tables_and_words(whole):
    rows = whole[1]
    steps = trajectories.steps_table(rows)
    assert len(steps.body) == 8
    here = {tuple(line[:3]): line for line in steps.body}
    nmse = steps.header.index("NMSE ↓")
    assert "(" not in here["topk", "k=2", "0"][nmse] and "(-" in here["topk", "k=2", "40"][nmse]
    last = trajectories.final_table(rows)
    assert [line[:3] for line in last.body if line[0] == "topk"] == [
        ["topk", "k=2", "40"],
        ["topk", "k=4", "40"],
    ]
    topk = next(s for s in trajectories.sentences(rows) if s.startswith("topk"))
    assert "NMSE falls at 2 of 2, rises at 0" in topk
    point = trajectories.points(
        [r for r in rows if r["checkpoint"] == DENSE], trajectories.MEASURES["nmse"], "amortized"
    )
    assert point[0].marked and point[0].lower < point[0].value < point[0].upper


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"part": "0/3"}, "--part=0/3: write it as i/n"),
        ({"part": "2"}, "--part=2"),
        ({"densest": 0}, "--densest=0.0: must be above 0"),
        ({"ckpts": "nowhere"}, "nowhere: no such file or folder"),
        ({"variants": "gated"}, "--variants: gated is not there; found: topk, standard"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(flags, said, ckpts, tmp_path, monkeypatch):
    given = {"ckpts": ckpts, "acts": "unused", "out": "out"} | flags
    refuses(section43, [f"--{name}={value}" for name, value in given.items()], said, tmp_path, monkeypatch)


def test_activations_of_another_width_are_refused_at_once(ckpts, tmp_path, monkeypatch):
    other = MemoryStore.build(
        np.ones((90, 8), np.float32), np.arange(90), ["calibrate", "test", "probe_train"] * 30
    )
    monkeypatch.setattr(section5, "activations", lambda config: other)
    with pytest.raises(AmortjaxError, match="activations of width 16, the store's have 8"):
        section43.run(config(ckpts, tmp_path / "out", variants="topk"))
