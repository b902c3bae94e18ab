"""Least squares and lasso on a given support: the small problems inside active sets, refits and pursuit.

For each token, with G = A A^T the Gram matrix of its K atoms and q = A t - lam:
    min 1/2 v G v - q v   over v >= 0.
Coordinate descent finds the face; where a few sweeps don't end it, a damped Newton step lands on the face's
minimum. Neither ever increases the objective.
"""

import jax
import jax.numpy as jnp

from amortjax.inference.objective import HIGHEST


def gather(unit: jax.Array, indices: jax.Array, used: jax.Array) -> jax.Array:
    """A (n, K, D): the atoms at `indices` (n, K), zero where not `used`."""
    return jnp.where(used[..., None], unit.at[indices].get(mode="promise_in_bounds"), 0.0)


def _per_token(f, *args):
    """f of each token's arrays. On a CPU eight tokens at a time, whose atoms then stay in cache: three times as
    fast there as gathering all and multiplying in batch, which is what other devices want."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda a: f(*a), args, batch_size=8)
    return jax.vmap(f)(*args)


def inner_products(
    unit: jax.Array, indices: jax.Array, t: jax.Array, fresh: int
) -> tuple[jax.Array, jax.Array]:
    """Of each token's atoms at `indices` (n, K): those of the last `fresh` with all of them, (n, fresh, K), and
    those of all with t (n, D), (n, K)."""

    def one(indices, t):
        atoms = unit.at[indices].get(mode="promise_in_bounds")
        products = jnp.matmul(atoms[len(indices) - fresh :], atoms.T, precision=HIGHEST)
        return products, jnp.matmul(atoms, t, precision=HIGHEST)

    return _per_token(one, indices, t)


def combined(unit: jax.Array, indices: jax.Array, v: jax.Array) -> jax.Array:
    """sum_k v_k U_k of each token, (n, D): indices and v (n, K)."""

    def one(indices, v):
        return jnp.matmul(v, unit.at[indices].get(mode="promise_in_bounds"), precision=HIGHEST)

    return _per_token(one, indices, v)


def _sweep(gram: jax.Array, inverse: jax.Array, v: jax.Array, slope: jax.Array):
    """One pass of coordinate descent. slope = q - G v; inverse = 1 / diag(G), 0 for unused slots. All (n, K)."""

    def visit(j, state):
        v, slope = state
        old = v[:, j]
        new = jnp.maximum(old + slope[:, j] * inverse[:, j], 0.0)
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


@jax.jit
def solve_on_support(
    gram: jax.Array,
    q: jax.Array,
    v: jax.Array,
    tol: jax.Array | float,
    max_rounds: jax.Array | int = 12,
    patience: jax.Array | int = 4,
) -> jax.Array:
    """Minimises 1/2 v G v - q v over v >= 0 for n tokens: gram (n, K, K), q (n, K), start v (n, K).

    Rounds of two sweeps, with a Newton step after each from the one numbered `patience` on. Stops when no token's KKT
    residual exceeds `tol` (a scalar or (n,), units of q) or after `max_rounds`.
    """
    diagonal = jnp.diagonal(gram, axis1=1, axis2=2)
    inverse = jnp.where(diagonal > 1e-12, 1.0 / jnp.maximum(diagonal, 1e-12), 0.0)
    slope_of = lambda v: q - jnp.einsum("njk,nk->nj", gram, v, precision=HIGHEST)  # noqa: E731

    def unfinished(v, slope):
        wrong = jnp.where(v > 0, jnp.abs(slope), jnp.maximum(slope, 0.0))
        return jnp.any(jnp.max(jnp.where(inverse > 0, wrong, 0.0), axis=1) > tol)

    def body(state):
        i, v, slope, _ = state
        v, slope = jax.lax.fori_loop(0, 2, lambda _, s: _sweep(gram, inverse, *s), (v, slope))
        v = jax.lax.cond(i >= patience, lambda v: _newton(gram, v, slope_of(v)), lambda v: v, v)
        slope = slope_of(v)
        return i + 1, v, slope, unfinished(v, slope)

    v = jnp.where(inverse > 0, jnp.maximum(v, 0.0), 0.0)
    slope = slope_of(v)
    start = (jnp.zeros((), jnp.int32), v, slope, unfinished(v, slope))
    return jax.lax.while_loop(lambda s: s[3] & (s[0] < max_rounds), body, start)[1]
