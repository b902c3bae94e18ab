"""The step sweep's results as tables and words (rows of `launch.step_sweep`).

Beside `schema`'s columns a row has start (encoder, alista; none for the optimum), steps (0: the start itself),
forwards, jaccard_encoder, jaccard_previous, jaccard_optimal and, at the same lambda, rises and decay.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amortjax.files import write_atomically
from amortjax.metrics.definitions import METRICS
from amortjax.report.numbers import MISSING, between, percent, short, with_interval
from amortjax.report.schema import FLAGS, Row, flagged, grouped
from amortjax.report.tables import evaluated, held_equal
from amortjax.report.trajectories import Table, markdown

STARTS = {"encoder": "encoder", "alista": "ALISTA"}
TARGET = 0.01  # of (P - P*) / P*, for which the steps that it takes are told
EARLY = (5, 10)  # steps between which the local rate is taken that predicts the rest
TITLE = "Semi-amortized inference, step by step"


def start_of(row: Mapping[str, Any]) -> str:
    return STARTS.get(str(row.get("start")), "optimum")


def lines(block: Iterable[Row]) -> dict[str, list[Row]]:
    """{start: its rows, by steps} of one checkpoint and condition; the optimum is not in it."""
    found: dict[str, list[Row]] = {}
    for row in sorted((row for row in block if row.get("start")), key=lambda row: row["steps"]):
        found.setdefault(row["start"], []).append(row)
    return {start: found[start] for start in STARTS if start in found}


def optimum_of(block: Iterable[Row]) -> Row:
    return next((row for row in block if row["mode"] == "optimal"), {})


# --- tables ---


def _number(key: str) -> Callable[[Row], str]:
    return lambda row: short(row.get(key))


def _interval(key: str) -> Callable[[Row], str]:
    return lambda row: with_interval(row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi"))


def _gap(row: Row) -> str:
    return between(row.get("suboptimality_lower"), row.get("suboptimality_upper"))


def _absorption(row: Row) -> str:
    value, chance = row.get("absorption"), row.get("absorption_chance")
    return MISSING if value is None else f"{short(value)} ({short(chance)})"


def _marks(row: Row) -> str:
    """The flags that tell a row from others of its condition."""
    return ", ".join(flag for flag in ("unmatchable", "calibration_off", "l0_off") if flag in row["flags"])


MEASURED: dict[str, Callable[[Row], str]] = {
    "start": start_of,
    "steps": lambda row: MISSING if row.get("steps") is None else str(row["steps"]),
    "λ": _number("lam"),
    "L0": _number("l0"),
    "(P-P*)/P* ↓": _gap,
    "own gap ↓": _number("own_gap"),
    "NMSE ↓": _interval("nmse"),
    "dead@N ↓": _number("dead"),
    "dead, half ↓": _interval("dead_half"),
    "ΔF1 ↓": _interval("df1"),
    "absorption (chance) ↓": _absorption,
    "flags": _marks,
}
CHANGED: dict[str, Callable[[Row], str]] = {
    "start": start_of,
    "steps": MEASURED["steps"],
    "forwards": _number("forwards"),
    "in common with the encoder": _interval("jaccard_encoder"),
    "with fewer steps": _interval("jaccard_previous"),
    "with the optimum": _interval("jaccard_optimal"),
    "P rises": _number("rises"),
    "gap's factor a step": _number("decay"),
}


def tables(rows: Iterable[Row]) -> list[Table]:
    """Two for each checkpoint and condition: the measures, and what the steps change and cost."""
    out = []
    for (checkpoint, condition), block in grouped(map(flagged, rows)).items():
        block = sorted(block, key=lambda row: list(STARTS).index(row["start"]) if row.get("start") else -1)
        out.append(_table(f"{checkpoint}: {held_equal(block)}", MEASURED, block))
        name = f"{checkpoint}, {condition.replace('_', ' ')}: supports and cost"
        out.append(_table(name, CHANGED, block))
    return out


def _table(title: str, columns: Mapping[str, Callable[[Row], str]], block: Sequence[Row]) -> Table:
    """Without columns in which no row has anything."""
    cells = {name: [cell(row) for row in block] for name, cell in columns.items()}
    shown = {name: column for name, column in cells.items() if any(c not in (MISSING, "") for c in column)}
    return Table(title, list(shown), [list(line) for line in zip(*shown.values(), strict=True)])


# --- words ---


def sentences(rows: Iterable[Row]) -> list[str]:
    """What the rows show, for each checkpoint and start; nothing is said that no row holds."""
    out = []
    blocks = grouped(map(flagged, rows))
    for (checkpoint, condition), block in blocks.items():
        best = optimum_of(block)
        for start, way in lines(block).items():
            where = f"{checkpoint}, {condition.replace('_', ' ')}, from {STARTS[start]}"
            said = about_gap(way) if condition == "same_lambda" else []
            said += [*about_nmse(way, best), *about_agreement(way, best), *about_dead(way, best)]
            out += [f"{where}: {sentence}" for sentence in said]
    return out + about_cost([row for block in blocks.values() for row in block])


def settles(way: Sequence[Row], inside: Callable[[Row], bool]) -> int | None:
    """The least number of steps from which on all rows are inside; None if the last is not."""
    found = None
    for row in reversed(way):
        if not inside(row):
            break
        found = row["steps"]
    return found


def about_gap(way: Sequence[Row]) -> list[str]:
    known = [row for row in way if row.get("suboptimality_upper") is not None]
    if len(known) < 2:
        return []
    first, last = known[0], known[-1]
    text = f"(P-P*)/P* is {_gap(first)} at {first['steps']} steps and {_gap(last)} at {last['steps']}"
    at = settles(known, lambda row: row["suboptimality_upper"] <= TARGET)
    text += f"; at most {percent(TARGET)} " + (f"from {at} steps on" if at is not None else "is not reached")
    guess = predicted(known)
    if guess is not None:
        text += f" (the rate between {EARLY[0]} and {EARLY[1]} steps promised {guess:.0f})"
    rising = max((row["rises"] for row in known if row.get("rises") is not None), default=None)
    if rising is None:
        return [f"{text}."]
    never = "P never rises, on any token"
    return [f"{text}; {never if rising == 0 else f'P rises on up to {percent(rising)} of the tokens'}."]


def predicted(way: Sequence[Row]) -> float | None:
    """Steps to TARGET, at the geometric rate between EARLY steps; None if they were not measured or it is reached."""
    at = {row["steps"]: row["suboptimality_upper"] for row in way}
    a, b = (at.get(steps) for steps in EARLY)
    if not a or not b or not TARGET < b < a:
        return None
    return EARLY[1] + math.log(b / TARGET) / math.log(a / b) * (EARLY[1] - EARLY[0])


def about_nmse(way: Sequence[Row], best: Mapping[str, Any]) -> list[str]:
    known = [row for row in way if row.get("nmse") is not None]
    values = [row["nmse"] for row in known]
    if len(values) < 2:
        return []
    changes = [b - a for a, b in itertools.pairwise(values)]
    how = (
        "falls with every number of steps" if max(changes) < 0
        else "rises with every number of steps" if min(changes) > 0
        else "is not monotone"
    )  # fmt: skip
    ends = [f"{short(row['nmse'])} at {row['steps']}" for row in (known[0], known[-1])]
    for name, pick in (("least", min), ("greatest", max)):
        row = pick(known, key=lambda row: row["nmse"])
        if row["nmse"] not in (values[0], values[-1]):
            ends.append(f"{name} {short(row['nmse'])} at {row['steps']}")
    optimum = f"; the optimum's is {short(best['nmse'])}" if best.get("nmse") is not None else ""
    return [f"NMSE {how}: {', '.join(ends)}{optimum}."]


def about_agreement(way: Sequence[Row], best: Mapping[str, Any]) -> list[str]:
    """From how many steps on each number lies in the optimum's interval; dead latents to less than one of them."""
    said = []
    for key, name in (
        ("nmse", "NMSE"),
        ("dead_half", "dead latents"),
        ("df1", "ΔF1"),
        ("absorption", "absorption"),
    ):
        lo, hi = best.get(f"{key}_lo"), best.get(f"{key}_hi")
        known = [row for row in way if row.get(key) is not None]
        if lo is None or hi is None or not known:
            continue
        slack = 1 / best["n_latents"] if key == "dead_half" else 0.0
        low, high = lo - slack, hi + slack
        at = settles(known, lambda row, key=key, low=low, high=high: low <= row[key] <= high)
        said.append(f"{name} {'not even at the last' if at is None else f'from {at}'}")
    return [f"within the optimum's interval, by steps: {'; '.join(said)}."] if said else []


