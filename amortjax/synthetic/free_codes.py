"""Sparse coding on free codes with what `training` leaves out: hard TopK of the codes, a bias of the reconstruction.

    z = exp(u), of which the k largest of a sample stay; x ~ z D + b, learned by Adam together with u (and D).

Without k and bias this is `training` with Fit(encoder=None). All log codes begin at -10, so that TopK chooses the first
k sources of every sample, and another only where one of these shrinks: why TopK sparse coding stays near chance.
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


def init(seed: int, n: int, sources: int, dimensions: int, bias: bool = False) -> Weights:
    """The released first weights after torch.manual_seed(seed): log codes (n, sources), atoms, a bias of zeros."""
    atoms = np.ascontiguousarray(TorchStream(seed).randn(dimensions, sources).T)
    weights: Weights = {"log_codes": np.full((n, sources), LOG_START, np.float32), "atoms": atoms}
    return weights | ({"offset": np.zeros(dimensions, np.float32)} if bias else {})


def loss(weights: Weights, x: jax.Array, lam: Any, k: int) -> jax.Array:
    """mean (z D + b - x)^2 + lam mean z, means over all entries."""
    z = largest(jnp.exp(weights["log_codes"]), k)
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
def code(x: jax.Array, atoms: jax.Array, lam: Any, lr: Any, *, n_steps: int, k: int = 0) -> jax.Array:
    """Codes (n, M) of x (n, D) by `n_steps` of Adam on log codes, the atoms (M, D) held."""

    def objective(log_codes):
        z = largest(jnp.exp(log_codes), k)
        return jnp.mean(jnp.square(z @ atoms - x)) + lam * jnp.mean(z)

    def step(_, state):
        log_codes, adam = state
        change, adam = ADAM.update(jax.grad(objective)(log_codes), adam)
        return log_codes - lr * change, adam

    start = jnp.full((x.shape[0], atoms.shape[0]), LOG_START)
    return largest(jnp.exp(jax.lax.fori_loop(0, n_steps, step, (start, ADAM.init(start)))[0]), k)
