"""Theorem 3.1 of arXiv 2411.13117 as things that can be measured.

Codes s with up to K >= 2 active sources, x = s D, D (sources, dimensions), fewer dimensions M than sources N. An
encoder that is linear, then ReLU on each source, ReLU(x W + b), sees s only through the composed map s -> s (D W), of
rank at most M. To return the exact values of every such s it would need D W = I, of rank N: scaling one active source
forces b = 0 and a diagonal of ones; one source alone forces every other entry to be at most 0; two sources together
forbid it to be below 0. So it fails, although other methods can be exact (codes are unique if any 2 K atoms are
independent). The statement is about exact values, not about supports: those one linear map and a ReLU may well find.

Here N, M, K are the paper's letters; arrays are float64 on the host.
"""

import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

EXACT = 1e-2  # a sample is exact if its code's error is at most this share of the code's norm
_MOST_SUBSETS = 20_000


class Check(NamedTuple):
    """One fact: what the theory says (`measured` `relation` `theory`, to within `tolerance`) and what was found."""

    control: str
    setting: str
    claim: str
    relation: str  # "=", "<=", ">="
    theory: float
    measured: float
    tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        off = self.measured - self.theory
        return {"=": abs(off), "<=": off, ">=": -off}[self.relation] <= self.tolerance


# --- dictionaries with a known answer ---


def simplex(dimensions: int) -> np.ndarray:
    """(M + 1, M) unit rows, the corners of a regular simplex: every pair has the inner product -1 / M."""
    n = dimensions + 1
    corners = np.eye(n) - 1 / n
    rows = corners @ np.linalg.svd(corners)[2][:dimensions].T
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def antipodal(dimensions: int) -> np.ndarray:
    """(2 M, M): an orthonormal basis and its negatives."""
    return np.concatenate([np.eye(dimensions), -np.eye(dimensions)])


# --- encoders ---


def relu_codes(x: np.ndarray, w: np.ndarray, b: Any = 0.0) -> np.ndarray:
    """ReLU(x W + b): x (n, M), w (M, N) -> (n, N)."""
    return np.maximum(x @ w + b, 0.0)


