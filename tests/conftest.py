"""Shared fixtures: a small activation store, and where the optional real data lies."""

import os
from pathlib import Path

import numpy as np
import pytest
from problems import toy_sae

from amortjax.activations.store import MemoryStore


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of public models and texts; tests that need it skip without it."""
    path = os.environ.get("AMORTJAX_TEST_DATA", "")
    if not path or not Path(path).is_dir():
        pytest.skip("AMORTJAX_TEST_DATA names no folder of test models and texts")
    return Path(path)


@pytest.fixture(scope="session")
def toy_store() -> MemoryStore:
    """1 600 tokens of 400 documents in two classes, made of the atoms of `toy_sae`; class 1 fires latent 0."""
    r, sae = np.random.default_rng(7), toy_sae()
    n_documents, per = 400, 4
    label = r.integers(0, 2, n_documents)
    z = np.zeros((n_documents * per, sae.n_latents))
    for i, row in enumerate(z):
        row[r.choice(np.arange(1, sae.n_latents), 4, replace=False)] = r.exponential(size=4) + 0.3
        row[0] = label[i // per] * (r.random() < 0.5) * 2.0
    x = z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec) + 0.02 * r.standard_normal((len(z), sae.d_in))
    splits = np.array(["calibrate", "probe_train", "test"])[np.arange(n_documents) % 3]
    doc_ids = np.repeat(np.arange(n_documents), per)
    return MemoryStore.build(x.astype(np.float32), doc_ids, list(splits), [f"class {i}" for i in label])
