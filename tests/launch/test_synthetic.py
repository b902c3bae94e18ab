"""The synthetic scenarios as commands: files, resuming, both protocols, mistakes; beside the published points."""

import json
from pathlib import Path

import pytest
from mistakes import refuses

from amortjax.errors import AmortjaxError
from amortjax.launch import bench_synthetic, flagged, synthetic, synthetic_parts
from amortjax.report.tables import read_results
from amortjax.synthetic import published, scenarios

GOLDEN = Path(__file__).parents[1] / "golden" / "papers" / "sparse_inference_2411_13117.json"
SMALL = {"sources": 6, "dimensions": 4, "active": 2, "samples": 64, "steps": 30, "seeds": 2, "iterations": 30,
         "log_every": 10, "methods": "sae,sae_ito,sparse_coding"}  # fmt: skip


def config(out: Path, **flags) -> synthetic.Config:
    given = {"out": out} | SMALL | flags
    return flagged.parse(synthetic.Config, [f"--{name}={value}" for name, value in given.items()])


@pytest.fixture(scope="module")
def literal(tmp_path_factory):
    out = tmp_path_factory.mktemp("literal")
    return out, synthetic.run(config(out))


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
    out = tmp_path_factory.mktemp("controlled")
    return out, synthetic.run(config(out, protocol="controlled", scenario="unknown", methods="sae,sae_ito"))


def test_a_row_for_every_scenario_method_run_and_step(literal):
    out, rows = literal
    found = {(r["scenario"], r["method"], r["run"], r["step"]) for r in rows}
    assert len(found) == len(rows)
    methods = {"known_codes": 1, "known_dictionary": 3, "unknown": 3}
    for scenario, n in methods.items():
        own = [key for key in found if key[0] == scenario]
        assert len({key[1] for key in own}) == n
        assert len(own) == n * 2 * 4  # runs, and steps 0, 10, 20, 29
    assert {r["step"] for r in rows} == {0, 10, 20, 29}
    kept = read_results(out)
    assert len(kept) == len(rows)
    assert all(r["train_flops"] >= 0 and r["inference_flops"] > 0 for r in kept if r["method"] != "sae_ito")


def test_released_seeds_by_default_and_the_given_one_else(literal, tmp_path):
    _, rows = literal
    assert {r["seed"] - r["run"] for r in rows if r["scenario"] == "unknown"} == {20240926}
    assert {r["seed"] - r["run"] for r in rows if r["scenario"] != "unknown"} == {20240625}
    jobs = synthetic_parts.jobs(config(tmp_path, seed=5))
    assert {job.setup.seed for job in jobs} == {5}


def test_optimised_codes_of_a_known_dictionary_are_the_same_in_all_runs(literal):
    _, rows = literal
    ito = [r for r in rows if (r["scenario"], r["method"]) == ("known_dictionary", "sae_ito")]
    for step in {r["step"] for r in ito}:
        assert len({r["mcc"] for r in ito if r["step"] == step}) == 1
    assert {r["updates"] for r in ito} == {0}
    assert {r["iterations"] for r in ito} == {0, 10, 20, 29}


def test_page_pictures_and_files(literal, controlled):
    for out, _ in (literal, controlled):
        assert (out / "figures" / "synthetic_curves.png").stat().st_size > 5000
        assert any((out / "figures").glob("pareto_*.svg"))
        page = (out / "report.md").read_text()
        assert "latent MCC" in page
        assert "chance" in page
        assert "first weights only" in page  # what the deviation is over
        assert (out / "report.html").stat().st_size > 10_000
        assert json.loads((out / "config.json").read_text())["seeds"] == 2


def test_controlled_brings_other_codes_and_optimisation_comes_with_the_sae(controlled):
    out, rows = controlled
    assert {r["method"] for r in rows} == {"sae"}
    page = (out / "report.md").read_text()
    for text in ("certified optimum", "FISTA-100", "ISTA-200", "ITO from the SAE's codes", "(P - P*) / P*"):
        assert text in page


def test_finished_parts_are_not_made_again(literal, monkeypatch):
    out, rows = literal
    monkeypatch.setattr(synthetic_parts, "made", lambda *a: pytest.fail("made again"))
    chosen = config(out)
    assert [
        row for job in synthetic_parts.jobs(chosen) for row in synthetic_parts.finished(chosen, job)
    ] == rows


