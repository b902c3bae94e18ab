"""launch.theorem: every check holds, files and pictures are there, finished parts are skipped, mistakes are named."""

import dataclasses

import numpy as np
import pytest
from mistakes import refuses

from amortjax.launch import flagged, theorem, theorem_facts, theorem_parts
from amortjax.report.tables import read_results
from amortjax.report.theorem import sentences
from amortjax.synthetic import plane

SMALL = {"sparsities": "1,2", "active": 2, "samples": 128, "test_samples": 24, "starts": 2, "steps": 200,
         "dictionaries": 24, "sources": 12, "dimensions": 6}  # fmt: skip


def config(out, **flags) -> theorem.Config:
    given = {"out": out, **SMALL, **flags}
    return flagged.parse(theorem.Config, [f"--{name}={value}" for name, value in given.items()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("theorem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plane, "PIXELS", 31)
        patch.setattr(plane, "DIRECTIONS", 61)
        return out, theorem.run(config(out))


def test_every_check_holds(whole):
    _, rows = whole
    checks = [row for row in rows if row["condition"] == "check"]
    controls = {row["control"] for row in checks}
    assert controls == {"rank", "one active source", "two active sources", "M >= N", "linear", "other methods",
                        "ReLU encoders"}  # fmt: skip
    assert len(checks) >= 20
    assert [row for row in checks if not row["ok"]] == []


def test_results_pictures_and_reports_are_written(whole):
    out, rows = whole
    assert len(read_results(out)) == len(rows)
    for name in ("results.csv", "results.parquet", "report.md", "report.html", "config.json"):
        assert (out / name).stat().st_size > 100
    for name in ("theorem_rank", "theorem_failure", "theorem_plane"):
        assert (out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    text = (out / "report.md").read_text()
    assert "not about supports" in text and "checks hold." in text
    assert not list(out.rglob("*.part"))


def never(*_):
    raise AssertionError("measured again")


def test_finished_parts_are_not_measured_again(whole, monkeypatch):
    out, rows = whole
    monkeypatch.setattr(theorem_parts, "PARTS", dict.fromkeys(theorem_parts.PARTS, never))
    monkeypatch.setattr(plane, "simplex_plane", never)
    monkeypatch.setattr(theorem, "report", lambda *_: None)  # the pictures are the same
    again = theorem.run(config(out))
    assert [stripped(row) for row in again] == [stripped(row) for row in rows]


def stripped(row):
    return {name: value for name, value in row.items() if name != "flags"}


def test_a_damaged_part_of_the_plane_is_measured_again(tmp_path, monkeypatch):
    given, made = config(tmp_path), []
    small = {"grid": np.arange(3.0), "methods": ["a", "b"]}
    monkeypatch.setattr(plane, "simplex_plane", lambda *_: made.append(1) or small)
    theorem.kept_plane(given)
    path = next((tmp_path / "rows").glob("plane_*.npz"))
    whole = path.read_bytes()
    for times, content in enumerate((whole, whole[:100], b"", b"not a zip", whole), 1):
        path.write_bytes(content)
        found = theorem.kept_plane(given)
        assert found["methods"] == ["a", "b"] and found["grid"].tolist() == [0, 1, 2]
        assert len(made) == min(times, 4)
    assert not list(tmp_path.rglob("*.part"))


def test_other_settings_are_other_parts(whole, tmp_path):
    given = config(tmp_path)
    assert theorem._key(given) == theorem._key(dataclasses.replace(given, out="elsewhere"))
    assert theorem._key(given) != theorem._key(dataclasses.replace(given, seed=1))


def test_a_check_that_does_not_hold_is_said(whole):
    _, rows = whole
    sizes = theorem.sizes_of(config("unused"))
    broken = [
        row | {"rank": 99} if row["condition"] == "encoder" else row
        for row in rows
        if row["condition"] != "check"
    ]
    made = theorem_facts.facts(sizes, broken)
    failed = [row for row in made if not row["ok"]]
    assert [row["measured"] for row in failed] == [99]
    assert any(line.startswith("Does not hold") and "rank" in line for line in sentences([*made, *broken]))


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--dimensions=12"], "an exact encoder exists"),
        (["--active=1"], "--active=1"),
        (["--active=99"], "--active=99"),
        (["--sparsities=0,2"], "--sparsities=0"),
        (["--sparsities="], "--sparsities=empty"),
        (["--lam=nan"], "--lam=nan"),
        (["--lam=0"], "--lam=0"),
        (["--steps=-1"], "--steps=-1"),
        (["--dictionaries=0"], "--dictionaries=0"),
        (["--seed=-1"], "--seed=-1"),
    ],
)
def test_mistakes_are_one_line(flags, text, tmp_path, monkeypatch):
    given = [f"--{name}={value}" for name, value in {"out": "out", **SMALL}.items()]
    refuses(theorem, [*given, *flags], text, tmp_path, monkeypatch)
