"""What each variant is trained to minimise: one function per variant, from weights and a batch to a loss.

Reconstruction is |x - x_hat|^2, summed over D, mean over tokens, without a half; inputs come scaled (see
Recipe), so its scale is 1. Sources: dictionary_learning's trainers where a paper leaves something open.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from amortjax.saes.encoders import HIGHEST, encode_gated, largest_of_batch, preactivation
from amortjax.saes.sae import SAE, decode
from amortjax.training import sparse
from amortjax.training.recipe import Recipe


class Now(NamedTuple):
    """What a loss needs beside weights and batch."""

    dead: jax.Array  # (M,) latents that have not fired for recipe.dead_after tokens
    sparsity: jax.Array  # () from 0 to 1, the warm-up of the sparsity loss


class Seen(NamedTuple):
    """What one batch showed, on the side."""

    error: jax.Array  # () sum of |x - x_hat|^2
    l0: jax.Array  # () number of firing latents, of all tokens
    fired: jax.Array  # (M,) bool, in this batch
    least: jax.Array  # () smallest firing value (topk: mean over tokens), inf if none fired


class Entries(NamedTuple):
    """A batch's active latents, (T,) each; see `training.sparse`."""

    rows: jax.Array
    latents: jax.Array
    values: jax.Array


def standard(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 + lam * sum_j z_j ||W_j|| (Bricken et al. 2023; the weights as in the April 2024 update)."""
    z = jax.nn.relu(preactivation(sae, x - sae.pre_bias))
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    penalty = jnp.sum(jnp.matmul(z, jnp.linalg.norm(sae.W_dec, axis=1), precision=HIGHEST))
    return (error + _lam(recipe) * now.sparsity * penalty) / len(x), _seen(error, z)


def gated(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2, an L1 penalty on the gate's ReLU, and that ReLU's own reconstruction with the decoder held fixed
    (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 8)."""
    c = x - sae.pre_bias
    z = encode_gated(sae, c)
    gate = jax.nn.relu(preactivation(sae, c) + sae.extra["b_gate"])
    fixed = jax.lax.stop_gradient
    auxiliary = jnp.matmul(gate, fixed(sae.W_dec), precision=HIGHEST) + fixed(sae.b_dec)
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    penalty = jnp.sum(jnp.matmul(gate, jnp.linalg.norm(sae.W_dec, axis=1), precision=HIGHEST))
    loss = error + _lam(recipe) * now.sparsity * penalty + jnp.sum(jnp.square(x - auxiliary))
    return loss / len(x), _seen(error, z)


def jumprelu(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 + (L0 / target - 1)^2 with straight-through gradients of the thresholds (Rajamanoharan et al.
    2024, arXiv 2407.14435, eqs. 9 to 12; the target form is dictionary_learning's)."""
    pre, threshold = preactivation(sae, x - sae.pre_bias), sae.extra["threshold"]
    z = _jump(pre, threshold, recipe.bandwidth)
    l0 = jnp.sum(_step(pre, threshold, recipe.bandwidth)) / len(x)
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    target = recipe.target_l0
    assert target is not None  # Recipe.check
    return error / len(x) + now.sparsity * jnp.square(l0 / target - 1), _seen(error, z)


def topk(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 of the k largest latents per token, and AuxK (Gao et al. 2024, arXiv 2406.04093)."""
    pre, k = _dense_pre(sae, x), _k(recipe)
    value, index = jax.lax.top_k(pre, k)
    rows = jnp.repeat(jnp.arange(len(x)), k)
    entries = _differentiable(sae, x, Entries(rows, index.reshape(-1), value.reshape(-1)))
    x_hat = sparse.decode(entries.values, sae.W_dec, entries.rows, entries.latents, len(x)) + sae.b_dec
    error = jnp.sum(jnp.square(x - x_hat))
    smallest = jnp.min(jnp.where(value > 0, value, jnp.inf), axis=1)
    rows_firing = jnp.isfinite(smallest)
    least = jnp.sum(jnp.where(rows_firing, smallest, 0)) / jnp.sum(rows_firing)
    seen = _seen_entries(error, entries, sae.n_latents)._replace(least=least)
    return error / len(x) + _weighted_auxk(recipe, sae, x, x - x_hat, pre, now.dead), seen


def batch_topk(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """As `topk`, of the k * N largest of the batch (Bussmann et al. 2024, arXiv 2412.06410)."""
    pre = _dense_pre(sae, x)
    entries = _batch_entries(sae, x, pre, _k(recipe))
    x_hat = sparse.decode(entries.values, sae.W_dec, entries.rows, entries.latents, len(x)) + sae.b_dec
    error = jnp.sum(jnp.square(x - x_hat))
    loss = error / len(x) + _weighted_auxk(recipe, sae, x, x - x_hat, pre, now.dead)
    return loss, _seen_entries(error, entries, sae.n_latents)


def matryoshka(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """Mean over prefixes of groups of the prefix's |e|^2, one BatchTopK for all (Bussmann et al. 2025, arXiv
    2503.17547)."""
    sizes = recipe.group_sizes()
    pre = _dense_pre(sae, x)
    entries = _batch_entries(sae, x, pre, _k(recipe))
    ends = jnp.cumsum(jnp.asarray(sizes))
    group = jnp.searchsorted(ends, entries.latents, side="right")
    parts = sparse.decode(
        entries.values, sae.W_dec, entries.rows * len(sizes) + group, entries.latents, len(x) * len(sizes)
    )
    prefixes = jnp.cumsum(parts.reshape(len(x), len(sizes), -1), axis=1) + sae.b_dec
    errors = jnp.sum(jnp.square(x[:, None] - prefixes), axis=(0, 2))
    loss = jnp.mean(errors) / len(x) + _weighted_auxk(recipe, sae, x, x - prefixes[:, -1], pre, now.dead)
    return loss, _seen_entries(errors[-1], entries, sae.n_latents)


LOSSES: dict[str, Callable[[SAE, jax.Array, Now, Recipe], tuple[jax.Array, Seen]]] = {
    "standard": standard,
    "topk": topk,
    "jumprelu": jumprelu,
    "gated": gated,
    "batch_topk": batch_topk,
    "matryoshka": matryoshka,
}


def auxk(sae: SAE, x: jax.Array, residual: jax.Array, pre: jax.Array, dead: jax.Array) -> jax.Array:
    """How badly dead latents reconstruct what the live ones left, relative to its variance: () from 0 to
    about 1.

    Per token the min(D / 2, number dead) largest positive pre-activations of dead latents reconstruct the
    residual (N, D), without a bias. Ranked before any top-k, residual and centring held fixed: only dead
    latents' weights get a gradient. 0 when none is dead or the residual is constant.
    """
    fixed = jax.lax.stop_gradient
    residual, pre = fixed(residual), fixed(pre)
    width = max(1, min(sae.d_in // 2, sae.n_latents))
    spread = jnp.sum(jnp.square(residual - residual.mean(axis=0)))

    def ratio(guess: jax.Array) -> jax.Array:
        left = jnp.sum(jnp.square(residual - guess))
        return jnp.where(spread > 0, left / jnp.where(spread > 0, spread, 1), 0)

    def of_few() -> jax.Array:
        # All dead latents take part, so their columns alone are a small dense problem.
        index = jnp.nonzero(dead, size=width, fill_value=0)[0]
        real = jnp.arange(width) < jnp.sum(dead)
        u = jnp.matmul(fixed(x - sae.pre_bias), sae.W_enc.T[index].T, precision=HIGHEST) + sae.b_enc[index]
        return ratio(jnp.matmul(jnp.where(real, jax.nn.relu(u), 0), sae.W_dec[index], precision=HIGHEST))

    def of_many() -> jax.Array:
        value, index = jax.lax.top_k(jnp.where(dead, pre, 0), width)
        rows = jnp.repeat(jnp.arange(len(x)), width)
        held = dataclasses.replace(sae, pre_bias=fixed(sae.pre_bias))
        e = _differentiable(held, x, Entries(rows, index.reshape(-1), value.reshape(-1)))
        return ratio(sparse.decode(e.values, sae.W_dec, e.rows, e.latents, len(x)))

    count = jnp.sum(dead)
    return jnp.where(count > 0, jax.lax.cond(count <= width, of_few, of_many), 0)


def _weighted_auxk(recipe: Recipe, sae: SAE, *args: jax.Array) -> jax.Array | float:
    return recipe.auxk * auxk(sae, *args) if recipe.auxk > 0 else 0.0


def _lam(recipe: Recipe) -> float:
    assert recipe.lam is not None  # Recipe.check
    return recipe.lam


def _k(recipe: Recipe) -> int:
    assert recipe.k is not None  # Recipe.check
    return recipe.k


def _dense_pre(sae: SAE, x: jax.Array) -> jax.Array:
    """Pre-activations (N, M) for ranking; their gradient is taken by `_differentiable`, of the chosen ones
    only."""
    return jax.lax.stop_gradient(preactivation(sae, x - sae.pre_bias))


def _batch_entries(sae: SAE, x: jax.Array, pre: jax.Array, k: int) -> Entries:
    index, value = largest_of_batch(pre, k)
    return _differentiable(sae, x, Entries(index // sae.n_latents, index % sae.n_latents, value))


def _differentiable(sae: SAE, x: jax.Array, entries: Entries) -> Entries:
    """The chosen entries after ReLU, as functions of the encoder's weights."""
    rows, latents, value = entries
    pre = sparse.preactivations(value, x, sae.pre_bias, sae.W_enc.T, sae.b_enc, rows, latents)
    return entries._replace(values=jax.nn.relu(pre))


def _seen(error: jax.Array, z: jax.Array) -> Seen:
    firing = z > 0
    return Seen(error, jnp.sum(firing, dtype=jnp.float32), jnp.any(firing, axis=0), jnp.asarray(jnp.inf))


def _seen_entries(error: jax.Array, entries: Entries, m: int) -> Seen:
    firing = entries.values > 0
    fired = jnp.zeros((m,), jnp.int32).at[entries.latents].max(firing.astype(jnp.int32)) > 0
    least = jnp.min(jnp.where(firing, entries.values, jnp.inf))
    return Seen(error, jnp.sum(firing, dtype=jnp.float32), fired, least)


def _kernel(pre: jax.Array, threshold: jax.Array, width: float) -> jax.Array:
    """A rectangle of area 1 about the threshold."""
    return (jnp.abs(pre - threshold) < width / 2) / width


@jax.custom_vjp
def _jump(pre: jax.Array, threshold: jax.Array, width: float) -> jax.Array:
    """pre (N, M), threshold (M,) -> pre where it is above the threshold and positive, else 0."""
    return jnp.where(pre > threshold, jax.nn.relu(pre), 0)


def _jump_fwd(pre, threshold, width):
    return _jump(pre, threshold, width), (pre, threshold, width)


def _jump_bwd(saved, slope):
    pre, threshold, width = saved
    by_threshold = -threshold * jnp.sum(slope * _kernel(pre, threshold, width), axis=0)
    return jnp.where((pre > threshold) & (pre > 0), slope, 0), by_threshold, None


_jump.defvjp(_jump_fwd, _jump_bwd)


@jax.custom_vjp
def _step(pre: jax.Array, threshold: jax.Array, width: float) -> jax.Array:
    """1 where pre is above the threshold and positive, else 0. Its gradient reaches the thresholds only."""
    return ((pre > threshold) & (pre > 0)).astype(pre.dtype)


def _step_fwd(pre, threshold, width):
    return _step(pre, threshold, width), (pre, threshold, width)


def _step_bwd(saved, slope):
    pre, threshold, width = saved
    return jnp.zeros_like(pre), -jnp.sum(slope * _kernel(pre, threshold, width), axis=0), None


_step.defvjp(_step_fwd, _step_bwd)
