"""The exact decompositions of a price, against brute force in dense float64."""

import dataclasses

import numpy as np
import pytest
from problems import sparse_problem

from amortjax.errors import AmortjaxError
from amortjax.inference import gaps, modes, objective, refit
from amortjax.inference.codes import Codes, from_dense
from amortjax.inference.modes import Options

LAM = 0.1


def solved(problem, t, lam=LAM, tol=1e-6):
    """The optimum's codes; `tol` where float32 codes can reach it."""
    return modes.solve("optimal", problem, t, empty(t, problem), lam, 1.0, Options(tol=tol))[0]


def empty(t, problem):
    return Codes(np.zeros((len(t), 8), np.int32), np.zeros((len(t), 8), np.float32), problem.n_latents)


def posed(signed=False, seed=0, **size):
    """A problem, tokens, and codes of an encoder: the optimum's with wrong amplitudes, latents missing and added
    and, if signed, some wrong signs."""
    atoms, t = sparse_problem(seed, **size)
    sign = "signed" if signed else "nonneg"
    problem = objective.pose_dictionary(atoms, objective.Objective(sign=sign))
    r = np.random.default_rng(seed + 1)
    z = solved(problem, t).dense() * np.exp(0.3 * r.standard_normal((len(t), len(atoms))))
    z *= (r.random(z.shape) < 0.8) * (np.where(r.random(z.shape) < 0.9, 1, -1) if signed else 1)
    z += (z == 0) * (r.random(z.shape) < 0.05) * 0.3 * r.exponential(size=z.shape)
    z[0] = 0
    return problem, t, from_dense(z.astype(np.float32))


def proof(problem, t, codes, lam=LAM):
    return gaps.proof_of(problem, objective.certify(problem, t, codes, lam), lam)


def primal(problem, t, v, lam):
    return 0.5 * np.square(t - v @ problem.unit64).sum(axis=1) + np.sum(
        np.reshape(lam, (-1, 1)) * np.abs(v), axis=1
    )


def restricted_minimum(problem, t, codes, lam):
    """min P on each token's support and signs, by scikit-learn in float64."""
    from sklearn.linear_model import Lasso

    v, out = problem.fold(codes).csr(np.float64).toarray(), []
    for row, own in zip(t.astype(np.float64), v, strict=True):
        atoms = (problem.unit64 * np.sign(own)[:, None])[own != 0]
        if not len(atoms) or not row.any():
            out.append(0.5 * row @ row)
            continue
        lasso = Lasso(alpha=lam / len(row), positive=True, fit_intercept=False, tol=1e-13, max_iter=10**6)
        best = lasso.fit(atoms.T, row).coef_
        out.append(0.5 * np.sum((row - best @ atoms) ** 2) + lam * best.sum())
    return np.array(out)


# --- intervals ---


@pytest.mark.parametrize("signed", [False, True])
def test_the_interval_holds_the_true_gap_and_more_proofs_only_narrow_it(signed):
    problem, t, encoder = posed(signed)
    own = proof(problem, t, encoder)
    tight, loose = (proof(problem, t, solved(problem, t, tol=tol)) for tol in (1e-6, 1e-2))
    truth = own.objective - tight.objective  # to within 1e-6
    alone, some, every = gaps.interval(own), gaps.interval(own, loose), gaps.interval(own, loose, tight)
    for found in (alone, some, every):
        assert (found.lower >= 0).all() and (found.lower <= truth + 1e-12).all()
        assert (found.upper >= truth - 1e-12).all()
        np.testing.assert_array_equal(found.width, found.upper - found.lower)
    assert (some.width <= alone.width).all() and (every.width <= some.width).all()
    np.testing.assert_array_equal(alone.lower, 0)
    np.testing.assert_array_equal(some.lower, np.maximum(own.objective - loose.objective, 0))
    np.testing.assert_array_equal(
        every.upper, own.objective - np.maximum.reduce([own.dual, loose.dual, tight.dual])
    )
    assert every.width.sum() <= 1e-5 * tight.objective.sum()


