"""Sparse coding on free codes with what `training` leaves out: hard TopK of the codes, a bias of the reconstruction.

    z = exp(u), or with TopK the k largest of relu(u); x ~ z D + b, learned by Adam together with u (and D).

Without k and bias this is `training` with Fit(encoder=None). Codes with TopK begin at random normal u, half of them
below 0, where a ReLU has no gradient: each sample has to do with what it was dealt, in training and in testing, which
is why TopK sparse coding stays below chance whatever k is. That this is what was released is read off its results (MSE
.2207 and .0621 of the codes active at k = 1, .086 and .257 at k = 15); its script was not.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.synthetic.encoders import Weights, largest, unit_atoms
from amortjax.synthetic.torch_random import TorchStream
from amortjax.synthetic.training import ADAM, State

LOG_START = -10.0


class Free(NamedTuple):
    """Static: one compilation each. k 0: all codes stay. Atoms in the weights are learned."""

    k: int = 0
    bias: bool = False


def init(seed: int, n: int, sources: int, dimensions: int, free: Free = Free()) -> Weights:  # noqa: B008
    """The released first weights after torch.manual_seed(seed): free codes u (n, sources), atoms, a bias of zeros."""
    stream = TorchStream(seed)
    atoms = np.ascontiguousarray(stream.randn(dimensions, sources).T)
    codes = stream.randn(n, sources) if free.k else np.full((n, sources), LOG_START, np.float32)
    weights: Weights = {"relu_codes" if free.k else "log_codes": codes, "atoms": atoms}
    return weights | ({"offset": np.zeros(dimensions, np.float32)} if free.bias else {})


def start_of_test(seed: int, n: int, n_test: int, sources: int, dimensions: int, k: int) -> np.ndarray:
    """u (n_test, sources) where test codes begin: with TopK what the stream draws after the first weights of `init`."""
    if not k:
        return np.full((n_test, sources), LOG_START, np.float32)
    stream = TorchStream(seed)
    stream.randn(dimensions, sources)
    stream.randn(n, sources)
    return stream.randn(n_test, sources)


def codes_of(u: jax.Array, k: int) -> jax.Array:
    return largest(jax.nn.relu(u), k) if k else jnp.exp(u)


def loss(weights: Weights, x: jax.Array, lam: Any, k: int) -> jax.Array:
    """mean (z D + b - x)^2 + lam mean z, means over all entries."""
    z = codes_of(weights["relu_codes" if k else "log_codes"], k)
    error = z @ weights["atoms"] + weights.get("offset", 0.0) - x
    return jnp.mean(jnp.square(error)) + lam * jnp.mean(z)


@functools.partial(jax.jit, static_argnames="free", donate_argnums=0)
def advance(state: State, x: jax.Array, lam: Any, lr: Any, n_steps: Any, *, free: Free) -> State:
    """`n_steps` updates of all seeds: x (n, D) or (S, n, D), lam and lr () or (S,)."""

    def step(weights, adam, x, lam, lr):
        weights = weights | {"atoms": unit_atoms(weights["atoms"])}
        change, adam = ADAM.update(jax.grad(loss)(weights, x, lam, free.k), adam)
        return jax.tree.map(lambda w, c: w - lr * c, weights, change), adam

    axes = (0, 0, 0 if x.ndim == 3 else None, *(0 if jnp.ndim(v) else None for v in (lam, lr)))

    def all_seeds(_, state):
        weights, adam = jax.vmap(step, in_axes=axes)(state.weights, state.adam, x, lam, lr)
        return State(weights, adam, state.key)

    return jax.lax.fori_loop(0, n_steps, all_seeds, state)


@functools.partial(jax.jit, static_argnames=("k", "n_steps"))
def code(
    x: jax.Array, atoms: jax.Array, start: jax.Array, lam: Any, lr: Any, *, n_steps: int, k: int = 0
) -> jax.Array:
    """Codes (n, M) of x (n, D) by `n_steps` of Adam on u from `start` (n, M), the atoms (M, D) held."""

    def objective(u):
        z = codes_of(u, k)
        return jnp.mean(jnp.square(z @ atoms - x)) + lam * jnp.mean(z)

    def step(_, state):
        u, adam = state
        change, adam = ADAM.update(jax.grad(objective)(u), adam)
        return u - lr * change, adam

    return codes_of(jax.lax.fori_loop(0, n_steps, step, (start, ADAM.init(start)))[0], k)
