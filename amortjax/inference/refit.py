"""Non-negative least squares on a given support: what the same latents could have reconstructed."""

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference import support
from amortjax.inference.codes import Codes, chunk_rows, round_up
from amortjax.inference.objective import HIGHEST


@jax.jit
def _refit(unit, t, indices, v):
    sign = jnp.sign(v)
    atoms = support.gather(unit, indices, v != 0) * sign[..., None]
    gram = jnp.einsum("njd,nkd->njk", atoms, atoms, precision=HIGHEST)
    q = jnp.einsum("nkd,nd->nk", atoms, t, precision=HIGHEST)
    tol = 1e-6 * jnp.linalg.norm(t, axis=1)
    return sign * support.solve_on_support(gram, q, jnp.abs(v), tol, max_rounds=30)


def nnls(unit: jax.Array, t: np.ndarray, folded: Codes) -> Codes:
    """min ||t - v U||^2 over v >= 0 (over each value's own sign, if codes are signed) with support inside the
    given folded codes'. Latents whose refitted value is 0 leave the support."""
    n, capacity = folded.indices.shape
    capacity = min(capacity, round_up(int(folded.l0.max(initial=0)), at_least=32))
    folded = Codes(*_compact(folded, capacity), folded.n_latents)
    chunk = chunk_rows(n, 4 * capacity * (unit.shape[1] + 2 * capacity))
    values = []
    for i in range(0, n, chunk):
        pad = lambda a: np.pad(np.asarray(a)[i : i + chunk], ((0, max(0, i + chunk - n)), (0, 0)))  # noqa: B023, E731
        out = _refit(unit, pad(np.asarray(t, np.float32)), pad(folded.indices), pad(folded.values))
        values.append(np.asarray(out)[: min(chunk, n - i)])
    return Codes(folded.indices, np.concatenate(values), folded.n_latents)


def _compact(codes: Codes, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Used slots first, cut to `capacity` (which the densest token fits)."""
    values, indices = np.asarray(codes.values), np.asarray(codes.indices)
    order = np.argsort(values == 0, axis=1, kind="stable")[:, :capacity]
    pad = ((0, 0), (0, capacity - order.shape[1]))
    indices, values = np.take_along_axis(indices, order, 1), np.take_along_axis(values, order, 1)
    return np.pad(indices, pad), np.pad(values, pad)