def test_totals_bound_the_relative_price():
    problem, t, encoder = posed()
    own, star = proof(problem, t, encoder), proof(problem, t, solved(problem, t))
    found = gaps.total(gaps.interval(own, star))
    price = (own.objective.sum() - star.objective.sum()) / star.objective.sum()
    assert found.relative_lower == pytest.approx(price, rel=1e-12)
    assert price <= found.relative_upper <= price + 1e-4
    assert found.width == pytest.approx(found.upper - found.lower)
    nothing = gaps.interval(proof(problem, 0 * t, empty(t, problem)))
    assert gaps.total(nothing) == (0, 0, 0, 0, 0)


def test_proofs_of_different_objectives_are_refused():
    problem, t, encoder = posed()
    own, other = proof(problem, t, encoder), proof(problem, t, encoder, 0.2)
    with pytest.raises(AmortjaxError, match=r"lam 0\.1 and 0\.2"):
        gaps.interval(own, other)
    signed = own._replace(record=dataclasses.replace(own.record, sign="signed"))
    with pytest.raises(AmortjaxError, match="sign nonneg and signed"):
        gaps.split(problem, t, encoder, LAM, own, signed)
    with pytest.raises(AmortjaxError, match=r"lam 0\.1 and 0\.2"):
        gaps.split(problem, t, encoder, 0.2, own)
    each = np.linspace(0.1, 0.2, len(t))
    a, b = proof(problem, t, encoder, each), proof(problem, t, encoder, each[::-1])
    assert gaps.interval(a, a).upper.shape == (len(t),)
    with pytest.raises(AmortjaxError, match="lambdas differ"):
        gaps.interval(a, b)
    with pytest.raises(AmortjaxError, match="can't be subtracted"):
        gaps.interval(own, a)


# --- amplitude and support ---


def check_split(problem, t, codes, lam=LAM, certified=1e-6):
    own, star = proof(problem, t, codes, lam), proof(problem, t, solved(problem, t, lam, tol=1e-5), lam)
    found = gaps.split(problem, t, codes, lam, own, star)
    scale = np.maximum(own.objective, 1e-30)
    assert (found.amplitude >= 0).all() and (found.support >= 0).all()
    assert (found.support_lower <= found.support).all() and (found.support <= found.support_upper).all()
    assert (found.gap <= certified * scale).all()
    best = np.minimum(star.objective, found.objective)
    np.testing.assert_allclose(
        (found.amplitude + found.support) / scale, (own.objective - best) / scale, atol=1e-14
    )
    np.testing.assert_allclose(
        (found.amplitude_upper - found.amplitude) / scale, found.gap / scale, atol=1e-14
    )
    truth = restricted_minimum(problem, t, codes, lam)
    assert (np.abs(found.objective - truth) <= 2e-6 * scale).all()
    assert (own.objective - truth <= found.amplitude_upper + 1e-9 * scale).all()
    assert (truth - star.objective <= found.support_upper + 1e-9 * scale).all()
    return found


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_amplitude_is_the_lasso_restricted_to_the_support_certified_there(seed, signed):
    found = check_split(*posed(signed, seed))
    assert found.amplitude[1:].min() > 0 and np.median(found.support) > 0
    assert found.gap.max() <= 1e-9 * found.objective.max()


AWKWARD = (
    "dense",
    "wide",
    "duplicates",
    "zero atoms",
    "small lambda",
    "large",
    "zero tokens",
    "coherent",
    "above",
)


