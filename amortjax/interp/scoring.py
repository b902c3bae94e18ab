"""How well descriptions tell a latent's contexts: scores of one latent, their chance level, and summaries over latents.

Intervals are a bootstrap over latents, given from MIN_LATENTS on: they hold for these documents and this judge.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom

from amortjax.interp.examples import Context

SCORED, UNPARSED = "scored", "unparsed"
MIN_LATENTS = 10
N_RESAMPLES = 2000
LEVEL = 0.95
METRICS = ("macro_f1", "f1", "precision", "recall", "balanced_accuracy", "fuzz")


class Counts(NamedTuple):
    """Contexts by truth and answer: said yes rightly, wrongly, said no wrongly, rightly."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, truth: Sequence[bool], said: Sequence[int]) -> "Counts":
        t, s = np.asarray(truth, bool), np.asarray(said, bool)
        return cls(*(int(np.sum(part)) for part in (t & s, ~t & s, t & ~s, ~t & ~s)))

    @property
    def precision(self) -> float:
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def macro_f1(self) -> float:
        """Mean of the F1 of yes and the F1 of no; 0 for a class that nobody is in and nobody said."""
        return (self.f1 + _share(2 * self.tn, 2 * self.tn + self.fp + self.fn)) / 2

    @property
    def balanced_accuracy(self) -> float:
        return (self.recall + _share(self.tn, self.tn + self.fp)) / 2


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@functools.cache
def chance(positives: int, negatives: int) -> tuple[float, float]:
    """Expected macro-F1 of a fair coin, exactly, and that of always saying yes: about .5, and 1/3 of equal numbers."""
    yes, no = np.arange(positives + 1), np.arange(negatives + 1)
    weight = np.outer(binom.pmf(yes, positives, 0.5), binom.pmf(no, negatives, 0.5))
    table = [
        [Counts(int(a), int(b), positives - int(a), negatives - int(b)).macro_f1 for b in no] for a in yes
    ]
    return float(np.sum(weight * np.asarray(table))), Counts(positives, negatives, 0, 0).macro_f1


@dataclasses.dataclass(frozen=True)
class LatentScore:
    """One latent under one set of codes. `status`: scored, too_few (usable examples), no_negatives, unparsed. `shown`:
    what the interpreter saw; `said`: the scorer's answer to each of `contexts`. `unlike`: contexts labelled silent in
    which the latent fires all the same, which only the literal protocol has."""

    latent: int
    status: str
    explanation: str | None = None
    counts: Counts | None = None
    fuzz_counts: Counts | None = None
    contexts: tuple[Context, ...] = ()
    said: tuple[int, ...] = ()
    shown: tuple[Context, ...] = ()
    peak: float = 0.0
    n_fires: int = 0

    def _of(self, name: str) -> float | None:
        return None if self.counts is None else getattr(self.counts, name)

    @property
    def macro_f1(self) -> float | None:
        return self._of("macro_f1")

    @property
    def f1(self) -> float | None:
        return self._of("f1")

    @property
    def precision(self) -> float | None:
        return self._of("precision")

    @property
    def recall(self) -> float | None:
        return self._of("recall")

    @property
    def balanced_accuracy(self) -> float | None:
        return self._of("balanced_accuracy")

    @property
    def fuzz(self) -> float | None:
        return None if self.fuzz_counts is None else self.fuzz_counts.balanced_accuracy

    @property
    def unlike(self) -> int:
        return sum(context.fires for context in self.contexts if not context.positive)

    @property
    def chance(self) -> tuple[float, float] | None:
        """Macro-F1 of a fair coin and of always saying yes."""
        return (
            None
            if self.counts is None
            else chance(self.counts.tp + self.counts.fn, self.counts.fp + self.counts.tn)
        )


class _Bounds(NamedTuple):
    value: float | None
    lo: float | None
    hi: float | None


def _draws(n: int, seed: int) -> np.ndarray:
    """(R, n) places of the resampled latents."""
    return np.random.default_rng(seed).integers(0, n, (N_RESAMPLES, n))


