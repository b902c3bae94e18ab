"""Certified optimal codes: an active-set method that looks at the whole dictionary only to find violators.

Each round solves the lasso on a token's few candidate atoms (`support`), then takes one full product U r, which
both certifies the token (duality gap) and names the atoms that violate optimality. Certified tokens leave; the
others keep their active atoms, take in the worst violators and go on. Candidates grow when a token needs more
room; nothing is truncated. A token that can't be certified within the rounds comes back with its honest gap.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference import support
from amortjax.inference.codes import Codes, chunk_rows, round_up
from amortjax.inference.objective import HIGHEST, Problem, certify
from amortjax.inference.request import Request, Solved

MAX_ROUNDS = 60
_BLOCKS = 128  # violators are the best of each of this many strided blocks
_DOUBTFUL = 0.02  # lambda / ||t|| below which float32's own gap is checked in float64
_TIGHTEST = 1e-7  # KKT residual of the small lasso relative to lam; below that float32 has nothing to say


class Round(NamedTuple):
    """What a round returns of each token: device arrays, then host arrays once gathered."""

    v: Any  # (n, K) values on the support it was given
    gap: Any  # (n,)
    objective: Any  # (n,)
    excess: Any  # (n,) largest correlation over the whole dictionary, minus lam
    violators: Any  # (n, n_new) atoms to add
    wanted: Any  # (n, n_new) bool: whether they violate optimality


def best_of_blocks(score: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The best score of each strided block, best `count` blocks: values and indices (n, count).

    score (n, M). A full top-k of M entries costs more than the product that made them; the best of each of
    128 blocks is one pass. The worst violator is always among them.
    """
    n, m = score.shape
    padded = jnp.pad(score, ((0, 0), (0, -m % _BLOCKS)), constant_values=-jnp.inf)
    blocks = padded.reshape(n, -1, _BLOCKS)
    _, block = jax.lax.top_k(jnp.max(blocks, axis=1), count)
    inside = jnp.take_along_axis(blocks, block[:, None, :], axis=2)
    row = jnp.argmax(inside, axis=1)
    value = jnp.take_along_axis(inside, row[:, None, :], axis=1)[:, 0, :]
    return value, jnp.minimum(row * _BLOCKS + block, m - 1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="count")
def _start(unit: jax.Array, t: jax.Array, lam: jax.Array, count: int):
    """The atoms best correlated with t, and whether they could be active at all."""
    value, index = best_of_blocks(jnp.matmul(t, unit.T, precision=HIGHEST), count)
    return index, value > lam[:, None]


@functools.partial(jax.jit, static_argnames="n_new")
def _round(unit, t, lam, inner, indices, used, v, n_new: int) -> Round:
    """One round for n tokens; `inner` (n,) is the KKT residual, relative to lam, at which the small lasso stops."""
    atoms = support.gather(unit, indices, used)
    gram = jnp.einsum("njd,nkd->njk", atoms, atoms, precision=HIGHEST)
    q = jnp.einsum("nkd,nd->nk", atoms, t, precision=HIGHEST) - jnp.where(used, lam[:, None], 1.0)
    rounding = 3e-7 * jnp.max(jnp.where(used, q + lam[:, None], 0.0), axis=1)
    v = support.solve_on_support(gram, q, v, jnp.maximum(inner * lam, rounding))
    r = t - jnp.einsum("nk,nkd->nd", v, atoms, precision=HIGHEST)
    c = jnp.matmul(r, unit.T, precision=HIGHEST)
    top = jnp.max(c, axis=1)
    s = jnp.where(top > lam, lam / jnp.maximum(top, 1e-30), 1.0)
    at = jnp.einsum("nkd,nd->nk", atoms, r, precision=HIGHEST)
    energy = jnp.sum(r * r, axis=1)
    slack = jnp.sum(v * jnp.maximum(lam[:, None] - s[:, None] * at, 0.0), axis=1)
    objective = 0.5 * energy + lam * jnp.sum(v, axis=1)
    score, index = best_of_blocks(c, n_new)
    known = jnp.any((index[:, :, None] == indices[:, None, :]) & used[:, None, :], axis=2)
    return Round(
        v, 0.5 * (1 - s) ** 2 * energy + slack, objective, top - lam, index, (score > lam[:, None]) & ~known
    )


