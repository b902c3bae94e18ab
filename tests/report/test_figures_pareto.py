"""The Pareto and boundary pictures: what is averaged, which points are on the frontier, where the boundary is drawn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amortjax.report import figures_boundary as fb
from amortjax.report.figures_pareto import Point, frontier, pareto, points

PAIRS = st.lists(st.tuples(st.integers(1, 20), st.integers(-20, 20)), min_size=1, max_size=30)


@given(PAIRS, st.booleans())
def test_the_frontier_is_what_no_other_point_beats(marks, higher):
    best = frontier(marks, higher)
    better = (lambda a, b: a > b) if higher else (lambda a, b: a < b)
    for x, y in best:
        assert (x, y) in marks
        assert not any((a <= x and better(b, y)) or (a < x and b == y) for a, b in marks)
    for x, y in marks:  # every point is dominated by, or is, a point of the frontier
        assert any(a <= x and not better(y, b) for a, b in best)
    assert [x for x, _ in best] == sorted({x for x, _ in best})


def row(method, seed, step, mcc, train=1e9, inference=1e6, **more):
    return {"scenario": "unknown", "method": method, "seed": seed, "step": step, "train_flops": train,
            "inference_flops": inference, "mcc": mcc, **more}  # fmt: skip


def test_points_are_means_over_seeds_with_their_standard_deviation():
    rows = [
        row("SAE", 0, 10, 0.4),
        row("SAE", 1, 10, 0.6),
        row("SAE", 0, 0, 0.1, train=0),
        row("SC", 0, 10, None),
    ]
    found = points(rows, "mcc", "train_flops")
    assert found == {
        "SAE": [Point(0, 0, 0.1, 0.0, 1), Point(10, 1e9, 0.5, pytest.approx(math.sqrt(0.02)), 2)]
    }
    assert points([row("SAE", 0, 1, float("nan")), row("SAE", 0, 1, True)], "mcc", "train_flops") == {}


def test_pictures_of_all_kinds_of_rows(tmp_path):
    rows = [row(m, s, t, 0.5 + 0.1 * s, train=t * 1e6 * (m != "ITO"), inference=1e6 * (1 + t * (m == "ITO")),
                loss=1 / (t + 1), dict_mcc=0.7, mcc_chance=0.4 + 0.1 * s)
            for m in ("SAE", "ITO") for s in (0, 1) for t in (0, 10, 100)]  # fmt: skip
    rows.append({"scenario": "known_codes", "method": "SAE", "step": 1, "train_flops": 5, "mcc": 0.5})
    paths = pareto(rows, tmp_path)
    assert [path.name for path in paths] == [
        f"pareto_{name}.{ending}" for name in ("unknown", "known_codes") for ending in ("png", "svg")
    ]
    assert all(path.stat().st_size > 5000 for path in paths)
    text = (tmp_path / "pareto_unknown.svg").read_text()
    for word in (
        "latent MCC",
        "dictionary MCC",
        "loss",
        "chance",
        "Pareto frontier",
        "inference FLOPs",
        "ITO",
    ):
        assert word in text
    assert "inference FLOPs" not in (tmp_path / "pareto_known_codes.svg").read_text()
    assert pareto([], tmp_path) == [] and pareto([row("SAE", 0, 1, None)], tmp_path) == []


# --- the boundary ---


@given(st.integers(1, 40), st.integers(2, 64), st.integers(65, 4096))
def test_the_boundary_is_drawn_only_where_at_most_half_of_the_sources_are_active(active, least, most):
    sources, dimensions = fb.boundary_line(active, least, most)
    if 2 * active > most:
        assert len(sources) == len(dimensions) == 0
        return
    assert np.all(sources >= 2 * active - 1e-9) and np.all(sources <= most + 1e-9)
    np.testing.assert_allclose(dimensions, active * np.log(sources / active))


def test_the_papers_boundary_values():
    for n, k, value in ((16, 3, 5.0), (32, 3, 7.1), (128, 3, 11.3), (1000, 20, 78.2)):
        sources, dimensions = fb.boundary_line(k, 2, n)
        assert dimensions[-1] == pytest.approx(value, abs=0.05) and sources[-1] == pytest.approx(n)


def cell(method, sources, dimensions, active, mcc, chance=0.2):
    where = {"sources": sources, "dimensions": dimensions, "active": active}
    return {**where, "method": method, "mcc": mcc, "mcc_chance": chance}


def test_cells_are_averaged_over_seeds_and_missing_ones_stay_missing():
    rows = [
        cell("SAE", 16, 8, 3, 0.4),
        cell("SAE", 16, 8, 3, 0.6),
        cell("SAE", 32, 16, 3, 0.7),
        cell("SC", 16, 8, 3, None),
    ]
    cells = fb.averaged(rows, "mcc")
    assert cells == {("SAE", 3, 16, 8): 0.5, ("SAE", 3, 32, 16): 0.7}
    grid = fb.gridded(cells, "SAE", 3)
    assert grid.sources == [16, 32] and grid.dimensions == [8, 16]
    np.testing.assert_array_equal(grid.values, [[0.5, np.nan], [np.nan, 0.7]])
    assert np.isnan(fb.minus(grid, fb.gridded(cells, "SC", 3)).values).all()


@pytest.mark.parametrize(
    ("sources", "dimensions", "dropped"),
    [((16, 32, 64), (8, 16), 0), ((16, 32), (8, 16), 1), ((16,), (8,), 0)],
)
def test_maps_of_whole_and_of_unfinished_grids(sources, dimensions, dropped, tmp_path):
    rows = [cell(m, n, d, k, 0.3 + 0.1 * (m == "SC")) for m in ("SAE", "SC") for n in sources for d in dimensions
            for k in (3, 15)][dropped:]  # fmt: skip
    paths = fb.boundary(rows, tmp_path)
    assert [path.name for path in paths] == ["boundary.png", "boundary.svg"]
    text = paths[1].read_text()
    assert "SC − SAE" in text and "K = 15" in text and "K ≤ N/2" in text
    assert fb.boundary([], tmp_path) == [] and fb.boundary([cell("SAE", 16, 8, 3, None)], tmp_path) == []


def test_one_method_has_no_differences(tmp_path):
    rows = [cell("MLP-32", n, d, 3, 0.5) for n in (16, 32) for d in (8, 16)]
    text = fb.boundary(rows, tmp_path)[1].read_text()
    assert "MLP-32" in text and "difference" not in text