def test_a_broken_part_is_made_again_and_other_flags_have_other_parts(literal, tmp_path):
    out, _ = literal
    chosen = config(out, scenario="known_codes", methods="sae")
    job = synthetic_parts.jobs(chosen)[0]
    path = synthetic_parts.part_of(out / "parts", job)
    rows = synthetic_parts.read_part(path)
    assert rows
    whole = path.read_text()
    for broken in (whole[: len(whole) // 2], "[]", "[3]", '{"a": 1}', '[{"step": 1}]'):
        path.write_text(broken)
        assert synthetic_parts.read_part(path) is None
    again = synthetic_parts.finished(chosen, job)
    assert [r["mcc"] for r in again] == [r["mcc"] for r in rows]
    paths = {
        synthetic_parts.part_of(
            out, synthetic_parts.jobs(config(out, scenario="known_codes", methods="sae", **more))[0]
        )
        for more in (
            {},
            {"lam": 0.02},
            {"steps": 40},
            {"distribution": "zipf"},
            {"protocol": "controlled"},
            {"lr": 0.1},
        )
    }
    assert len(paths) == 6


@pytest.mark.parametrize("distribution", ["zipf", "hierarchical"])
def test_other_distributions(tmp_path, distribution):
    rows = synthetic.run(
        config(tmp_path, distribution=distribution, scenario="known_dictionary", methods="sae_ito")
    )
    assert {r["distribution"] for r in rows} == {distribution}
    assert distribution in (tmp_path / "report.md").read_text()


MISTAKES = [
    (["--active=7", "--sources=6"], "--active=7"),
    (["--samples=3"], "--samples=3"),
    (["--steps=0"], "--steps=0"),
    (["--seeds=0"], "--seeds=0"),
    (["--lam=-1"], "--lam=-1"),
    (["--lam=nan"], "--lam=nan"),
    (["--lr=inf"], "--lr=inf"),
    (["--log_every=0"], "--log_every=0"),
    (["--seed=-1"], "--seed=-1"),
    (["--seed=99999999999"], "--seed=99999999999"),
    (["--protocol=controlled", "--lam=0"], "--lam=0"),
    (["--budget=1e9"], "--budget"),
    (["--protocol=controlled", "--budget=1e30"], "--budget=1e+30"),
    (["--methods=lista"], "--methods=lista"),
    (["--methods=sae,mlp0"], "--methods=mlp0"),
    (["--scenario=known_codes", "--methods=sparse_coding"], "known_codes has mlpWIDTH, sae"),
]


@pytest.mark.parametrize(("flags", "text"), MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(flags, text, tmp_path, monkeypatch):
    refuses(synthetic, ["--out=out", *flags], text, tmp_path, monkeypatch)


def test_a_training_that_diverges_is_a_mistake(tmp_path):
    chosen = config(tmp_path, scenario="unknown", methods="sparse_coding", lr=1e30)
    with pytest.raises(AmortjaxError, match="--lr"):
        synthetic.run(chosen)
    assert not list(tmp_path.rglob("*.json"))


# --- beside the published points ---


def bench(out: Path, **flags) -> bench_synthetic.Config:
    given = {"out": out, "golden": GOLDEN, "scenarios": "unknown", "distributions": "uniform", "most_steps": 0,
             "methods": "sae"} | flags  # fmt: skip
    return flagged.parse(bench_synthetic.Config, [f"--{name}={value}" for name, value in given.items()])


def test_points_are_compared_and_targets_met(tmp_path, capsys):
    rows = bench_synthetic.run(bench(tmp_path))
    assert {row["metric"] for row in rows} == {"mcc", "dict_mcc", "loss"}
    assert all(row["ok"] is True and abs(row["difference"]) < 1e-5 for row in rows)
    assert "3 of 3 targets met" in capsys.readouterr().out
    assert "3 of 3 targets met" in (tmp_path / "table.txt").read_text()


def test_a_missed_target_is_exit_code_1(tmp_path):
    points = json.loads(GOLDEN.read_text())
    points["unknown_uniform"]["points"]["SAE"]["0"]["mcc_test"] += 0.002
    other = tmp_path / "golden.json"
    other.write_text(json.dumps(points))
    with pytest.raises(SystemExit) as caught:
        bench_synthetic.run(bench(tmp_path / "out", golden=other))
    assert caught.value.code == 1
    assert "NO" in (tmp_path / "out" / "table.txt").read_text()


def test_what_has_no_target_is_reported():
    point = published.Published("unknown", "uniform", "mlp256", 20_000, "mcc", 0.6)
    row = bench_synthetic.verdict(point, [{"mcc": 0.1}, {"mcc": 0.2}], published.target(point))
    assert row["ok"] is None
    assert "reported" in bench_synthetic.table([row])


def test_every_method_and_scenario_has_published_points():
    every = [*published.read(GOLDEN), *published.read(GOLDEN.with_stem(f"{GOLDEN.stem}_zipf"))]
    for scenario, methods in scenarios.METHODS.items():
        for distribution in ("uniform", "zipf"):
            assert {
                p.method for p in every if (p.scenario, p.distribution) == (scenario, distribution)
            } == set(methods)


@pytest.mark.parametrize(
    ("flags", "text"),
    [(["--golden=none.json"], "--golden"), (["--most_steps=-1"], "--most_steps=-1"), (["--repeats=0"], "--repeats=0"),
     (["--scenarios="], "--scenarios"), ([f"--golden={GOLDEN}", "--methods=lista"], "methods are")],
)  # fmt: skip
def test_mistakes_of_the_bench(flags, text, tmp_path, monkeypatch):
    refuses(bench_synthetic, ["--out=out", *flags], text, tmp_path, monkeypatch)


def test_loops_beside_pytorchs(monkeypatch):
    from amortjax.launch import bench_synthetic_torch

    monkeypatch.setattr(bench_synthetic_torch, "METHODS", {"codes": 2})
    lines = bench_synthetic_torch.beside(1).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["codes"]
    assert all(float(cell) > 0 for line in lines[2:] for cell in line.split()[1:4])
