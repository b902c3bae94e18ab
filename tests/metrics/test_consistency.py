"""Matchings and MCC: copies score 1, rotations score chance, and large matrices are matched among candidates."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
from problems import toy_sae

from amortjax.inference.api import encode_codes
from amortjax.metrics import consistency, nulls, streaming, uncertainty


def permuted(sae, order: np.ndarray):
    return dataclasses.replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])


def tokens(n: int = 600, d: int = 16) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((n, d)).astype(np.float32)


def sparse(seed: int, n: int = 300, m: int = 12) -> scipy.sparse.csr_array:
    rng = np.random.default_rng(seed)
    return scipy.sparse.csr_array((rng.random((n, m)) < 0.3) * rng.exponential(size=(n, m)))


def test_a_permuted_copy_matches_itself():
    sae, order = toy_sae(), np.random.default_rng(0).permutation(64)
    other = permuted(sae, order)
    found = consistency.match(consistency.cosines(sae.W_dec, other.W_dec), 64, 64)
    assert found.mcc == pytest.approx(1, abs=1e-5) and found.exact
    assert np.array_equal(order[found.b], found.a)
    x = tokens()
    a, b = (encode_codes(s, x).csr() for s in (sae, other))
    block = streaming.block_of(np.repeat(np.arange(150), 4))
    own = consistency.match(consistency.correlations(a, b), 64, 64)
    both = consistency.mcc(a[:, own.a], b[:, own.b], block, own.of)
    assert own.mcc == pytest.approx(1, abs=1e-5) and both.value == pytest.approx(1, abs=1e-9)
    assert uncertainty.interval(both) == pytest.approx((1, 1), abs=1e-6)


def test_a_rotated_dictionary_scores_as_an_unrelated_one():
    sae = toy_sae()
    rows = np.asarray(sae.W_dec)
    chances = []
    for other in (
        rows @ nulls.rotation(16, 1),
        rows @ nulls.rotation(16, 2),
        np.asarray(toy_sae(seed=9).W_dec),
    ):
        chances.append(consistency.match(consistency.cosines(rows, other), 64, 64).mcc)
    assert max(chances) - min(chances) < 0.03 and 0.4 < min(chances) < 0.7


def test_dealt_codes_score_chance():
    z = sparse(0, n=2000)
    found = consistency.match(consistency.correlations(z, nulls.shuffled(z, 1)), 12, 12)
    assert found.mcc < 0.08


def test_correlations_are_pearsons():
    a, b = sparse(0), sparse(1, m=9)
    wanted = np.corrcoef(a.toarray(), b.toarray(), rowvar=False)[:12, 12:]
    similar = consistency.correlations(a, b)
    assert np.allclose(np.concatenate([similar(slice(0, 5)), similar(slice(5, 12))]), wanted, atol=1e-12)
    assert np.allclose(consistency.correlations(a, b, signed=True)(slice(0, 12)), np.abs(wanted), atol=1e-12)
    still = scipy.sparse.csr_array(np.ones((300, 2)))
    assert not consistency.correlations(a, still)(slice(0, 12)).any()


def test_intervals_leave_out_a_block_of_documents_at_a_time():
    a, b = sparse(0), sparse(0)
    b = scipy.sparse.csr_array(b + 0.7 * sparse(5))
    doc_ids = np.repeat(np.arange(60), 5)
    block = streaming.block_of(doc_ids)
    found = consistency.mcc(a, b, block, 12, chunk=5)
    of = lambda keep: np.mean(  # noqa: E731
        [np.corrcoef(a.toarray()[keep, j], b.toarray()[keep, j])[0, 1] for j in range(12)]
    )
    assert found.value == pytest.approx(of(doc_ids >= 0))
    assert len(found.draws) == 60 and found.draws[7] == pytest.approx(of(doc_ids != 7))
    order = np.random.default_rng(0).permutation(300)
    again = consistency.mcc(
        scipy.sparse.csr_array(a[order]), scipy.sparse.csr_array(b[order]), block[order], 12, chunk=100
    )
    assert np.allclose(again.draws, found.draws)
    assert consistency.mcc(a, b, block, 12, with_interval=False).draws is None


@pytest.mark.parametrize("shape", [(64, 64), (64, 80), (80, 64)])
def test_candidates_bound_the_whole_matching(shape, monkeypatch):
    monkeypatch.setattr(consistency, "CANDIDATES", 6)
    monkeypatch.setattr(consistency, "ROWS", 17)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((shape[0], 16)), rng.standard_normal((shape[1], 16))
    whole = consistency.match(consistency.cosines(a, b), *shape)
    few = consistency.match(consistency.cosines(a, b), *shape, most_cells=1)
    assert not few.exact and few.of == whole.of == 64
    assert 0.9 * whole.mcc < few.mcc <= whole.mcc + 1e-6 <= few.bound + 2e-6
    assert len(np.unique(few.a)) == len(few.a) and len(np.unique(few.b)) == len(few.b)
    copy = consistency.match(consistency.cosines(a, a[rng.permutation(len(a))]), len(a), len(a), most_cells=1)
    assert copy.mcc == pytest.approx(1, abs=1e-5)


def test_latents_that_fire_rarely_are_left_out():
    z = scipy.sparse.csr_array(np.array([[1, 0, 2.0], [1, 1, 0], [1, 0, 0]]))
    assert consistency.alive(z, 1).tolist() == [0, 1, 2] and consistency.alive(z, 2).tolist() == [0]
    assert consistency.match(consistency.cosines(np.zeros((0, 4)), np.ones((3, 4))), 0, 3).mcc == 0
