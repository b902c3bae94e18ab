"""The price of the encoder rung by rung: every rung's codes of the test tokens, and the steps between rungs.

A rung gives, for a chunk of tokens, a problem, targets and codes (`Coded`): the last rung's dictionary is another
one. Whatever was measured of a rung is kept on disk, and read back even when it was made now, so that a run that was
killed and one that was not give equal numbers.
"""

import dataclasses
import io
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.files import write_atomically
from amortjax.inference import gaps, objective
from amortjax.inference.api import bar_of, encode_codes
from amortjax.inference.calibrate import Calibration
from amortjax.inference.codes import Codes, concatenate
from amortjax.inference.gaps import Proof
from amortjax.inference.objective import Problem
from amortjax.metrics import kept, matching, streaming, uncertainty
from amortjax.metrics.bench import Bench
from amortjax.metrics.measure import Knobs, Subject, decoded, measure

PARTS = ("price", "missed", "spurious", "rescaled", "false_fire", "firings")
RECONSTRUCTION = ("amortized", "encoder_refit", "optimal_refit", "omp")


class Coded(NamedTuple):
    """A chunk's codes in the SAE's units, with the problem and the targets t (n, D) that they are of."""

    problem: Problem
    t: np.ndarray
    codes: Codes


# (t (n, D), the encoder's codes) -> Coded
Coder = Callable[[np.ndarray, Codes], Coded]


class Optimum(NamedTuple):
    """The certified codes of the test tokens on the SAE's own dictionary, and their proof."""

    codes: Codes
    proof: Proof


def evaluate(
    subject: Subject, code: Coder, lam: float, optimum: Optimum | None, seed: int, label: str
) -> tuple[kept.Kept, Codes, dict[str, np.ndarray]]:
    """A rung on the test tokens: metrics, codes, and, against the optimum, each latent's share of the price (PARTS,
    each (M,) summed over the tokens, objective units). Without an optimum there is no split and no share."""
    sae, rows, began = subject.sae, subject.test_rows, time.monotonic()
    block = streaming.block_of(subject.acts.doc_ids[rows])
    sums = streaming.init(sae.n_latents, subject.acts.d_model)
    shares = {name: np.zeros(sae.n_latents) for name in PARTS}
    proofs, codes, slack = [], [], 0.0
    with bar_of(subject.progress, len(rows), label) as bar:
        for i in range(0, len(rows), subject.options.chunk):
            part = slice(i, min(i + subject.options.chunk, len(rows)))
            x, t, stats = subject.batch(rows[part])
            made = code(t, encode_codes(sae, x, subject.options.chunk))
            found = objective.certify(made.problem, made.t, made.codes, lam)
            proofs.append(gaps.proof_of(made.problem, found, lam))
            residual, base = decoded(subject, x, t, found.residual, stats)
            batch = streaming.Batch(x, residual, base, made.codes.csr(), block[part])
            batch = batch._replace(objective=proofs[-1].objective, gap=found.gap)
            if optimum is not None:
                more, own = _against(made, lam, proofs[-1], optimum, part)
                batch = batch._replace(**more)
                slack += float(own.slack.sum())
                for name in PARTS[:-1]:
                    shares[name] += getattr(own, name)
            shares["firings"] += np.diff(batch.codes.tocsc().indptr)
            sums = streaming.update(sums, batch)
            codes.append(made.codes)
            bar.update(part.stop - part.start)
    n_documents = len(np.unique(subject.acts.doc_ids[rows]))
    values: dict[str, Any] = dict(streaming.finalise(sums, subject.options.tol))
    values |= {"n_documents": n_documents, "seconds": round(time.monotonic() - began, 2)}
    if optimum is not None:
        values |= {f"price_{name}": float(shares[name].sum()) / len(rows) for name in PARTS[1:-1]}
        values["price_slack"] = slack / len(rows)
    proof = proofs[0]._replace(
        objective=np.concatenate([p.objective for p in proofs]), dual=np.concatenate([p.dual for p in proofs])
    )
    found = uncertainty.estimates(sums, n_documents, seed=seed)
    return kept.Kept(values, found, proof), concatenate(codes), shares


def _against(made: Coded, lam: float, own: Proof, optimum: Optimum, part: slice):
    """Amplitude and support of a chunk, with the gap's interval; and the price latent by latent."""
    best = optimum.proof.rows(part)
    split = gaps.split(made.problem, made.t, made.codes, lam, own, best)
    found = gaps.interval(own, best, own._replace(objective=split.objective))
    more = {name: getattr(split, name) for name in streaming.PARTS}
    more |= {"gap_lower": found.lower, "gap_upper": found.upper}
    reference = optimum.codes.rows(part.start, part.stop)
    return more, gaps.per_latent(made.problem, made.t, made.codes, reference, lam)


