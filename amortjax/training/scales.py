"""A scale for each latent of an encoder's codes: what shrinkage mismatch alone costs, and no capacity."""

from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse

from amortjax.inference.objective import Problem

SCALE_ROUNDS = 80  # of L-BFGS-B


def price_of_codes(problem: Problem, t: np.ndarray, folded: scipy.sparse.csr_array, lam: float) -> float:
    """Mean P of folded codes (N, M), float64, objective units."""
    r = np.asarray(t, np.float64) - folded @ problem.unit64
    return float(0.5 * np.einsum("nd,nd->", r, r) + lam * np.abs(folded.data).sum()) / len(t)


def fit_scales(
    problem: Problem,
    train: tuple[np.ndarray, scipy.sparse.csr_array],
    validation: tuple[np.ndarray, scipy.sparse.csr_array],
    lam: float,
    start: float,
) -> tuple[np.ndarray, float]:
    """(M,) scales >= 0 of each latent's folded codes with the least P on `train` (t, codes), and their P on
    `validation`, by which an iterate of L-BFGS-B is chosen. The problem is a convex quadratic; latents that do not
    fire keep `start`."""
    t, v = np.asarray(train[0], np.float64), train[1]
    fires = np.flatnonzero(np.diff(v.tocsc().indptr))
    unit, v = problem.unit64[fires], scipy.sparse.csr_array(v[:, fires])
    l1, turned = np.asarray(abs(v).sum(axis=0)).ravel(), scipy.sparse.csr_array(v.T)
    energy = np.asarray(v.multiply(v).sum(axis=0)).ravel() * np.einsum("md,md->m", unit, unit)
    # Each latent in the unit that its own curvature suggests: rare ones would else hardly move.
    width = np.sqrt(np.maximum(energy, 1e-30) / len(t))

    def value(y: np.ndarray) -> tuple[float, np.ndarray]:
        s = y / width
        r = t - v @ (s[:, None] * unit)
        slope = lam * l1 - np.einsum("md,md->m", unit, turned @ r)
        return (0.5 * np.einsum("nd,nd->", r, r) + lam * float(s @ l1)) / len(t), slope / width / len(t)

    def spread(y: np.ndarray) -> np.ndarray:
        out = np.full(problem.n_latents, start)
        out[fires] = y / width
        return out

    def judged(scales: np.ndarray) -> float:
        return price_of_codes(problem, validation[0], scaled(validation[1], scales), lam)

    best = [np.full(problem.n_latents, start)]
    least = [judged(best[0])]

    def look(intermediate_result: Any) -> None:
        scales = spread(intermediate_result.x)
        found = judged(scales)
        if found < least[0]:
            best[0], least[0] = scales, found

    scipy.optimize.minimize(
        value, start * width, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(width), callback=look,
        options={"maxiter": SCALE_ROUNDS, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-10},
    )  # fmt: skip
    return best[0], least[0]


def scaled(codes: scipy.sparse.csr_array, scales: np.ndarray) -> scipy.sparse.csr_array:
    """Each latent's codes (N, M) times its scale (M,)."""
    return scipy.sparse.csr_array(
        (codes.data * scales[codes.indices], codes.indices, codes.indptr), codes.shape
    )
