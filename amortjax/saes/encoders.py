"""Encoders: one pass from an activation to a sparse code, one function per SAE variant.

Each variant is a function of one token, mapped over the batch by `encode`; only the batch rule of BatchTopK
and Matryoshka looks at all tokens at once. Matrix products are float32 at HIGHEST precision, thresholds are
strict.

    c = norm_in(x) - pre_bias,  pre = c @ W_enc + b_enc   (times ||W_dec row|| if sae.rescale)

To add a variant: write its function, add a line to VARIANTS. Axes: N tokens, D model dimension, M latents,
G groups or hidden layers, H hidden units.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from amortjax.errors import AmortjaxError
from amortjax.saes.sae import SAE, norm_in

HIGHEST = jax.lax.Precision.HIGHEST


def preactivation(sae: SAE, c: jax.Array) -> jax.Array:
    """c (..., D), already centred -> pre (..., M), with the hidden layers' part if the SAE has them."""
    pre = jnp.matmul(c, sae.W_enc, precision=HIGHEST) + sae.b_enc
    if sae.variant == "mlp":
        pre = pre + _through_hidden(sae, c)
    if sae.rescale:
        pre = pre * jnp.linalg.norm(sae.W_dec, axis=1)
    return pre


def _through_hidden(sae: SAE, c: jax.Array) -> jax.Array:
    """relu(c @ W_hidden[g] + b_hidden[g]) @ W_up[:, latents of layer g]: c (..., D) -> (..., M). One layer is
    all latents', more are one per group."""
    w_hidden, b_hidden, w_up = (sae.extra[name] for name in ("W_hidden", "b_hidden", "W_up"))
    sizes = sae.groups if len(w_hidden) > 1 else (sae.n_latents,)
    parts = []
    # lax.split, whose gradient is one concatenation; that of slices pads each to the whole W_up.
    for w, b, up in zip(w_hidden, b_hidden, jax.lax.split(w_up, sizes, axis=1), strict=True):
        hidden = jax.nn.relu(jnp.matmul(c, w, precision=HIGHEST) + b)
        parts.append(jnp.matmul(hidden, up, precision=HIGHEST))
    return jnp.concatenate(parts, axis=-1)


def encode_standard(sae: SAE, c: jax.Array) -> jax.Array:
    """ReLU of the pre-activation: c (D,) -> z (M,)."""
    return jax.nn.relu(preactivation(sae, c))


def encode_topk(sae: SAE, c: jax.Array) -> jax.Array:
    """The k largest pre-activations, then ReLU (Gao et al. 2024, arXiv 2406.04093, eq. 3): c (D,) -> z (M,).

    Ranking before or after the ReLU gives the same non-zeros; fewer than k of them if fewer are positive.
    """
    value, index = jax.lax.top_k(preactivation(sae, c), _needed_k(sae))
    return _written(sae, jax.nn.relu(value), index)


def _written(sae: SAE, value: jax.Array, index: jax.Array) -> jax.Array:
    """value and index (K,) -> z (M,). Where fewer than K are positive, the rest is written as its zeros."""
    return jnp.zeros((sae.n_latents,), value.dtype).at[index].set(value, unique_indices=True)


def encode_signed_topk(sae: SAE, c: jax.Array) -> jax.Array:
    """The k largest pre-activations with their sign (the papers' released evaluation): c (D,) -> z (M,)."""
    value, index = jax.lax.top_k(preactivation(sae, c), _needed_k(sae))
    return _written(sae, value, index)


def encode_abs_topk(sae: SAE, c: jax.Array) -> jax.Array:
    """The k pre-activations largest in magnitude, with their sign (SAELens' abstopk): c (D,) -> z (M,)."""
    pre = preactivation(sae, c)
    _, index = jax.lax.top_k(jnp.abs(pre), _needed_k(sae))
    return _written(sae, pre[index], index)


