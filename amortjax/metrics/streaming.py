"""Metrics of a stream of codes: init, update, merge, finalise. Host-side NumPy, float64 sums, int64 counts.

Every number is a ratio of totals, never a mean of batch ratios, so any split of the stream gives the same
metrics. Sums are kept per block of documents (`block_of`), from which `uncertainty` makes intervals without a
second pass. Memory: one (N_BLOCKS, M) int32 table (52 MB at M = 65 536) and 12 bytes a token, for medians.

    blocks = block_of(doc_ids)                       # of every token that will be evaluated, once
    sums = init(n_latents, d_model)
    sums = update(sums, Batch(x, residual, base, codes, blocks[rows], objective=...))      # for each batch
    values = finalise(sums)                          # {"nmse": ..., "l0": ..., "dead": ..., ...}
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse

from amortjax.errors import AmortjaxError

N_BLOCKS = 200
DENSE = (0.1, 0.2)  # firing rates from which a latent counts as dense
# Per-token columns a caller may leave undefined (None or all NaN); they are defined for a whole stream or not
# at all.
PARTS = ("amplitude", "amplitude_upper", "support", "support_lower", "support_upper")  # as in gaps.Split
FIELDS = ("objective", "gap", "gap_lower", "gap_upper", "l1", *PARTS)


class Batch(NamedTuple):
    """n tokens of one mode. Raw units for x, residual and base; objective units for the gaps (float64).

    A latent fires where its code is not 0. `literal` counts max(z, 0): clip the codes before passing them.
    """

    x: np.ndarray  # (n, D) input
    residual: np.ndarray  # (n, D) x - x_hat
    base: np.ndarray  # (n, D) x - b_out, the denominator of the controlled NMSE
    codes: scipy.sparse.csr_array  # (n, M); signed codes may be negative
    block: np.ndarray  # (n,) int in [0, N_BLOCKS)
    objective: np.ndarray | None = None  # (n,) P
    gap: np.ndarray | None = None  # (n,) P - own dual value
    gap_lower: np.ndarray | None = None  # (n,) max(0, P - P of the best code known): at most P - P*
    gap_upper: np.ndarray | None = None  # (n,) P - best dual value known: at least P - P*
    l1: np.ndarray | None = None  # (n,) sum_j w_j |z_j|
    amplitude: np.ndarray | None = None  # (n,) P - P of the best code known on the same support
    amplitude_upper: np.ndarray | None = None  # (n,) P - the dual value on that support
    support: np.ndarray | None = None  # (n,) the rest of gap_lower
    support_lower: np.ndarray | None = None  # (n,) at most and at least the support's part of P - P*
    support_upper: np.ndarray | None = None


class Sums(NamedTuple):
    """Totals per block; B = N_BLOCKS. Owned by whoever updates them: `update` writes into the arrays."""

    tokens: np.ndarray  # (B,) int64
    fires: np.ndarray  # (B, M) int32 tokens on which each latent fires
    l0: np.ndarray  # (B,) int64
    residual: np.ndarray  # (B,) sum |x - x_hat|^2
    energy: np.ndarray  # (B,) sum |x|^2
    base: np.ndarray  # (B,) sum |x - b_out|^2
    x: np.ndarray  # (B, D) sum x
    fields: np.ndarray  # (B, len(FIELDS)) sums of the defined per-token columns
    defined: np.ndarray  # (len(FIELDS),) int64 tokens on which each is defined
    per_token: tuple[np.ndarray, ...]  # chunks of (n, 3) float32: gap_lower, gap_upper, gap / objective


def block_of(doc_ids: np.ndarray, documents: np.ndarray | None = None) -> np.ndarray:
    """(n,) block of each token: at most N_BLOCKS documents get a block each, more are hashed (splitmix64).

    `documents` are all ids of the evaluation, by default those in `doc_ids`: pass them, or call this once for
    all tokens, because blocks must not depend on how the stream is cut.
    """
    doc_ids = np.asarray(doc_ids)
    known = np.unique(doc_ids if documents is None else np.asarray(documents))
    if len(known) <= N_BLOCKS:
        place = np.minimum(np.searchsorted(known, doc_ids), max(len(known) - 1, 0))
        if len(doc_ids) and not np.array_equal(known[place], doc_ids):
            raise ValueError("doc_ids holds documents that are not in `documents`")
        return place.astype(np.int64)
    return (splitmix64(doc_ids) % np.uint64(N_BLOCKS)).astype(np.int64)


def splitmix64(n: np.ndarray) -> np.ndarray:
    """A stable hash of integers to uint64 (Steele, Lea & Flood 2014, the output function of SplitMix)."""
    with np.errstate(over="ignore"):
        z = np.asarray(n).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def init(n_latents: int, d_model: int) -> Sums:
    b, f = N_BLOCKS, len(FIELDS)
    return Sums(
        tokens=np.zeros(b, np.int64),
        fires=np.zeros((b, n_latents), np.int32),
        l0=np.zeros(b, np.int64),
        residual=np.zeros(b),
        energy=np.zeros(b),
        base=np.zeros(b),
        x=np.zeros((b, d_model)),
        fields=np.zeros((b, f)),
        defined=np.zeros(f, np.int64),
        per_token=(),
    )


def update(sums: Sums, batch: Batch) -> Sums:
    """Adds a batch. The arrays of `sums` are written into: go on with the returned value."""
    block = np.asarray(batch.block)
    codes = scipy.sparse.csr_array(batch.codes)
    _check_batch(sums, batch, codes, block)
    n = len(block)
    member = scipy.sparse.csr_array((np.ones(n), (block, np.arange(n))), shape=(N_BLOCKS, n))
    hits = codes.copy()
    hits.sum_duplicates()
    hits.eliminate_zeros()
    hits.data = np.ones(hits.nnz)
    table = (member @ hits).tocoo()  # distinct (block, latent) pairs, so += counts each once
    sums.fires[table.row, table.col] += table.data.astype(np.int32)
    sums.l0[:] += np.bincount(block, np.diff(hits.indptr), N_BLOCKS).astype(np.int64)
    sums.tokens[:] += np.bincount(block, minlength=N_BLOCKS)
    for total, vectors in ((sums.residual, batch.residual), (sums.energy, batch.x), (sums.base, batch.base)):
        total += np.bincount(block, _square_norms(vectors), N_BLOCKS)
    sums.x[:] += member @ np.asarray(batch.x, np.float64)
    columns = np.stack([_column(batch, name, n) for name in FIELDS], axis=1)
    defined = ~np.isnan(columns)
    sums.fields[:] += member @ np.where(defined, columns, 0.0)
    sums.defined[:] += defined.sum(axis=0)
    objective, gap, lower, upper = columns.T[:4]
    relative = np.divide(gap, objective, out=np.where(gap == 0, 0.0, np.nan), where=objective > 0)
    chunk = np.stack([lower, upper, relative], axis=1).astype(np.float32)
    return sums._replace(per_token=(*sums.per_token, chunk))


def merge(a: Sums, b: Sums) -> Sums:
    """The sums of both streams, in new arrays."""
    added = {name: getattr(a, name) + getattr(b, name) for name in Sums._fields if name != "per_token"}
    return Sums(**added, per_token=a.per_token + b.per_token)


def totals(sums: Sums, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Totals over blocks, each (R,), with `weights` (R, B) times each block counts (default: once, R = 1)."""
    w = np.ones((1, N_BLOCKS)) if weights is None else weights
    out = {name: w @ getattr(sums, name) for name in ("tokens", "l0", "residual", "energy", "base")}
    mean_part = np.sum(np.square(w @ sums.x), axis=1) / np.maximum(out["tokens"], 1)
    out["centred"] = out["energy"] - mean_part
    for i, name in enumerate(FIELDS):
        whole = sums.defined[i] == sums.tokens.sum()
        out[name] = w @ sums.fields[:, i] if whole else np.full(len(w), np.nan)
    return out


