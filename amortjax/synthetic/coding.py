"""Codes found by optimisation: Adam on log codes, as the released code infers them, and this library's solvers.

Log codes: z = exp(u), so codes are never exactly 0. The released code starts every u at -10 and has a long way to go:
Adam moves u by about its learning rate a step, and where z is tiny its gradient is of the size of Adam's epsilon.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference import exact
from amortjax.synthetic.encoders import Weights, stacked
from amortjax.synthetic.torch_random import TorchStream
from amortjax.synthetic.training import Batch, Fit, Numbers, State, advance, start

LOG_START = -10.0
CODES = Fit(encoder=None)  # free codes under a given dictionary
_TOL = 1e-10  # relative gap at which the exact solver stops
SPARSE_CODING = Fit(encoder=None, learn_dictionary=True)


def log_codes(n_seeds: int, n: int, sources: int) -> Weights:
    """Weights of free codes where the released code starts: u = -10, (n_seeds, n, sources)."""
    return {"log_codes": jnp.full((n_seeds, n, sources), LOG_START, jnp.float32)}


def from_codes(z: Any) -> Weights:
    """Weights that start at codes z (S, n, sources) >= 0; zeros start at exp(-10), from where they can grow."""
    return {"log_codes": jnp.log(jnp.maximum(jnp.asarray(z, jnp.float32), np.exp(LOG_START)))}


def sparse_coding(seeds: list[int], n: int, sources: int, dimensions: int) -> Weights:
    """First weights of sparse coding, stacked: u = -10 and the dictionary that PyTorch draws from each seed."""
    each = []
    for seed in seeds:
        atoms = np.ascontiguousarray(TorchStream(seed).randn(dimensions, sources).T)
        each.append({"log_codes": np.full((n, sources), LOG_START, np.float32), "atoms": atoms})
    return stacked(each)


def optimised(x: Any, dictionary: Any, begin: Weights, n_steps: int, numbers: Numbers) -> jax.Array:
    """Codes (S, n, sources) after `n_steps` of Adam on log codes from `begin`, under fixed dictionaries.

    x (n, dimensions) or (S, n, dimensions); dictionary (sources, dimensions) or (S, sources, dimensions).
    """
    batch = Batch(jnp.asarray(x), None, jnp.asarray(dictionary))
    return codes_in(advance(start(begin), batch, numbers, n_steps, fit=CODES))


def codes_in(state: State) -> jax.Array:
    """(S, n, sources)."""
    return jnp.exp(state.weights["log_codes"])


class Optimum(NamedTuple):
    """Certified codes (n, sources), each sample's duality gap (n,), float64, and the rounds that its code took (n,)."""

    codes: np.ndarray
    gap: np.ndarray
    rounds: np.ndarray


def optimum(x: np.ndarray, dictionary: np.ndarray, lam: float) -> Optimum:
    """The certified lasso of x (n, dimensions) on a dictionary of unit rows; lam in half form, above 0.

    An active set from nothing on, in float64: with few dimensions and a small lambda, codes rounded to float32 already
    have a relative gap of up to 4e-4.
    """
    unit, x = np.asarray(dictionary, np.float64), np.asarray(x, np.float64)
    every, nothing = np.arange(len(unit)), np.zeros(len(unit))
    codes, rounds = np.zeros((len(x), len(unit))), np.zeros(len(x), int)
    for i, row in enumerate(x):
        one = exact.solve_token(unit, row, lam, every, nothing, False, _TOL)
        codes[i, one.indices], rounds[i] = one.values, one.rounds
    return Optimum(codes, duality_gap(codes, x, unit, lam), rounds)


def duality_gap(z: np.ndarray, x: np.ndarray, dictionary: np.ndarray, lam: float) -> np.ndarray:
    """(n,) float64, at least P - P* of each sample, at any z >= 0; lam in half form, above 0."""
    z, x, dictionary = (np.asarray(a, np.float64) for a in (z, x, dictionary))
    residual = x - z @ dictionary
    correlation = residual @ dictionary.T
    scale = np.minimum(1.0, lam / np.maximum(correlation.max(axis=1), 1e-300))
    scale = np.where(correlation.max(axis=1) <= lam, 1.0, scale)
    slack = z * np.maximum(lam - scale[:, None] * correlation, 0.0)
    return 0.5 * (1 - scale) ** 2 * np.sum(residual**2, axis=1) + slack.sum(axis=1)


@functools.partial(jax.jit, static_argnames=("n_steps", "accelerated"))
def _descend(
    x: jax.Array, atoms: jax.Array, lam: Any, step: Any, n_steps: int, accelerated: bool
) -> jax.Array:
    def body(k: Any, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        z, ahead, momentum = state
        slope = jnp.matmul(jnp.matmul(ahead, atoms) - x, atoms.T)
        new = jnp.maximum(ahead - step * (slope + lam), 0.0)
        following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        push = (momentum - 1) / following if accelerated else 0.0
        return new, new + push * (new - z), following

    zero = jnp.zeros((x.shape[0], atoms.shape[0]))
    return jax.lax.fori_loop(0, n_steps, body, (zero, zero, jnp.ones(())))[0]


def descended(x: Any, dictionary: Any, lam: float, method: str, n_steps: int) -> np.ndarray:
    """Codes (n, sources) after `n_steps` of `fista` or `ista` from zero on a dictionary of unit rows; lam in half form.

    FISTA as in Beck & Teboulle 2009, equations 4.1 to 4.3. The library's own restarts it, token by token, which is
    faster in the end but not over the first hundred steps of a problem as small as this one.
    """
    step = 1 / np.linalg.norm(np.asarray(dictionary, np.float64), 2) ** 2
    atoms = jnp.asarray(dictionary, jnp.float32)
    return np.asarray(_descend(jnp.asarray(x), atoms, lam, step, n_steps, method == "fista"))


def half_form(lam: float, sources: int, dimensions: int) -> float:
    """lambda of 1/2 |x - z D|^2 + lambda sum |z| with the minimiser of mean squares + lam * mean |z| per entry."""
    return lam * dimensions / (2 * sources)


def half_objective(z: np.ndarray, x: np.ndarray, dictionary: np.ndarray, lam: float) -> np.ndarray:
    """(n,) float64: 1/2 |x - z D|^2 + lam sum |z| of each sample; lam in half form."""
    z = np.asarray(z, np.float64)
    error = x - z @ np.asarray(dictionary, np.float64)
    return 0.5 * np.sum(error**2, axis=1) + lam * np.abs(z).sum(axis=1)
