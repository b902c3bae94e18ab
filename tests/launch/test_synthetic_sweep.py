"""launch.synthetic_sweep: files, resuming, published values beside ours, and mistakes in one line."""

import json
from pathlib import Path

import pytest

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, synthetic_sweep, synthetic_sweep_parts
from amortjax.report import figures_synthetic_sweep, synthetic_sweep_published, tables
from amortjax.report import synthetic_sweep as report
from amortjax.synthetic import sweeps

CONFIGS = Path(__file__).parents[2] / "configs/synthetic_sweep"
TINY = {
    "sources": (6,),
    "dimensions": (4,),
    "active": (2,),
    "samples": 64,
    "runs": 2,
    "steps": 3,
    "code_steps": 3,
}


def config(out: Path, sweep: str = "l1", **given) -> synthetic_sweep.Config:
    lams = {"lams": (0.01, 0.5)} if sweep == "l1" else {}
    return synthetic_sweep.Config(**({"sweep": sweep, "out": str(out)} | lams | TINY | given))  # pyright: ignore


def test_a_sweep_writes_its_files_and_skips_what_is_finished(tmp_path, monkeypatch, capsys):
    rows = synthetic_sweep.run(config(tmp_path, methods=("sae",)))
    assert [row["lam"] for row in rows] == [0.01, 0.5] and all(row["runs"] == 2 for row in rows)
    for name in (
        "results.csv",
        "results.parquet",
        "report.md",
        "report.html",
        "config.json",
        "figures/l1.png",
    ):
        assert (tmp_path / name).stat().st_size > 0
    assert tables.read_results(tmp_path)[0]["mcc"] == rows[0]["mcc"]
    said = capsys.readouterr().out
    assert "Trained for 3 steps" in said and "chance" in said and "corrected" in said

    def refuse(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(synthetic_sweep_parts, "_measure", refuse)
    assert synthetic_sweep.run(config(tmp_path, methods=("sae",))) == rows
    with pytest.raises(AssertionError, match="measured again"):
        synthetic_sweep.run(config(tmp_path, methods=("sae",), seed=5))


def test_a_broken_cell_is_named(tmp_path):
    cell = sweeps.plan("l1", sweeps.Asked(methods=("sae",), lams=(0.01,), **TINY))[0]
    path = tmp_path / "cells" / f"{cell.name}.json"
    path.parent.mkdir()
    for text in ("{", "[]", '[{"mcc": "much"}]', '{"mcc": 1}', "[3]"):
        path.write_text(text)
        with pytest.raises(AmortjaxError, match=f"{cell.name}.*remove it"):
            synthetic_sweep.run(config(tmp_path, methods=("sae",), lams=(0.01,)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": 0}, "--steps=0"),
        ({"runs": -1}, "--runs=-1"),
        ({"samples": 3}, "--samples=3"),
        ({"lams": (0.0,)}, "--lams=0.0"),
        ({"lams": (float("nan"),)}, "--lams=nan"),
        ({"sources": (6, 8)}, "one value"),
        ({"sources": (0,)}, "--sources=0"),
        ({"seed": -1}, "--seed=-1"),
        ({"methods": ("sklearn",)}, "nothing of"),
        ({"sweep": "topk", "topks": (7,)}, "--topks=7"),
        ({"active": (7,)}, "nothing of"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(tmp_path, given, said):
    with pytest.raises(AmortjaxError, match=said):
        synthetic_sweep.run(config(tmp_path, **given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.flags")), ids=lambda p: p.stem)
def test_every_flagfile_is_a_plan(path):
    found = flagged.parse(synthetic_sweep.Config, [f"--flagfile={path}"]).checked()
    assert synthetic_sweep_parts.planned(found)


def fake(cell: sweeps.Cell, mcc: float, run: int = 0) -> dict:
    """A run's row as it lies on disk, with numbers made up for tables and pictures."""
    import dataclasses

    more = {"run": run, "mcc": mcc, "mcc_chance": 0.48, "dict_mcc": 0.8, "dict_mcc_chance": 0.67, "mse": 0.01}
    ood = {f"{where}_{key}": mcc / 2 for where in ("in_distribution", "new_pairs")
           for key in ("mcc", "support_share", "support_exact", "mse", "l0")}  # fmt: skip
    return (
        dataclasses.asdict(cell) | more | {"density@0.001": 0.3, "seconds": 1.0} | (ood if cell.pairs else {})
    )


def test_ours_stands_beside_the_published_value():
    cell = sweeps.plan(
        "size", sweeps.Asked(methods=("sparse_coding",), sources=(32,), dimensions=(16,), active=(3,))
    )[0]
    row = report.summarised("size", [fake(cell, 0.9), fake(cell, 0.94, 1)])
    assert row["mcc"] == pytest.approx(0.92) and row["mcc_std"] == pytest.approx(0.02)
    assert row["mcc_published"] == 0.928 and row["mcc_difference"] == pytest.approx(-0.008)
    assert row["dict_mcc_published"] == 0.973 and row["mcc_corrected"] == pytest.approx((0.92 - 0.48) / 0.52)
    assert any("1 of 1 latent MCCs" in said for said in report.sentences("size", [row]))
    far = report.summarised("size", [fake(cell, 0.5)])
    assert any("0 of 1 latent MCCs" in said for said in report.sentences("size", [far]))


def test_published_values_are_those_of_the_setting():
    known = synthetic_sweep_published.published
    by_name = {sweep: {c: known({**fake(c, 0.5), "sweep": sweep}) for c in sweeps.plan(sweep, sweeps.Asked())}
               for sweep in sweeps.SWEEPS}  # fmt: skip
    l1 = {(c.method, c.lam): values for c, values in by_name["l1"].items()}
    assert l1["mlp", 0.5] == {"mse": 0.0146, "l0": 0.286, "mcc": 0.701} and all(l1.values())
    topk = {(c.method, c.k, c.k_after): v["mcc"] for c, v in by_name["topk"].items()}
    assert (
        topk["sae", 3, 0] == 0.637
        and topk["sparse_coding", 0, 3] == 0.830
        and topk["sparse_coding", 0, 0] == 0.836
    )
    bias = {(c.method, c.bias): v for c, v in by_name["bias"].items()}
    assert bias["sae", True] == {"mcc": 0.563, "mcc_std": 0.029, "dict_mcc": 0.709, "dict_mcc_std": 0.010}
    assert bias["sparse_coding", False]["mcc"] == 0.669 and bias["mlp", False]["dict_mcc"] == 0.742
    size = {(c.method, c.sources, c.dimensions, c.active): v for c, v in by_name["size"].items()}
    assert size["mlp", 64, 32, 9] == {
        "mcc": 0.429,
        "mcc_std": 0.009,
        "dict_mcc": 0.621,
        "dict_mcc_std": 0.006,
    }
    assert size["sparse_coding", 16, 32, 15]["dict_mcc"] == 0.824 and size["sae", 128, 8, 3]["mcc"] == 0.213
    width = {(c.sources, c.hidden): v["mcc"] for c, v in by_name["width"].items()}
    assert width[32, 256] == 0.558 and len(width) == 18 and not any(by_name["large"].values())
    assert all(by_name["size"].values()) and len(by_name["ceilings"]) == 45
    sklearn = {(c.sources, c.dimensions, c.active): v for c, v in by_name["ceilings"].items()}
    assert sklearn[16, 8, 3] == {"mcc": 0.932, "dict_mcc": 0.986} and sklearn[256, 32, 9]["dict_mcc"] == 0.666


@pytest.mark.parametrize("sweep", sweeps.SWEEPS)
def test_every_sweep_has_a_report_and_a_picture(sweep, tmp_path):
    asked = sweeps.Asked(protocol="controlled" if sweep in ("size", "ceilings") else "literal")
    cells = sweeps.plan(sweep, asked)
    rows = [
        report.summarised(sweep, [fake(cell, 0.3 + 0.6 * i / len(cells))]) for i, cell in enumerate(cells)
    ]
    pictures = figures_synthetic_sweep.draw(sweep, rows, tmp_path)
    assert {path.suffix for path in pictures} == {".png", ".svg"} and all(
        p.stat().st_size > 5000 for p in pictures
    )
    made = report.report(sweep, rows, {}, pictures)
    main = [one for one in made.sheets if "other measures" not in one.title][: -1 if sweep == "ood" else None]
    body = [line for one in main for line in one.body]
    assert len(body) == len(rows) and made.sentences
    assert all(len(line) == len(sheet.header) for sheet in made.sheets for line in sheet.body)
    if sweep == "ood":
        assert made.sheets[-1].title == "Known and new compositions"


def test_nothing_measured_draws_nothing(tmp_path):
    assert figures_synthetic_sweep.draw("l1", [], tmp_path) == []


def test_the_flags_round_trip():
    given = flagged.parse(synthetic_sweep.Config, ["--sweep=l1", "--out=x", "--lams=0.01,0.5", "--runs=2"])
    assert given.lams == (0.01, 0.5) and json.loads(flagged.to_json(given))["runs"] == 2