def ratios(t: dict[str, np.ndarray], n_latents: int) -> dict[str, np.ndarray]:
    """Every smooth metric, (R,), from `totals`; NaN where it is not defined. The one place of these formulas.

    P* lies between P - gap_upper and P - gap_lower, which bounds (P - P*) / P* and its parts from both sides.
    """
    best, dual = t["objective"] - t["gap_lower"], t["objective"] - t["gap_upper"]

    def per(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)

    return {
        "nmse": per(t["residual"], t["base"]),
        "nmse_literal": per(t["residual"], t["energy"]),
        "fvu": per(t["residual"], t["centred"]),
        "l0": per(t["l0"], t["tokens"]),
        "density": per(t["l0"], t["tokens"]) / n_latents,
        "l1": per(t["l1"], t["tokens"]),
        "objective": per(t["objective"], t["tokens"]),
        "gap": per(t["gap"], t["tokens"]),
        "gap_lower": per(t["gap_lower"], t["tokens"]),
        "gap_upper": per(t["gap_upper"], t["tokens"]),
        "own_gap": per(t["gap"], t["objective"]),
        "gap_width": per(t["gap_upper"] - t["gap_lower"], t["tokens"]),
        "suboptimality_lower": per(t["gap_lower"], best),
        "suboptimality_upper": per(t["gap_upper"], dual),
        "price_amplitude": per(t["amplitude"], best),
        "price_amplitude_upper": per(t["amplitude_upper"], dual),
        "price_support": per(t["support"], best),
        "price_support_lower": per(t["support_lower"], best),
        "price_support_upper": per(t["support_upper"], dual),
    }