def encode_matching_pursuit(sae: SAE, c: jax.Array) -> jax.Array:
    """One latent after the other, each the best match of what is left of the input (MP-SAE, Costa et al. 2025,
    arXiv 2506.03093): c (D,) -> z (M,).

    A token is done when an iteration added no new latent (if `stop_on_duplicate`), when what is left is shorter than
    `residual_threshold`, or after `max_iterations`: all () in `extra`.
    """
    threshold, most, stop = (
        sae.extra[name] for name in ("residual_threshold", "max_iterations", "stop_on_duplicate")
    )

    def go_on(state):
        _, _, count, done = state
        return ~done & (count < most)

    def step(state):
        left, z, count, _ = state
        match = jax.nn.relu(jnp.matmul(left, sae.W_enc, precision=HIGHEST))
        best = jnp.argmax(match)
        value = match[best]
        known = (z[best] != 0) | (value == 0)
        left = left - value * sae.W_dec[best]
        done = ((stop > 0) & known) | (jnp.linalg.norm(left) < threshold)
        return left, z.at[best].add(value), count + 1, done

    # The first step is taken however short the input is, as the library does.
    start = (c, jnp.zeros((sae.n_latents,), c.dtype), 0, jnp.zeros((), bool))
    return jax.lax.while_loop(go_on, step, start)[1]


def encode_loca(sae: SAE, c: jax.Array) -> jax.Array:
    """Of each group its group_k largest pre-activations, then ReLU (LocA-SAE, "The Price of Amortized Inference
    in Sparse Autoencoders", group TopK): c (D,) -> z (M,). With one group this is TopK."""
    if not sae.group_k:
        raise AmortjaxError(
            f"this {sae.variant} SAE does not say how many latents of a group fire: set group_k"
        )
    value, index = largest_of_groups(preactivation(sae, c), sae.groups, sae.group_k)
    return _written(sae, jax.nn.relu(value), index)


def largest_of_groups(
    pre: jax.Array, sizes: tuple[int, ...], ks: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The ks[g] largest of the sizes[g] latents of each group: pre (..., M) -> values and latents, both
    (..., sum(ks)), group after group and in a group from the largest down.

    sum(sizes) = M, 0 <= ks[g] <= sizes[g], some k positive.
    """
    if len(set(sizes)) == 1 and len(set(ks)) == 1:
        value, index = jax.lax.top_k(pre.reshape(*pre.shape[:-1], len(sizes), sizes[0]), ks[0])
        index = index + (sizes[0] * jnp.arange(len(sizes)))[:, None]
        return value.reshape(*pre.shape[:-1], -1), index.reshape(*pre.shape[:-1], -1)
    values, latents, first = [], [], 0
    for size, k in zip(sizes, ks, strict=True):  # few and static, so unrolled
        if k:
            value, index = jax.lax.top_k(pre[..., first : first + size], k)
            values.append(value)
            latents.append(index + first)
        first += size
    return jnp.concatenate(values, axis=-1), jnp.concatenate(latents, axis=-1)


def encode_mlp(sae: SAE, c: jax.Array) -> jax.Array:
    """An encoder with a hidden layer beside the linear map (see `preactivation`), under group TopK, TopK or ReLU,
    whichever the SAE has numbers for: c (D,) -> z (M,). W_enc = 0 is a plain one-hidden-layer MLP."""
    if sae.group_k:
        return encode_loca(sae, c)
    return encode_standard(sae, c) if sae.k is None else encode_topk(sae, c)


def encode_jumprelu(sae: SAE, c: jax.Array) -> jax.Array:
    """Pre-activations above their latent's threshold and above zero (Rajamanoharan et al. 2024, arXiv
    2407.14435, eq. 4): c (D,) -> z (M,)."""
    pre = preactivation(sae, c)
    return jnp.where(pre > sae.extra["threshold"], jax.nn.relu(pre), 0)


def encode_gated(sae: SAE, c: jax.Array) -> jax.Array:
    """Which latents fire and how much, from one shared projection (Rajamanoharan et al. 2024, arXiv
    2404.16014, eqs. 5 to 7): c (D,) -> z (M,). `b_enc` is zero in the files; b_gate and b_mag take its
    place."""
    u = preactivation(sae, c)
    magnitude = jax.nn.relu(jnp.exp(sae.extra["r_mag"]) * u + sae.extra["b_mag"])
    return jnp.where(u + sae.extra["b_gate"] > 0, magnitude, 0)


def encode_batch_rule(sae: SAE, c: jax.Array) -> jax.Array:
    """The k * N largest of the whole batch (Bussmann et al. 2024, arXiv 2412.06410, eq. 4): c (N, D) -> z
    (N, M)."""
    pre = jax.nn.relu(preactivation(sae, c))
    index, value = largest_of_batch(pre, _needed_k(sae))
    return jnp.zeros((pre.size,), pre.dtype).at[index].set(value, unique_indices=True).reshape(pre.shape)


def largest_of_batch(pre: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k * N largest entries of pre (N, M): flat positions (k * N,) and values (k * N,), ordered by
    neither.

    Entries at or below zero count as equal (they are zeros after the ReLU). Sorting all N * M entries takes
    seconds on a CPU. But an entry among the k * N largest is in one of the k * N blocks with the largest
    maxima, since each block above it has an entry above it: so rank blocks of 16 latents, then the entries
    of the chosen blocks.
    """
    n, m = pre.shape
    count = k * n
    size = 16 if m % 16 == 0 and count * 16 <= pre.size else 1
    blocks = m // size
    # Block j of a row is latents j, j + blocks, ...: strided, because that maximum is a plain vector
    # operation.
    best = _largest(pre.reshape(n, size, blocks).max(axis=1).reshape(-1), count)
    first = best // blocks * m + best % blocks
    candidates = (first[:, None] + blocks * jnp.arange(size)).reshape(-1)
    index = candidates[_largest(pre.reshape(-1)[candidates], count)]
    return index, pre.reshape(-1)[index]


