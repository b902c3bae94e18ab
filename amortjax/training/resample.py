"""Dead latents made anew from badly reconstructed tokens (Bricken et al. 2023, "Towards Monosemanticity",
appendix on neuron resampling)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from amortjax.saes.encoders import HIGHEST, encode_normalised
from amortjax.saes.sae import SAE, decode
from amortjax.training import modules, step
from amortjax.training.recipe import Recipe

# A new latent's encoder row, in mean norms of the living ones'.
ENCODER_NORM = 0.2
# Arrays without a row per latent.
KEPT = ("b_dec", "W_hidden", "b_hidden")


@functools.partial(jax.jit, static_argnames=("graph", "recipe"), donate_argnums=0)
def resample(state: step.State, x: jax.Array, seed: int, *, graph: Any, recipe: Recipe) -> step.State:
    """Latents that were silent since the last resampling get the direction of a token of x (N, D), drawn with
    probability as its squared error's square, each token once; no bias, the first threshold, and Adam's moments start
    again. With more dead latents than tokens the rest waits for the next time."""
    dead = state.silent >= recipe.resample_every * recipe.batch_size
    dead = dead & (jnp.cumsum(dead) <= len(x))
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    sae = modules.as_sae(graph, state.weights)
    error = jnp.sum(jnp.square(x - decode(sae, encode_normalised(sae, x))), axis=1)
    # Without replacement (Gumbel top-k): two latents from one token would be the same latent for good.
    drawn = jnp.argsort(-(2 * jnp.log(jnp.maximum(error, 1e-30)) + jax.random.gumbel(key, error.shape)))
    token = drawn[jnp.clip(jnp.cumsum(dead) - 1, 0, len(x) - 1)]
    centred = x[token] - sae.b_dec
    direction = centred / jnp.maximum(jnp.linalg.norm(centred, axis=1, keepdims=True), 1e-8)
    alive = ~dead
    enc = ENCODER_NORM * _mean_norm(state.weights["w_enc"], alive)
    dec = 1.0 if recipe.unit_decoder else _mean_norm(state.weights["w_dec"], alive)
    # The threshold that a latent died of would keep it dead.
    threshold = modules.first_threshold(x.shape[1])
    fresh = {"w_enc": enc * direction, "w_dec": dec * direction, "threshold": threshold}
    if recipe.hidden_only:
        w_up = state.weights["extra"]["W_up"]
        fresh |= {"w_enc": 0.0, "W_up": ENCODER_NORM * _mean_norm(w_up, alive) * _hidden(sae, x)(token)}

    def replaced(path: tuple, value: jax.Array) -> jax.Array:
        """Which entries of an array are made anew."""
        name = path[-1].key
        return jnp.broadcast_to(
            False if name in KEPT else dead.reshape(-1, *[1] * (value.ndim - 1)), value.shape
        )

    def renewed(path: tuple, value: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(new, fresh.get(path[-1].key, 0), value)

    anew = jax.tree_util.tree_map_with_path(replaced, state.weights)
    weights = jax.tree_util.tree_map_with_path(renewed, state.weights, anew)
    moments = optax.tree.map_params(
        step.optimizer(recipe), lambda moment, new: jnp.where(new, 0, moment), state.optimizer, anew
    )
    return state._replace(weights=weights, optimizer=moments, silent=jnp.where(dead, 0, state.silent))


def _hidden(sae: SAE, x: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """What hidden units say of tokens: a function of each latent's token (M,), to directions (M, H)."""
    w, b = sae.extra["W_hidden"], sae.extra["b_hidden"]
    h = jax.nn.relu(jnp.einsum("nd,gdh->ngh", x - sae.b_dec, w, precision=HIGHEST) + b)
    h = h / jnp.maximum(jnp.linalg.norm(h, axis=2, keepdims=True), 1e-8)
    sizes = np.asarray(sae.groups if len(w) > 1 else (sae.n_latents,))
    return lambda token: h[token, np.repeat(np.arange(len(w)), sizes)]


def _mean_norm(rows: jax.Array, alive: jax.Array) -> jax.Array:
    norms = jnp.linalg.norm(rows, axis=1)
    return jnp.sum(jnp.where(alive, norms, 0)) / jnp.maximum(jnp.sum(alive), 1)
