"""What a token's own latents could have done: least squares, and the lasso, on a given support."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from amortjax.inference import support
from amortjax.inference.codes import Codes, chunk_rows, round_up
from amortjax.inference.objective import HIGHEST, Problem

_TARGET = 1e-9  # relative gap at which `lasso` is content
_STEPS = 8  # in float64, on the atoms at work
_ROUNDS = 40  # of changing them
_WIDE = 64  # supports beyond this are solved on a few of their atoms at a time


class Restricted(NamedTuple):
    """The lasso on each token's support. indices (N, K) and folded values (N, K) float64, a slot whose value is
    0 is empty; P there and how far that is at most above the support's minimum, both (N,) float64."""

    indices: np.ndarray
    values: np.ndarray
    objective: np.ndarray
    gap: np.ndarray


@jax.jit
def _solve(unit, t, indices, sign, v, lam):
    """(n, K) amounts >= 0 of the atoms times their signs (0: not used), from v, and the atoms' Gram matrix."""
    atoms = support.gather(unit, indices, sign != 0) * sign[..., None]
    gram = jnp.einsum("njd,nkd->njk", atoms, atoms, precision=HIGHEST)
    q = jnp.einsum("nkd,nd->nk", atoms, t, precision=HIGHEST) - lam
    tol = 1e-6 * jnp.linalg.norm(t, axis=1)
    # A round may free a dense support of no more than one atom.
    return support.solve_on_support(gram, q, v, tol, max_rounds=2 * v.shape[1]), gram


def nnls(unit: jax.Array, t: np.ndarray, folded: Codes) -> Codes:
    """min ||t - v U||^2 over v >= 0 (over each value's own sign, if codes are signed) with support inside the
    given folded codes'. Latents whose refitted value is 0 leave the support."""
    folded = _compact(folded)
    t, sign, zero = np.asarray(t, np.float32), np.sign(folded.values), np.zeros((len(folded), 1), np.float32)

    def part(*columns):
        return np.asarray(_solve(unit, *columns)[0])

    v = _by_chunks(part, unit.shape[1], t, folded.indices, sign, np.abs(folded.values), zero)
    return Codes(folded.indices, sign * v, folded.n_latents)


def lasso(problem: Problem, t: np.ndarray, folded: Codes, lam: np.ndarray | float) -> Restricted:
    """min P(v) over v >= 0 (over each value's own sign, if codes are signed) with support inside the given
    folded codes'. lam: a scalar or (N,), positive: at 0 the gap is vacuous.

    float32 finds the active atoms, a few Newton steps in float64 sharpen their amounts (the float32 solution's
    own gap may be 1e-6 of P), and the certificate looks at the whole support, in float64. Of a wide support the
    largest values are tried first, and what violates optimality joins. Tokens that are not content after all
    rounds keep their honest gap. Work N x K x D.
    """
    folded, n = _compact(folded), len(folded)
    t64 = np.asarray(t, np.float64)
    lam = np.broadcast_to(np.asarray(lam, np.float64), (n,))[:, None]
    sign, v = np.sign(folded.values).astype(np.float64), np.abs(folded.values).astype(np.float64)
    best = Restricted(folded.indices, v.copy(), np.full(n, np.inf), np.full(n, np.inf))
    open_, slots = np.arange(n), _first_slots(sign)
    for _ in range(_ROUNDS):
        index, turn, start = (np.take_along_axis(a[open_], slots, 1) for a in (folded.indices, sign, v))
        amounts = _on_slots(problem, t64[open_], index, turn, start, lam[open_])
        v[open_] = 0.0
        v[open_[:, None], slots] = amounts
        p, gap, slope = _examined(
            problem, t64[open_], folded.indices[open_], sign[open_], v[open_], lam[open_]
        )
        better = gap < best.gap[open_]
        rows = open_[better]
        best.values[rows], best.objective[rows], best.gap[rows] = v[rows], p[better], gap[better]
        np.put_along_axis(slope, slots, 0.0, 1)  # what is at work has had its turn
        left = (gap > _TARGET * p) & (slope > 0).any(axis=1)
        if not left.any():
            break
        open_, slots = open_[left], _next_slots(v[open_[left]], slope[left])
    return best._replace(values=sign * best.values)


def _first_slots(sign: np.ndarray) -> np.ndarray:
    """(n, R) slots to begin with: all, or of a wide support its largest values (`_compact` puts them first)."""
    n, capacity = sign.shape
    return np.tile(np.arange(min(capacity, _WIDE)), (n, 1))


