"""Bars with intervals per metric and mode: one picture per condition, one line of panels per checkpoint.

    draw(rows, "outputs/run")      # outputs/run/same_lambda.png and .svg, same_l0.png and .svg, ...

A panel is one metric, a bar one mode, always in the same order and colour; the arrow says which way is
better. The bar's thin line is the 95 % interval. On absorption the black tick is the chance value. The only
importer of matplotlib, which is loaded when something is drawn.

    draw_bench(rows, "outputs/bench")      # what codes cost against how good they are: bench_inference's rows
"""

import itertools
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amortjax.metrics.definitions import METRICS
from amortjax.report.canvas import blank, saved
from amortjax.report.numbers import between, with_interval
from amortjax.report.schema import Row, flagged, grouped, mode_label
from amortjax.report.tables import held_equal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

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
        paths += saved(figure, folder, f"{prefix}{condition}")
    return paths


def draw_condition(blocks: dict[str, list[Row]], condition: str) -> "Figure":
    """{checkpoint: its rows} of one condition -> a figure; panels in which nothing is defined are left
    out."""
    every = list(itertools.chain(*blocks.values()))
    panels = [p for p in PANELS.get(condition, _MATCHED) if any(row.get(p.key) is not None for row in every)]
    panels = panels or [PANELS.get(condition, _MATCHED)[0]]
    heights = [0.27 * len(block) + 0.75 for block in blocks.values()]
    figure = blank(1.9 + 1.85 * len(panels), sum(heights) + 0.25)
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
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
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


BENCH_COLOURS = {"amortjax": "#0072B2", "l0": "#009E73"}  # of ours, and of ours bounded in L0; others are
OTHER_LIBRARY = "#D55E00"
SMALLEST_GAP = 1e-8  # a certificate in float32 says nothing below


def draw_bench(rows: Iterable[Row], folder: str | Path, stem: str = "compute_against_gap") -> list[Path]:
    """STEM.png and STEM.svg: one panel per problem, one marker per solver at (encoder forwards, median
    relative gap), with a line up to the worst token."""
    problems: dict[str, list[Row]] = {}
    for row in rows:
        problems.setdefault(row["problem"], []).append(row)
    wide = min(len(problems), 2)
    high = -(-len(problems) // wide)
    figure = blank(7.4 * wide, 5.2 * high + 0.5)
    axes = figure.subplots(high, wide, squeeze=False).ravel()
    for axis, (name, block) in zip(axes, problems.items(), strict=False):
        _draw_costs(axis, name, block)
    for axis in axes[len(problems) :]:
        axis.set_visible(False)
    caption = (
        "Blue: this library; green: this library, bounded in L0 (the gap is not its aim); orange: others. "
        "Lines reach up to the worst token; below the dashes a token counts as certified."
    )
    figure.supxlabel("\n".join(textwrap.wrap(caption, 95 * wide)), fontsize=9)
    # Where labels fit is known only once the panels have their final places.
    figure.draw_without_rendering()
    for axis, block in zip(axes, problems.values(), strict=False):
        _label_costs(axis, block)
    return saved(figure, folder, stem)


def _gap(row: Row, which: str) -> float:
    value = row.get(f"relative_gap_{which}")
    return 1.0 if value is None else min(max(value, SMALLEST_GAP), 1.0)


def _bench_colour(row: Row) -> str:
    kind = "l0" if row["goal"] == "l0" else row["library"]
    return BENCH_COLOURS.get(kind, OTHER_LIBRARY)


def _draw_costs(axis: "Axes", name: str, block: list[Row]) -> None:
    for row in block:
        x, colour = row["forwards"], _bench_colour(row)
        ends = [_gap(row, "median"), _gap(row, "worst")]
        axis.plot([x, x], ends, color=colour, linewidth=1.2, alpha=0.55, zorder=2)
        axis.plot([x], ends[1:], marker="_", markersize=6, color=colour, alpha=0.55, zorder=2)
        axis.plot([x], ends[:1], marker="o", markersize=6, color=colour, zorder=3)
    axis.axhline(block[0]["tol"], color="#555555", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(SMALLEST_GAP / 2, 2)
    costs = [row["forwards"] for row in block]
    # Room on the right for the labels of the dearest.
    axis.set_xlim(0.6 * min(costs), 4 * max(costs))
    axis.set_title(f"{name}: optimum's L0 {block[0]['optimum_l0']:.3g}", fontsize=10.5, loc="left")
    axis.set_xlabel("encoder forwards", fontsize=9)
    axis.set_ylabel("relative gap", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#EEEEEE", zorder=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _label_costs(axis: "Axes", block: list[Row]) -> None:
    """Each marker's name beside it, at the nearest place that covers neither another name nor a marker."""
    from matplotlib.transforms import Bbox

    ends = [[(row["forwards"], _gap(row, which)) for which in ("median", "worst")] for row in block]
    marks = [axis.transData.transform(pair) for pair in ends]
    taken = [Bbox.from_extents(x - 6, y - 6, x + 6, max(y, top) + 6) for (x, y), (_, top) in marks]
    back = axis.transData.inverted()
    for row, ((x, y), _) in sorted(zip(block, marks, strict=True), key=lambda pair: -pair[1][0][1]):
        colour = _bench_colour(row)
        text = axis.text(row["forwards"], _gap(row, "median"), row["solver"], fontsize=8, va="center")
        text.set(color=colour, zorder=5)
        place = _free_place((x, y), text.get_window_extent(), axis.get_window_extent(), taken)
        taken.append(place)
        middle = (place.y0 + place.y1) / 2
        left, level = back.transform((place.x0, middle))
        text.set_position((float(left), float(level)))
        near = min(max(x, place.x0), place.x1)
        if abs(near - x) + abs(middle - y) > 24:
            line = back.transform([(x, y), (near, middle)])
            axis.plot(*line.T, color=colour, linewidth=0.5, zorder=1)


def _free_place(at: tuple[float, float], box: "Bbox", panel: "Bbox", taken: list["Bbox"]) -> "Bbox":
    """Where a text of the size of `box` may stand near `at` (pixels); the last place tried if all are taken."""
    from matplotlib.transforms import Bbox

    # Right, left, above, below, and on the diagonals, further and further out.
    around = [(1, 0), (-1, 0), (0.3, 1), (0.3, -1), (1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6)]
    for far in (10, 18, 30, 45, 65, 90, 120, 160, 200):
        for dx, dy in around:
            left = at[0] + far * dx - (box.width if dx < 0 else 0)
            place = Bbox.from_bounds(left, at[1] + far * dy - box.height / 2, box.width, box.height)
            inside = (
                panel.x0 < place.x0 and place.x1 < panel.x1 and panel.y0 < place.y0 and place.y1 < panel.y1
            )
            if inside and not any(place.overlaps(other) for other in taken):
                return place
    return place
