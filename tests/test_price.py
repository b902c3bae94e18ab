"""`aj.price` and the section5 launcher: rows, matching, resuming, and what is said of mistakes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from problems import toy_sae

import amortjax as aj
from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError, StoreError
from amortjax.inference.modes import MODES
from amortjax.launch import flagged, section5
from amortjax.metrics.plan import make_plan
from amortjax.price import rows_of

SMALL = {
    "calibration_tokens": None,
    "eval_tokens": None,
    "probe_tokens": None,
    "ista_steps": 60,
    "chunk": 512,
}


@pytest.fixture(scope="module")
def table(small_store, tmp_path_factory):
    """All modes and conditions of a TopK SAE, and where its measurements are kept."""
    folder = tmp_path_factory.mktemp("rows")
    rows = list(rows_of(toy_sae(), small_store, make_plan(heads=(100,), **SMALL), folder, progress=False))
    return {(row["condition"], row["mode"]): row for row in rows}, folder


def test_a_row_for_every_condition_and_mode(table):
    rows, _ = table
    assert {mode for condition, mode in rows if condition == "same_lambda"} == set(MODES)
    assert {mode for condition, mode in rows if condition == "same_l0"} == set(MODES)
    assert ("same_nmse", "optimal") in rows


def test_gaps_at_one_lambda_bracket_the_truth_and_order_the_modes(table):
    rows, _ = table
    at = lambda mode: rows["same_lambda", mode]  # noqa: E731
    assert at("optimal")["certified"] == 1
    for mode in MODES:
        assert (
            0
            <= at(mode)["suboptimality_lower"]
            <= at(mode)["suboptimality_upper"]
            <= at(mode)["own_gap"] / (1 - min(at(mode)["own_gap"], 0.999)) * (1 + 1e-6)
        )
        assert at(mode)["lam"] == at("optimal")["lam"]
        assert at(mode)["objective"] >= at("optimal")["objective"] * (1 - 1e-4)
    upper = [
        at(m)["suboptimality_upper"] for m in ("optimal", "non_amortized", "semi_amortized", "amortized")
    ]
    assert upper == sorted(upper)


def test_the_price_at_one_lambda_is_amplitude_and_support(table):
    rows, _ = table
    for mode in MODES:
        row = rows["same_lambda", mode]
        amplitude, support = row["price_amplitude"], row["price_support"]
        assert amplitude >= 0 and support >= 0
        assert amplitude + support == pytest.approx(row["suboptimality_lower"], abs=1e-12)
        assert amplitude <= row["price_amplitude_upper"]
        assert row["price_support_lower"] <= support <= row["price_support_upper"]
        if mode != "optimal":
            assert row["price_amplitude_upper"] - amplitude <= 2e-4  # the denominators' difference
            assert row["price_amplitude_lo"] <= amplitude <= row["price_amplitude_hi"]
        assert row["gap_width"] == pytest.approx(row["gap_upper"] - row["gap_lower"], abs=1e-9)
    encoder, scaled = rows["same_lambda", "amortized"], rows["same_lambda", "encoder_scaled"]
    # One scale changes amplitudes only: what is left is on the same support.
    assert scaled["price_support"] == pytest.approx(encoder["price_support"], rel=1e-6)
    assert 0 < scaled["price_amplitude"] < encoder["price_amplitude"]
    # The optimum's support is right but for the few latents that a refit without penalty drops.
    refit = rows["same_lambda", "optimal_refit"]
    assert refit["price_support"] < 0.01 * refit["price_amplitude"]
    for (condition, mode), row in rows.items():
        if condition != "same_lambda" and mode != "optimal":
            assert row.get("price_amplitude") is None


def test_l0_is_matched_where_it_is_said_to_be(table):
    rows, _ = table
    for mode in ("semi_amortized", "non_amortized", "optimal", "optimal_refit"):
        row = rows["same_l0", mode]
        assert abs(row["l0_calibration"] / row["l0_target"] - 1) <= 0.0101
        assert abs(row["l0"] / 4 - 1) <= 0.05
    assert rows["same_l0", "omp"]["l0"] == pytest.approx(rows["same_l0", "amortized"]["l0"], rel=0.02)


def test_no_objective_is_shown_where_no_lambda_is_in_force(table):
    rows, _ = table
    for mode in ("amortized", "encoder_refit", "omp"):
        assert rows["same_l0", mode].get("objective") is None
        assert rows["same_l0", mode]["nmse"] == rows["same_lambda", mode]["nmse"]


def test_better_inference_is_seen_as_better(table):
    rows, _ = table
    nmse = {mode: rows["same_l0", mode]["nmse"] for mode in MODES}
    assert nmse["omp"] < nmse["encoder_refit"] < nmse["amortized"]
    assert nmse["optimal_refit"] < nmse["encoder_refit"]
    assert rows["same_l0", "amortized"]["f1@1"] > 0.5  # latent 0 fires for class 1 only


def test_heads_and_other_tolerances_are_reported(table):
    rows, _ = table
    row = rows["same_lambda", "optimal"]
    assert row["dead@100"] >= row["dead"] == row["dead_tol1e-06"]
    assert row["certified_dead"] <= row["dead"]
    assert row["possibly_active"] >= row["l0"]
    assert row["l0_tol0.001"] > 0


def test_finished_measurements_are_not_made_again(table, small_store, monkeypatch):
    rows, folder = table
    monkeypatch.setattr("amortjax.metrics.bench.measure", lambda *a, **k: pytest.fail("measured again"))
    again = list(rows_of(toy_sae(), small_store, make_plan(heads=(100,), **SMALL), folder, progress=False))
    for row in again:
        before = rows[row["condition"], row["mode"]]
        assert row["nmse"] == before["nmse"]
        assert row.get("nmse_lo") == pytest.approx(before.get("nmse_lo"), rel=1e-5)


def test_a_damaged_measurement_is_made_again(small_store, tmp_path):
    plan = make_plan(modes=("amortized", "optimal"), conditions=("same_lambda",), **SMALL)
    first = list(rows_of(toy_sae(), small_store, plan, tmp_path, progress=False))
    for file in tmp_path.glob("optimal_*.npz"):
        file.write_bytes(file.read_bytes()[:1000])
    again = list(rows_of(toy_sae(), small_store, plan, tmp_path, progress=False))
    assert [row["nmse"] for row in again] == [row["nmse"] for row in first]


def test_price_gives_a_frame(small_store):
    frame = aj.price(toy_sae(), small_store, modes=["amortized"], conditions=["same_lambda"], **SMALL)
    assert list(frame["mode"]) == ["amortized"]
    assert frame["nmse_lo"][0] < frame["nmse"][0] < frame["nmse_hi"][0]


@pytest.mark.parametrize("variant", ["standard", "jumprelu", "gated", "batch_topk", "matryoshka"])
def test_every_variant_has_a_price(variant, small_store):
    plan = make_plan(modes=("amortized", "optimal"), conditions=("same_l0",), **SMALL)
    rows = list(rows_of(toy_sae(variant), small_store, plan, None, progress=False))
    assert all(row["nmse"] is not None for row in rows)
    assert len(rows) == 2


def test_trained_lambda_is_half_the_papers(small_store):
    sae = toy_sae("standard")
    sae = dataclasses.replace(sae, info=dataclasses.replace(sae.info, lam_train=0.5))
    plan = make_plan(modes=("amortized", "optimal"), conditions=("trained_lambda",), **SMALL)
    rows = list(rows_of(sae, small_store, plan, None, progress=False))
    assert {row["lam"] for row in rows} == {0.25}


def test_an_encoder_denser_than_any_optimum_is_marked_and_kept(small_store):
    sae = toy_sae("topk", k=20)  # 20 > D = 16
    modes = ("optimal", "encoder_scaled", "semi_amortized", "amortized")
    rows = list(rows_of(sae, small_store, make_plan(modes=modes, **SMALL), None, progress=False))
    assert rows[0]["mode"] == "amortized"  # first, whatever the order asked for
    by = {(row["condition"], row["mode"]): row for row in rows}
    assert "unmatchable" in by["same_l0", "optimal"]["flags"]
    assert by["same_l0", "optimal"].get("nmse") is None
    assert (
        abs(by["same_l0", "semi_amortized"]["l0_calibration"] / 20 - 1) < 0.02
    )  # steps that stop early reach it
    assert by["same_l0", "encoder_scaled"]["scale"] != 1
    assert by["same_l0", "amortized"]["nmse"] > 0
    assert by["same_nmse", "optimal"]["nmse"] > 0


def test_literal_protocol_makes_the_papers_choices(small_store):
    modes = ("amortized", "semi_amortized", "non_amortized")
    dense = make_plan(modes=modes, protocol="literal", **SMALL)
    rows = {row["mode"]: row for row in rows_of(toy_sae(), small_store, dense, None, progress=False)}
    assert rows["non_amortized"]["record"]["sign"] == "signed"
    assert rows["non_amortized"]["lam"] in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2)
    assert rows["amortized"]["probe_labels"] == "norm pseudo-labels"
    assert rows["non_amortized"]["density_target"] == 0.1
    assert rows["amortized"]["literal_gap_mean"] > 0


def test_literal_optimum_beyond_the_rank_is_a_marked_row():
    r = np.random.default_rng(0)
    sae = toy_sae(d=4, m=64, k=2)
    splits = np.array(["calibrate", "probe_train", "test"])[np.arange(60) % 3]
    acts = MemoryStore.build(
        r.standard_normal((300, 4)).astype(np.float32), np.repeat(np.arange(60), 5), list(splits)
    )
    plan = make_plan(modes=("amortized", "optimal"), protocol="literal", **SMALL)
    rows = {row["mode"]: row for row in rows_of(sae, acts, plan, None, progress=False)}
    assert "unmatchable" in rows["optimal"]["flags"]  # 0.1 * 64 > 4
    assert rows["optimal"].get("nmse") is None


@pytest.mark.parametrize(
    ("sae", "plan", "said"),
    [
        (toy_sae(d=20), {}, "width 20, the store's have 16"),
        (toy_sae(), {"target_dense": 0.5}, r"at most rank\(W\) = 16 of 64"),
        (toy_sae(), {"target_l0": 3, "target_dense": 0.1}, "give one"),
        (toy_sae(), {"modes": ("best",)}, "is not one of amortized"),
        (toy_sae(), {"conditions": ("equal",)}, "equal is not one of same_lambda"),
        (toy_sae(), {"colour": 1}, "no argument colour"),
        (toy_sae(), {"eval_split": "lm_train"}, "lm_train"),
        (toy_sae(), {"eval_split": "calibrate"}, "lambda is calibrated on these rows"),
    ],
)
def test_mistakes_are_said_in_one_line(sae, plan, said, small_store):
    with pytest.raises(AmortjaxError, match=said):
        aj.price(sae, small_store, **(SMALL | plan))


def test_rows_it_was_trained_on_are_refused(small_store):
    sae = toy_sae()
    fingerprint = small_store.manifest["corpus_fingerprint"]
    sae = dataclasses.replace(sae, info=dataclasses.replace(sae.info, trained_on=fingerprint))
    with pytest.raises(AmortjaxError, match="trained on sae_train"):
        aj.price(sae, small_store, eval_split="sae_train")


def test_kept_measurements_of_other_activations_are_not_taken_for_these(small_store, tmp_path):
    plan = make_plan(modes=("amortized",), conditions=("same_l0",), **SMALL)
    shifted = MemoryStore.build(
        small_store.read(slice(None)) * 1.5, small_store.doc_ids, list(small_store.documents["split"])
    )
    a, b = (next(rows_of(toy_sae(), acts, plan, tmp_path, False)) for acts in (small_store, shifted))
    assert a["nmse"] != b["nmse"]


def test_omp_does_not_depend_on_how_atoms_are_weighed():
    from problems import sparse_problem

    from amortjax.inference import modes, objective
    from amortjax.inference.codes import from_dense

    atoms, t = sparse_problem(0)
    encoder = from_dense(np.ones((len(t), len(atoms)), np.float32) * (np.arange(len(atoms)) < 4))
    by_norm, by_unit = (
        modes.solve("omp", objective.pose_dictionary(atoms, objective.Objective(weights=w)), t, encoder, 0.0, 1.0,
                    modes.Options())[0]
        for w in ("norm", "unit")
    )  # fmt: skip
    np.testing.assert_allclose(by_norm.dense(), by_unit.dense(), atol=1e-3)


def test_activations_that_are_not_finite_are_refused(small_store):
    x = small_store.read(slice(None)).copy()
    x[small_store.rows("calibrate")[5], 3] = np.inf
    broken = MemoryStore.build(x, small_store.doc_ids, list(small_store.documents["split"]))
    with pytest.raises(StoreError, match="1 of"):
        aj.price(toy_sae(), broken, **SMALL)


# --- the launcher ---


def section5_args(folder: Path, **flags) -> list[str]:
    given = {
        "ckpts": folder / "toy",
        "acts": folder / "acts",
        "out": folder / "out",
        "chunk": 256,
        "ista_steps": 40,
    }
    return [f"--{name}={value}" for name, value in (given | flags).items()]


@pytest.fixture(scope="module")
def on_disk(small_store, tmp_path_factory):
    """The toy SAE and store as files."""
    from amortjax.activations.writer import Writer

    folder = tmp_path_factory.mktemp("section5")
    aj.save_sae(toy_sae(), folder / "toy" / "sae.safetensors")
    wanted = {**small_store.manifest, "chunk_rows": 2048, "token_policy": {}, "max_seq_len": 10, "batch_tokens": 1,
              "split_fractions": {}, "seed": 0, "num_sequences": None, "model_fingerprint": "x"}  # fmt: skip
    for name in ("finished", "n_rows", "n_documents", "norm"):
        wanted.pop(name, None)
    writer = Writer(folder / "acts", wanted)
    writer.append(0, small_store.read(slice(None)), small_store.token_ids, small_store.doc_ids)
    documents = {name: np.asarray(column).tolist() for name, column in small_store.documents.items()}
    writer.finish(documents, [])
    return folder


def test_section5_writes_tables_pictures_and_a_report(on_disk, capsys):
    config = flagged.parse(
        section5.Config, section5_args(on_disk, encode_modes="amortized,semi,unamortized,optimal")
    )
    rows = section5.run(config)
    out = on_disk / "out"
    assert {row["mode"] for row in rows} == {"amortized", "semi_amortized", "non_amortized", "optimal"}
    for name in ("results.csv", "results.parquet", "results.json", "report.md", "report.html", "config.json"):
        assert (out / name).stat().st_size > 0
    assert list((out / "figures").glob("*.png"))
    assert len(json.loads((out / "results.json").read_text())) == len(rows)
    assert "same L0" in capsys.readouterr().out
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"ckpts": "nowhere"}, "nowhere"),
        ({"acts": "nowhere"}, "nowhere"),
        ({"encode_modes": "amortized,best"}, "Choices: amortized"),
        ({"target_dense": 0.9}, "at most rank"),
        ({"ista_steps": 0}, "--ista_steps=0: must be above 0"),
        ({"protocol": "strict"}, "Choices: controlled, literal"),
    ],
)
def test_section5_says_what_is_wrong_and_writes_nothing(on_disk, tmp_path, flags, said, monkeypatch, capsys):
    args = section5_args(on_disk, **({"out": tmp_path / "out"} | flags))
    monkeypatch.setattr(sys, "argv", ["section5", *args])
    with pytest.raises(SystemExit) as caught:
        flagged.launch(section5.Config, section5.run, "amortjax.launch.section5")
    shown = capsys.readouterr().err
    assert caught.value.code == 2
    assert shown.splitlines()[-1].startswith("error: ")
    assert said in shown
    assert "Traceback" not in shown
    assert not list((tmp_path / "out").glob("results*"))


def test_a_mistake_at_the_command_line_exits_with_2(on_disk, tmp_path):
    command = [sys.executable, "-m", "amortjax.launch.section5", *section5_args(on_disk, ckpts="nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: nowhere") and done.stderr.count("\n") == 1


def test_a_killed_section5_goes_on_where_it_was(on_disk, tmp_path):
    # The explorer of a finished run has tests of its own.
    flags = {
        "conditions": "same_lambda",
        "explorer_latents": 0,
        "encode_modes": "amortized,unamortized,optimal",
    }
    args = section5_args(on_disk, out=tmp_path / "out", **flags)
    command = [sys.executable, "-m", "amortjax.launch.section5", *args]
    rows = tmp_path / "out" / "rows"
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(rows.glob("amortized_*.npz")):
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in rows.glob("*.npz")}
    assert kept
    subprocess.run(command, check=True, capture_output=True)
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 3
    assert all((rows / name).stat().st_mtime_ns == when for name, when in kept.items())
