"""What can be measured of an SAE before it is used: its dictionary, and its codes on some activations.

Axes: N tokens, D model dimension, M latents. FVU and NMSE are those of `metrics.streaming`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from amortjax.inference import objective
from amortjax.inference.codes import chunk_rows
from amortjax.metrics import streaming
from amortjax.saes import api
from amortjax.saes.formats.hooks import Site
from amortjax.saes.sae import SAE, is_transcoder, norm_in, norm_out

# Multiplications and additions spent on cosines of pairs: all pairs up to M = 18 000 at D = 1 536.
COHERENCE_FLOPS = 1e12
# Rows whose norm is so many times the median are outliers (BOS and other attention sinks: 10 to 1 000 times).
OUTLIER = 5.0
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Dictionary:
    """Of the atoms as decode applies them."""

    norms: np.ndarray  # (M,)
    coherence: float  # max |cos| of two different atoms
    pair: tuple[int, int]  # these two
    compared: int  # atoms that were compared with all others; below M, coherence is a lower bound
    lipschitz: float  # largest singular value squared of the atoms at norm 1, at most 2 % too large
    cosine: float | None  # median cosine of an encoder column and its atom; None where that means nothing


def dictionary(sae: SAE, seed: int = 0) -> Dictionary:
    """The dictionary's numbers. Coherence is of all pairs where that is at most COHERENCE_FLOPS, otherwise of a random
    sample of atoms with all others."""
    problem = objective.pose(sae)
    alive = np.asarray(jnp.any(problem.unit != 0, axis=1))
    rows, m, d = np.flatnonzero(alive), *problem.unit.shape
    most = max(int(COHERENCE_FLOPS / (2 * m * d)), _BLOCK)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    coherence, pair = _coherence(problem.unit, rows)
    cosine = None
    if sae.d_in == sae.d_out and sae.variant != "mlp" and "W_skip" not in sae.extra:
        cosine = float(jnp.nanmedian(_cosines(sae.W_enc, problem.unit)))
    norms = np.where(alive, np.asarray(problem.weights), 0.0)
    return Dictionary(norms, coherence, pair, len(rows), problem.lipschitz, cosine)


@jax.jit
def _cosines(w_enc: jax.Array, unit: jax.Array) -> jax.Array:
    """(M,) cosine of each encoder column and its atom; NaN where one is zero."""
    return (
        jnp.einsum("dm,md->m", w_enc, unit) / jnp.linalg.norm(w_enc, axis=0) / jnp.linalg.norm(unit, axis=1)
    )


@jax.jit
def _nearest(unit: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For `rows` (B,) of the atoms: the largest |cos| with another atom, and which that is."""
    c = jnp.abs(jnp.matmul(unit[rows], unit.T, precision=jax.lax.Precision.HIGHEST))
    c = c.at[jnp.arange(len(rows)), rows].set(-1.0)
    return jnp.max(c, axis=1), jnp.argmax(c, axis=1)


def _coherence(unit: jax.Array, rows: np.ndarray) -> tuple[float, tuple[int, int]]:
    best, pair = 0.0, (0, 0)
    for i in range(0, len(rows), _BLOCK):
        block = rows[i : i + _BLOCK]
        padded = np.pad(block, (0, _BLOCK - len(block)), mode="edge")
        value, other = (np.asarray(a)[: len(block)] for a in _nearest(unit, padded))
        if value.max() > best:
            best, pair = float(value.max()), (int(block[value.argmax()]), int(other[value.argmax()]))
    return min(best, 1.0), pair


@dataclasses.dataclass(frozen=True)
class Seen:
    """Of N tokens. The shares say how much of a sum its largest 1 % of tokens make."""

    n_tokens: int
    fvu: float | None
    nmse: float | None
    l0: float
    silent: float  # share of latents that never fired
    dense: float  # share of latents that fired on at least a tenth of the tokens
    norm: float  # median ||x||
    not_finite: int  # tokens whose reconstruction is NaN or infinite; they are left out of the rest
    outliers: float  # share of tokens whose norm is more than OUTLIER times the median
    error_share: float  # of the squared error, in its largest 1 % of tokens
    variance_share: float  # of the variance, in its largest 1 % of tokens
    fvu_ordinary: float | None  # without the outliers


def chunks(n: int, n_latents: int) -> Iterator[slice]:
    """Rows at a time, so that a few arrays of dense codes fit in memory."""
    size = chunk_rows(n, 12 * n_latents, budget=1 << 30)
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def reconstruction(sae: SAE, x: np.ndarray) -> np.ndarray:
    """x (N, D) -> y (N, D_out)."""
    return np.concatenate([api.reconstruct(sae, x[part]) for part in chunks(len(x), sae.n_latents)])


def fvu(x: np.ndarray, y: np.ndarray) -> float:
    """Fraction of the variance of x (N, D) that y (N, D) leaves unexplained; infinite if y is not finite or x is
    constant."""
    if not np.isfinite(y).all():
        return float("inf")
    n = len(x)
    none = scipy.sparse.csr_array((n, 1), dtype=np.float32)
    batch = streaming.Batch(x, x - y, x, none, np.zeros(n, np.int64))
    value = streaming.ratios(streaming.totals(streaming.update(streaming.init(1, x.shape[1]), batch)), 1)[
        "fvu"
    ]
    return float(value[0]) if np.isfinite(value[0]) else float("inf")