def about_dead(way: Sequence[Row], best: Mapping[str, Any]) -> list[str]:
    known = [row for row in way if row.get("dead") is not None]
    if len(known) < 2:
        return []
    if not any(row["dead"] for row in (*known, best) if row.get("dead") is not None):
        return ["no latent is dead on these tokens, with any number of steps."]
    ends = [f"{short(row['dead'])} at {row['steps']}" for row in (known[0], known[1], known[-1])]
    optimum = f"; the optimum's is {short(best['dead'])}" if best.get("dead") is not None else ""
    return [f"dead@N is {', '.join(dict.fromkeys(ends))}{optimum}."]


def about_cost(rows: Sequence[Row]) -> list[str]:
    first = {row["start"]: row for row in reversed(rows) if row.get("start") and row["steps"] == 0}
    if not any(row.get("start") for row in rows):
        return []
    starts = [f"{STARTS[start]} {short(row['forwards'])}" for start, row in first.items()]
    more = f"; the starts cost {' and '.join(starts)}" if starts else ""
    return [f"A step costs two encoder forwards (4 D M operations a token against 2 D M){more}."]


# --- the page ---

PAGE = """# {title}

{about}

## In words

{said}

## Pictures

{pictures}

## Tables

{tables}

## What the numbers mean

{meanings}

Steps are ISTA's (step size 1/L), from the encoder's code or from that of an ALISTA network, whose steps and thresholds
were trained at λ* on the calibration documents. *same lambda*: all at λ*, where the certified optimum has the encoder's
L0; few steps fire other numbers of latents there, so dead latents and probes can't be compared across rows. *same l0*:
every number of steps by its own λ; 0 steps from the encoder are the encoder. Supports are compared with the optimum at
λ*. Intervals are 95 %, over documents.{flags}
"""


