"""Where a latent fires, in context: what an interpreter is shown and what a scorer is asked about.

    text = text_of(acts, rows)                                     # rows of whole documents
    found = collect(column_of(codes, latent), text, latent, Settings())   # Examples, or why there are none

All contexts of a latent come from different documents, so those that explain and those that score share none.
Activations are sizes |z|, 0 where a latent is silent.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.errors import AmortjaxError

TOO_FEW, NO_NEGATIVES = "too_few", "no_negatives"
MARKED = 0.01  # share of a latent's largest activation above which a token is marked as active
PASSES = 8  # random places tried in each document for a window in which the latent is silent


@dataclasses.dataclass(frozen=True)
class Settings:
    """`literal` is the released protocol of arXiv 2411.13117: the `top` contexts only, the upper half explains, and
    what is not active are the top contexts of one fixed other latent, unchecked (here too from different documents).
    `controlled`: also `quantile` contexts drawn by importance, both dealt in turn to explaining and scoring, and
    windows in which the latent is silent on every token. `fuzz`: also ask whether marked tokens are the active ones."""

    protocol: Literal["controlled", "literal"] = "controlled"
    top: int = 10
    quantile: int = 10
    left: int = 30
    right: int = 5
    min_examples: int = 4
    counterexamples: bool = True  # silent contexts that the interpreter sees too (never under `literal`)
    other_latents: tuple[int, ...] = (0, 15)  # of `literal`: the first that is not the latent itself
    contexts_per_call: int = 20
    fuzz: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"top": 0, "quantile": 0, "left": 0, "right": 0, "min_examples": 2, "contexts_per_call": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise AmortjaxError(f"{name}={getattr(self, name)}: must be at least {bound}")
        most = self.top + (self.quantile if self.protocol == "controlled" else 0)
        if most < self.min_examples:
            raise AmortjaxError(
                f"min_examples={self.min_examples}: at most {most} contexts are taken, so every latent would be "
                "skipped; take more contexts or ask for fewer"
            )
        if self.protocol == "literal" and len(self.other_latents) < 2:
            raise AmortjaxError("other_latents: name two, the second for the first one's own turn")


@dataclasses.dataclass(frozen=True)
class Text:
    """Tokens of whole documents: `document` (n,) counts them from 0 in the order of `start` and `stop` (documents,);
    `strings` gives the text of token ids."""

    token_ids: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    strings: Callable[[np.ndarray], list[str]]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def n_documents(self) -> int:
        return len(self.start)


class Column(NamedTuple):
    """A latent's activations: `rows` (ascending) where it fires, and `values` > 0 there."""

    rows: np.ndarray
    values: np.ndarray


class Context(NamedTuple):
    """A window of one document. `values`: the latent's activation on each token; `at`: the token it was chosen for;
    `source`: top, quantile, silent or other."""

    document: int
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int
    source: str

    @property
    def positive(self) -> bool:
        """What a scorer should say; of another latent's contexts `literal` says no without looking."""
        return self.source in ("top", "quantile")

    @property
    def fires(self) -> bool:
        return any(value > 0 for value in self.values)


class Examples(NamedTuple):
    """Contexts of one latent; `peak`: its largest activation. `score` is in the order in which it is asked."""

    explain: tuple[Context, ...]
    score: tuple[Context, ...]
    peak: float


def text_of(acts: Any, rows: np.ndarray) -> Text:
    """The text of a store's rows (ascending, whole documents). AmortjaxError if the store has no vocabulary."""
    rows = np.asarray(rows)
    doc_ids, token_ids = np.asarray(acts.doc_ids)[rows], np.asarray(acts.token_ids)[rows]
    if not len(rows) or not any(acts.token_strings(np.unique(token_ids)[:4096])):
        raise AmortjaxError(
            "the activation store has no text of its tokens (no vocabulary): latents can't be interpreted from it; "
            "collect it again with amortjax.launch.collect"
        )
    first = np.flatnonzero(np.diff(doc_ids, prepend=doc_ids[0] - 1))
    stop = np.append(first[1:], len(rows))
    return Text(token_ids, np.repeat(np.arange(len(first)), stop - first), first, stop, acts.token_strings)


def column_of(codes: scipy.sparse.csc_array, place: int) -> Column:
    """One column of codes (n, M) by its place in them."""
    part = slice(int(codes.indptr[place]), int(codes.indptr[place + 1]))
    rows, values = np.asarray(codes.indices[part]), np.abs(np.asarray(codes.data[part], np.float64))
    fires = values > 0
    order = np.argsort(rows[fires], kind="stable")
    return Column(rows[fires][order], values[fires][order])


