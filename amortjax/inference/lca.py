"""Classical LCA: the lasso as neurons that leak and inhibit one another (Rozell, Johnson, Baraniuk & Olshausen
2008).

    tau du/dt = U t - u - (U U^T - k I) a,    a = T_lam(u) / k

with T_lam the soft threshold, one-sided for non-negative codes. The lateral inhibition is U (a U), never an M x M
matrix. The paper has unit-norm atoms and k = 1. Here k is the largest ||U_j||^2, which is 1 for atoms divided by
their norms and, under unit weights, makes the dynamics indifferent to the units of the atoms. Fixed points are the
optima for any k and any norms: du = 0 says U_j . r = u_j - k a_j, which is lam where a_j > 0, and at most lam
elsewhere. An atom of norm zero has no input, so it leaks away and stays silent.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference.chunks import in_chunks
from amortjax.inference.objective import HIGHEST
from amortjax.inference.request import Request, Solved


def _threshold(u: jax.Array, lam: jax.Array, signed: bool) -> jax.Array:
    """T_lam of u (n, M), lam (n,)."""
    if signed:
        return jnp.sign(u) * jnp.maximum(jnp.abs(u) - lam[:, None], 0.0)
    return jnp.maximum(u - lam[:, None], 0.0)


@functools.partial(jax.jit, static_argnames="signed")
def _lca(unit, t, lam, start, lipschitz, n_steps, *, signed: bool) -> jax.Array:
    """Folded codes (n, M) after n_steps Euler steps of h = k / L time constants.

    A step multiplies an active set's error by I - h G / k, G the Gram matrix of its atoms, and a silent neuron's by
    1 - h. ||G|| <= L = ||U||^2 and k <= L, so h = k / L keeps all of them in [0, 1]: neither can ring.
    """
    size = jnp.max(jnp.sum(unit * unit, axis=1))
    k = jnp.where(size > 0, size, 1.0)
    h = jnp.minimum(k / lipschitz, 1.0)

    def step(_, u):
        a = _threshold(u, lam, signed) / k
        r = t - jnp.matmul(a, unit, precision=HIGHEST)
        return u + h * (jnp.matmul(r, unit.T, precision=HIGHEST) + k * a - u)

    # The membrane potentials whose codes are `start`.
    u = k * start + lam[:, None] * jnp.sign(start)
    return _threshold(jax.lax.fori_loop(0, n_steps, step, u), lam, signed) / k


def solve_lca(request: Request) -> Solved:
    """1000 Euler steps unless the request says otherwise."""
    problem = request.problem
    n_steps = 1000 if request.settings.n_steps is None else request.settings.n_steps

    def solve(t, lam, start, _):
        return _lca(problem.unit, t, lam, start, problem.lipschitz, n_steps, signed=problem.signed)

    return in_chunks(request, solve), np.full(len(request.t), n_steps)
