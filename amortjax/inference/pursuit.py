"""Greedy pursuits, the L0-constrained references. Best found, never certified.

Each step looks at the whole dictionary once, for the atom best correlated with the residual, and keeps the rest of
its work on the few atoms a token has. They differ in what follows: matching pursuit takes that atom's coefficient
and leaves the others alone (Mallat & Zhang 1993), gradient pursuit moves all of them a step along the gradient
(Blumensath & Davies 2008; non-negative: Smith 2024), orthogonal matching pursuit refits all of them (Pati et al.
1993; non-negative: Bruckstein, Elad & Zibulevsky 2008). They begin from nothing: a request's `start` isn't used.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import support
from amortjax.inference.codes import Codes, chunk_rows, round_up
from amortjax.inference.objective import HIGHEST, Problem
from amortjax.inference.request import Request, Solved


def _best_atom(unit, r, norm, signed: bool):
    """Of each residual (n, D): its correlations (n, M), the best atom (n,), and whether it is worth adding: below
    1e-6 of the token's norm (n,), a correlation is float32's rounding."""
    c = jnp.matmul(r, unit.T, precision=HIGHEST)
    score = jnp.abs(c) if signed else c
    top = jnp.max(score, axis=1)
    # Two plain reductions, which XLA vectorises on a CPU, as it does not an argmax.
    place = jnp.where(score == top[:, None], jnp.arange(len(unit)), len(unit) - 1)
    return c, jnp.min(place, axis=1), top > 1e-6 * norm


def _at(a: jax.Array, index: jax.Array) -> jax.Array:
    """a[i, index[i]] of each row: a (n, k), index (n,)."""
    return jnp.take_along_axis(a, index[:, None], axis=1)[:, 0]


@functools.partial(jax.jit, static_argnames=("slots", "signed"))
def _mp(unit, t, budget, steps, slots: int, signed: bool):
    norm = jnp.linalg.norm(t, axis=1)
    rows = jnp.arange(len(t))

    def step(k, state):
        indices, v, r = state
        c, index, worth = _best_atom(unit, r, norm, signed)
        used = v != 0
        same = used & (indices == index[:, None])
        slot = jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), jnp.argmin(used, axis=1))
        # With its budget spent, a token goes on among the atoms it has.
        full = jnp.sum(used, axis=1) >= budget
        own = jnp.take_along_axis(c, indices, axis=1)
        own = jnp.where(used, jnp.abs(own) if signed else own, -jnp.inf)
        slot = jnp.where(full, jnp.argmax(own, axis=1), slot)
        index = jnp.where(full, _at(indices, slot), index)
        worth = jnp.where(full, jnp.max(own, axis=1) > 1e-6 * norm, worth) & (k < steps)
        gain = jnp.where(worth, _at(c, index), 0.0)
        indices = indices.at[rows, slot].set(jnp.where(worth, index, _at(indices, slot)))
        return indices, v.at[rows, slot].add(gain), r - gain[:, None] * unit[index]

    start = jnp.zeros((len(t), slots), jnp.int32), jnp.zeros((len(t), slots)), t
    return jax.lax.fori_loop(0, jnp.max(steps), step, start)[:2]


@functools.partial(jax.jit, static_argnames=("slots", "signed"))
def _gradient_pursuit(unit, t, budget, steps, slots: int, signed: bool):
    norm = jnp.linalg.norm(t, axis=1)
    rows = jnp.arange(len(t))

    def step(k, state):
        indices, v, atoms = state
        r = t - jnp.einsum("nk,nkd->nd", v, atoms, precision=HIGHEST)
        _, index, worth = _best_atom(unit, r, norm, signed)
        used, going = v != 0, k < steps
        known = jnp.any(used & (indices == index[:, None]), axis=1)
        add = going & worth & ~known & (jnp.sum(used, axis=1) < budget)
        slot = jnp.argmin(used, axis=1)  # the first free one
        indices = indices.at[rows, slot].set(jnp.where(add, index, _at(indices, slot)))
        atoms = atoms.at[rows, slot].set(jnp.where(add[:, None], unit[index], atoms[rows, slot]))
        used = used.at[rows, slot].set(_at(used, slot) | add)
        g = jnp.where(used, jnp.einsum("nkd,nd->nk", atoms, r, precision=HIGHEST), 0.0)
        along = jnp.einsum("nk,nkd->nd", g, atoms, precision=HIGHEST)
        energy = jnp.sum(along * along, axis=1)
        # The exact line search; with nothing to move along, it stays.
        length = jnp.where(energy > 0, jnp.sum(along * r, axis=1) / jnp.where(energy > 0, energy, 1.0), 0.0)
        moved = v + length[:, None] * g
        moved = moved if signed else jnp.maximum(moved, 0.0)
        return indices, jnp.where(going[:, None], moved, v), atoms

    n, d = t.shape
    start = jnp.zeros((n, slots), jnp.int32), jnp.zeros((n, slots)), jnp.zeros((n, slots, d))
    return jax.lax.fori_loop(0, jnp.max(steps), step, start)[:2]


@functools.partial(jax.jit, static_argnames=("slots", "signed"))
def _omp(unit, t, budget, steps, slots: int, signed: bool):
    n, d = t.shape
    norm = jnp.linalg.norm(t, axis=1)

    def step(k, state):
        indices, v, atoms, gram, q = state
        r = t - jnp.einsum("nk,nkd->nd", v, atoms, precision=HIGHEST)
        c, index, worth = _best_atom(unit, r, norm, signed)
        known = jnp.any((indices == index[:, None]) & (jnp.arange(slots) < k), axis=1)
        # Its own steps bound a token, not those of the densest one beside it.
        add = (k < steps) & worth & (jnp.sum(v > 0, axis=1) < budget) & ~known
        sign = jnp.where(_at(c, index)[:, None] < 0, -1.0, 1.0)
        atom = jnp.where(add[:, None], unit[index] * sign, 0.0)
        atoms, indices = atoms.at[:, k].set(atom), indices.at[:, k].set(index)
        row = jnp.einsum("nkd,nd->nk", atoms, atom, precision=HIGHEST)
        gram = gram.at[:, k, :].set(row).at[:, :, k].set(row)
        q = q.at[:, k].set(jnp.sum(atom * t, axis=1))
        # Accurate enough to name the next atom; the last refit is tight.
        v = support.solve_on_support(gram, q, v, 1e-4 * norm, max_rounds=3)
        return indices, v, atoms, gram, q

    start = (
        jnp.zeros((n, slots), jnp.int32),
        jnp.zeros((n, slots)),
        jnp.zeros((n, slots, d)),
        jnp.zeros((n, slots, slots)),
        jnp.zeros((n, slots)),
    )
    indices, v, atoms, gram, q = jax.lax.fori_loop(0, jnp.minimum(jnp.max(steps), slots), step, start)
    # A refit may bring back an atom that an earlier one had dropped: the budget is kept by the largest.
    rank = jnp.argsort(jnp.argsort(-v, axis=1), axis=1)
    keep = (rank < budget[:, None]) & (v > 0)
    gram = jnp.where(keep[:, :, None] & keep[:, None, :], gram, 0.0)
    v = support.solve_on_support(gram, q, jnp.where(keep, v, 0.0), 1e-6 * norm, max_rounds=30)
    # A flipped atom carries its sign: the inner product with the stored atom tells which it was.
    sign = jnp.sign(jnp.einsum("nkd,nkd->nk", atoms, unit[indices], precision=HIGHEST))
    return indices, v * sign


def _in_batches(pursuit: Callable, unit, t, budget, steps, most, signed: bool) -> Codes:
    """Folded codes of t (N, D): `pursuit` over tokens with room for like numbers of atoms, so that a few dense ones
    don't cost all the others their slots; padded, so that a shape compiles once. budget, steps and `most`, the
    slots a token needs, are (N,)."""
    t = np.asarray(t, np.float32)
    slots = np.asarray([min(round_up(int(n), at_least=16), len(unit)) for n in most], int)
    shape = (len(t), max(slots, default=8))
    codes = Codes(np.zeros(shape, np.int32), np.zeros(shape, np.float32), len(unit))
    for width in np.unique(slots):
        rows = np.flatnonzero(slots == width)
        chunk = chunk_rows(len(rows), 4 * int(width) * (unit.shape[1] + 3 * int(width)))
        for i in range(0, len(rows), chunk):
            own = rows[i : i + chunk]
            pad = lambda a: np.pad(a, [(0, chunk - len(a))] + [(0, 0)] * (a.ndim - 1))  # noqa: B023, E731
            indices, values = pursuit(
                unit, pad(t[own]), pad(budget[own]), pad(steps[own]), int(width), signed
            )
            codes.indices[own, :width] = np.asarray(indices)[: len(own)]
            codes.values[own, :width] = np.asarray(values)[: len(own)]
    return codes


def omp(unit: jax.Array, t: np.ndarray, budget: np.ndarray, signed: bool = False) -> Codes:
    """Folded codes of t (N, D) with at most `budget` (N,) non-zeros each: the same K, token by token, as the
    codes it is compared with. A few extra steps are allowed, because the non-negative refit may drop atoms."""
    budget = np.asarray(budget)
    steps = budget + np.maximum(2, budget // 8)
    return _in_batches(_omp, unit, t, budget, steps, steps, signed)


def budget_of(request: Request) -> np.ndarray:
    """The request's budget (n,), never above the latents there are; without one there is nothing to bound."""
    if request.budget is None:
        raise AmortjaxError("this solver needs a budget: the most latents each token may use")
    return np.minimum(np.broadcast_to(request.budget, (len(request.t),)), request.problem.n_latents)


