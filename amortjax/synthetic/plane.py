"""Three sources in the plane, 120 degrees apart: every point is a code of at most two of them, and a picture shows
where an encoder is exact."""

import numpy as np

from amortjax.synthetic import relu_fit, theorem

PIXELS, DIRECTIONS = 121, 361


def simplex_plane(
    samples: int, starts: int, steps: int, lam: float, seed: int
) -> dict[str, np.ndarray | list[str]]:
    """Relative errors ||z - s|| / ||s|| of codes z of x against the true s.

    `grid` (P,): coordinates; `error` (methods, P, P): rows are y, NaN outside of the unit disc; `angle` (A,) radians;
    `along` (methods, A): on the unit circle; `atoms` (3, 2); `methods`: names.
    """
    atoms = theorem.simplex(2)
    turn = np.arctan2(atoms[0, 1], atoms[0, 0]) - np.pi / 2  # the first atom points up
    atoms = atoms @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    encoders = {
        "ReLU, W = D'": relu_fit.Linear(atoms.T, np.zeros(3)),
        "ReLU, exact for one pair": one_cone(atoms),
        "ReLU, trained on the codes": relu_fit.best_relu(
            atoms, _draw(samples, seed), starts, steps, seed=seed
        ),
    }
    grid, angle = np.linspace(-1, 1, PIXELS), np.linspace(0, 2 * np.pi, DIRECTIONS)
    x, y = np.meshgrid(grid, grid)
    inside = (x**2 + y**2 <= 1) & (x**2 + y**2 >= 0.05**2)
    points = np.concatenate(
        [np.stack([x[inside], y[inside]], 1), np.stack([np.cos(angle), np.sin(angle)], 1)]
    )
    true = theorem.plane_codes(atoms, points)
    codes = [theorem.relu_codes(points, *encoder) for encoder in encoders.values()]
    codes.append(theorem.lasso_codes(atoms, points, lam)[0])
    off = np.stack([np.linalg.norm(z - true, axis=1) / np.linalg.norm(true, axis=1) for z in codes])
    error = np.full((len(off), PIXELS, PIXELS), np.nan)
    error[:, inside] = off[:, : inside.sum()]
    along = off[:, inside.sum() :]
    names = [*encoders, "certified lasso"]
    return {"grid": grid, "error": error, "angle": angle, "along": along, "atoms": atoms, "methods": names}


def one_cone(atoms: np.ndarray) -> relu_fit.Linear:
    """Exact on every combination of the first two atoms: their dual basis; the third source is never above 0 there."""
    w = np.zeros((2, 3))
    w[:, :2] = np.linalg.inv(atoms[:2])
    w[:, 2] = atoms[2]
    return relu_fit.Linear(w, np.zeros(3))


def _draw(n: int, seed: int) -> np.ndarray:
    """(n, 3): |N(0, 1)| on two of three sources."""
    draw = np.random.default_rng([seed, 5])
    codes = np.abs(draw.standard_normal((n, 3)))
    codes[np.arange(n), draw.integers(0, 3, n)] = 0
    return codes
