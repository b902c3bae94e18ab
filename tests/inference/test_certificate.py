"""No false certificate: random problems, checked in float64 without any of the package's mathematics."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amortjax.inference import active_set, objective, rounds
from amortjax.inference.codes import Codes

# Zero-padded to these, so that all problems together compile to a handful of shapes.
WIDTH, ATOMS, TOKENS = 24, 96, 4
TOL = 1e-4


@st.composite
def problems(draw):
    """Atoms (ATOMS, WIDTH), tokens (TOKENS, WIDTH), lam (TOKENS,) and whether codes may be negative."""
    d, m = draw(st.integers(1, WIDTH)), draw(st.integers(1, ATOMS))
    r = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coherence = draw(st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]))
    atoms = np.zeros((ATOMS, WIDTH))
    shared = np.repeat(r.standard_normal((-(-m // 4), d)), 4, axis=0)[:m]
    atoms[:m, :d] = np.sqrt(coherence) * shared + np.sqrt(1 - coherence) * r.standard_normal((m, d))
    atoms[:m] *= np.exp(r.normal(0, draw(st.sampled_from([0.0, 2.0])), (m, 1)))
    codes = (r.random((TOKENS, ATOMS)) < draw(st.floats(0.01, 0.5))) * r.exponential(size=(TOKENS, ATOMS))
    t = codes @ atoms + draw(st.sampled_from([0.0, 0.1, 3.0])) * np.pad(
        r.standard_normal((TOKENS, d)), ((0, 0), (0, WIDTH - d))
    )
    scale = 10.0 ** draw(st.integers(-4, 4))
    t[draw(st.integers(0, TOKENS - 1))] *= draw(st.sampled_from([0.0, 1.0, 1.0]))
    norms = np.linalg.norm(atoms, axis=1)
    top = np.max((t @ atoms.T)[:, norms > 0] / norms[norms > 0], axis=1)
    lam = np.maximum(top, 1e-3) * 10.0 ** draw(st.floats(-5, 0.3))
    return atoms.astype(np.float32), (scale * t).astype(np.float32), scale * lam, draw(st.booleans())


def relative_gap(atoms, t, z, lam, signed):
    """(N,) of P's duality gap over P, in float64, by the textbook: primal minus dual of the scaled residual."""
    weights = np.linalg.norm(atoms, axis=1)
    r = t - z @ atoms
    primal = 0.5 * np.sum(r**2, axis=1) + lam * (np.abs(z) @ weights)
    reach = (r @ atoms.T)[:, weights > 0] / weights[weights > 0]
    top = np.max(np.abs(reach) if signed else reach, axis=1, initial=0.0)
    theta = r * np.minimum(1.0, lam / np.maximum(top, 1e-300))[:, None]
    dual = 0.5 * np.sum(t**2, axis=1) - 0.5 * np.sum((t - theta) ** 2, axis=1)
    return np.where(primal > 0, (primal - dual) / np.maximum(primal, 1e-300), 0.0)


def check(case, complete: bool):
    """`complete`: also that all are certified but where lambda is small."""
    atoms, t, lam, signed = case
    problem = objective.pose_dictionary(atoms, objective.Objective(sign="signed" if signed else "nonneg"))
    folded, taken = active_set.optimum(problem, t, lam, None, TOL)
    codes = problem.unfold(folded)
    claimed = objective.certify(problem, t, codes, lam).relative_gap
    z = codes.dense().astype(np.float64)
    assert np.isfinite(z).all()
    assert signed or (z >= 0).all()
    assert (taken <= active_set.MAX_ROUNDS).all()
    true = relative_gap(atoms.astype(np.float64), t.astype(np.float64), z, lam, signed)
    assert (true[claimed <= TOL] <= 2 * TOL).all()
    # Uncertified is honest, but only where codes rounded to float32 can no longer be better: rounding alone costs
    # up to 1.1e-7 / (lam / lam_max) of P, and more where atoms are coherent.
    small = lam < 5e-3 * np.linalg.norm(t, axis=1)
    assert not complete or (claimed <= TOL)[~small].all()


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=500, derandomize=True, **QUIET)
@given(problems())
def test_no_token_is_falsely_certified(case):
    check(case, complete=True)


@pytest.mark.long
@settings(max_examples=10_000, **QUIET)
@given(problems())
def test_no_token_of_ten_thousand_problems_is_falsely_certified(case):
    check(case, complete=False)
    assert rounds.run_rounds._cache_size() <= 20


def test_certified_tokens_agree_with_scikit_learn_within_the_certificate():
    from sklearn.linear_model import Lasso

    r = np.random.default_rng(0)
    d, m, lam = 48, 384, 0.3
    atoms = r.standard_normal((m, d)) + np.repeat(r.standard_normal((m // 8, d)), 8, axis=0)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    z = (r.random((8, m)) < 0.03) * r.exponential(size=(8, m))
    atoms, t = atoms.astype(np.float32), (z @ atoms).astype(np.float32)
    problem = objective.pose_dictionary(atoms)
    folded, _ = active_set.optimum(problem, t, np.full(8, lam), None, TOL)
    proof = objective.certify(problem, t, problem.unfold(folded), lam)
    assert (proof.relative_gap <= TOL).all()
    for row, ours, gap in zip(t.astype(np.float64), proof.objective, proof.gap, strict=True):
        lasso = Lasso(alpha=lam / d, positive=True, fit_intercept=False, tol=1e-12, max_iter=1_000_000)
        best = lasso.fit(atoms.T.astype(np.float64), row).coef_
        theirs = 0.5 * np.sum((row - best @ atoms) ** 2) + lam * best.sum()
        assert -1e-6 * theirs <= ours - theirs <= gap + 1e-6 * theirs  # its own accuracy


@pytest.mark.parametrize("precision", ["tensorfloat32", "bfloat16"])
def test_lower_precision_finds_the_same_certified_optimum(precision):
    r = np.random.default_rng(1)
    atoms = r.standard_normal((96, 24)).astype(np.float32)
    t = r.standard_normal((4, 24)).astype(np.float32) * 3
    problem = objective.pose_dictionary(atoms)
    for start in (None, Codes(np.zeros((4, 8), np.int32), np.zeros((4, 8), np.float32), 96)):
        folded, _ = active_set.optimum(problem, t, np.full(4, 0.5), start, TOL, precision)
        assert (objective.certify(problem, t, problem.unfold(folded), 0.5).relative_gap <= TOL).all()
