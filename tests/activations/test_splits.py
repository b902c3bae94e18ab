import collections
import random

import pytest

from amortjax.activations.splits import (
    DEFAULT_FRACTIONS,
    PYDOC_FRACTIONS,
    SPLITS,
    Splitter,
    parse_fractions,
    uniform_of,
)
from amortjax.errors import CorpusError


def _documents(count: int) -> list[str]:
    rng = random.Random(0)
    words = [f"word{i}" for i in range(3000)]
    return [" ".join(rng.choices(words, k=60)) for _ in range(count)]


def test_fractions_are_kept():
    splitter = Splitter(PYDOC_FRACTIONS, near_copies=False)
    counts = collections.Counter(splitter.assign(text) for text in _documents(4000))
    for name in SPLITS:
        assert counts[name] / 4000 == pytest.approx(PYDOC_FRACTIONS[name], abs=0.03)


def test_default_keeps_nothing_for_the_language_model():
    splitter = Splitter(near_copies=False)
    assert "lm_train" not in {splitter.assign(text) for text in _documents(500)}
    assert DEFAULT_FRACTIONS["lm_train"] == 0


def test_place_in_the_corpus_does_not_matter():
    documents = _documents(300)
    forward, backward = Splitter(), Splitter()
    first = {text: forward.assign(text) for text in documents}
    assert first == {text: backward.assign(text) for text in reversed(documents)}


def test_white_space_and_case_do_not_matter():
    assert uniform_of("The  Cat\nsat") == uniform_of("the cat sat")
    assert uniform_of("the cat sat", seed=1) != uniform_of("the cat sat", seed=0)


def test_near_copies_follow_the_first():
    splitter = Splitter()
    originals = _documents(200)
    splits = [splitter.assign(text) for text in originals]
    copies = [" ".join([*text.split()[:-2], "something", "else"]) for text in originals]
    assert [splitter.assign(copy) for copy in copies] == splits
    # By their own hashes they would have gone elsewhere.
    alone = Splitter(near_copies=False)
    assert [alone.assign(copy) for copy in copies] != splits


def test_half_copies_go_their_own_way():
    splitter, alone = Splitter(), Splitter(near_copies=False)
    originals = _documents(200)
    for text in originals:
        splitter.assign(text)
    other = _documents(400)[200:]
    halves = [" ".join(a.split()[:30] + b.split()[:30]) for a, b in zip(originals, other, strict=True)]
    assert [splitter.assign(text) for text in halves] == [alone.assign(text) for text in halves]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train=1", "no such split"),
        ("sae_train=0.5", "sum to 1"),
        ("sae_train=2,test=-1", "non-negative"),
        ("sae_train", "write them as"),
        ("sae_train=much", "write them as"),
    ],
)
def test_bad_fractions(text: str, said: str):
    with pytest.raises(CorpusError, match=said):
        parse_fractions(text)


def test_fractions_from_text():
    assert parse_fractions("sae_train=0.8, test=0.2") == {
        "lm_train": 0.0,
        "sae_train": 0.8,
        "calibrate": 0.0,
        "probe_train": 0.0,
        "test": 0.2,
    }
