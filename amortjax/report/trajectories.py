"""Section 4.3's results as tables and words: how each number changes while SAEs train (rows of `launch.section43`).

Beside `schema`'s columns a row has variant, sparsity ("k=20"), sparsity_value, step, final, path, and where they apply
gap_to_ista, relative_gap_to_ista (both signed), unmatchable, reason; NAME_minus_before and NAME_minus_first with _lo
and _hi, paired, since before_step and first_step. The lasso gap is read under the first condition that has one; what is
compared at equal L0 under `same_l0`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from amortjax.files import write_atomically
from amortjax.report.numbers import MISSING, between, short, with_interval
from amortjax.report.schema import Row

GAP_CONDITIONS = ("same_lambda", "trained_lambda", "literal")
MATCHED_CONDITIONS = ("same_l0", "literal", "same_nmse", "same_lambda", "trained_lambda")


class Measure(NamedTuple):
    """A number followed through training: its column, those of its interval, and the conditions it is read under."""

    label: str
    key: str
    lower: str = ""
    upper: str = ""
    conditions: tuple[str, ...] = MATCHED_CONDITIONS
    optimum: bool = True  # shown of the optimum too


MEASURES = {
    "gap": Measure(
        "(P-P*) / P* ↓", "suboptimality_upper", "suboptimality_lower", "suboptimality_upper", GAP_CONDITIONS, False
    ),
    "ista": Measure(
        "(P - P of ISTA) / P of ISTA", "relative_gap_to_ista", "relative_gap_to_ista_lo", "relative_gap_to_ista_hi",
        GAP_CONDITIONS, False,
    ),
    "nmse": Measure("NMSE ↓", "nmse", "nmse_lo", "nmse_hi"),
    "l0": Measure("L0", "l0", "l0_lo", "l0_hi"),
    "dead": Measure("dead@N ↓", "dead"),
    "dense@0.1": Measure("dense@0.1 ↓", "dense@0.1", "dense@0.1_lo", "dense@0.1_hi"),
    "df1": Measure("ΔF1 ↓", "df1", "df1_lo", "df1_hi"),
    "absorption": Measure(
        "absorption - chance ↓", "absorption_excess", "absorption_excess_lo", "absorption_excess_hi"
    ),
}  # fmt: skip


class Point(NamedTuple):
    """A number at a step; `marked`: of an encoder too dense to be matched."""

    step: int
    value: float
    lower: float | None
    upper: float | None
    marked: bool


Line = tuple[str, str]  # variant and sparsity


def lines(rows: Iterable[Row]) -> dict[Line, list[Row]]:
    """{(variant, sparsity): rows}, by variant and by the number of the sparsity."""
    found: dict[Line, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["variant"], row["sparsity_value"], row["step"])):
        found.setdefault((row["variant"], row["sparsity"]), []).append(row)
    return found


def pick(rows: Iterable[Row], measure: Measure, mode: str) -> Row | None:
    """Of one checkpoint's rows the one `measure` is read from."""
    found = {
        row["condition"]: row for row in rows if row["mode"] == mode and row.get(measure.key) is not None
    }
    return next((found[condition] for condition in measure.conditions if condition in found), None)


def points(rows: Iterable[Row], measure: Measure, mode: str) -> list[Point]:
    """A number's way through training, of one variant and sparsity."""
    out = []
    for step, block in by_step(rows).items():
        row = pick(block, measure, mode)
        if row is not None:
            band = (row.get(measure.lower), row.get(measure.upper))
            marked = any(other.get("unmatchable") for other in block)
            out.append(Point(step, row[measure.key], *band, marked))
    return out


def by_step(rows: Iterable[Row]) -> dict[int, list[Row]]:
    out: dict[int, list[Row]] = {}
    for row in rows:
        out.setdefault(row["step"], []).append(row)
    return dict(sorted(out.items()))


def prefix_columns(rows: Iterable[Row]) -> list[str]:
    """nmse@prefix:W that some row has, by W."""
    keys = {
        key
        for row in rows
        for key, value in row.items()
        if key.startswith("nmse@prefix:") and value is not None
    }
    return sorted(keys, key=lambda key: int(key.partition(":")[2]))


class Table(NamedTuple):
    title: str
    header: list[str]
    body: list[list[str]]


