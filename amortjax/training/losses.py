"""What each variant is trained to minimise: one function per variant, from weights and a batch to a loss.

Reconstruction is |x - x_hat|^2, summed over D, mean over tokens, without a half; inputs come scaled (see
Recipe), so its scale is 1. Sources: dictionary_learning's trainers where a paper leaves something open.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.saes.encoders import HIGHEST, encode_gated, largest_of_batch, largest_of_groups, preactivation
from amortjax.saes.sae import SAE, decode
from amortjax.training import jump, sparse
from amortjax.training.entries import Entries, auxk, differentiable, per_token, reconstruct
from amortjax.training.recipe import Recipe

# Below this the penalty z^p of p_anneal is a line, so that its slope stays bounded.
FLOOR = 1e-2


class Now(NamedTuple):
    """What a loss needs beside weights and batch."""

    dead: jax.Array  # (M,) latents that have not fired for recipe.dead_after tokens
    sparsity: jax.Array  # () from 0 to 1, the warm-up of the sparsity loss
    # p_anneal: exponent now, exponent after the next change, factor of the penalty. (3,)
    powers: jax.Array | np.ndarray = np.ones(3, np.float32)


class Seen(NamedTuple):
    """What one batch showed, on the side."""

    error: jax.Array  # () sum of |x - x_hat|^2
    l0: jax.Array  # () number of firing latents, of all tokens
    fired: jax.Array  # (M,) bool, in this batch
    least: jax.Array  # () smallest firing value (topk: mean over tokens), inf if none fired
    penalties: jax.Array  # (2,) p_anneal: mean penalty with the exponent of now, of next


Loss = Callable[[SAE, jax.Array, Now, Recipe], tuple[jax.Array, Seen]]


def l1(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 + lam * sum_j z_j ||W_j||: standard with rows of norm 1 (Bricken et al. 2023), april with free ones
    (Anthropic's April 2024 update)."""
    z = jax.nn.relu(preactivation(sae, x - sae.pre_bias))
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    penalty = jnp.sum(jnp.matmul(z, _norms(sae), precision=HIGHEST))
    return (error + _lam(recipe) * now.sparsity * penalty) / len(x), _seen(error, z)


def p_anneal(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 + lam * c * sum_j (z_j ||W_j||)^p with p falling from 1, c keeping the penalty's size (Karvonen et
    al. 2024, arXiv 2408.00113, section 3; schedule in `step.powers`)."""
    z = jax.nn.relu(preactivation(sae, x - sae.pre_bias))
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    size = z * _norms(sae)
    p, following, factor = now.powers
    penalty = jnp.sum(power(size, p)) / len(x)
    after = jnp.sum(power(jax.lax.stop_gradient(size), following)) / len(x)
    seen = _seen(error, z)._replace(penalties=jax.lax.stop_gradient(jnp.stack([penalty, after])))
    return error / len(x) + _lam(recipe) * now.sparsity * factor * penalty, seen


def power(z: jax.Array, p: jax.Array) -> jax.Array:
    """z^p for z >= FLOOR, the line through 0 below; z (N, M) >= 0."""
    return jnp.where(z >= FLOOR, jnp.maximum(z, FLOOR) ** p, z * FLOOR ** (p - 1))


def gated(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2, an L1 penalty on the gate's ReLU, and that ReLU's own reconstruction with the decoder held fixed
    (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 8)."""
    c = x - sae.pre_bias
    z = encode_gated(sae, c)
    gate = jax.nn.relu(preactivation(sae, c) + sae.extra["b_gate"])
    fixed = jax.lax.stop_gradient
    auxiliary = jnp.matmul(gate, fixed(sae.W_dec), precision=HIGHEST) + fixed(sae.b_dec)
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    penalty = jnp.sum(jnp.matmul(gate, _norms(sae), precision=HIGHEST))
    loss = error + _lam(recipe) * now.sparsity * penalty + jnp.sum(jnp.square(x - auxiliary))
    return loss / len(x), _seen(error, z)


