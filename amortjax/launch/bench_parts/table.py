"""The benchmark's rows as a table for a terminal, one block per problem, cheapest first."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from amortjax.report.numbers import grouped_digits, percent, short

Row = Mapping[str, Any]


class Column(NamedTuple):
    head: tuple[str, str]
    cell: Callable[[Row], str]


def _number(key: str, first: str, second: str) -> Column:
    return Column((first, second), lambda row: short(row.get(key)))


def _solver(row: Row) -> str:
    return row["solver"] + ("*" if row["goal"] == "l0" else "")


def _tokens(row: Row) -> str:
    few = row["n_measured"] < row["n_tokens"]
    return str(row["n_measured"]) + ("" if not few else f" of {row['n_tokens']}")


COLUMNS = (
    Column(("", "solver"), _solver),
    _number("forwards", "encoder", "forwards"),
    _number("ms_per_token", "ms per", "token"),
    _number("relative_gap_median", "gap / P", "median"),
    _number("relative_gap_worst", "", "worst"),
    Column(("certi-", "fied"), lambda row: percent(row["certified"])),
    _number("l0", "", "L0"),
    _number("error", "", "NMSE"),
    _number("compile_seconds", "compile", "s"),
    _number("peak_mb", "peak", "MiB"),
    Column(("", "tokens"), _tokens),
)


def blocks(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """{problem: its rows, cheapest first}."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row["problem"], []).append(row)
    return {name: sorted(block, key=lambda row: row["forwards"]) for name, block in out.items()}


def print_table(rows: Iterable[Row]) -> str:
    return "\n\n".join(_block(name, block) for name, block in blocks(rows).items())


def _block(name: str, block: list[Row]) -> str:
    first = block[0]
    lines = [[column.head[i] for column in COLUMNS] for i in (0, 1)]
    lines += [[column.cell(row) for column in COLUMNS] for row in block]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    rule = "─" * max(map(len, text))
    # Whatever a row's own clock saw, the table names the typical forward.
    unit = sorted(row["unit_ms_per_token"] for row in block)[len(block) // 2]
    about = (
        f"N = {grouped_digits(first['n_tokens'])} tokens, lambda = {short(first['lam'])}, optimum's L0 = "
        f"{short(first['optimum_l0'])}; an encoder forward is {short(unit)} ms per token; {first['device']}, "
        f"{first['threads']} cores"
    )
    notes = _notes(block)
    return "\n".join([f"{name}: {first['problem_text']}", about, rule, *text[:2], rule, *text[2:], *notes])


def _notes(block: list[Row]) -> list[str]:
    notes = [f"certified: share of tokens with gap / P at most {short(block[0]['tol'])}."]
    if any(row["goal"] == "l0" for row in block):
        notes.append(
            "* minimises the squared error with the optimum's number of latents: its gap is not its aim."
        )
    if any(row["n_measured"] < row["n_tokens"] for row in block):
        notes.append("Slow ones were measured on their number of tokens, and are counted per token.")
    return notes + ratios(block)


def ratios(block: list[Row]) -> list[str]:
    """How much dearer ISTA-200 is than the optimum, precision by precision."""
    out = []
    cost = {(row["key"], row["precision"]): row["forwards"] for row in block}
    for (key, precision), forwards in cost.items():
        other = cost.get(("ista:200", precision))
        if key == "active_set" and other:
            out.append(
                f"ista-200 costs {short(other / forwards)} times what active_set does (precision {precision})."
            )
    return out
