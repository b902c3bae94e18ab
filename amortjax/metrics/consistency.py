"""Do SAEs of several seeds find the same latents? Hungarian-matched MCC of dictionaries and of codes.

MCC is the mean, over the latents of the smaller side, of the similarity of each with its partner, under the one-to-one
matching of largest total: |cosine| of decoder rows, or correlation of codes on the same tokens. With many latents even
unrelated sides score well above 0, so the chance level stands beside it: a rotated dictionary, codes dealt to other
tokens.

    found = match(cosines(a, b), len(a), len(b))        # Matching(a, b, similarity, exact)
    mcc(z_a[:, found.a], z_b[:, found.b], block)         # Estimate with a jackknife over blocks of documents
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from amortjax.metrics import recovery
from amortjax.metrics.coded import shape
from amortjax.metrics.streaming import N_BLOCKS
from amortjax.metrics.uncertainty import Estimate

Similarity = Callable[[slice], np.ndarray]  # rows of a -> (rows, B)
MOST_CELLS = 1 << 26  # of a similarity matrix that is matched whole (256 MB, twice that while it is solved)
CANDIDATES = 32  # of each latent, where the matrix is larger
ROWS = 1024  # of a similarity matrix at a time


class Matching(NamedTuple):
    """Pairs a[i], b[i] (P,) with their similarity (P,). `exact`: of largest total among all matchings; if not, among
    those that give a latent one of its CANDIDATES nearest. `bound`: no matching's mean is larger. `of`: latents of
    the smaller side; unmatched ones count as 0."""

    a: np.ndarray
    b: np.ndarray
    similarity: np.ndarray
    exact: bool
    bound: float
    of: int

    @property
    def mcc(self) -> float:
        return float(self.similarity.sum()) / self.of if self.of else 0.0


def cosines(a: np.ndarray, b: np.ndarray) -> Similarity:
    """|cosine| of the rows of a (A, D) with those of b (B, D); 0 for zero rows."""
    a, b = (_unit(np.asarray(side, np.float32)) for side in (a, b))
    return lambda rows: np.abs(a[rows] @ b.T)


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def correlations(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array, signed: bool = False) -> Similarity:
    """Pearson correlation of the columns of codes a (n, A) and b (n, B) of the same tokens (its size, if `signed`); 0
    for a latent that does not vary. float64."""
    a, b = (scipy.sparse.csr_array(side, dtype=np.float64) for side in (a, b))
    n = shape(a)[0]
    (mean_a, scale_a), (mean_b, scale_b) = _moments(a), _moments(b)
    turned = scipy.sparse.csr_array(a.T)

    def rows_of(rows: slice) -> np.ndarray:
        both = (turned[rows] @ b).toarray() / max(n, 1)
        found = (both - np.outer(mean_a[rows], mean_b)) * np.outer(scale_a[rows], scale_b)
        return np.abs(found) if signed else found

    return rows_of


def _moments(z: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Means and inverse deviations of columns, 0 where a column does not vary."""
    n = max(shape(z)[0], 1)
    mean, square = (np.asarray(part.sum(axis=0)).ravel() / n for part in (z, z.power(2)))
    variance = square - mean**2
    varies = variance > 1e-12 * square  # what is left of a constant is rounding
    return mean, np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0.0)


def match(similarity: Similarity, n_a: int, n_b: int, most_cells: int = MOST_CELLS) -> Matching:
    """The matching of largest total similarity, n_a latents with n_b. Whole if the matrix has at most `most_cells`,
    else among the CANDIDATES nearest of each latent of a: memory n_a x CANDIDATES, and never more than ROWS x n_b."""
    if not n_a or not n_b:
        nobody = np.zeros(0, np.int64)
        return Matching(nobody, nobody, np.zeros(0), True, 0.0, 0)
    if n_a * n_b <= most_cells:
        parts = [similarity(slice(i, i + ROWS)).astype(np.float32) for i in range(0, n_a, ROWS)]
        whole = np.concatenate(parts)
        a, b = recovery.assign(whole)
        found = np.asarray(whole[a, b], np.float64)
        return Matching(a, b, found, True, float(found.sum()) / min(n_a, n_b), min(n_a, n_b))
    return _among_candidates(similarity, n_a, n_b)


