"""Every fact of the theorem: rank, controls with a known answer, counts, recovery, and where ReLU encoders fail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from amortjax.synthetic import generators, plane, relu_fit, theorem
from amortjax.synthetic.theorem import Check, composed, errors, relu_codes

N, M, K = 16, 8, 3


@pytest.fixture(scope="module")
def atoms():
    return generators.draw_dictionary(20240625, N, M).astype(np.float64)


def spikes(seed, n, active, sources=N):
    return generators.draw_codes(seed, n, sources, active).astype(np.float64)


# --- the rank argument ---


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_no_encoder_is_nearer_to_the_identity_than_its_rank_allows(sources, dimensions, seed):
    draw = np.random.default_rng(seed)
    dictionary = draw.standard_normal((sources, dimensions))
    for w in (draw.standard_normal((dimensions, sources)), dictionary.T, np.linalg.pinv(dictionary)):
        found = composed(dictionary, w)
        assert found.rank <= min(sources, dimensions)
        assert found.distance >= found.bound - 1e-9
    assert found.distance == pytest.approx(found.bound, abs=1e-6)  # the pseudo-inverse


def test_the_bounds_that_papers_quote(atoms):
    assert composed(atoms, atoms.T).bound == pytest.approx(2.83, abs=0.005)
    assert composed(np.zeros((1000, 200)), np.zeros((200, 1000))).bound == pytest.approx(28.28, abs=0.005)


def test_trained_encoders_have_the_rank_of_the_dictionary_and_are_never_exact(atoms):
    codes, test = spikes(1, 256, 2), spikes(2, 256, 2)
    best = relu_fit.best_relu(atoms, codes, starts=3, steps=400)
    sae = relu_fit.sae_encoder(atoms, codes, steps=400)
    for w, b in (best, sae):
        found = composed(atoms, w)
        assert found.rank == M and found.distance > found.bound
        assert errors(relu_codes(test @ atoms, w, b), test).exact < 0.02
    assert np.all(sae.b == 0)
    # Given the codes, it is far better than one that was not, and still far from exact.
    given_codes, blind = (errors(relu_codes(test @ atoms, *e), test).energy for e in (best, sae))
    assert 0.05 < given_codes < 0.5 * blind


# --- controls ---


@given(st.integers(2, 10), st.floats(0.01, 100))
@settings(deadline=None, max_examples=30)
def test_a_simplex_is_exact_for_one_source_and_off_by_one_over_m_for_two(dimensions, size):
    corners = theorem.simplex(dimensions)
    inner = corners @ corners.T
    n = dimensions + 1
    np.testing.assert_allclose(inner, np.where(np.eye(n) > 0, 1, -1 / dimensions), atol=1e-12)
    np.testing.assert_allclose(relu_codes(size * corners, corners.T), size * np.eye(n), atol=1e-12 * size)
    two = np.eye(n)[[0]] + np.eye(n)[[n - 1]]
    found = relu_codes(two @ corners, corners.T)
    assert np.abs(found - two).max() == pytest.approx(1 / dimensions, abs=1e-12)
    assert errors(found, two).supports == 1  # the support is right, the values are not


def test_the_error_of_a_half_in_the_plane():
    corners = theorem.simplex(2)
    two = np.array([[1.0, 1.0, 0.0]])
    np.testing.assert_allclose(relu_codes(two @ corners, corners.T), [[0.5, 0.5, 0]], atol=1e-12)


def test_antipodal_pairs_are_exact_for_one_source_and_opposite_ones_cancel():
    pairs = theorem.antipodal(M)
    assert pairs.shape == (2 * M, M)
    np.testing.assert_array_equal(relu_codes(pairs, pairs.T), np.eye(2 * M))
    assert not np.any((np.eye(2 * M)[0] + np.eye(2 * M)[M]) @ pairs)


@pytest.mark.parametrize("dimensions", [N, N + 8])
@pytest.mark.parametrize("active", [1, K, N])
def test_with_as_many_dimensions_as_sources_an_encoder_is_exact(dimensions, active):
    wide = generators.draw_dictionary(3, N, dimensions).astype(np.float64)
    codes = spikes(4, 64, active)
    np.testing.assert_allclose(relu_codes(codes @ wide, np.linalg.pinv(wide)), codes, atol=1e-10)


# --- one source of a random dictionary ---


def test_covers_count():
    assert theorem.cover(16, 8) == 0.5
    assert theorem.cover(16, 12) == pytest.approx(0.98, abs=0.005)
    assert theorem.cover(32, 8) == pytest.approx(0.002, abs=0.0005)
    assert theorem.cover(8, 8) == 1 and theorem.cover(1000, 200) < 1e-80
    assert theorem.cover(3, 1) == 2 / 8  # on a line: all others on the other side


def possible_by_linear_program(atoms, j):
    """Whether w . d_j = 1 and w . d_i <= 0 can be had."""
    others = np.delete(atoms, j, axis=0)
    found = linprog(np.zeros(atoms.shape[1]), A_ub=others, b_ub=np.zeros(len(others)), A_eq=atoms[[j]], b_eq=[1],
                    bounds=(None, None))  # fmt: skip
    return found.status == 0


@pytest.mark.parametrize(("sources", "dimensions"), [(16, 8), (12, 4), (9, 8)])
def test_the_one_sparse_encoder_is_exact_where_a_linear_program_says_it_can_be(sources, dimensions):
    draw = np.random.default_rng(sources)
    seen = []
    for _ in range(4):
        atoms = draw.standard_normal((sources, dimensions))
        w, possible = theorem.one_sparse_encoder(atoms)
        assert possible.tolist() == [possible_by_linear_program(atoms, j) for j in range(sources)]
        out = relu_codes(2.5 * atoms, w)[:, possible]
        np.testing.assert_allclose(out, 2.5 * np.eye(sources)[:, possible], atol=1e-8)
        seen += possible.tolist()
    assert 0 < sum(seen) <= len(seen)


def test_measured_shares_are_covers():
    draw = np.random.default_rng(0)
    for sources, dimensions in ((16, 8), (16, 12), (32, 8)):
        drawn = draw.standard_normal((60, sources, dimensions))
        shares = [theorem.one_sparse_encoder(atoms)[1].mean() for atoms in drawn]
        theory = theorem.cover(sources, dimensions)
        error = np.std(shares) / np.sqrt(60) + 1 / (60 * sources)
        assert abs(np.mean(shares) - theory) < 4 * error


# --- linear maps, and what is no linear-nonlinear encoder ---


def test_what_the_best_linear_map_leaves():
    assert theorem.energy_left(16, 8, 3) == pytest.approx(0.4576, abs=1e-4)
    assert theorem.energy_left(16, 16, 3) == 0 and theorem.energy_left(16, 0, 16) < 1
    draw = np.random.default_rng(1)
    codes = np.zeros((200_000, 16))
    order = np.argsort(draw.random(codes.shape), axis=1)[:, :3]
    np.put_along_axis(codes, order, np.abs(draw.standard_normal(order.shape)), axis=1)
    values = np.linalg.eigvalsh(codes.T @ codes)
    assert values[:8].sum() / values.sum() == pytest.approx(theorem.energy_left(16, 8, 3), abs=0.006)


def test_codes_are_unique_and_the_sparsest_are_the_true_ones(atoms):
    least, every = theorem.least_independence(atoms, K)
    assert every and least > 1e-3
    assert theorem.least_independence(atoms, 5) == (0.0, True)  # ten atoms in eight dimensions
    assert theorem.least_independence(np.concatenate([atoms[:4], atoms[:1]]), 1)[0] < 1e-12
    codes = spikes(5, 60, K)
    np.testing.assert_allclose(theorem.sparsest_codes(atoms, codes @ atoms, K), codes, atol=1e-6)
    assert theorem.sparsest_codes(np.ones((64, 4)), np.ones((1, 4)), 8) is None


def test_the_lasso_is_certified_and_exact_where_relu_encoders_are_not(atoms):
    for active, exact in ((1, 1.0), (2, 0.98), (3, 0.88)):
        codes = spikes(6 + active, 48, active)
        found, gap = theorem.lasso_codes(atoms, codes @ atoms, 1e-5)
        assert found.min() >= 0 and gap.max() < 1e-5
        assert errors(found, codes).exact >= exact
        if active > 1:
            assert errors(relu_codes(codes @ atoms, atoms.T), codes).exact == 0


def test_the_lasso_solves_dictionaries_of_any_norm(atoms):
    codes = spikes(3, 8, 2)
    scaled = atoms * np.linspace(0.5, 2, N)[:, None]
    found, gap = theorem.lasso_codes(scaled, codes @ scaled, 1e-5)
    assert gap.max() < 1e-5 and errors(found, codes).energy < 1e-6


# --- the measures themselves ---


def test_errors_by_hand():
    codes = np.array([[1.0, 0, 2], [0, 3, 0]])
    perfect = errors(codes, codes)
    assert perfect == (0, 1, 1)
    assert errors(np.zeros_like(codes), codes) == (1, 0, 0)
    found = np.array([[1.0, 1.5, 2], [0, 3, 0]])  # the first sample's support is lost, its energy 2.25 of 14
    assert errors(found, codes) == (pytest.approx(2.25 / 14), 0.5, 0.5)
    assert errors(0.5 * codes, codes) == (0.25, 0, 1)


def test_a_check_that_fails_says_so():
    made = {"control": "c", "setting": "s", "claim": "t"}
    assert Check(**made, relation="=", theory=1, measured=1.05, tolerance=0.1).ok
    assert not Check(**made, relation="=", theory=1, measured=0.8, tolerance=0.1).ok
    assert not Check(**made, relation="<=", theory=1, measured=1.2).ok
    assert not Check(**made, relation=">=", theory=1, measured=0.8).ok
    assert not Check(**made, relation=">=", theory=1, measured=float("nan")).ok


# --- the plane ---


def test_codes_of_the_plane_are_those_that_made_the_points():
    corners = theorem.simplex(2)
    codes = plane._draw(50, 0)
    np.testing.assert_allclose(theorem.plane_codes(corners, codes @ corners), codes, atol=1e-12)


def test_the_planes_encoders_are_exact_where_they_should_be():
    found = plane.simplex_plane(samples=64, starts=2, steps=50, lam=1e-5, seed=0)
    exact = {
        name: error[np.isfinite(error)] < 1e-2
        for name, error in zip(found["methods"], found["error"], strict=True)
    }
    assert exact["certified lasso"].all()
    assert exact["ReLU, exact for one pair"].mean() == pytest.approx(1 / 3, abs=0.02)
    assert exact["ReLU, W = D'"].mean() < 0.03
    tied = found["along"][0]
    assert tied.max() == pytest.approx(0.5, abs=1e-9)
    ends = np.degrees(np.arctan2(found["atoms"][:, 1], found["atoms"][:, 0])) % 360
    assert sorted(np.round(ends).tolist()) == [90, 210, 330]
    for at in ends:  # on the rays it is exact
        assert tied[round(at)] < 1e-9
