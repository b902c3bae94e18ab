"""One mode over one set of rows: codes, certificates and every metric's sums, chunk by chunk.

A `Subject` is an SAE posed on an activation store; `measure` streams probe_train and test rows through a mode
and never holds dense codes of more than a chunk.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.inference import gaps, modes, objective
from amortjax.inference.api import encode_codes
from amortjax.inference.codes import Codes
from amortjax.inference.gaps import Proof, Screen
from amortjax.inference.modes import Options
from amortjax.inference.objective import Problem
from amortjax.inference.request import Solved
from amortjax.metrics import labels, streaming
from amortjax.saes.sae import SAE, NormStats, norm_out


@dataclasses.dataclass(frozen=True)
class Subject:
    """An SAE, the problem it poses, and the rows it is examined on. `literal` encodes and scores as the
    papers' released evaluation does (`saes.literal`)."""

    sae: SAE
    problem: Problem
    acts: Any  # activations.store.Readable
    calibrate_rows: np.ndarray
    probe_rows: np.ndarray
    test_rows: np.ndarray
    options: Options
    units: str = "documents"  # of probes: documents, tokens or norms (the literal pseudo-labels)
    progress: bool = False  # show bars while calibrating
    clip: bool = False  # score max(z, 0), as the papers do with signed codes

    def batch(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, NormStats]:
        """Raw x (n, D), targets t (n, D) and what undoes the SAE's normalisation."""
        x = self.acts.read(rows)
        t, stats = objective.targets(self.sae, x, offset=self.problem.record.offset)
        return x, np.asarray(t), stats

    def solve(self, mode: str, knobs: "Knobs", rows: np.ndarray, x: np.ndarray, t: np.ndarray) -> Solved:
        """Codes of `rows`, whose inputs and targets are x and t, in the SAE's units, and iterations (n,)."""
        encoder = encode_codes(self.sae, x, self.options.chunk)
        return modes.solve(mode, self.problem, t, encoder, knobs.lam or 0.0, knobs.scale, self.options)

    @functools.cached_property
    def calibration(self) -> tuple[np.ndarray, Codes, np.ndarray, NormStats]:
        """t, the encoder's codes, x and norm statistics of the calibration rows."""
        x, t, stats = self.batch(self.calibrate_rows)
        return t, encode_codes(self.sae, x, self.options.chunk), x, stats


class Knobs(NamedTuple):
    """What a mode was calibrated to: lambda (None: the mode has none and no objective is scored) and
    scale."""

    lam: float | None
    scale: float = 1.0


class Measured(NamedTuple):
    """Everything a result row is made of."""

    sums: streaming.Sums
    heads: dict[int, streaming.Sums]  # of the first so many test tokens
    train: labels.Units | None  # None: no probes were asked for
    test: labels.Units | None
    proof: Proof  # this mode's own objective and dual value of each test token
    iterations: float  # mean per token
    screen: Screen | None  # what is not proved inactive on the test tokens (the optimum only)
    prefixes: dict[int, float]  # squared error, raw units, of each Matryoshka prefix's reconstruction alone


def decoded(subject: Subject, x: np.ndarray, t: np.ndarray, residual: np.ndarray, stats: NormStats):
    """Residual x - x_hat and x - b_out in raw units, float64 (n, D)."""
    sae = subject.sae
    if sae.norm == "none":
        base = t.astype(np.float64)
        return residual, base
    offset = np.asarray(sae.b_dec) if subject.problem.record.offset == "b_out" else 0.0
    raw = np.asarray(norm_out(t + offset - residual, stats), np.float64)
    origin = np.asarray(norm_out(np.zeros_like(t) + offset, stats), np.float64)
    return x - raw, x - origin


def prefix_sizes(sae: SAE) -> tuple[int, ...]:
    """Widths of a Matryoshka SAE's nested dictionaries, the last one all of it; () for other variants."""
    return tuple(itertools.accumulate(sae.groups)) if sae.variant == "matryoshka" else ()


def _prefix_errors(subject: Subject, x: np.ndarray, t: np.ndarray, codes: Codes, stats: NormStats):
    """{W: sum of |x - x_hat|^2 where only the first W latents of the codes are decoded}, float64."""
    errors, problem = {}, subject.problem
    z, residual = scipy.sparse.csc_array(codes.csr(np.float64)), np.asarray(t, np.float64)
    for start, stop in itertools.pairwise((0, *prefix_sizes(subject.sae))):
        atoms = problem.weights64[start:stop, None] * problem.unit64[start:stop]
        residual = residual - z[:, start:stop] @ atoms
        errors[stop] = float(np.sum(np.square(decoded(subject, x, t, residual, stats)[0])))
    return errors


def _chunks(subject: Subject, rows: np.ndarray, bar: Any) -> Iterator[tuple[slice, np.ndarray]]:
    for i in range(0, len(rows), subject.options.chunk):
        part = slice(i, min(i + subject.options.chunk, len(rows)))
        yield part, rows[part]
        if bar is not None:
            bar.update(part.stop - part.start)


def _clipped(subject: Subject, codes: Codes) -> scipy.sparse.csr_array:
    out = codes.csr()
    if subject.clip:
        out.data = np.maximum(out.data, 0)
        out.eliminate_zeros()
    return out


