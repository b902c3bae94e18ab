"""One mode over one set of rows: codes, certificates and every metric's sums, chunk by chunk.

A `Subject` is an SAE posed on an activation store; `measure` streams probe_train and test rows through a mode
and never holds dense codes of more than a chunk.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.inference import modes, objective
from amortjax.inference.api import encode_codes
from amortjax.inference.codes import Codes
from amortjax.inference.modes import Options
from amortjax.inference.objective import Certificate, Problem
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


class Reference(NamedTuple):
    """Of each test token at the same lambda: the best objective and the largest dual value known, (N,)."""

    objective: np.ndarray
    dual: np.ndarray


class Measured(NamedTuple):
    """Everything a result row is made of."""

    sums: streaming.Sums
    heads: dict[int, streaming.Sums]  # of the first so many test tokens
    train: labels.Units | None  # None: no probes were asked for
    test: labels.Units | None
    certificate: Reference  # this mode's own objective and dual value of each test token
    iterations: float  # mean per token
    active: np.ndarray | None  # (M,) bool: not proved inactive on every test token (the optimum only)


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


def _chunks(subject: Subject, rows: np.ndarray, bar: Any) -> Iterator[tuple[slice, np.ndarray]]:
    for i in range(0, len(rows), subject.options.chunk):
        part = slice(i, min(i + subject.options.chunk, len(rows)))
        yield part, rows[part]
        if bar is not None:
            bar.update(part.stop - part.start)


def _solve(subject: Subject, mode: str, knobs: Knobs, x: np.ndarray, t: np.ndarray):
    encoder = encode_codes(subject.sae, x, subject.options.chunk)
    return modes.solve(mode, subject.problem, t, encoder, knobs.lam or 0.0, knobs.scale, subject.options)


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
    reference: Reference | None = None,
    heads: tuple[int, ...] = (),
    probes: bool = True,
    bar: Any = None,
) -> Measured:
    """Streams the rows through `mode`. `reference`: of the optimum at this lambda, for gap intervals. Without
    `probes` the probe_train rows are left alone, which nearly halves the work."""
    sae, rows = subject.sae, subject.test_rows
    block = streaming.block_of(subject.acts.doc_ids[rows])
    sums = streaming.init(sae.n_latents, subject.acts.d_model)
    head_sums = {n: streaming.init(sae.n_latents, subject.acts.d_model) for n in heads if n < len(rows)}
    proofs, parts, steps, active = [], [], 0.0, None
    for part, chosen in _chunks(subject, rows, bar):
        x, t, stats = subject.batch(chosen)
        codes, iterations = _solve(subject, mode, knobs, x, t)
        proof = objective.certify(subject.problem, t, codes, knobs.lam or 0.0)
        active = _possibly_active(subject, mode, knobs, proof, active)
        residual, base = decoded(subject, x, t, proof.residual, stats)
        batch = streaming.Batch(x, residual, base, _clipped(subject, codes), block[part])
        batch = batch._replace(**_objectives(subject, mode, codes, proof, knobs, reference, part))
        sums = streaming.update(sums, batch)
        for n in head_sums:
            if part.start < n:
                head_sums[n] = streaming.update(head_sums[n], _first(batch, n - part.start))
        proofs.append((proof.objective, proof.dual))
        parts.append(batch.codes if probes else batch.codes[:0])
        steps += float(iterations.sum())
    own = Reference(*(np.concatenate(column) for column in zip(*proofs, strict=True)))
    train = test = None
    if probes:
        test = _units(subject, scipy.sparse.csr_array(scipy.sparse.vstack(parts)), rows)
        train = _units(subject, _codes_of(subject, mode, knobs, bar), subject.probe_rows)
    return Measured(sums, head_sums, train, test, own, steps / len(rows), active)


def _codes_of(subject: Subject, mode: str, knobs: Knobs, bar: Any) -> scipy.sparse.csr_array:
    parts = [scipy.sparse.csr_array((0, subject.sae.n_latents), dtype=np.float32)]
    if subject.units != "norms":
        for _, chosen in _chunks(subject, subject.probe_rows, bar):
            x, t, _ = subject.batch(chosen)
            parts.append(_clipped(subject, _solve(subject, mode, knobs, x, t)[0]))
    return scipy.sparse.csr_array(scipy.sparse.vstack(parts))


def _units(subject: Subject, codes: scipy.sparse.csr_array, rows: np.ndarray) -> labels.Units:
    rows = rows[: len(codes.indptr) - 1]
    doc_ids = subject.acts.doc_ids[rows]
    if subject.units == "documents":
        return labels.document_units(codes, doc_ids, subject.acts.documents["label"])
    strings = subject.acts.token_strings(subject.acts.token_ids[rows]) if len(rows) else []
    return labels.token_units(codes, doc_ids, strings)


def _objectives(
    subject: Subject,
    mode: str,
    codes: Codes,
    proof: Certificate,
    knobs: Knobs,
    reference: Reference | None,
    part: slice,
) -> dict[str, np.ndarray]:
    """The per-token objective columns of a Batch; none without a lambda."""
    if knobs.lam is None:
        return {}
    l1 = np.abs(np.asarray(subject.problem.fold(codes).values, np.float64)).sum(axis=1)
    found = {"objective": proof.objective, "gap": proof.gap, "l1": l1}
    if mode == "optimal" and reference is None:
        found |= {"gap_lower": np.zeros_like(proof.gap), "gap_upper": proof.gap}
    elif reference is not None:
        found["gap_lower"] = np.maximum(proof.objective - reference.objective[part], 0.0)
        found["gap_upper"] = proof.objective - np.maximum(proof.dual, reference.dual[part])
    return found


def _possibly_active(
    subject: Subject, mode: str, knobs: Knobs, proof: Certificate, active: np.ndarray | None
):
    """Latents not proved inactive: (U_j . theta)_+ + sqrt(2 gap) < lam proves j inactive at every optimum
    (gap-safe test, Ndiaye et al. 2017)."""
    if mode != "optimal" or not knobs.lam:
        return None
    unit = np.asarray(subject.problem.unit)
    c = proof.residual.astype(np.float32) @ unit.T
    c = np.abs(c) if subject.problem.signed else np.maximum(c, 0.0)
    s = np.minimum(1.0, knobs.lam / np.maximum(c.max(axis=1), 1e-30))
    # 1e-5 lam is the float32 product's error, allowed for on the safe side.
    radius = np.sqrt(2 * proof.gap)[:, None] * np.linalg.norm(unit, axis=1)
    reach = (s[:, None] * c).astype(np.float64) + radius + 1e-5 * knobs.lam
    here = (reach >= knobs.lam).any(axis=0) & unit.any(axis=1)
    return here if active is None else active | here


def _first(batch: streaming.Batch, n: int) -> streaming.Batch:
    cut: dict[str, Any] = {name: c if c is None else c[:n] for name, c in batch._asdict().items()}
    return streaming.Batch(**cut)