def collect(
    column: Column, text: Text, latent: int, settings: Settings, other: Column | None = None
) -> Examples | str:
    """A latent's examples, or TOO_FEW or NO_NEGATIVES. `other`: the fixed other latent, which `literal` needs."""
    positives = _positives(column, text, latent, settings)
    explain, score = _dealt(positives, settings)
    if len(positives) < settings.min_examples or not explain or not score:
        return TOO_FEW
    used = {context.document for context in positives}
    if settings.protocol == "literal":
        assert other is not None
        places = [p for p in _tops(other, text) if text.document[p] not in used][: len(score)]
        negatives = [_context(column, text, settings, place, "other") for place in places]
        against = []
    else:
        wanted = len(score) + (len(explain) if settings.counterexamples else 0)
        rng = np.random.default_rng([settings.seed, latent, 1])
        places = _silent(column, text, settings, used, wanted, rng)
        # Scoring comes first where silent windows are rare.
        negatives = [_context(column, text, settings, place, "silent") for place in places]
        negatives, against = negatives[: len(score)], negatives[len(score) :]
    if len(negatives) < 2:
        return NO_NEGATIVES
    score = score[: len(negatives)]
    asked = [*score, *negatives]
    order = np.random.default_rng([settings.seed, latent, 2]).permutation(len(asked))
    peak = float(column.values.max())
    return Examples((*explain, *against), tuple(asked[i] for i in order), peak)


def _positives(column: Column, text: Text, latent: int, settings: Settings) -> list[Context]:
    """Top contexts, strongest first, then those drawn by importance."""
    tops = _tops(column, text)
    out = [_context(column, text, settings, place, "top") for place in tops[: settings.top]]
    if settings.protocol == "controlled":
        rng = np.random.default_rng([settings.seed, latent, 0])
        drawn = _by_importance(column, text, tops[settings.top :], settings.quantile, rng)
        out += [_context(column, text, settings, place, "quantile") for place in drawn]
    return out


def _tops(column: Column, text: Text) -> np.ndarray:
    """The place of the largest activation in each document where the latent fires, strongest first."""
    document = text.document[column.rows]
    order = np.lexsort((column.rows, -column.values, document))
    best = order[np.flatnonzero(np.diff(document[order], prepend=-1))]
    return column.rows[best[np.argsort(-column.values[best], kind="stable")]]


def _by_importance(
    column: Column, text: Text, tops: np.ndarray, n: int, rng: np.random.Generator
) -> list[int]:
    """At most n places, a document each: documents of `tops` (strongest first) are cut into n parts of equal importance
    (the sum of z^2), one is drawn from each part, and in it a token, both by importance."""
    document, square = text.document[column.rows], column.values**2
    weight = np.bincount(document, square, text.n_documents)
    left, chosen = [int(text.document[place]) for place in tops], []
    if len(left) > n:
        edges = np.cumsum(weight[left])
        points = (np.arange(n) + rng.random(n)) / max(n, 1) * edges[-1]
        hit = np.unique(np.minimum(np.searchsorted(edges, points), len(left) - 1))
        # A document heavier than a part is hit twice: weaker ones take the turns left over.
        rest = np.setdiff1d(np.arange(len(left)), hit)
        spare = rng.permutation(rest)[: n - len(hit)]
        left = [left[i] for i in sorted([*hit.tolist(), *spare.tolist()])]
    for d in left[:n]:
        own = slice(*np.searchsorted(document, [d, d + 1]))
        chosen.append(int(rng.choice(column.rows[own], p=square[own] / square[own].sum())))
    return chosen


def _dealt(positives: list[Context], settings: Settings) -> tuple[list[Context], list[Context]]:
    """Those that explain and those that score."""
    if settings.protocol == "literal":
        half = len(positives) // 2
        return positives[:half], positives[half:]
    explain, score = [], []
    for source in ("top", "quantile"):
        own = [context for context in positives if context.source == source]
        explain, score = explain + own[0::2], score + own[1::2]
    return explain, score


def _silent(
    column: Column, text: Text, settings: Settings, used: set[int], n: int, rng: np.random.Generator
) -> list[int]:
    """At most n places, each in another document outside of `used`, in whose window the latent fires on no token."""
    free = np.setdiff1d(np.arange(text.n_documents), np.fromiter(used, np.int64))
    found: dict[int, int] = {}
    for _ in range(PASSES):
        order = rng.permutation(free)
        place = rng.integers(text.start[order], text.stop[order])
        first = np.maximum(place - settings.left, text.start[order])
        last = np.minimum(place + settings.right + 1, text.stop[order])
        fires = np.searchsorted(column.rows, last) - np.searchsorted(column.rows, first)
        for d, at in zip(order[fires == 0].tolist(), place[fires == 0].tolist(), strict=True):
            if len(found) < n:
                found.setdefault(d, at)
        if len(found) >= n:
            break
    return list(found.values())


def _context(column: Column, text: Text, settings: Settings, place: int, source: str) -> Context:
    d = int(text.document[place])
    first = max(int(place) - settings.left, int(text.start[d]))
    last = min(int(place) + settings.right + 1, int(text.stop[d]))
    ids = text.token_ids[first:last]
    values = np.zeros(last - first)
    own = slice(*np.searchsorted(column.rows, [first, last]))
    values[column.rows[own] - first] = column.values[own]
    strings = text.strings(ids)
    tokens = (_clean(s) or f" ⟨{i}⟩" for s, i in zip(strings, ids.tolist(), strict=True))
    return Context(d, tuple(tokens), tuple(values.tolist()), int(place) - first, source)


def _clean(text: str) -> str:
    """Halves of characters, which no encoding has, replaced."""
    return text.encode("utf-8", "replace").decode()