def jumprelu(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 + (L0 / target - 1)^2 with straight-through gradients of the thresholds (Rajamanoharan et al.
    2024, arXiv 2407.14435, eqs. 9 to 12; the target form is dictionary_learning's)."""
    pre, threshold = preactivation(sae, x - sae.pre_bias), sae.extra["threshold"]
    z = jump.jump(pre, threshold, recipe.bandwidth)
    l0 = jnp.sum(jump.count(pre, threshold, recipe.bandwidth)) / len(x)
    error = jnp.sum(jnp.square(x - decode(sae, z)))
    target = recipe.target_l0
    assert target is not None  # Recipe.check
    return error / len(x) + now.sparsity * jnp.square(l0 / target - 1), _seen(error, z)


def topk(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """|e|^2 of the k largest latents per token, and AuxK (Gao et al. 2024, arXiv 2406.04093)."""
    pre = _dense_pre(sae, x)
    return _of_tokens(sae, x, now, recipe, pre, *jax.lax.top_k(pre, _k(recipe)))


def loca(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """As `topk`, with the k_g largest of each group g (LocA-SAE of "The Price of Amortized Inference")."""
    pre = _dense_pre(sae, x)
    return _of_tokens(sae, x, now, recipe, pre, *largest_of_groups(pre, sae.groups, sae.group_k))


def mlp(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """An encoder with a hidden layer, sparse by group top-k, top-k or an L1 penalty, as the recipe says."""
    return (loca if recipe.group_k else topk if recipe.k else l1)(sae, x, now, recipe)


def _of_tokens(
    sae: SAE, x: jax.Array, now: Now, recipe: Recipe, pre: jax.Array, value: jax.Array, index: jax.Array
) -> tuple[jax.Array, Seen]:
    """Loss of the latents (N, K) chosen for each token."""
    entries = differentiable(sae, x, per_token(value, index))
    residual = x - reconstruct(sae, entries, len(x))
    error = jnp.sum(jnp.square(residual))
    smallest = jnp.min(jnp.where(value > 0, value, jnp.inf), axis=1)
    firing = jnp.isfinite(smallest)
    least = jnp.sum(jnp.where(firing, smallest, 0)) / jnp.sum(firing)
    seen = _seen_entries(error, entries, sae.n_latents)._replace(least=least)
    return error / len(x) + _weighted_auxk(recipe, sae, x, residual, pre, now.dead), seen


def batch_topk(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """As `topk`, of the k * N largest of the batch (Bussmann et al. 2024, arXiv 2412.06410)."""
    pre = _dense_pre(sae, x)
    entries = _batch_entries(sae, x, pre, _k(recipe))
    residual = x - reconstruct(sae, entries, len(x))
    error = jnp.sum(jnp.square(residual))
    loss = error / len(x) + _weighted_auxk(recipe, sae, x, residual, pre, now.dead)
    return loss, _seen_entries(error, entries, sae.n_latents)


def matryoshka(sae: SAE, x: jax.Array, now: Now, recipe: Recipe) -> tuple[jax.Array, Seen]:
    """Mean over prefixes of groups of the prefix's |e|^2, one BatchTopK for all (Bussmann et al. 2025, arXiv
    2503.17547)."""
    pre, sizes = _dense_pre(sae, x), sae.groups
    entries = _batch_entries(sae, x, pre, _k(recipe))
    group = jnp.searchsorted(jnp.cumsum(jnp.asarray(sizes)), entries.latents, side="right")
    parts = sparse.decode(
        entries.values, sae.W_dec, entries.rows * len(sizes) + group, entries.latents, len(x) * len(sizes)
    )
    prefixes = jnp.cumsum(parts.reshape(len(x), len(sizes), -1), axis=1) + sae.b_dec
    errors = jnp.sum(jnp.square(x[:, None] - prefixes), axis=(0, 2))
    loss = jnp.mean(errors) / len(x) + _weighted_auxk(recipe, sae, x, x - prefixes[:, -1], pre, now.dead)
    return loss, _seen_entries(errors[-1], entries, sae.n_latents)


LOSSES: dict[str, Loss] = {
    "standard": l1,
    "april": l1,
    "p_anneal": p_anneal,
    "gated": gated,
    "jumprelu": jumprelu,
    "topk": topk,
    "batch_topk": batch_topk,
    "matryoshka": matryoshka,
    "loca": loca,
    "mlp": mlp,
}


def _weighted_auxk(recipe: Recipe, sae: SAE, *args: jax.Array) -> jax.Array | float:
    return recipe.auxk * auxk(sae, *args) if recipe.auxk > 0 else 0.0


def _norms(sae: SAE) -> jax.Array:
    return jnp.linalg.norm(sae.W_dec, axis=1)


def _lam(recipe: Recipe) -> float:
    assert recipe.lam is not None  # Recipe.check
    return recipe.lam


def _k(recipe: Recipe) -> int:
    assert recipe.k is not None  # Recipe.check
    return recipe.k


def _dense_pre(sae: SAE, x: jax.Array) -> jax.Array:
    """Pre-activations (N, M) for ranking; their gradient is taken by `differentiable`, of the chosen ones
    only."""
    return jax.lax.stop_gradient(preactivation(sae, x - sae.pre_bias))


def _batch_entries(sae: SAE, x: jax.Array, pre: jax.Array, k: int) -> Entries:
    index, value = largest_of_batch(pre, k)
    return differentiable(sae, x, Entries(index // sae.n_latents, index % sae.n_latents, value))


def _seen(error: jax.Array, z: jax.Array) -> Seen:
    firing = z > 0
    fired, count = jnp.any(firing, axis=0), jnp.sum(firing, dtype=jnp.float32)
    return Seen(error, count, fired, jnp.asarray(jnp.inf), jnp.zeros(2))


def _seen_entries(error: jax.Array, entries: Entries, m: int) -> Seen:
    firing = entries.values > 0
    fired = jnp.zeros((m,), jnp.int32).at[entries.latents].max(firing.astype(jnp.int32)) > 0
    least = jnp.min(jnp.where(firing, entries.values, jnp.inf))
    return Seen(error, jnp.sum(firing, dtype=jnp.float32), fired, least, jnp.zeros(2))
