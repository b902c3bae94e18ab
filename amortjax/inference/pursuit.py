"""Non-negative orthogonal matching pursuit: the L0-constrained reference. Best found, never certified.

Each step adds the atom best correlated with the residual and refits all amplitudes (Pati et al. 1993;
non-negative: Bruckstein, Elad & Zibulevsky 2008).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import support
from amortjax.inference.active_set import best_of_blocks
from amortjax.inference.codes import Codes, chunk_rows, round_up
from amortjax.inference.objective import HIGHEST
from amortjax.inference.request import Request, Solved


@functools.partial(jax.jit, static_argnames=("slots", "signed"))
def _omp(unit, t, budget, steps, slots: int, signed: bool):
    n, d = t.shape
    norm = jnp.linalg.norm(t, axis=1)

    def residual(atoms, v):
        return t - jnp.einsum("nk,nkd->nd", v, atoms, precision=HIGHEST)

    def step(k, state):
        indices, v, atoms, gram, q = state
        c = jnp.matmul(residual(atoms, v), unit.T, precision=HIGHEST)
        score, index = best_of_blocks(jnp.abs(c) if signed else c, 1)
        index = index[:, 0]
        known = jnp.any((indices == index[:, None]) & (jnp.arange(slots) < k), axis=1)
        add = (score[:, 0] > 1e-6 * norm) & (jnp.sum(v > 0, axis=1) < budget) & ~known
        sign = jnp.where(jnp.take_along_axis(c, index[:, None], axis=1) < 0, -1.0, 1.0)
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
    indices, v, atoms, gram, q = jax.lax.fori_loop(0, jnp.minimum(steps, slots), step, start)
    # A refit may bring back an atom that an earlier one had dropped: the budget is kept by the largest.
    rank = jnp.argsort(jnp.argsort(-v, axis=1), axis=1)
    keep = (rank < budget[:, None]) & (v > 0)
    gram = jnp.where(keep[:, :, None] & keep[:, None, :], gram, 0.0)
    v = support.solve_on_support(gram, q, jnp.where(keep, v, 0.0), 1e-6 * norm, max_rounds=30)
    # A flipped atom carries its sign: the inner product with the stored atom tells which it was.
    sign = jnp.sign(jnp.einsum("nkd,nkd->nk", atoms, unit[indices], precision=HIGHEST))
    return indices, v * sign


def omp(unit: jax.Array, t: np.ndarray, budget: np.ndarray, signed: bool = False) -> Codes:
    """Folded codes of t (N, D) with at most `budget` (N,) non-zeros each: the same K, token by token, as the
    codes it is compared with. A few extra steps are allowed, because the non-negative refit may drop atoms.
    Tokens of like budgets go together, so that a few dense ones don't cost all the others their steps."""
    t, budget = np.asarray(t, np.float32), np.asarray(budget)
    steps = budget + np.maximum(2, budget // 8)
    slots = np.asarray([min(round_up(int(n), at_least=16), len(unit)) for n in steps], int)
    shape = (len(t), max(slots, default=8))
    codes = Codes(np.zeros(shape, np.int32), np.zeros(shape, np.float32), len(unit))
    for width in np.unique(slots):
        rows = np.flatnonzero(slots == width)
        chunk = chunk_rows(len(rows), 4 * int(width) * (unit.shape[1] + 3 * int(width)))
        for i in range(0, len(rows), chunk):
            own = rows[i : i + chunk]
            pad = lambda a: np.pad(a, [(0, chunk - len(a))] + [(0, 0)] * (a.ndim - 1))  # noqa: B023, E731
            most = np.int32(steps[own].max())
            indices, values = _omp(unit, pad(t[own]), pad(budget[own]), most, int(width), signed)
            codes.indices[own, :width] = np.asarray(indices)[: len(own)]
            codes.values[own, :width] = np.asarray(values)[: len(own)]
    return codes


def budget_of(request: Request) -> np.ndarray:
    """The request's budget (n,), never above the latents there are; without one there is nothing to bound."""
    if request.budget is None:
        raise AmortjaxError("this solver needs a budget: the most latents each token may use")
    return np.minimum(np.broadcast_to(request.budget, (len(request.t),)), request.problem.n_latents)


def solve_omp(request: Request) -> Solved:
    # Under unit weights the atoms are not of unit norm, which the choice of the best one needs.
    problem, budget = request.problem, budget_of(request)
    norms = np.linalg.norm(np.asarray(problem.unit), axis=1)
    norms = np.where(norms > 0, norms, 1.0).astype(np.float32)
    codes = omp(problem.unit / norms[:, None], request.t, budget, problem.signed)
    return codes.scaled(1 / norms), budget