def measure(
    subject: Subject,
    mode: str,
    knobs: Knobs,
    reference: Proof | None = None,
    heads: tuple[int, ...] = (),
    probes: bool = True,
    split: bool = False,
    bar: Any = None,
) -> Measured:
    """Streams the rows through `mode`. `reference`: of the optimum at this lambda, for gap intervals, and, with
    `split`, for amplitude and support (a small lasso per token). Without `probes` the probe_train rows are left
    alone, which nearly halves the work."""
    sae, rows = subject.sae, subject.test_rows
    block = streaming.block_of(subject.acts.doc_ids[rows])
    sums = streaming.init(sae.n_latents, subject.acts.d_model)
    head_sums = {n: streaming.init(sae.n_latents, subject.acts.d_model) for n in heads if n < len(rows)}
    proofs, screens, parts, steps, lam = [], [], [], 0.0, knobs.lam or 0.0
    prefixes = dict.fromkeys(prefix_sizes(sae), 0.0)
    for part, chosen in _chunks(subject, rows, bar):
        x, t, stats = subject.batch(chosen)
        codes, iterations = subject.solve(mode, knobs, chosen, x, t)
        found = objective.certify(subject.problem, t, codes, lam)
        proofs.append(gaps.proof_of(subject.problem, found, lam))
        if mode == "optimal" and lam:
            screens.append(gaps.possibly_active(subject.problem, found, lam))
        residual, base = decoded(subject, x, t, found.residual, stats)
        if prefixes:
            for width, error in _prefix_errors(subject, x, t, codes, stats).items():
                prefixes[width] += error
        batch = streaming.Batch(x, residual, base, _clipped(subject, codes), block[part])
        if knobs.lam is not None:
            known = () if reference is None else (reference.rows(part),)
            prices = _prices(subject.problem, t, codes, mode, proofs[-1], known, split)
            batch = batch._replace(**prices, gap=found.gap, l1=_l1(subject.problem, codes))
        sums = streaming.update(sums, batch)
        for n in (n for n in head_sums if part.start < n):
            head_sums[n] = streaming.update(head_sums[n], _first(batch, n - part.start))
        parts.append(batch.codes if probes else batch.codes[:0])
        steps += float(iterations.sum())
    train = test = None
    if probes:
        test = _units(subject, scipy.sparse.csr_array(scipy.sparse.vstack(parts)), rows)
        train = _units(subject, _codes_of(subject, mode, knobs, bar), subject.probe_rows)
    found = (_joined(proofs), steps / len(rows), _merged(screens), prefixes)
    return Measured(sums, head_sums, train, test, *found)


def _codes_of(subject: Subject, mode: str, knobs: Knobs, bar: Any) -> scipy.sparse.csr_array:
    parts = [scipy.sparse.csr_array((0, subject.sae.n_latents), dtype=np.float32)]
    if subject.units != "norms":
        for _, chosen in _chunks(subject, subject.probe_rows, bar):
            x, t, _ = subject.batch(chosen)
            parts.append(_clipped(subject, subject.solve(mode, knobs, chosen, x, t)[0]))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


def _units(subject: Subject, codes: scipy.sparse.csr_array, rows: np.ndarray) -> labels.Units:
    rows = rows[: len(codes.indptr) - 1]
    doc_ids = subject.acts.doc_ids[rows]
    if subject.units == "documents":
        return labels.document_units(codes, doc_ids, subject.acts.documents["label"])
    strings = subject.acts.token_strings(subject.acts.token_ids[rows]) if len(rows) else []
    return labels.token_units(codes, doc_ids, strings)


def _l1(problem: Problem, codes: Codes) -> np.ndarray:
    return np.abs(np.asarray(problem.fold(codes).values, np.float64)).sum(axis=1)


def _prices(
    problem: Problem,
    t: np.ndarray,
    codes: Codes,
    mode: str,
    own: Proof,
    known: tuple[Proof, ...],
    split: bool,
) -> dict[str, np.ndarray]:
    """P and, where the optimum is known or is what was solved, the gap's interval and its parts."""
    alone = {"objective": own.objective}
    if not known and mode != "optimal":
        return alone
    if split and known:
        parts = gaps.split(problem, t, codes, own.record.lam or 0.0, own, *known)
        alone |= {name: getattr(parts, name) for name in streaming.PARTS}
        # One more code of these tokens. Its own dual value is of a smaller problem and bounds nothing here.
        known = (*known, own._replace(objective=parts.objective))
    found = gaps.interval(own, *known)
    if not known:  # each part of the optimum's own gap lies between 0 and the whole
        alone |= dict.fromkeys(("amplitude", "support", "support_lower"), found.lower)
        alone |= dict.fromkeys(("amplitude_upper", "support_upper"), found.upper)
    return alone | {"gap_lower": found.lower, "gap_upper": found.upper}


def _joined(proofs: list[Proof]) -> Proof:
    p, dual = (np.concatenate([getattr(proof, name) for proof in proofs]) for name in ("objective", "dual"))
    return proofs[0]._replace(objective=p, dual=dual)


def _merged(screens: list[Screen]) -> Screen | None:
    if not screens:
        return None
    return Screen(np.concatenate([s.count for s in screens]), np.any([s.latents for s in screens], axis=0))


def _first(batch: streaming.Batch, n: int) -> streaming.Batch:
    cut: dict[str, Any] = {name: c if c is None else c[:n] for name, c in batch._asdict().items()}
    return streaming.Batch(**cut)
