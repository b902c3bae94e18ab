"""One training step: loss, gradient, Adam, and the decoder's rows back to norm 1."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from amortjax.training import modules
from amortjax.training.losses import LOSSES, Now
from amortjax.training.recipe import MOST_TOKENS, Recipe

# p_anneal: the exponent falls in this many equal steps, as in dictionary_learning; each time the penalty keeps the
# size it has in a running mean over about 10 batches.
CHANGES = 10
MEMORY = 0.9


class State(NamedTuple):
    """All that a step changes; a checkpoint is this and the recipe."""

    step: jax.Array  # () int32, steps done: the data cursor too, since batches follow from seed and step
    weights: dict[str, Any]
    optimizer: Any
    silent: jax.Array  # (M,) int32, tokens since a latent last fired
    threshold: jax.Array  # () running mean of the smallest firing value; -1 before it is first measured
    # (3,) p_anneal: the penalty's factor, its running means with the exponent of now, of next
    anneal: jax.Array


class Report(NamedTuple):
    """Sums over the tokens of one step, (): see `meter.Meter`."""

    loss: jax.Array
    error: jax.Array  # sum of |x - x_hat|^2
    spread: jax.Array  # sum of |x - mean|^2
    l0: jax.Array
    dead: jax.Array  # number of latents that are dead now


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Adam after clipping; linear warm-up, constant, linear to 0."""
    warm, decay = recipe.warmup_steps, int(recipe.decay_from * recipe.steps)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(recipe.lr / (warm + 1), recipe.lr, warm),
            optax.constant_schedule(recipe.lr),
            optax.linear_schedule(recipe.lr, 0.0, max(recipe.steps - max(decay, warm), 1)),
        ],
        [warm, max(decay, warm)],
    )
    return optax.chain(optax.clip_by_global_norm(recipe.clip), optax.adam(rate, b1=recipe.beta1))


def init(weights: dict[str, Any], recipe: Recipe) -> State:
    return State(
        step=jnp.zeros((), jnp.int32),
        weights=weights,
        optimizer=optimizer(recipe).init(weights),
        silent=jnp.zeros((recipe.n_latents,), jnp.int32),
        threshold=jnp.full((), -1.0),
        anneal=jnp.ones(3),
    )


@functools.partial(jax.jit, static_argnames=("graph", "recipe"), donate_argnums=0)
def train_step(
    state: State, x: jax.Array, mean: jax.Array, *, graph: Any, recipe: Recipe
) -> tuple[State, Report]:
    """One update on x (N, D), scaled; mean (D,), of the scaled data, is only for the report's spread."""
    n = x.shape[0]
    ramp = jnp.minimum(state.step / max(recipe.sparsity_warmup_steps, 1), 1.0)
    factor, powers = _powers(state, recipe)
    now = Now(dead=state.silent >= recipe.dead_after, sparsity=ramp, powers=powers)

    def loss_of(weights):
        return LOSSES[recipe.variant](modules.as_sae(graph, weights), x, now, recipe)

    (loss, seen), slope = jax.value_and_grad(loss_of, has_aux=True)(state.weights)
    if recipe.unit_decoder:
        slope = slope | {"w_dec": _tangent(slope["w_dec"], state.weights["w_dec"])}
    if recipe.hidden_only:  # a gradient of zero: Adam then leaves it where it is
        slope = slope | {"w_enc": jnp.zeros_like(slope["w_enc"])}
    update, adam = optimizer(recipe).update(slope, state.optimizer, state.weights)
    weights = _constrain(optax.apply_updates(state.weights, _scale_thresholds(update, recipe)), recipe)
    silent = jnp.where(seen.fired, 0, jnp.minimum(state.silent + n, MOST_TOKENS))
    threshold = _track(state.threshold, seen.least, recipe)
    anneal = jnp.concatenate([factor[None], _remember(state, seen.penalties, recipe)])
    new = State(state.step + 1, weights, adam, silent, threshold, anneal)
    spread = jnp.sum(jnp.square(x - mean))
    return new, Report(loss, seen.error, spread, seen.l0, jnp.sum(silent >= recipe.dead_after))


def exponent(step: jax.Array | int, recipe: Recipe) -> tuple[jax.Array, jax.Array, jax.Array]:
    """p_anneal at a step: the exponent, the one after the next change, and whether it has just changed; ()."""
    start = int(recipe.p_from * recipe.steps)
    every = max((recipe.steps - start) / CHANGES, 1)

    def changes(step):
        return jnp.clip(jnp.floor((step - start) / every) + 1, 0, CHANGES)

    def of(count):
        return 1 + (recipe.p_end - 1) * jnp.minimum(count, CHANGES) / CHANGES

    count = changes(jnp.asarray(step))
    return of(count), of(count + 1), count != changes(jnp.asarray(step) - 1)


def _powers(state: State, recipe: Recipe) -> tuple[jax.Array, jax.Array]:
    """The penalty's factor (), and `losses.Now.powers` (3,)."""
    p, following, changed = exponent(state.step, recipe)
    factor, size, size_after = state.anneal
    ratio = jnp.where(size_after > 0, size / jnp.where(size_after > 0, size_after, 1), 1)
    factor = jnp.where(changed, factor * ratio, factor)
    return factor, jnp.stack([p, following, factor])


def _remember(state: State, penalties: jax.Array, recipe: Recipe) -> jax.Array:
    first = exponent(state.step, recipe)[2] | (state.step == 0)
    return jnp.where(first, penalties, MEMORY * state.anneal[1:] + (1 - MEMORY) * penalties)


def _tangent(slope: jax.Array, w_dec: jax.Array) -> jax.Array:
    """Without the part along each row, which renormalising would undo but Adam's moments would remember."""
    return slope - jnp.sum(slope * w_dec, axis=1, keepdims=True) * w_dec


def _scale_thresholds(update: Any, recipe: Recipe) -> Any:
    if "threshold" not in update.get("extra", {}):
        return update
    faster = update["extra"]["threshold"] * recipe.threshold_lr
    return update | {"extra": update["extra"] | {"threshold": faster}}


def _constrain(weights: Any, recipe: Recipe) -> dict[str, Any]:
    """Decoder rows of norm 1 unless they are free, thresholds not below 0."""
    new = dict(weights)
    if recipe.unit_decoder:
        norm = jnp.linalg.norm(weights["w_dec"], axis=1, keepdims=True)
        new["w_dec"] = weights["w_dec"] / jnp.maximum(norm, 1e-8)
    if "threshold" in weights.get("extra", {}):
        new["extra"] = weights["extra"] | {"threshold": jnp.maximum(weights["extra"]["threshold"], 0)}
    return new


def _track(threshold: jax.Array, least: jax.Array, recipe: Recipe) -> jax.Array:
    decay = recipe.threshold_decay
    moved = jnp.where(threshold < 0, least, decay * threshold + (1 - decay) * least)
    return jnp.where(jnp.isfinite(least), moved, threshold)
