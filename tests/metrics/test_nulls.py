"""Null models keep what they promise, and nothing else."""

import numpy as np
import pytest
import scipy.sparse
from problems import toy_sae

from amortjax.errors import AmortjaxError
from amortjax.inference import objective
from amortjax.inference.api import encode_codes
from amortjax.metrics import null_bench, nulls
from amortjax.metrics.uncertainty import Estimate
from amortjax.saes.encoders import VARIANTS


def codes_of(n: int = 400, m: int = 30, seed: int = 0) -> scipy.sparse.csr_array:
    """Latent 0 always fires, latent 1 never, the others at rates of their own."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.01, 0.4, m)
    rates[:2] = 1, 0
    return scipy.sparse.csr_array((rng.random((n, m)) < rates) * rng.exponential(size=(n, m)))


def rates_and_l0(z: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    fires = z.toarray() != 0
    return fires.sum(axis=0), fires.sum(axis=1)


def x_of(n: int = 300, d: int = 16) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((n, d)).astype(np.float32)


def test_rotations_are_orthogonal_and_seeded():
    q = nulls.rotation(12, [0, 1])
    assert np.allclose(q @ q.T, np.eye(12), atol=1e-12)
    assert np.array_equal(q, nulls.rotation(12, [0, 1])) and not np.allclose(q, nulls.rotation(12, [0, 2]))


def test_a_rotated_dictionary_keeps_its_gram_matrix_and_its_encoder_stays_tied():
    sae = toy_sae()
    turned = nulls.rotated_dictionary(sae, 5)
    gram = lambda s: np.asarray(s.W_dec, np.float64) @ np.asarray(s.W_dec, np.float64).T  # noqa: E731
    assert np.allclose(gram(turned), gram(sae), atol=1e-6)
    assert np.abs(np.asarray(turned.W_dec - sae.W_dec)).max() > 0.3
    assert np.allclose(turned.W_enc, turned.W_dec.T, atol=1e-6)
    assert np.array_equal(turned.b_dec, sae.b_dec)
    assert objective.pose(turned).rank_bound == objective.pose(sae).rank_bound


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_encoders_keep_the_decoder_and_reach_the_l0(variant):
    sae, x = toy_sae(variant), x_of()
    wanted = float(encode_codes(sae, x, 128).l0.mean()) or 4.0
    turned = nulls.random_encoder(sae, 5)
    gram = lambda s: np.asarray(s.W_enc, np.float64).T @ np.asarray(s.W_enc, np.float64)  # noqa: E731
    assert np.allclose(gram(turned), gram(sae), atol=1e-5)
    assert np.array_equal(turned.W_dec, sae.W_dec)
    null = nulls.with_l0(turned, x, wanted, 128)
    assert np.array_equal(null.W_dec, sae.W_dec)
    l0 = float(encode_codes(null, x, 128).l0.mean())
    if variant == "matching_pursuit":  # it stops by itself
        assert 0 < l0 <= 4
    else:
        assert l0 == pytest.approx(wanted, abs=0.51 / len(x) if not nulls.ranks(sae) else 1e-3)
    assert not np.array_equal(encode_codes(null, x, 128).dense(), encode_codes(sae, x, 128).dense())


def test_the_threshold_is_the_same_however_tokens_are_cut():
    sae, x = nulls.random_encoder(toy_sae("standard"), 5), x_of()
    whole, cut = (nulls.with_l0(sae, x, 2.5, chunk) for chunk in (512, 128))
    assert np.allclose(whole.b_enc, cut.b_enc, atol=1e-6)
    with pytest.raises(AmortjaxError, match="no threshold gives an L0 of 64 with 64 latents"):
        nulls.with_l0(sae, x, 64.0, 128)


def test_shuffled_codes_keep_rows_and_lose_their_places():
    z = codes_of()
    dealt = nulls.shuffled(z, [0, 1])
    order = lambda a: a[np.lexsort(a.T)]  # noqa: E731
    assert np.array_equal(order(dealt.toarray()), order(z.toarray()))
    assert (dealt.toarray() != z.toarray()).any(axis=1).mean() > 0.9
    assert np.array_equal(nulls.shuffled(z, [0, 1]).toarray(), dealt.toarray())


def test_random_supports_keep_every_rate_and_every_l0_exactly():
    z = codes_of()
    drawn = nulls.random_support(z, [0, 1])
    for got, wanted in zip(rates_and_l0(drawn), rates_and_l0(z), strict=True):
        assert np.array_equal(got, wanted)
    assert set(np.unique(drawn.data)) == {1.0}
    assert np.array_equal(nulls.random_support(z, [0, 1]).toarray(), drawn.toarray())


def test_random_supports_forget_which_tokens_fired():
    """Co-firing with the given codes, and of two latents that always fired together, falls to independence."""
    z = codes_of(n=1000).toarray()
    z[:, 3] = z[:, 2]
    drawn = nulls.random_support(scipy.sparse.csr_array(z), 0).toarray() > 0
    fires = z > 0
    rates = fires.mean(axis=0)[2:]
    kept = (drawn & fires).mean(axis=0)[2:]
    assert np.abs(kept - rates**2).max() < 0.05  # tokens differ in L0, so independence is not exact
    both = (drawn[:, 2] & drawn[:, 3]).mean()
    assert both == pytest.approx(rates[0] ** 2, abs=0.04)


def test_one_token_and_no_firing_are_left_as_they_are():
    for z in (codes_of(n=1), scipy.sparse.csr_array((5, 4))):
        drawn = nulls.random_support(z, 0)
        assert np.array_equal(drawn.toarray() > 0, z.toarray() > 0)


def test_means_over_draws_keep_their_intervals():
    one, two = Estimate(0.2, np.array([0.1, 0.3])), Estimate(0.4, np.array([0.3, 0.5]))
    mean, spread = null_bench.averaged(
        [{"nmse": one, "df1": Estimate(None)}, {"nmse": two, "df1": Estimate(None)}]
    )
    assert mean["nmse"].value == pytest.approx(0.3) and np.allclose(mean["nmse"].draws, [0.2, 0.4])
    assert spread["nmse"] == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert mean["df1"].value is None and spread["df1"] is None
    assert null_bench.averaged([{"nmse": one}])[1]["nmse"] is None


def test_random_encoders_do_not_look_where_their_atoms_are():
    sae = toy_sae("topk")
    along = lambda s: np.abs(np.einsum("dm,md->m", np.asarray(s.W_enc), np.asarray(s.W_dec))).mean()  # noqa: E731
    assert along(nulls.random_encoder(sae, 1)) < 0.5 < along(sae)
