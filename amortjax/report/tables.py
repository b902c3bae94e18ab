"""Result rows as files and as tables. `schema` says what a row holds.

write_results(rows, folder)            # folder/results.parquet, .csv, .json, each atomic
rows = read_results(folder)            # [] if there are none yet
print(print_table(rows))               # one block per checkpoint and condition
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.metrics.definitions import ARROWS, METRICS
from amortjax.report.numbers import MISSING, between, grouped_digits, short, with_interval
from amortjax.report.schema import FLAGS, Row, check_row, flagged, grouped, mode_label, order


class Column(NamedTuple):
    header: str  # "|" is where a terminal's two header lines part
    cell: Callable[[Mapping[str, Any]], str]


def _two_lines(key: str) -> str:
    """The label above its arrow."""
    metric = METRICS[key]
    return f"{metric.label}|{ARROWS[metric.direction]}"


def _number(key: str, header: str | None = None) -> Column:
    return Column(header or _two_lines(key), lambda row: short(row.get(key)))


def _interval(key: str, header: str | None = None) -> Column:
    def cell(row: Mapping[str, Any]) -> str:
        return with_interval(row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi"))

    return Column(header or _two_lines(key), cell)


def _bounds(lower: str, upper: str, header: str) -> Column:
    return Column(header, lambda row: between(row.get(lower), row.get(upper)))


def _absorption(row: Mapping[str, Any]) -> str:
    value, chance = row.get("absorption"), row.get("absorption_chance")
    return MISSING if value is None else f"{short(value)} ({short(chance)})"


def _l0_and_difference(row: Mapping[str, Any]) -> str:
    key = "l0_minus_amortized"
    more = with_interval(row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi"))
    return short(row.get("l0")) + ("" if more == MISSING else f" ({more})")


LAMBDA = _number("lam", "lambda|")
L0_MATCHED = Column("L0|(- encoder)", _l0_and_difference)
ABSORPTION = Column("absorption|(chance) ↓", _absorption)
SUBOPTIMALITY = _bounds("suboptimality_lower", "suboptimality_upper", "(P-P*)/P*|↓")
PARTS = (
    _bounds("price_amplitude", "price_amplitude_upper", "ampli-|tude ↓"),
    _bounds("price_support_lower", "price_support_upper", "support|↓"),
)
GAP = _bounds("gap_lower", "gap_upper", "gap P-P*|mean ↓")
GAP_MEDIAN = _bounds("gap_lower_median", "gap_upper_median", "gap P-P*|median ↓")
OWN_GAP = _number("own_gap", "own|gap ↓")
DEAD = _number("dead", "dead|@N ↓")
DEAD_HALF = _interval("dead_half", "dead|half ↓")
DENSE = _number("dense@0.1", "dense|@0.1 ↓")
_OBJECTIVES = (GAP, GAP_MEDIAN, OWN_GAP, _number("certified"), _number("l0"), _interval("nmse"), DEAD)
_PROBES = (_number("f1@1"), _interval("df1"), ABSORPTION)
_LATENTS = (DEAD, DEAD_HALF, DENSE)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "same_lambda": (_number("objective"), SUBOPTIMALITY, *PARTS, *_OBJECTIVES),
    "same_l0": (LAMBDA, L0_MATCHED, _interval("nmse"), _number("fvu"), *_LATENTS, *_PROBES, OWN_GAP),
    "same_nmse": (LAMBDA, _interval("l0"), _number("nmse"), _number("fvu"), *_LATENTS, *_PROBES),
    "trained_lambda": (_number("objective"), SUBOPTIMALITY, *_OBJECTIVES),
    "literal": (
        LAMBDA, _number("density"), _number("nmse_literal", "NMSE|literal ↓"), DEAD, DENSE,
        _number("dense@0.2", "dense|@0.2 ↓"), _number("f1@1"), _number("df1"), ABSORPTION, GAP, OWN_GAP,
    ),
}  # fmt: skip


def held_equal(rows: list[Row]) -> str:
    """What the rows of one condition have in common, in words."""
    condition, first = rows[0]["condition"], rows[0]
    found = {row["lam"] for row in rows if row.get("lam") is not None}
    lam = f"lambda = {short(next(iter(found)))}" if len(found) == 1 else "several lambdas"
    if condition == "same_lambda":
        target = _first(rows, "l0_target")
        chosen = "" if target is None else f", chosen so that the optimum has L0 = {short(target)}"
        return f"same lambda: {lam} for every mode{chosen}"
    if condition == "same_l0":
        return (
            f"same L0: every mode recalibrated to L0 = {short(_first(rows, 'l0_target'))} by its own lambda"
        )
    if condition == "same_nmse":
        return (
            f"same NMSE: every mode brought to NMSE = {short(_first(rows, 'nmse_target'))} by its own lambda"
        )
    if condition == "trained_lambda":
        return f"trained lambda: {lam}, the objective this SAE was trained on"
    if condition == "literal":
        target = _first(rows, "density_target")
        aimed = "" if target is None else f", density target {short(target)}"
        return f"literal: the papers' released choices{aimed}; nothing else is held equal"
    return f"{first['condition']}"


def evaluated(rows: list[Row]) -> str:
    """How much was evaluated, in words; N of dead@N."""
    tokens, documents, latents = (_first(rows, key) for key in ("n_tokens", "n_documents", "n_latents"))
    text = f"N = {grouped_digits(tokens)} tokens of {grouped_digits(documents)} documents"
    text += "" if latents is None else f", {grouped_digits(latents)} latents"
    labels, tasks = _first(rows, "probe_labels"), _first(rows, "n_probe_tasks")
    if labels and tasks:
        text += f"; probes: {tasks} classes from {labels}"
    reason = _first(rows, "probe_reason")
    return text + (f"; no probes: {reason}" if reason else "")


def _first(rows: list[Row], key: str) -> Any:
    return next((row[key] for row in rows if row.get(key) is not None), None)


class Table(NamedTuple):
    """One block, ready to be set as plain text or as markdown."""

    title: str
    about: str
    header: list[str]
    body: list[list[str]]
    notes: list[str]


def make_tables(rows: Iterable[Row]) -> list[Table]:
    """One table per checkpoint and condition; columns in which no row has a value are left out."""
    out = []
    for (checkpoint, _), block in grouped(map(flagged, rows)).items():
        columns = COLUMNS.get(block[0]["condition"], COLUMNS["same_l0"])
        shared = [flag for flag in block[0]["flags"] if all(flag in row["flags"] for row in block)]
        own = [[flag for flag in row["flags"] if flag not in shared] for row in block]
        distinct = dict.fromkeys(flag for flags in own for flag in flags)
        marks = {flag: chr(ord("a") + i) for i, flag in enumerate(distinct)}
        body = []
        for row, flags in zip(block, own, strict=True):
            mark = f" [{','.join(marks[flag] for flag in flags)}]" if flags else ""
            body.append([mode_label(row) + mark, *(column.cell(row) for column in columns)])
        kept = [i for i in range(len(columns) + 1) if any(line[i] != MISSING for line in body)]
        header = ["codes", *(c.header for c in columns)]
        notes = [f"All rows: {FLAGS.get(flag, flag)}." for flag in shared]
        notes += [f"[{mark}] {FLAGS.get(flag, flag)}." for flag, mark in marks.items()]
        title = f"{checkpoint}: {held_equal(block)}"
        body = [[line[i] for i in kept] for line in body]
        out.append(Table(title, evaluated(block), [header[i] for i in kept], body, notes))
    return out


def print_table(rows: Iterable[Row]) -> str:
    """All tables as text for a terminal, about 120 to 140 columns wide."""
    parts = []
    for table in make_tables(rows):
        lines = [[cell.partition("|")[part] for cell in table.header] for part in (0, 2)] + table.body
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = ["  ".join(map(_pad, line, widths, range(len(line)))).rstrip() for line in lines]
        head, rule = len(lines) - len(table.body), "─" * max(map(len, text))
        block = [table.title, table.about, rule, *text[:head], rule, *text[head:], *table.notes]
        parts.append("\n".join(block))
    return "\n\n".join(parts)


def markdown_tables(rows: Iterable[Row], level: int = 3) -> str:
    """The same tables for a markdown page."""
    parts = []
    for table in make_tables(rows):
        header = [cell.replace("-|", "").replace("|", " ").strip() for cell in table.header]
        lines = [f"| {' | '.join(cells)} |" for cells in (header, *table.body)]
        lines.insert(1, "|---" + "|---:" * (len(header) - 1) + "|")
        notes = [f"{note}  " for note in table.notes]
        parts.append(
            "\n".join([f"{'#' * level} {table.title}", "", table.about, "", *lines, "", *notes]).rstrip()
        )
    return "\n\n".join(parts)


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def write_results(rows: Iterable[Row], folder: str | Path, stem: str = "results") -> list[Path]:
    """STEM.parquet, STEM.csv and STEM.json in `folder`, each written whole or not at all; the json, which
    `read_results` reads, last. Non-finite numbers become null."""
    import pandas as pd

    kept = [_plain(flagged(row)) for row in order(rows)]
    for row in kept:
        check_row(row)
    folder = Path(folder)
    paths = [folder / f"{stem}.{ending}" for ending in ("parquet", "csv", "json")]
    frame = pd.DataFrame([_flat(row) for row in kept])
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomically(paths[0], buffer.getvalue())
    write_atomically(paths[1], frame.to_csv(index=False))
    write_atomically(paths[2], json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return paths


def read_results(folder: str | Path, stem: str = "results") -> list[Row]:
    """The rows of STEM.json, [] if it does not exist; flags come back as a list."""
    path = Path(folder) / f"{stem}.json"
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        for row in rows:
            check_row(row)
    except (ValueError, TypeError, AttributeError) as error:
        raise AmortjaxError(
            f"{path} is not a results file of amortjax ({error}): move it away and run again"
        ) from None
    return rows


def _plain(value: Any) -> Any:
    """JSON's types only: NumPy scalars and arrays unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _flat(row: Mapping[str, Any]) -> Row:
    """One level: dicts become `key_name` columns, lists become text joined by ";"."""
    out: Row = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            out |= {f"{key}_{name}": item for name, item in _flat(value).items()}
        else:
            out[key] = ";".join(map(str, value)) if isinstance(value, list) else value
    return out
