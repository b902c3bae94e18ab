"""Batches straight from the embedded model: only training documents, each once an epoch, and resumable bit for
bit."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amortjax.activations import export, models, stream
from amortjax.activations.corpus import Corpus, open_corpus
from amortjax.activations.splits import Splitter, parse_fractions
from amortjax.errors import AmortjaxError, ModelError
from amortjax.training import streamed
from amortjax.training.feed import Feed
from amortjax.training.streamed import Start, Streamed

FRACTIONS = parse_fractions("sae_train=0.6,calibrate=0.1,probe_train=0.1,test=0.2")
LAYER, LENGTH, B, BUFFER = 1, 32, 50, 800
COPY, COPIED = 7, 300  # a near-copy of document 7, which is held out, stands at 300


@pytest.fixture(scope="module", autouse=True)
def small_windows():
    """Windows of eight documents, so that a buffer holds several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "WINDOW_TOKENS", 150)
        patch.setattr(stream, "TOKENISED", 8)
        yield


@pytest.fixture(scope="module")
def model() -> models.Model:
    return models.load_model("embedded")


def _texts() -> list[str]:
    """400 documents; the first that is held out stands at COPY, a near-copy with a hash for training at COPIED."""
    rng = random.Random(0)
    words = ["array", "value", "returns", "the", "of", "list", "if", "not", "file", "path", "name", "a", "b"]
    texts = [" ".join(rng.choices(words, k=rng.randint(20, 30))) + f" {i}" for i in range(400)]
    by_hash = Splitter(FRACTIONS, near_copies=False)
    held = next(text for text in texts if by_hash.assign(text) == "test")
    texts[COPY] = held
    near = (f"{held} again{i}" for i in itertools.count())
    texts[COPIED] = next(text for text in near if by_hash.assign(text) == "sae_train")
    return texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return _corpus(tmp_path_factory.mktemp("text"), _texts())


def _corpus(folder: Path, texts: list[str]) -> Corpus:
    path = folder / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return open_corpus(str(path))


def _streamed(model: models.Model, corpus: Corpus, **other: Any) -> Streamed:
    given: dict[str, Any] = {
        "batch_size": B, "max_seq_len": LENGTH, "fractions": FRACTIONS, "buffer_tokens": BUFFER, "seed": 3,
    }  # fmt: skip
    return Streamed(model, corpus, LAYER, **(given | other))


@pytest.fixture(scope="module")
def run(model, corpus) -> tuple[list[np.ndarray], list[Start]]:
    """Batches of a run that was never stopped, up to the third epoch, and where each buffer started."""
    source, batches, starts = _streamed(model, corpus), [], [Start()]
    while starts[-1].epoch < 2:
        batches.append(source[len(batches)])
        start = Start(**source.position(len(batches) - 1)["start"])
        starts += [start] * (start != starts[-1])
    source.close()
    return batches, starts


@pytest.fixture(scope="module")
def straight(run) -> list[np.ndarray]:
    return run[0]


@pytest.fixture(scope="module")
def starts(run) -> list[Start]:
    return run[1]


@pytest.fixture(scope="module")
def trained_on(model, corpus) -> np.ndarray:
    """All rows of the sae_train documents, in the order of the text, in the stream's own windows."""
    pairs = [pair for pair in stream.assigned(corpus, FRACTIONS, 0) if pair[1] == "sae_train"]
    windows = stream.in_windows(model, pairs, LENGTH)
    return np.concatenate(
        [export.run_window(model, tokens, LAYER, "resid_post", 4096).x for _, tokens in windows]
    )


def _rows(x: np.ndarray) -> Counter:
    return Counter(row.tobytes() for row in x)


def _epoch(straight: list[np.ndarray], starts: list[Start], epoch: int) -> np.ndarray:
    first = next(start.batch for start in starts if start.epoch == epoch)
    stop = next(start.batch for start in starts if start.epoch == epoch + 1)
    return np.concatenate(straight[first:stop])


