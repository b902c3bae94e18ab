import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from amortjax.errors import AmortjaxError
from amortjax.metrics import streaming
from amortjax.metrics.streaming import N_BLOCKS, Batch, block_of, finalise, init, merge, update


def make_batch(n=120, d=6, m=30, seed=0, n_documents=12, **given):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).astype(np.float32) + 3
    codes = scipy.sparse.csr_array(scipy.sparse.random_array((n, m), density=0.1, rng=rng, dtype=np.float32))
    p = rng.uniform(1, 2, n)
    fields = {"objective": p, "gap": p * rng.uniform(0, 0.5, n), "gap_lower": p * 0.1, "gap_upper": p * 0.2}
    fields |= {"amplitude": p * 0.07, "amplitude_upper": p * 0.08, "support": p * 0.03}
    fields |= {"support_lower": p * 0.02, "support_upper": p * 0.13}
    residual = (0.3 * rng.standard_normal((n, d))).astype(np.float32)
    block = block_of(np.sort(rng.integers(0, n_documents, n)))
    return Batch(x, residual, x - 1, codes, block, **fields, l1=p)._replace(**given)


def cut(batch, start, stop):
    parts: dict[str, Any] = {name: value[start:stop] for name, value in batch._asdict().items()}
    return Batch(**parts)


def measure(batch, cuts=()):
    """Metrics of the stream cut at `cuts`, each piece summed by itself and then merged."""
    ends = [0, *sorted(cuts), len(batch.x)]
    start = init(batch.codes.shape[1], batch.x.shape[1])
    whole = start
    for lo, hi in itertools.pairwise(ends):
        whole = merge(whole, update(init(batch.codes.shape[1], batch.x.shape[1]), cut(batch, lo, hi)))
    return finalise(whole)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=6), st.integers(0, 3))
def test_any_split_of_the_stream_gives_the_same_metrics(cuts, seed):
    batch = make_batch(seed=seed)
    whole = finalise(update(init(30, 6), batch))
    pieces = measure(batch, cuts)
    assert pieces.keys() == whole.keys()
    for name, value in whole.items():
        assert pieces[name] == pytest.approx(value, rel=1e-12), name


def test_update_in_turn_equals_merge():
    batch = make_batch()
    sums = init(30, 6)
    for start in range(0, 120, 7):
        sums = update(sums, cut(batch, start, start + 7))
    assert finalise(sums) == pytest.approx(measure(batch, [50]), rel=1e-12)


def test_metrics_are_what_their_formulas_say():
    batch = make_batch()
    got = finalise(update(init(30, 6), batch))
    x, e, base = (np.asarray(v, np.float64) for v in (batch.x, batch.residual, batch.base))
    z = batch.codes.toarray()
    rate = (z != 0).mean(axis=0)
    assert got["nmse"] == pytest.approx((e**2).sum() / (base**2).sum(), rel=1e-12)
    assert got["nmse_literal"] == pytest.approx((e**2).sum() / (x**2).sum(), rel=1e-12)
    assert got["fvu"] == pytest.approx((e**2).sum() / ((x - x.mean(axis=0)) ** 2).sum(), rel=1e-10)
    assert got["l0"] == pytest.approx((z != 0).sum() / 120) and got["density"] == pytest.approx(rate.mean())
    assert got["dead"] == (rate == 0).mean()
    assert got["dense@0.1"] == (rate >= 0.1).mean() and got["dense@0.2"] == (rate >= 0.2).mean()
    assert batch.gap is not None and batch.objective is not None and batch.gap_upper is not None
    assert got["own_gap"] == pytest.approx(batch.gap.sum() / batch.objective.sum())
    assert got["suboptimality_lower"] == pytest.approx(0.1 / 0.9)
    assert got["suboptimality_upper"] == pytest.approx(0.2 / 0.8)
    assert got["gap_width"] == pytest.approx(0.1 * np.mean(batch.objective))
    parts = (
        got[f"price_{name}"]
        for name in ("amplitude", "amplitude_upper", *("support" + s for s in ("", "_lower", "_upper")))
    )
    assert list(parts) == pytest.approx([0.07 / 0.9, 0.08 / 0.8, 0.03 / 0.9, 0.02 / 0.9, 0.13 / 0.8])
    assert got["gap_upper_median"] == pytest.approx(np.median(batch.gap_upper), rel=1e-6)
    never_given = finalise(update(init(30, 6), batch._replace(l1=None, gap=None)))
    assert never_given["l1"] is None and never_given["own_gap"] is None and never_given["certified"] is None


