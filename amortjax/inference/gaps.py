"""What an encoder's price is made of, exactly: intervals of the gap, amplitude and support, latent by latent.

The price of codes z_a on a token is P(z_a) - P*, P* the optimum's objective at the same lambda. Nothing here
needs z* to be exact: what is not known is returned as an interval or as a remainder, and nothing is clipped
that would hide it. Everything is per token, float64 on the host, and costs N x K x D, but for `possibly_active`.

Signed objectives are those of the dictionary and its negatives, each used with z >= 0: a latent that fires with
the wrong sign has the wrong support. So `split` keeps the encoder's signs, as the refits do.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from amortjax.errors import AmortjaxError
from amortjax.inference import refit
from amortjax.inference.codes import Codes
from amortjax.inference.objective import HIGHEST, Certificate, Objective, Problem, require_same

Lam = np.ndarray | float


class Proof(NamedTuple):
    """P and a dual value of some codes of N tokens, (N,) float64, and what they are P and dual value of. `lam`
    (N,) where tokens differ in it, which the record can't say."""

    objective: np.ndarray
    dual: np.ndarray
    record: Objective
    lam: np.ndarray | None = None

    def rows(self, part: slice) -> "Proof":
        lam = None if self.lam is None else self.lam[part]
        return Proof(self.objective[part], self.dual[part], self.record, lam)


def proof_of(problem: Problem, found: Certificate, lam: Lam) -> Proof:
    """A certificate with its record; lam is the scalar or (N,) it was made at."""
    return Proof(found.objective, found.dual, *_stated(problem, lam, len(found.objective)))


def _stated(problem: Problem, lam: Lam, n: int) -> tuple[Objective, np.ndarray | None]:
    each = np.broadcast_to(np.asarray(lam, np.float64), (n,))
    one = float(each[0]) if n and np.all(each == each[0]) else None
    return dataclasses.replace(problem.record, lam=one), each if one is None else None


def _require_same(own: Proof, others: tuple[Proof, ...]) -> None:
    for other in others:
        require_same(own.record, other.record)
        if own.lam is not None and not np.array_equal(own.lam, np.asarray(other.lam)):
            raise AmortjaxError("these objectives can't be subtracted: their tokens' lambdas differ")


class Interval(NamedTuple):
    """lower <= P(z_a) - P* <= upper for each token, width = upper - lower, all (N,) in objective units, and the
    lowest P (`best`) and the largest dual value (`dual`) that say so."""

    lower: np.ndarray
    upper: np.ndarray
    width: np.ndarray
    best: np.ndarray
    dual: np.ndarray


def interval(own: Proof, *others: Proof) -> Interval:
    """max(0, P(z_a) - P(z_t)) <= P(z_a) - P* <= P(z_a) - (the largest dual value evaluated for the token).

    own: of z_a. others: of any codes of the same tokens under the same objective, else an error. Where the float32
    product has put a dual value a rounding above some P, the interval is the lower bound alone: that is float64's.
    """
    _require_same(own, others)
    best = np.minimum.reduce([proof.objective for proof in (own, *others)])
    dual = np.maximum.reduce([proof.dual for proof in (own, *others)])
    lower = own.objective - best
    upper = np.maximum(own.objective - dual, lower)
    return Interval(lower, upper, upper - lower, best, dual)


class Total(NamedTuple):
    """An interval summed over tokens, objective units, and bounds of (sum P - sum P*) / sum P*."""

    lower: float
    upper: float
    width: float
    relative_lower: float
    relative_upper: float


def total(found: Interval) -> Total:
    """Sums over tokens. relative_upper is infinite where the dual values say nothing (their sum is not positive)."""
    lower, upper, best, dual = (float(np.sum(a)) for a in (found.lower, found.upper, found.best, found.dual))
    relative = lambda above, below: above / below if below > 0 else float(above > 0 and np.inf)  # noqa: E731
    return Total(lower, upper, upper - lower, relative(lower, best), relative(upper, dual))


class Split(NamedTuple):
    """A token's price in two parts, (N,), objective units, each with its bounds: amplitude <= true amplitude <=
    amplitude_upper, support_lower <= true support <= support_upper.

    amplitude + support = P(z_a) - (the lowest P known), exactly. `objective` is P on the encoder's support and
    `gap` how far at most that is above the support's minimum.
    """

    amplitude: np.ndarray
    amplitude_upper: np.ndarray
    support: np.ndarray
    support_lower: np.ndarray
    support_upper: np.ndarray
    objective: np.ndarray
    gap: np.ndarray


