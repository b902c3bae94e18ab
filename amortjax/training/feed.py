"""Batches on their way to the training loop: read ahead in a thread, cut for this process, at a place that
can be kept in a checkpoint and gone back to.

What is in a batch is the source's affair (`batches.Batches` of a store, `streamed.Streamed` of a language
model); Grain does the reading ahead.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import jax
import numpy as np

from amortjax.errors import AmortjaxError

# Batches ready at a time. A step takes longer than a batch, but not always.
AHEAD = 4


class Source(Protocol):
    """What training needs: global batches (B, D) of raw float32 rows, in an order that is fixed by seeds."""

    @property
    def batch_size(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def manifest(self) -> dict:
        """Where the rows come from, as in an activation store."""
        ...

    def __getitem__(self, i: int) -> np.ndarray:
        """Batch i (B, D). Some sources give batches only one after the other."""
        ...

    def sample(self, n: int) -> np.ndarray:
        """(up to n, D) training rows, for scale and centre; ask before the first batch."""
        ...

    def held_out(self, n: int) -> tuple[np.ndarray, str] | None:
        """(up to n, D) rows that are never trained on and the name of their split, or None."""
        ...

    def position(self, i: int) -> dict[str, Any]:
        """What `restore` needs to go on with batch i, which must be the next or 0: JSON, with i as `batch`."""
        ...

    def restore(self, position: dict[str, Any]) -> None:
        """Makes `position["batch"]` the next batch. AmortjaxError if it is a position in other rows."""
        ...

    def close(self) -> None:
        """Ends what the source does in the background."""
        ...


class Feed:
    """An iterator of (i, x) from batch `first` on, up to and without `stop`: x (B / P, D) are the rows of
    batch i for process p of P.

    Batches are read ahead by one thread, at most to `stop`. Without Grain there is no reading ahead; the
    batches are the same. Close it, or use it in a `with`, so that nothing goes on in the background.
    """

    def __init__(
        self,
        source: Source,
        first: int = 0,
        stop: int | None = None,
        *,
        process: tuple[int, int] | None = None,
        ahead: int = AHEAD,
    ):
        """`process` is (p, P), by default JAX's own. A source that gives batches only one after the other
        starts at 0. AmortjaxError if B does not divide by P."""
        p, count = process or (jax.process_index(), jax.process_count())
        if source.batch_size % count:
            raise AmortjaxError(
                f"--batch_size={source.batch_size} does not divide by the {count} processes: use a multiple "
                f"of {count}"
            )
        share = source.batch_size // count
        self.source = source
        source.restore(source.position(first))  # another feed may have used it
        self._batches: Any = _read_ahead(_Cut(source, first, stop, slice(p * share, (p + 1) * share)), ahead)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return self

    def __next__(self) -> tuple[int, np.ndarray]:
        return next(self._batches)

    def state(self) -> dict[str, Any]:
        """The place after the batches given so far: JSON, the same for all processes and any number of them."""
        return self._batches.get_state()

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken: the same batches, bit for bit, as from a feed that never stopped."""
        self._batches.set_state(state)

    def close(self) -> None:
        self.source.close()  # first: a thread may be waiting for it
        batches, self._batches = self._batches, None  # Grain's own clean-up fails when Python exits
        if batches is not None:
            batches.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Cut:
    """A process's rows of a source's batches, without reading ahead; what Grain calls a checkpointable
    iterator."""

    def __init__(self, source: Source, first: int, stop: int | None, rows: slice):
        self.source, self.i, self.stop, self.rows = source, first, stop, rows

    def __iter__(self) -> "_Cut":
        return self

    def __next__(self) -> tuple[int, np.ndarray]:
        if self.stop is not None and self.i >= self.stop:
            raise StopIteration
        i, x = self.i, self.source[self.i][self.rows]
        self.i += 1
        return i, x

    def get_state(self) -> dict[str, Any]:
        return self.source.position(self.i)

    def set_state(self, state: dict[str, Any]) -> None:
        self.source.restore(state)
        self.i = int(state["batch"])

    def close(self) -> None:
        """Nothing to do: no thread is running."""


def _read_ahead(batches: _Cut, count: int) -> Any:
    """The same iterator, `count` batches ahead of its reader."""
    try:
        from grain.experimental import ThreadPrefetchDatasetIterator
    except ImportError:
        return batches
    return ThreadPrefetchDatasetIterator(batches, prefetch_buffer_size=count)