@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_supports_are_split_all_the_same(kind):
    atoms, t = sparse_problem(5, n=12, d=24, m=160) if kind == "wide" else sparse_problem(5)
    lam, r = LAM, np.random.default_rng(0)
    z = np.maximum(t @ atoms.T, 0) * (r.random((len(t), len(atoms))) < 0.3)
    if kind in ("dense", "wide"):
        z = np.maximum(t @ atoms.T, 0) + 0.1  # more latents than dimensions: the code is not unique, its P is
    elif kind == "zero atoms":
        atoms = atoms * (np.arange(len(atoms)) % 3 > 0)[:, None]
    elif kind == "duplicates":
        atoms, z = np.concatenate([atoms, atoms]), np.concatenate([z, 0.5 * z], axis=1)
    elif kind == "small lambda":
        lam = 1e-3
    elif kind == "large":
        t, z, lam = t * 1e4, z * 1e4, LAM * 1e4
    elif kind == "zero tokens":
        t = t * 0
    elif kind == "coherent":
        atoms = atoms * 0.01 + 1.0
    elif kind == "above":
        lam = 1e3
    problem = objective.pose_dictionary(atoms)
    check_split(problem, t, from_dense(z.astype(np.float32)), lam)


def test_each_part_vanishes_where_it_should():
    problem, t, encoder = posed()
    star = solved(problem, t)
    best = proof(problem, t, star)
    scaled = Codes(star.indices, star.values * 0.5, star.n_latents)
    found = gaps.split(problem, t, scaled, LAM, proof(problem, t, scaled), best)
    # The optimum's own support: all amplitude, up to what is certified.
    assert (found.support <= 2e-6 * best.objective).all() and (found.support_lower <= 1e-9).all()
    assert found.amplitude.sum() > 0.01 * best.objective.sum()
    inside = refit.lasso(problem, t, problem.fold(encoder), LAM)
    own = problem.unfold(Codes(inside.indices, inside.values.astype(np.float32), problem.n_latents))
    found = gaps.split(problem, t, own, LAM, proof(problem, t, own), best)
    assert (
        found.amplitude <= 1e-6 * best.objective
    ).all() and found.support.sum() > 0.01 * best.objective.sum()


def test_without_a_reference_the_parts_are_bounded_all_the_same():
    problem, t, encoder = posed()
    own, star = proof(problem, t, encoder), proof(problem, t, solved(problem, t))
    alone, known = gaps.split(problem, t, encoder, LAM, own), gaps.split(problem, t, encoder, LAM, own, star)
    np.testing.assert_array_equal(alone.amplitude, known.amplitude)
    np.testing.assert_array_equal(alone.support, 0)  # nothing better is known
    assert (known.support <= alone.support_upper).all()


def test_a_restricted_solver_that_stops_early_widens_the_bounds_and_hides_nothing(monkeypatch):
    problem, t, encoder = posed()
    own, star = proof(problem, t, encoder), proof(problem, t, solved(problem, t))
    exact = gaps.split(problem, t, encoder, LAM, own, star)
    whole = refit._solve
    monkeypatch.setattr(refit, "_STEPS", 1)
    for factor in (0.9, 3.0):  # a little off, and worse than the encoder itself
        monkeypatch.setattr(refit, "_solve", lambda *a, c=factor: (c * whole(*a)[0], whole(*a)[1]))
        found = gaps.split(problem, t, encoder, LAM, own, star)
        assert (found.amplitude >= 0).all() and (found.support >= 0).all()
        assert (found.gap[1:] > 1e-3 * exact.objective[1:]).all()
        np.testing.assert_allclose(found.amplitude_upper - found.amplitude, found.gap, atol=1e-12)
        for part in ("amplitude", "support"):
            truth, upper = getattr(exact, part), getattr(found, f"{part}_upper")
            assert (truth <= upper + 1e-9).all()
        assert (found.amplitude <= exact.amplitude + 1e-9).all()
        assert (found.support_lower <= exact.support + 1e-9).all()


def test_a_wrong_sign_is_a_wrong_support():
    problem, t, _ = posed(signed=True)
    star = solved(problem, t)
    flipped = Codes(star.indices, -star.values, star.n_latents)
    found = gaps.split(problem, t, flipped, LAM, proof(problem, t, flipped), proof(problem, t, star))
    np.testing.assert_allclose(found.objective, 0.5 * np.square(t).sum(axis=1), rtol=0.5)
    assert found.support.sum() > 0.5 * proof(problem, t, star).objective.sum()