def steps(
    proofs: Mapping[str, Proof], optimum: str, block: np.ndarray, n_documents: int, seed: int
) -> dict[str, dict[str, Any]]:
    """{rung: columns} of rungs in order, the first the encoder; `optimum` is that on the SAE's own dictionary.

    excess_lower, excess_upper: (sum P - sum P*) / sum P*, P* replaced by P of the certified code and by its dual
    value; of another dictionary's rung it may be negative. step: mean P of the rung before minus the rung's own.
    share: step over the whole price, the encoder's mean P minus the optimum's. left: what is left of the price.
    Bounds `_lo` and `_hi` from a bootstrap over blocks of documents, paired over rungs; none under 50 documents.
    Nothing is clipped.
    """
    names = list(proofs)
    tokens = np.bincount(block, minlength=streaming.N_BLOCKS)
    weights = np.ones((1, streaming.N_BLOCKS))
    if n_documents >= uncertainty.MIN_DOCUMENTS:
        weights = np.concatenate([weights, uncertainty.resample_weights(tokens, seed=seed)])
    mean = lambda a: (weights @ np.bincount(block, a, streaming.N_BLOCKS)) / (weights @ tokens)  # noqa: E731
    p = {name: mean(proof.objective) for name, proof in proofs.items()}
    best, dual = p[optimum], mean(proofs[optimum].dual)
    whole = p[names[0]] - best
    out: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(names):
        columns = {
            "objective": p[name],
            "excess_lower": (p[name] - best) / best,
            "excess_upper": np.divide(p[name] - dual, dual, out=np.full_like(dual, np.inf), where=dual > 0),
            "left": _share(p[name] - best, whole),
        }
        if i:
            step = p[names[i - 1]] - p[name]
            columns |= {"step": step, "share": _share(step, whole)}
        out[name] = {}
        for key, draws in columns.items():
            out[name] |= _with_bounds(key, draws)
    return out


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole where the encoder has a price at all, else NaN."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _with_bounds(key: str, draws: np.ndarray) -> dict[str, float | None]:
    """The value (first of draws) and the percentiles of the rest."""
    value = float(draws[0]) if np.isfinite(draws[0]) else None
    bounds = (None, None)
    if len(draws) > 1 and np.isfinite(draws).all():
        tail = (1 - uncertainty.LEVEL) / 2
        bounds = tuple(float(q) for q in np.quantile(draws[1:], [tail, 1 - tail]))
    return {key: value, f"{key}_lo": bounds[0], f"{key}_hi": bounds[1]}


def reconstruction(bench: Bench, star: Calibration | None, l0: float) -> list[dict[str, Any]]:
    """Rows of condition same_l0: the encoder, its support refitted, the optimum's support refitted at the lambda
    that gives it the encoder's L0, and OMP of as many latents. Squared error only, no lambda is compared."""
    subject, rows, base = bench.subject, [], None
    for mode in RECONSTRUCTION:
        find = lambda mode=mode: matching.at_l0(subject, mode, l0, star)  # noqa: E731
        setting = bench.calibrated(f"ladder same_l0 {mode} {star and star.lam}", find)
        if not setting.evaluate:
            continue
        found = _reconstructed(bench, mode, setting.knobs)
        rows.append(_reconstruction_row(bench, mode, setting, found, base))
        base = base or found.estimates
    return rows


def _reconstructed(bench: Bench, mode: str, knobs: Knobs) -> kept.Kept:
    subject, seed = bench.subject, bench.plan.seed
    key = kept.key_of(bench.identity | {"ladder": mode, "knobs": knobs})
    path = bench.folder and bench.folder / f"reconstruction_{mode}_{key}.npz"
    found = kept.load(path) if path else None
    if found is not None:
        return found
    with bar_of(subject.progress, len(subject.test_rows), f"same L0: {mode}") as bar:
        made = measure(subject, mode, knobs, probes=False, bar=bar)
    n_documents = len(np.unique(subject.acts.doc_ids[subject.test_rows]))
    values = dict(streaming.finalise(made.sums, subject.options.tol)) | {"n_documents": n_documents}
    estimates = uncertainty.estimates(made.sums, n_documents, seed=seed)
    return stored(path, kept.Kept(values, estimates, made.proof))


def _reconstruction_row(bench: Bench, mode: str, setting: Any, found: kept.Kept, base: Any) -> dict[str, Any]:
    wanted = ("nmse", "fvu", "l0", "density", "dead_half", "dense@0.1")
    chosen = {name: found.estimates[name] for name in wanted}
    record = dataclasses.replace(bench.subject.problem.record, lam=setting.knobs.lam)
    row = {"mode": mode, "condition": "same_l0", "lam": setting.knobs.lam, "flags": setting.flags}
    row |= setting.columns | {"record": dataclasses.asdict(record)}
    row |= {key: found.values[key] for key in ("dead", "n_tokens", "n_documents")}
    row |= uncertainty.flatten(chosen)
    return row | (uncertainty.flatten_differences(chosen, base) if base else {})


# --- on disk ---


def stored(path: Path | None, found: kept.Kept) -> kept.Kept:
    """What a later run will read: draws are kept in float32."""
    if path is None:
        return found
    kept.save(path, found)
    return kept.load(path) or found


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray] | None:
    """None if there is no such file, it can't be read, or lacks one of `names` (it is then made again)."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if all(name in found for name in names) else None