def test_an_epoch_gives_each_row_of_the_training_documents_at_most_once(straight, starts, trained_on):
    per_epoch = len({start.buffer for start in starts if start.epoch == 0})
    assert per_epoch > 3
    for epoch in (0, 1):
        x = _epoch(straight, starts, epoch)
        assert x.dtype == np.float32 and x.shape[1] == 128
        # Equal counts, because a document's first token has the same row in many documents.
        assert not _rows(x) - _rows(trained_on)
        # What a buffer has over its last batch is left out.
        assert 0 <= len(trained_on) - len(x) < per_epoch * B


def test_the_second_epoch_is_shuffled_otherwise(straight, starts):
    one, two = (_epoch(straight, starts, epoch) for epoch in (0, 1))
    assert len(one) == len(two)
    assert (one[:B] != two[:B]).any(axis=1).mean() > 0.9
    # The same buffer of text all the same: most rows are in both.
    assert sum((_rows(one) & _rows(two)).values()) > 0.8 * len(one)


def test_no_document_of_another_split_is_used(model, corpus, straight):
    """Each document's last row depends on all of it."""
    x = np.unique(np.concatenate(straight), axis=0)
    near = {}
    for document, split in stream.assigned(corpus, FRACTIONS, 0):
        tokens = export.tokenise(model, [document.text], LENGTH)
        last = export.run_window(model, tokens, LAYER, "resid_post", 4096).x[-1]
        near[document.doc_id] = (split, float(np.abs(x - last).max(axis=1).min()))
    apart = [distance for split, distance in near.values() if split != "sae_train"]
    found = [distance for split, distance in near.values() if split == "sae_train"]
    assert len(apart) > 100 and min(apart) > 1e-2
    # All but the few rows that a buffer's last batch had no room for.
    assert np.mean(np.asarray(found) < 1e-4) > 0.95
    # A near-copy goes where its original went, whatever its own hash says.
    assert near[COPIED][0] == near[COPY][0] == "test"
    assert Splitter(FRACTIONS, near_copies=False).assign(_texts()[COPIED]) == "sae_train"


def _places(starts: list[Start]) -> list[int]:
    """Batches in the first buffer, at a buffer's start, in its middle, at its end, and in the second epoch."""
    third, second_epoch = starts[2], next(start for start in starts if start.epoch == 1)
    return [
        0,
        1,
        third.batch,
        third.batch + 3,
        starts[3].batch - 1,
        second_epoch.batch,
        second_epoch.batch + 20,
    ]


@pytest.mark.parametrize("place", range(7))
def test_a_killed_run_goes_on_bit_for_bit(model, corpus, straight, starts, place):
    killed_at = _places(starts)[place]
    with Feed(_streamed(model, corpus)) as feed:
        for _ in range(killed_at):
            next(feed)
        state = json.loads(json.dumps(feed.state()))
    assert state["batch"] == killed_at
    with Feed(_streamed(model, corpus), stop=len(straight)) as feed:
        feed.restore(state)
        rest = list(feed)
    assert [i for i, _ in rest] == list(range(killed_at, len(straight)))
    for i, x in rest:
        np.testing.assert_array_equal(x, straight[i])


def test_going_on_runs_the_model_on_the_current_buffer_only(model, corpus, starts, monkeypatch):
    source = _streamed(model, corpus)
    for i in range(starts[4].batch + 2):
        source[i]
    position = source.position(starts[4].batch + 2)
    source.close()
    assert position["start"] == {
        "batch": starts[4].batch,
        "buffer": 4,
        "epoch": 0,
        "documents": starts[4].documents,
    }
    run = []

    def counting(model, tokens, *where):
        run.append(len(tokens))
        return export.run_window(model, tokens, *where)

    monkeypatch.setattr(streamed, "run_window", counting)
    resumed = _streamed(model, corpus, stop=starts[5].batch)  # nothing is filled after that buffer
    resumed.restore(position)
    resumed[position["batch"]]
    assert sum(run) == starts[5].documents - starts[4].documents


