"""report.md: what was measured, what came out in plain words, the tables, the pictures, what each number
means.

    write_page(rows, folder, about={"model": "...", "hook": "..."}, pictures=paths, versions={"jax": "..."})

Everything is generated from the rows; `headlines(rows)` gives the sentences alone.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amortjax.files import write_atomically
from amortjax.metrics.definitions import ARROWS, METRICS
from amortjax.report.numbers import grouped_digits, percent, short, with_interval
from amortjax.report.schema import FLAGS, Row, flagged, grouped, mode_label, order
from amortjax.report.tables import markdown_tables

CONTROLLED = (
    "`controlled`: every comparison says what was held equal. Under *same lambda* all modes face one "
    "objective, so P and the gaps can be compared; L0 and what depends on it can't. Under *same L0* every "
    "mode has its own lambda, so reconstruction, dead and dense latents and probes can be compared; "
    "objectives can't. A code's own-dual gap bounds its suboptimality from above and is never printed as "
    "that; (P-P*)/P* is bounded from both sides by the best code and the best dual value known for each "
    "token. Its amplitude is what the lasso restricted to a code's own latents would save, at the same lambda "
    "and certified there; its support is the rest. Intervals are 95 %, from a bootstrap over documents paired "
    "across modes; for dead latents from "
    "a jackknife at half of the documents."
)
LITERAL = (
    "`literal`: the released choices of the papers, for comparison with their tables. Densities differ "
    "between modes, probe labels are pseudo-labels (norm above its median) and F1 is taken on the rows the "
    "probe was fitted on, so differences mix several effects."
)


def headlines(rows: Iterable[Row]) -> list[str]:
    """What the rows show, one sentence each, for every checkpoint; nothing is said that no row holds."""
    blocks = grouped(map(flagged, rows))
    out = []
    for (checkpoint, condition), block in blocks.items():
        by_mode = {row["mode"]: row for row in block}
        make = {"same_lambda": _about_objective, "same_l0": _about_metrics, "literal": _about_literal}.get(
            condition
        )
        sentences = make(by_mode) if make else []
        out += [f"{checkpoint}: {sentence}" for sentence in sentences]
    return out


def _about_objective(by_mode: Mapping[str, Row]) -> list[str]:
    first = by_mode.get("amortized", {})
    excess = first.get("suboptimality_upper")
    if excess is None:
        return _about_density(by_mode)
    others = [
        f"{mode_label(row)}, {_excess(row)}"
        for mode, row in by_mode.items()
        if mode not in ("amortized", "optimal") and row.get("suboptimality_upper") is not None
    ]
    more = f"; {'; '.join(others)}" if others else ""
    lam = short(first.get("lam"))
    out = [
        f"at the same lambda ({lam}) the encoder's objective is {_excess(first)} above the optimum's{more}."
    ]
    scaled = by_mode.get("encoder_scaled", {}).get("suboptimality_upper")
    if scaled is not None and excess > 0:
        out.append(f"one global scale on the encoder's codes removes {percent(1 - scaled / excess)} of that.")
    return out + _about_parts(by_mode) + _about_density(by_mode)


def _about_parts(by_mode: Mapping[str, Row]) -> list[str]:
    """The encoder's price in two parts, and, of the squared error and so apart, what refits make of it."""
    first, out = by_mode.get("amortized", {}), []
    amplitude, support = first.get("price_amplitude"), first.get("price_support")
    if amplitude is not None and support is not None:
        out.append(
            f"that excess is amplitude, {percent(amplitude)} of the optimum's objective (what the lasso on the "
            f"encoder's own latents would save), and support, {percent(support)} (what the wrong latents cost)."
        )
    nmse = [by_mode.get(mode, {}).get("nmse") for mode in ("amortized", "encoder_refit", "optimal_refit")]
    if None not in nmse:
        own, refit, best = map(short, nmse)
        out.append(
            f"squared error, reported apart because no lambda enters: the encoder's NMSE is {own}; least squares "
            f"on its own latents leaves {refit}, on the optimum's {best}."
        )
    return out


def _about_density(by_mode: Mapping[str, Row]) -> list[str]:
    """Steps that stop early fire more or fewer latents than the optimum at its lambda: said if over 5 %."""
    out = []
    best = by_mode.get("optimal", {}).get("l0")
    for mode in ("semi_amortized", "non_amortized"):
        l0 = by_mode.get(mode, {}).get("l0")
        if not l0 or not best or abs(l0 / best - 1) <= 0.05:
            continue
        change = f"{percent(abs(l0 / best - 1))} {'more' if l0 > best else 'fewer'}"
        text = f"at that lambda {mode_label(by_mode[mode])} fires {short(l0)} latents a token, {change} than"
        out.append(f"{text} the optimum's {short(best)}: not at equal density.")
    return out


def _excess(row: Mapping[str, Any]) -> str:
    """The relative suboptimality as a percentage, as a range if its bounds differ."""
    lower, upper = row.get("suboptimality_lower"), row["suboptimality_upper"]
    if lower is None or lower <= 0:
        return f"at most {percent(upper)}"
    return percent(upper) if percent(lower) == percent(upper) else f"{percent(lower)} to {percent(upper)}"


