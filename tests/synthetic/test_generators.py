"""The authors' data: what is known of it in numbers, and what every draw must keep."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amortjax.errors import AmortjaxError
from amortjax.metrics.recovery import mcc
from amortjax.synthetic import coding, generators
from amortjax.synthetic.generators import draw_codes, draw_dictionary, make_data

GOLDEN = Path(__file__).parents[1] / "golden" / "papers" / "sparse_inference_2411_13117.json"
LAM = 0.0025
AUTHORS = 20240625
# Measured inclusion of the Zipf draw with 16 sources, 3 active.
ZIPF = (.688, .436, .314, .245, .198, .169, .144, .129, .114, .103, .092, .087, .078, .073, .067, .064)  # fmt: skip


@pytest.fixture(scope="module")
def ours() -> dict:
    return json.loads(GOLDEN.read_text())["reproduced_here"]


@pytest.fixture(scope="module")
def authors():
    return make_data(AUTHORS)


@pytest.mark.parametrize(
    ("seed", "distribution", "score", "objective"),
    [
        (AUTHORS, "uniform", 0.99236, 0.0060807769),
        (20240926, "uniform", 0.99013, 0.0058403409),
        (AUTHORS, "zipf", 0.9776, 0.00129655),
    ],
)
def test_the_certified_optimum_on_the_authors_data(seed, distribution, score, objective):
    data = make_data(seed, distribution=distribution)
    z, gap, rounds = coding.optimum(data.x_test, data.dictionary, LAM)
    assert rounds.min() >= 1 and rounds.mean() < 8
    p = coding.half_objective(z, data.x_test, data.dictionary, LAM)
    assert (gap <= 1e-9 * p).all()
    assert mcc(data.codes_test, z).mcc == pytest.approx(score, abs=1e-4)
    assert p.mean() == pytest.approx(objective, abs=1e-8)


def test_the_gap_bounds_the_distance_to_the_optimum(authors):
    z = coding.optimum(authors.x_test, authors.dictionary, LAM).codes
    assert 0.2575 < np.mean(z > 1e-6) < 0.2587
    best = coding.half_objective(z, authors.x_test, authors.dictionary, LAM)
    for other in (np.zeros_like(z), 0.9 * z, authors.codes_test):
        far = coding.half_objective(other, authors.x_test, authors.dictionary, LAM) - best
        assert (far > -1e-12).all()
        assert (coding.duality_gap(other, authors.x_test, authors.dictionary, LAM) >= far - 1e-12).all()


@pytest.mark.parametrize("seed", range(1, 6))
def test_fresh_seeds_are_recovered_by_the_optimum(seed):
    data = make_data(seed)
    z = coding.optimum(data.x_test, data.dictionary, LAM).codes
    assert mcc(data.codes_test, z).mcc >= 0.97


@pytest.mark.parametrize("method", ["fista", "ista"])
def test_first_order_codes_after_so_many_steps(authors, ours, method):
    for steps, (score, objective) in ours[f"{method}_from_zero_half_0.0025_known_D_uniform"].items():
        if int(steps) <= 1000:
            z = coding.descended(authors.x_test, authors.dictionary, LAM, method, int(steps))
            assert mcc(authors.codes_test, z).mcc == pytest.approx(score, abs=1e-4)
            p = coding.half_objective(z, authors.x_test, authors.dictionary, LAM)
            assert p.mean() == pytest.approx(objective, abs=1e-6)


def test_fista_100_beats_the_published_twenty_thousand_steps(authors):
    z = coding.descended(authors.x_test, authors.dictionary, LAM, "fista", 100)
    assert mcc(authors.codes_test, z).mcc >= 0.97 > 0.96668


def test_the_dictionary_has_unit_rows_and_the_known_coherence(authors):
    atoms = authors.dictionary
    assert np.allclose(np.linalg.norm(atoms, axis=1), 1, atol=1e-6)
    gram = np.abs(atoms @ atoms.T) - np.eye(16)
    assert gram.max() == pytest.approx(0.771, abs=5e-4)


@pytest.mark.parametrize("distribution", ["uniform", "zipf"])
def test_supports_values_and_data(distribution):
    data = make_data(7, 20, 6, 4, 400, distribution)
    codes = np.concatenate([data.codes_train, data.codes_test])
    assert codes.shape == (400, 20)
    assert len(data.codes_train) == len(data.codes_test) == 200
    assert (np.count_nonzero(codes, axis=1) == 4).all()
    assert (codes >= 0).all()
    assert np.allclose(data.x_test, data.codes_test @ data.dictionary, atol=1e-5)
    assert np.allclose(data.inclusion, np.mean(codes > 0, axis=0))


def test_zipf_falls_in_frequency_and_in_magnitude():
    codes = draw_codes(3, 20_000, 16, 3, "zipf")
    assert np.allclose(np.mean(codes > 0, axis=0), ZIPF, atol=0.012)
    sizes = [codes[codes[:, j] > 0, j].mean() for j in (0, 15)]
    assert sizes[0] / sizes[1] == pytest.approx(0.396 / 0.118, rel=0.1)


def test_hierarchical_codes_are_the_trees():
    from amortjax.synthetic.trees import draw_tree_codes

    codes = draw_codes(3, 50, 20, 3, "hierarchical")
    assert np.array_equal(codes, draw_tree_codes(3, 50, 20, 3))
    into = np.zeros((50, 20), np.float32)
    assert draw_codes(3, 50, 20, 3, "hierarchical", into) is into
    assert np.array_equal(into, codes)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_any_size_gives_finite_data(seed, sources, dimensions, active):
    active = min(active, sources)
    data = make_data(seed, sources, dimensions, active, 6)
    assert data.dictionary.shape == (sources, dimensions)
    assert all(np.isfinite(part).all() for part in data)
    assert (np.count_nonzero(data.codes_test, axis=1) == active).all()


def test_the_same_seed_gives_the_same_draw_and_another_another():
    assert np.array_equal(draw_codes(5, 30, 8, 2), draw_codes(5, 30, 8, 2))
    assert not np.array_equal(draw_codes(5, 30, 8, 2), draw_codes(6, 30, 8, 2))
    assert not np.array_equal(draw_dictionary(5, 8, 4), draw_dictionary(6, 8, 4))


@pytest.mark.parametrize(
    ("sizes", "flag"),
    [
        ((4, 2, 5, 8), "--active=5"),
        ((0, 2, 1, 8), "--sources=0"),
        ((4, 0, 1, 8), "--dimensions=0"),
        ((4, 2, 1, 3), "--samples=3"),
    ],
)
def test_sizes_that_make_no_data(sizes, flag):
    with pytest.raises(AmortjaxError, match=flag):
        make_data(1, *sizes)


def test_an_unknown_distribution():
    with pytest.raises(AmortjaxError, match="uniform, zipf, hierarchical"):
        generators.draw_codes(1, 4, 4, 1, "normal")
