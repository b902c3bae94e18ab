"""Bars with intervals per metric and mode: one picture per condition, one line of panels per checkpoint.

    draw(rows, "outputs/run")      # outputs/run/same_lambda.png and .svg, same_l0.png and .svg, ...

A panel is one metric, a bar one mode, always in the same order and colour; the arrow says which way is
better. The bar's thin line is the 95 % interval. On absorption the black tick is the chance value. The only
importer of matplotlib, which is loaded when something is drawn.
"""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amortjax.files import write_atomically
from amortjax.metrics.definitions import METRICS
from amortjax.report.numbers import between, with_interval
from amortjax.report.schema import Row, flagged, grouped, mode_label
from amortjax.report.tables import held_equal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), told apart under the common colour blindnesses; grey for the reference.
COLOURS = {
    "amortized": "#D55E00",
    "encoder_scaled": "#E69F00",
    "encoder_refit": "#F0C98A",
    "semi_amortized": "#CC79A7",
    "non_amortized": "#56B4E9",
    "optimal": "#0072B2",
    "optimal_refit": "#009E73",
    "omp": "#7F7F7F",
}


class Panel(NamedTuple):
    title: str
    key: str  # length of the bar
    lower: str = ""  # the other bound, if the metric is known from both sides
    tick: str = ""  # drawn as a black tick


def _panel(name: str, title: str = "", **more: str) -> Panel:
    return Panel(title or METRICS[name].header, name, **more)


_SUBOPTIMALITY = Panel("(P-P*) / P* ↓", "suboptimality_upper", lower="suboptimality_lower")
_NMSE, _DEAD = _panel("nmse"), _panel("dead", "dead@N ↓")
_DEAD_HALF = _panel("dead_half", "dead, half of documents ↓")
_ABSORPTION = _panel("absorption", "absorption ↓  (tick: chance)", tick="absorption_chance")
_MATCHED = (_NMSE, _panel("fvu"), _DEAD_HALF, _panel("dense@0.1"), _panel("df1"), _ABSORPTION)

PANELS: dict[str, tuple[Panel, ...]] = {
    "same_lambda": (_SUBOPTIMALITY, _panel("own_gap", "own-dual gap / P ↓"), _panel("l0"), _NMSE, _DEAD),
    "same_l0": _MATCHED,
    "same_nmse": (_panel("l0"), *_MATCHED[1:]),
    "trained_lambda": (_SUBOPTIMALITY, _panel("own_gap", "own-dual gap / P ↓"), _panel("l0"), _NMSE, _DEAD),
    "literal": (
        _panel("nmse_literal"), _panel("density"), _DEAD, _panel("dense@0.1"), _panel("df1"), _ABSORPTION
    ),
}  # fmt: skip


def draw(rows: Iterable[Row], folder: str | Path, prefix: str = "") -> list[Path]:
    """One png (150 dpi) and one svg per condition in `folder`, named PREFIXcondition; returns the paths."""
    blocks = grouped(map(flagged, rows))
    paths = []
    for condition in dict.fromkeys(condition for _, condition in blocks):
        chosen = {name: block for (name, other), block in blocks.items() if other == condition}
        figure = draw_condition(chosen, condition)
        for ending in ("png", "svg"):
            paths.append(Path(folder) / f"{prefix}{condition}.{ending}")
            write_atomically(paths[-1], _rendered(figure, ending))
    return paths


def draw_condition(blocks: dict[str, list[Row]], condition: str) -> "Figure":
    """{checkpoint: its rows} of one condition -> a figure; panels in which nothing is defined are left
    out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = list(itertools.chain(*blocks.values()))
    panels = [p for p in PANELS.get(condition, _MATCHED) if any(row.get(p.key) is not None for row in every)]
    panels = panels or [PANELS.get(condition, _MATCHED)[0]]
    heights = [0.27 * len(block) + 0.75 for block in blocks.values()]
    figure = Figure(figsize=(1.9 + 1.85 * len(panels), sum(heights) + 0.25), layout="constrained")
    FigureCanvasAgg(figure)
    lines = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for line, (checkpoint, block) in zip(lines, blocks.items(), strict=True):
        off = "   (hatched: not at the target)" if any(map(_off_target, block)) else ""
        line.suptitle(
            f"{checkpoint}: {held_equal(block)}{off}", fontsize=9.5, x=0.008, ha="left", weight="bold"
        )
        axes = line.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel, block)
        axes[0].set_yticks(range(len(block)), [mode_label(row) for row in block], fontsize=8)
        axes[0].set_ylim(len(block) - 0.4, -0.6)
    return figure


def _draw_panel(axis: "Axes", panel: Panel, block: list[Row]) -> None:
    ends = [_end(row, panel) for row in block]
    room = max([abs(end) for end in ends if end is not None], default=0) or 1.0
    for y, (row, end) in enumerate(zip(block, ends, strict=True)):
        _draw_bar(axis, panel, row, y, end, room)
    low = min([0.0, *(end for end in ends if end is not None)])
    low = min([low, *(row[f"{panel.key}_lo"] for row in block if row.get(f"{panel.key}_lo") is not None)])
    axis.set_xlim(1.05 * low - (0.1 * room if low < 0 else 0), 1.5 * room)
    axis.set_title(panel.title, fontsize=8.5, loc="left")
    axis.tick_params(axis="x", labelsize=7, length=2)
    axis.tick_params(axis="y", length=0)
    axis.locator_params(axis="x", nbins=4)
    axis.axvline(0, color="black", linewidth=0.6)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _draw_bar(axis: "Axes", panel: Panel, row: Row, y: int, end: float | None, room: float) -> None:
    value = row.get(panel.key)
    if value is None or end is None:
        axis.text(0.02 * room, y, "not defined", va="center", fontsize=6.5, color="#999999", style="italic")
        return
    style: dict[str, Any] = {"color": COLOURS.get(row["mode"], "#444444"), "height": 0.72, "zorder": 2}
    if _off_target(row):
        style |= {"hatch": "////", "edgecolor": "white", "alpha": 0.75}
    axis.barh(y, value, **style)
    lo, hi = row.get(f"{panel.key}_lo"), row.get(f"{panel.key}_hi")
    if lo is not None and hi is not None:
        axis.plot([lo, hi], [y, y], color="#222222", linewidth=1, zorder=3, solid_capstyle="butt")
    if panel.tick and row.get(panel.tick) is not None:
        axis.plot([row[panel.tick]] * 2, [y - 0.42, y + 0.42], color="black", linewidth=1.6, zorder=4)
    text = between(row.get(panel.lower), value) if panel.lower else with_interval(value, lo, hi).split(" ")[0]
    axis.text(max(end, 0) + 0.03 * room, y, text, va="center", fontsize=7, zorder=5)


def _off_target(row: Row) -> bool:
    """It is not on equal terms with the others."""
    return "unmatchable" in row["flags"] or "l0_off" in row["flags"]


def _end(row: Row, panel: Panel) -> float | None:
    """How far right a bar, its interval and its tick reach; None if it is not defined."""
    if row.get(panel.key) is None:
        return None
    return max(row[k] for k in (panel.key, f"{panel.key}_hi", panel.tick) if row.get(k) is not None)


def _rendered(figure: "Figure", ending: str) -> bytes:
    """The file's bytes; svg without date and with fixed ids, so that equal results give equal files."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "amortjax", "svg.fonttype": "none"}):
        if ending == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            figure.savefig(buffer, format=ending, dpi=150)
    return buffer.getvalue()