def final_table(rows: Sequence[Row]) -> Table:
    """The last step of each variant and sparsity."""
    columns: list[tuple[str, Callable[[list[Row]], str]]] = [
        ("L0", _cell("l0")),
        ("(P-P*)/P* ↓", _gap),
        ("P - P of ISTA", _gap_to_ista),
        ("NMSE ↓", _cell("nmse")),
        ("optimum's NMSE ↓", _cell("nmse", "optimal")),
        ("dead@N ↓", _cell("dead")),
        ("optimum's dead@N ↓", _cell("dead", "optimal")),
        ("dense@0.1 ↓", _cell("dense@0.1")),
        ("ΔF1 ↓", _cell("df1")),
        ("optimum's ΔF1 ↓", _cell("df1", "optimal")),
        ("absorption - chance ↓", _cell("absorption")),
        ("optimum's ↓", _cell("absorption", "optimal")),
    ]
    for key in prefix_columns(rows):
        prefix = Measure("", key)
        columns.append((f"NMSE of the first {key.partition(':')[2]}", _of(prefix, "amortized")))
        columns.append(("optimum's", _of(prefix, "optimal")))
    body = []
    for (variant, sparsity), block in lines(rows).items():
        step, last = list(by_step(block).items())[-1]
        body.append([variant, sparsity, str(step), *(cell(last) for _, cell in columns), _note(last)])
    header = ["variant", "sparsity", "step", *(name for name, _ in columns), "note"]
    return _without_empty(Table("The last step", header, body))


def steps_table(rows: Sequence[Row]) -> Table:
    """Every step, with the change since the one before in brackets, and a star where its paired interval excludes 0."""
    header = ["variant", "sparsity", "step", *(measure.label for measure in MEASURES.values()), "note"]
    body = []
    for (variant, sparsity), block in lines(rows).items():
        before: dict[str, float] = {}
        for step, here in by_step(block).items():
            cells = []
            for name, measure in MEASURES.items():
                row = pick(here, measure, "amortized")
                value = None if row is None else row[measure.key]
                cells.append(_with_change(value, before.get(name), _clear(row, measure.key, "before")))
                before |= {} if value is None else {name: value}
            body.append([variant, sparsity, str(step), *cells, _note(here)])
    return _without_empty(
        Table(
            "From step to step: the encoder, and the change since the step before (*: its interval excludes 0)",
            header,
            body,
        )
    )


def _with_change(value: float | None, before: float | None, clear: bool | None) -> str:
    if value is None or before is None:
        return short(value)
    change = value - before
    return f"{short(value)} ({'+' if change > 0 else ''}{short(change, 2)}{'*' if clear else ''})"


def _clear(row: Row | None, key: str, since: str) -> bool | None:
    """Whether the paired interval of a change excludes 0; None if there is none."""
    low, high = ((row or {}).get(f"{key}_minus_{since}_{end}") for end in ("lo", "hi"))
    return None if low is None or high is None else low > 0 or high < 0


def _cell(name: str, mode: str = "amortized") -> Callable[[list[Row]], str]:
    return _of(MEASURES[name], mode)


def _of(measure: Measure, mode: str) -> Callable[[list[Row]], str]:
    def cell(block: list[Row]) -> str:
        row = pick(block, measure, mode)
        return MISSING if row is None else with_interval(*(row.get(k) for k in measure[1:4]))

    return cell


def _gap(block: list[Row]) -> str:
    row = pick(block, MEASURES["gap"], "amortized")
    return MISSING if row is None else between(row.get("suboptimality_lower"), row.get("suboptimality_upper"))


def _gap_to_ista(block: list[Row]) -> str:
    row = pick(block, Measure("", "gap_to_ista", conditions=GAP_CONDITIONS), "amortized")
    ends = ("gap_to_ista", "gap_to_ista_lo", "gap_to_ista_hi")
    return MISSING if row is None else with_interval(*map(row.get, ends))


def _note(block: list[Row]) -> str:
    reasons = dict.fromkeys(str(row["reason"]) for row in block if row.get("reason"))
    if reasons:
        return f"not measured: {'; '.join(reasons)}"
    return "too dense to match" if any(row.get("unmatchable") for row in block) else ""


