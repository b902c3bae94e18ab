"""Pursuits and hard thresholding against their plain definitions and what is known of them."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from problems import sparse_problem

from amortjax.inference import objective
from amortjax.inference.iht import _iht
from amortjax.inference.request import Request, Settings
from amortjax.inference.solvers import SOLVERS

SIGNS = ("nonneg", "signed")


def pose(atoms, sign="nonneg"):
    return objective.pose_dictionary(atoms, objective.Objective(sign=sign))


def solve(name, problem, t, budget, n_steps=None, start=None):
    """Dense folded codes (n, M) in float64."""
    budget = np.broadcast_to(budget, (len(t),))
    request = Request(problem, t, np.zeros(len(t)), start, budget, Settings(n_steps=n_steps, chunk=16))
    return SOLVERS[name].solve(request)[0].dense().astype(np.float64)


def errors(problem, t, v):
    return np.square(t - v @ problem.unit64).sum(axis=1)


def plain_mp(unit, t, budget, signed):
    """One token: take the best atom's coefficient, `budget` times."""
    v = np.zeros(len(unit))
    for _ in range(budget):
        c = unit @ (t - v @ unit)
        j = np.argmax(np.abs(c) if signed else c)
        v[j] += c[j] if signed else max(c[j], 0.0)
    return v


def plain_gradient_pursuit(unit, t, budget, signed):
    """One token of Smith 2024, dense."""
    v = np.zeros(len(unit))
    for _ in range(budget):
        r = t - v @ unit
        c = unit @ r
        mask = v != 0
        mask[np.argmax(np.abs(c) if signed else c)] = True
        g = mask * c
        along = g @ unit
        v = v + g * (along @ r) / (along @ along)
        v = v if signed else np.maximum(v, 0.0)
    return v


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize(("name", "plain"), [("mp", plain_mp), ("gradient_pursuit", plain_gradient_pursuit)])
def test_is_its_plain_definition(name, plain, sign):
    atoms, t = sparse_problem(0, n=12)
    problem, budget = pose(atoms, sign), np.arange(1, 13)
    expected = [
        plain(problem.unit64, x.astype(float), k, sign == "signed") for x, k in zip(t, budget, strict=True)
    ]
    np.testing.assert_allclose(solve(name, problem, t, budget), expected, atol=2e-5)


def first_steps(name, problem, t, count=6):
    """Codes after 0 to `count` steps."""
    return [solve(name, problem, t, len(problem.unit), n_steps=k) for k in range(count + 1)]