def split(problem: Problem, t: np.ndarray, codes: Codes, lam: Lam, own: Proof, *others: Proof) -> Split:
    """Amplitude: P(z_a) - min{P(z): z >= 0, supp z within supp z_a}. Support: the rest, min{...} - P*.

    t (N, D), codes z_a in the SAE's units, own: their proof; others: of better codes, at best the optimum's. Both
    parts are >= 0: z_a is the restricted solution where the solver finds none better, and the restricted solution
    is the best code known where the optimum's tolerance left it a little above.
    """
    record, each = _stated(problem, lam, len(codes))
    _require_same(own, (own._replace(record=record, lam=each), *others))
    found = refit.lasso(problem, t, problem.fold(codes), lam)
    objective = np.minimum(found.objective, own.objective)
    least = np.minimum(found.objective - found.gap, objective)  # the restricted problem's dual value
    known = interval(own, *others)
    best = np.minimum(known.best, objective)
    support = objective - best
    return Split(
        amplitude=own.objective - objective,
        amplitude_upper=own.objective - least,
        support=support,
        support_lower=np.maximum(least - best, 0.0),
        support_upper=np.maximum(objective - known.dual, support),
        objective=objective,
        gap=objective - least,
    )


class NmseSplit(NamedTuple):
    """Squared errors summed over tokens, and `energy`, that of all-zero codes; sums of chunks may be added."""

    encoder: float
    encoder_refit: float
    optimum_refit: float
    energy: float

    @property
    def amplitude(self) -> float:
        """NMSE that least squares on the encoder's own support removes, >= 0."""
        return (self.encoder - self.encoder_refit) / self.energy

    @property
    def support(self) -> float:
        """NMSE that the optimum's support, refitted as well, removes beyond that. May be negative: the optimum
        chose it for P, not for the squared error."""
        return (self.encoder_refit - self.optimum_refit) / self.energy


def nmse_split(
    problem: Problem, t: np.ndarray, codes: Codes, reference: Codes, scale: np.ndarray | float = 1.0
) -> NmseSplit:
    """Errors of codes, of least squares (z >= 0) on their support and on `reference`'s, codes in the SAE's units.
    Not a split of the price: no objective and no lambda enter. scale (N,): of norm_out, for raw units."""
    t64, folded = np.asarray(t, np.float64), problem.fold(codes)
    factor = np.square(np.broadcast_to(np.asarray(scale, np.float64), (len(t),)))
    energy = lambda r: float(factor @ np.einsum("nd,nd->n", r, r))  # noqa: E731
    error = lambda c: energy(t64 - c.csr(np.float64) @ problem.unit64)  # noqa: E731
    refitted = lambda c: error(refit.nnls(problem.unit, t, c))  # noqa: E731
    return NmseSplit(error(folded), refitted(folded), refitted(problem.fold(reference)), energy(t64))


class LatentPrices(NamedTuple):
    """Each latent's share of the price, summed over tokens: (M,) in objective units.

    price = missed + spurious + rescaled, by what happened on the token: only z* fires, only z_a fires (both, if
    their signs differ), both fire with one sign. `false_fire` is the second term of `per_latent`. `slack` (N,) is
    the remainder that an inexact z* leaves: sum_j price_j - slack = P(z_a) - P(z*), exactly.
    """

    price: np.ndarray
    false_fire: np.ndarray
    missed: np.ndarray
    spurious: np.ndarray
    rescaled: np.ndarray
    slack: np.ndarray
    per_token: scipy.sparse.csr_array  # (N, M): price_j, stored where either code fires


