"""How the claims look at result rows: SAEs by condition and mode, trainings by step, sweeps by number of steps.

Rows are those of `claims_rows.read`; what a view needs and a row lacks leaves that row out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from amortjax.report.evidence import Row, Triple, apart, number, triple
from amortjax.report.schema import MODES

Rows = Sequence[Row]
OFF = {"l0_off", "unmatchable", "calibration_off"}


def of(rows: Rows, *sources: str) -> list[Row]:
    return [row for row in rows if row.get("source") in sources]


def flags(row: Row) -> set[str]:
    found = row.get("flags")
    return set(map(str, found)) if isinstance(found, list | tuple) else set()


def matched(row: Row) -> bool:
    """At the L0 it was to be brought to, as far as the row knows."""
    return not flags(row) & OFF and not too_dense(row)


def too_dense(row: Row) -> bool:
    """Of an encoder whose L0 no optimum has, or none is brought to."""
    return row.get("unmatchable") is True or any(flag.startswith("unmatchable") for flag in flags(row))


class Pair(NamedTuple):
    """One SAE's encoder and another mode, under one condition."""

    subject: str
    encoder: Row
    other: Row


def saes(rows: Rows) -> list[Row]:
    """Rows of evaluated SAEs: section5's, and of section43 those of finished trainings."""
    return [*of(rows, "section5"), *(row for row in of(rows, "section43") if row.get("final") is True)]


def pairs(rows: Rows, condition: str, mode: str) -> Iterator[Pair]:
    """Each SAE's encoder with `mode`, of what was measured under `condition`."""
    for subject, modes in by_mode(saes(rows), condition).items():
        if "amortized" in modes and mode in modes:
            yield Pair(subject, modes["amortized"], modes[mode])


def by_mode(rows: Iterable[Row], condition: str) -> dict[str, dict[str, Row]]:
    """{subject: {mode: row}} of one condition."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.get("condition") == condition:
            found.setdefault(str(row["subject"]), {})[str(row.get("mode"))] = row
    return found


def at_equal_l0(rows: Rows, mode: str) -> tuple[list[Pair], list[str]]:
    """The pairs whose mode is at the encoder's L0, and the names of those that missed it."""
    both = list(pairs(rows, "same_l0", mode))
    off = [f"{pair.subject}, {MODES.get(mode, mode).format(steps=pair.other.get('steps'))}" for pair in both]
    missed = [name for name, pair in zip(off, both, strict=True) if not matched(pair.other)]
    return [pair for pair in both if matched(pair.other)], missed


def gap(row: Row) -> Triple | None:
    """(P - P*)/P*, known from both sides, with the sampling error of both."""
    return triple(row, "suboptimality_upper", "suboptimality_lower", "suboptimality_upper")


def certified_fall(way: "Way", condition: str) -> Triple | None:
    """(P - P*)/P* at the first step minus that at the last, paired, with what the certificates leave open."""
    rise = way.change(condition, "suboptimality_upper")
    wide = [_open(block.get(condition, {})) for block in (way.first, way.last)]
    if rise is None or rise.lo is None or rise.hi is None or None in wide:
        return None
    first, last = (width or 0.0 for width in wide)
    return Triple(-rise.value, -rise.hi - first, -rise.lo + last)


def _open(row: Row) -> float | None:
    low, high = number(row, "suboptimality_lower"), number(row, "suboptimality_upper")
    return None if low is None or high is None else high - low


# --- trainings ---


class Way(NamedTuple):
    """One training's encoder, at its first and its last step that could be compared."""

    subject: str
    variant: str
    first: Mapping[str, Row]  # {condition: the encoder's row}
    last: Mapping[str, Row]

    def change(self, condition: str, key: str) -> Triple | None:
        """Of the last step from the first, paired; None if its rows have none."""
        a, b = self.first.get(condition, {}), self.last.get(condition, {})
        return triple(b, f"{key}_minus_first") if a and b.get("first_step") == a.get("step") else None


def ways(rows: Rows) -> list[Way]:
    """Trainings with at least two checkpoints whose encoders are not too dense to be matched."""
    out = []
    for line, steps in trainings(rows).items():
        usable = {step: block for step, block in steps.items() if not any(map(too_dense, block.values()))}
        if len(usable) > 1:
            ordered = sorted(usable)
            out.append(Way(line.name, line.variant, usable[ordered[0]], usable[ordered[-1]]))
    return out


class Line(NamedTuple):
    variant: str
    name: str


def trainings(rows: Rows) -> dict[Line, dict[int, dict[str, Row]]]:
    """{training: {step: {condition: the encoder's row}}} of section43."""
    found: dict[Line, dict[int, dict[str, Row]]] = {}
    own = of(rows, "section43")
    several = len({row["folder"] for row in own}) > 1
    for row in own:
        step, variant = row.get("step"), str(row.get("variant"))
        where = f" ({row['folder']})" if several else ""
        line = Line(variant, f"{variant} {row.get('sparsity')}{where}")
        if row.get("mode") == "amortized" and isinstance(step, int) and not row.get("reason"):
            found.setdefault(line, {}).setdefault(step, {})[str(row.get("condition"))] = row
    return found


def risen(way: Way, key: str, conditions: Sequence[str] = ("same_l0", "literal")) -> Triple | None:
    """The last step's number minus the first's, of the first condition that has both; paired where that is known."""
    for condition in conditions:
        change = way.change(condition, key)
        if change is not None:
            return change
        a, b = (triple(block.get(condition, {}), key) for block in (way.first, way.last))
        if a is not None and b is not None:
            return apart(b, a)
    return None


# --- steps ---


def sweeps(rows: Rows, condition: str) -> dict[str, tuple[Row, dict[int, Row]]]:
    """{subject: (the optimum's row, {steps: row} from the encoder)}."""
    best: dict[str, Row] = {}
    steps: dict[str, dict[int, Row]] = {}
    for row in of(rows, "step_sweep"):
        n, name = number(row, "steps"), str(row["subject"])
        # No steps are the encoder, which was brought to nothing.
        if row.get("condition") != condition or not (matched(row) or n == 0):
            continue
        if row.get("mode") == "optimal":
            best[name] = row
        elif row.get("start") == "encoder" and n is not None:
            steps.setdefault(name, {})[int(n)] = row
    return {name: (best.get(name, {}), dict(sorted(own.items()))) for name, own in steps.items()}


def middle_tolerance(rows: Iterable[Row]) -> list[Row]:
    """Of each subject's rows of dead_audit the one at 1e-4, else the one in the middle."""
    found: dict[str, dict[float, Any]] = {}
    for row in rows:
        tol = number(row, "tol")
        if tol is not None:
            found.setdefault(str(row["subject"]), {})[tol] = row
    return [own.get(1e-4) or own[sorted(own)[len(own) // 2]] for own in found.values()]