def _next_slots(v: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """(n, R) slots: those in use and the worst violators among the others, at least 16 or all there are."""
    room = min(v.shape[1], round_up(int((v > 0).sum(axis=1).max()) + 16, at_least=32))
    return np.argsort(-np.where(v > 0, np.inf, slope), axis=1, kind="stable")[:, :room]


def _on_slots(
    problem: Problem, t: np.ndarray, indices: np.ndarray, sign: np.ndarray, v: np.ndarray, lam: np.ndarray
) -> np.ndarray:
    """(n, R) amounts, float64: the lasso on these atoms only."""

    def part(t, indices, sign, v, lam):
        v, gram = (np.asarray(a, np.float64) for a in _solve(problem.unit, t, indices, sign, v, lam))
        return _sharpened(problem.unit64[indices] * sign[..., None], gram, t, v, lam)

    return _by_chunks(part, 3 * problem.unit.shape[1], t, indices, sign, v, lam)


def _sharpened(
    atoms: np.ndarray, gram: np.ndarray, t: np.ndarray, v: np.ndarray, lam: np.ndarray
) -> np.ndarray:
    """The best of a few Newton steps from v (n, R) >= 0. float64, but for `gram`, which only steers: an error in
    it slows the steps."""
    best, gap_best = v.copy(), np.full(len(v), np.inf)
    rows = np.arange(len(v))  # the tokens still at it; atoms to v are theirs
    for _ in range(_STEPS):
        residual = t - np.matmul(v[:, None, :], atoms)[:, 0]
        at = np.matmul(atoms, residual[:, :, None])[:, :, 0]
        p, gap = _certified(residual, at, v, lam)
        better = gap < gap_best[rows]
        best[rows[better]], gap_best[rows[better]] = v[better], gap[better]
        left = gap_best[rows] > 0.1 * _TARGET * p
        if not left.any():
            break
        v = np.maximum(v + _direction(gram, v, at - lam), 0.0)
        if not left.all():
            rows, atoms, gram, t, v, lam = (a[left] for a in (rows, atoms, gram, t, v, lam))
    return best


def _certified(residual: np.ndarray, at: np.ndarray, v: np.ndarray, lam: np.ndarray):
    """P and its duality gap, (n,): as `objective.certify`, but the dictionary is the atoms whose products with the
    residual are `at` (n, K)."""
    top = at.max(axis=1, initial=0.0)[:, None]
    s = np.where(top > lam, lam / np.maximum(top, 1e-300), 1.0)
    energy = np.einsum("nd,nd->n", residual, residual)
    slack = np.sum(v * np.maximum(lam - s * at, 0.0), axis=1)
    return 0.5 * energy + np.sum(lam * v, axis=1), 0.5 * (1 - s[:, 0]) ** 2 * energy + slack


def _examined(problem: Problem, t, indices, sign, v, lam):
    """P, its gap on the whole support, and minus the slope of P (n, K), -inf where a slot is empty."""
    used, fires = np.nonzero(sign), np.nonzero(v)
    places, shape = (fires[0], indices[fires]), (len(t), problem.n_latents)
    residual = t - scipy.sparse.csr_array(((v * sign)[fires], places), shape=shape) @ problem.unit64
    at = np.zeros(v.shape)
    at[used] = products(problem.unit64, indices[used], used[0], residual)[0] * sign[used]
    p, gap = _certified(residual, at, v, lam)
    return p, gap, np.where(sign != 0, at - lam, -np.inf)


def products(unit: np.ndarray, column: np.ndarray, row: np.ndarray, *vectors: np.ndarray) -> np.ndarray:
    """U_j . x_n at the places (row n, column j) only, for each of the vectors x (N, D): (vectors, places)."""
    out = np.empty((len(vectors), len(row)))
    step = max(1, (1 << 22) // unit.shape[1])
    for i in range(0, len(row), step):
        part, atoms = slice(i, i + step), unit[column[i : i + step]]
        for result, x in zip(out, vectors, strict=True):
            result[part] = np.einsum("kd,kd->k", atoms, x[row[part]])
    return out


def _direction(gram: np.ndarray, v: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """(n, R): to the minimum of the face of values that are positive or ought to be."""
    diagonal = np.einsum("nkk->nk", gram)
    face = ((v > 0) | (slope > 0)) & (diagonal > 0)
    system = gram * (face[:, :, None] & face[:, None, :])
    # Damped, because atoms may be dependent and float32 Gram matrices a little indefinite.
    np.einsum("nkk->nk", system)[...] += np.where(face, 3e-6 * diagonal, 1.0)
    return np.linalg.solve(system, np.where(face, slope, 0.0)[..., None])[..., 0]


def _by_chunks(part: Callable[..., np.ndarray], width: int, *columns: np.ndarray) -> np.ndarray:
    """`part` of padded chunks of tokens, few shapes; columns are (N, ...): t, indices, ... A padded token is zero,
    and so is its answer. `width` float32 numbers a slot are held at once, beside the Gram matrix."""
    n, capacity = columns[1].shape
    chunk = chunk_rows(n, 4 * capacity * (width + 2 * capacity))
    out = []
    for i in range(0, n, chunk):
        pad = ((0, max(0, i + chunk - n)), (0, 0))
        out.append(part(*(np.pad(column[i : i + chunk], pad) for column in columns))[: min(chunk, n - i)])
    return np.concatenate(out)


def _compact(codes: Codes) -> Codes:
    """The largest values first, cut to what the densest token needs."""
    values, indices = np.asarray(codes.values), np.asarray(codes.indices)
    capacity = min(indices.shape[1], round_up(int(codes.l0.max(initial=0)), at_least=32))
    order = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :capacity]
    indices, values = np.take_along_axis(indices, order, 1), np.take_along_axis(values, order, 1)
    return Codes(indices, values, codes.n_latents)