@pytest.mark.parametrize("sign", SIGNS)
def test_each_step_of_mp_takes_the_energy_of_the_best_correlation(sign):
    """||r'||^2 = ||r||^2 - <d, r>^2, and r' is orthogonal to d."""
    atoms, t = sparse_problem(1, n=12)
    problem = pose(atoms, sign)
    for before, after in itertools.pairwise(first_steps("mp", problem, t)):
        c, c_after = ((t - v @ problem.unit64) @ problem.unit64.T for v in (before, after))
        score = np.abs(c) if sign == "signed" else c
        best = score.argmax(axis=1)
        taken = np.maximum(score.max(axis=1), 0.0)
        np.testing.assert_allclose(
            errors(problem, t, after), errors(problem, t, before) - taken**2, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(c_after[np.arange(len(t)), best], 0.0, atol=1e-5)


def test_mp_goes_on_among_its_atoms_once_its_budget_is_spent():
    atoms, t = sparse_problem(2, n=12)
    problem = pose(atoms, "signed")
    v = solve("mp", problem, t, 2, n_steps=300)
    assert ((v != 0).sum(axis=1) == 2).all()
    c = (t - v @ problem.unit64) @ problem.unit64.T
    np.testing.assert_allclose(c[v != 0], 0.0, atol=1e-5)  # least squares on the two


def test_error_of_gradient_pursuit_never_rises_before_the_clip():
    atoms, t = sparse_problem(3, n=12)
    problem = pose(atoms, "signed")
    values = [errors(problem, t, v) for v in first_steps("gradient_pursuit", problem, t)]
    assert all((b <= a * (1 + 1e-5)).all() for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("sign", SIGNS)
def test_residual_of_omp_is_orthogonal_to_its_support(sign):
    atoms, t = sparse_problem(4, n=12)
    problem = pose(atoms, sign)
    v = solve("omp", problem, t, 4)
    c = (t - v @ problem.unit64) @ problem.unit64.T
    assert ((v != 0).sum(axis=1) > 2).all()
    np.testing.assert_allclose(c[v != 0], 0.0, atol=1e-4)


def widened(a, d=20, m=48):
    """Atoms padded with zeros to the shape of the other tests, whose compilations they share."""
    return np.pad(a, ((0, m - a.shape[0]), (0, d - a.shape[1]))).astype(np.float32)


@pytest.mark.parametrize("sign", SIGNS)
def test_omp_is_exact_on_incoherent_atoms(sign):
    """Identity and Hadamard in 16 dimensions: coherence 1/4, so any 2 atoms (K < (1 + 1/mu) / 2) are found in 2
    steps."""
    atoms = widened(np.concatenate([np.eye(16), scipy.linalg.hadamard(16) / 4]))
    r = np.random.default_rng(0)
    z = np.zeros((64, 48))
    for row in z:
        row[r.choice(32, 2, replace=False)] = r.uniform(0.2, 2, 2)
    z *= r.choice([-1, 1], z.shape) if sign == "signed" else 1
    v = solve("omp", pose(atoms, sign), (z @ atoms).astype(np.float32), 2)
    np.testing.assert_allclose(v, z, atol=1e-4)


def test_omp_leaves_less_than_the_others_at_the_same_budget():
    """Over tokens made of 4 atoms each. No theorem puts the greedy one before the descent; on coherent atoms it
    is."""
    atoms, t = sparse_problem(5, n=64)
    problem = pose(atoms)
    left = {
        name: errors(problem, t, solve(name, problem, t, 4)).sum()
        for name in ("mp", "gradient_pursuit", "iht", "omp")
    }
    assert left["omp"] < 0.5 * min(left["iht"], left["gradient_pursuit"])
    assert left["gradient_pursuit"] < left["mp"]
    assert max(left.values()) < 0.2 * np.square(t).sum()


@pytest.mark.parametrize("name", ["mp", "gradient_pursuit", "iht", "omp"])
def test_a_token_is_solved_alike_beside_denser_ones(name):
    atoms, t = sparse_problem(6, n=12)
    problem = pose(atoms)
    alone = solve(name, problem, t, 2)
    beside = solve(name, problem, t, np.where(np.arange(12) < 6, 2, 14))
    np.testing.assert_allclose(beside[:6], alone[:6], atol=1e-4)
    assert ((beside[6:] != 0).sum(axis=1) > 2).all()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("name", ["mp", "gradient_pursuit", "iht", "omp"])
def test_orthonormal_atoms_are_thresholded(name, sign):
    """There the best K atoms are those of the K largest correlations."""
    r = np.random.default_rng(0)
    atoms = widened(np.linalg.qr(r.standard_normal((20, 20)))[0])
    t = r.standard_normal((12, 20)).astype(np.float32)
    c = t.astype(np.float64) @ atoms.T
    score = np.abs(c) if sign == "signed" else c
    kept = score >= np.sort(score, axis=1)[:, [-5]]
    np.testing.assert_allclose(solve(name, pose(atoms, sign), t, 5), np.where(kept, c, 0.0), atol=1e-4)


@pytest.mark.parametrize("sign", SIGNS)
def test_error_of_iht_never_rises_with_steps(sign):
    atoms, t = sparse_problem(7, n=16)
    problem = pose(atoms, sign)
    budget, start = np.full(16, 4), np.zeros((16, 48), np.float32)
    step, options = 1 / problem.lipschitz, {"slots": 16, "signed": sign == "signed"}
    codes = [_iht(problem.unit, t, start, budget, step, k, **options) for k in (0, 1, 2, 5, 30)]
    values = [errors(problem, t, np.asarray(v)) for v in codes]
    assert all((b <= a * (1 + 1e-5)).all() for a, b in itertools.pairwise(values))
    assert (values[-1] < values[0]).all()
