"""Refits of supports of any size, and the metrics of drawn codes."""

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from problems import toy_sae

from amortjax.metrics import null_bench
from amortjax.metrics.plan import make_plan, pose_subject


@pytest.mark.parametrize("wide", [128, 32])
def test_refits_are_least_squares_of_each_tokens_own_support(toy_store, wide, monkeypatch):
    """Supports of 0 to 60 latents side by side, against scipy's NNLS."""
    monkeypatch.setattr(null_bench, "WIDE", wide)
    subject = pose_subject(toy_sae(), toy_store, make_plan(eval_tokens=48, chunk=64))
    rng = np.random.default_rng(0)
    rows = subject.test_rows
    sizes = np.resize([0, 1, 5, 40, 3, 60, 8, 2], len(rows))
    support = np.zeros((len(rows), 64), np.float32)
    for row, size in zip(support, sizes, strict=True):
        row[rng.choice(64, size, replace=False)] = 1
    found = null_bench.fitted(subject, scipy.sparse.csr_array(support), rows).toarray()
    atoms, t = np.asarray(subject.sae.W_dec, np.float64), subject.batch(rows)[1]
    assert not found[support == 0].any() and found.min() >= 0
    for own, z, y in zip(support, found, t, strict=True):
        chosen = np.flatnonzero(own)
        least = (
            scipy.optimize.nnls(atoms[chosen].T, y.astype(np.float64))[1]
            if len(chosen)
            else np.linalg.norm(y)
        )
        assert np.linalg.norm(y - z @ atoms) == pytest.approx(least, rel=1e-3, abs=2e-3)