def one_sparse_encoder(dictionary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The encoder (M, N) that is exact for one active source wherever that is possible, and where it is, (N,) bool.

    A half-space through 0 separates atom j from all others if and only if d_j is no non-negative combination of them
    (Gordan); the residual r of that non-negative least squares has r . d_i <= 0 and r . d_j = ||r||^2. Columns of the
    atoms where it is not possible are d_j itself.
    """
    from scipy.optimize import nnls

    w = np.array(dictionary, np.float64).T.copy()
    possible = np.zeros(len(dictionary), bool)
    for j, atom in enumerate(np.asarray(dictionary, np.float64)):
        others = np.delete(np.asarray(dictionary, np.float64), j, axis=0).T
        weights, left = nnls(others, atom)
        possible[j] = left > 1e-9 * np.linalg.norm(atom)
        if possible[j]:
            residual = atom - others @ weights
            w[:, j] = residual / (residual @ atom)
    return w, possible


def linear_encoder(codes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(M, N): the linear map from x to the codes of least squared error."""
    return np.linalg.lstsq(x, codes, rcond=None)[0]


# --- methods that are not linear-nonlinear ---


def lasso_codes(dictionary: np.ndarray, x: np.ndarray, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Non-negative lasso codes (n, N), float64, and the certified relative duality gap of each (n,)."""
    from amortjax.inference.codes import Codes
    from amortjax.inference.exact import solve_token
    from amortjax.inference.objective import certify, pose_dictionary

    problem = pose_dictionary(dictionary)
    v = np.zeros((len(x), problem.n_latents))
    for row, t in zip(v, np.asarray(x, np.float64), strict=True):
        indices, values = np.zeros(0, int), np.zeros(0)
        # By way of a larger lambda: from nothing, so small a one can end among nearly dependent atoms.
        for at in (10 * lam, lam):
            one = solve_token(
                problem.unit64, t, at, indices, values, signed=False, tol=1e-9, max_atoms=4 * len(row)
            )
            indices, values = one.indices, one.values
        row[indices] = values
    found = v / problem.weights64
    slots = np.broadcast_to(np.arange(problem.n_latents), found.shape)
    proof = certify(problem, np.asarray(x), Codes(slots, found, problem.n_latents), lam)
    return found, proof.relative_gap


def sparsest_codes(dictionary: np.ndarray, x: np.ndarray, active: int) -> np.ndarray | None:
    """Codes (n, N) of least error among all supports of `active` sources, by trying every one; None if there are more
    than 20 000. Exact wherever the code is unique."""
    n_sources = len(dictionary)
    if math.comb(n_sources, active) > _MOST_SUBSETS:
        return None
    supports = np.array(list(itertools.combinations(range(n_sources), active)))
    atoms = np.asarray(dictionary, np.float64)[supports]  # (supports, K, M)
    inverse = np.linalg.pinv(atoms)  # (supports, M, K)
    found = np.zeros((len(x), n_sources))
    for row, t in zip(found, np.asarray(x, np.float64), strict=True):
        values = np.einsum("m,smk->sk", t, inverse)
        left = np.linalg.norm(t - np.einsum("sk,skm->sm", values, atoms), axis=1)
        left = np.where(values.min(axis=1) < -1e-9, np.inf, left)
        best = int(np.argmin(left))
        row[supports[best]] = np.maximum(values[best], 0)
    return found


# --- what the theory says ---


def cover(sources: int, dimensions: int) -> float:
    """Probability that a half-space through 0 separates one of N random atoms from all others: Cover's (1965) count of
    separable labellings over all, 2 sum_{k<M} C(N - 1, k) / 2^N."""
    count = 2 * sum(math.comb(sources - 1, k) for k in range(dimensions))
    return float(Fraction(count, 2**sources))


def energy_left(sources: int, rank: int, active: int) -> float:
    """Share of the energy E||s||^2 that the best linear map of `rank` leaves, for |N(0, 1)| on `active` uniformly drawn
    sources: E[s s'] is (p - q) I + q 1 1' with p = K / N, q = K (K - 1) / (N (N - 1)) * 2 / pi."""
    p = active / sources
    q = active * (active - 1) / max(sources * (sources - 1), 1) * 2 / math.pi
    return (sources - rank) * (p - q) / active


def least_independence(dictionary: np.ndarray, active: int, seed: int = 0) -> tuple[float, bool]:
    """The least singular value of any 2 K atoms: above 0 no two codes of K sources share an x. Over all subsets, or, if
    there are more than 20 000, over so many random ones (then the second value is False)."""
    n_sources, size = len(dictionary), 2 * active
    if size > dictionary.shape[1]:
        return 0.0, True  # more atoms than dimensions are dependent
    every = math.comb(n_sources, size) <= _MOST_SUBSETS
    if every:
        subsets = np.array(list(itertools.combinations(range(n_sources), size)))
    else:
        order = np.random.default_rng(seed)
        subsets = np.array([order.choice(n_sources, size, replace=False) for _ in range(_MOST_SUBSETS)])
    atoms = np.asarray(dictionary, np.float64)[subsets]
    return float(np.linalg.svd(atoms, compute_uv=False)[:, -1].min()), every


# --- measurements ---


class Composed(NamedTuple):
    """The map from sources to pre-activations, D W: its singular values (N,), rank, distance to the identity
    (Frobenius), and the least distance that its rank allows, sqrt(N - M)."""

    singular: np.ndarray
    rank: int
    distance: float
    bound: float


def composed(dictionary: np.ndarray, w: np.ndarray) -> Composed:
    """Of an encoder w (M, N) on dictionary (N, M)."""
    product = np.asarray(dictionary, np.float64) @ np.asarray(w, np.float64)
    singular = np.linalg.svd(product, compute_uv=False)
    n_sources, dimensions = dictionary.shape
    rank = int(np.sum(singular > 1e-9 * max(singular[0], 1e-300)))
    distance = float(np.linalg.norm(product - np.eye(n_sources)))
    return Composed(singular, rank, distance, math.sqrt(max(n_sources - dimensions, 0)))


class Errors(NamedTuple):
    """`energy`: squared error over the energy of all codes; `exact`: share of samples whose values are right to 1 %;
    `supports`: share of samples of which the K largest values lie on the support."""

    energy: float
    exact: float
    supports: float


def errors(found: np.ndarray, codes: np.ndarray) -> Errors:
    """Of codes (n, N) against the true ones."""
    found, codes = np.asarray(found, np.float64), np.asarray(codes, np.float64)
    off = np.linalg.norm(found - codes, axis=1)
    norm = np.linalg.norm(codes, axis=1)
    kth = np.sort(np.where(codes > 0, found, np.inf), axis=1)[:, 0]  # the least value on the support
    other = np.where(codes > 0, -np.inf, found).max(axis=1)
    supported = (kth > other) & (kth > 0)
    energy = float(np.sum(off**2) / max(np.sum(norm**2), 1e-300))
    return Errors(energy, float(np.mean(off <= EXACT * norm)), float(np.mean(supported)))


def plane_codes(dictionary: np.ndarray, x: np.ndarray) -> np.ndarray:
    """(n, N) in two dimensions: x as a non-negative combination of two atoms; of several, that of least sum."""
    best = np.full((len(x), len(dictionary)), np.nan)
    for pair in itertools.combinations(range(len(dictionary)), 2):
        atoms = np.asarray(dictionary, np.float64)[list(pair)]
        if abs(np.linalg.det(atoms)) < 1e-12:
            continue
        values = x @ np.linalg.inv(atoms)
        inside = values.min(axis=1) >= -1e-12
        better = inside & ~(np.nansum(best, axis=1) <= values.sum(axis=1)) | inside & np.isnan(best[:, 0])
        best[better] = 0.0
        best[np.ix_(better, pair)] = np.maximum(values[better], 0)
    return best
