"""Products with a sparse code whose gradients touch the active latents only.

A batch's code is a list of T entries (row, latent, value). A dense step multiplies (N, M) matrices five
times; with these functions only the encoder's product is dense, the rest costs T x D. Entries go through in
short chunks: a whole (T, D) array would not fit the cache, which on a CPU costs more than the arithmetic.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp

# Numbers in flight at a time on an accelerator: 256 MiB in float32.
ACCELERATOR = 2**26


def chunk(width: int) -> int:
    """Entries per chunk of rows of `width`. 256 was the fastest of 32 to 2048 on a CPU; an accelerator prefers all at
    once, as long as that stays small beside its memory."""
    return 256 if jax.default_backend() == "cpu" else max(ACCELERATOR // width, 256)


def _over_chunks(body, init, width: int, *entries: jax.Array):
    """Folds body(carry, chunk start, *chunks of the entries) over entries (T,), T padded with zeros."""
    total = entries[0].shape[0]
    size = min(chunk(width), total)
    pad = -total % size
    padded = [jnp.pad(entry, (0, pad)) for entry in entries]

    def step(i, carry):
        chunks = [jax.lax.dynamic_slice(entry, (i * size,), (size,)) for entry in padded]
        return body(carry, i * size, *chunks)

    return jax.lax.fori_loop(0, (total + pad) // size, step, init), pad


def _outer_sum(to: jax.Array, of: jax.Array, weights: jax.Array, table: jax.Array, n: int) -> jax.Array:
    """out (n, D), out[to_t] += weights_t * table[of_t]. Padding has weight 0."""

    def body(out, _, to, of, weights):
        return out.at[to].add(weights[:, None] * table[of])

    width = table.shape[1]
    return _over_chunks(body, jnp.zeros((n, width), table.dtype), width, to, of, weights)[0]


def _inner(left: jax.Array, i: jax.Array, right: jax.Array, j: jax.Array) -> jax.Array:
    """(T,): left[i_t] . right[j_t]."""
    total, width = i.shape[0], left.shape[1]
    ones = jnp.ones((width,), left.dtype)

    def body(out, start, i, j):
        # A product with ones, because XLA's CPU backend is four times slower at the plain sum over the last
        # axis.
        dots = jnp.matmul(left[i] * right[j], ones, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.dynamic_update_slice(out, dots, (start,))

    room = jnp.zeros((total + (-total % min(chunk(width), total)),), left.dtype)
    return _over_chunks(body, room, width, i, j)[0][:total]


def decode(values: jax.Array, w_dec: jax.Array, rows: jax.Array, latents: jax.Array, n: int) -> jax.Array:
    """values (T,), w_dec (M, D), rows and latents (T,) -> (n, D): the sum of values_t * w_dec[latents_t]
    per row."""
    # The decorated function's type is lost, so it stays private.
    return cast(jax.Array, _decode(values, w_dec, rows, latents, n))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _decode(values, w_dec, rows, latents, n):
    return _outer_sum(rows, latents, values, w_dec, n)


def _decode_fwd(values, w_dec, rows, latents, n):
    return _decode(values, w_dec, rows, latents, n), (values, w_dec, rows, latents)


def _decode_bwd(n, saved, slope):
    values, w_dec, rows, latents = saved
    by_value = _inner(slope, rows, w_dec, latents)
    return by_value, _outer_sum(latents, rows, values, slope, w_dec.shape[0]), None, None


_decode.defvjp(_decode_fwd, _decode_bwd)


@jax.custom_vjp
def preactivations(
    values: jax.Array, x: jax.Array, pre_bias: jax.Array, w_enc: jax.Array, b_enc: jax.Array, rows: jax.Array,
    latents: jax.Array,
) -> jax.Array:  # fmt: skip
    """The entries (x - pre_bias)[row] . w_enc[latent] + b_enc[latent] of the pre-activations, already
    known: `values` (T,) passes through, and the gradient goes to pre_bias (D,), w_enc (M, D) and b_enc
    (M,), none to x (N, D)."""
    return values


def _preactivations_fwd(values, x, pre_bias, w_enc, b_enc, rows, latents):
    return values, (x, pre_bias, w_enc, rows, latents)


def _preactivations_bwd(saved, slope):
    x, pre_bias, w_enc, rows, latents = saved
    by_w_enc = _outer_sum(latents, rows, slope, x - pre_bias, w_enc.shape[0])
    by_b_enc = jnp.zeros((w_enc.shape[0],), slope.dtype).at[latents].add(slope)
    # Each entry's slope reaches pre_bias through -w_enc[latent]; summed by latent first, that is one small
    # product.
    by_pre_bias = -jnp.matmul(by_b_enc, w_enc, precision=jax.lax.Precision.HIGHEST)
    return None, None, by_pre_bias, by_w_enc, by_b_enc, None, None


preactivations.defvjp(_preactivations_fwd, _preactivations_bwd)


@jax.custom_vjp
def slope_only(left: jax.Array, right: jax.Array, rows: jax.Array, latents: jax.Array) -> jax.Array:
    """Zeros (T,) with the gradient of left[row] . right[latent]; left (N, H), right (M, H). For a term whose
    value is known already."""
    return jnp.zeros(rows.shape, left.dtype)


def _slope_only_fwd(left, right, rows, latents):
    return slope_only(left, right, rows, latents), (left, right, rows, latents)


def _slope_only_bwd(saved, slope):
    left, right, rows, latents = saved
    by_left = _outer_sum(rows, latents, slope, right, left.shape[0])
    return by_left, _outer_sum(latents, rows, slope, left, right.shape[0]), None, None


slope_only.defvjp(_slope_only_fwd, _slope_only_bwd)
