"""What probes are asked to find: document labels (units are documents) or properties of tokens (units are
tokens).

    train = document_units(codes, doc_ids, labels)       # labels[i] of document i of the store
    train = token_units(codes, doc_ids, token_strings)   # a string per token, a leading space visible as " "

The codes of a long stream are pooled batch by batch: `pool_documents`, `merge_pooled`, `pooled_units`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

MIN_DOCUMENTS = 50  # on each side of a task, among probe_train and among test


class Units(NamedTuple):
    """U units to classify. `tasks` holds the same names for every mode."""

    codes: scipy.sparse.csr_array  # (U, M) codes of tokens, or means of codes over documents
    tasks: dict[str, np.ndarray]  # {task: (U,) bool}
    groups: np.ndarray  # (U,) int document of each unit
    source: str = "token properties"

    @property
    def n_documents(self) -> int:
        return len(np.unique(self.groups))


class Pooled(NamedTuple):
    """Sums of codes over the tokens of each document; documents in ascending order of id."""

    codes: scipy.sparse.csr_array  # (U, M) float64 sums
    tokens: np.ndarray  # (U,) int64
    ids: np.ndarray  # (U,) int

    def means(self) -> scipy.sparse.csr_array:
        """(U, M) mean code of each document over its tokens."""
        return scipy.sparse.csr_array(scipy.sparse.diags_array(1.0 / np.maximum(self.tokens, 1)) @ self.codes)


def pool_documents(codes: scipy.sparse.csr_array, doc_ids: np.ndarray) -> Pooled:
    """Codes (n, M) of tokens with document ids (n,) -> sums per document. A document may be cut by a batch's
    end: merge the parts."""
    ids, place = np.unique(np.asarray(doc_ids), return_inverse=True)
    n = len(place)
    member = scipy.sparse.csr_array((np.ones(n), (place, np.arange(n))), shape=(len(ids), n))
    return Pooled(scipy.sparse.csr_array(member @ codes), np.bincount(place, minlength=len(ids)), ids)


def merge_pooled(parts: Sequence[Pooled]) -> Pooled:
    """One Pooled of all parts; a document in several of them is added up."""
    stacked = scipy.sparse.csr_array(scipy.sparse.vstack([part.codes for part in parts]))
    again = pool_documents(stacked, np.concatenate([part.ids for part in parts]))
    tokens = np.zeros(len(again.ids), np.int64)
    for part in parts:
        np.add.at(tokens, np.searchsorted(again.ids, part.ids), part.tokens)
    return again._replace(tokens=tokens)


def document_units(codes: scipy.sparse.csr_array, doc_ids: np.ndarray, labels: np.ndarray) -> Units:
    """Documents as units, with one one-vs-rest task per label. `labels[i]` is the label of document id i;
    documents labelled "" are left out."""
    return pooled_units(pool_documents(codes, doc_ids), labels)


def pooled_units(pooled: Pooled, labels: np.ndarray) -> Units:
    """`document_units` of documents already pooled."""
    own = np.asarray(labels)[pooled.ids].astype(str)
    kept = np.flatnonzero(own != "")
    own, means = own[kept], pooled.means()[kept]
    tasks = {str(name): own == name for name in np.unique(own)}
    return Units(scipy.sparse.csr_array(means), tasks, pooled.ids[kept], "document labels")


def token_units(codes: scipy.sparse.csr_array, doc_ids: np.ndarray, strings: Sequence[str]) -> Units:
    """Tokens as units, with the tasks of `token_properties`."""
    return Units(scipy.sparse.csr_array(codes), token_properties(strings), np.asarray(doc_ids))


def token_properties(strings: Sequence[str]) -> dict[str, np.ndarray]:
    """{property: (n,) bool} of token strings: its first letter (a to z, without regard to case, after leading
    space), a capital first, a digit anywhere, a leading space."""
    distinct, place = np.unique(np.asarray(strings, dtype=str), return_inverse=True)
    first = [text.strip()[:1] for text in distinct]
    found = {f"first letter {c}": [f.lower() == c for f in first] for c in "abcdefghijklmnopqrstuvwxyz"}
    found["capitalised"] = [f.isupper() for f in first]
    found["digit"] = [any(c.isdigit() for c in text) for text in distinct]
    found["leading space"] = [text[:1].isspace() for text in distinct]
    return {name: np.asarray(flags, bool)[place] for name, flags in found.items()}


def usable_tasks(train: Units, test: Units, at_least: int = MIN_DOCUMENTS) -> tuple[list[str], str | None]:
    """Names of the tasks with at least `at_least` documents that hold a positive unit and as many that hold a
    negative one, in `train` and again in `test`; or no name and the reason, in words."""
    best, names = 0, []
    for name in sorted(train.tasks.keys() & test.tasks.keys()):
        fewest = min(_fewest_documents(train, name), _fewest_documents(test, name))
        best = max(best, fewest)
        if fewest >= at_least:
            names.append(name)
    if names:
        return names, None
    where = f"the best of {len(train.tasks)} has {best}" if train.tasks else "there are no labels"
    return [], f"no class has {at_least} documents on each side in probe_train and in test ({where})"


def _fewest_documents(units: Units, task: str) -> int:
    y = units.tasks[task]
    return min(len(np.unique(units.groups[y])), len(np.unique(units.groups[~y])))
