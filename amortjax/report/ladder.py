"""The price rung by rung: tables and sentences (rows of `launch.decompose`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from amortjax.report.numbers import MISSING, between, grouped_digits, percent, short, with_interval
from amortjax.report.schema import FLAGS, Row, flagged, mode_label

NAMES = {
    "encoder": "encoder",
    "scaled": "one scale",
    "scaled_each": "a scale per latent",
    "affine": "refitted affine",
    "mlp": "MLP, {fit_hidden} hidden",
    "lista": "LISTA, {fit_layers} layers",
    "optimum": "optimum",
    "relearned": "optimum, relearned dictionary",
}
PREDICTORS = {
    "density": "density",
    "avar": "angular variance",
    "angle": "encoder-decoder angle",
    "neighbour": "nearest neighbour's cosine",
}
TARGETS = {
    "price": "price per token",
    "price_per_firing": "price per firing",
    "price_scaled": "price under a scale per latent",
}


def rung_label(row: Mapping[str, Any]) -> str:
    """ "MLP, 512 hidden"; the mode itself where it is no rung."""
    label = NAMES.get(row["mode"])
    values = {key: row.get(key, "?") for key in ("fit_hidden", "fit_layers")}
    return label.format(**values) if label else mode_label(row)


def _percents(row: Mapping[str, Any], key: str) -> str:
    value, lo, hi = (row.get(f"{key}{end}") for end in ("", "_lo", "_hi"))
    if value is None:
        return MISSING
    bounds = "" if lo is None or hi is None else f" [{percent(lo)}, {percent(hi)}]"
    return percent(value) + bounds


def _excess(row: Mapping[str, Any]) -> str:
    lower, upper = row.get("excess_lower"), row.get("excess_upper")
    if lower is not None and upper is not None and lower < 0:
        return short(lower) if short(lower) == short(upper) else f"[{short(lower)}, {short(upper)}]"
    return between(lower, upper)


def _interval(key: str) -> Callable[[Row], str]:
    return lambda row: with_interval(row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi"))


class Column(NamedTuple):
    header: str
    cell: Callable[[Row], str]
    page_only: bool = False


LADDER = (
    Column("rung", rung_label),
    Column("P ↓", _interval("objective")),
    Column("(P-P*)/P* ↓", _excess),
    Column("ampl. ↓", lambda row: between(row.get("price_amplitude"), row.get("price_amplitude_upper"))),
    Column("support ↓", lambda row: between(row.get("price_support_lower"), row.get("price_support_upper"))),
    Column("step", _interval("step")),
    Column("share of the price", lambda row: _percents(row, "share")),
    Column("left", lambda row: _percents(row, "left"), True),
    Column("L0", lambda row: short(row.get("l0"))),
    Column("NMSE ↓", _interval("nmse")),
    Column("dead@N ↓", lambda row: short(row.get("dead"))),
    Column("own gap", lambda row: short(row.get("own_gap")), True),
    Column("P, fitted on", lambda row: short(row.get("fit_train"), 4), True),
    Column("P, chosen by", lambda row: short(row.get("fit_validation"), 4), True),
    Column("step chosen", lambda row: short(row.get("fit_step")), True),
    Column("parameters", lambda row: grouped_digits(row.get("fit_parameters")), True),
    Column("cost, forwards", lambda row: short(row.get("fit_forwards")), True),
)
PARTS = (
    Column("rung", rung_label),
    Column("missed", lambda row: short(row.get("price_missed"))),
    Column("false fires", lambda row: short(row.get("price_spurious"))),
    Column("amplitude bias", lambda row: short(row.get("price_rescaled"))),
    Column("remainder", lambda row: short(row.get("price_slack"))),
    Column("sum", lambda row: short(_sum(row))),
)
RECONSTRUCTION = (
    Column("codes", mode_label),
    Column("L0", lambda row: short(row.get("l0"))),
    Column("NMSE ↓", _interval("nmse")),
    Column("minus the encoder's", _interval("nmse_minus_amortized")),
    Column("FVU ↓", lambda row: short(row.get("fvu"))),
    Column("dead@N ↓", lambda row: short(row.get("dead"))),
)
FORETOLD = (
    Column("of a latent", lambda row: TARGETS[row["target"]]),
    Column("foretold from", lambda row: PREDICTORS[row["predictor"]]),
    Column("rank correlation", _interval("correlation")),
    Column("ridge coefficient", _interval("coefficient")),
    Column("R² of all four", lambda row: short(row.get("r2"))),
    Column("latents", lambda row: str(row["latents"])),
)


def _sum(row: Mapping[str, Any]) -> float | None:
    """missed + spurious + rescaled - slack = P - P(z*), exactly."""
    keys = ("price_missed", "price_spurious", "price_rescaled", "price_slack")
    if any(row.get(key) is None for key in keys):
        return None
    return sum(row[key] for key in keys[:3]) - row["price_slack"]


def cells(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table, without columns in which no row has a value."""
    body = [[column.cell(row) for column in columns] for row in rows]
    shown = [i for i in range(len(columns)) if any(line[i] != MISSING for line in body)]
    return [columns[i].header for i in shown], [[line[i] for i in shown] for line in body]


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    header, body = cells(rows, columns)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def printed(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A table for a terminal, without the columns that are for the page."""
    header, body = cells(rows, [column for column in columns if not column.page_only])
    table = [header, *body]
    widths = [max(len(line[i]) for line in table) for i in range(len(header))]
    place = lambda i, cell: cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i])  # noqa: E731
    return "\n".join("  ".join(place(i, cell) for i, cell in enumerate(line)).rstrip() for line in table)


def ladder_of(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["condition"] == "ladder"]


def reconstruction_of(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["condition"] == "same_l0"]


def headlines(rows: Sequence[Row], table: Sequence[Row]) -> list[str]:
    """What came out, a sentence each; nothing is said that no row holds."""
    ladder = ladder_of(rows)
    by_name = {row["mode"]: row for row in ladder}
    first, out = by_name["encoder"], []
    lam = short(first["lam"])
    out.append(
        f"at lambda = {lam} the encoder's P is {percent(first['excess_upper'])} above the certified optimum's; of that "
        f"excess, {percent(first['price_amplitude'])} of P* is amplitude and {percent(first['price_support'])} support."
    )
    steps = [row for row in ladder[1:] if row.get("share") is not None and row["mode"] != "relearned"]
    if steps:
        parts = ", ".join(f"{rung_label(row)} {_percents(row, 'share')}" for row in steps)
        out.append(f"what each step removes of the price: {parts}.")
    back = [rung_label(row) for row in ladder[1:] if row.get("step") is not None and row["step"] < 0]
    if back:
        out.append(f"worse than the rung before: {', '.join(back)}.")
    falling = [rung_label(row) for row in ladder if (row.get("fit_falling") or 0) > 1e-3]
    if falling:
        out.append(
            f"still falling when its steps ended, so more --fit_steps would lower it: {', '.join(falling)}."
        )
    best = by_name["optimum"]
    if first.get("nmse") is not None and best.get("nmse") is not None:
        out.append(
            f"P is not the squared error: at this lambda the optimum's NMSE is {short(best['nmse'])}, the encoder's "
            f"{short(first['nmse'])}."
        )
    last = by_name.get("relearned")
    if last and last.get("share") is not None:
        out.append(
            f"relearning the dictionary for exact codes takes a further {_percents(last, 'share')} of the price off, "
            f"at L0 {short(last['l0'])}; that is P of another dictionary at the same lambda"
            + (f", and it was still falling after {last['fit_rounds']} rounds." if _unfinished(last) else ".")
        )
    return out + _about_reconstruction(reconstruction_of(rows)) + _about_latents(table)


def _unfinished(relearned: Row) -> bool:
    """Its last round was its best."""
    return bool(relearned.get("fit_rounds")) and relearned.get("fit_step") == relearned["fit_rounds"]


def _about_reconstruction(rows: Sequence[Row]) -> list[str]:
    if len(rows) < 2:
        return []
    parts = ", ".join(f"{mode_label(row)} {short(row['nmse'])} (L0 {short(row['l0'])})" for row in rows)
    return [f"NMSE at equal L0, no lambda compared: {parts}."]


def _about_latents(table: Sequence[Row]) -> list[str]:
    out = []
    for target, label in TARGETS.items():
        known = [row for row in table if row["target"] == target and row.get("correlation") is not None]
        if known:
            top = max(known, key=lambda row: abs(row["correlation"]))
            out.append(
                f"a latent's {label} goes most with {PREDICTORS[top['predictor']]} (rank correlation "
                f"{_interval('correlation')(top)}); all four together explain {percent(top['r2'])} of its ranks on "
                "latents left out."
            )
    return out


def notes(rows: Sequence[Row]) -> list[str]:
    found = dict.fromkeys(flag for row in map(flagged, rows) for flag in row["flags"])
    return [f"{FLAGS.get(flag, flag)}." for flag in found]
