"""A round of the active set on the device: the small lasso of many tokens, one product over the dictionary, the
certificate it gives and the candidates it names. `active_set` drives it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from amortjax.inference import support
from amortjax.inference.objective import HIGHEST
from amortjax.inference.request import Precision

MOST_EFFORT = 16  # most rounds of the small lasso
_BLOCKS = 512  # candidates are the best of each of this many strided blocks
_NEVER = -1e30  # the gain q of a slot that must stay at zero


def best_of_blocks(score: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best score of each strided block, best `count` blocks: values and indices (n, count); and the largest
    score (n,). score (n, M); of scores below 0 nothing is said.

    A full top-k of M entries costs a good part of the product that made them. Here the row within a block
    takes the place of a value's last bits (2^-16 of it at M = 65 536), so that one vectorised maximum finds
    both. The worst violator is always among them, to those bits.
    """
    n, m = score.shape
    if m <= 4 * _BLOCKS:
        value, index = jax.lax.top_k(score, count)
        return value, index, value[:, 0]
    score = jnp.pad(score, ((0, 0), (0, -m % _BLOCKS))).reshape(n, -1, _BLOCKS)
    rows = score.shape[1]
    mask = (1 << max(1, (rows - 1).bit_length())) - 1
    bits = jax.lax.bitcast_convert_type(jnp.maximum(score, 0.0), jnp.int32) & ~mask
    key = jnp.max(bits | jnp.arange(rows, dtype=jnp.int32)[None, :, None], axis=1)
    # Positive floats and their bits order alike; top_k is fast for floats only.
    _, block = jax.lax.top_k(jax.lax.bitcast_convert_type(key, jnp.float32), count)
    chosen = jnp.take_along_axis(key, block, axis=1)
    value = jax.lax.bitcast_convert_type(chosen & ~mask, jnp.float32)
    index = jnp.minimum((chosen & mask) * _BLOCKS + block, m - 1)
    return value, index, jnp.max(jnp.max(score, axis=1), axis=1)


class Slots(NamedTuple):
    """The candidates of n tokens on the host, the newest last: indices (n, K), their signs (n, K) (1 unless the
    problem is signed), values v >= 0 (n, K), used (n, K) bool."""

    indices: Any
    sign: Any
    v: Any
    used: Any


class Found(NamedTuple):
    """What a round says of each token, (n,) or (n, K) or (n, fresh)."""

    v: Any
    flip: Any  # inactive slots that would do better with the other sign
    gap: Any
    objective: Any
    excess: Any  # largest correlation over the whole dictionary, minus lam
    candidates: Any  # atoms that violate optimality most
    sign: Any
    wanted: Any  # whether they violate it at all


def _grown(unit, gram, t, slots: Slots, fresh: int):
    """The Gram matrix of the slots' atoms, of which `gram` (n, K - fresh, K - fresh) is known, and A t (n, K).
    Unused slots hold some atom or other: they are kept at zero by the small lasso's q."""
    cross, reach = support.inner_products(unit, slots.indices, t, fresh)
    kept = slots.indices.shape[1] - fresh
    if kept == 0:
        return cross, reach
    across = jnp.swapaxes(cross[:, :, :kept], 1, 2)
    return jnp.concatenate([jnp.concatenate([gram, across], axis=2), cross], axis=1), reach


def _product(r: jax.Array, unit: jax.Array, precision: Precision) -> jax.Array:
    """r U^T, float32, (n, M). Lower precisions cost less where the device has them, and a few candidates."""
    if precision == "bfloat16":
        r, unit = r.astype(jnp.bfloat16), unit.astype(jnp.bfloat16)
        return jnp.matmul(r, unit.T, preferred_element_type=jnp.float32)
    return jnp.matmul(
        r, unit.T, precision=jax.lax.Precision.HIGH if precision == "tensorfloat32" else HIGHEST
    )


