"""Every solver of the lasso against its optimality conditions, scikit-learn and its symmetries."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from problems import sparse_problem

import amortjax as aj
from amortjax.inference import active_set, objective, refit
from amortjax.inference.codes import Codes, from_dense
from amortjax.inference.ista import FIRST_ORDER, descend
from amortjax.inference.modes import MODES, Options, solve
from amortjax.saes.sae import SAE

LAM = 0.1
TOL = 1e-5


def by_active_set(problem, t, lam, n_steps=0):
    codes, _ = active_set.optimum(problem, t, np.broadcast_to(lam, len(t)), None, TOL)
    return problem.unfold(codes)


def first_order(solver):
    def run(problem, t, lam, n_steps=4000):
        v0 = jnp.zeros((len(t), problem.n_latents))
        lam = jnp.broadcast_to(jnp.asarray(lam, jnp.float32), len(t))
        signed = problem.signed
        v = descend(
            problem.unit, t, v0, lam, problem.lipschitz, solver=solver, n_steps=n_steps, signed=signed
        )
        return problem.unfold(from_dense(np.asarray(v)))

    return run


SOLVERS = {"active_set": by_active_set} | {name: first_order(name) for name in FIRST_ORDER}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("seed", range(2))
def test_solution_satisfies_kkt_and_is_certified(solver, seed):
    atoms, t = sparse_problem(seed)
    problem = objective.pose_dictionary(atoms)
    codes = SOLVERS[solver](problem, t, LAM)
    z, weights = codes.dense().astype(np.float64), np.linalg.norm(atoms, axis=1)
    correlation = (t - z @ atoms) @ atoms.T / weights  # of unit atoms: lam on the support, at most lam off it
    assert (z >= 0).all()
    np.testing.assert_allclose(correlation[z > 0], LAM, atol=2e-3 * LAM)
    assert correlation.max() <= LAM * (1 + 2e-3)
    assert objective.certify(problem, t, codes, LAM).relative_gap.max() < 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_agrees_with_scikit_learn(solver):
    from sklearn.linear_model import Lasso

    atoms, t = sparse_problem(3, n=8)
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    problem = objective.pose_dictionary(atoms)
    ours = objective.certify(problem, t, SOLVERS[solver](problem, t, LAM), LAM).objective
    d = atoms.shape[1]
    for row, objective_ours in zip(t, ours, strict=True):
        lasso = Lasso(alpha=LAM / d, positive=True, fit_intercept=False, tol=1e-9, max_iter=100_000)
        z = lasso.fit(atoms.T.astype(np.float64), row.astype(np.float64)).coef_
        theirs = 0.5 * np.sum((row - z @ atoms) ** 2) + LAM * z.sum()
        assert abs(objective_ours - theirs) <= 1e-4 * theirs


@pytest.mark.parametrize("solver", SOLVERS)
def test_permutation_scale_and_rotation_equivariance(solver):
    atoms, t = sparse_problem(4)
    r = np.random.default_rng(0)
    order, c = r.permutation(len(atoms)), 3.0
    rotation = np.linalg.qr(r.standard_normal((t.shape[1], t.shape[1])))[0].astype(np.float32)
    z = SOLVERS[solver](objective.pose_dictionary(atoms), t, LAM).dense()
    permuted = SOLVERS[solver](objective.pose_dictionary(atoms[order]), t, LAM).dense()
    np.testing.assert_allclose(permuted, z[:, order], atol=5e-3)
    scaled = SOLVERS[solver](objective.pose_dictionary(atoms), c * t, c * LAM).dense()
    np.testing.assert_allclose(scaled, c * z, atol=1.5e-2)
    turned = SOLVERS[solver](objective.pose_dictionary(atoms @ rotation), t @ rotation, LAM).dense()
    np.testing.assert_allclose(turned, z, atol=5e-3)


def awkward(kind):
    atoms, t = sparse_problem(5)
    if kind == "duplicates":
        return np.concatenate([atoms, atoms[:10]]), t, LAM
    if kind == "zero atoms":
        return np.concatenate([atoms, np.zeros((3, atoms.shape[1]), np.float32)]), t, LAM
    if kind == "fewer atoms than dimensions":
        return atoms[:12], t, LAM
    if kind == "zero tokens":
        return atoms, t * 0, LAM
    if kind == "large scale":
        return atoms, t * 1e4, LAM * 1e4
    if kind == "lambda above lam_max":
        return atoms, t, 1e3
    if kind == "small lambda":
        return atoms, t, 1e-2
    return atoms * 0.01 + 1.0, t, LAM  # coherent


KINDS = ("duplicates", "zero atoms", "fewer atoms than dimensions", "zero tokens", "large scale",
         "lambda above lam_max", "small lambda", "coherent")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_active_set_certifies_awkward_problems(kind):
    atoms, t, lam = awkward(kind)
    problem = objective.pose_dictionary(atoms)
    codes, _ = active_set.optimum(problem, t, np.full(len(t), lam), None, 1e-4)
    assert objective.certify(problem, t, problem.unfold(codes), lam).relative_gap.max() <= 1e-4


def test_active_set_room_grows_and_nothing_is_cut():
    r = np.random.default_rng(0)
    atoms = np.linalg.qr(r.standard_normal((160, 160)))[0].astype(np.float32)
    z = np.zeros((3, 160))
    z[0, :150], z[1, :2], z[2] = 1.0, 1.0, 2.0
    problem = objective.pose_dictionary(atoms)
    codes, _ = active_set.optimum(problem, (z @ atoms).astype(np.float32), np.full(3, 0.1), None, 1e-5)
    np.testing.assert_allclose(
        codes.dense(), np.maximum(z - 0.1, 0), atol=1e-4
    )  # orthonormal: soft threshold


def test_lambda_zero_is_non_negative_least_squares():
    from scipy.optimize import nnls

    atoms, t = sparse_problem(6, d=20, m=12)
    problem = objective.pose_dictionary(atoms)
    codes, _ = active_set.optimum(problem, t, np.zeros(len(t)), None, 1e-4)
    z = problem.unfold(codes).dense()
    for row, found in zip(t, z, strict=True):
        best = nnls(atoms.T.astype(np.float64), row.astype(np.float64))[1]
        assert np.linalg.norm(row - found @ atoms) <= best * (1 + 1e-3) + 1e-5


def test_refit_is_non_negative_least_squares_on_the_support():
    from scipy.optimize import nnls

    atoms, t = sparse_problem(7)
    problem = objective.pose_dictionary(atoms)
    z = SOLVERS["active_set"](problem, t, LAM)
    found = problem.unfold(refit.nnls(problem.unit, t, problem.fold(z))).dense()
    for row, before, after in zip(t, z.dense(), found, strict=True):
        support = before > 0
        assert not (after > 0)[~support].any()
        best = nnls(atoms[support].T.astype(np.float64), row.astype(np.float64))[1]
        assert np.linalg.norm(row - after @ atoms) <= best * (1 + 1e-3) + 1e-5


def problem_and_encoder(signed=False):
    atoms, t = sparse_problem(8)
    record = objective.Objective(sign="signed" if signed else "nonneg")
    problem = objective.pose_dictionary(atoms, record)
    r = np.random.default_rng(1)
    z = np.maximum(t @ atoms.T - 0.5, 0) * (1 + 0.3 * r.standard_normal((len(t), len(atoms))))
    z = np.maximum(z, 0) if not signed else z * np.sign(r.standard_normal(z.shape))
    return problem, t, from_dense(z.astype(np.float32))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_valid_codes_and_a_valid_certificate(mode, signed):
    problem, t, encoder = problem_and_encoder(signed)
    options = Options(chunk=16, semi_steps=10, ista_steps=100)
    codes, iterations = solve(mode, problem, t, encoder, LAM, 0.9, options)
    best, _ = solve("optimal", problem, t, encoder, LAM, 1.0, options)
    proof = objective.certify(problem, t, codes, LAM)
    optimum = objective.certify(problem, t, best, LAM)
    assert len(codes) == len(t) == len(iterations)
    assert signed or (codes.dense() >= 0).all()
    # Any dual value lies below any primal one.
    assert (proof.dual <= optimum.objective * (1 + 1e-6)).all()
    assert (proof.objective >= optimum.dual * (1 - 1e-6)).all()
    assert (optimum.relative_gap <= 1e-4).all()


@pytest.mark.parametrize("mode", MODES)
def test_chunks_do_not_change_codes(mode):
    problem, t, encoder = problem_and_encoder()
    small, _ = solve(mode, problem, t, encoder, LAM, 1.0, Options(chunk=5, ista_steps=50))
    large, _ = solve(mode, problem, t, encoder, LAM, 1.0, Options(chunk=64, ista_steps=50))
    # What they reconstruct, because a support larger than the rank has more than one code.
    a, b = (problem.fold(codes).csr() @ np.asarray(problem.unit) for codes in (small, large))
    np.testing.assert_allclose(a, b, atol=5e-3)


def test_more_steps_never_raise_the_objective():
    problem, t, encoder = problem_and_encoder()
    values = [
        objective.certify(
            problem, t, solve("semi_amortized", problem, t, encoder, LAM, 1.0, Options(semi_steps=n))[0], LAM
        ).objective
        for n in (1, 3, 10, 30)
    ]
    assert all((b <= a * (1 + 1e-5)).all() for a, b in itertools.pairwise(values))


def test_omp_keeps_each_tokens_budget_and_beats_the_encoder():
    problem, t, encoder = problem_and_encoder()
    codes, _ = solve("omp", problem, t, encoder, 0.0, 1.0, Options())
    assert (codes.l0 <= encoder.l0).all()
    error = lambda c: np.square(t - problem.fold(c).csr() @ np.asarray(problem.unit)).sum()  # noqa: E731
    refitted, _ = solve("encoder_refit", problem, t, encoder, 0.0, 1.0, Options())
    assert error(codes) < error(refitted) <= error(encoder)


def test_omp_finds_orthonormal_supports_exactly():
    r = np.random.default_rng(0)
    atoms = np.linalg.qr(r.standard_normal((32, 32)))[0].astype(np.float32)
    z = np.zeros((6, 32), np.float32)
    for row in z:
        row[r.choice(32, 5, replace=False)] = r.uniform(0.5, 2, 5)
    problem = objective.pose_dictionary(atoms)
    codes, _ = solve("omp", problem, z @ atoms, from_dense(z), 0.0, 1.0, Options())
    np.testing.assert_allclose(codes.dense(), z, atol=1e-4)


def test_codes_may_hold_an_empty_batch_of_slots():
    codes = Codes(np.zeros((2, 8), np.int32), np.zeros((2, 8), np.float32), 5)
    assert codes.dense().shape == (2, 5)
    assert codes.csr().nnz == 0


def test_what_float32_can_not_certify_is_close_all_the_same():
    """A tolerance below what float32 codes can prove leaves no token worse than a looser one would."""
    r = np.random.default_rng(0)
    atoms = r.standard_normal((16, 8)).astype(np.float32)
    z = np.abs(r.standard_normal((512, 16))) * (r.random((512, 16)) < 3 / 16)
    none = jnp.zeros(8)
    sae = SAE(jnp.asarray(atoms.T), jnp.zeros(16), jnp.asarray(atoms), none, none, {}, "standard")
    found = aj.infer(sae, (z @ atoms).astype(np.float32), 0.0025, tol=1e-6)
    assert found.relative_gap.max() < 5e-3
