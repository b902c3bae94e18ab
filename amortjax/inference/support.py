"""Least squares and lasso on a given support: the small problems inside active sets, refits and pursuit.

For each token, with G = A A^T the Gram matrix of its K atoms and q = A t - lam:
    min 1/2 v G v - q v   over v >= 0.
Coordinate descent finds the face, a damped Newton step lands on its minimum; alternating the two never
increases the objective.
"""

import functools

import jax
import jax.numpy as jnp

from amortjax.inference.objective import HIGHEST


def gather(unit: jax.Array, indices: jax.Array, used: jax.Array) -> jax.Array:
    """A (n, K, D): the atoms at `indices` (n, K), zero where not `used`."""
    return jnp.where(used[..., None], unit[indices], 0.0)


def _sweep(gram: jax.Array, inverse: jax.Array, v: jax.Array, slope: jax.Array):
    """One pass of coordinate descent. slope = q - G v; inverse = 1 / diag(G), 0 for unused slots. All (n, K)."""

    def visit(j, state):
        v, slope = state
        old = v[:, j]
        new = jnp.maximum(old + slope[:, j] * inverse[:, j], 0.0)
        new = jnp.where(inverse[:, j] > 0, new, 0.0)
        return v.at[:, j].set(new), slope - (new - old)[:, None] * gram[:, j, :]

    return jax.lax.fori_loop(0, v.shape[1], visit, (v, slope))


def _newton(gram: jax.Array, v: jax.Array, slope: jax.Array) -> jax.Array:
    """Towards the minimum of the face {v_j > 0}, as far as the first coordinate that reaches zero."""
    face = v > 0
    n_slots = v.shape[1]
    both = face[:, :, None] & face[:, None, :]
    damped = jnp.where(both, gram, 0.0) + jnp.eye(n_slots) * jnp.where(face, 1e-6, 1.0)[:, :, None]
    factor = jnp.linalg.cholesky(damped)
    solve = jax.vmap(lambda f, b: jax.scipy.linalg.cho_solve((f, True), b))
    direction = solve(factor, jnp.where(face, slope, 0.0))
    direction = jnp.where(jnp.isfinite(direction), direction, 0.0)  # singular face: leave it to the descent
    room = jnp.where(direction < 0, v / jnp.maximum(-direction, 1e-30), jnp.inf)
    length = jnp.minimum(1.0, jnp.min(room, axis=1, keepdims=True))
    return jnp.maximum(v + length * direction, 0.0)


@functools.partial(jax.jit, static_argnames="max_rounds")
def solve_on_support(
    gram: jax.Array, q: jax.Array, v: jax.Array, tol: jax.Array | float, max_rounds: int = 12, sweeps: int = 3
) -> jax.Array:
    """Minimises 1/2 v G v - q v over v >= 0 for n tokens: gram (n, K, K), q (n, K), start v (n, K).

    Stops when no token's KKT residual exceeds `tol` (a scalar or (n,), units of q) or after `max_rounds`.
    """
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    inverse = jnp.where(diagonal > 1e-12, 1.0 / jnp.maximum(diagonal, 1e-12), 0.0)
    slope_of = lambda v: q - jnp.einsum("njk,nk->nj", gram, v, precision=HIGHEST)  # noqa: E731

    def residual(v, slope):
        wrong = jnp.where(v > 0, jnp.abs(slope), jnp.maximum(slope, 0.0))
        return jnp.max(jnp.where(inverse > 0, wrong, 0.0), axis=1)

    def body(state):
        i, v, slope, _ = state
        v, slope = jax.lax.fori_loop(0, sweeps, lambda _, s: _sweep(gram, inverse, *s), (v, slope))
        v = _newton(gram, v, slope_of(v))
        slope = slope_of(v)
        return i + 1, v, slope, jnp.any(residual(v, slope) > tol)

    v = jnp.where(inverse > 0, v, 0.0)
    slope = slope_of(v)
    start = (jnp.zeros((), jnp.int32), v, slope, jnp.any(residual(v, slope) > tol))
    return jax.lax.while_loop(lambda s: s[3] & (s[0] < max_rounds), body, start)[1]
