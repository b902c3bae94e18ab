"""From a corpus to rows: documents get their splits, are read in windows, and give a store in memory."""

import contextlib
import itertools
import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from amortjax.activations import pydoc
from amortjax.activations.corpus import Corpus, Document
from amortjax.activations.export import Tokens, Window, run_places, run_window, tokenise
from amortjax.activations.models import EMBEDDED, EMBEDDED_FOLDER, Model, check_layer
from amortjax.activations.splits import DEFAULT_FRACTIONS, PYDOC_FRACTIONS, Splitter
from amortjax.activations.store import MemoryStore
from amortjax.errors import CorpusError

# Documents are sorted by length within a window of about this many tokens: batches then hold little padding.
WINDOW_TOKENS = 1 << 15
# Documents tokenised in one call.
TOKENISED = 64
TOKEN_POLICY = {"special": "excluded", "padding": "excluded", "long_documents": "truncated"}

Item = TypeVar("Item")
# A document and its split.
Assigned = tuple[Document, str]


def in_windows(
    model: Model, documents: Iterable[Assigned], max_seq_len: int
) -> Iterator[tuple[list[Assigned], list[Tokens]]]:
    """Documents with their tokens, in windows of about WINDOW_TOKENS tokens; the same ones every time."""
    source = iter(documents)
    window: list[Assigned] = []
    tokens: list[Tokens] = []
    count = 0
    while group := list(itertools.islice(source, TOKENISED)):
        own = tokenise(model, [document.text for document, _ in group], max_seq_len)
        window += group
        tokens += own
        count += sum(len(t.ids) for t in own)
        if count >= WINDOW_TOKENS:
            yield window, tokens
            window, tokens, count = [], [], 0
    if window:
        yield window, tokens


def ahead(items: Iterator[Item], count: int = 2) -> Iterator[Item]:
    """The same items, made by a thread up to `count` ahead: text is prepared while the model runs."""
    waiting: queue.Queue = queue.Queue(count)
    closed = threading.Event()

    def make() -> None:
        try:
            for item in items:
                waiting.put((item, None))
                if closed.is_set():
                    return
            waiting.put((None, StopIteration()))
        except BaseException as error:
            waiting.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        # A thread that waits for room must not wait for ever.
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()


def is_embedded(model_name: str) -> bool:
    """Whether that is the model that comes with amortjax, by its name or its folder."""
    return model_name == EMBEDDED or Path(model_name).expanduser().resolve() == EMBEDDED_FOLDER


def fractions_for(model_name: str, corpus: Corpus) -> dict[str, float]:
    """The default split fractions: with the embedded model on `pydoc`, its training text is set apart."""
    return dict(PYDOC_FRACTIONS if corpus.name == "pydoc" and is_embedded(model_name) else DEFAULT_FRACTIONS)


def lm_train_warning(model_name: str, corpus: Corpus) -> str | None:
    """A line to print if it is not known which documents the embedded model was trained on."""
    if not is_embedded(model_name) or corpus.name != "pydoc":
        return None
    record = json.loads((EMBEDDED_FOLDER / "trained_on.json").read_text())
    if record["corpus_fingerprint"] == corpus.fingerprint:
        return None
    here = pydoc.versions()
    other = [
        f"{k} {here.get(k, 'missing')} (there {v})"
        for k, v in record["package_versions"].items()
        if here.get(k) != v
    ]
    return (
        "the embedded model was trained with other package versions, so lm_train is unknown: some documents "
        f"may have been seen in training. {', '.join(other)}"
    )


def assigned(
    corpus: Corpus, fractions: dict[str, float], seed: int, limit: int | None = None
) -> Iterator[tuple[Document, str]]:
    """The corpus's documents with their splits, at most `limit`; those of lm_train are left out."""
    splitter = Splitter(fractions, seed, near_copies=not corpus.deduplicated)
    count = 0
    for document in corpus:
        split = splitter.assign(document.text)
        if split == "lm_train":
            continue
        if limit is not None and count >= limit:
            return
        yield document, split
        count += 1


def collect_in_memory(
    model: Model,
    corpus: Corpus,
    layer_index: int,
    tokens_per_split: dict[str, int],
    hook: str = "resid_post",
    max_seq_len: int = 128,
    batch_tokens: int = 4096,
    fractions: dict[str, float] | None = None,
    seed: int = 0,
) -> MemoryStore:
    """Streams text through the model until each split named has its tokens; nothing is written to disk.

    Documents are taken as they come, whole. CorpusError if a split gets none at all.
    """
    check_layer(model, layer_index, max_seq_len)
    fractions = fractions or fractions_for(model.name, corpus)
    missing = dict(tokens_per_split)

    def needed() -> Iterator[tuple[Document, str]]:
        for pair in assigned(corpus, fractions, seed):
            if max(missing.values()) <= 0:
                return
            if missing.get(pair[1], 0) > 0:
                yield pair

    parts: list[Window] = []
    splits: list[str] = []
    labels: list[str] = []
    for pairs, tokens in in_windows(model, needed(), max_seq_len):
        taken = []
        for (document, split), own in zip(pairs, tokens, strict=True):
            if missing[split] > 0:
                missing[split] -= int(own.keep.sum())
                taken.append(own)
                splits.append(split)
                labels.append(document.label or "")
        if taken:
            parts.append(run_window(model, taken, layer_index, hook, batch_tokens))
    empty = sorted(set(tokens_per_split) - set(splits))
    if empty:
        raise CorpusError(f"{corpus.name}: no document fell into {', '.join(empty)}: give more text.")
    sizes = np.concatenate([part.sizes for part in parts])
    return MemoryStore.build(
        np.concatenate([part.x for part in parts]),
        np.repeat(np.arange(len(sizes)), sizes),
        splits,
        labels,
        np.concatenate([part.token_ids for part in parts]),
        model.vocabulary(),
        **identity(model, corpus, layer_index, hook, max_seq_len, fractions),
    )


def first_rows(
    model: Model,
    corpus: Corpus,
    places: Sequence[tuple[int, str]],
    tokens: int,
    max_seq_len: int = 128,
    num_sequences: int | None = None,
    batch_tokens: int = 4096,
) -> list[Window]:
    """About `tokens` rows of whole documents at each (block, hook), from one pass; those that the embedded model may
    have been trained on are left out. CorpusError if there are none."""
    for layer_index, _ in places:
        check_layer(model, layer_index, max_seq_len)
    documents = assigned(corpus, fractions_for(model.name, corpus), 0, num_sequences)
    taken: list[Tokens] = []
    missing = tokens
    while missing > 0 and (group := list(itertools.islice(documents, TOKENISED))):
        for own in tokenise(model, [document.text for document, _ in group], max_seq_len):
            if missing > 0 and own.keep.any():
                taken.append(own)
                missing -= int(own.keep.sum())
    if not taken:
        raise CorpusError(f"{corpus.name}: no document with a token in it: give more text.")
    return run_places(model, taken, places, batch_tokens)


def identity(
    model: Model, corpus: Corpus, layer_index: int, hook: str, max_seq_len: int, fractions: dict[str, float]
) -> dict:
    """What a manifest says about where its rows come from."""
    return {
        "model_name": model.name,
        "model_fingerprint": model.fingerprint,
        "hook": hook,
        "layer_index": layer_index,
        "d_model": model.d_model,
        "dataset": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "token_policy": TOKEN_POLICY if model.lead is None else TOKEN_POLICY | {"bos": "prepended"},
        "max_seq_len": max_seq_len,
        "split_fractions": fractions,
    }
