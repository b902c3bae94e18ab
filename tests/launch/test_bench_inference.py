"""The inference benchmark: a tiny run over every solver and library there is, its files, and its mistakes."""

import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from mistakes import refuses
from problems import toy_sae

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.inference import objective
from amortjax.inference.solvers import SOLVERS
from amortjax.launch import bench_inference as launcher
from amortjax.launch.bench_parts import entries, peers, problems, table, timing

TINY = {
    "n_tokens": 16,
    "d_model": 64,
    "n_latents": 512,
    "seconds": 1.0,
    "repeats": 1,
    "calibration_tokens": 64,
}
SHOWN = (
    "ms_per_token", "forwards", "relative_gap_median", "relative_gap_worst", "certified", "l0", "compile_seconds",
    "peak_mb", "n_measured",
)  # fmt: skip


def _config(folder, **more) -> launcher.Config:
    return launcher.Config(**{"out": str(folder), "problems": ("synthetic",), **TINY, **more})


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """No test looks at compile times: what one has compiled serves the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "clear_caches", lambda: None)
        yield


@pytest.fixture(scope="module")
def case():
    """The tiny problem, made once."""
    return problems.make("synthetic", _config("unused").sizes(), None, None)


@pytest.fixture(scope="module")
def finished(case, tmp_path_factory):
    """(folder, rows) of a tiny run of everything that is installed."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "make", lambda *_: case)
        return folder, launcher.run(_config(folder))


def test_every_solver_and_every_installed_library_has_a_row(finished):
    _, rows = finished
    measured = {row["key"].partition(":")[0] for row in rows}
    assert set(SOLVERS) <= measured
    assert {key for key, peer in peers.PEERS.items() if peer.installed} <= measured
    assert {"ista-200", "fista-100"} <= {row["solver"] for row in rows}
    for row in rows:
        assert row["forwards"] > 0 and row["ms_per_token"] > 0 and row["n_measured"] > 0
        assert 0 <= row["relative_gap_median"] <= row["relative_gap_worst"]


def test_what_says_it_is_optimal_is_certified_whoever_made_it(finished):
    _, rows = finished
    for row in rows:
        if row["key"] in ("active_set", "spams", "sklearn", "celer"):
            assert row["certified"] == 1.0, row["solver"]
            # P itself, between different algorithms.
            assert abs(row["suboptimality"]) < 1e-4
            assert row["l0"] == pytest.approx(row["optimum_l0"], rel=0.1)