def finalise(sums: Sums, tol: float = 1e-4) -> dict[str, float | int | None]:
    """{metric: value}, None where it is not defined; `definitions.METRICS` says what each means. `certified`
    is the share of tokens whose own relative gap is at most `tol`."""
    n = int(sums.tokens.sum())
    if n == 0:
        raise AmortjaxError("no tokens were evaluated: the split is empty, give more text or another split")
    _check_defined(sums, n)
    smooth = ratios(totals(sums), sums.fires.shape[1])
    out: dict[str, float | int | None] = {name: _number(value[0]) for name, value in smooth.items()}
    rate = sums.fires.sum(axis=0, dtype=np.int64) / n
    out["dead"] = float(np.mean(rate == 0))
    out |= {f"dense@{at:g}": float(np.mean(rate >= at)) for at in DENSE}
    lower, upper, relative = np.concatenate(sums.per_token).T
    out["gap_lower_median"] = _number(np.median(lower))
    out["gap_upper_median"] = _number(np.median(upper))
    out["own_gap_median"] = _number(np.median(relative))
    out["certified"] = None if np.isnan(relative).any() else float(np.mean(relative <= tol))
    return out | {"n_tokens": n, "n_latents": sums.fires.shape[1]}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _square_norms(vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)


def _column(batch: Batch, name: str, n: int) -> np.ndarray:
    value = getattr(batch, name)
    return np.full(n, np.nan) if value is None else np.asarray(value, np.float64).reshape(n)


def _check_batch(sums: Sums, batch: Batch, codes: scipy.sparse.csr_array, block: np.ndarray) -> None:
    """Shapes are the caller's to get right; what is not finite is said with its count and its first row."""
    n, d = len(block), sums.x.shape[1]
    for name in ("x", "residual", "base"):
        if np.shape(getattr(batch, name)) != (n, d):
            raise ValueError(f"{name} has shape {np.shape(getattr(batch, name))}, expected {(n, d)}")
    if codes.shape != (n, sums.fires.shape[1]):
        raise ValueError(f"codes have shape {codes.shape}, expected {(n, sums.fires.shape[1])}")
    if n and (block.min() < 0 or block.max() >= N_BLOCKS):
        raise ValueError(f"block must be in [0, {N_BLOCKS}): use block_of")
    if not np.isfinite(codes.data).all():
        raise AmortjaxError("the codes hold NaN or infinite values: the solver diverged, lower the step size")
    for name, what in (("x", "activations"), ("residual", "reconstructions")):
        bad = ~np.isfinite(_square_norms(getattr(batch, name)))
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise AmortjaxError(
                f"{int(bad.sum())} of {n} {what} are NaN or infinite (first: row {first} of the batch): "
                "leave those tokens out, or collect the activations again in float32"
            )


def _check_defined(sums: Sums, n: int) -> None:
    for name, count in zip(FIELDS, sums.defined, strict=True):
        if 0 < count < n:
            raise ValueError(
                f"{name} is NaN on {n - count} of {n} tokens: define it on all of a stream or on none"
            )