def _without_empty(table: Table) -> Table:
    """Without columns in which no line has anything."""
    kept = [i for i in range(len(table.header)) if any(line[i] not in (MISSING, "") for line in table.body)]
    return Table(
        table.title, [table.header[i] for i in kept], [[line[i] for i in kept] for line in table.body]
    )


def printed(table: Table) -> str:
    """For a terminal."""
    cells = [table.header, *table.body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([table.title, text[0], "─" * max(map(len, text)), *text[1:]])


def markdown(table: Table) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (table.header, *table.body)]
    text = [f"| {' | '.join(line)} |" for line in escaped]
    return "\n".join([text[0], "|---" * len(table.header) + "|", *text[1:]])


# A change counts if it is larger than this share of where it began (or is from or to nothing at all), and its paired
# interval, if there is one, excludes 0.
CLEAR = 0.02


def sentences(rows: Sequence[Row]) -> list[str]:
    """For each variant, at how many sparsities a number of the encoder rose or fell between its first and last step."""
    out = []
    found = lines(rows)
    for variant in dict.fromkeys(variant for variant, _ in found):
        said = []
        for name in ("gap", "ista", "nmse", "dead", "dense@0.1", "df1", "absorption"):
            said += _direction(name, [block for (own, _), block in found.items() if own == variant])
        if said:
            out.append(
                f"{variant}, from the first step measured to the last, by sparsities: {'; '.join(said)}."
            )
    return out


def _direction(name: str, blocks: list[list[Row]]) -> list[str]:
    ways = [points(block, MEASURES[name], "amortized") for block in blocks]
    ends = [(way[0].value, way[-1].value) for way in ways if len(way) > 1]
    if not ends:
        return []
    told = [_told(block, name) for block, way in zip(blocks, ways, strict=True) if len(way) > 1]
    up = sum(b - a > CLEAR * abs(a) and clear for (a, b), clear in zip(ends, told, strict=True))
    down = sum(a - b > CLEAR * abs(a) and clear for (a, b), clear in zip(ends, told, strict=True))
    if not up + down:
        return []
    return [f"{MEASURES[name].label.strip(' ↓')} falls at {down} of {len(ends)}, rises at {up}"]


def _told(block: list[Row], name: str) -> bool:
    """Unless its paired interval says that the change from the first step to the last may be none."""
    measure = MEASURES[name]
    ends = [row for here in by_step(block).values() if (row := pick(here, measure, "amortized"))]
    # Since the first step that was matched; from one that was not, all has changed.
    paired = ends[-1].get("first_step") == ends[0]["step"]
    return not paired or _clear(ends[-1], measure.key, "first") is not False


PAGE = """# Training dynamics: the price of the encoder while SAEs train

{about}

## In words

{said}

A change counts from {clear:.0%} on, if its paired interval (where there is one) excludes 0. The lasso gap is at each
checkpoint's own λ*, where the certified optimum has its encoder's L0: it compares checkpoints by how far their encoders
are from their own optima, relative to those. The gap to ISTA is signed, because ISTA-{ista} is no optimum.

## Pictures

{pictures}

## Tables

### {final_title}

{final}

### {steps_title}

{steps}

Intervals of changes are 95 %, paired on the same tokens. Too dense to match: the encoder fires more latents than an
optimum can have (the rank of the dictionary), or more than --densest of it: its own numbers are kept, no other mode is
brought to its L0.
"""


def write_page(
    rows: Sequence[Row], folder: Path, about: Mapping[str, str], pictures: Iterable[Path], ista: int
) -> Path:
    """report.md; returns its path."""
    links = [f"![{p.stem}]({p.relative_to(folder).as_posix()})" for p in pictures if p.suffix == ".png"]
    lines = ["| measured | |", "|---|---|", *(f"| {key} | {value} |" for key, value in about.items())]
    last, steps = final_table(rows), steps_table(rows)
    text = PAGE.format(
        about="\n".join(lines), said="\n".join(f"- {s}" for s in sentences(rows)) or "Nothing could be measured.",
        clear=CLEAR, ista=ista, pictures="\n\n".join(links), final_title=last.title, final=markdown(last),
        steps_title=steps.title, steps=markdown(steps),
    )  # fmt: skip
    write_atomically(folder / "report.md", text)
    return folder / "report.md"
