"""bench_training's rows as tables, for a terminal and as markdown, and as pictures."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amortjax.launch.bench_parts.train_options import DIFFERENCES
from amortjax.report.canvas import blank, saved
from amortjax.report.numbers import MISSING, grouped_digits, percent, short
from amortjax.report.schema import Row

OURS, PEER = "amortjax", "dictionary_learning"
NAMES = {"ours": OURS, "peer": PEER}
COLOURS = {"ours": "#0072B2", "peer": "#D55E00"}  # Okabe & Ito (2008)
DIGITS = {"fvu": 4}  # the two differ in the third
WITHOUT = f"{PEER} was not measured: no --peer_python was given."


def _label(row: Row) -> str:
    return row["variant"] + (f", {percent(row['dead_share'])} dead" if row.get("dead_share") else "")


def _range(low: float | None, high: float | None, number: Any) -> str:
    return "" if low is None or high is None else f" ({number(low)} to {number(high)})"


def _speed(row: Row, side: str) -> str:
    middle = row.get(f"{side}_tokens_per_second")
    return grouped_digits(middle) + _range(row.get(f"{side}_lo"), row.get(f"{side}_hi"), grouped_digits)


def _ratio(row: Row) -> str:
    return short(row.get("ratio")) + _range(row.get("ratio_lo"), row.get("ratio_hi"), short)


def _throughput(rows: list[Row]) -> list[list[str]]:
    head = ["", f"{OURS} tokens/s", f"{PEER} tokens/s", "ratio", "compile s"]
    body = [
        [_label(row), _speed(row, "ours"), _speed(row, "peer"), _ratio(row), short(row["compile_seconds"])]
        for row in rows
    ]
    return [head, *body]


def _pair(row: Row, name: str) -> list[str]:
    return [short(row.get(f"{side}_{name}"), DIGITS.get(name, 3)) for side in NAMES]


def _quality(rows: list[Row]) -> list[list[str]]:
    head = ["", "seed", f"FVU {OURS}", PEER, "difference", f"L0 {OURS}", PEER, f"dead {OURS}", PEER]
    body = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        block = [row for row in rows if row["variant"] == variant]
        for row in block:
            difference = row["ours_fvu"] - row["peer_fvu"] if "peer_fvu" in row else None
            cells = [*_pair(row, "fvu"), short(difference), *_pair(row, "l0"), *_pair(row, "dead")]
            body.append([variant, str(row["seed"]), *cells])
        if len(block) > 1:
            body.append([variant, "mean", *_means(block)])
    return [head, *body]


def _means(block: list[Row]) -> list[str]:
    every = [f"{side}_{name}" for name in ("fvu", "l0", "dead") for side in NAMES]
    names = [name for name in every if all(name in row for row in block)]
    mean = {name: statistics.fmean(row[name] for row in block) for name in names}
    difference = MISSING
    if "peer_fvu" in mean:
        each = [row["ours_fvu"] - row["peer_fvu"] for row in block]
        difference = short(statistics.fmean(each)) + _range(min(each), max(each), short)
    return [*_pair(mean, "fvu"), difference, *_pair(mean, "l0"), *_pair(mean, "dead")]


TABLES = {"throughput": _throughput, "quality": _quality}


def about(part: str, rows: list[Row]) -> list[str]:
    """What was measured, on what, and what the numbers are; a sentence each."""
    first, setting = rows[0], rows[0]["setting"]
    versions = first["versions"]
    peers = next((row["peer"] for row in rows if row["peer"]), None)
    sizes = (
        f"D = {first['d_model']}, M = {setting['n_latents']}, k = {setting['k']}, batches of {setting['batch_size']} "
        f"tokens; {first['data']}."
    )
    machine = f"{first['device']}, {first['threads']} cores; jax {versions['jax']}"
    if peers is not None:
        theirs = peers["versions"]
        machine += (
            f"; {PEER} {theirs['dictionary-learning']} with torch {theirs['torch']} on {peers['device']}"
        )
    out = [sizes, machine + "."]
    if part == "throughput":
        out.append(
            f"Medians of {setting['rounds']} rounds of {setting['round_steps']} steps in turn, least and most in "
            "brackets; fetching the batches is included, compiling is not. AuxK 1/32, unit decoder rows, projected "
            "gradients and clipping as its trainer has them, on both sides. Dead: that share of the latents counts "
            "as dead, so that AuxK is at work."
        )
    else:
        out.append(
            f"{setting['steps']} steps, rate {short(setting['lr'])}, the same batches in the same order; inputs "
            f"divided by sqrt(mean |x|^2) on both sides. On {grouped_digits(first['eval_tokens'])} held-out tokens "
            f"(split {setting['held_out']}), from each side's own encode: FVU, latents per token, share of latents "
            "that never fire there."
        )
    return out + ([] if peers is not None else [WITHOUT])


def differences(rows: list[Row]) -> list[str]:
    recipes = {"all": rows[0]["options"]["ours"]} | {row["variant"]: row["options"]["ours"] for row in rows}
    known = {name: recipe for name, recipe in recipes.items() if name in DIFFERENCES}
    return [f"{name}: {DIFFERENCES[name].format(**recipe)}." for name, recipe in known.items()]


def print_table(part: str, rows: list[Row]) -> str:
    lines = TABLES[part](rows)
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    rule = "─" * max(map(len, text))
    return "\n".join(
        [f"{part}: {about(part, rows)[0]}", rule, text[0], rule, *text[1:], *about(part, rows)[1:]]
    )


def markdown(blocks: Mapping[str, list[Row]], pictures: Mapping[str, Path]) -> str:
    """report.md: per part its table, what it holds, its picture; then where the two sides differ."""
    parts = ["# Training, side by side"]
    for part, rows in blocks.items():
        lines = [f"| {' | '.join(cells)} |" for cells in TABLES[part](rows)]
        lines.insert(1, "|---" + "|---:" * (lines[0].count("|") - 2) + "|")
        parts += [f"## {part.capitalize()}", " ".join(about(part, rows)), "\n".join(lines)]
        if part in pictures:
            parts.append(f"![{part}]({pictures[part].name})")
    everything = [row for rows in blocks.values() for row in rows]
    parts += ["## Where the two sides differ", "\n".join(f"- {line}" for line in differences(everything))]
    return "\n\n".join(parts) + "\n"


def draw(part: str, rows: list[Row], folder: Path) -> Path:
    """PART.png and .svg: bars of tokens per second with the ratio, or FVU against the step; the path of the png."""
    figure = blank(8, 0.9 + 0.5 * len(rows)) if part == "throughput" else blank(8, 5)
    axis = figure.subplots()
    (_bars if part == "throughput" else _curves)(axis, rows)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return saved(figure, folder, part)[0]


def _bars(axis: Any, rows: list[Row]) -> None:
    for i, row in enumerate(rows):
        for side, shift in (("ours", -0.19), ("peer", 0.19)):
            speed = row.get(f"{side}_tokens_per_second")
            if speed is None:
                continue
            axis.barh(i + shift, speed, 0.36, color=COLOURS[side], label=NAMES[side])
            axis.plot([row[f"{side}_lo"], row[f"{side}_hi"]], [i + shift] * 2, color="black", linewidth=1)
        if row.get("ratio") is not None:
            text = f"{short(row['ratio'])} times"
            at = (max(row["ours_hi"], row["ours_tokens_per_second"]), i - 0.19)
            axis.annotate(text, at, (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("tokens per second; lines: least and most of the rounds")
    handles, labels = axis.get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    axis.legend(named.values(), named.keys(), fontsize=8, frameon=False)


def _curves(axis: Any, rows: list[Row]) -> None:
    """A line per seed; solid: ours, dashed: the peer."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    for row in rows:
        for side, style in (("ours", "-"), ("peer", "--")):
            points = [
                (point["step"], point[f"{side}_fvu"]) for point in row["curve"] if f"{side}_fvu" in point
            ]
            label = f"{row['variant']}, {NAMES[side]}" if row["seed"] == rows[0]["seed"] else None
            if points:
                steps, fvu = zip(*points, strict=True)
                axis.plot(
                    steps, fvu, style, color=f"C{variants.index(row['variant'])}", label=label, marker="."
                )
    axis.set_yscale("log")
    axis.set(xlabel="step", ylabel="FVU on held-out tokens")
    axis.legend(fontsize=8, frameon=False)
