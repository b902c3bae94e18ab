"""What every solver of SOLVERS owes, whatever it does: valid codes, an honest certificate, no say in how tokens are
batched, and its goal. A solver is tested from the day its line is there."""

import functools

import numpy as np
import pytest
from problems import sparse_problem

from amortjax.errors import AmortjaxError
from amortjax.inference import objective
from amortjax.inference.codes import Codes, concatenate, from_dense
from amortjax.inference.request import Request, Settings
from amortjax.inference.solvers import SOLVERS

N, D, M, DEAD = 12, 12, 26, (5, 25)
BUDGET = np.array([0, 1, 2, 3, 4, 5, 3, 3, 20, 3, 3, 3])
LAM = np.linspace(0.05, 0.2, N)
ZERO_TOKEN = 7
CHUNK = 16
RECORDS = [("nonneg", "norm"), ("signed", "norm"), ("nonneg", "unit"), ("signed", "unit")]
of_every_solver = pytest.mark.parametrize("name", SOLVERS)
of_every_record = pytest.mark.parametrize(("sign", "weights"), RECORDS)


@functools.cache
def example(
    sign: str = "nonneg", weights: str = "norm", seed: int = 0
) -> tuple[objective.Problem, np.ndarray]:
    """Coherent atoms, two of them zero, and tokens, one of them zero."""
    atoms, t = sparse_problem(seed, n=N, d=D, m=24, k=3)
    atoms = np.insert(atoms, [DEAD[0], 24], 0.0, axis=0)
    t[ZERO_TOKEN] = 0.0
    return objective.pose_dictionary(atoms, objective.Objective(sign=sign, weights=weights)), t  # pyright: ignore


def settings(name: str, chunk: int = CHUNK) -> Settings:
    """Enough steps for the exact ones, their own default for the rest."""
    solver = SOLVERS[name]
    return Settings(
        tol=1e-6, chunk=chunk, n_steps=20_000 if solver.goal == "lasso" and solver.exact else None
    )


def request(name: str, sign: str = "nonneg", weights: str = "norm") -> Request:
    problem, t = example(sign, weights)
    return Request(problem, t, LAM, None, BUDGET, settings(name))


@functools.cache
def solved(name: str, sign: str = "nonneg", weights: str = "norm") -> tuple[Codes, np.ndarray]:
    return SOLVERS[name].solve(request(name, sign, weights))


def reconstruction(problem: objective.Problem, folded: Codes) -> np.ndarray:
    """What codes give; where a support is larger than the rank, more than one code gives the same."""
    return folded.csr(np.float64) @ problem.unit64


def assert_valid(codes: Codes, problem: objective.Problem, budget: np.ndarray | None) -> None:
    indices, values = np.asarray(codes.indices), np.asarray(codes.values)
    assert codes.n_latents == problem.n_latents
    assert np.isfinite(values).all()
    assert problem.signed or (values >= 0).all()
    dead = np.linalg.norm(np.asarray(problem.unit), axis=1) == 0
    for index, value in zip(indices, values, strict=True):
        used = index[value != 0]
        assert len(set(used)) == len(used)
        assert ((used >= 0) & (used < problem.n_latents)).all()
        assert not dead[used].any()
    if budget is not None:
        assert (codes.l0 <= budget).all()


def assert_lasso_kkt(problem: objective.Problem, t: np.ndarray, codes: Codes, tol: float = 5e-3) -> None:
    v = codes.dense().astype(np.float64)
    c = (t - v @ problem.unit64) @ problem.unit64.T
    lam = np.broadcast_to(LAM[:, None], v.shape)
    np.testing.assert_allclose((np.sign(v) * c)[v != 0], lam[v != 0], rtol=tol)
    assert ((np.abs(c) if problem.signed else c) <= lam * (1 + tol)).all()


