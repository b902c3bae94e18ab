"""An SAE's weights drawn at random and the formulas of its codes in NumPy, for tests of readers."""

from pathlib import Path

import numpy as np
import pytest

from amortjax.errors import CheckpointError
from amortjax.saes import api
from amortjax.saes.formats import load_sae

D, M, OUT, K = 12, 32, 20, 4
X = np.random.default_rng(9).standard_normal((16, D)).astype(np.float32) * 2


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


W_ENC, B_ENC, W_DEC, B_DEC = draw(D, M), draw(M, seed=1), draw(M, D, seed=2), draw(D, seed=3)
PLAIN = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}


def pre(x: np.ndarray, bias: np.ndarray | float = 0.0) -> np.ndarray:
    return (x - bias).astype(np.float64) @ W_ENC.astype(np.float64) + B_ENC


def topk(a: np.ndarray, k: int = K) -> np.ndarray:
    kept = np.zeros_like(a)
    rows, best = np.arange(len(a))[:, None], np.argsort(-a, axis=1)[:, :k]
    kept[rows, best] = a[rows, best]
    return kept


def relu(a: np.ndarray) -> np.ndarray:
    return np.maximum(a, 0)


def layer_norm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean = x.mean(axis=1, keepdims=True)
    std = np.std(x, axis=1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), std, mean


def assert_codes(sae, z: np.ndarray, y: np.ndarray | None = None, x: np.ndarray = X) -> None:
    got = api.encode(sae, x)
    np.testing.assert_array_equal(got != 0, z != 0)
    assert np.abs(got - z).max() <= 1e-5 * (1 + np.abs(z).max())
    if y is not None:
        assert np.abs(api.reconstruct(sae, x) - y).max() <= 1e-5 * (1 + np.abs(y).max())


def assert_refused(path: Path, text: str, **choices) -> None:
    with pytest.raises(CheckpointError, match=text) as caught:
        load_sae(path, **choices)
    assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)
