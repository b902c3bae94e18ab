"""Batches are a function of seed and number, cover every row once an epoch, and refuse what can't be trained on."""

import numpy as np
import pytest

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError, StoreError
from amortjax.training import batches
from amortjax.training.batches import Batches, geometric_median, scale_and_centre

N, D = 103, 3


class Numbered:
    """Row i is (i, i, i); every second row is for training, the others for `other`."""

    d_model, manifest = D, {"model_name": "numbers"}

    def __init__(self, n: int = 2 * N, other: str = "test"):
        self.n, self.other, self.reads = n, other, 0

    def rows(self, split: str) -> np.ndarray:
        if split not in ("sae_train", self.other):
            raise StoreError(f"the store has no document of split {split!r}")
        return np.arange(split == self.other, self.n, 2)

    def read(self, rows: np.ndarray) -> np.ndarray:
        self.reads += 1
        assert (np.diff(rows) > 0).all()  # a store on disk reads sorted rows
        return np.repeat(rows[:, None], D, axis=1).astype(np.float32)


def _epoch(source: Batches, epoch: int) -> np.ndarray:
    first = epoch * source.per_epoch
    return np.concatenate([source[first + i][:, 0] for i in range(source.per_epoch)]).astype(int)


@pytest.fixture(params=["in memory", "in windows"])
def memory(request, monkeypatch) -> int:
    monkeypatch.setattr(batches, "BLOCK", 5)
    return 10**9 if request.param == "in memory" else 4 * D * 40


def test_an_epoch_visits_each_training_row_at_most_once(memory):
    source = Batches(Numbered(), 10, seed=0, memory=memory)
    seen = [_epoch(source, epoch) for epoch in range(2)]
    for rows in seen:
        assert len(set(rows)) == len(rows) == 10 * source.per_epoch
        assert (rows % 2 == 0).all()
        assert len(rows) >= N - 3 * 10  # at most a batch per window is left out
    assert (seen[0] != seen[1]).any()


def test_any_batch_can_be_asked_for_first(memory):
    one, other = (Batches(Numbered(), 10, seed=3, memory=memory) for _ in range(2))
    inorder = [one[i].copy() for i in range(25)]
    for i in (24, 7, 11, 0):
        np.testing.assert_array_equal(other[i], inorder[i])
    assert (Batches(Numbered(), 10, seed=4, memory=memory)[0] != inorder[0]).any()


def test_a_batch_mixes_rows_from_far_apart(memory):
    source = Batches(Numbered(), 10, seed=0, memory=memory)
    assert np.mean([np.ptp(source[i][:, 0]) for i in range(source.per_epoch)]) > 2 * N / 3