def unit_norm(problem: Problem) -> tuple[jax.Array, np.ndarray]:
    """The atoms (M, D) at unit norm, which the choice of the best one needs, and the norms (M,) by which their
    codes are divided to be the problem's (under unit weights those atoms have norms of their own)."""
    norms = np.linalg.norm(np.asarray(problem.unit), axis=1)
    norms = np.where(norms > 0, norms, 1.0).astype(np.float32)
    return problem.unit / norms[:, None], norms


def solve_omp(request: Request) -> Solved:
    budget, (unit, norms) = budget_of(request), unit_norm(request.problem)
    return omp(unit, request.t, budget, request.problem.signed).scaled(1 / norms), budget


def _solve(request: Request, pursuit: Callable) -> Solved:
    """As many steps as the budget, or the request's; an atom chosen again uses up a step but no budget."""
    budget, (unit, norms) = budget_of(request), unit_norm(request.problem)
    n_steps = request.settings.n_steps
    steps = budget if n_steps is None else np.full(len(budget), n_steps)
    codes = _in_batches(pursuit, unit, request.t, budget, steps, budget, request.problem.signed)
    return codes.scaled(1 / norms), steps


def solve_mp(request: Request) -> Solved:
    """Matching pursuit (Mallat & Zhang 1993): v_j += (U_j . r)_+ for the best j (signed: the largest |U_j . r|,
    either sign). No coefficient is ever revised but by choosing its atom again."""
    return _solve(request, _mp)


def solve_gradient_pursuit(request: Request) -> Solved:
    """Gradient pursuit (Smith 2024, "Replacing SAE encoders with inference-time optimisation"): the best atom
    joins the support, g = U r on it, and v <- max(v + g <c, r> / <c, c>, 0) with c = g U. Signed: no clip."""
    return _solve(request, _gradient_pursuit)
