"""The objective, its record and its certificate."""

import dataclasses

import numpy as np
import pytest
from problems import sparse_problem, toy_sae

from amortjax.errors import AmortjaxError
from amortjax.inference import objective
from amortjax.inference.codes import Codes, from_dense
from amortjax.saes import encoders

LAM = 0.1


def primal(atoms, t, z, lam):
    """1/2 ||t - z W||^2 + lam sum_j ||W_j|| |z_j|, written out."""
    weights = np.linalg.norm(atoms.astype(np.float64), axis=1)
    return 0.5 * np.square(t - z @ atoms.astype(np.float64)).sum(axis=1) + lam * np.abs(z) @ weights


def random_codes(seed, n, m):
    r = np.random.default_rng(seed)
    return (r.exponential(size=(n, m)) * (r.random((n, m)) < 0.2)).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_gap_is_primal_minus_a_feasible_dual_value_for_any_codes(seed):
    atoms, t = sparse_problem(seed)
    z = random_codes(seed, len(t), len(atoms))
    problem = objective.pose_dictionary(atoms)
    proof = objective.certify(problem, t, from_dense(z), LAM)
    r = t - z.astype(np.float64) @ atoms
    weights = np.linalg.norm(atoms, axis=1)
    s = np.minimum(1, LAM / np.maximum((r @ atoms.T / weights).max(axis=1), 1e-30))
    theta = s[:, None] * r
    assert ((theta @ atoms.T) <= LAM * weights * (1 + 1e-5)).all()
    dual = 0.5 * np.square(t).sum(axis=1) - 0.5 * np.square(t - theta).sum(axis=1)
    np.testing.assert_allclose(proof.objective, primal(atoms, t, z, LAM), rtol=1e-6)
    np.testing.assert_allclose(proof.gap, proof.objective - dual, rtol=1e-4, atol=1e-5)
    assert (proof.gap >= 0).all()


def test_all_zero_is_optimal_exactly_from_lam_max_on():
    atoms, t = sparse_problem(0)
    problem = objective.pose_dictionary(atoms)
    top = objective.lam_max(problem, t)
    zero = from_dense(np.zeros((len(t), len(atoms))))
    assert (objective.certify(problem, t, zero, top * 1.0001).gap == 0).all()
    assert (objective.certify(problem, t, zero, top * 0.999).gap > 0).all()


def test_rescaling_an_atom_changes_neither_objective_nor_gap():
    atoms, t = sparse_problem(1)
    z = random_codes(1, len(t), len(atoms))
    factor = np.exp(np.random.default_rng(2).standard_normal(len(atoms))).astype(np.float32)
    a = objective.certify(objective.pose_dictionary(atoms), t, from_dense(z), LAM)
    b = objective.certify(objective.pose_dictionary(atoms * factor[:, None]), t, from_dense(z / factor), LAM)
    np.testing.assert_allclose(a.objective, b.objective, rtol=1e-5)
    np.testing.assert_allclose(a.gap, b.gap, rtol=1e-4, atol=1e-6)


def test_twice_the_half_form_at_half_the_lambda_is_the_papers_form():
    atoms, t = sparse_problem(2)
    z, lam_full = random_codes(2, len(t), len(atoms)), 0.2
    weights = np.linalg.norm(atoms, axis=1)
    full = np.square(t - z @ atoms).sum(axis=1) + lam_full * (z @ weights)
    half = objective.certify(objective.pose_dictionary(atoms), t, from_dense(z), lam_full / 2).objective
    np.testing.assert_allclose(full, 2 * half, rtol=1e-5)


def test_objectives_of_different_records_are_not_subtracted():
    a = objective.Objective(lam=0.1)
    objective.require_same(a, objective.Objective(lam=0.1))
    with pytest.raises(AmortjaxError, match=r"lam 0\.1 and 0\.2"):
        objective.require_same(a, dataclasses.replace(a, lam=0.2))


def test_negative_codes_need_a_signed_problem():
    atoms, t = sparse_problem(0)
    z = -random_codes(0, len(t), len(atoms))
    with pytest.raises(AmortjaxError, match="signed"):
        objective.certify(objective.pose_dictionary(atoms), t, from_dense(z), LAM)


def test_lipschitz_constant_is_not_below_the_true_one():
    atoms, _ = sparse_problem(3)
    problem = objective.pose_dictionary(atoms)
    true = np.linalg.norm(np.asarray(problem.unit, np.float64), 2) ** 2
    assert true <= problem.lipschitz <= 1.05 * true


@pytest.mark.parametrize("variant", encoders.VARIANTS)
def test_posed_sae_reconstructs_what_decode_gives(variant):
    sae = toy_sae(variant)
    x = np.random.default_rng(0).standard_normal((12, sae.d_in)).astype(np.float32)
    z = np.asarray(encoders.encode(sae, x))
    problem = objective.pose(sae)
    t = np.asarray(objective.targets(sae, x)[0])
    proof = objective.certify(problem, t, from_dense(z), LAM)
    np.testing.assert_allclose(
        x - proof.residual, z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec), atol=1e-5
    )


def test_codes_round_trip_and_drop_nothing():
    z = random_codes(5, 9, 70)
    z[3] = 0
    codes = from_dense(z)
    np.testing.assert_array_equal(codes.dense(), z)
    np.testing.assert_array_equal(codes.widened(64).dense(), z)
    np.testing.assert_array_equal(codes.l0, (z != 0).sum(axis=1))
    assert isinstance(codes.rows(2, 5), Codes)


def test_tokens_are_certified_in_parts_that_change_nothing():
    atoms, t = sparse_problem(3, n=1500)
    problem = objective.pose_dictionary(atoms)
    codes = from_dense(np.maximum(t @ atoms.T - 0.5, 0))
    whole = objective.certify(problem, t, codes, 0.1)
    one = [objective.certify(problem, t[i : i + 7], codes.rows(i, i + 7), 0.1) for i in (0, 1020, 1493)]
    for i, part in zip((0, 1020, 1493), one, strict=True):
        np.testing.assert_allclose(part.relative_gap, whole.relative_gap[i : i + 7], rtol=1e-5)
        np.testing.assert_array_equal(part.residual, whole.residual[i : i + 7])
    assert max(p.stop - p.start for p in objective._parts(10**6, 65_536)) * 65_536 * 4 <= 256 << 20
