"""LCA: the textbook dynamics, and fixed points that are optima."""

import numpy as np
import pytest
from problems import sparse_problem

from amortjax.inference import objective
from amortjax.inference.codes import from_dense
from amortjax.inference.request import Request, Settings
from amortjax.inference.solvers import SOLVERS

LAM = 0.15
SIGNS = ("nonneg", "signed")


def posed(sign="nonneg", weights="norm", scale=1.0):
    atoms, t = sparse_problem(0, n=8, d=12, m=24, k=3)
    record = objective.Objective(sign=sign, weights=weights)
    return objective.pose_dictionary(scale * atoms, record), t


def lca(problem, t, n_steps, lam=LAM, start=None):
    request = Request(problem, t, np.full(len(t), lam), start, None, Settings(n_steps=n_steps, chunk=8))
    return SOLVERS["lca"].solve(request)[0].dense().astype(np.float64)


@pytest.mark.parametrize("sign", SIGNS)
def test_is_the_textbook_dynamics_of_unit_norm_atoms(sign):
    """tau du = U t - u - (U U^T - I) a, with the lateral weights written out."""
    problem, t = posed(sign)
    unit = problem.unit64
    lateral = unit @ unit.T - np.eye(len(unit))
    threshold = lambda u: np.sign(u) * np.maximum(np.abs(u) - LAM, 0.0)  # noqa: E731
    if sign == "nonneg":
        threshold = lambda u: np.maximum(u - LAM, 0.0)  # noqa: E731
    u = np.zeros((len(t), len(unit)))
    for _ in range(50):
        u = u + (t @ unit.T - u - threshold(u) @ lateral) / problem.lipschitz
    np.testing.assert_allclose(lca(problem, t, 50), threshold(u), atol=1e-4)


@pytest.mark.parametrize("weights", ["norm", "unit"])
@pytest.mark.parametrize("sign", SIGNS)
def test_fixed_points_satisfy_the_optimality_conditions(sign, weights):
    problem, t = posed(sign, weights)
    v = lca(problem, t, 20_000)
    c = (t - v @ problem.unit64) @ problem.unit64.T
    np.testing.assert_allclose((np.sign(v) * c)[v != 0], LAM, rtol=1e-3)
    assert (np.abs(c) if sign == "signed" else c).max() <= LAM * (1 + 1e-3)
    proof = objective.certify(problem, t, problem.unfold(from_dense(v.astype(np.float32))), LAM)
    assert proof.relative_gap.max() < 1e-4


@pytest.mark.parametrize("sign", SIGNS)
def test_an_optimum_stays(sign):
    problem, t = posed(sign)
    request = Request(problem, t, np.full(len(t), LAM), None, None, Settings(n_steps=20_000, chunk=8))
    best = SOLVERS["fista"].solve(request)[0]
    np.testing.assert_allclose(lca(problem, t, 300, start=best), best.dense(), atol=1e-3)


def test_it_does_not_depend_on_the_units_of_the_atoms():
    """Under unit weights, atoms and lambda a thousand times smaller give codes a thousand times larger."""
    problem, t = posed(weights="unit")
    small, _ = posed(weights="unit", scale=1e-3)
    np.testing.assert_allclose(1e-3 * lca(small, t, 100, lam=1e-3 * LAM), lca(problem, t, 100), atol=1e-4)


def test_zero_atoms_are_silent_and_a_dictionary_of_them_gives_nothing():
    problem, t = posed()
    unit = np.asarray(problem.unit).copy()
    unit[[0, 7]] = 0.0
    v = lca(objective.pose_dictionary(unit), t, 100, lam=0.0)
    assert not v[:, [0, 7]].any()
    assert v.any()
    assert not lca(objective.pose_dictionary(0 * unit), t, 100).any()
