"""The one objective, its record and its certificate.

    P(z) = 1/2 ||t - z W||^2 + lam * sum_j w_j |z_j|        over z >= 0 (or any z, if signed)

t (D,) is what the decoder has to explain (input minus the output bias), W (M, D) the atoms as decode applies
them, w_j = ||W_j|| so that rescaling an atom changes nothing. The papers' form ||.||^2 + lam ||.||_1 is twice
this with twice the lambda: lam_full = 2 lam, P_full = 2 P.

Every solver works on the folded problem U_j = W_j / w_j, v_j = w_j z_j, in which the penalty is lam * sum v.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from amortjax.errors import AmortjaxError
from amortjax.inference.codes import Codes
from amortjax.saes import encoders
from amortjax.saes.sae import SAE, NormStats, atoms, is_transcoder, norm_in

HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Objective:
    """The record that travels with codes, gaps and results. Objectives of different records are never
    subtracted (`require_same`)."""

    form: str = "half"
    lam: float | None = None  # None: one for each token, or none in force
    weights: Literal["norm", "unit"] = "norm"
    sign: Literal["nonneg", "signed"] = "nonneg"
    offset: Literal["b_out", "none"] = "b_out"
    input_scale: str = "none"  # the SAE's input normalisation: units of P and lambda
    target: str = "input"


def require_same(a: Objective, b: Objective) -> None:
    """Raises unless P of the two records may be subtracted."""
    if a != b:
        both = zip(dataclasses.asdict(a).items(), dataclasses.asdict(b).values(), strict=True)
        differ = ", ".join(f"{name} {x} and {y}" for (name, x), y in both if x != y)
        raise AmortjaxError(f"these objectives can't be subtracted: {differ}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A dictionary posed for inference: `unit` (M, D) atoms divided by `weights` (M,); zero atoms stay zero
    and are never used. `dictionary`: the atoms as decode applies them, if they are not `unit` itself: solvers
    work on the rounded quotients, certificates on these."""

    unit: jax.Array
    weights: jax.Array
    record: Objective
    dictionary: jax.Array | None = None

    @property
    def n_latents(self) -> int:
        return self.unit.shape[0]

    @property
    def signed(self) -> bool:
        return self.record.sign == "signed"

    @functools.cached_property
    def unit64(self) -> np.ndarray:
        """(M, D) in float64 on the host, for residuals of certificates: not rounded after the division."""
        if self.dictionary is None:
            return np.asarray(self.unit, np.float64)
        return np.asarray(self.dictionary, np.float64) / self.weights64[:, None]

    @functools.cached_property
    def weights64(self) -> np.ndarray:
        """(M,) float64; 1 for zero atoms."""
        if self.dictionary is None or self.record.weights == "unit":
            return np.asarray(self.weights, np.float64)
        norms = np.sqrt(np.einsum("md,md->m", *(np.asarray(self.dictionary),) * 2, dtype=np.float64))
        return np.where(norms > 0, norms, 1.0)

    @functools.cached_property
    def rank_bound(self) -> int:
        """An optimum in general position has at most rank(W) non-zeros; min(live atoms, D) bounds the rank."""
        return int(min(self.unit.shape[1], np.count_nonzero(np.any(np.asarray(self.unit) != 0, axis=1))))

    @functools.cached_property
    def lipschitz(self) -> float:
        """||U||_2^2, by 100 power steps, times 1.02: a power iterate never exceeds the true value."""
        return float(_largest_eigenvalue(self.unit)) * 1.02 + 1e-12

    def fold(self, codes: Codes) -> Codes:
        return codes.scaled(np.asarray(self.weights))

    def unfold(self, codes: Codes) -> Codes:
        return codes.scaled(1 / np.asarray(self.weights))


@functools.partial(jax.jit, static_argnames="steps")
def _largest_eigenvalue(unit: jax.Array, steps: int = 100) -> jax.Array:
    start = jax.random.normal(jax.random.key(0), (unit.shape[1],))

    def step(_, v):
        v = jnp.matmul(jnp.matmul(unit, v, precision=HIGHEST), unit, precision=HIGHEST)
        return v / (jnp.linalg.norm(v) + 1e-30)

    v = jax.lax.fori_loop(0, steps, step, start)
    return jnp.sum(jnp.square(jnp.matmul(unit, v, precision=HIGHEST))) / (jnp.sum(v * v) + 1e-30)