def _bounded(value: float, draws: np.ndarray | None) -> _Bounds:
    if draws is None:
        return _Bounds(value, None, None)
    lo, hi = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return _Bounds(value, float(lo), float(hi))


def _flat(name: str, found: _Bounds) -> dict[str, float | None]:
    return {name: found.value, f"{name}_lo": found.lo, f"{name}_hi": found.hi}


def _described(name: str, values: Sequence[float], seed: int, median: bool) -> dict[str, float | None]:
    """Mean, and median if asked for, with intervals."""
    x = np.asarray(values, np.float64)
    if not len(x):
        return _flat(name, _Bounds(None, None, None)) | (
            _flat(f"{name}_median", _Bounds(None, None, None)) if median else {}
        )
    again = x[_draws(len(x), seed)] if len(x) >= MIN_LATENTS else None
    mean = _bounded(float(x.mean()), None if again is None else again.mean(axis=1))
    out = _flat(name, mean)
    if median:
        middle = _bounded(float(np.median(x)), None if again is None else np.median(again, axis=1))
        out |= _flat(f"{name}_median", middle)
    return out


def summary(scores: Sequence[LatentScore], seed: int = 0) -> dict[str, Any]:
    """Columns of a result row: counts of latents, means (macro-F1 also its median) with `_lo` and `_hi`, chance levels.
    `macro_f1_unparsed_0`: the mean if unparsed latents counted as 0."""
    by = {
        status: sum(s.status == status for s in scores)
        for status in (SCORED, "too_few", "no_negatives", UNPARSED)
    }
    out: dict[str, Any] = {"n_latents_asked": len(scores)} | {f"n_{name}": n for name, n in by.items()}
    done = [s for s in scores if s.status == SCORED]
    for name in METRICS:
        values = [v for v in (getattr(s, name) for s in done) if v is not None]
        out |= _described(name, values, seed, median=name == "macro_f1")
    tried = by[SCORED] + by[UNPARSED]
    out["macro_f1_unparsed_0"] = sum(s.macro_f1 or 0.0 for s in done) / tried if tried else None
    levels = [level for level in (s.chance for s in done) if level is not None]
    out["chance_random"], out["chance_all_ones"] = (
        (float(np.mean([level[i] for level in levels])) if levels else None) for i in (0, 1)
    )
    out["n_contexts"] = sum(len(s.contexts) for s in done)
    out["n_negatives_active"] = sum(s.unlike for s in done)
    return out


def difference(
    a: Sequence[LatentScore], b: Sequence[LatentScore], paired: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Macro-F1 of a less that of b: mean and median. Paired: over the latents scored in both, and the median is that of
    the differences; else over each one's own latents, resampled apart, and it is the difference of the medians."""
    values = [{s.latent: s.macro_f1 for s in scores if s.macro_f1 is not None} for scores in (a, b)]
    if paired:
        common = [j for j in values[0] if j in values[1]]
        found = _described("x", [values[0][j] - values[1][j] for j in common], seed, median=True)
        names = {"x": "macro_f1_difference", "x_median": "macro_f1_median_difference"}
        out = {names[k.removesuffix(e)] + e: found[k] for k in found for e in [_ending(k)]}
        return out | {"n_pairs": len(common), "paired": True}
    x, y = (np.asarray(list(v.values()), np.float64) for v in values)
    out = {}
    for name, f in (("macro_f1_difference", np.mean), ("macro_f1_median_difference", np.median)):
        if not len(x) or not len(y):
            out |= _flat(name, _Bounds(None, None, None))
            continue
        draws = None
        if min(len(x), len(y)) >= MIN_LATENTS:
            draws = f(x[_draws(len(x), seed)], axis=1) - f(y[_draws(len(y), seed + 1)], axis=1)
        out |= _flat(name, _bounded(float(f(x) - f(y)), draws))
    return out | {"n_pairs": min(len(x), len(y)), "paired": False}


def _ending(key: str) -> str:
    return next((end for end in ("_lo", "_hi") if key.endswith(end)), "")
