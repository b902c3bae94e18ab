"""A feed gives the source's batches, read ahead, cut for each process, and goes on anywhere bit for bit."""

import json
import sys
import time

import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.training import batches
from amortjax.training.batches import Batches
from amortjax.training.feed import AHEAD, Feed
from tests.training.conftest import D

B, STOP = 64, 300


@pytest.fixture(params=["in memory", "in windows"])
def source(request, planted, monkeypatch):
    """Makes the same batches anew: what another run would see. An epoch is about 120 batches."""
    monkeypatch.setattr(batches, "BLOCK", 128)
    memory = 10**9 if request.param == "in memory" else 4 * D * 1024
    return lambda: Batches(planted, B, seed=5, memory=memory)


@pytest.fixture(params=["grain", "no grain"])
def grain(request, monkeypatch) -> bool:
    if request.param == "no grain":
        monkeypatch.setitem(sys.modules, "grain.experimental", None)
    return request.param == "grain"


def test_a_feed_gives_the_batches_of_its_source_in_order(source, grain):
    with Feed(source(), first=3, stop=STOP) as feed:
        assert type(feed._batches).__module__.startswith("grain") == grain
        given = list(feed)
    assert [i for i, _ in given] == list(range(3, STOP))
    wanted = source()
    for i, x in given:
        np.testing.assert_array_equal(x, wanted[i])


# Within an epoch, at its start, and after its end; 0: before anything was read.
@pytest.mark.parametrize("killed_at", [0, 1, 57, 126, 250])
def test_a_restored_feed_goes_on_bit_for_bit(source, grain, killed_at):
    straight = source()
    feed = Feed(source(), stop=STOP)
    for _ in range(killed_at):
        next(feed)
    state = json.loads(json.dumps(feed.state()))
    if killed_at:  # batches are read ahead, and lost with the run
        next(feed)
    feed.close()
    with Feed(source(), stop=STOP) as feed:
        feed.restore(state)
        rest = list(feed)
    assert [i for i, _ in rest] == list(range(killed_at, STOP))
    for i, x in rest:
        np.testing.assert_array_equal(x, straight[i])


def test_a_feed_can_be_set_back(source):
    with Feed(source(), stop=STOP) as feed:
        first = [next(feed) for _ in range(9)]
        feed.restore({"batch": 4})
        for (i, x), (j, y) in zip(first[4:], [next(feed) for _ in range(5)], strict=True):
            assert i == j
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_together_see_what_one_process_sees(source, count):
    feeds = [Feed(source(), stop=20, process=(p, count)) for p in range(count)]
    straight = source()
    for i in range(10):
        np.testing.assert_array_equal(np.concatenate([next(feed)[1] for feed in feeds]), straight[i])
    states = [feed.state() for feed in feeds]
    assert all(state == states[0] for state in states)
    # Another number of processes goes on from the same place.
    with Feed(source(), stop=20) as whole:
        whole.restore(states[0])
        i, x = next(whole)
    assert i == 10
    np.testing.assert_array_equal(x, straight[10])
    for feed in feeds:
        feed.close()


def test_a_batch_that_does_not_divide_is_refused(source):
    with pytest.raises(AmortjaxError, match=r"--batch_size=64 does not divide by the 3 processes"):
        Feed(source(), process=(0, 3))


class Counting:
    """Batch i is full of i; tells how far it has been read; broken from one batch on."""

    batch_size, d_model, manifest = 4, 2, {}

    def __init__(self, broken_from: int = 10**9):
        self.asked, self.closed, self.broken_from = -1, False, broken_from

    def __getitem__(self, i: int) -> np.ndarray:
        if i >= self.broken_from:
            raise AmortjaxError(f"row {i} is NaN")
        self.asked = i
        return np.full((4, 2), i, np.float32)

    def sample(self, n: int) -> np.ndarray:
        return np.zeros((n, 2), np.float32)

    def held_out(self, n: int) -> None:
        return None

    def position(self, i: int) -> dict:
        return {"batch": i}

    def restore(self, position: dict) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_batches_are_read_while_the_reader_is_busy_but_not_for_ever():
    source = Counting()
    with Feed(source, stop=50) as feed:
        assert source.asked == -1  # the first read starts it, so that it can be restored before
        next(feed)
        deadline = time.monotonic() + 20
        while source.asked < AHEAD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        # One given, AHEAD ready, and one in the thread's hand.
        assert AHEAD <= source.asked <= AHEAD + 1
        assert feed.state() == {"batch": 1}
    assert source.closed


def test_nothing_is_read_from_the_stop_on():
    source = Counting(broken_from=6)
    with Feed(source, stop=6) as feed:
        assert [i for i, _ in feed] == list(range(6))
        assert list(feed) == []


def test_an_error_of_the_source_comes_at_its_batch(grain):
    with Feed(Counting(broken_from=6)) as feed:
        assert [next(feed)[0] for _ in range(6)] == list(range(6))
        with pytest.raises(AmortjaxError, match="row 6 is NaN"):
            next(feed)
