"""Which split a document belongs to: one rule for training the embedded model, collecting and evaluating.

A document goes where the hash of its text says, so neither its place in the corpus nor what else is in it
matters; a near-copy (MinHash of word 5-grams, Jaccard >= 0.7) of an earlier document follows that one, so
that no split is tested on what another was trained on.
"""

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from amortjax.errors import CorpusError

SPLITS = ("lm_train", "sae_train", "calibrate", "probe_train", "test")

# A model whose training text is not ours to choose: nothing is set aside for it.
DEFAULT_FRACTIONS = {"lm_train": 0.0, "sae_train": 0.72, "calibrate": 0.06, "probe_train": 0.08, "test": 0.14}
# The embedded language model was trained on the lm_train documents of `pydoc`.
PYDOC_FRACTIONS = {"lm_train": 0.60, "sae_train": 0.22, "calibrate": 0.04, "probe_train": 0.05, "test": 0.09}

SHINGLE_WORDS = 5
JACCARD = 0.7
PERMUTATIONS = 128


def normalise(text: str) -> str:
    """Lower case, runs of white space as one space: what two copies of a document share."""
    return " ".join(text.lower().split())


def uniform_of(text: str, seed: int = 0) -> float:
    """A number in [0, 1) from the normalised text and the seed, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\n{normalise(text)}".encode("utf-8", "replace"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2.0**53


def shingles(text: str) -> list[int]:
    """32-bit hashes of the distinct word 5-grams; of the whole text where it has fewer than 5 words."""
    words = normalise(text).encode("utf-8", "replace").split(b" ")
    grams = {b" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}
    return sorted(map(zlib.crc32, grams))


class NearCopies:
    """Finds, for a document, the first earlier one whose estimated Jaccard similarity is at least 0.7.

    Holds about 2 KB per document that is not a near-copy.
    """

    def __init__(self) -> None:
        from datasketch import MinHash, MinHashLSH

        self._lsh = MinHashLSH(threshold=JACCARD, num_perm=PERMUTATIONS)
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda value: value, seed=1)
        self._sketches = []

    def find_or_add(self, text: str) -> int | None:
        """The number of the earlier document this is a near-copy of; None, and it is added, if none is."""
        sketch = self._empty.copy()
        sketch.update_batch(shingles(text))
        candidates: list[Any] = self._lsh.query(sketch)
        for number in sorted(candidates):
            if np.mean(self._sketches[number] == sketch.hashvalues) >= JACCARD:
                return number
        self._lsh.insert(len(self._sketches), sketch)
        self._sketches.append(sketch.hashvalues.astype(np.uint32))
        return None


class Splitter:
    """Assigns documents, given one after the other, to splits.

    `fractions` maps splits to parts of 1 (missing ones are 0). Where the corpus has had its near-copies
    removed already, `near_copies=False` gives the same answer without the work.
    """

    def __init__(
        self, fractions: Mapping[str, float] | None = None, seed: int = 0, near_copies: bool = True
    ) -> None:
        self.fractions = check_fractions(DEFAULT_FRACTIONS if fractions is None else fractions)
        self.seed = seed
        self._edges = np.cumsum([self.fractions[name] for name in SPLITS])
        self._near_copies = NearCopies() if near_copies else None
        self._assigned: list[str] = []

    def assign(self, text: str) -> str:
        """The split of the next document."""
        if self._near_copies is None:
            return self._by_hash(text)
        earlier = self._near_copies.find_or_add(text)
        if earlier is not None:
            return self._assigned[earlier]
        self._assigned.append(self._by_hash(text))
        return self._assigned[-1]

    def _by_hash(self, text: str) -> str:
        place = int(np.searchsorted(self._edges, uniform_of(text, self.seed), side="right"))
        # The edges end at 1 up to rounding; the last split that holds anything takes what is left.
        last = max(i for i, name in enumerate(SPLITS) if self.fractions[name] > 0)
        return SPLITS[min(place, last)]


def check_fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    """All splits with their fractions; CorpusError on an unknown name or a sum that is not 1."""
    unknown = sorted(set(fractions) - set(SPLITS))
    if unknown:
        raise CorpusError(f"split {', '.join(unknown)}: no such split. Splits: {', '.join(SPLITS)}.")
    full = {name: float(fractions.get(name, 0.0)) for name in SPLITS}
    if min(full.values()) < 0 or abs(sum(full.values()) - 1) > 1e-6:
        raise CorpusError(f"split fractions must be non-negative and sum to 1, got {full}.")
    return full


def parse_fractions(text: str) -> dict[str, float]:
    """`sae_train=0.8,test=0.2` as a dict; CorpusError if it can't be read."""
    try:
        pairs = [part.split("=") for part in text.split(",") if part.strip()]
        return check_fractions({name.strip(): float(value) for name, value in pairs})
    except ValueError as error:
        raise CorpusError(
            f"split fractions {text!r}: write them as sae_train=0.7,calibrate=0.1,probe_train=0.1,test=0.1."
        ) from error
