"""Does the model notice? Its loss when an SAE's reconstructions stand at the hook, beside their squared error.

    columns = {"tokens": ..., "scored": ..., ...}              # (documents,) sums of each document, see FIELDS
    found = estimates(columns, block)                          # {"ce_recovered": Estimate, "nmse": ..., ...}

CE and KL are as in SAEBench's core evaluation; every number is a ratio of totals; intervals are over blocks of
documents.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError, StoreError
from amortjax.inference import modes, objective
from amortjax.inference.codes import Codes
from amortjax.inference.modes import MODES, Options
from amortjax.metrics import matching
from amortjax.metrics.bench import Bench
from amortjax.metrics.matching import Setting
from amortjax.metrics.measure import Knobs, Subject, decoded
from amortjax.metrics.streaming import N_BLOCKS
from amortjax.metrics.uncertainty import MIN_DOCUMENTS, N_RESAMPLES, Estimate, resample_weights
from amortjax.saes.sae import SAE, is_transcoder

# Sums of a document. CE over its `scored` tokens (those with a next one), KL and the rest over all its `tokens`;
# special tokens never count. `zero` and `mean`: with zeros, or the mean activation, at the hook.
REFERENCES = ("tokens", "scored", "ce_clean", "ce_zero", "kl_zero", "ce_mean", "kl_mean")
OWN = ("ce", "kl")
REBUILT = ("residual", "base", "l0")  # |x - x_hat|^2, |x - b_out|^2, latents that fire
FIELDS: tuple[str, ...] = (*REFERENCES, *OWN, *REBUILT)  # tokens first: a block without them is never drawn


class Rebuilt(NamedTuple):
    """Reconstructions of n tokens under one mode."""

    x_hat: np.ndarray  # (n, D) float32, raw units
    residual: np.ndarray  # (n,) |x - x_hat|^2
    base: np.ndarray  # (n,) |x - b_out|^2
    l0: np.ndarray  # (n,) int


def check(sae: SAE, acts: Any) -> None:
    """AmortjaxError if its reconstructions can't stand for a store's rows."""
    if is_transcoder(sae):
        raise AmortjaxError(
            f"{sae.info.name} is a transcoder: what it writes is not what it reads, so its output can't stand for "
            "its input; give an SAE"
        )
    if sae.d_in != acts.d_model:
        raise StoreError(
            f"{sae.info.name} takes activations of width {sae.d_in}, the model's have {acts.d_model}: give the "
            "model, layer and hook it was trained on"
        )


def pose(
    sae: SAE,
    acts: Any,
    calibrate_rows: np.ndarray,
    test_rows: np.ndarray,
    options: Options,
    progress: bool = False,
) -> Subject:
    """The SAE on a store's rows, without probes."""
    check(sae, acts)
    nothing = np.zeros(0, np.int64)
    return Subject(
        sae, objective.pose(sae), acts, calibrate_rows, nothing, test_rows, options, "tokens", progress
    )


def settings(bench: Bench) -> dict[str, Setting]:
    """{mode: what brings it to the encoder's L0}, found on the calibration rows and kept, as Section 5 has it."""
    subject = bench.subject
    target = float(subject.calibration[1].l0.mean())
    if not target > 0:
        raise AmortjaxError(
            f"{subject.sae.info.name}: its encoder fires on no calibration token: a wrong layer, hook or scale?"
        )
    found, star = {}, None
    if target <= subject.problem.rank_bound and any(MODES[mode].knob == "lam" for mode in bench.plan.modes):
        star = bench.calibrated("star", lambda: matching.star(subject, target))
    for mode in bench.plan.modes:
        find = lambda mode=mode: matching.at_l0(subject, mode, target, star)  # noqa: E731
        found[mode] = bench.calibrated(f"same_l0 {mode}", find)
    return found