def test_a_stream_can_be_set_back_and_closed_while_it_works(model, corpus, straight):
    source = _streamed(model, corpus)
    for i in range(30):
        source[i]
    source.restore(
        {**source.position(30), "batch": 5, "start": {"batch": 0, "buffer": 0, "epoch": 0, "documents": 0}}
    )
    for i in range(5, 30):
        np.testing.assert_array_equal(source[i], straight[i])
    with pytest.raises(IndexError, match="out of turn"):
        source[3]
    source.close()


def test_a_second_feed_starts_again(model, corpus, straight, starts):
    """As when one training follows another on the same source."""
    source = _streamed(model, corpus)
    for stop in (starts[2].batch + 5, 3, starts[1].batch + 2):
        with Feed(source, stop=stop) as feed:
            for i, x in feed:
                np.testing.assert_array_equal(x, straight[i])
            assert i == stop - 1
    # Where a feed was closed within a buffer, that buffer is not computed again.
    buffer = source._buffer
    assert buffer is not None
    with Feed(source, first=buffer.start.batch + 1) as feed:
        np.testing.assert_array_equal(next(feed)[1], straight[buffer.start.batch + 1])
        assert source._buffer is buffer
        for _ in range(20):  # and the next one follows
            i, x = next(feed)
            np.testing.assert_array_equal(x, straight[i])


def test_the_model_is_free_once_a_feed_is_closed(model, corpus, starts):
    tokens = export.tokenise(model, _texts()[:8], LENGTH)
    wanted = export.run_window(model, tokens, LAYER, "resid_post", 4096).x
    for _ in range(10):  # while the second buffer is being filled
        with Feed(_streamed(model, corpus)) as feed:
            next(feed)
        np.testing.assert_array_equal(export.run_window(model, tokens, LAYER, "resid_post", 4096).x, wanted)


def test_neighbours_in_a_batch_are_from_other_documents(trained_on, straight):
    mean = trained_on.mean(axis=0)

    def likeness(x: np.ndarray) -> float:
        """Correlation of rows with the next one."""
        x = x - mean
        return float((x[..., 1:, :] * x[..., :-1, :]).mean() / (x**2).mean())

    # 0.19 and -0.001 when this was written: 1 neighbour in 32 is of the same document.
    assert likeness(trained_on) > 0.1
    assert abs(likeness(np.stack(straight))) < 0.02


def test_the_sample_is_the_first_buffer_and_moves_nothing(model, corpus, straight, starts):
    first = np.concatenate(straight[: starts[1].batch])
    source = _streamed(model, corpus)
    x = source.sample(300)
    assert x.shape == (300, 128) and not _rows(x) - _rows(first)
    np.testing.assert_array_equal(source[0], straight[0])
    # After a resume too, with the stream left where it is.
    later = source.position(0) | {"batch": starts[2].batch, "start": vars(starts[2])}
    source.restore(later)
    np.testing.assert_array_equal(source.sample(300), x)
    np.testing.assert_array_equal(source[starts[2].batch], straight[starts[2].batch])
    source.close()


def test_held_out_rows_are_the_first_of_calibrate_or_test(model, corpus, trained_on):
    for fractions, wanted in ((FRACTIONS, "calibrate"), (parse_fractions("sae_train=0.7,test=0.3"), "test")):
        source = _streamed(model, corpus, fractions=fractions)
        x, split = source.held_out(60) or (np.zeros(0), "")
        assert (split, x.shape, x.dtype) == (wanted, (60, 128), np.float32)
        pairs = stream.assigned(corpus, fractions, 0)
        document = next(document for document, own in pairs if own == wanted)
        alone = export.run_window(
            model, export.tokenise(model, [document.text], LENGTH), LAYER, "resid_post", 4096
        )
        np.testing.assert_allclose(x[: len(alone.x)], alone.x, atol=1e-4)
    only = _streamed(model, corpus, fractions=parse_fractions("sae_train=0.8,probe_train=0.2"))
    assert only.held_out(60) is None


def test_held_out_rows_where_no_document_fell_into_calibrate(model, tmp_path):
    fractions = parse_fractions("sae_train=0.7,calibrate=0.000001,test=0.299999")
    held = _streamed(model, _corpus(tmp_path, _texts()[:100]), fractions=fractions).held_out(5)
    assert held is not None and held[1] == "test"


