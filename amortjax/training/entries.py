"""A batch's active latents as a list, and what is computed of it: values, reconstruction, auxiliary loss."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from amortjax.saes.encoders import HIGHEST
from amortjax.saes.sae import SAE
from amortjax.training import sparse


class Entries(NamedTuple):
    """A batch's active latents, (T,) each; see `training.sparse`."""

    rows: jax.Array
    latents: jax.Array
    values: jax.Array


def per_token(value: jax.Array, index: jax.Array) -> Entries:
    """Of values and latents (N, K), K of each token."""
    n, k = value.shape
    return Entries(jnp.repeat(jnp.arange(n), k), index.reshape(-1), value.reshape(-1))


def differentiable(sae: SAE, x: jax.Array, entries: Entries) -> Entries:
    """The chosen entries after ReLU, as functions of the encoder's weights."""
    rows, latents, value = entries
    pre = sparse.preactivations(value, x, sae.pre_bias, sae.W_enc.T, sae.b_enc, rows, latents)
    if "W_up" in sae.extra:
        pre = pre + _hidden_slope(sae, x, rows, latents)
    return entries._replace(values=jax.nn.relu(pre))


def _hidden_slope(sae: SAE, x: jax.Array, rows: jax.Array, latents: jax.Array) -> jax.Array:
    """Zeros (T,) with the gradient of an mlp's hidden part: its value is in the pre-activations already."""
    w_hidden, b_hidden = sae.extra["W_hidden"], sae.extra["b_hidden"]
    h = jnp.einsum("nd,gdh->ngh", x - sae.pre_bias, w_hidden, precision=HIGHEST) + b_hidden
    h, count = jax.nn.relu(h), len(w_hidden)
    group = jnp.searchsorted(jnp.cumsum(jnp.asarray(sae.groups)), latents, side="right") if count > 1 else 0
    flat = h.reshape(-1, h.shape[-1])
    return sparse.slope_only(flat, sae.extra["W_up"].T, rows * count + group, latents)


def reconstruct(sae: SAE, entries: Entries, n: int) -> jax.Array:
    """x_hat (n, D)."""
    return sparse.decode(entries.values, sae.W_dec, entries.rows, entries.latents, n) + sae.b_dec


def auxk(sae: SAE, x: jax.Array, residual: jax.Array, pre: jax.Array, dead: jax.Array) -> jax.Array:
    """How badly dead latents reconstruct what the live ones left, relative to its variance: () from 0 to
    about 1.

    Per token the min(D / 2, number dead) largest positive pre-activations of dead latents reconstruct the
    residual (N, D), without a bias. Ranked before any top-k, residual and centring held fixed: only dead
    latents' weights get a gradient. 0 when none is dead or the residual is constant. (Gao et al. 2024, arXiv
    2406.04093, appendix A.2; the denominator as in dictionary_learning.)
    """
    fixed = jax.lax.stop_gradient
    residual, pre = fixed(residual), fixed(pre)
    width = max(1, min(sae.d_in // 2, sae.n_latents))
    spread = jnp.sum(jnp.square(residual - residual.mean(axis=0)))
    held = dataclasses.replace(sae, pre_bias=fixed(sae.pre_bias))

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
        e = differentiable(held, x, per_token(value, index))
        return ratio(sparse.decode(e.values, sae.W_dec, e.rows, e.latents, len(x)))

    count = jnp.sum(dead)
    # An mlp's hidden layer is shared by its latents: no columns of its own to take out.
    few = of_many if "W_up" in sae.extra else of_few
    case = jnp.where(count == 0, 0, jnp.where(count <= width, 1, 2))
    return jax.lax.switch(case, [lambda: jnp.zeros(()), few, of_many])
