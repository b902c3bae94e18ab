import numpy as np
import pytest

from amortjax.activations.store import MemoryStore

D, M, K, SCALE = 32, 48, 3, 20.0


def planted_activations(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """x (n, D) of K of M known atoms each, off centre and in units far from 1; and the atoms (M, D)."""
    rng = np.random.default_rng(seed)
    atoms = np.random.default_rng(100).standard_normal((M, D))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    z = np.zeros((n, M))
    for row in z:
        row[rng.choice(M, K, replace=False)] = rng.exponential(size=K) + 0.5
    x = z @ atoms + 0.02 * rng.standard_normal((n, D)) + np.linspace(-2, 2, D)
    return (SCALE * x).astype(np.float32), atoms


@pytest.fixture(scope="session")
def planted() -> MemoryStore:
    """A store of planted activations: documents of 100 rows, nine tenths of them for training."""
    x, _ = planted_activations(9000)
    splits = ["test" if i % 10 == 9 else "sae_train" for i in range(90)]
    return MemoryStore.build(
        x, np.repeat(np.arange(90), 100), splits, corpus_fingerprint="planted", layer_index=3
    )
