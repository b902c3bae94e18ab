"""Section 4.3's picture: numbers over training steps, a column per variant, a line of panels per number.

    draw(rows, "outputs/run/figures")      # trajectories.png and .svg

One line per sparsity (light to dark: from the least number to the greatest). Solid: the encoder; dashed: the optimum
at equal L0. Bands are 95 % intervals, of the gap what is certified. Hollow points: encoders too dense to match.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortjax.report.canvas import blank, log_ticks, saved
from amortjax.report.schema import Row
from amortjax.report.trajectories import MEASURES, Line, Measure, Point, lines, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From light to dark, told apart in grey too (viridis without its yellow end).
SHADES = ("#7AD151", "#22A884", "#2A788E", "#414487", "#440154")
LEGEND = 3  # sparsities in a line of the legend
WIDE = 20  # ratio of greatest to least from which on an axis of positive numbers is logarithmic


def draw(rows: Iterable[Row], folder: str | Path, stem: str = "trajectories") -> list[Path]:
    """STEM.png and STEM.svg in `folder`; panels of which no row has a number are left out. [] if there are none."""
    found = lines(rows)
    measures = [
        m for m in MEASURES.values() if any(points(block, m, "amortized") for block in found.values())
    ]
    if not measures:
        return []
    variants = list(dict.fromkeys(variant for variant, _ in found))
    figure = blank(1.2 + 3.3 * len(variants), 0.7 + 1.75 * len(measures))
    axes = figure.subplots(len(measures), len(variants), squeeze=False, sharex="col", sharey="row")
    count = max(sum(line[0] == variant for line in found) for variant in variants)
    high = -(-count // LEGEND)  # lines of the tallest legend
    for column, variant in enumerate(variants):
        own = {line: block for line, block in found.items() if line[0] == variant}
        colours = shades(list(own))
        for row, measure in enumerate(measures):
            _panel(axes[row, column], own, colours, measure)
        axes[0, column].set_title(variant, fontsize=10, weight="bold", pad=12 + 10 * high)
        axes[0, column].legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=LEGEND, fontsize=7, frameon=False, handlelength=1.2,
            columnspacing=1.0, borderaxespad=0.2,
        )  # fmt: skip
        axes[-1, column].set_xlabel("training step", fontsize=8.5)
    for row, measure in enumerate(measures):
        axes[row, 0].set_ylabel(measure.label, fontsize=8.5)
        if _is_wide(measure, found.values()):
            axes[row, 0].set_yscale("log")  # of the whole line of panels
            log_ticks(axes[row, 0].yaxis)
    figure.supxlabel(
        "solid, circles: encoder; dashed, squares: optimum at equal L0; hollow: too dense to match",
        fontsize=8,
    )
    return saved(figure, folder, stem)


def shades(own: list[Line]) -> dict[Line, str]:
    """A colour for each sparsity of a variant, in order."""
    last = max(len(own) - 1, 1)
    return {line: _between(i / last * (len(SHADES) - 1)) for i, line in enumerate(own)}


def _between(place: float) -> str:
    """The colour at a place along SHADES."""
    i = min(int(place), len(SHADES) - 2)
    pair = [[int(shade[k : k + 2], 16) for k in (1, 3, 5)] for shade in SHADES[i : i + 2]]
    mixed = (round(a + (place - i) * (b - a)) for a, b in zip(*pair, strict=True))
    return "#" + "".join(f"{part:02X}" for part in mixed)


def _panel(axis: "Axes", own: dict[Line, list[Row]], colours: dict[Line, str], measure: Measure) -> None:
    for line, block in own.items():
        for mode, dashes in _modes(measure).items():
            way = points(block, measure, mode)
            label = line[1] if mode == "amortized" else None
            style = {"color": colours[line], "linestyle": dashes, "label": label}
            _trajectory(axis, way, style, "o" if mode == "amortized" else "s")
    _steps_axis(axis, own.values())
    axis.tick_params(labelsize=7, length=2)
    axis.grid(color="#EEEEEE", linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _trajectory(axis: "Axes", way: list[Point], style: dict[str, Any], marker: str) -> None:
    axis.plot([p.step for p in way], [p.value for p in way], linewidth=1.2, zorder=3, **style)
    size = 3 if marker == "o" else 2
    for marked, fill in ((False, style["color"]), (True, "white")):
        some = [p for p in way if p.marked == marked]
        axis.plot(
            [p.step for p in some], [p.value for p in some], marker, markersize=size, color=style["color"],
            markerfacecolor=fill, markeredgewidth=0.8, zorder=4,
        )  # fmt: skip
    band = [p for p in way if p.lower is not None and p.upper is not None]
    if len(band) > 1:
        low, high = ([getattr(p, name) for p in band] for name in ("lower", "upper"))
        axis.fill_between(
            [p.step for p in band], low, high, color=style["color"], alpha=0.13, linewidth=0, zorder=2
        )


def _steps_axis(axis: "Axes", blocks: Iterable[list[Row]]) -> None:
    """Steps from 0 on, linear up to the first that is not 0 and logarithmic after it."""
    steps = sorted({row["step"] for block in blocks for row in block})
    first = next((step for step in steps if step > 0), 1)
    axis.set_xscale("symlog", linthresh=first, linscale=0.5)
    axis.set_xlim(-0.25 * first if 0 in steps else 0.8 * first, 1.25 * max(steps[-1], 1))
    axis.set_xticks(steps, [_short(step) for step in steps])
    axis.minorticks_off()


def _is_wide(measure: Measure, blocks: Iterable[list[Row]]) -> bool:
    values = [p.value for block in blocks for mode in _modes(measure) for p in points(block, measure, mode)]
    return bool(values) and min(values) > 0 and max(values) > WIDE * min(values)


def _modes(measure: Measure) -> dict[str, Any]:
    """Line styles."""
    return {"amortized": "-"} | ({"optimal": (0, (3, 2))} if measure.optimum else {})


def _short(step: int) -> str:
    """244, 2.4k, 77k."""
    return str(step) if step < 1000 else f"{step / 1000:.2g}k" if step < 10_000 else f"{step / 1000:.0f}k"
