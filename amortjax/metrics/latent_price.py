"""What foretells which latents the encoder pays for: rank correlations and a small ridge regression over latents.

Intervals are percentiles of a bootstrap over latents, on the measured tokens: they say how far the numbers depend on
which latents this SAE happens to have, nothing about other documents.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import rankdata

N_RESAMPLES = 500
LEAST = 30  # latents below which nothing is fitted
LEVEL = 0.95
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)


def predict(
    targets: Mapping[str, np.ndarray], predictors: Mapping[str, np.ndarray], seed: int = 0
) -> list[dict[str, Any]]:
    """A row per target and predictor, both (M,), over the latents on which all are finite.

    correlation: Spearman's. coefficient: of a ridge regression of the target's ranks on all predictors' ranks,
    standardised, its penalty chosen by leave-one-out; r2: of that regression on latents left out (5 folds). Bounds
    `_lo`, `_hi` from the bootstrap, whose resamples weight the ranks of the whole. None where fewer than 30 latents
    are left or a column is constant.
    """
    every = [*targets.values(), *predictors.values()]
    known = np.all([np.isfinite(column) for column in every], axis=0)
    n = int(known.sum())
    columns = {**targets, **predictors}
    ranked = {name: _standard(column[known]) for name, column in columns.items()} if n >= LEAST else {}
    kept = {name: column for name, column in ranked.items() if column is not None}
    enough = len(kept) == len(columns)
    x = np.stack([kept[name] for name in predictors], axis=1) if enough else np.zeros((0, 0))
    rng = np.random.default_rng([seed, 21])
    weights = rng.multinomial(n, np.full(n, 1 / n), N_RESAMPLES) if enough else np.zeros((0, 0))
    rows = []
    for target in targets:
        found = _fitted(x, kept[target], weights, seed) if enough else None
        for j, name in enumerate(predictors):
            row: dict[str, Any] = {"target": target, "predictor": name, "latents": n}
            rows.append(row | (_empty() if found is None else {key: of[j] for key, of in found.items()}))
    return rows


def _empty() -> dict[str, None]:
    keys = ("correlation", "coefficient")
    return {f"{key}{end}": None for key in keys for end in ("", "_lo", "_hi")} | {"r2": None}


def _standard(column: np.ndarray) -> np.ndarray | None:
    """Ranks with mean 0 and variance 1; None if all are equal."""
    ranks = rankdata(column)
    spread = float(ranks.std())
    return (ranks - ranks.mean()) / spread if spread > 0 else None


def _fitted(x: np.ndarray, y: np.ndarray, weights: np.ndarray, seed: int) -> dict[str, list[Any]]:
    """Columns, one entry per predictor: x (n, P) and y (n,) standardised ranks, weights (R, n) of the resamples."""
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    alpha = float(RidgeCV(ALPHAS).fit(x, y).alpha_ or 1.0)
    folds = KFold(5, shuffle=True, random_state=seed)
    r2 = float(r2_score(y, cross_val_predict(RidgeCV(ALPHAS), x, y, cv=folds)))
    coefficients = np.stack([Ridge(alpha).fit(x, y, sample_weight=w).coef_ for w in weights])
    correlations = _correlations(x, y, weights)
    out: dict[str, list[Any]] = {"r2": [r2] * x.shape[1]}
    for key, value, draws in (
        ("correlation", _correlations(x, y, np.ones((1, len(y))))[0], correlations),
        ("coefficient", np.asarray(Ridge(alpha).fit(x, y).coef_), coefficients),
    ):
        low, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=0)
        out |= {key: value.tolist(), f"{key}_lo": low.tolist(), f"{key}_hi": high.tolist()}
    return out


def _correlations(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, P): of y with each column of x, under each row of weights."""
    out = np.empty((len(weights), x.shape[1]))
    for i, w in enumerate(weights):
        w = w / w.sum()
        a, b = x - w @ x, y - w @ y
        out[i] = (w * b) @ a / np.sqrt((w @ (a * a)) * (w @ (b * b)))
    return out
