"""The training core: encoders, free codes and dictionaries of many seeds, jitted from one log point to the next.

    state = start(weights)                                        # of S seeds, stacked
    state = advance(state, data, Numbers(lam=0.01, lr=1e-3), 1000, fit=Fit(Encoder(hidden=32)))

Losses are those of the released code (means over all entries), Adam is PyTorch's (`adam`).
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from amortjax.synthetic import adam
from amortjax.synthetic.adam import ADAM as ADAM  # free_codes takes it from here
from amortjax.synthetic.encoders import Encoder, Weights, encode, unit_atoms

_COSINE_EPS = 1e-8  # of torch.nn.functional.cosine_similarity


_SAE = Encoder()


@dataclasses.dataclass(frozen=True)
class Fit:
    """What is trained (static: one compilation each).

    encoder: None for free codes z = exp(u), u (n, sources) in weights["log_codes"]. goal: "codes" is the supervised
    cosine loss on known codes, "reconstruction" is mse + lam * mean |z|. batch: samples of a step, drawn anew with
    replacement; 0: all samples, every step. columns: of a learned dictionary are brought to norm 1, not its atoms.
    """

    encoder: Encoder | None = _SAE
    goal: Literal["codes", "reconstruction"] = "reconstruction"
    learn_dictionary: bool = False
    batch: int = 0
    columns: bool = False


class Batch(NamedTuple):
    """Training data: x (n, dimensions) or (S, n, dimensions) if each seed has its own; codes likewise, None if they
    are not known; dictionary (sources, dimensions) or (S, ...), None if it is learned."""

    x: jax.Array
    codes: jax.Array | None = None
    dictionary: jax.Array | None = None


class Numbers(NamedTuple):
    """() or (S,) each: L1 coefficient (released form, lambda_c) and learning rate."""

    lam: Any = 0.01
    lr: Any = 1e-3


class State(NamedTuple):
    """Of S seeds, along the first axis of everything."""

    weights: Weights
    adam: Any
    key: jax.Array  # (S,) of the batches


def start(weights: Weights, seeds: Any = None) -> State:
    """Before the first step. weights: see `encoders.stacked`; seeds (S,): of the batches, 0, 1, ... if None."""
    n = jax.tree.leaves(weights)[0].shape[0]
    seeds = jnp.arange(n) if seeds is None else jnp.asarray(seeds)
    weights = jax.tree.map(jnp.array, weights)  # copies: `advance` overwrites its state
    return State(weights, jax.vmap(adam.init)(weights), jax.vmap(jax.random.key)(seeds))


def codes_of(weights: Weights, x: jax.Array, fit: Fit) -> jax.Array:
    """(n, sources) of one seed: the encoder's of x, or the free codes."""
    return jnp.exp(weights["log_codes"]) if fit.encoder is None else encode(weights, x, fit.encoder)


def dictionary_of(weights: Weights, dictionary: jax.Array | None, fit: Fit) -> jax.Array | None:
    """(sources, dimensions) of one seed: the given one, or the learned atoms brought to norm 1."""
    return _unit(weights, fit) if fit.learn_dictionary else dictionary


def _unit(weights: Weights, fit: Fit) -> jax.Array:
    return unit_atoms(weights["atoms"], -2 if fit.columns else -1)


def _normalised(weights: Weights, fit: Fit) -> Weights:
    """The released forward pass overwrites its decoder by the unit one, so no gradient passes the normalisation."""
    return weights | {"atoms": _unit(weights, fit)} if fit.learn_dictionary else weights


def reconstruction_loss(z: jax.Array, dictionary: Any, x: jax.Array, lam: Any) -> jax.Array:
    """mean (z D - x)^2 + lam * mean |z|, means over all entries."""
    return jnp.mean(jnp.square(z @ dictionary - x)) + lam * jnp.mean(jnp.abs(z))


def cosine_loss(z: jax.Array, codes: Any) -> jax.Array:
    """-mean over sources of the cosine between true and predicted codes across the samples (not centred)."""
    dot, own, true = jnp.sum(z * codes, 0), jnp.sum(z * z, 0), jnp.sum(codes * codes, 0)
    # Clamped inside of the root, where a dead latent's gradient would be NaN otherwise.
    eps = _COSINE_EPS**2
    return -jnp.mean(dot / (jnp.sqrt(jnp.maximum(own, eps)) * jnp.sqrt(jnp.maximum(true, eps))))


def loss_of(weights: Weights, batch: Batch, lam: Any, fit: Fit) -> jax.Array:
    """() of one seed; learned atoms are taken as they are."""
    z = codes_of(weights, batch.x, fit)
    if fit.goal == "codes":
        return cosine_loss(z, batch.codes)
    dictionary = weights["atoms"] if fit.learn_dictionary else batch.dictionary
    return reconstruction_loss(z, dictionary, batch.x - weights.get("offset", 0.0), lam)


def one_step(state: State, batch: Batch, numbers: Numbers, fit: Fit) -> State:
    """One update of one seed."""
    key = state.key
    if fit.batch:
        key, draw = jax.random.split(key)
        rows = jax.random.randint(draw, (fit.batch,), 0, batch.x.shape[0])
        codes = None if batch.codes is None else batch.codes[rows]
        batch = batch._replace(x=batch.x[rows], codes=codes)
    weights = _normalised(state.weights, fit)
    slope = jax.grad(loss_of)(weights, batch, numbers.lam, fit)
    return State(*adam.step(weights, slope, state.adam, numbers.lr), key)


_SHARED_NDIM = {"x": 2, "codes": 2, "dictionary": 2, "lam": 0, "lr": 0}


def _split(values: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a NamedTuple that all seeds share, and those with an axis of seeds."""
    fields = {name: value for name, value in values._asdict().items() if value is not None}
    own = {name: value for name, value in fields.items() if jnp.ndim(value) > _SHARED_NDIM[name]}
    return {name: value for name, value in fields.items() if name not in own}, own


def lanes(fit: Fit, n_seeds: int) -> int:
    """How many seeds take their steps side by side, as one vmapped program; the rest follow inside of the same jit.

    On a CPU one, unless the arrays of all fit its caches: a step of five MLP-1024 then costs a fifth.
    """
    small = fit.encoder is not None and fit.encoder.hidden == 0
    return n_seeds if small or jax.default_backend() != "cpu" else 1


@functools.partial(jax.jit, static_argnames="fit", donate_argnums=0)
def advance(state: State, batch: Batch, numbers: Numbers, n_steps: Any, *, fit: Fit) -> State:
    """`n_steps` more updates of all seeds; the number is an argument like others, so all share one compilation."""
    (data, own_data), (rates, own_rates) = _split(batch), _split(numbers)

    def one(parts: tuple[State, dict[str, Any], dict[str, Any]]) -> State:
        state, own_data, own_rates = parts
        mine, rate = Batch(**data, **own_data), Numbers(**rates, **own_rates)
        return jax.lax.fori_loop(0, n_steps, lambda _, s: one_step(s, mine, rate, fit), state)

    side_by_side = lanes(fit, state.key.shape[0])
    # A batch of one would still be batched: its matmuls take three times as long as plain ones.
    batch_size = None if side_by_side == 1 else side_by_side
    return jax.lax.map(one, (state, own_data, own_rates), batch_size=batch_size)