def pose_dictionary(dictionary: ArrayLike, record: Objective | None = None) -> Problem:
    """A Problem from atoms (M, D), without an SAE."""
    record = record or Objective()
    dictionary = jnp.asarray(dictionary, jnp.float32)
    norms = jnp.linalg.norm(dictionary, axis=1)
    weights = jnp.where(norms > 0, norms, 1.0) if record.weights == "norm" else jnp.ones_like(norms)
    return Problem(dictionary / weights[:, None], weights, record, dictionary)


def pose(
    sae: SAE,
    weights: Literal["norm", "unit"] = "norm",
    offset: Literal["b_out", "none"] = "b_out",
    signed: bool | None = None,
) -> Problem:
    """The inference problem of an SAE, in its decoder's space. Encoders that can emit negative codes are
    posed signed, unless `signed` says otherwise."""
    signed = encoders.VARIANTS[sae.variant].signed if signed is None else signed
    sign = "signed" if signed else "nonneg"
    record = Objective(weights=weights, offset=offset, sign=sign, input_scale=sae.norm)
    return pose_dictionary(atoms(sae), record)


def targets(
    sae: SAE, x: ArrayLike, y: ArrayLike | None = None, offset: str = "b_out"
) -> tuple[jax.Array, NormStats]:
    """t (N, D_out) = norm_in(x) - b_dec, or, for a transcoder, its recorded output y minus skip and bias; and
    what takes a reconstruction back to raw units."""
    if y is None and is_transcoder(sae):
        raise AmortjaxError("this is a transcoder: its codes explain an output, pass it as target=y")
    normed, stats = norm_in(sae, jnp.asarray(x, jnp.float32))
    if y is not None:
        normed = jnp.asarray(y, jnp.float32)
        if "W_skip" in sae.extra:
            normed = normed - jnp.matmul(jnp.asarray(x, jnp.float32), sae.extra["W_skip"], precision=HIGHEST)
    return (normed - sae.b_dec if offset == "b_out" else normed), stats


class Certificate(NamedTuple):
    """Per token, float64 (N,): P, its duality gap (objective units), gap / P (0 where both are 0), the dual
    value P - gap, and the residual t - z W (N, D) float64."""

    objective: np.ndarray
    gap: np.ndarray
    relative_gap: np.ndarray
    dual: np.ndarray
    residual: np.ndarray


@functools.partial(jax.jit, static_argnames="signed")
def _correlations(unit: jax.Array, residual: jax.Array, indices: jax.Array, signed: bool):
    """max_j of U_j . r (or |U_j . r|), (N,), and U_j . r at `indices` (N, K)."""
    c = jnp.matmul(residual, unit.T, precision=HIGHEST)
    return jnp.max(jnp.abs(c) if signed else c, axis=1), jnp.take_along_axis(c, indices, axis=1)


_EXACT_BELOW = 0.01  # lambda / ||r|| below which a float32 product is too coarse for a certificate
_ROUNDING = 2.4e-7  # four float32 units: what such a product may be off by, relative to ||r||


@functools.partial(jax.jit, static_argnames="signed")
def _off_support(unit: jax.Array, residual: jax.Array, indices: jax.Array, used: jax.Array, signed: bool):
    """As the first of `_correlations`, of atoms that are not used."""
    c = jnp.matmul(residual, unit.T, precision=HIGHEST)
    rows = jnp.arange(len(c))[:, None]
    hidden = jnp.zeros(c.shape, bool).at[rows, indices].max(used)
    return jnp.max(jnp.where(hidden, -jnp.inf, jnp.abs(c) if signed else c), axis=1)