def test_the_restricted_lasso_at_each_tokens_own_lambda():
    problem, t, encoder = posed()
    lam = np.linspace(0.05, 0.3, len(t))
    found = refit.lasso(problem, t, problem.fold(encoder), lam)
    for i in (3, 11, 23):
        one = refit.lasso(problem, t[i : i + 1], problem.fold(encoder).rows(i, i + 1), float(lam[i]))
        assert one.objective[0] == pytest.approx(found.objective[i], rel=1e-9)
    assert (found.gap <= 1e-8 * found.objective).all()


def test_the_nmse_is_split_by_refits():
    from scipy.optimize import nnls

    problem, t, encoder = posed()
    star = solved(problem, t)
    scale = np.linspace(1, 2, len(t))
    found = gaps.nmse_split(problem, t, encoder, star, scale)

    def refitted(codes):
        supports = codes.dense() > 0
        return sum(
            c**2 * (nnls(problem.unit64[s].T, row.astype(np.float64))[1] ** 2 if s.any() else row @ row)
            for c, s, row in zip(scale, supports, t, strict=True)
        )

    energy = np.sum(scale[:, None] ** 2 * t.astype(np.float64) ** 2)
    assert found.energy == pytest.approx(energy)
    assert found.encoder_refit == pytest.approx(refitted(encoder), rel=1e-5)
    assert found.optimum_refit == pytest.approx(refitted(star), rel=1e-5)
    assert found.amplitude > 0
    total = found.amplitude + found.support + found.optimum_refit / energy
    assert total == pytest.approx(found.encoder / energy)


# --- latent by latent ---


