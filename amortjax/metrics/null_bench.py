"""Pathology metrics of codes that no mode made: the null models of `nulls`, measured as codes of the modes are.

found = score(subject, Drawn(support, amplitudes), Drawn(...))     # {"nmse": Estimate, "dead": ..., ...}
averaged([found of seed 0, found of seed 1])                       # means, with the same document intervals
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import scipy.sparse

from amortjax.inference import refit
from amortjax.inference.api import bar_of
from amortjax.inference.codes import Codes, round_up
from amortjax.inference.objective import Problem
from amortjax.metrics import absorption, probes, streaming, uncertainty
from amortjax.metrics.coded import as_codes
from amortjax.metrics.measure import Subject, decoded
from amortjax.metrics.roles import units_of
from amortjax.metrics.uncertainty import Estimate

# What is compared; the rest of `uncertainty.estimates` needs a lambda.
METRICS = (
    "l0", "nmse", "nmse_refit", "fvu", "dead", "dead_half", "dense@0.1", "dense@0.2", "f1@1", "f1@2", "df1",
    "absorption", "absorption_chance", "absorption_excess",
)  # fmt: skip


WIDE = 128  # latents of a support from which least squares go token by token


class Drawn(NamedTuple):
    """Codes of n tokens: which latents fire, (n, M), and their amplitudes in the SAE's units. One and the same matrix
    but for supports whose least squares leave some amplitudes at zero: those fire all the same."""

    support: scipy.sparse.csr_array
    amplitudes: scipy.sparse.csr_array

    @classmethod
    def of(cls, codes: scipy.sparse.csr_array) -> "Drawn":
        return cls(codes, codes)


def fitted(subject: Subject, support: scipy.sparse.csr_array, rows: np.ndarray) -> scipy.sparse.csr_array:
    """(n, M) amplitudes by non-negative least squares (each value's own sign) on each token's support."""
    parts = [scipy.sparse.csr_array((0, subject.problem.n_latents), dtype=np.float32)]
    for i in range(0, len(rows), subject.options.chunk):
        here = slice(i, i + subject.options.chunk)
        _, t, _ = subject.batch(rows[here])
        parts.append(_refit(subject, t, support[here]))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


def _refit(subject: Subject, t: np.ndarray, codes: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Tokens of about one L0 at a time: a few very dense ones would make all of a chunk's problems as large."""
    problem, count = subject.problem, np.diff(codes.indptr)
    width = np.asarray([round_up(n, at_least=32) for n in count.tolist()], np.int64)
    parts = [scipy.sparse.csr_array((0, problem.n_latents), dtype=np.float32)]
    for size in np.unique(width):
        own = np.flatnonzero(width == size)
        folded = problem.fold(as_codes(codes[own]))
        found = refit.nnls(problem.unit, t[own], folded) if size <= WIDE else _wide(problem, t[own], folded)
        parts.append(problem.unfold(found).csr())
    back = np.argsort(np.argsort(width, kind="stable"))
    return scipy.sparse.csr_array(scipy.sparse.csr_array(scipy.sparse.vstack(parts))[back])


def _wide(problem: Problem, t: np.ndarray, folded: Codes) -> Codes:
    """The same by Lawson & Hanson's active set, a token at a time: what descends coordinate by coordinate is slow where
    there are more atoms than dimensions."""
    out = np.zeros_like(folded.values)
    for i, (index, value) in enumerate(zip(folded.indices, folded.values, strict=True)):
        used = np.flatnonzero(value)
        atoms = problem.unit64[index[used]] * np.sign(value[used])[:, None]
        out[i, used] = scipy.optimize.nnls(atoms.T, t[i].astype(np.float64))[0] * np.sign(value[used])
    return Codes(folded.indices, out, folded.n_latents)


def score(
    subject: Subject, test: Drawn, train: Drawn, seed: int, progress: bool = False, label: str = ""
) -> dict[str, Estimate]:
    """METRICS of codes of the subject's test rows, with probes fitted on codes of its probe rows."""
    found = _streamed(subject, test, seed, progress, label)
    rows, fitted_on = subject.test_rows, subject.probe_rows
    train_units, units = (
        units_of(subject, train.amplitudes, fitted_on),
        units_of(subject, test.amplitudes, rows),
    )
    found |= probes.evaluate_probes(train_units, units, n_refits=0, seed=seed).estimates
    if test.support is not test.amplitudes:  # an amplitude of zero is no silence
        train_units, units = (
            units_of(subject, train.support, fitted_on),
            units_of(subject, test.support, rows),
        )
    found |= absorption.evaluate_absorption(train_units, units, n_refits=0, seed=seed).estimates
    return {name: found[name] for name in METRICS}


def _streamed(subject: Subject, test: Drawn, seed: int, progress: bool, label: str) -> dict[str, Estimate]:
    """Metrics that are ratios of sums over tokens."""
    acts, rows = subject.acts, subject.test_rows
    block = streaming.block_of(acts.doc_ids[rows])
    sums, refitted = (streaming.init(n, acts.d_model) for n in (subject.problem.n_latents, 1))
    with bar_of(progress, len(rows), label) as bar:
        for i in range(0, len(rows), subject.options.chunk):
            here = slice(i, i + subject.options.chunk)
            x, t, stats = subject.batch(rows[here])
            residual, base = _error(subject, x, t, stats, test.amplitudes[here])
            sums = streaming.update(sums, streaming.Batch(x, residual, base, test.support[here], block[here]))
            residual, _ = _error(subject, x, t, stats, _refit(subject, t, test.support[here]))
            nothing = scipy.sparse.csr_array((len(x), 1))
            refitted = streaming.update(refitted, streaming.Batch(x, residual, base, nothing, block[here]))
            bar.update(len(x))
    n_documents = len(np.unique(acts.doc_ids[rows]))
    found = uncertainty.estimates(sums, n_documents, seed=seed)
    found["nmse_refit"] = uncertainty.estimates(refitted, n_documents, seed=seed)["nmse"]
    found["dead"] = Estimate(float(np.mean(sums.fires.sum(axis=0) == 0)))
    return found


def _error(subject: Subject, x: Any, t: np.ndarray, stats: Any, codes: scipy.sparse.csr_array):
    """x - x_hat and x - b_out in raw units, float64."""
    folded = subject.problem.fold(as_codes(codes)).csr(np.float64)
    return decoded(subject, x, t, t - folded @ subject.problem.unit64, stats)


def averaged(found: Sequence[dict[str, Estimate]]) -> tuple[dict[str, Estimate], dict[str, float | None]]:
    """Means over draws of a null, with intervals over documents of that mean; and the standard deviation over draws
    (None with one)."""
    mean, spread = {}, {}
    for name in found[0]:
        own = [one[name] for one in found]
        values = [e.value for e in own if e.value is not None]
        draws = [e.draws for e in own if e.draws is not None]
        whole = len(values) == len(own)
        both = np.mean(draws, axis=0) if whole and len(draws) == len(own) else None
        mean[name] = Estimate(float(np.mean(values)) if whole else None, both, own[0].kind)
        spread[name] = float(np.std(values, ddof=1)) if whole and len(values) > 1 else None
    return mean, spread