def _about_metrics(by_mode: Mapping[str, Row]) -> list[str]:
    """Modes that missed the target are left out."""
    matched = {m: row for m, row in by_mode.items() if not {"l0_off", "unmatchable"} & set(row["flags"])}
    first = matched.get("amortized")
    if first is None:
        return []
    out = []
    nmse = sorted((row["nmse"], mode_label(row)) for row in matched.values() if row.get("nmse") is not None)
    if first.get("nmse") is not None and len(nmse) > 1:
        others = "; ".join(f"{label} {short(value)}" for value, label in nmse if label != mode_label(first))
        at = short(first.get("l0_target") or first.get("l0"))
        out.append(f"at equal L0 ({at}) the encoder's NMSE is {short(first['nmse'])}; best first, {others}.")
    for name, what in (("dead_half", "dead latents on half of the documents"), ("df1", "ΔF1")):
        said = (_comparison(first, matched.get(mode, {}), name, what) for mode in ("optimal", "omp"))
        out += [sentence for sentence in said if sentence]
    return out + _about_absorption(first, matched.get("optimal", {}))


def _about_absorption(first: Row, best: Mapping[str, Any]) -> list[str]:
    taken, chance = first.get("absorption"), first.get("absorption_chance")
    if taken is None or chance is None:
        return []
    text = (
        f"absorption is {short(taken)} for the encoder, where independent latents of those rates would show"
    )
    other = ""
    if best.get("absorption") is not None:
        other = (
            f"; for the optimum {short(best['absorption'])}, chance {short(best.get('absorption_chance'))}"
        )
    return [f"{text} {short(chance)}{other}."]


def _comparison(first: Row, other: Mapping[str, Any], name: str, what: str) -> str | None:
    """Two modes on one metric, with the paired difference and whether it is told from 0."""
    a, b = first.get(name), other.get(name)
    if a is None or b is None:
        return None
    key = f"{name}_minus_amortized"
    value, lo, hi = (other.get(k) for k in (key, f"{key}_lo", f"{key}_hi"))
    text = f"{what} at equal L0: encoder {short(a)}, {mode_label(other)} {short(b)}"
    if value is None or lo is None or hi is None:
        return f"{text} (no paired interval)."
    clear = "the interval excludes 0" if lo > 0 or hi < 0 else "the interval includes 0"
    return f"{text} (paired difference {with_interval(value, lo, hi)}: {clear})."


def _about_literal(by_mode: Mapping[str, Row]) -> list[str]:
    parts = [
        f"{mode_label(row)} {short(row['nmse_literal'])} at density {short(row.get('density'))}"
        for row in by_mode.values()
        if row.get("nmse_literal") is not None
    ]
    return [f"under the literal protocol NMSE is {'; '.join(parts)}."] if parts else []


def write_page(
    rows: Iterable[Row],
    folder: str | Path,
    about: Mapping[str, Any],
    pictures: Iterable[str | Path] = (),
    versions: Mapping[str, str] | None = None,
    name: str = "report.md",
) -> Path:
    """`about` says what was measured, {label: value} in the order given (model, layer, hook, corpus, SAE
    ...); `pictures` are paths of png files, linked relative to `folder`. Written atomically; returns the
    path."""
    rows, folder = [flagged(row) for row in order(rows)], Path(folder)
    parts = ["# The price of the encoder", _about(rows, about)]
    sentences = headlines(rows)
    if sentences:
        parts.append("## In words\n\n" + "\n".join(f"- {sentence}" for sentence in sentences))
    shown = [os.path.relpath(path, folder) for path in pictures if str(path).endswith(".png")]
    if shown:
        links = "\n\n".join(
            f"![{Path(path).stem.replace('_', ' ')}]({Path(path).as_posix()})" for path in shown
        )
        parts.append("## Pictures\n\n" + links)
    parts += ["## Tables", markdown_tables(rows), "## What the numbers mean", _meanings(rows)]
    protocols = {row.get("protocol", "controlled") for row in rows}
    said = [text for key, text in (("controlled", CONTROLLED), ("literal", LITERAL)) if key in protocols]
    parts.append("## Protocol\n\n" + "\n\n".join(said or [CONTROLLED]))
    used = list(dict.fromkeys(flag for row in rows for flag in row["flags"]))
    if used:
        parts.append("## Flags\n\n" + "\n".join(f"- `{flag}`: {FLAGS.get(flag, flag)}" for flag in used))
    if versions:
        parts.append("## Versions\n\n" + ", ".join(f"{key} {value}" for key, value in versions.items()))
    path = folder / name
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def _about(rows: list[Row], about: Mapping[str, Any]) -> str:
    """The table of what was measured; token and document counts come from the rows."""
    items = {key: value for key, value in about.items() if value not in (None, "")}
    for label, key in (("tokens", "n_tokens"), ("documents", "n_documents")):
        found = {row[key] for row in rows if row.get(key) is not None}
        if found and label not in items:
            items[label] = " to ".join(grouped_digits(n) for n in sorted({min(found), max(found)}))
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in items.items()]
    return "\n".join(["| measured | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _meanings(rows: list[Row]) -> str:
    """One line for each metric that some row holds."""
    direction = {
        "lower": f"lower is better {ARROWS['lower']}",
        "higher": f"higher is better {ARROWS['higher']}",
    }
    lines = ["| number | better | meaning | definition |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        if any(row.get(name) is not None for row in rows):
            better = direction.get(metric.direction, "neither")
            lines.append(f"| {_cell(metric.label)} | {better} | {_cell(metric.text)} | `{metric.id}` |")
    return "\n".join(lines)
