import itertools

import numpy as np
import pytest

from amortjax.metrics import uncertainty
from amortjax.metrics.streaming import init
from amortjax.metrics.uncertainty import Estimate, difference, estimates, interval, resample_weights, unseen


def sums_of(fires, tokens, **arrays):
    """Sums with given (n, M) firings and (n,) tokens in the first n blocks."""
    fires, tokens = np.asarray(fires), np.asarray(tokens)
    out = init(fires.shape[1], 2)
    out.fires[: len(fires)], out.tokens[: len(tokens)] = fires, tokens
    out.l0[: len(fires)] = fires.sum(axis=1)
    for name, values in arrays.items():
        getattr(out, name)[: len(fires)] = values
    return out._replace(per_token=(np.full((int(tokens.sum()), 3), np.nan, np.float32),))


def brute_dead(fires, drawn):
    """Mean share of dead latents over every subset of `drawn` rows."""
    seen = [fires[list(rows)].any(axis=0) for rows in itertools.combinations(range(len(fires)), drawn)]
    return float(np.mean(~np.array(seen)))


@pytest.mark.parametrize("n_blocks", [7, 8])
def test_rarefied_dead_and_its_jackknife_agree_with_brute_force(n_blocks):
    rng = np.random.default_rng(n_blocks)
    fires = rng.random((n_blocks, 40)) < rng.uniform(0, 0.5, 40)
    fires[:, 0], fires[:, 1] = True, False  # one in every block, one in none
    found = uncertainty.rarefied_dead(sums_of(fires, np.full(n_blocks, 3)))
    assert found.draws is not None and found.value is not None
    assert found.value == pytest.approx(brute_dead(fires, n_blocks // 2), abs=1e-12)
    without = [brute_dead(np.delete(fires, i, axis=0), (n_blocks - 1) // 2) for i in range(n_blocks)]
    np.testing.assert_allclose(found.draws, without, atol=1e-12)
    spread = (n_blocks - 1) / n_blocks * np.sum((np.array(without) - np.mean(without)) ** 2)
    assert uncertainty.jackknife_error(found.draws) == pytest.approx(np.sqrt(spread))


def test_unseen_is_hypergeometric():
    from scipy.stats import hypergeom

    for n, drawn in ((1, 0), (2, 1), (9, 4), (200, 100)):
        want = [hypergeom.pmf(0, n, b, drawn) for b in range(n + 1)]
        np.testing.assert_allclose(unseen(n, drawn), want, atol=1e-12)


def test_empty_blocks_do_not_count():
    fires = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 2]])
    full = uncertainty.rarefied_dead(sums_of(fires, [4, 4, 4, 4]))
    gaps = np.zeros((9, 3), int)
    gaps[[0, 3, 5, 8]] = fires
    spaced = uncertainty.rarefied_dead(sums_of(gaps, [4, 0, 0, 4, 0, 4, 0, 0, 4]))
    assert full.draws is not None and spaced.draws is not None and full.value == spaced.value
    assert np.array_equal(full.draws, spaced.draws)


def test_resamples_are_the_same_for_every_mode_and_skip_empty_blocks():
    counts = np.array([3, 0, 2, 5])
    w = resample_weights(counts, 50, seed=1)
    assert np.array_equal(w, resample_weights(counts * 7, 50, seed=1))
    assert (w[:, 1] == 0).all() and (w.sum(axis=1) == 3).all()
    assert not np.array_equal(w, resample_weights(counts, 50, seed=2))


def test_dense_draws_equal_the_direct_computation():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, 60)
    fires = rng.binomial(tokens[:, None], rng.uniform(0, 0.25, (1, 50)))
    sums = sums_of(fires, tokens)
    w = resample_weights(sums.tokens, 40)
    rate = (w @ sums.fires) / (w @ sums.tokens)[:, None]
    for at in (0.1, 0.2):
        want = (rate >= at).mean(axis=1)
        np.testing.assert_array_equal(uncertainty.dense_draws(sums, w, at, chunk=7), want)


def stream(rng, n_documents=80, scale=1.0):
    """Sums with a document effect in the squared error; the true ratio is 0.2 * scale."""
    tokens = np.full(n_documents, 20)
    base = rng.gamma(5, 4, n_documents)
    residual = base * rng.gamma(4, 0.05, n_documents) * scale
    return sums_of(np.ones((n_documents, 3), int), tokens, residual=residual, base=base, energy=2 * base)


def test_bootstrap_intervals_cover_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        bounds = interval(estimates(stream(rng), 80, n_resamples=200)["nmse"])
        assert bounds is not None
        hits.append(bounds[0] <= 0.2 <= bounds[1])
    assert 0.89 <= np.mean(hits) <= 0.98  # 95 % less what percentiles lose on 80 blocks


def test_dead_intervals_cover_the_expected_rarefied_value():
    rng = np.random.default_rng(1)
    rate = rng.beta(0.3, 8, 300)  # chance that a latent fires in a document
    truth = np.mean((1 - rate) ** 30)  # unseen in 30 of 60 documents
    hits, values = [], []
    for _ in range(200):
        found = uncertainty.rarefied_dead(sums_of(rng.random((60, 300)) < rate, np.full(60, 9)))
        lo, hi = interval(found) or (0, 0)
        hits.append(lo <= truth <= hi)
        values.append(found.value)
    assert np.mean(values) == pytest.approx(truth, abs=0.004)
    assert np.mean(hits) >= 0.9


def test_a_paired_difference_is_narrower_than_the_intervals_it_joins():
    first = stream(np.random.default_rng(3))
    second = first._replace(residual=first.residual * 0.97)
    a, b = estimates(first, 80), estimates(second, 80)
    d = difference(a["nmse"], b["nmse"])
    lo, hi = interval(a["nmse"]) or (0, 0)
    assert d is not None and d.clear and d.lo is not None and d.hi is not None
    assert d.value == pytest.approx(0.03 * (a["nmse"].value or 0)) and d.hi - d.lo < 0.1 * (hi - lo)
    same = difference(a["dead_half"], b["dead_half"])
    assert same is not None and same.value == 0 and same.lo == 0 and same.hi == 0 and not same.clear


def test_under_fifty_documents_there_is_a_value_and_no_interval():
    found = estimates(stream(np.random.default_rng(0), 49), 49)
    assert found["nmse"].value is not None and all(interval(e) is None for e in found.values())
    d = difference(found["nmse"], found["nmse"])
    assert d is not None and d == (0.0, None, None) and not d.clear
    row = uncertainty.flatten(found)
    assert row["nmse_lo"] is None and row["nmse"] == found["nmse"].value


def test_undefined_metrics_stay_none_in_rows_and_differences():
    found = estimates(stream(np.random.default_rng(0)), 80, n_resamples=20)
    assert found["objective"].value is None and interval(found["objective"]) is None
    row = uncertainty.flatten_differences(found, found)
    assert row["objective_minus_amortized"] is None and row["nmse_minus_amortized"] == 0


def test_estimates_of_different_streams_are_not_paired():
    a, b = Estimate(1.0, np.zeros(5)), Estimate(1.0, np.zeros(6))
    with pytest.raises(ValueError, match="can't be paired"):
        difference(a, b)