def _round(
    unit,
    gram,
    t,
    lam,
    inner,
    slots: Slots,
    fresh: int,
    n_new: int,
    signed: bool,
    effort: int,
    precision: Precision,
):
    """One round for a block of tokens; `inner` (n,) is the KKT residual, relative to lam, at which the small
    lasso stops."""
    gram, reach = _grown(unit, gram, t, slots, fresh)
    s = slots.sign
    own, reach = (gram * (s[:, :, None] * s[:, None, :]), reach * s) if signed else (gram, reach)
    rounding = 3e-7 * jnp.max(jnp.where(slots.used, reach, 0.0), axis=1)
    q = jnp.where(slots.used, reach - lam[:, None], _NEVER)
    # Newton steps are for the stubborn few: a block waits for its slowest token.
    patience = jnp.where(effort >= MOST_EFFORT, 4, effort)
    v = support.solve_on_support(own, q, slots.v, jnp.maximum(inner * lam, rounding), effort, patience)
    r = t - support.combined(unit, slots.indices, s * v)
    c = _product(r, unit, precision)
    score, index, top = best_of_blocks(jnp.abs(c) if signed else c, n_new)
    at = s * jnp.take_along_axis(c, slots.indices, axis=1)
    shrink = jnp.where(top > lam, lam / jnp.maximum(top, 1e-30), 1.0)
    energy = jnp.sum(r * r, axis=1)
    slack = jnp.sum(v * jnp.maximum(lam[:, None] - shrink[:, None] * at, 0.0), axis=1)
    known = jnp.any((index[:, :, None] == slots.indices[:, None, :]) & slots.used[:, None, :], axis=2)
    gap, objective = 0.5 * (1 - shrink) ** 2 * energy + slack, 0.5 * energy + lam * jnp.sum(v, axis=1)
    flip = (slots.used & (v == 0) & (at < -lam[:, None])) if signed else jnp.zeros(v.shape, bool)
    wanted = (score > lam[:, None]) & ~known
    return Found(v, flip, gap, objective, top - lam, index, _signs(c, index, signed), wanted), gram


def _signs(c, index, signed: bool):
    if not signed:
        return jnp.ones(index.shape, c.dtype)
    return jnp.where(jnp.take_along_axis(c, index, axis=1) < 0, -1.0, 1.0)


@functools.partial(jax.jit, static_argnames=("block", "fresh", "n_new", "signed", "precision"))
def run_rounds(unit, gram, place, order, n_blocks, args, *, block, fresh, n_new, signed, effort, precision):
    """`_round` over blocks of `block` rows, as many as `n_blocks` (dynamic) says: one compilation serves any
    number of tokens, and only one block's correlations are ever dense. args: (t, lam, inner, slots) of R rows.
    The known Gram entries are those of row `place` (R,) of `gram`, slots `order` (R, K - fresh)."""
    n_slots = args[3].indices.shape[1]

    def one(i, out):
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, i * block, block)  # noqa: E731
        known = None
        if fresh < n_slots:
            # Rows, a transpose and rows again, because whole rows are fast to gather and single entries are not.
            rows, slots = cut(place)[:, None], cut(order)
            known = jnp.swapaxes(gram.at[rows, slots].get(mode="promise_in_bounds"), 1, 2)
            known = known.at[jnp.arange(block)[:, None], slots].get(mode="promise_in_bounds")
        t, lam, inner, own = jax.tree.map(cut, args)
        found = _round(unit, known, t, lam, inner, own, fresh, n_new, signed, effort, precision)
        put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, i * block, 0)  # noqa: E731
        return jax.tree.map(put, out, found)

    n = len(args[0])
    start = _blank(n, n_slots, n_new), jnp.zeros((n, n_slots, n_slots))
    return jax.lax.fori_loop(0, n_blocks, one, start)


def _blank(n: int, n_slots: int, n_new: int) -> Found:
    each, slots, new = jnp.zeros(n), jnp.zeros((n, n_slots)), jnp.zeros((n, n_new))
    return Found(slots, slots > 0, each, each, each, new.astype(jnp.int32), new, new > 0)


@functools.partial(jax.jit, static_argnames=("count", "block", "signed", "precision"))
def first_candidates(unit, t, n_blocks, *, count, block, signed, precision):
    """The atoms best correlated with t (R, D): scores, indices and signs (R, count)."""

    def one(i, out):
        part = jax.lax.dynamic_slice_in_dim(t, i * block, block)
        c = _product(part, unit, precision)
        score, index, _ = best_of_blocks(jnp.abs(c) if signed else c, count)
        found = score, index, _signs(c, index, signed)
        put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, i * block, 0)  # noqa: E731
        return jax.tree.map(put, out, found)

    zeros = jnp.zeros((len(t), count))
    return jax.lax.fori_loop(0, n_blocks, one, (zeros, zeros.astype(jnp.int32), zeros))
