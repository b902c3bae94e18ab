"""The row of a result table: one per (checkpoint, mode, condition), a plain dict.

    checkpoint    display name of the SAE               lam          lambda in use, half form (None: has none)
    mode          key of MODES                          l0_target    what same_l0 was calibrated to
    condition     key of CONDITIONS                     nmse_target  what same_nmse was calibrated to
    protocol      controlled | literal                  density_target  what `literal` was calibrated to
    variant, n_latents, d_model                         l0_calibration  achieved on the calibration rows
    steps         of semi_amortized and non_amortized   record       the Objective record, as a dict
    start         of step_sweep's steps: encoder | alista
    n_tokens, n_documents   evaluated                   flags        tuple of keys of FLAGS, or of free text
    seconds, seed, tol, versions, ...                   any metric of metrics.definitions.METRICS

A metric NAME may have `NAME_lo` and `NAME_hi` (95 % interval), `NAME_spread` (over probe refits) and
`NAME_minus_amortized`, `..._lo`, `..._hi` (paired difference). Missing keys and None are shown as "-".
Further keys are kept in the files and not shown.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from amortjax.errors import AmortjaxError
from amortjax.metrics.uncertainty import MIN_DOCUMENTS

Row = dict[str, Any]

# In display order. "{steps}" is filled in from the row.
MODES = {
    "amortized": "encoder",
    "encoder_scaled": "encoder, one scale",
    "encoder_refit": "encoder support, refit",
    "semi_amortized": "semi, {steps} steps",
    "non_amortized": "ISTA-{steps} from zero",
    "optimal": "optimum",
    "optimal_refit": "optimum support, refit",
    "omp": "OMP (best found)",
}
CONDITIONS = ("same_lambda", "same_l0", "same_nmse", "trained_lambda", "literal")

# Written as footnotes under a table. "{...}" is filled in from the row.
FLAGS = {
    "best_found": "best found, not certified",
    "uncertified": "some of its tokens are not certified to the tolerance",
    "l0_off": "its L0 on the evaluated tokens is more than 2 % off the target, and off the encoder's",
    "unmatchable": "no lambda reaches the target (an optimum fires at most as many latents as the rank)",
    "calibration_off": "its calibration ended more than 1 % off the target",
    "few_documents": "fewer than 50 documents: no intervals",
    "few_calibration_tokens": "lambda was calibrated on few tokens",
    "shrinkage_mismatch": "its training had no L1 term: the lasso gap includes shrinkage mismatch",
    "trained_on_unknown": "what this SAE was trained on is not known: it may have seen these tokens",
    "lm_train_unknown": "other package versions than the language model's: it may have seen these documents",
    "batch_rule": "codes are the largest of each evaluation batch",
}
L0_TOLERANCE = 0.02


def mode_label(row: Mapping[str, Any]) -> str:
    """ "ISTA-200 from zero" for non_amortized with 200 steps; an unknown mode is its own label."""
    label = MODES.get(str(row["mode"]), str(row["mode"]))
    if row.get("start") == "alista":
        label = label.replace("semi", "ALISTA")
    steps = row.get("steps")
    if steps is None:
        return label.replace("-{steps}", "").replace(", {steps} steps", "-amortized")
    return label.format(steps=int(steps))


def order(rows: Iterable[Row]) -> list[Row]:
    """Rows in display order: checkpoints as they come, then conditions, then modes."""
    rows = list(rows)
    checkpoints = list(dict.fromkeys(row["checkpoint"] for row in rows))
    modes, conditions = list(MODES), list(CONDITIONS)

    def rank(row: Row) -> tuple[int, int, int]:
        condition = conditions.index(row["condition"]) if row["condition"] in conditions else len(conditions)
        mode = modes.index(row["mode"]) if row["mode"] in modes else len(modes)
        return checkpoints.index(row["checkpoint"]), condition, mode

    return sorted(rows, key=rank)


def grouped(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """{(checkpoint, condition): its rows}, in display order."""
    out: dict[tuple[str, str], list[Row]] = {}
    for row in order(rows):
        out.setdefault((row["checkpoint"], row["condition"]), []).append(row)
    return out


def check_row(row: Row) -> None:
    missing = [key for key in ("checkpoint", "mode", "condition") if not row.get(key)]
    if missing:
        raise AmortjaxError(f"a result row lacks {', '.join(missing)}: {sorted(row)}")


def _l0_off(row: Row) -> float:
    """How far, relatively, a row is off in L0 on the evaluated tokens: from the target or from the encoder,
    whichever is nearer, because both move together when the evaluated tokens are denser than the calibration
    tokens. The encoder is on target if it was so there."""
    target, l0 = row.get("l0_target"), row.get("l0")
    if not target or l0 is None:
        return 0.0
    off = [abs(l0 / target - 1)]
    more, there = row.get("l0_minus_amortized"), row.get("l0_calibration")
    # Beside the encoder only if the encoder is what was matched.
    if more is not None and l0 > more and abs((l0 - more) / target - 1) <= 0.1:
        off.append(abs(more / (l0 - more)))
    if row["mode"] == "amortized" and there is not None:
        off.append(abs(there / target - 1))
    return min(off)


def flagged(row: Row) -> Row:
    """The row with the flags that follow from its numbers added: best_found, l0_off, few_documents and, for
    the optimum, uncertified."""
    flags: list[str] = list(row.get("flags") or ())
    if row["mode"] == "omp":
        flags.append("best_found")
    if row["mode"] == "optimal" and row.get("certified") is not None and row["certified"] < 1:
        flags.append("uncertified")
    if row["condition"] == "same_l0" and "unmatchable" not in flags and _l0_off(row) > L0_TOLERANCE:
        flags.append("l0_off")
    if row.get("n_documents") is not None and row["n_documents"] < MIN_DOCUMENTS:
        flags.append("few_documents")
    return {**row, "flags": tuple(dict.fromkeys(flags))}
