"""Batches straight from a language model: text goes in, nothing is stored.

The sae_train documents go through the model in the corpus's order, in windows that depend on the corpus
alone. A buffer is filled with the rows of whole windows, shuffled, and given out as batches, while a thread
fills the next one. Rows of a buffer that fill no batch are dropped; when the text ends it starts again, in
another shuffle. A buffer ends where the text ends, so that no batch holds a row twice.

A run goes on at any batch: the documents before its buffer are skipped without the model, the buffer is
computed again. In one process the bits are the same; two processes can differ in the last bits of a
language model's matrix products. Of several hosts each runs the model on all the text: for those a store is
the better source.
"""

import dataclasses
import itertools
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from amortjax.activations import stream
from amortjax.activations.corpus import Corpus
from amortjax.activations.export import run_window
from amortjax.activations.models import Model, check_layer
from amortjax.errors import AmortjaxError
from amortjax.training.batches import HELD_OUT

BUFFER_TOKENS = 1 << 18


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a buffer starts. Numbers count from 0."""

    batch: int = 0  # its first
    buffer: int = 0
    epoch: int = 0
    documents: int = 0  # of sae_train that the epoch has used before it


@dataclasses.dataclass(frozen=True)
class _Buffer:
    start: Start
    stop: Start  # where the next one starts
    x: np.ndarray  # (n, D) rows in the order of the text
    order: np.ndarray  # (n,) their shuffle


class _Stopped(RuntimeError):
    """The buffer that was being filled is no longer wanted."""


class Streamed:
    """`streamed[i]` is batch i (batch_size, D), float32, raw, one after the other: a `feed.Source`.

    `fractions` and `split_seed` assign documents to splits as in `launch.collect`; training uses those of
    sae_train among the first `num_sequences` of all. No buffer is filled for batches from `stop` on. Raises
    AmortjaxError for a buffer smaller than a batch, a corpus with less than a batch of sae_train tokens, NaN,
    or a layer or hook that is not there. Memory: see `nbytes`.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        layer_index: int,
        batch_size: int,
        *,
        hook: str = "resid_post",
        max_seq_len: int = 128,
        batch_tokens: int = 4096,
        fractions: dict[str, float] | None = None,
        split_seed: int = 0,
        num_sequences: int | None = None,
        buffer_tokens: int = BUFFER_TOKENS,
        seed: int = 0,
        stop: int | None = None,
    ):
        check_layer(model, layer_index, max_seq_len)
        if buffer_tokens < batch_size:
            raise AmortjaxError(
                f"--buffer_tokens={buffer_tokens}: less than --batch_size={batch_size}, so no batch fits in it"
            )
        self.model, self.corpus, self.batch_size, self.d_model = model, corpus, batch_size, model.d_model
        self.fractions = fractions or stream.fractions_for(model.name, corpus)
        self.max_seq_len, self.split_seed, self.num_sequences = max_seq_len, split_seed, num_sequences
        self.buffer_tokens, self.seed, self.stop = buffer_tokens, seed, stop
        self._where = (layer_index, hook, batch_tokens)
        identity = stream.identity(model, corpus, layer_index, hook, max_seq_len, self.fractions)
        # Streams with the same manifest, batch size and seed give the same batches.
        self.manifest: dict[str, Any] = identity | {
            "batch_tokens": batch_tokens,
            "split_seed": split_seed,
            "num_sequences": num_sequences,
            "buffer_tokens": buffer_tokens,
        }
        self._next = Start()
        self._buffer: _Buffer | None = None
        self._windows: Generator | None = None
        self._held_out: dict[int, tuple[np.ndarray, str] | None] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="streamed")
        self._pending: Future[_Buffer] | None = None
        # A model has one hook at a time.
        self._model_free = threading.Lock()
        self._unwanted = threading.Event()

    def __getitem__(self, i: int) -> np.ndarray:
        if self._buffer is None or i >= self._buffer.stop.batch:
            self._advance()
        buffer = self._buffer
        assert buffer is not None
        if not buffer.start.batch <= i < buffer.stop.batch:
            raise IndexError(f"batch {i} is out of turn: a stream gives its batches one after the other")
        place = (i - buffer.start.batch) * self.batch_size
        return buffer.x[buffer.order[place : place + self.batch_size]]

    def position(self, i: int) -> dict[str, Any]:
        """JSON: what `restore` needs to go on with batch i, which must be the next, or 0."""
        buffer = self._buffer
        start = buffer.start if buffer is not None and i < buffer.stop.batch else self._next
        start = start if i else Start()
        return {"batch": i, "start": dataclasses.asdict(start), "stream": self._stream()}

    def restore(self, position: dict[str, Any]) -> None:
        """Goes on at a `position`; AmortjaxError, naming what differs, if it is one in another stream."""
        there = position.get("stream", {})
        other = [
            f"{name} {there.get(name)}, not {value}"
            for name, value in self._stream().items()
            if there.get(name) != value
        ]
        if other:
            raise AmortjaxError(
                f"the checkpoint's tokens were streamed with {'; '.join(other)}: go on with the same flags and "
                "text, or use another --out"
            )
        start = Start(**position["start"])
        here = self._buffer is not None and self._buffer.start == start
        if here and not self._unwanted.is_set():
            return
        self.close()
        self._pending, self._windows = None, None
        self._unwanted.clear()
        if not here:
            self._next, self._buffer = start, None

    def close(self) -> None:
        """Gives up the buffer that is being filled, and waits for the window that the model is at, because a
        model runs one thing at a time. `restore` starts again."""
        self._unwanted.set()
        if self._pending is not None:
            self._pending.exception()

    def sample(self, n: int) -> np.ndarray:
        """(up to n, D) rows spread over the first buffer, for the scale and the centre; a resumed stream
        computes that buffer again."""
        if self._buffer is None and self._next == Start():
            self._advance()
        buffer = self._buffer
        if buffer is None or buffer.start != Start():
            buffer = self._fill(self._text(0), Start())
        return buffer.x[np.sort(buffer.order[:n])]

    def held_out(self, n: int) -> tuple[np.ndarray, str] | None:
        """(up to n, D) rows of the first documents of a split that is not trained on, and its name; None if
        there is no such split. Computed once for an n."""
        if n not in self._held_out:
            self._held_out[n] = self._collect(n)
        return self._held_out[n]

    def _collect(self, n: int) -> tuple[np.ndarray, str] | None:
        layer_index, hook, batch_tokens = self._where
        for split in HELD_OUT:
            if self.fractions.get(split) and any(own == split for _, own in self._documents()):
                with self._model_free:
                    store = stream.collect_in_memory(
                        self.model, self.corpus, layer_index, {split: n}, hook, self.max_seq_len, batch_tokens,
                        self.fractions, self.split_seed,
                    )  # fmt: skip
                return store.read(slice(0, n)), split
        return None

    def _stream(self) -> dict[str, Any]:
        """What a position is one in."""
        return self.manifest | {"batch_size": self.batch_size, "data_seed": self.seed}

    def _advance(self) -> None:
        """Takes the next buffer, and has the one after it filled."""
        self._buffer = None  # frees it before another is begun
        self._pending = self._pending or self._pool.submit(self._make, self._next)
        self._buffer = self._pending.result()
        self._pending, self._next = None, self._buffer.stop
        if self.stop is None or self._next.batch < self.stop:
            self._pending = self._pool.submit(self._make, self._next)

    def _make(self, start: Start) -> _Buffer:
        """The first buffer from `start` on that has a batch."""
        while True:
            if self._windows is None or start.documents == 0:
                self._windows = self._text(start.documents)
            try:
                buffer = self._fill(self._windows, start)
            except _Stopped:
                self._windows.close()
                raise
            if buffer.stop.batch > start.batch:
                return buffer
            if start.documents == 0:
                raise AmortjaxError(
                    f"{self.corpus.name}: {len(buffer.x)} sae_train tokens, fewer than one batch: give more "
                    f"text, or lower --batch_size={self.batch_size}"
                )
            start = buffer.stop  # the end of the text, with less than a batch

    def _documents(self) -> Iterator[stream.Assigned]:
        return stream.assigned(self.corpus, self.fractions, self.split_seed, self.num_sequences)

    def _text(self, documents: int) -> Generator:
        """Windows of the sae_train documents without the first so many.

        A window ends after a number of tokens and the next knows nothing of it: from a window's first document
        on, all windows are what they were.
        """
        own = (pair for pair in self._documents() if pair[1] == "sae_train")
        left = itertools.islice(own, documents, None)
        return cast(Generator, stream.ahead(stream.in_windows(self.model, left, self.max_seq_len)))

    def _fill(self, windows: Generator, start: Start) -> _Buffer:
        """Whole windows until the buffer is full or the text ends."""
        x = np.empty((_rows(self.buffer_tokens, self.max_seq_len), self.d_model), np.float32)
        n, documents, ended = 0, start.documents, 1
        for pairs, tokens in windows:
            if self._unwanted.is_set():
                raise _Stopped("the stream is closed: restore a position first")
            with self._model_free:
                own = run_window(self.model, tokens, *self._where).x
            self._check(own, pairs)
            x[n : n + len(own)] = own
            n, documents = n + len(own), documents + len(pairs)
            if n >= self.buffer_tokens:
                ended = 0
                break
        last = start.batch + n // self.batch_size
        stop = Start(last, start.buffer + 1, start.epoch + ended, 0 if ended else documents)
        order = np.random.default_rng([self.seed, 5, start.buffer]).permutation(n)
        return _Buffer(start, stop, x[:n], order)

    def _check(self, x: np.ndarray, pairs: list[stream.Assigned]) -> None:
        bad = int(np.sum(~np.isfinite(x).all(axis=1)))
        if bad:
            raise AmortjaxError(
                f"{self.model.name}: {bad} of the {len(x)} activations of documents {pairs[0][0].doc_id} to "
                f"{pairs[-1][0].doc_id} are NaN or infinite: load the model with --model_dtype=float32"
            )


def _rows(buffer_tokens: int, max_seq_len: int) -> int:
    """Room that a buffer takes at most: one token short of full, and then the longest window."""
    return buffer_tokens + stream.WINDOW_TOKENS + stream.TOKENISED * max_seq_len


def nbytes(d_model: int, buffer_tokens: int = BUFFER_TOKENS, max_seq_len: int = 128) -> int:
    """Bytes that a Streamed holds at most beside the language model: one buffer given out, one being filled."""
    return 2 * 4 * d_model * _rows(buffer_tokens, max_seq_len)
