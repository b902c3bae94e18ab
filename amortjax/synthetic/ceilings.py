"""scikit-learn's dictionary learning, and the data on which the paper compares with it.

The released comparison (DictionaryLearning, codes by lasso_lars at alpha .05) draws data of its own: signed Gaussian
codes from `make_sparse_coded_signal`. `published_data` is that; on it scikit-learn is published at .932 (latents) and
.986 (dictionary) for 16 sources, 8 dimensions, 3 active. The other ceiling is `dictionary_learner`.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError

ALPHA = 0.05  # of scikit-learn's codes, as published
SKLEARN_SEED = 42


class Drawn(NamedTuple):
    """codes (n, sources), dictionary (sources, D), unit rows, x (n, D), halves for training and test; float32."""

    codes_train: np.ndarray
    codes_test: np.ndarray
    x_train: np.ndarray
    x_test: np.ndarray
    dictionary: np.ndarray


def published_data(
    sources: int, dimensions: int, active: int, n: int = 2048, seed: int = SKLEARN_SEED
) -> Drawn:
    """The data of the paper's scikit-learn comparison: exactly `active` N(0, 1) codes of either sign."""
    from sklearn.datasets import make_sparse_coded_signal

    x, dictionary, codes = make_sparse_coded_signal(
        n_samples=n, n_components=sources, n_features=dimensions, n_nonzero_coefs=active, random_state=seed
    )
    half = n // 2
    parts = (codes[:half], codes[half:], x[:half], x[half:], dictionary)
    return Drawn(*(np.asarray(part, np.float32) for part in parts))


def sklearn_learned(x: Any, sources: int, seed: int = SKLEARN_SEED, jobs: int = 1) -> np.ndarray:
    """The dictionary (sources, D) that scikit-learn's DictionaryLearning finds in x (n, D), with its defaults (lars,
    alpha 1, at most 1000 rounds) as published. Codes of the fit have either sign."""
    from sklearn.decomposition import DictionaryLearning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = DictionaryLearning(n_components=sources, random_state=seed, n_jobs=jobs)
        found = np.asarray(learner.fit(np.asarray(x, np.float64)).components_, np.float32)
    if not np.isfinite(found).all():
        raise AmortjaxError(f"scikit-learn's dictionary of {sources} atoms is not finite: try another seed")
    return found


def turned(dictionary: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Atoms of length 1, turned so that their signed codes are positive on average: for codes of one sign."""
    norms = np.linalg.norm(dictionary, axis=1, keepdims=True)
    sign = np.where(sklearn_codes(dictionary, x).mean(axis=0) < 0, -1.0, 1.0)
    return (sign[:, None] * dictionary / np.where(norms > 0, norms, 1.0)).astype(np.float32)


def sklearn_codes(dictionary: Any, x: Any, alpha: float = ALPHA) -> np.ndarray:
    """Signed codes (n, sources) by lasso_lars as published. scikit-learn divides the error by 2 D: alpha is lam / D."""
    from sklearn.decomposition import SparseCoder

    coder = SparseCoder(
        dictionary=np.asarray(dictionary, np.float64), transform_algorithm="lasso_lars", transform_alpha=alpha
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(coder.transform(np.asarray(x, np.float64)), np.float32)
