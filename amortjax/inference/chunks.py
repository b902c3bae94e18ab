"""Dense solvers a chunk of tokens at a time, so that (tokens, M) never exceeds a chunk."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from amortjax.inference.codes import Codes, concatenate, from_dense
from amortjax.inference.request import Request


def in_chunks(request: Request, solve: Callable) -> Codes:
    """Codes from solve(t (C, D), lam (C,), start (C, M), budget (C,)) -> (C, M), all device arrays, a chunk of the
    request's tokens at a time, the last one padded with zeros so that a shape compiles once."""
    n, chunk, m = len(request.t), request.settings.chunk, request.problem.n_latents
    budget = np.zeros(n, int) if request.budget is None else np.broadcast_to(request.budget, (n,))
    lam = np.broadcast_to(request.lam, (n,))
    parts = []
    for i in range(0, n, chunk):
        rows = slice(i, min(i + chunk, n))
        here = rows.stop - i
        start = np.zeros((here, m)) if request.start is None else request.start.rows(i, rows.stop).dense()
        wide = lambda a, dtype=jnp.float32: jnp.asarray(  # noqa: E731
            np.pad(a, [(0, chunk - here)] + [(0, 0)] * (a.ndim - 1)),  # noqa: B023
            dtype,
        )
        out = solve(wide(request.t[rows]), wide(lam[rows]), wide(start), wide(budget[rows], jnp.int32))
        parts.append(from_dense(np.asarray(out)[:here]))
    return concatenate(parts)
