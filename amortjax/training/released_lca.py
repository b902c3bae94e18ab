"""The code search that arXiv 2411.13117's released dictionary learner calls LCA, in its own units.

    u <- u - eta * ((a W - x) W^T + lam),    a = relu(u),    u = 0 at the start

It has neither the leak nor the inhibition of LCA (`inference.lca` has both): u is a running sum of gradients that only
its positive part is read from. Each token has its own eta, 1 / M at first; every iteration tries half and twice of it
and keeps what has the smaller of mean_D |x - a W|^2 + lam * mean_M a, which is not the function whose gradient is
followed (1/2 |x - a W|^2 + lam * sum a). The released training differentiates through all iterations, as does this.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from amortjax.inference.objective import HIGHEST


class _Now(NamedTuple):
    u: jax.Array  # (N, M)
    eta: jax.Array  # (N,)
    loss: jax.Array  # (N,) before the last iteration
    done: jax.Array  # ()
    count: jax.Array  # () iterations taken


def _loss(x: jax.Array, a: jax.Array, w: jax.Array, lam: float) -> jax.Array:
    error = jnp.square(x - jnp.matmul(a, w, precision=HIGHEST))
    return jnp.mean(error, axis=1) + lam * jnp.mean(a, axis=1)


@functools.partial(jax.jit, static_argnames=("iterations", "tol"))
def codes(
    x: jax.Array, w: jax.Array, lam: float, iterations: int = 300, tol: float = 1e-6
) -> tuple[jax.Array, jax.Array]:
    """(N, M) codes >= 0 of raw x (N, D) with atoms w (M, D) of norm 1, and the iterations taken, ().

    Ends when no token's loss has fallen by `tol` in an iteration. All tokens go on together, so that a token's code
    depends on its batch. Can be differentiated.
    """

    def step(now: _Now) -> _Now:
        a = jax.nn.relu(now.u)
        residual = jnp.matmul(a, w, precision=HIGHEST) - x
        loss = _loss(x, a, w, lam)
        done = jnp.max(now.loss - loss) < tol
        slope = jnp.matmul(residual, w.T, precision=HIGHEST) + lam
        tried = [now.u - (factor * now.eta)[:, None] * slope for factor in (0.5, 2.0)]
        losses = [_loss(x, jax.nn.relu(u), w, lam) for u in tried]
        small = losses[0] <= losses[1]
        u = jnp.where(small[:, None], *tried)
        moved = _Now(u, now.eta * jnp.where(small, 0.5, 2.0), loss, done, now.count + 1)
        kept = now._replace(done=done)
        return jax.tree.map(lambda new, old: jnp.where(done, old, new), moved, kept)

    # Around the condition, not within: of what a condition needs on the way back a copy is kept for each iteration, of
    # the atoms too; so only `now` is.
    @functools.partial(jax.checkpoint, prevent_cse=False)  # not needed in a scan
    def one(now: _Now, _: None) -> tuple[_Now, None]:
        return jax.lax.cond(now.done, lambda n: n, step, now), None

    n, m = len(x), len(w)
    first = _Now(
        jnp.zeros((n, m)), jnp.full((n,), 1 / m), jnp.full((n,), jnp.inf), jnp.zeros((), bool),
        jnp.zeros((), jnp.int32),
    )  # fmt: skip
    last = jax.lax.scan(one, first, None, length=iterations)[0]
    return jax.nn.relu(last.u), last.count


def nmse(x: jax.Array, a: jax.Array, w: jax.Array) -> jax.Array:
    """The released training's loss, (): squared error over that of the batch's mean. No penalty: only codes know of
    lambda."""
    error = jnp.mean(jnp.square(x - jnp.matmul(a, w, precision=HIGHEST)))
    return error / (jnp.mean(jnp.square(x - x.mean(axis=0))) + 1e-8)
