"""LISTA and ALISTA: proximal gradient unrolled into a few layers, whose constants are learned.

A layer k of both is

    v <- T(v + step * gamma_k * (t - v U) A,  step * theta_k * lam)

with T the soft threshold, one-sided for non-negative codes, and v folded codes. LISTA (Gregor & LeCun 2010) learns
A (D, M), shared by its layers, gamma and theta: the paper's W_e = step A and S = I - step U A, tied through U so that
a layer costs two products with M x D matrices and none with M x M. ALISTA (Liu, Chen, Wang & Yin 2019) fixes A to
weights found analytically and learns gamma and theta alone. Thresholds are proportional to lambda, so a network
trained at one lambda can be asked for another. Neither is exact: `objective.certify` says how far each token is.
"""

import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from amortjax.errors import AmortjaxError
from amortjax.inference.chunks import in_chunks
from amortjax.inference.objective import HIGHEST, Problem
from amortjax.inference.request import Request, Solved

LAYERS = 16  # of an untrained network, where the request doesn't say; as in the ALISTA paper


@struct.dataclass
class Unrolled:
    """A network of T layers: `matrix` A (D, M), `step` (), `gamma` and `theta` (T,), both multiples of the step.
    `learns_matrix`: whether training touches A (LISTA) or not (ALISTA)."""

    matrix: jax.Array
    step: jax.Array
    gamma: jax.Array
    theta: jax.Array
    learns_matrix: bool = struct.field(pytree_node=False, default=True)


def init_lista(problem: Problem, n_layers: int = LAYERS) -> Unrolled:
    """Layers that are ISTA's steps, to the last bit but rounding: A = U^T, step = 1 / L, gamma = theta = 1."""
    ones = jnp.ones(n_layers)
    return Unrolled(problem.unit.T, jnp.float32(1.0 / problem.lipschitz), ones, ones)


def analytic_weights(unit: np.ndarray, rcond: float = 1e-8) -> tuple[np.ndarray, float]:
    """ALISTA's weights (M, D) of atoms (M, D), and the largest eigenvalue of W^T U: the rows W_j that minimise
    ||W U^T||_F subject to W_j . U_j = ||U_j||^2, which is 1 for the paper's unit-norm atoms (Liu et al. 2019,
    stage 1, in its relaxed form).

    One atom at a time this is quadratic: W_j is pinv(U^T U) U_j, scaled to the constraint. Directions with less than
    `rcond` of the energy of the atoms' strongest are left out. Rows of zero atoms are zero.
    """
    unit = np.asarray(unit, np.float64)
    values, vectors = np.linalg.eigh(unit.T @ unit)
    kept = values > rcond * max(values[-1], 1e-300)
    whiten = vectors[:, kept] / np.sqrt(values[kept])  # (D, R): whiten whiten^T is the pseudo-inverse
    white = unit @ whiten
    energy, leverage = np.sum(unit * unit, axis=1), np.sum(white * white, axis=1)
    # A live atom has leverage of at least energy / values[-1], unless it lies in directions that were left out.
    usable = leverage * values[-1] > 1e-3 * energy
    ratio = np.where(usable, energy / np.where(usable, leverage, 1.0), 0.0)[:, None]
    # Similar to W^T U, and symmetric.
    spectrum = np.linalg.eigvalsh(white.T @ (ratio * white))
    return (ratio * white) @ whiten.T, float(spectrum[-1]) if len(spectrum) else 0.0


def init_alista(problem: Problem, n_layers: int = LAYERS) -> Unrolled:
    """Analytic weights, and steps that can't diverge: a layer is proximal gradient for the atoms and tokens whitened
    by U^T U, each atom with a step of its own, for which 1 / (the largest eigenvalue of W^T U) is short enough."""
    weights, largest = analytic_weights(problem.unit64)
    step = jnp.float32(1.0 / largest if largest > 0 else 1.0)
    ones = jnp.ones(n_layers)
    return Unrolled(jnp.asarray(weights.T, jnp.float32), step, ones, ones, learns_matrix=False)


def constants(params: Unrolled) -> tuple[tuple[float, float], ...]:
    """(gamma, theta) of each layer: all that tells an ALISTA network from others of the same dictionary."""
    pairs = zip(np.asarray(params.gamma).tolist(), np.asarray(params.theta).tolist(), strict=True)
    return tuple((gamma, theta) for gamma, theta in pairs)


_analytic: dict[int, Unrolled] = {}  # by the id of a Problem that is alive


def with_constants(problem: Problem, learned: Sequence[tuple[float, float]]) -> Unrolled:
    """The ALISTA network of a dictionary with these constants of its layers. Its weights, which take seconds where
    D and M are large, are found once for each Problem."""
    if id(problem) not in _analytic:
        _analytic[id(problem)] = init_alista(problem, 1)
        weakref.finalize(problem, _analytic.pop, id(problem), None)
    gamma, theta = jnp.asarray(np.asarray(learned, np.float32).T)
    return dataclasses.replace(_analytic[id(problem)], gamma=gamma, theta=theta)


