"""A text with latents whose tokens are known, for the tests of interp."""

import numpy as np
import scipy.sparse

from amortjax.activations.store import MemoryStore

WORDS = [
    " the",
    " cat",
    " sat",
    " on",
    " a",
    " mat",
    ".",
    "\n",
    " 7",
    " Dog",
    "<b>",
    " red",
    " of",
    " number",
    " runs",
]
CAT, AFTER_A, RANDOM, RARE, ALWAYS, SILENT = range(6)
N_LATENTS, DOCUMENTS, LENGTH = 24, 120, 50


def store(seed: int = 0) -> MemoryStore:
    """120 documents of 50 random words; split test."""
    r = np.random.default_rng(seed)
    ids = r.integers(0, len(WORDS), DOCUMENTS * LENGTH)
    # " cat" and " a" are in every third document only, so that windows without them can be found.
    allowed = np.repeat(np.arange(DOCUMENTS) % 3 == 0, LENGTH)
    for word in (" cat", " a"):
        here = (ids == WORDS.index(word)) & ~allowed
        ids[here] = WORDS.index(" sat")
    doc_ids = np.repeat(np.arange(DOCUMENTS), LENGTH)
    x = r.standard_normal((len(ids), 8)).astype(np.float32)
    return MemoryStore.build(x, doc_ids, ["test"] * DOCUMENTS, token_ids=ids, vocab=WORDS)


def codes(acts: MemoryStore, seed: int = 1) -> scipy.sparse.csr_array:
    """(n, 24): CAT fires on " cat", AFTER_A on what follows " a", RANDOM anywhere, RARE in three documents, ALWAYS on
    every token, SILENT and those that follow never."""
    r, ids = np.random.default_rng(seed), acts.token_ids
    z = np.zeros((len(ids), N_LATENTS), np.float32)
    sizes = r.exponential(size=z.shape) + 0.5
    first = np.diff(acts.doc_ids, prepend=-1) > 0
    z[:, CAT] = ids == WORDS.index(" cat")
    z[:, AFTER_A] = np.roll(ids == WORDS.index(" a"), 1) & ~first
    z[:, RANDOM] = r.random(len(ids)) < 0.02
    z[:, RARE] = np.isin(acts.doc_ids, [3, 5, 8]) & first
    z[:, ALWAYS] = 1
    return scipy.sparse.csr_array(z * sizes.astype(np.float32))