def _among_candidates(similarity: Similarity, n_a: int, n_b: int) -> Matching:
    count, nearest, best = min(CANDIDATES, n_b), [], np.zeros(n_b)
    for i in range(0, n_a, ROWS):
        part = similarity(slice(i, i + ROWS))
        columns = np.argpartition(-part, count - 1, axis=1)[:, :count]
        row = np.repeat(np.arange(i, i + len(part)), count)
        nearest.append((row, columns.ravel(), np.take_along_axis(part, columns, 1).ravel()))
        best = np.maximum(best, part.max(axis=0))
    row, column, value = (np.concatenate(parts) for parts in zip(*nearest, strict=True))
    value = np.maximum(value.astype(np.float64), 0.0)
    # A partner of similarity 0 for each latent of a, so that a full matching exists; edges must not be 0.
    row = np.concatenate([row, np.arange(n_a)])
    column = np.concatenate([column, n_b + np.arange(n_a)])
    cost = np.concatenate([2.0 - value, np.full(n_a, 2.0)])
    graph = scipy.sparse.csr_array((cost, (row, column)), shape=(n_a, n_b + n_a))
    a, b = scipy.sparse.csgraph.min_weight_full_bipartite_matching(graph)
    kept = b < n_b
    found = 2.0 - np.asarray(graph[a[kept], b[kept]]).ravel()
    of = min(n_a, n_b)
    own = np.sort(np.maximum.reduceat(value, np.arange(0, n_a * count, count)))[::-1]
    bound = min(float(own[:of].sum()), float(np.sort(np.maximum(best, 0))[::-1][:of].sum())) / of
    return Matching(a[kept], b[kept], found, False, bound, of)


def mcc(
    a: scipy.sparse.csr_array,
    b: scipy.sparse.csr_array,
    block: np.ndarray,
    of: int,
    signed: bool = False,
    with_interval: bool = True,
    chunk: int = 4096,
) -> Estimate:
    """Sum over pairs of the correlation of column i of a (n, P) with column i of b (n, P), divided by `of` latents; the
    matching held fixed. Draws are its values with one of the blocks (n,) of documents left out."""
    tokens = np.bincount(block, minlength=N_BLOCKS).astype(np.float64)
    filled, n = np.flatnonzero(tokens), len(block)
    member = scipy.sparse.csr_array((np.ones(n), (block, np.arange(n))), shape=(N_BLOCKS, n))[filled]
    value, without = 0.0, np.zeros(len(filled))
    columns = [scipy.sparse.csc_array(side, dtype=np.float64) for side in (a, b)]
    for i in range(0, shape(a)[1], chunk):
        x, y = (scipy.sparse.csr_array(side[:, i : i + chunk]) for side in columns)
        products = (x, y, x.power(2), y.power(2), x.multiply(y))
        sums = [(member @ scipy.sparse.csr_array(part)).toarray() for part in products]
        whole = [part.sum(axis=0) for part in sums]
        value += float(_correlation(float(n), whole, signed).sum())
        for k in range(len(filled) if with_interval else 0):
            left = [total - part[k] for total, part in zip(whole, sums, strict=True)]
            without[k] += _correlation(n - float(tokens[filled[k]]), left, signed).sum()
    if not of:
        return Estimate(None)
    return Estimate(value / of, without / of if with_interval else None, "jackknife")


def _correlation(n: float, sums: list[np.ndarray], signed: bool) -> np.ndarray:
    """(P,) from sums over n tokens of x, y, x^2, y^2 and x y; 0 where one does not vary."""
    mean_x, mean_y, xx, yy, xy = (part / max(n, 1.0) for part in sums)
    var_x, var_y = xx - mean_x**2, yy - mean_y**2
    varies = (var_x > 1e-12 * xx) & (var_y > 1e-12 * yy)
    scale = np.sqrt(np.where(varies, var_x * var_y, 1.0))
    found = np.where(varies, (xy - mean_x * mean_y) / scale, 0.0)
    return np.abs(found) if signed else found


def alive(codes: scipy.sparse.csr_array, min_fires: int) -> np.ndarray:
    """Latents that fire on at least `min_fires` tokens, ascending."""
    return np.flatnonzero(np.bincount(codes.indices, minlength=shape(codes)[1]) >= min_fires)