def _largest(values: jax.Array, count: int) -> jax.Array:
    """Positions (count,) of the largest of values (T,), ascending; ties, and all below zero, by position."""
    # Non-negative floats order as their bits do: 31 halvings find the count-th largest exactly.
    bits = jax.lax.bitcast_convert_type(jnp.maximum(values, 0), jnp.int32)

    def halve(_, bounds):
        low, high = bounds  # at least `count` values are >= low, fewer are >= high
        middle = low + (high - low) // 2
        enough = jnp.sum(bits >= middle) >= count
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(2**31 - 1)))
    above, equal = bits > low, bits == low
    keep = above | (equal & (jnp.cumsum(equal) <= count - jnp.sum(above)))
    return jnp.nonzero(keep, size=count)[0]


def _needed_k(sae: SAE) -> int:
    if sae.k is None:
        raise AmortjaxError(f"this {sae.variant} SAE does not say how many latents fire: load it with k=...")
    return sae.k


class Variant(NamedTuple):
    """How an SAE variant encodes, and what its `extra` must hold."""

    encode: Callable[[SAE, jax.Array], jax.Array]  # one token: c (D,) -> z (M,)
    extra: tuple[str, ...] = ()
    signed: bool = False  # codes may be negative, so inference must be signed too
    grouped: bool = False  # sae.group_k may limit firing by group
    batch: Callable[[SAE, jax.Array], jax.Array] | None = None  # c (N, D) -> z (N, M) when sae.batch_rule


VARIANTS = {
    "standard": Variant(encode_standard),
    "topk": Variant(encode_topk),
    "signed_topk": Variant(encode_signed_topk, signed=True),
    "abs_topk": Variant(encode_abs_topk, signed=True),
    "matching_pursuit": Variant(
        encode_matching_pursuit, extra=("residual_threshold", "max_iterations", "stop_on_duplicate")
    ),
    "jumprelu": Variant(encode_jumprelu, extra=("threshold",)),
    "gated": Variant(encode_gated, extra=("r_mag", "b_gate", "b_mag")),
    "loca": Variant(encode_loca, grouped=True),
    "mlp": Variant(encode_mlp, extra=("W_hidden", "b_hidden", "W_up"), grouped=True),
    # At inference one threshold for all latents stands in for the batch: JumpReLU with a scalar threshold.
    "batch_topk": Variant(encode_jumprelu, extra=("threshold",), batch=encode_batch_rule),
    "matryoshka": Variant(encode_jumprelu, extra=("threshold",), batch=encode_batch_rule),
}


def encode(sae: SAE, x: jax.Array) -> jax.Array:
    """Codes of a batch in the SAE's own scale: x (N, D) raw activations -> z (N, M), float32."""
    normalised, _ = norm_in(sae, x)
    return encode_normalised(sae, normalised)


def encode_normalised(sae: SAE, x: jax.Array) -> jax.Array:
    """As `encode`, of x (N, D) that has been through `norm_in` already."""
    variant = VARIANTS[sae.variant]
    c = x - sae.pre_bias
    if sae.batch_rule:
        if variant.batch is None:
            raise AmortjaxError(f"a {sae.variant} SAE has no batch rule; load it without batch_rule")
        return variant.batch(sae, c)
    return jax.vmap(variant.encode, in_axes=(None, 0))(sae, c)
