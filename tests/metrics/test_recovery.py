"""MCC: what it does not see, what caps it, and what unrelated codes and dictionaries score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amortjax.errors import AmortjaxError
from amortjax.metrics import recovery


def codes(seed: int = 0, n: int = 200, m: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_normal((n, m))) * (rng.random((n, m)) < 0.3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_order_scale_sign_and_shift_of_latents_do_not_matter(seed):
    z, rng = codes(seed), np.random.default_rng(seed)
    order = rng.permutation(16)
    scale = rng.uniform(0.1, 10, 16) * rng.choice([-1, 1], 16)
    found = recovery.mcc(z, z[:, order] * scale + rng.normal(size=16))
    assert found.mcc == pytest.approx(1, abs=1e-9)
    assert np.array_equal(order[found.pairs[:, 1]], found.pairs[:, 0])


def test_a_dead_latent_of_16_caps_it_at_15_of_16():
    z, other = codes(), codes()
    other[:, 3] = 0.7  # constant is as dead as zero
    assert recovery.mcc(z, other).mcc == pytest.approx(15 / 16, abs=0.012)
    assert recovery.mcc(z, other, "identity").mcc == pytest.approx(15 / 16, abs=1e-12)
    assert recovery.mcc(z, np.zeros_like(z)).mcc == 0


def test_variance_below_the_papers_threshold_counts_as_none():
    z = codes()
    sd = z.std(axis=0)
    assert recovery.mcc(z, z / sd * 0.9e-6).mcc == 0
    assert recovery.mcc(z, z / sd * 1.1e-6).mcc == pytest.approx(1)
    assert float(recovery.mcc(jnp.asarray(z), jnp.asarray(z / sd * 1.1e-6)).mcc) == pytest.approx(1, abs=1e-5)


def test_identity_is_signed_and_blind_to_other_orders():
    z = codes()
    assert recovery.mcc(z, -z, "identity").mcc == pytest.approx(-1)
    assert recovery.mcc(z, -z, "identity", signed=False).mcc == pytest.approx(1)
    assert abs(recovery.mcc(z, np.roll(z, 1, axis=1), "identity").mcc) < 0.2
    with pytest.raises(AmortjaxError, match="no identity matching"):
        recovery.mcc(z, z[:, :5], "identity")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 9), st.integers(3, 9))
def test_hungarian_is_the_best_of_all_matchings_and_greedy_is_one(seed, rows, columns):
    matrix = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))
    best, greedy = (recovery.mcc_of(matrix, how) for how in ("hungarian", "greedy"))
    for found in (best, greedy):
        assert (
            len(found.pairs)
            == len(set(found.pairs[:, 0]))
            == len(set(found.pairs[:, 1]))
            == min(matrix.shape)
        )
        assert np.array_equal(found.each, np.abs(matrix)[tuple(found.pairs.T)])
    assert greedy.mcc <= best.mcc + 1e-12
    assert best.mcc >= np.abs(matrix)[np.arange(3), np.arange(3)].sum() / min(matrix.shape) - 1e-12
    assert np.argmax(np.abs(matrix).max(axis=1)) in greedy.pairs[:, 0]


def test_greedy_chooses_whom_to_match_by_the_largest_and_pays_for_it():
    square = np.array([[0.9, 0.8], [0.8, 0.1]])
    assert recovery.mcc_of(square, "greedy").mcc == recovery.mcc_of(square).mcc == pytest.approx(0.8)
    wide = np.array([[0.5, 0.45, 0.0], [0.9, 0.1, 0.2], [0.89, 0.0, 0.3], [0.3, 0.0, 0.1]])
    assert recovery.mcc_of(wide).mcc == pytest.approx((0.9 + 0.45 + 0.3) / 3)
    crossed = np.array([[0.9, 0.8, 0.1], [0.8, 0.1, 0.2]])  # 0.9, then 0.2: their columns lack the second 0.8
    assert recovery.mcc_of(crossed).mcc == pytest.approx(0.8)
    assert recovery.mcc_of(crossed, "greedy").mcc == pytest.approx(0.55)


def test_more_latents_than_sources_are_matched_whole():
    z = codes()
    wide = np.concatenate([codes(5), z], axis=1)
    found = recovery.mcc(z, wide)
    assert found.mcc == pytest.approx(1) and np.array_equal(found.pairs[:, 1], np.arange(16, 32))


def test_correlations_agree_with_numpy_and_run_under_jit_and_vmap():
    a, b = codes(1), codes(2, m=5)
    expected = np.corrcoef(a.T, b.T)[:16, 16:]
    assert recovery.correlations(a, b) == pytest.approx(expected, abs=1e-12)
    both = jax.jit(jax.vmap(recovery.correlations))(jnp.stack([a, a]), jnp.stack([b, 2 * b]))
    assert np.asarray(both) == pytest.approx(np.stack([expected] * 2), abs=2e-6)
    cosine = (a.T @ b) / np.outer(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0))
    assert recovery.correlations(a, b, "cosine") == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize(
    ("d", "m", "published", "within"),
    [(8, 16, 0.669, 0.027), (8, 32, 0.746, 0.02), (8, 128, 0.833, 0.02), (16, 16, 0.472, 0.02), (16, 64, 0.592, 0.02),
     (32, 64, 0.424, 0.02), (32, 128, 0.462, 0.02)],
)  # fmt: skip
def test_unrelated_dictionaries_score_what_the_reference_measured(d, m, published, within):
    found = recovery.chance(d, m)
    assert found.mean == pytest.approx(published, abs=within) and 0 < found.std < 0.05
    assert found is recovery.chance(d, m)


def test_independent_codes_score_little():
    assert recovery.chance(1024, 16, density=3 / 16).mean == pytest.approx(0.059, abs=0.01)
    z = codes(0, 1024)
    dealt = recovery.chance_of_codes(z, codes(1, 1024))
    assert dealt.mean == pytest.approx(0.059, abs=0.015)
    assert recovery.mcc(z, z).mcc > 10 * dealt.mean


def test_corrected_is_0_at_chance_and_1_at_the_top():
    level = recovery.Chance(0.669, 0.027)
    assert recovery.corrected(0.669, level) == 0 and recovery.corrected(1, level) == 1
    assert recovery.corrected(0.5, 0.669) < 0
    assert recovery.chance(2, 4).mean == pytest.approx(1)  # Pearson of two entries
    assert recovery.corrected(1.0, recovery.chance(2, 4)) is None


def test_what_can_not_be_correlated_is_said():
    z = codes()
    with pytest.raises(AmortjaxError, match="can't be correlated"):
        recovery.correlations(z, z[:10])
    with pytest.raises(AmortjaxError, match="NaN"):
        recovery.mcc(z, z * np.nan)
    with pytest.raises(AmortjaxError, match="choose pearson"):
        recovery.correlations(z, z, "spearman")
    with pytest.raises(AmortjaxError, match="at least 1"):
        recovery.chance(0, 3)
