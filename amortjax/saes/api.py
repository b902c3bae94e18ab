"""The public edge of the SAE room: arrays of any leading shape, NumPy or JAX, checked and padded.

Tokens go through in blocks of a few fixed sizes, so that a new batch size compiles nothing.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.saes import encoders
from amortjax.saes.sae import SAE, norm_in, norm_out
from amortjax.saes.sae import decode as decode_rows

Array = TypeVar("Array", np.ndarray, jax.Array)
BLOCK = 4096

_encode = jax.jit(encoders.encode)
_normalise = jax.jit(norm_in)


@jax.jit
def _decode(sae: SAE, z: jax.Array) -> jax.Array:
    """z (N, M) -> (N, D_out), before the input's normalisation is undone."""
    return decode_rows(dataclasses.replace(sae, norm="none"), z)


@jax.jit
def _skip(sae: SAE, x: jax.Array) -> jax.Array:
    return jnp.matmul(x, sae.extra["W_skip"], precision=jax.lax.Precision.HIGHEST)


def encode(sae: SAE, x: Array) -> Array:
    """The encoder's codes: x (..., D), or (..., heads, d_head) with heads * d_head = D -> z (..., M),
    float32.

    Returns NumPy for NumPy, JAX for JAX. Raises AmortjaxError if the width is not the SAE's.
    """
    rows, leading = _rows(x, sae.d_in, "encode needs activations")
    return _like(x, _blocks(_encode, sae, rows, whole=sae.batch_rule).reshape(*leading, sae.n_latents))


def decode(sae: SAE, z: Array, x: Array | None = None) -> Array:
    """Reconstructions of codes: z (..., M) -> y (..., D_out) in raw units, without a skip connection.

    `x` (..., D) are the tokens of these codes; needed when the SAE normalises its input, ignored otherwise.
    """
    codes, leading = _rows(z, sae.n_latents, "decode needs codes")
    y = _blocks(_decode, sae, codes)
    if sae.norm != "none":
        if x is None:
            raise AmortjaxError(
                f"this SAE normalises its input ({sae.norm}): decode needs the tokens, decode(sae, z, x)"
            )
        rows, _ = _rows(x, sae.d_in, "decode needs activations")
        if len(rows) != len(codes):
            raise AmortjaxError(
                f"decode: {len(codes)} codes but {len(rows)} tokens in x; they must be the same tokens"
            )
        y = norm_out(y, _normalise(sae, jnp.asarray(rows, jnp.float32))[1])
    return _like(z, y.reshape(*leading, sae.d_out))


def reconstruct(sae: SAE, x: Array) -> Array:
    """Encode, decode, and the skip connection if there is one: x (..., D) -> y (..., D_out), or x's own
    shape if it came split into heads."""
    rows, leading = _rows(x, sae.d_in, "reconstruct needs activations")
    rows = jnp.asarray(rows, jnp.float32)
    y = decode(sae, encode(sae, rows), rows)
    if "W_skip" in sae.extra:
        y = y + _skip(sae, rows)
    split = len(leading) == np.ndim(x) - 2 and sae.d_out == sae.d_in
    return _like(x, y.reshape(np.shape(x) if split else (*leading, sae.d_out)))


def _rows(x: np.ndarray | jax.Array, width: int, what: str) -> tuple[np.ndarray | jax.Array, tuple[int, ...]]:
    """x as (N, width), and its leading shape; heads are flattened, row-major."""
    shape = np.shape(x)
    if shape and shape[-1] == width:
        return x.reshape(-1, width), shape[:-1]
    if len(shape) >= 2 and shape[-2] * shape[-1] == width:
        return x.reshape(-1, width), shape[:-2]
    got = f"{shape[-1]} (shape {shape})" if shape else "a single number"
    raise AmortjaxError(
        f"{what} of width {width}, the SAE's, and got {got}: is it of another model, layer or hook?"
    )


def _blocks(function, sae: SAE, rows: np.ndarray | jax.Array, whole: bool = False) -> jax.Array:
    """function(sae, rows) in blocks padded to a power of two; `whole` for rules that look at the whole
    batch."""
    if whole:
        return function(sae, jnp.asarray(rows, jnp.float32))
    out = []
    for start in range(0, max(len(rows), 1), BLOCK):
        block = jnp.asarray(rows[start : start + BLOCK], jnp.float32)
        n = len(block)
        size = min(BLOCK, 1 << max(n - 1, 0).bit_length())
        out.append(function(sae, jnp.pad(block, ((0, size - n), (0, 0))))[:n])
    return jnp.concatenate(out) if len(out) > 1 else out[0]


def _like(x: np.ndarray | jax.Array, y: jax.Array) -> Any:
    return y if isinstance(x, jax.Array) else np.asarray(y)
