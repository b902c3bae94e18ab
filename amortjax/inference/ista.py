"""ISTA and FISTA: proximal gradient with a fixed number of steps on the folded problem (see `objective`).

ISTA with 200 steps from zero is the papers' "non-amortized" reference; a few steps from the encoder's code are
their "semi-amortized" one. Neither is an optimum: `objective.certify` says how far each token is from it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference.chunks import in_chunks
from amortjax.inference.objective import HIGHEST
from amortjax.inference.request import Request, Solved


class IstaState(NamedTuple):
    v: jax.Array  # (M,) folded code


class FistaState(NamedTuple):
    v: jax.Array  # (M,) folded code
    y: jax.Array  # (M,) extrapolated code
    momentum: jax.Array  # ()


def _prox_step(unit, t, lam, step, v, signed: bool) -> jax.Array:
    """A gradient step on 1/2 ||t - v U||^2 and the proximal map of lam * sum |v| (over v >= 0 unless signed)."""
    residual = t - jnp.matmul(v, unit, precision=HIGHEST)
    moved = v + step * jnp.matmul(residual, unit.T, precision=HIGHEST)
    if signed:
        return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - step * lam, 0.0)
    return jnp.maximum(moved - step * lam, 0.0)


def _ista_step(unit, t, lam, step, s: IstaState, signed: bool) -> IstaState:
    return IstaState(_prox_step(unit, t, lam, step, s.v, signed))


def _fista_step(unit, t, lam, step, s: FistaState, signed: bool) -> FistaState:
    """Beck & Teboulle 2009, equations 4.1 to 4.3, restarted when the momentum points uphill (O'Donoghue &
    Candes 2015), which keeps the rate and makes it fast once the support has settled."""
    v = _prox_step(unit, t, lam, step, s.y, signed)
    uphill = jnp.vdot(s.y - v, v - s.v) > 0
    momentum = jnp.where(uphill, 1.0, s.momentum)
    following = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
    y = v + jnp.where(uphill, 0.0, (momentum - 1) / following) * (v - s.v)
    return FistaState(v, y, jnp.where(uphill, 1.0, following))


class FirstOrder(NamedTuple):
    """A first-order solver of one token: its start, and a step (unit, t, lam, step, state, signed) -> state."""

    init: Callable
    step: Callable


FIRST_ORDER = {
    "ista": FirstOrder(IstaState, _ista_step),
    "fista": FirstOrder(lambda v: FistaState(v, v, jnp.ones(())), _fista_step),
}


@functools.partial(jax.jit, static_argnames=("solver", "n_steps", "signed"))
def descend(unit, t, v0, lam, lipschitz, *, solver: str, n_steps: int, signed: bool = False) -> jax.Array:
    """Folded codes (N, M) after `n_steps` steps: unit (M, D), t (N, D), v0 (N, M), lam (N,)."""
    init, step = FIRST_ORDER[solver]

    def one(t, v0, lam):
        body = lambda _, s: step(unit, t, lam, 1.0 / lipschitz, s, signed)  # noqa: E731
        return jax.lax.fori_loop(0, n_steps, body, init(v0)).v

    return jax.vmap(one)(t, v0, lam)


def _solve(request: Request, method: str, n_steps: int) -> Solved:
    problem = request.problem
    options = {"solver": method, "n_steps": n_steps, "signed": problem.signed}

    def solve(t, lam, start, _):
        return descend(problem.unit, t, start, lam, problem.lipschitz, **options)

    return in_chunks(request, solve), np.full(len(request.t), n_steps)


def solve_ista(request: Request) -> Solved:
    """200 steps from zero, the papers' reference, unless the request says otherwise."""
    return _solve(request, "ista", 200 if request.settings.n_steps is None else request.settings.n_steps)


def solve_fista(request: Request) -> Solved:
    return _solve(request, "fista", 5000 if request.settings.n_steps is None else request.settings.n_steps)
