"""Pictures of the audits: why latents are dead, metrics beside their null models, consistency across seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amortjax.report import consistency_report, null_report
from amortjax.report.audit import LABELS, middle
from amortjax.report.canvas import blank, plain, saved
from amortjax.report.figures import COLOURS
from amortjax.report.numbers import short
from amortjax.report.schema import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008). First what is dead under the optimum, of which a part is certified.
CLASS_COLOURS = {
    "dead": "#000000",
    "under_converged": "#56B4E9",
    "optimum_only": "#0072B2",
    "encoder_only": "#D55E00",
}
CURVES = {
    "dead_encoder": ("encoder", COLOURS["amortized"]),
    "dead_optimum": ("optimum", COLOURS["optimal"]),
    "dead_ista": ("ISTA at the same L0", COLOURS["non_amortized"]),
    "certified_dead": ("certified dead", "#000000"),
}


def draw_dead(curves: Sequence[Row], folder: str | Path) -> list[Path]:
    """dead_audit.png and .svg: a line per SAE: dead shares by the number of tokens, expected classes by the number of
    tokens, classes by tolerance on few and on all tokens. [] if no SAE has an optimum."""
    names = list(dict.fromkeys(row["checkpoint"] for row in curves))
    if not names:
        return []
    figure = blank(13, 3.2 * len(names) + 0.6)
    axes = figure.subplots(len(names), 3, squeeze=False, width_ratios=(1, 1, 0.8))
    for line, name in zip(axes, names, strict=True):
        own = [row for row in curves if row["checkpoint"] == name]
        tol = middle({row["tol"] for row in own})
        at = [row for row in own if row["tol"] == tol]
        _dead_curves(line[0], at)
        _class_curves(line[1], at)
        _class_bars(line[2], own)
        line[0].set_title(f"{name}: dead on N tokens", fontsize=10, loc="left", weight="bold")
        line[1].set_title("classes on N tokens, expected", fontsize=10, loc="left")
        line[2].set_title("classes by tolerance; dots: certified", fontsize=10, loc="left")
    axes[-1, 0].set_xlabel("N tokens; lines: expected, points: nested documents", fontsize=9)
    axes[-1, 1].set_xlabel("N tokens", fontsize=9)
    axes[-1, 2].set_xlabel("share of latents", fontsize=9)
    axes[0, 0].legend(fontsize=8, frameon=False)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return saved(figure, folder, "dead_audit")


def _dead_curves(axis: "Axes", rows: Sequence[Row]) -> None:
    """Logarithmic, down to half a latent."""
    least = 0.5 / rows[0]["n_latents"]
    for key, (label, colour) in CURVES.items():
        for kind in ("expected", "nested"):
            points = [(row["n_tokens"], row[key]) for row in rows if row["kind"] == kind and key in row]
            if points and kind == "expected":
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, label=label)
            elif points and key == "certified_dead":
                axis.plot(
                    *zip(*points, strict=True), ":x", color=colour, linewidth=1, markersize=5, label=label
                )
            elif points:
                axis.plot(*zip(*points, strict=True), "o", color=colour, markersize=4.5, mfc="white")
    axis.set_yscale("log")
    axis.set_ylim(bottom=least)
    axis.set_ylabel("share of latents (from half a latent)", fontsize=9)
    _tokens_axis(axis)


def _tokens_axis(axis: "Axes") -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    plain(axis)


def _class_curves(axis: "Axes", rows: Sequence[Row]) -> None:
    found = [row for row in rows if row["kind"] == "expected"]
    at = [row["n_tokens"] for row in found]
    series = [[row[name] for row in found] for name in CLASS_COLOURS]
    labels = [LABELS[name] for name in CLASS_COLOURS]
    axis.stackplot(at, *series, colors=list(CLASS_COLOURS.values()), labels=labels, alpha=0.85)
    if len(at) > 1:
        axis.set_xlim(min(at), max(at))
    axis.set_ylim(bottom=0)
    _tokens_axis(axis)


def _class_bars(axis: "Axes", rows: Sequence[Row]) -> None:
    """Bars of the nested documents: the fewest tokens and all."""
    nested = [row for row in rows if row["kind"] == "nested"]
    few, every = (f({row["n_tokens"] for row in nested}) for f in (min, max))
    shown = [row for n in dict.fromkeys((few, every)) for row in nested if row["n_tokens"] == n]
    for y, row in enumerate(shown):
        left = 0.0
        for name, colour in CLASS_COLOURS.items():
            axis.barh(y, row[name], left=left, color=colour, height=0.7, alpha=0.85, zorder=2)
            left += row[name]
        if left == 0:
            axis.text(0, y, " none dead", va="center", fontsize=8, color="#777777")
        ends = [y - 0.4, y + 0.4]
        axis.plot([row["certified_dead"]] * 2, ends, color="white", linewidth=3.5, zorder=3)
        axis.plot([row["certified_dead"]] * 2, ends, color="black", linewidth=1.6, linestyle=":", zorder=4)
    axis.set_yticks(
        range(len(shown)), [f"N = {row['n_tokens']}, {row['tol']:g}" for row in shown], fontsize=8
    )
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=5)
    plain(axis)


# --- null models ---

NULL_COLOURS = {"amortized": COLOURS["amortized"], "optimal": COLOURS["optimal"]}
NULL_PANELS = ("nmse", "nmse_refit", "dead_half", "dense@0.1", "f1@1", "df1", "absorption")


def draw_nulls(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """nulls.png and .svg: a line per SAE, a panel per metric, a bar per kind of codes; grey: null models. Thin lines:
    95 % intervals over documents; ticks on absorption: its chance value."""
    names = list(dict.fromkeys(row["checkpoint"] for row in rows))
    panels = [key for key in NULL_PANELS if any(row.get(key) is not None for row in rows)]
    if not names or not panels:
        return []
    counts = [sum(row["checkpoint"] == name for row in rows) for name in names]
    heights = [0.3 * count + 0.75 for count in counts]
    figure = blank(2.2 + 1.75 * len(panels), sum(heights) + 0.4)
    axes = figure.subplots(len(names), len(panels), squeeze=False, sharey="row", height_ratios=heights)
    for line, name in zip(axes, names, strict=True):
        block = [row for row in rows if row["checkpoint"] == name]
        for axis, key in zip(line, panels, strict=True):
            _null_bars(axis, block, key)
            axis.set_title(null_report.header(key), fontsize=8.5, loc="left")
        line[0].set_yticks(range(len(block)), [null_report.label(row) for row in block], fontsize=8)
        line[0].set_ylim(len(block) - 0.4, -0.6)
        line[0].set_ylabel(name, fontsize=9, weight="bold")
    return saved(figure, folder, "nulls")


def _null_bars(axis: "Axes", block: Sequence[Row], key: str) -> None:
    for y, row in enumerate(block):
        value, lo, hi = (row.get(f"{key}{end}") for end in ("", "_lo", "_hi"))
        if value is None:
            axis.text(0, y, " not defined", va="center", fontsize=6.5, color="#999999", style="italic")
            continue
        axis.barh(y, value, color=NULL_COLOURS.get(row["mode"], "#B0B0B0"), height=0.72, zorder=2)
        if lo is not None and hi is not None:
            axis.plot([lo, hi], [y, y], color="#222222", linewidth=1, zorder=3)
        if key == "absorption" and row.get("absorption_chance") is not None:
            axis.plot(
                [row["absorption_chance"]] * 2, [y - 0.42, y + 0.42], color="black", linewidth=1.6, zorder=4
            )
        chance = row.get("absorption_chance") if key == "absorption" else None
        end = max(v for v in (value, hi, chance, 0.0) if v is not None)
        axis.annotate(short(value), (end, y), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.margins(x=0.28)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.locator_params(axis="x", nbins=3)  # more run together where numbers are long
    plain(axis)
    axis.tick_params(axis="y", length=0)


# --- consistency ---

MCC_BARS = {
    "mcc": ("matched by their own correlation", "#0072B2"),
    "mcc_by_dictionary": ("of the latents that dictionaries match", "#009E73"),
}


def draw_consistency(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """consistency.png and .svg: a panel per pair of SAEs: MCC of dictionaries and of codes under each mode, with
    intervals over documents; black ticks: the level of chance."""
    pairs = list(dict.fromkeys(row["checkpoint"] for row in rows))
    if not pairs:
        return []
    wide = min(3, len(pairs))
    high = -(-len(pairs) // wide)
    lines = max(sum(row["checkpoint"] == pair for row in rows) for pair in pairs)
    figure = blank(1.6 + 3.6 * wide, (0.45 * lines + 0.8) * high + 0.6)
    axes = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, pair in zip(axes, pairs, strict=False):
        _mcc_panel(axis, [row for row in rows if row["checkpoint"] == pair])
        axis.set_title(pair, fontsize=9.5, loc="left", weight="bold")
    for axis in axes[len(pairs) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    figure.legend(
        by_label.values(), by_label.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return saved(figure, folder, "consistency")


def _mcc_panel(axis: "Axes", block: Sequence[Row]) -> None:
    for y, row in enumerate(block):
        for i, (key, (label, colour)) in enumerate(MCC_BARS.items()):
            value = row.get(key)
            if value is None:
                continue
            at = y + 0.2 * (2 * i - 1) if row["mode"] != consistency_report.DICTIONARY else y
            axis.barh(at, value, height=0.36, color=colour, zorder=2, label=label)
            lo, hi = row.get(f"{key}_lo"), row.get(f"{key}_hi")
            if lo is not None and hi is not None:
                axis.plot([lo, hi], [at, at], color="#222222", linewidth=1.2, zorder=3)
            chance = row.get(f"{key}_chance")
            if chance is not None:
                axis.plot([chance] * 2, [at - 0.2, at + 0.2], color="black", linewidth=1.6, zorder=4)
            axis.annotate(
                short(value),
                (max(value, hi or 0), at),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
    axis.set_yticks(range(len(block)), [consistency_report.label(row) for row in block], fontsize=8)
    axis.set_ylim(len(block) - 0.4, -0.6)
    axis.set_xlim(0, 1.12)
    axis.set_xlabel("MCC; ticks: chance", fontsize=8.5)
    plain(axis)