def test_ratios_are_of_totals_not_means_of_batch_ratios():
    small, large = make_batch(20, seed=1), make_batch(100, seed=2)
    large = large._replace(residual=large.residual * 5)
    sums = update(update(init(30, 6), small), large)
    e = sum(float((b.residual.astype(float) ** 2).sum()) for b in (small, large))
    t = sum(float((b.base.astype(float) ** 2).sum()) for b in (small, large))
    assert finalise(sums)["nmse"] == pytest.approx(e / t)


def test_perfect_mean_and_zero_predictors():
    batch = make_batch()
    x = batch.x.astype(np.float64)
    by = lambda **given: finalise(update(init(30, 6), batch._replace(x=x, **given)))  # noqa: E731
    assert by(residual=np.zeros_like(x))["fvu"] == 0
    assert by(residual=x - x.mean(axis=0))["fvu"] == pytest.approx(1, rel=1e-12)
    assert by(residual=batch.base)["nmse"] == 1  # z = 0 reconstructs b_out
    assert by(residual=x)["nmse_literal"] == 1


def test_signed_codes_fire_and_padding_does_not():
    codes = scipy.sparse.csr_array(np.array([[-1.0, 0, 0], [0, 2.0, 0]]))
    codes.data[1] = 0.0  # an explicit zero
    x = np.ones((2, 2))
    got = finalise(update(init(3, 2), Batch(x, x, x, codes, np.array([0, 1]))))
    assert got["l0"] == 0.5 and got["dead"] == pytest.approx(2 / 3)


def test_certified_is_the_share_within_tolerance():
    batch = make_batch(4, objective=np.ones(4), gap=np.array([0, 1e-5, 1e-3, 0.5]))
    batch = batch._replace(gap_lower=np.zeros(4), gap_upper=np.full(4, 1e-5))
    assert finalise(update(init(30, 6), batch))["certified"] == 0.5
    both_zero = batch._replace(objective=np.zeros(4), gap=np.zeros(4))
    assert finalise(update(init(30, 6), both_zero))["certified"] == 1


def test_no_tokens_is_an_error_that_says_so():
    with pytest.raises(AmortjaxError, match="no tokens"):
        finalise(init(4, 2))


def test_what_is_not_finite_is_counted():
    batch = make_batch()
    batch.residual[7] = np.nan
    with pytest.raises(AmortjaxError, match=r"1 of 120 reconstructions .* row 7"):
        update(init(30, 6), batch)


def test_a_field_defined_on_some_tokens_only_is_refused():
    objective = np.ones(120)
    objective[3] = np.nan
    with pytest.raises(ValueError, match="objective is NaN on 1 of 120"):
        finalise(update(init(30, 6), make_batch(objective=objective)))


def test_blocks_are_documents_up_to_200_and_stable_hashes_beyond():
    few = np.array([5, 5, 9, 1000, 9])
    assert block_of(few).tolist() == [0, 0, 1, 2, 1]
    assert block_of(few[2:], documents=few).tolist() == [1, 2, 1]
    many = np.arange(5000)
    blocks = block_of(many)
    assert np.array_equal(block_of(many[:300]), blocks[:300])  # does not depend on the others
    assert blocks.max() < N_BLOCKS and np.bincount(blocks, minlength=N_BLOCKS).min() > 5
    # First outputs of SplitMix64 seeded with 0 and with 1 (the published reference generator).
    assert streaming.splitmix64(np.array([0, 1])).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1]


def test_wide_dictionaries_stay_in_bounded_memory():
    m, n = 65_536, 256
    rng = np.random.default_rng(0)
    sums = init(m, 8)
    before = sums.fires.nbytes
    for _ in range(8):
        columns = rng.integers(0, m, (n, 32))
        codes = scipy.sparse.csr_array(
            (np.ones(n * 32), columns.ravel(), np.arange(n + 1) * 32), shape=(n, m)
        )
        x = rng.standard_normal((n, 8))
        sums = update(sums, Batch(x, x, x, codes, rng.integers(0, N_BLOCKS, n)))
    arrays = [v for v in sums[:-1] if isinstance(v, np.ndarray)]
    assert sum(a.nbytes for a in arrays) < before + 1e6 and before == N_BLOCKS * m * 4
    assert sum(a.nbytes for a in sums.per_token) == 8 * n * 12
    assert 0 < (finalise(sums)["dead"] or 0) < 1
