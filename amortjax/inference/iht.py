"""Iterative hard thresholding: the descent that OMP is compared with. Best found, never certified.

v <- H_K(max(v + mu U (t - v U), 0)), where H_K keeps a token's K largest, with the normalised steps mu of Blumensath
& Davies 2010, then least squares on the support it ends with.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference import refit
from amortjax.inference.chunks import in_chunks
from amortjax.inference.codes import round_up
from amortjax.inference.objective import HIGHEST, Problem
from amortjax.inference.pursuit import budget_of, unit_norm
from amortjax.inference.request import Request, Solved


def _largest(v, budget, slots: int, signed: bool):
    """H_K: the `budget` (n,) largest of each v (n, M), which are positive (signed: largest in size), as indices
    and values (n, slots)."""
    score, indices = jax.lax.top_k(jnp.abs(v) if signed else v, slots)
    keep = (jnp.arange(slots) < budget[:, None]) & (score > 0)
    return indices, jnp.where(keep, jnp.take_along_axis(v, indices, axis=1), 0.0)


class _State(NamedTuple):
    indices: jax.Array  # (n, K)
    v: jax.Array  # (n, K)
    r: jax.Array  # (n, D) residual


def _dense(s: _State, m: int) -> jax.Array:
    """(n, M)"""
    return jnp.zeros((len(s.v), m)).at[jnp.arange(len(s.v))[:, None], s.indices].add(s.v)


def _first_length(unit, g, best, s: _State, safe) -> jax.Array:
    """||g_S||^2 / ||g_S U||^2 (n, 1): the exact line search if the support S stays as it is. Where S is empty,
    that of the `best` entries of g (indices, values)."""
    empty = ~jnp.any(s.v != 0, axis=1, keepdims=True)
    indices = jnp.where(empty, best[0], s.indices)
    along = jnp.where(empty, best[1], jnp.where(s.v != 0, jnp.take_along_axis(g, s.indices, axis=1), 0.0))
    moved = jnp.einsum("nk,nkd->nd", along, unit[indices], precision=HIGHEST)
    energy = jnp.sum(moved * moved, axis=1, keepdims=True)
    length = jnp.sum(along * along, axis=1, keepdims=True) / jnp.where(energy > 0, energy, 1.0)
    return jnp.maximum(jnp.where(energy > 0, length, safe), safe)


@functools.partial(jax.jit, static_argnames=("slots", "signed"))
def _iht(unit, t, start, budget, safe, n_steps, *, slots: int, signed: bool) -> jax.Array:
    """Folded codes (n, M). `safe` (): 1 / L, a step with which the error can't rise."""
    m = len(unit)

    def state(dense) -> _State:
        indices, v = _largest(dense, budget, slots, signed)
        return _State(indices, v, t - jnp.einsum("nk,nkd->nd", v, unit[indices], precision=HIGHEST))

    def accepted(old: _State, before, mu, new: _State):
        """A new support needs mu <= ||dv||^2 / ||dv U||^2, without which the error might rise."""
        after = _dense(new, m)
        same = jnp.all((after != 0) == (before != 0), axis=1, keepdims=True)
        change = jnp.sum((after - before) ** 2, axis=1, keepdims=True)
        effect = jnp.sum((new.r - old.r) ** 2, axis=1, keepdims=True)
        return same | (mu * effect <= 0.99 * change) | ~(mu > safe)  # also ends where mu is NaN

    def step(_, old: _State) -> _State:
        g, before = jnp.matmul(old.r, unit.T, precision=HIGHEST), _dense(old, m)
        mu = _first_length(unit, g, _largest(g, budget, slots, signed), old, safe)

        def shorter(trial):
            mu, new, ok = trial
            mu = jnp.where(ok, mu, jnp.maximum(0.5 * mu, safe))
            new = state(before + mu * g)
            return mu, new, accepted(old, before, mu, new)

        new = state(before + mu * g)
        trial = mu, new, accepted(old, before, mu, new)
        return jax.lax.while_loop(lambda trial: ~jnp.all(trial[2]), shorter, trial)[1]

    return _dense(jax.lax.fori_loop(0, n_steps, step, state(start)), m)


def solve_iht(request: Request) -> Solved:
    """100 steps unless the request says otherwise, none of which raises the error, then the non-negative refit.
    From the request's start, cut to the budget."""
    problem, budget = request.problem, budget_of(request)
    unit, norms = unit_norm(problem)
    posed = Problem(unit, jnp.asarray(norms), problem.record)
    slots = min(round_up(int(budget.max(initial=0)), at_least=16), problem.n_latents)
    n_steps = 100 if request.settings.n_steps is None else request.settings.n_steps
    options = {"slots": slots, "signed": problem.signed}
    start = None if request.start is None else request.start.scaled(norms)
    safe = 1.0 / posed.lipschitz
    solve = lambda t, _, v, budget: _iht(unit, t, v, budget, safe, n_steps, **options)  # noqa: E731
    codes = in_chunks(request._replace(start=start, budget=budget), solve)
    return refit.nnls(unit, request.t, codes).scaled(1 / norms), np.full(len(budget), n_steps)