def rebuild(subject: Subject, mode: str, knobs: Knobs, rows: np.ndarray, encoder: Codes) -> Rebuilt:
    """Reconstructions of some rows of the store; `encoder`: the encoder's codes of the same rows."""
    parts = []
    for i in range(0, len(rows), subject.options.chunk):
        chosen = rows[i : i + subject.options.chunk]
        x, t, stats = subject.batch(chosen)
        own = encoder.rows(i, i + len(chosen))
        codes, _ = modes.solve(mode, subject.problem, t, own, knobs.lam or 0.0, knobs.scale, subject.options)
        left = t - subject.problem.fold(codes).csr(np.float64) @ subject.problem.unit64
        error, base = decoded(subject, x, t, left, stats)
        square = lambda v: np.einsum("nd,nd->n", v, v, dtype=np.float64)  # noqa: E731
        parts.append(Rebuilt((x - error).astype(np.float32), square(error), square(base), codes.l0))
    return Rebuilt(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def by_document(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(documents,) sums of values (n,) of documents of so many tokens each, none of them empty."""
    return np.add.reduceat(np.asarray(values, np.float64), np.cumsum(sizes) - sizes)


def block_sums(columns: Mapping[str, np.ndarray], block: np.ndarray) -> np.ndarray:
    """(N_BLOCKS, len(FIELDS)) totals of the blocks; a column that is not there is NaN. AmortjaxError if a document's
    loss is not finite."""
    out = np.full((N_BLOCKS, len(FIELDS)), np.nan)
    for i, name in enumerate(FIELDS):
        if name not in columns:
            continue
        values = np.asarray(columns[name], np.float64)
        if not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values))
            raise AmortjaxError(
                f"{name} is NaN or infinite in {len(bad)} of {len(values)} documents, the first is number {bad[0]}: "
                "the language model overflows with these activations; is the SAE of this model, layer and hook?"
            )
        out[:, i] = np.bincount(block, values, N_BLOCKS)
    return out


def ratios(totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every metric, (R,), from totals (R,) of FIELDS; NaN where it is not defined. The one place of these formulas."""
    t = dict(totals)

    def per(above: np.ndarray, below: np.ndarray) -> np.ndarray:
        return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)

    out = {name: per(t[name], t["scored"]) for name in ("ce_clean", "ce_zero", "ce_mean", "ce")}
    out |= {name: per(t[name], t["tokens"]) for name in ("kl", "kl_zero", "kl_mean")}
    return out | {
        "ce_added": per(t["ce"] - t["ce_clean"], t["scored"]),
        "ce_recovered": per(t["ce_zero"] - t["ce"], t["ce_zero"] - t["ce_clean"]),
        "ce_recovered_mean": per(t["ce_mean"] - t["ce"], t["ce_mean"] - t["ce_clean"]),
        "kl_recovered": per(t["kl_zero"] - t["kl"], t["kl_zero"]),
        "kl_recovered_mean": per(t["kl_mean"] - t["kl"], t["kl_mean"]),
        "nmse": per(t["residual"], t["base"]),
        "l0": per(t["l0"], t["tokens"]),
    }


def estimates(
    columns: Mapping[str, np.ndarray], block: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """Each metric with its draws over blocks of documents, the same resamples for every mode; no draws under
    MIN_DOCUMENTS documents. AmortjaxError if no token has a next one."""
    sums = block_sums(columns, block)
    whole = _totals(sums, np.ones((1, N_BLOCKS)))
    if not whole["scored"][0] > 0:
        raise AmortjaxError(
            "no token has a next one to predict: give longer documents or a larger --max_seq_len"
        )
    values = {name: float(value[0]) for name, value in ratios(whole).items()}
    drawn: dict[str, np.ndarray] = {}
    if len(block) >= MIN_DOCUMENTS:
        drawn = ratios(_totals(sums, resample_weights(sums[:, 0], n_resamples, seed)))
    finite = {name: value if np.isfinite(value) else None for name, value in values.items()}
    return {
        name: Estimate(value, None if value is None else drawn.get(name)) for name, value in finite.items()
    }


def _totals(sums: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """{field: (R,)} totals with `weights` (R, B) times each block."""
    return {name: column for name, column in zip(FIELDS, (weights @ sums).T, strict=True)}


def identity(subject: Subject, mode: str, knobs: Knobs) -> dict[str, Any]:
    """What a mode's reconstructions depend on beside the SAE and the rows."""
    return {"mode": mode, "knobs": list(knobs), "options": dataclasses.asdict(subject.options)}