@functools.partial(jax.jit, static_argnames="signed")
def forward(
    params: Unrolled, unit: jax.Array, t: jax.Array, lam: jax.Array, start: jax.Array, *, signed: bool = False
) -> jax.Array:
    """Folded codes (N, M) after all layers: unit (M, D), t (N, D), lam (N,), start (N, M)."""
    live = jnp.any(unit != 0, axis=1)  # a learned A could wake an atom that explains nothing

    def layer(v, constants):
        gamma, theta = constants
        r = t - jnp.matmul(v, unit, precision=HIGHEST)
        moved = v + params.step * gamma * jnp.matmul(r, params.matrix, precision=HIGHEST)
        # A negative threshold would give codes to tokens that are zero.
        cut = params.step * jnp.maximum(theta, 0.0) * lam[:, None]
        shrunk = (
            jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - cut, 0.0)
            if signed
            else jnp.maximum(moved - cut, 0.0)
        )
        return jnp.where(live, shrunk, 0.0), None

    return jax.lax.scan(layer, start, (params.gamma, params.theta))[0]


def mean_objective(params: Unrolled, unit, t, lam, *, signed: bool) -> jax.Array:
    """Mean over tokens of P at lam (N,) of the network's codes from zero."""
    v = forward(params, unit, t, lam, jnp.zeros((len(t), len(unit))), signed=signed)
    r = t - jnp.matmul(v, unit, precision=HIGHEST)
    return jnp.mean(0.5 * jnp.sum(r * r, axis=1) + lam * jnp.sum(jnp.abs(v), axis=1))


class _Learned(NamedTuple):
    """What training moves, each in units of its first size, because Adam's steps are all of one size: gamma and
    theta (T,), and A (D, M) over its root mean square, or None."""

    gamma: jax.Array
    theta: jax.Array
    matrix: jax.Array | None


def _optimizer(lr: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(lr, max(steps, 1)))


def _with(params: Unrolled, learned: _Learned, size: jax.Array | float) -> Unrolled:
    matrix = params.matrix if learned.matrix is None else size * learned.matrix
    return dataclasses.replace(params, gamma=learned.gamma, theta=learned.theta, matrix=matrix)


@functools.partial(jax.jit, static_argnames=("lr", "steps", "signed"))
def _train_step(learned, state, params, size, unit, t, lam, energy, *, lr, steps, signed):
    loss = lambda own: mean_objective(_with(params, own, size), unit, t, lam, signed=signed) / energy  # noqa: E731
    updates, state = _optimizer(lr, steps).update(jax.grad(loss)(learned), state, learned)
    return optax.apply_updates(learned, updates), state


def fit(
    problem: Problem,
    t: np.ndarray,
    lam: np.ndarray | float,
    params: Unrolled,
    steps: int = 2000,
    lr: float = 1e-2,
    batch: int = 256,
    seed: int = 0,
    bar: Any = None,
) -> Unrolled:
    """The network trained on t (N, D) to lower the mean P at `lam`, a scalar or (N,) (half form), by Adam.

    `lr` is relative: a step changes a learned constant, or a typical entry of A, by about that share. `batch` tokens
    are drawn with replacement at each step. `bar`: a tqdm bar, moved on by the steps done.
    """
    t = np.asarray(t, np.float32)
    lam = np.broadcast_to(np.asarray(lam, np.float32), (len(t),))
    # The loss in units of the tokens' energy, so that Adam's epsilon means the same for any tokens.
    energy = max(0.5 * float(np.mean(np.sum(np.square(t, dtype=np.float64), axis=1))), 1e-30)
    size = max(float(jnp.sqrt(jnp.mean(params.matrix**2))), 1e-30)
    matrix = params.matrix / size if params.learns_matrix else None
    learned: Any = _Learned(params.gamma, params.theta, matrix)
    state = _optimizer(lr, steps).init(learned)
    fixed = {"lr": lr, "steps": steps, "signed": problem.signed}
    r = np.random.default_rng(seed)
    for _ in range(steps):
        rows = r.integers(0, len(t), min(batch, len(t)))
        here = problem.unit, t[rows], lam[rows], energy
        learned, state = _train_step(learned, state, params, size, *here, **fixed)
        if bar is not None:
            bar.update(1)
    return _with(params, learned, size)


def _solve(request: Request, init) -> Solved:
    problem, settings = request.problem, request.settings
    layers = LAYERS if settings.n_steps is None else settings.n_steps
    params = settings.params if settings.params is not None else init(problem, layers)
    if params.matrix.shape != problem.unit.shape[::-1]:
        raise AmortjaxError(
            f"a network for {params.matrix.shape[::-1]} atoms can't code {problem.unit.shape}"
        )
    solve = lambda t, lam, start, _: forward(params, problem.unit, t, lam, start, signed=problem.signed)  # noqa: E731
    return in_chunks(request, solve), np.full(len(request.t), len(params.gamma))


def solve_lista(request: Request) -> Solved:
    """The network in the request's settings; without one, an untrained one of n_steps layers, which is ISTA."""
    return _solve(request, init_lista)


def solve_alista(request: Request) -> Solved:
    """The network in the request's settings; without one, an untrained one of n_steps layers, posed anew at each
    call (a D x D pseudo-inverse): for many tokens, pass `init_alista(...)` as the settings' params."""
    return _solve(request, init_alista)