def per_latent(problem: Problem, t: np.ndarray, codes: Codes, reference: Codes, lam: Lam) -> LatentPrices:
    """The price latent by latent, independent of any order: with r* the reference's residual and delta = r_a - r*,

        price_j = 1/2 (z*_j - z_aj) W_j . delta + lam w_j |z_aj| - z_aj W_j . r*

    Half the first term, because P is quadratic: sum_j (z*_j - z_aj) W_j = delta, so the first terms sum to
    1/2 ||delta||^2. The second is >= 0 at an optimum, where |W_j . r*| <= lam w_j, with equality where z*_j fires:
    it is the cost of false fires. slack = sum_j (lam w_j |z*_j| - z*_j W_j . r*) is 0 there. Nothing is clipped:
    slightly negative terms say that the reference is not exact. Codes in the SAE's units, t (N, D).
    """
    n, m = len(codes), problem.n_latents
    a, star = (problem.fold(c).csr(np.float64) for c in (codes, reference))
    row, column, own, best = _union(a, star, m)
    lam = np.broadcast_to(np.asarray(lam, np.float64), (n,))[row]
    residual = np.asarray(t, np.float64) - star @ problem.unit64
    toward, at = refit.products(problem.unit64, column, row, (star - a) @ problem.unit64, residual)
    false_fire = lam * np.abs(own) - own * at
    price = 0.5 * (best - own) * toward + false_fire
    both = own * best > 0
    missed = np.where(both, 0.0, 0.5 * best * toward)
    over_tokens = lambda terms: np.bincount(column, terms, m)  # noqa: E731
    return LatentPrices(
        price=over_tokens(price),
        false_fire=over_tokens(false_fire),
        missed=over_tokens(missed),
        spurious=over_tokens(np.where(both, 0.0, price - missed)),
        rescaled=over_tokens(np.where(both, price, 0.0)),
        slack=np.bincount(row, lam * np.abs(best) - best * at, n),
        per_token=scipy.sparse.csr_array((price, (row, column)), shape=(n, m)),
    )


def _union(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array, m: int) -> tuple[np.ndarray, ...]:
    """Token, latent and both values, wherever either code fires. (a - b would drop entries that are equal.)"""
    tokens = np.arange(len(a.indptr) - 1, dtype=np.int64)
    place_a, place_b = (np.repeat(tokens, np.diff(c.indptr)) * m + c.indices for c in (a, b))
    every = np.union1d(place_a, place_b)
    own, other = np.zeros(len(every)), np.zeros(len(every))
    own[np.searchsorted(every, place_a)], other[np.searchsorted(every, place_b)] = a.data, b.data
    return every // m, every % m, own, other


class Screen(NamedTuple):
    """What the gap-safe test could not exclude: `count` (n,) latents of each token, which bounds the L0 of every
    optimum; `latents` (M,) bool, on any of the tokens. The others are certified dead on them."""

    count: np.ndarray
    latents: np.ndarray


def possibly_active(problem: Problem, found: Certificate, lam: Lam) -> Screen:
    """Latents not proved inactive: s (U_j . r)_+ + sqrt(2 gap) ||U_j|| < lam proves that j is 0 at every optimum
    (gap-safe sphere test, Ndiaye et al. 2017). One chunk of tokens, lam > 0; (n, M) float32 in memory.

    A float32 product errs by about sqrt(D) eps ||U_j|| ||r|| (Higham & Mary 2019). That much is allowed for in the
    product, and in the gap, which one such error of the scale s moves by sum_j v_j times it.
    """
    lam = np.broadcast_to(np.asarray(lam, np.float64), found.objective.shape)
    energy = np.einsum("nd,nd->n", found.residual, found.residual)
    error = 2.0**-24 * np.sqrt(found.residual.shape[1] * energy)
    l1 = np.maximum(found.objective - 0.5 * energy, 0.0) / lam
    radius = np.sqrt(2 * (found.gap + error * l1)) + error
    arrays = (jnp.asarray(a, jnp.float32) for a in (found.residual, lam, radius))
    count, latents = _not_excluded(problem.unit, *arrays, problem.signed)
    return Screen(np.asarray(count, np.int64), np.asarray(latents))


@functools.partial(jax.jit, static_argnames="signed")
def _not_excluded(unit: jax.Array, residual: jax.Array, lam: jax.Array, radius: jax.Array, signed: bool):
    c = jnp.matmul(residual, unit.T, precision=HIGHEST)
    c = jnp.abs(c) if signed else jnp.maximum(c, 0.0)
    norms = jnp.linalg.norm(unit, axis=1)
    s = jnp.minimum(1.0, lam / jnp.maximum(jnp.max(c, axis=1), 1e-30))
    # The factor is for the roundings of this comparison itself.
    open_ = (s[:, None] * c + radius[:, None] * norms >= lam[:, None] * (1 - 1e-6)) & (norms > 0)
    return jnp.sum(open_, axis=1), jnp.any(open_, axis=0)
