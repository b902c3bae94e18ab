"""How much an encoder changed from checkpoint to checkpoint, paired: all are measured on the same tokens, and their
intervals are made of the same resamples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amortjax.metrics import kept, uncertainty
from amortjax.metrics.uncertainty import Estimate
from amortjax.report import trajectories

FOLLOWED = (
    "suboptimality_lower", "suboptimality_upper", "nmse", "l0", "dead_half", "dense@0.1", "df1", "absorption_excess"
)  # fmt: skip


def with_changes(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The rows; those of encoders with NAME_minus_before and NAME_minus_first (and _lo, _hi) of what is FOLLOWED:
    since the step before, and since the first step that could be matched, under the same condition. before_step and
    first_step say which these are. `folder` holds the measurements; what is not there leaves no interval and no
    column."""
    changes: dict[int, dict[str, Any]] = {}
    for line in trajectories.lines(rows).values():
        for condition in dict.fromkeys(row["condition"] for row in line):
            own = [
                r for r in line if r["condition"] == condition and r["mode"] == "amortized" and _matched(r)
            ]
            found = [_estimates(row, folder) for row in own]
            for i in range(1, len(own)):
                more = {}
                for name, j in (("before", i - 1), ("first", 0)):
                    more |= {f"{name}_step": own[j]["step"]} | _change(own[i], found[i], found[j], name)
                changes[id(own[i])] = more
    return [dict(row) | changes.get(id(row), {}) for row in rows]


def _matched(row: Mapping[str, Any]) -> bool:
    return not row.get("unmatchable") and not row.get("reason")


def _estimates(row: Mapping[str, Any], folder: Path) -> dict[str, Estimate]:
    held = kept.load(folder / f"{row['measurement']}.npz") if row.get("measurement") else None
    return held.estimates if held else {}


def _change(
    row: Mapping[str, Any], found: dict[str, Estimate], other: dict[str, Estimate], name: str
) -> dict[str, Any]:
    # The row may have less than its measurement, which other conditions share.
    shown = {key for key in FOLLOWED if row.get(key) is not None}
    own = {key: estimate for key, estimate in found.items() if key in shown}
    return uncertainty.flatten_differences(own, other, name)