def _exact_correlations(problem: Problem, residual: np.ndarray, indices: np.ndarray, v: np.ndarray):
    """As `_correlations`, in float64 for the atoms in use and with an allowance for rounding for the others."""
    top, at = [], []
    for i in range(0, len(v), 64):
        part = slice(i, i + 64)
        r, j, used, n = residual[part], indices[part], v[part] != 0, len(v[part])
        exact = np.einsum("nkd,nd->nk", problem.unit64[j], r)
        pad = lambda a: np.pad(a, ((0, 64 - n), (0, 0)))  # noqa: B023, E731
        off = _off_support(problem.unit, pad(r.astype(np.float32)), pad(j), pad(used), problem.signed)
        off = np.asarray(off, np.float64)[:n] + _ROUNDING * np.linalg.norm(r, axis=1)
        on = np.where(used, np.abs(exact) if problem.signed else exact, -np.inf).max(axis=1)
        top.append(np.maximum(on, off))
        at.append(exact)
    return np.concatenate(top), np.concatenate(at)


def _parts(n: int, n_latents: int) -> list[slice]:
    """Tokens at a time, so that one part's correlations with the dictionary fit in 256 MiB."""
    rows = max(16, min(1024, (256 << 20) // (4 * n_latents)))
    return [slice(i, i + rows) for i in range(0, max(n, 1), rows)]


def certify(problem: Problem, t: np.ndarray, codes: Codes, lam: np.ndarray | float) -> Certificate:
    """Objective and duality gap of any codes (in the SAE's units) at `lam`, a scalar or (N,).

    theta = s r with s = min(1, lam / max_j U_j . r) is dual feasible, and
    gap = 1/2 (1-s)^2 ||r||^2 + sum_j |v_j| (lam - s sign(v_j) U_j . r) is a sum of non-negative terms. r is
    formed in float64 from the returned codes; the one full product is float32, with an allowance for its rounding
    where lambda is small against ||r||.
    """
    lam = np.broadcast_to(np.asarray(lam, np.float64), (len(codes),))
    parts = _parts(len(codes), problem.n_latents)
    found = [
        _certify(problem, t[p], Codes(codes.indices[p], codes.values[p], codes.n_latents), lam[p])
        for p in parts
    ]
    return (
        found[0] if len(found) == 1 else Certificate(*(np.concatenate(c) for c in zip(*found, strict=True)))
    )


def _certify(problem: Problem, t: np.ndarray, codes: Codes, lam: np.ndarray) -> Certificate:
    t64, indices = np.asarray(t, np.float64), np.asarray(codes.indices)
    v = np.asarray(codes.values, np.float64) * problem.weights64[indices]
    if not problem.signed and v.size and v.min() < 0:
        raise AmortjaxError("negative codes under a non-negative objective: pose the SAE with signed=True")
    residual = t64 - Codes(indices, v, problem.n_latents).csr(np.float64) @ problem.unit64
    top, at = _correlations(problem.unit, jnp.asarray(residual, jnp.float32), indices, problem.signed)
    top, at = np.array(top, np.float64), np.array(at, np.float64)
    energy = np.einsum("nd,nd->n", residual, residual)
    coarse = np.flatnonzero((lam > 0) & (lam < _EXACT_BELOW * np.sqrt(energy)))
    if len(coarse):
        top[coarse], at[coarse] = _exact_correlations(problem, residual[coarse], indices[coarse], v[coarse])
    s = np.where(top > lam, lam / np.maximum(top, 1e-300), 1.0)
    slack = np.abs(v) * np.maximum(lam[:, None] - s[:, None] * np.sign(v) * at, 0.0)
    objective = 0.5 * energy + lam * np.abs(v).sum(axis=1)
    gap = 0.5 * (1 - s) ** 2 * energy + slack.sum(axis=1)
    relative = np.divide(gap, objective, out=np.zeros_like(gap), where=objective > 0)
    return Certificate(objective, gap, relative, objective - gap, residual)


@functools.partial(jax.jit, static_argnames="signed")
def _lam_max(unit: jax.Array, t: jax.Array, signed: bool) -> jax.Array:
    c = jnp.matmul(t, unit.T, precision=HIGHEST)
    return jnp.maximum(jnp.max(jnp.abs(c) if signed else c, axis=1), 0.0)


def lam_max(problem: Problem, t: ArrayLike) -> np.ndarray:
    """(N,): the smallest lambda at which a token's optimum is zero, max_j (W_j . t)_+ / w_j (half form)."""
    t = np.asarray(t, np.float32)
    parts = _parts(len(t), problem.n_latents)
    return np.concatenate([np.asarray(_lam_max(problem.unit, t[p], problem.signed)) for p in parts])