def test_neighbours_in_a_batch_are_strangers(monkeypatch):
    """Rows of a document are alike (correlation 0.5); neighbours in a batch are as alike as rows at random,
    also when memory holds but a quarter of the rows."""
    monkeypatch.setattr(batches, "BLOCK", 500)
    rng, n, per = np.random.default_rng(0), 40_000, 50
    documents = rng.standard_normal((n // per, 4))
    x = np.repeat(documents, per, axis=0) + rng.standard_normal((n, 4))
    store = MemoryStore.build(
        x.astype(np.float32), np.repeat(np.arange(n // per), per), ["sae_train"] * (n // per), norm={}
    )
    assert _likeness(x, 40) == pytest.approx(0.5, abs=0.05)
    for memory in (10**9, 4 * 4 * 10_000):
        source = Batches(store, 1000, seed=0, memory=memory)
        assert source.window_rows == (n if memory == 10**9 else 10_000)
        given = np.concatenate([source[i] for i in range(source.per_epoch)])
        # Of n pairs in 4 dimensions: 1 / sqrt(4 n) = 0.0025; the same document by chance: 0.5 * 50 / 10 000.
        assert abs(_likeness(given, source.per_epoch)) < 0.012


def _likeness(x: np.ndarray, per_epoch: int) -> float:
    """Correlation of rows with the next one in their batch."""
    batches = (x - x.mean(axis=0)).reshape(per_epoch, -1, x.shape[1])
    return float((batches[:, 1:] * batches[:, :-1]).mean() / (batches**2).mean())


@pytest.mark.parametrize("other", ["calibrate", "test"])
def test_held_out_rows_are_spread_over_a_split_that_is_not_trained_on(memory, other):
    x, split = Batches(Numbered(other=other), 10, seed=0, memory=memory).held_out(20) or (np.zeros(0), "")
    assert (split, x.shape, x.dtype) == (other, (20, D), np.float32)
    rows = x[:, 0].astype(int)
    assert (rows % 2 == 1).all() and (np.diff(rows) > 0).all()
    assert rows[0] < 2 * N / 10 and rows[-1] > 2 * N * 9 / 10
    np.testing.assert_array_equal(
        Batches(Numbered(other=other), 10, seed=7, memory=memory).held_out(20)[0], x
    )  # pyright: ignore[reportOptionalSubscript]


def test_held_out_rows_are_no_more_than_there_are_and_calibrate_comes_first():
    x = np.arange(40, dtype=np.float32)[:, None]
    splits = ["sae_train", "test", "calibrate", "probe_train"]
    store = MemoryStore.build(x, np.repeat(np.arange(4), 10), splits, norm={})
    held = Batches(store, 5, seed=0).held_out(99)
    assert held is not None and held[1] == "calibrate"
    np.testing.assert_array_equal(held[0], x[20:30])
    store = MemoryStore.build(x, np.repeat(np.arange(4), 10), ["sae_train"] * 3 + ["probe_train"], norm={})
    assert Batches(store, 5, seed=0).held_out(99) is None


def test_a_position_says_which_batch_and_the_manifest_is_the_store_s():
    source = Batches(Numbered(), 10, seed=0)
    assert source.position(7) == {"batch": 7}
    assert source.manifest == {"model_name": "numbers"}


def test_rows_that_fit_are_read_once():
    store = Numbered()
    source = Batches(store, 10, seed=0)
    for epoch in range(2):
        _epoch(source, epoch)
    assert store.reads == 1


def test_too_few_rows_are_refused():
    with pytest.raises(AmortjaxError, match=r"103 sae_train rows.*--batch_size=200"):
        Batches(Numbered(), 200, seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_counted_and_located(value):
    x = np.zeros((60, 4), np.float32)
    x[[41, 44, 50], 2] = value
    store = MemoryStore.build(x, np.repeat(np.arange(2), 30), ["test", "sae_train"], norm={})
    with pytest.raises(AmortjaxError, match=r"\b3\b.*\brow 41\b"):
        _ = Batches(store, 10, seed=0)[0]


def test_scale_is_the_root_mean_square_distance_from_the_mean():
    x = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]]) + [100, 50]
    scale, centre, mean = scale_and_centre(x.astype(np.float32), "mean")
    assert scale == pytest.approx(np.sqrt((9 + 9 + 1 + 1) / 4))
    np.testing.assert_allclose(mean, [100, 50])
    np.testing.assert_allclose(centre, mean)
    with pytest.raises(AmortjaxError, match="same vector"):
        scale_and_centre(np.ones((5, 2), np.float32), "mean")


@pytest.mark.parametrize("unit", ["centred", "norm", "none"])
def test_units_and_centres(unit):
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32) + [3, 0, 0]
    norm = np.sqrt(np.mean(np.sum(x**2, axis=1)))
    centred = np.sqrt(np.mean(np.sum((x - x.mean(axis=0)) ** 2, axis=1)))
    scale, centre, mean = scale_and_centre(x, "zero", unit)
    assert scale == pytest.approx({"centred": centred, "norm": norm, "none": 1.0}[unit])
    np.testing.assert_array_equal(centre, 0)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-5)


def test_geometric_median_shrugs_off_an_outlier():
    x = np.concatenate([np.random.default_rng(0).standard_normal((200, 3)), np.full((1, 3), 1e4)])
    median = geometric_median(x, 1e-8)
    assert np.linalg.norm(median) < 0.5 < np.linalg.norm(x.mean(axis=0))
    # At the minimum, unit vectors towards the points cancel.
    towards = x - median
    assert np.linalg.norm((towards / np.linalg.norm(towards, axis=1, keepdims=True)).sum(axis=0)) < 1e-3