@of_every_record
@of_every_solver
def test_codes_are_valid(name, sign, weights):
    problem, _ = example(sign, weights)
    codes, iterations = solved(name, sign, weights)
    assert_valid(codes, problem, BUDGET if SOLVERS[name].goal == "l0" else None)
    assert len(codes) == N
    assert np.shape(iterations) == (N,)
    assert np.issubdtype(np.asarray(iterations).dtype, np.integer)
    assert codes.l0[ZERO_TOKEN] == 0
    assert codes.l0.sum() > 0


@of_every_record
@of_every_solver
def test_certificate_brackets_the_optimum(name, sign, weights):
    problem, t = example(sign, weights)
    certify = lambda codes: objective.certify(problem, t, problem.unfold(codes), LAM)  # noqa: E731
    proof, best = certify(solved(name, sign, weights)[0]), certify(solved("fista", sign, weights)[0])
    assert best.relative_gap.max() < 1e-4
    # The optimum lies between FISTA's dual value and its objective.
    assert (proof.dual <= best.objective * (1 + 1e-9)).all()
    assert (proof.objective >= best.dual * (1 - 1e-9)).all()


@of_every_record
@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.goal == "lasso" and s.exact])
def test_exact_solvers_satisfy_the_optimality_conditions(name, sign, weights):
    problem, t = example(sign, weights)
    assert_lasso_kkt(problem, t, solved(name, sign, weights)[0])


@of_every_solver
def test_batching_does_not_change_codes(name):
    problem, t = example()
    parts = []
    for rows in (slice(0, 5), slice(5, N)):
        parts.append(
            SOLVERS[name].solve(
                request(name)._replace(
                    t=t[rows], lam=LAM[rows], budget=BUDGET[rows], settings=settings(name, 4)
                )
            )[0]
        )
    together = reconstruction(problem, solved(name)[0])
    np.testing.assert_allclose(reconstruction(problem, concatenate(parts)), together, atol=2e-3)


@of_every_solver
def test_order_of_tokens_does_not_matter(name):
    problem, t = example()
    order = np.random.default_rng(0).permutation(N)
    codes, iterations = SOLVERS[name].solve(
        request(name)._replace(t=t[order], lam=LAM[order], budget=BUDGET[order])
    )
    np.testing.assert_allclose(
        reconstruction(problem, codes), reconstruction(problem, solved(name)[0])[order], atol=2e-3
    )
    assert len(iterations) == N


@of_every_solver
def test_fewer_atoms_than_dimensions(name):
    problem, t = example()
    few = objective.Problem(problem.unit[:4], problem.weights[:4], problem.record)
    codes, _ = SOLVERS[name].solve(request(name)._replace(problem=few))
    assert_valid(codes, few, BUDGET if SOLVERS[name].goal == "l0" else None)
    if SOLVERS[name].exact:
        assert_lasso_kkt(few, t, codes)


@pytest.mark.parametrize("sign", ["nonneg", "signed"])
@of_every_solver
def test_a_start_is_taken(name, sign):
    """Codes of any quality may be passed; none of them leads an exact solver elsewhere."""
    problem, t = example(sign)
    z = np.random.default_rng(0).exponential(size=(N, M)) * (np.random.default_rng(1).random((N, M)) < 0.2)
    z[:, DEAD] = 0.0
    if sign == "signed":
        z[:, ::2] *= -1
    start = from_dense(z.astype(np.float32))
    codes, _ = SOLVERS[name].solve(request(name, sign)._replace(start=start))
    assert_valid(codes, problem, BUDGET if SOLVERS[name].goal == "l0" else None)
    if SOLVERS[name].exact:
        assert_lasso_kkt(problem, t, codes)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.goal == "l0"])
def test_without_a_budget_the_bounded_solvers_refuse(name):
    with pytest.raises(AmortjaxError, match="budget"):
        SOLVERS[name].solve(request(name)._replace(budget=None))


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s.goal == "l0"])
def test_bounded_solvers_explain_something(name):
    problem, t = example()
    residual = t - reconstruction(problem, solved(name)[0])
    some = BUDGET > 0
    assert np.square(residual[some]).sum() < 0.5 * np.square(t[some]).sum()
    np.testing.assert_array_equal(residual[~some], t[~some])