def test_files_have_the_columns_and_the_figure_is_there(finished):
    folder, rows = finished
    frame = pd.read_csv(folder / "results.csv")
    assert set(SHOWN) | {"problem", "solver", "lam", "device", "threads", "precision"} <= set(frame.columns)
    assert len(frame) == len(pd.read_parquet(folder / "results.parquet")) == len(rows)
    assert json.loads((folder / "results.json").read_text())[0]["versions"]["jax"]
    assert (folder / "compute_against_gap.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "compute_against_gap.svg").stat().st_size
    lines = (folder / "table.txt").read_text().splitlines()
    ruled = [line for line in lines if line.startswith("─")]
    assert ruled and max(map(len, ruled)) <= 120
    assert any("forwards" in line and "worst" in line and "MiB" in line for line in lines)


def test_finished_rows_are_kept_and_new_ones_join_them(finished, monkeypatch, capsys):
    folder, rows = finished
    monkeypatch.setattr(timing, "measure", lambda *_: pytest.fail("measured again"))
    again = launcher.run(_config(folder))
    assert {row["key"]: row["forwards"] for row in again} == {row["key"]: row["forwards"] for row in rows}
    assert "solvers are finished" in capsys.readouterr().err
    with pytest.raises(AmortjaxError, match="use another --out"):
        launcher.run(_config(folder, tol=1e-3))


def test_a_solver_whose_code_has_changed_is_measured_again(finished, monkeypatch):
    folder, _ = finished
    bench = launcher.Bench(_config(folder), folder)
    [entry] = entries.entries(["omp"], entries.Asked())
    assert bench.finished("synthetic", entry)
    monkeypatch.setattr(entries, "code_of", lambda _: "changed")
    assert not bench.finished("synthetic", entry)


def test_one_library_failing_does_not_cost_the_others(case, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(problems, "make", lambda *_: case)

    def broken(case, tol):
        raise ValueError("out of luck")

    monkeypatch.setitem(peers.PEERS, "sklearn", peers.PEERS["sklearn"]._replace(make=broken))
    absent = peers.PEERS["celer"]._replace(module="no_such_module_anywhere")
    monkeypatch.setitem(peers.PEERS, "celer", absent)
    rows = launcher.run(_config(tmp_path, solvers=("sklearn", "celer", "ista:3")))
    assert [row["key"] for row in rows] == ["ista:3"]
    said = capsys.readouterr().err
    assert "scikit-learn Lasso left out: out of luck" in said
    assert "pip install 'amortjax[bench]'" in said


def test_an_sae_is_solved_at_its_encoders_density_and_warm_starts(tmp_path, monkeypatch, capsys):
    from amortjax.activations import store as stores
    from amortjax.saes import formats

    sae, r = toy_sae(), np.random.default_rng(0)
    z = r.exponential(size=(400, 64)) * (r.random((400, 64)) < 4 / 64)
    x = (z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec)).astype(np.float32)
    acts = MemoryStore.build(x, np.repeat(np.arange(8), 50), ["calibrate", "test"] * 4)
    monkeypatch.setattr(formats, "load_sae", lambda _: sae)
    monkeypatch.setattr(stores, "open_store", lambda _: acts)
    asked = {
        "solvers": ("active_set@encoder", "encoder"),
        "ckpt": "org/sae",
        "acts": "gs://acts",
    }
    rows = launcher.run(_config(tmp_path, problems=("sae",), calibration_tokens=200, **asked))
    found = {row["solver"]: row for row in rows}
    assert set(found) == {"active_set from encoder", "encoder, no solver"}
    assert found["encoder, no solver"]["optimum_l0"] == pytest.approx(4, rel=0.4)  # on few tokens
    assert found["active_set from encoder"]["certified"] == 1.0
    assert "left out" not in capsys.readouterr().err


def test_without_an_sae_the_commands_that_make_one_are_said(tmp_path, capsys):
    with pytest.raises(AmortjaxError, match="--ckpt is not given") as caught:
        launcher.run(_config(tmp_path, problems=("sae",)))
    assert "launch.collect" in str(caught.value) and "launch.train" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--out=x", "--problems=nonsense"], "--problems=nonsense: not a choice. Choices: synthetic, sae"),
        (
            ["--out=x", "--solvers=nonsense"],
            "--solvers=nonsense: not a choice. Choices: all, ours, peers, active_set",
        ),
        (["--out=x", "--solvers=ista:many"], "--solvers=ista:many"),
        (["--out=x", "--solvers=spams:3"], "--solvers=spams:3"),
        (["--out=x", "--precision=double"], "Choices: highest"),
        (["--out=x", "--n_tokens=0"], "--n_tokens=0: must be above 0"),
        (["--out=x", "--n_latents=1001"], "a multiple of 8"),
        (["--out=x", "--d_model=64", "--problems=synthetic_l0_300"], "--d_model of at least 300, not 64"),
        (["--out=x", "--solvers="], "--solvers is empty"),
        ([], "needed: --out"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(flags, text, tmp_path, monkeypatch):
    refuses(launcher, flags, text, tmp_path, monkeypatch)


def test_the_synthetic_problem_is_the_one_that_was_published():
    """The order of the draws, against a second writing of it; and denser tokens have denser optima."""
    n, d, m, k = 3, 8, 64, 30
    r = np.random.default_rng(0)
    base = r.standard_normal((m // 8, d))
    atoms = r.standard_normal((m, d)) * np.sqrt(0.7) + np.repeat(base, 8, axis=0) * np.sqrt(0.3)
    atoms = atoms / np.sqrt((atoms**2).sum(axis=1))[:, None]
    p = (np.arange(m) + 1.0) ** -0.7
    z = np.zeros((n, m))
    for i in range(n):
        at = r.choice(m, size=k, replace=False, p=p / p.sum())
        z[i, at] = r.exponential(size=k) + 0.2
    x = z @ atoms + 0.05 * r.standard_normal((n, d))
    drawn = problems.draw(problems.Sizes(n, d, m, 1, 0), k)
    np.testing.assert_allclose(drawn[0], atoms, rtol=1e-12)
    np.testing.assert_allclose(drawn[1], x, rtol=1e-9)


def test_denser_problems_have_the_density_they_say(monkeypatch):
    monkeypatch.setitem(problems.SYNTHETIC, "synthetic_l0_20", 20)
    case = problems.make("synthetic_l0_20", problems.Sizes(16, 64, 512, 8, 0), None, None)
    assert case.l0.mean() == pytest.approx(20, rel=0.02)
    assert case.lam != problems.FIXED_LAM
    assert "calibrated to L0 20" in case.text


def test_training_makes_an_unrolled_solver_better(case):
    cost = []
    for steps in (0, 20):
        [entry] = entries.entries(["lista:4"], entries.Asked(unrolled_steps=steps))
        codes, layers = entry.make(case)(16)
        cost.append(
            objective.certify(case.problem, case.t, case.problem.unfold(codes), case.lam).objective.mean()
        )
        assert layers.tolist() == [4] * 16
        assert entry.label == ("lista-4" if steps else "lista-4 untrained")
    assert cost[1] < cost[0]


def test_slow_solvers_get_fewer_tokens():
    def clock(per_token):
        now = [0.0]

        def run(n):
            now[0] += per_token * n

        return now, run

    for per_token, expected in ((1e-4, 1024), (0.5, 64), (2.0, 16), (100.0, 4)):
        now, run = clock(per_token)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timing.time, "perf_counter", lambda now=now: now[0])
            assert timing.tokens_within(run, 1024, 100.0) == expected


def test_peak_memory_sees_what_a_call_takes_and_not_what_was_there():
    gauge = timing.gauge("host")
    if gauge is None:
        pytest.skip("no /proc/self/status here")
    there = np.ones(4 << 20)
    with timing.Peak(gauge) as peak:
        np.ones(8 << 20).sum()  # 64 MiB
    assert peak.megabytes is not None and 50 < peak.megabytes < 90
    assert there.sum()
    with timing.Peak(None) as none:
        pass
    assert none.megabytes is None


def test_the_table_names_the_ratio_and_marks_what_it_must(finished):
    _, rows = finished
    text = table.print_table(rows)
    assert "ista-200 costs" in text
    assert "omp*" in text and "* minimises" in text


def test_help_is_light_and_lists_the_flags():
    command = [sys.executable, "-m", "amortjax.launch.bench_inference", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in ("--problems", "--solvers", "--precision", "--ckpt", "--seconds", "--out"):
        assert flag in shown
