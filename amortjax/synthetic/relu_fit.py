"""Encoders ReLU(x W + b) trained for the theorem: on the true codes, and as a sparse autoencoder of a known dictionary.

`best_relu` is as kind to linear-nonlinear encoders as training can be: the true codes are given, the loss is the
squared error itself, and of several starts each source keeps its best, because sources do not share weights.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Linear(NamedTuple):
    """w (M, N), b (N,): float64 on the host."""

    w: np.ndarray
    b: np.ndarray


@functools.partial(jax.jit, static_argnames="n_steps")
def _descend(w: jax.Array, b: jax.Array, x: jax.Array, codes: jax.Array, lr: Any, n_steps: int):
    """R starts at once: w (R, M, N), b (R, N) -> the same after training, and each source's loss (R, N)."""

    def each(params: tuple[jax.Array, jax.Array]) -> jax.Array:
        z = jax.nn.relu(jnp.einsum("nm,rms->rns", x, params[0]) + params[1][:, None])
        return jnp.mean((z - codes) ** 2, axis=1)

    adam = optax.adam(optax.cosine_decay_schedule(lr, n_steps))
    slope = jax.grad(lambda params: jnp.sum(each(params)))

    def step(_: Any, now: tuple) -> tuple:
        params, state = now
        change, state = adam.update(slope(params), state)
        return optax.apply_updates(params, change), state

    params, _ = jax.lax.fori_loop(0, n_steps, step, ((w, b), adam.init((w, b))))
    return *params, each(params)


def best_relu(
    dictionary: np.ndarray,
    codes: np.ndarray,
    starts: int = 4,
    steps: int = 3000,
    lr: float = 0.01,
    seed: int = 0,
) -> Linear:
    """The trained encoder of least squared error on codes (n, N), each source from its best start: the dictionary
    itself, the pseudo-inverse, and random directions."""
    n_sources, dimensions = dictionary.shape
    atoms = np.asarray(dictionary, np.float64)
    random = np.random.default_rng(seed).standard_normal((max(starts - 2, 0), dimensions, n_sources))
    first = np.stack([atoms.T, np.linalg.pinv(atoms), *(random / np.sqrt(dimensions))])[:starts]
    w, b, loss = _descend(
        jnp.asarray(first, jnp.float32), jnp.zeros((len(first), n_sources)), jnp.asarray(codes @ atoms, jnp.float32),
        jnp.asarray(codes, jnp.float32), lr, steps,
    )  # fmt: skip
    best = np.argmin(np.nan_to_num(np.asarray(loss), nan=np.inf), axis=0)
    source = np.arange(n_sources)
    return Linear(np.asarray(w, np.float64)[best, :, source].T, np.asarray(b, np.float64)[best, source])


def sae_encoder(dictionary: np.ndarray, codes: np.ndarray, steps: int = 3000, lam: float = 0.01) -> Linear:
    """The encoder of a sparse autoencoder whose decoder is the dictionary, trained as the paper's: Adam at 1e-3 on
    mean (z D - x)^2 + lam mean |z|, without bias; it never sees the codes."""
    from amortjax.synthetic import encoders, training

    atoms, encoder = jnp.asarray(dictionary, jnp.float32), encoders.Encoder()
    weights = encoders.init(42, encoder, *dictionary.shape, learn_dictionary=False)
    x = jnp.asarray(codes @ np.asarray(dictionary), jnp.float32)
    state = training.start(encoders.stacked([weights]))
    batch, numbers = training.Batch(x, dictionary=atoms), training.Numbers(lam, 1e-3)
    state = training.advance(state, batch, numbers, steps, fit=training.Fit(encoder))
    return Linear(np.asarray(state.weights["layers"][0][0][0], np.float64), np.zeros(len(dictionary)))