class _State(NamedTuple):
    """Support of every token on the host, grown together: indices and values (N, K), used (N, K) bool."""

    indices: np.ndarray
    v: np.ndarray
    used: np.ndarray


def _initial(unit, t, lam, start: Codes | None) -> _State:
    """From given codes' supports, or from the best-correlated atoms."""
    if start is not None:
        v = np.maximum(np.asarray(start.values), 0.0)
        return _packed(np.asarray(start.indices), v, v > 0)
    index, used = _start(unit, t, lam, min(48, unit.shape[0], _BLOCKS))
    return _packed(np.asarray(index), np.zeros(index.shape, np.float32), np.asarray(used))


def _packed(indices: np.ndarray, v: np.ndarray, used: np.ndarray, room: int = 0) -> _State:
    """Used slots first, the capacity a power of two with `room` to spare."""
    order = np.argsort(~used, axis=1, kind="stable")
    indices, v, used = (np.take_along_axis(a, order, axis=1) for a in (indices, v, used))
    capacity = round_up(int(used.sum(axis=1).max(initial=0)) + room, at_least=32)
    pad = ((0, 0), (0, max(0, capacity - indices.shape[1])))
    return _State(*(np.pad(a, pad)[:, :capacity] for a in (indices, v, used)))


def _advance(state: _State, out: Round) -> _State:
    """Active atoms stay, violators come in at zero."""
    v = np.asarray(out.v)
    indices = np.concatenate([state.indices, np.asarray(out.violators)], axis=1)
    values = np.concatenate([v, np.zeros(out.violators.shape, v.dtype)], axis=1)
    used = np.concatenate([state.used & (v > 0), np.asarray(out.wanted)], axis=1)
    return _packed(indices, values, used)