def test_text_that_ends_with_less_than_a_batch_starts_again(model, tmp_path):
    """A corpus of one buffer and a few rows: the few are left out, every time."""
    splitter = Splitter(FRACTIONS)
    texts = [text for text in _texts() if splitter.assign(text) == "sae_train"]
    whole = _streamed(model, _corpus(tmp_path, texts), stop=0)
    whole[0]
    few = next(
        n for n in range(whole._next.documents + 1, 400) if _rows_of(model, texts[whole._next.documents : n])
    )
    (tmp_path / "few").mkdir()
    source = _streamed(model, _corpus(tmp_path / "few", texts[:few]))
    first = [source[i] for i in range(whole._next.batch)]
    assert source.position(len(first))["start"]["epoch"] == 0
    second = [source[i] for i in range(len(first), 2 * len(first))]
    position = source.position(2 * len(first) - 1)
    assert position["start"] == {"batch": len(first), "buffer": 2, "epoch": 1, "documents": 0}
    assert sum((_rows(np.concatenate(first)) & _rows(np.concatenate(second))).values()) > 0.8 * B * len(first)
    source.restore(json.loads(json.dumps(position)))
    np.testing.assert_array_equal(source[position["batch"]], second[-1])
    source.close()


def _rows_of(model: models.Model, texts: list[str]) -> int:
    return sum(int(own.keep.sum()) for own in export.tokenise(model, texts, LENGTH))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 4}, "data_seed 3, not 4"),
        ({"buffer_tokens": 900}, "buffer_tokens 800, not 900"),
        ({"max_seq_len": 16}, "max_seq_len 32, not 16"),
        ({"hook": "mlp_out", "batch_size": 25}, "hook resid_post, not mlp_out; batch_size 50, not 25"),
    ],
)
def test_a_position_in_another_stream_is_refused(model, corpus, other, said):
    state = json.loads(json.dumps(_streamed(model, corpus).position(0)))
    with pytest.raises(AmortjaxError, match=said):
        _streamed(model, corpus, **other).restore(state)


def test_other_text_is_refused(model, corpus, tmp_path):
    state = _streamed(model, corpus).position(0)
    with pytest.raises(AmortjaxError, match="corpus_fingerprint"):
        _streamed(model, _corpus(tmp_path, _texts()[:50])).restore(state)


def test_what_can_not_be_streamed_is_refused(model, corpus, tmp_path):
    with pytest.raises(AmortjaxError, match=r"--buffer_tokens=40: less than --batch_size=50"):
        _streamed(model, corpus, buffer_tokens=40)
    with pytest.raises(ModelError, match="--layer_index=9"):
        Streamed(model, corpus, 9, B)
    short = _corpus(tmp_path, _texts()[:3])
    with pytest.raises(AmortjaxError, match=r"\d+ sae_train tokens, fewer than one batch.*--batch_size=500"):
        _streamed(model, short, batch_size=500)[0]


def test_activations_that_are_not_finite_are_located(model, corpus, monkeypatch):
    def broken(model, tokens, *where):
        window = export.run_window(model, tokens, *where)
        window.x[2, 5] = np.nan
        return window

    monkeypatch.setattr(streamed, "run_window", broken)
    with pytest.raises(AmortjaxError, match=r"1 of the \d+ activations of documents \d+ to \d+.*float32"):
        _streamed(model, corpus)[0]


def test_the_manifest_says_where_rows_come_from_and_memory_is_bounded(model, corpus):
    source = _streamed(model, corpus, stop=1)
    assert source.manifest["model_name"] == "embedded" and source.manifest["layer_index"] == LAYER
    assert source.manifest["corpus_fingerprint"] == corpus.fingerprint
    json.dumps(source.manifest)
    source[0]
    assert source._buffer is not None and source._buffer.x.base is not None
    assert 2 * source._buffer.x.base.nbytes == streamed.nbytes(128, BUFFER, LENGTH)