def ordinary(x: np.ndarray) -> np.ndarray:
    """(N,) whether each row of x (N, D) is none of the outliers."""
    norms = np.linalg.norm(x, axis=1)
    return norms <= OUTLIER * np.median(norms)


def on_rows(sae: SAE, x: np.ndarray) -> Seen:
    """The SAE's own codes of x (N, D). Of a transcoder's error nothing is known: fvu and nmse are None."""
    parts, fired, total, hit = [], np.zeros(sae.n_latents, np.int64), 0, []
    bare = is_transcoder(sae)
    for part in chunks(len(x), sae.n_latents):
        z = api.encode(sae, x[part])
        finite = np.isfinite(z).all(axis=1)
        y = np.zeros_like(x[part]) if bare else api.decode(sae, z, x[part])
        finite &= np.isfinite(y).all(axis=1)
        fired += np.count_nonzero(z[finite], axis=0)
        total += int(np.count_nonzero(z[finite]))
        parts.append(y)
        hit.append(finite)
    y, finite = np.concatenate(parts), np.concatenate(hit)
    n, usual = int(finite.sum()), ordinary(x)
    error, spread = _square(x - y)[finite], _square(x - x.mean(axis=0))
    near = finite & usual
    return Seen(
        n_tokens=len(x),
        fvu=None if bare or not n else fvu(x[finite], y[finite]),
        nmse=None if bare or not n else _nmse(sae, x[finite], y[finite]),
        l0=total / max(n, 1),
        silent=float(np.mean(fired == 0)),
        dense=float(np.mean(fired >= streaming.DENSE[0] * max(n, 1))),
        norm=float(np.median(np.linalg.norm(x, axis=1))),
        not_finite=len(x) - n,
        outliers=float(1 - usual.mean()),
        error_share=0.0 if bare else _top_share(error),
        variance_share=_top_share(spread),
        fvu_ordinary=None if bare or not near.any() else fvu(x[near], y[near]),
    )


class Fit(NamedTuple):
    """How the SAE does at one hook. `ratio`: its FVU there over its FVU at the hook in use, at the lower of the two's
    L0: what fires more explains more, though it be the wrong hook."""

    fvu: float
    l0: float
    ratio: float


def by_hook(sae: SAE, rows: Mapping[Site, np.ndarray], used: Site, few: int) -> dict[Site, Fit]:
    """Of rows x (N, D) of the same tokens at each hook, without their outliers; `ratio` is of the first `few`."""
    own = rows[used][ordinary(rows[used])][:few]
    z, found = _codes(sae, own), {}
    for site, x in rows.items():
        x = x[ordinary(x)]
        near = x[:few]
        there = _codes(sae, near)
        l0 = there.nnz / len(near)
        equal = min(l0, z.nnz / len(own))
        ratio = _cut_fvu(sae, near, there, equal) / max(_cut_fvu(sae, own, z, equal), 1e-9)
        ratio = ratio if site != used and np.isfinite(ratio) else 1.0
        found[site] = Fit(fvu(x, reconstruction(sae, x)), l0, ratio)
    return found


def _codes(sae: SAE, x: np.ndarray) -> scipy.sparse.csr_array:
    parts = [scipy.sparse.csr_array(api.encode(sae, x[part])) for part in chunks(len(x), sae.n_latents)]
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


def _cut_fvu(sae: SAE, x: np.ndarray, z: scipy.sparse.csr_array, l0: float) -> float:
    """FVU of x (N, D) with the N * l0 largest of its codes."""
    kept = z.copy()
    size = np.abs(kept.data) * np.linalg.norm(sae.W_dec, axis=1)[kept.indices]
    count = round(l0 * len(x))
    if count < len(size):
        kept.data = np.where(
            size > np.partition(size, len(size) - count - 1)[len(size) - count - 1], kept.data, 0
        )
    parts = [api.decode(sae, kept[part].toarray(), x[part]) for part in chunks(len(x), sae.n_latents)]
    return fvu(x, np.concatenate(parts))


def _square(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64)


def _nmse(sae: SAE, x: np.ndarray, y: np.ndarray) -> float:
    """Squared error over squared distance to what decode gives for no latents."""
    _, stats = norm_in(sae, jnp.asarray(x))
    base = x - np.asarray(norm_out(jnp.broadcast_to(sae.b_dec, x.shape), stats))
    return float(_square(x - y).sum() / max(_square(base).sum(), 1e-300))


def _top_share(values: np.ndarray) -> float:
    """Share of the sum of (N,) in its largest 1 %, at least one."""
    if not len(values) or not values.sum() > 0:
        return 0.0
    count = max(len(values) // 100, 1)
    return float(np.partition(values, len(values) - count)[-count:].sum() / values.sum())