def _run_round(unit, t, lam, inner, state: _State) -> Round:
    """A round over all the tokens, in padded chunks of few shapes."""
    n, capacity = state.indices.shape
    n_new = min(max(12, capacity // 4), _BLOCKS, unit.shape[0])
    chunk = chunk_rows(n, 4 * max(capacity * (unit.shape[1] + 2 * capacity), 2 * unit.shape[0]))
    parts = []
    for i in range(0, n, chunk):
        pad = lambda a: np.pad(a[i : i + chunk], [(0, max(0, i + chunk - n))] + [(0, 0)] * (a.ndim - 1))  # noqa: B023, E731
        args = (
            pad(t),
            np.maximum(pad(lam), 1e-30),
            pad(inner),
            pad(state.indices),
            pad(state.used),
            pad(state.v),
        )
        out = _round(unit, *args, n_new=n_new)
        parts.append([np.asarray(a)[: min(chunk, n - i)] for a in out])
    return Round(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def optimum(
    problem: Problem, t: np.ndarray, lam: np.ndarray, start: Codes | None, tol: float = 1e-4
) -> tuple[Codes, np.ndarray]:
    """Optimal folded codes of t (N, D) at lam (N,) to a relative gap of `tol`, and the rounds each token took.

    `start`: folded codes to begin from, or None. With lam = 0 it stops at the KKT conditions of non-negative
    least squares (relative to ||t||), where the scaled dual point says nothing.
    """
    unit, t = problem.unit, np.asarray(t, np.float32)
    lam = np.broadcast_to(np.asarray(lam, np.float32), (len(t),))
    n_latents, norm = unit.shape[0], np.linalg.norm(t, axis=1)
    state = _initial(unit, t, lam, start)
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    rows, rounds = np.arange(len(t)), np.zeros(len(t), np.int32)
    best = np.full(len(t), np.inf)
    inner = np.full(len(t), max(0.1 * np.sqrt(tol), _TIGHTEST), np.float32)
    for i in range(MAX_ROUNDS):
        out = _run_round(unit, t[rows], lam[rows], inner[rows], state)
        rounds[rows] = i + 1
        optimal = np.where(
            lam[rows] > 0, out.gap <= 0.5 * tol * out.objective, out.excess <= 1e-5 * norm[rows]
        )
        # Without a violator it is the small lasso that wants accuracy; at its tightest, what remains is rounding.
        idle = ~np.any(out.wanted, axis=1)
        stuck = idle & (inner[rows] <= _TIGHTEST)
        # So it is where lambda is small: near the rank, float32 trades one atom for another without an end.
        stuck |= (lam[rows] < _DOUBTFUL * norm[rows]) & (out.objective >= best[rows] * (1 - 1e-6))
        best[rows] = np.minimum(best[rows], out.objective)
        inner[rows[idle]] = np.maximum(inner[rows[idle]] * 0.1, _TIGHTEST)
        done = optimal | stuck | (i == MAX_ROUNDS - 1)
        kept.append((rows[done], state.indices[done], out.v[done]))
        if done.all():
            break
        rows, left = rows[~done], ~done
        state = _advance(_State(*(a[left] for a in state)), Round(*(a[left] for a in out)))
    codes = _gathered(kept, len(t), n_latents)
    # Where lambda is small against ||t||, float32 can take a gap for closed that is not.
    doubtful = np.flatnonzero((lam > 0) & (lam < _DOUBTFUL * norm))
    return _mended(problem, t, lam, codes, doubtful, tol), rounds


def solve(request: Request) -> Solved:
    """Certified optima; signed problems are posed with the atoms and their negatives, of which an optimum never
    uses both."""
    problem, lam, tol = request.problem, request.lam, request.settings.tol
    if not problem.signed:
        return optimum(problem, request.t, lam, request.start, tol)
    both = jnp.concatenate([problem.unit, -problem.unit])
    doubled = Problem(both, jnp.ones(len(both)), dataclasses.replace(problem.record, sign="nonneg"))
    codes, rounds = optimum(doubled, request.t, lam, None, tol)
    m = problem.n_latents
    negative = codes.indices >= m
    indices = np.where(negative, codes.indices - m, codes.indices)
    return Codes(indices, np.where(negative, -codes.values, codes.values), m), rounds


def _mended(
    problem: Problem, t: np.ndarray, lam: np.ndarray, codes: Codes, rows: np.ndarray, tol: float
) -> Codes:
    """The codes, with those of `rows` that a float64 certificate refuses solved again in float64."""
    if not len(rows):
        return codes
    own = Codes(codes.indices[rows], codes.values[rows], codes.n_latents)
    proof = certify(problem, t[rows], problem.unfold(own), lam[rows])
    for i in rows[proof.relative_gap > tol]:
        codes.values[i] = _polished(problem.unit64, t[i], float(lam[i]), codes.indices[i], codes.values[i])
    return codes


def _polished(unit: np.ndarray, t: np.ndarray, lam: float, indices: np.ndarray, v: np.ndarray) -> np.ndarray:
    """One token's values (K,) on its support, solved again in float64: for the few that float32 leaves just
    short of the tolerance (lambda small against ||t||, or nearly dependent atoms)."""
    atoms = unit[indices]
    z, face = v.astype(np.float64), v > 0
    for _ in range(int(face.sum())):
        a = atoms[face]
        target = np.linalg.lstsq(a @ a.T, a @ t - lam, rcond=1e-12)[0]
        step = target - z[face]
        falling = step < 0
        length = min(1.0, np.min(z[face][falling] / -step[falling], initial=1.0))
        z[face] = np.maximum(z[face] + length * step, 0.0)
        face &= z > 1e-14 * np.abs(z).max(initial=0.0)
        z[~face] = 0.0
        if length == 1.0:
            break
    return z.astype(np.float32)


def _gathered(kept: list, n: int, n_latents: int) -> Codes:
    """The codes of all tokens in order, with no more slots than the densest needs."""
    parts = [(rows, _packed(indices, v, v > 0)) for rows, indices, v in kept if len(rows)]
    capacity = max([part.indices.shape[1] for _, part in parts], default=16)
    indices, values = np.zeros((n, capacity), np.int32), np.zeros((n, capacity), np.float32)
    for rows, part in parts:
        width = part.indices.shape[1]
        indices[rows, :width], values[rows, :width] = part.indices, np.where(part.used, part.v, 0.0)
    return Codes(indices, values, n_latents)