def write_page(rows: Sequence[Row], folder: Path, about: Mapping[str, str], pictures: Iterable[Path]) -> Path:
    """report.md; returns its path. Written atomically."""
    shown = [Path(os.path.relpath(p, folder)).as_posix() for p in pictures if p.suffix == ".png"]
    marked = [flagged(row) for row in rows]
    flags = dict.fromkeys(flag for row in marked for flag in row["flags"])
    measured = [f"| {key} | {_cell(value)} |" for key, value in about.items()]
    if marked:
        measured.append(f"| evaluated | {evaluated(marked)} |")
    text = PAGE.format(
        title=TITLE,
        about="\n".join(["| measured | |", "|---|---|", *measured]),
        said="\n".join(f"- {sentence}" for sentence in sentences(rows)),
        pictures="\n\n".join(f"![{TITLE}]({path})" for path in shown),
        tables="\n\n".join(f"### {table.title}\n\n{markdown(table)}" for table in tables(rows)),
        meanings="\n".join(_meanings(rows)),
        flags="".join(f"\n\n`{flag}`: {FLAGS.get(flag, flag)}." for flag in flags),
    )
    write_atomically(folder / "report.md", text)
    return folder / "report.md"


def _meanings(rows: Sequence[Row]) -> list[str]:
    held = [m for key, m in METRICS.items() if any(row.get(key) is not None for row in rows)]
    lines = [f"| {_cell(m.header)} | {_cell(m.text)} | `{m.id}` |" for m in held]
    return ["| number | meaning | definition |", "|---|---|---|", *lines]


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