def dense_prices(problem, t, v_a, v_star, lam):
    """price, false fires and slack written out: (N, M), (N, M), (N,)."""
    unit, t = problem.unit64, t.astype(np.float64)
    r_a, r_star = t - v_a @ unit, t - v_star @ unit
    delta, lam = r_a - r_star, np.reshape(lam, (-1, 1))
    false = lam * np.abs(v_a) - v_a * (r_star @ unit.T)
    slack = lam * np.abs(v_star) - v_star * (r_star @ unit.T)
    return 0.5 * (v_star - v_a) * (delta @ unit.T) + false, false, slack.sum(axis=1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("reference", ["optimal", "any"])
def test_latents_sum_to_the_price_against_brute_force(reference, signed):
    problem, t, encoder = posed(signed)
    star = solved(problem, t) if reference == "optimal" else posed(signed, seed=4)[2]
    lam = np.linspace(0.05, 0.2, len(t)) if reference == "any" else LAM
    found = gaps.per_latent(problem, t, encoder, star, lam)
    v_a, v_star = (problem.fold(c).csr(np.float64).toarray() for c in (encoder, star))
    price, false, slack = dense_prices(problem, t, v_a, v_star, lam)
    np.testing.assert_allclose(found.per_token.toarray(), price, atol=1e-12)
    np.testing.assert_allclose(found.price, price.sum(axis=0), atol=1e-11)
    np.testing.assert_allclose(found.false_fire, false.sum(axis=0), atol=1e-11)
    np.testing.assert_allclose(found.slack, slack, atol=1e-12)
    gained = primal(problem, t, v_a, lam) - primal(problem, t, v_star, lam)
    np.testing.assert_allclose(price.sum(axis=1) - slack, gained, rtol=1e-9, atol=1e-11)
    assert found.price.sum() - found.slack.sum() == pytest.approx(gained.sum(), rel=1e-9)
    kinds = found.missed + found.spurious + found.rescaled
    np.testing.assert_allclose(kinds, found.price, atol=1e-11)


@pytest.mark.parametrize("signed", [False, True])
def test_at_the_optimum_false_fires_cost_and_the_remainder_is_its_own_gap(signed):
    problem, t, encoder = posed(signed)
    star = solved(problem, t)
    best, own = objective.certify(problem, t, star, LAM), objective.certify(problem, t, encoder, LAM)
    found = gaps.per_latent(problem, t, encoder, star, LAM)
    left = np.asarray(found.per_token.sum(axis=1)) - (own.objective - best.objective)
    # The slack is at most gap + sqrt(2 gap) |z* W|: here the optimum's gap is rounding.
    reach = np.linalg.norm(t - best.residual, axis=1)
    assert (np.abs(left) <= best.gap + np.sqrt(2 * best.gap) * reach + 1e-9).all()
    assert np.abs(left).max() <= 1e-5 * best.objective.max()
    assert found.false_fire.min() >= -1e-5 * best.objective.max()
    both = (encoder.dense() * star.dense() > 0).any(axis=0)
    only_star = ~(encoder.dense() != 0).any(axis=0) & (star.dense() != 0).any(axis=0)
    np.testing.assert_array_equal(found.rescaled[~both], 0)
    np.testing.assert_array_equal(found.false_fire[only_star], 0)
    # False fires cost only where z* does not fire with that sign.
    at = encoder.dense().astype(np.float64) * (encoder.dense() * star.dense() > 0)
    inside = gaps.per_latent(problem, t, from_dense(at.astype(np.float32)), star, LAM)
    assert np.abs(inside.false_fire).max() <= 1e-4 * np.abs(found.false_fire).max()


def test_prices_follow_a_permutation_and_do_not_see_an_atoms_scale():
    atoms, t = sparse_problem(2)
    _, _, encoder = posed(seed=2)
    r = np.random.default_rng(0)
    order, factor = r.permutation(len(atoms)), 2.0 ** r.integers(-3, 4, len(atoms))
    problem = objective.pose_dictionary(atoms)
    star = solved(problem, t)
    other = objective.pose_dictionary((atoms * factor[:, None])[order])
    moved = [from_dense((c.dense() / factor.astype(np.float32))[:, order]) for c in (encoder, star)]
    a, b = gaps.per_latent(problem, t, encoder, star, LAM), gaps.per_latent(other, t, *moved, LAM)
    np.testing.assert_allclose(b.price, a.price[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b.false_fire, a.false_fire[order], rtol=1e-5, atol=1e-6)


def test_equal_codes_and_empty_codes_have_no_price():
    problem, t, encoder = posed()
    same = gaps.per_latent(problem, t, encoder, encoder, LAM)
    np.testing.assert_allclose(same.per_token.sum(axis=1) - same.slack, 0, atol=1e-12)
    nothing = gaps.per_latent(problem, t, empty(t, problem), empty(t, problem), LAM)
    assert not nothing.price.any() and nothing.per_token.nnz == 0


# --- the gap-safe test ---


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_no_latent_of_an_optimum_is_excluded(tol, signed):
    problem, t, _ = posed(signed)
    fires = solved(problem, t).dense() != 0
    codes = solved(problem, t, tol=tol)
    found = objective.certify(problem, t, codes, LAM)
    screen = gaps.possibly_active(problem, found, LAM)
    assert screen.latents.shape == (problem.n_latents,) and screen.count.shape == (len(t),)
    assert not (fires.any(axis=0) & ~screen.latents).any()
    assert (screen.count >= fires.sum(axis=1)).all()
    # Written out in float64, without the allowance for rounding: never more than is kept.
    c = found.residual @ problem.unit64.T
    c = np.abs(c) if signed else np.maximum(c, 0)
    s = np.minimum(1, LAM / c.max(axis=1, keepdims=True))
    kept = s * c + np.sqrt(2 * found.gap)[:, None] * np.linalg.norm(problem.unit64, axis=1) >= LAM
    assert (screen.count >= kept.sum(axis=1)).all()
    if tol == 1e-6:
        assert screen.count.sum() < 0.7 * fires.size


def test_nothing_is_excluded_by_a_poor_code_and_zero_atoms_always_are():
    atoms, t = sparse_problem(0)
    problem = objective.pose_dictionary(np.concatenate([atoms, np.zeros((2, atoms.shape[1]), np.float32)]))
    found = objective.certify(problem, t, empty(t, problem), LAM)
    screen = gaps.possibly_active(problem, found, LAM)
    assert screen.latents[:-2].all() and not screen.latents[-2:].any()
