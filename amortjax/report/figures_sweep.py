"""The step sweep's picture: numbers over steps, a line of panels per checkpoint and condition.

    draw(rows, "outputs/run/figures")      # step_sweep.png and .svg

One line per start; the horizontal line is the optimum's. Bands are 95 % intervals, of the gap what is certified.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from amortjax.report.canvas import blank, log_ticks, saved
from amortjax.report.figures import COLOURS
from amortjax.report.schema import Row, flagged, grouped
from amortjax.report.sweep import STARTS, lines, optimum_of
from amortjax.report.tables import held_equal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

LINES = {"encoder": "#D55E00", "alista": "#009E73"}  # of the starts, by Okabe & Ito
WIDE = 20  # ratio of greatest to least from which on an axis of positive numbers is logarithmic


class Panel(NamedTuple):
    title: str
    key: str
    ends: tuple[str, str] | None = None  # columns of the band; by default KEY_lo and KEY_hi
    optimum: bool = True  # the optimum has such a number
    also: str = ""  # a second number, dotted

    @property
    def band(self) -> tuple[str, str]:
        return self.ends or (f"{self.key}_lo", f"{self.key}_hi")


_GAP = Panel("(P-P*) / P* ↓", "suboptimality_upper", ("suboptimality_lower", "suboptimality_upper"), False)
_LAM = Panel("λ of each", "lam")
_REST = (
    Panel("L0", "l0"),
    Panel("NMSE ↓", "nmse"),
    Panel("dead@N ↓", "dead"),
    Panel("ΔF1 ↓", "df1"),
    Panel("absorption - chance ↓", "absorption_excess"),
    Panel(
        "support in common with\noptimum, encoder (dotted)", "jaccard_optimal", None, False, "jaccard_encoder"
    ),
)
PANELS = {"same_lambda": (_GAP, *_REST), "same_l0": (_LAM, *_REST)}


def draw(rows: Iterable[Row], folder: str | Path, stem: str = "step_sweep") -> list[Path]:
    """STEM.png and STEM.svg in `folder`; panels of which no row has a number stay empty. [] if there are no rows."""
    blocks = {key: block for key, block in grouped(map(flagged, rows)).items() if lines(block)}
    if not blocks:
        return []
    figure = blank(14.5, 2.35 * len(blocks) + 0.3)
    parts = figure.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    for part, ((checkpoint, condition), block) in zip(parts, blocks.items(), strict=True):
        part.suptitle(f"{checkpoint}: {held_equal(block)}", fontsize=9.5, x=0.008, ha="left", weight="bold")
        _draw_block(part, PANELS.get(condition, PANELS["same_l0"]), block)
    handles = parts[0].axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), fontsize=8, frameon=False)
    return saved(figure, folder, stem)


def _draw_block(part: "SubFigure", panels: Sequence[Panel], block: list[Row]) -> None:
    axes = part.subplots(1, len(panels), squeeze=False)[0]
    ways, best = lines(block), optimum_of(block)
    for axis, panel in zip(axes, panels, strict=True):
        for start, way in ways.items():
            _draw_line(axis, panel, start, way)
        _draw_optimum(axis, panel, best)
        _steps_axis(axis, sorted({row["steps"] for way in ways.values() for row in way}))
        values = [row[panel.key] for way in ways.values() for row in way if row.get(panel.key) is not None]
        if values and min(values) > 0 and max(values) > WIDE * min(values):
            axis.set_yscale("log")
            log_ticks(axis.yaxis)
        if values and not any(values):  # nothing is dead: no axis around 0 with a negative half
            axis.set_ylim(0, 1)
        axis.set_title(panel.title, fontsize=8.5, loc="left")
        axis.tick_params(labelsize=7, length=2)
        axis.grid(color="#EEEEEE", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    if best:  # so that the legend has it, whatever the first panel shows
        axes[0].plot([], [], color=COLOURS["optimal"], linestyle=(0, (5, 2)), label="optimum, certified")


def _draw_line(axis: "Axes", panel: Panel, start: str, way: list[Row]) -> None:
    known = [row for row in way if row.get(panel.key) is not None]
    at, colour = [row["steps"] for row in known], LINES[start]
    style = {"color": colour, "linewidth": 1.3, "markersize": 3, "zorder": 3}
    axis.plot(at, [row[panel.key] for row in known], "o-", label=f"steps from {STARTS[start]}", **style)
    low, high = panel.band
    ends = [(row["steps"], row[low], row[high]) for row in known if None not in (row.get(low), row.get(high))]
    if len(ends) > 1:
        x, bottom, top = zip(*ends, strict=True)
        axis.fill_between(x, bottom, top, color=colour, alpha=0.18, linewidth=0, zorder=2)
    others = [
        (row["steps"], row[panel.also]) for row in way if panel.also and row.get(panel.also) is not None
    ]
    if others:
        axis.plot(*zip(*others, strict=True), ":", color=colour, linewidth=1.3, zorder=3)


def _draw_optimum(axis: "Axes", panel: Panel, best: Row) -> None:
    if not panel.optimum or best.get(panel.key) is None:
        return
    style = {"color": COLOURS["optimal"], "linewidth": 1.2, "linestyle": (0, (5, 2)), "zorder": 2.5}
    axis.axhline(best[panel.key], **style)
    low, high = (best.get(end) for end in panel.band)
    if low is not None and high is not None:
        axis.axhspan(low, high, color=COLOURS["optimal"], alpha=0.12, linewidth=0, zorder=1)


def _steps_axis(axis: "Axes", steps: list[int]) -> None:
    """From 0 on, linear up to the first that is not 0 and logarithmic after it."""
    first = next((step for step in steps if step > 0), 1)
    axis.set_xscale("symlog", linthresh=first, linscale=0.5)
    axis.set_xlim(-0.25 * first, 1.25 * max(steps[-1], 1))
    shown = [step for step in steps if step in (0, 1, 5, 30, 200)]
    shown = shown if len(shown) > 1 else steps
    axis.set_xticks(shown, list(map(str, shown)))
    axis.minorticks_off()
    axis.set_xlabel("steps", fontsize=8)
