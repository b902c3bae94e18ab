"""Where codes are recovered: maps of the latent MCC over sources x dimensions, and what other methods add to the SAE.

    boundary(rows, "outputs/run/figures", reference="SAE")     # boundary.png and .svg

A row is a cell (seeds are averaged): sources, dimensions, active (the paper's N, M, K), method, mcc, mcc_chance. A line
of panels per K: a map per method, then differences to the reference. Dashed: K ln(N / K) = M, drawn only where
K <= N / 2 (beyond, the formula says nothing); dotted: M = N, above which a linear encoder can be exact. Hatched: not
above chance by more than 0.05.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amortjax.report.canvas import blank, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEAR_CHANCE = 0.05
EDGE = (0.42, 0.3)  # room for the numbers of the outer cells, log2 units along N and M
Cells = dict[tuple[str, int, int, int], float]  # (method, active, sources, dimensions): mean over seeds


def boundary(
    rows: Iterable[Mapping[str, Any]],
    folder: str | Path,
    stem: str = "boundary",
    metric: str = "mcc",
    reference: str | None = None,
) -> list[Path]:
    """STEM.png and .svg; chance levels are in METRIC_chance. `reference`: method that differences are taken to, by
    default the one whose name is "sae", in whatever case, or else the first. [] if no row has the metric."""
    rows = [row for row in rows if _finite(row.get(metric))]
    if not rows:
        return []
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    base = reference or next((name for name in methods if name.lower() == "sae"), methods[0])
    others = [name for name in methods if name != base] if base in methods else []
    active = sorted({int(row["active"]) for row in rows})
    cells, chance = averaged(rows, metric), averaged(rows, f"{metric}_chance")
    wide = len(methods) + len(others)
    figure = blank(1.5 + 2.9 * wide, 0.9 + 2.5 * len(active))
    axes = figure.subplots(len(active), wide, squeeze=False, sharex=True, sharey=True)
    images: list[Any] = [None, None]
    spread = _spread(cells, base, others)
    for line, k in zip(axes, active, strict=True):
        for axis, name in zip(line, methods, strict=False):
            grid = gridded(cells, name, k)
            images[0] = _map(axis, grid, "cividis", 0.0, 1.0)
            _near_chance(axis, grid, gridded(chance, name, k))
            _guides(axis, grid, k, "white")
        for axis, name in zip(line[len(methods) :], others, strict=True):
            grid = minus(gridded(cells, name, k), gridded(cells, base, k))
            images[1] = _map(axis, grid, "PuOr", -spread, spread)
            _guides(axis, grid, k, "black")
        line[0].set_ylabel(f"K = {k}\ndimensions M", fontsize=10)
    titles = [*methods, *(f"{name} − {base}" for name in others)]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10, weight="bold")
    for axis in axes[-1]:
        axis.set_xlabel("sources N", fontsize=9.5)
    _bars(figure, images, axes, len(methods), metric)
    return saved(figure, folder, stem)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def averaged(rows: Iterable[Mapping[str, Any]], key: str) -> Cells:
    """Means over seeds; cells without a number are left out."""
    found: dict[tuple[str, int, int, int], list[float]] = {}
    for row in rows:
        if _finite(row.get(key)):
            at = (str(row["method"]), int(row["active"]), int(row["sources"]), int(row["dimensions"]))
            found.setdefault(at, []).append(float(row[key]))
    return {at: statistics.fmean(values) for at, values in found.items()}


class Grid:
    """A map: `sources` (X,), `dimensions` (Y,), `values` (Y, X), NaN where nothing was measured."""

    def __init__(self, sources: Sequence[int], dimensions: Sequence[int], values: np.ndarray) -> None:
        self.sources, self.dimensions, self.values = list(sources), list(dimensions), values

    @property
    def x(self) -> np.ndarray:
        return np.log2(self.sources)

    @property
    def y(self) -> np.ndarray:
        return np.log2(self.dimensions)


def gridded(cells: Cells, method: str, active: int) -> Grid:
    """One method at one K, on the axes that all cells of that K share."""
    sources = sorted({n for _, k, n, _ in cells if k == active})
    dimensions = sorted({m for _, k, _, m in cells if k == active})
    values = np.array([[cells.get((method, active, n, m), np.nan) for n in sources] for m in dimensions])
    return Grid(sources, dimensions, values.reshape(len(dimensions), len(sources)))


def minus(a: Grid, b: Grid) -> Grid:
    return Grid(a.sources, a.dimensions, a.values - b.values)


def boundary_line(active: int, least: float, most: float) -> tuple[np.ndarray, np.ndarray]:
    """N and M = K ln(N / K) from the larger of `least` and 2 K up to `most` sources; empty if that is nowhere."""
    start = max(least, 2.0 * active)
    if start > most:
        return np.zeros(0), np.zeros(0)
    sources = np.geomspace(start, most, 200)
    return sources, active * np.log(sources / active)


def _spread(cells: Cells, base: str, others: Sequence[str]) -> float:
    """The largest difference that is shown, on one scale for all K, in steps of 0.1."""
    off = [
        abs(value - cells[base, *at[1:]])
        for at, value in cells.items()
        if at[0] in others and (base, *at[1:]) in cells
    ]
    return max(0.1, math.ceil(10 * max(off, default=0.0) - 1e-9) / 10)


def _map(axis: "Axes", grid: Grid, colours: str, low: float, high: float) -> Any:
    """Filled contours, with each measured cell's value at its place; plain cells where contours can't be drawn."""
    values, levels = np.ma.masked_invalid(grid.values), np.linspace(low, high, 21)
    x, y = grid.x, grid.y
    if min(values.shape) >= 2 and not values.mask.any():
        # The outer cells' values go on to the panel's border.
        x, y, values = _with_border(x, EDGE[0]), _with_border(y, EDGE[1]), np.pad(grid.values, 1, mode="edge")
        image = axis.contourf(x, y, np.clip(values, low, high), levels=levels, cmap=colours)
        axis.contour(x, y, values, levels=levels[::2], colors="white", linewidths=0.4, alpha=0.6)
    else:
        image = axis.pcolormesh(_edges(x), _edges(y), values, cmap=colours, vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(grid.values):
        if np.isfinite(value):
            _write(axis, float(grid.x[j]), float(grid.y[i]), f"{value:+.2f}" if low < 0 else f"{value:.2f}")
    _ticks(axis, grid)
    return image


def _write(axis: "Axes", x: float, y: float, text: str) -> None:
    """A number that can be read on light, on dark and on lines."""
    from matplotlib import patheffects

    outline = [patheffects.withStroke(linewidth=2.2, foreground="white", alpha=0.85)]
    axis.text(x, y, text.replace("0.", ".", 1), ha="center", va="center", fontsize=7.5, zorder=6,
              path_effects=outline)  # fmt: skip


def _with_border(at: np.ndarray, extra: float) -> np.ndarray:
    return np.concatenate([[at[0] - extra], at, [at[-1] + extra]])


def _edges(at: np.ndarray) -> np.ndarray:
    """Borders half-way between places."""
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])


def _ticks(axis: "Axes", grid: Grid) -> None:
    """Room for the numbers at the border cells."""
    axis.set_xlim(grid.x[0] - EDGE[0], grid.x[-1] + EDGE[0])
    axis.set_ylim(grid.y[0] - EDGE[1], grid.y[-1] + EDGE[1])
    axis.set_xticks(grid.x, list(map(str, grid.sources)), fontsize=8)
    axis.set_yticks(grid.y, list(map(str, grid.dimensions)), fontsize=8)
    axis.tick_params(length=2)
    axis.set_facecolor("#DDDDDD")


def _near_chance(axis: "Axes", grid: Grid, chance: Grid) -> None:
    """Hatches cells whose value is not above chance by more than NEAR_CHANCE."""
    if chance.values.shape != grid.values.shape:
        return
    x, y = _edges(grid.x), _edges(grid.y)
    from matplotlib.patches import Rectangle

    for i, j in np.argwhere(grid.values - chance.values <= NEAR_CHANCE):
        left, right, bottom, top = (float(v) for v in (x[j], x[j + 1], y[i], y[i + 1]))
        style: dict[str, Any] = {"hatch": "////", "edgecolor": "#FFFFFF80", "linewidth": 0, "zorder": 3}
        axis.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, **style))


def _guides(axis: "Axes", grid: Grid, active: int, colour: str) -> None:
    """K ln(N / K) = M, and M = N."""
    from matplotlib import patheffects

    other = "black" if colour == "white" else "white"
    outline = [patheffects.Stroke(linewidth=2.8, foreground=other, alpha=0.6), patheffects.Normal()]
    style: dict[str, Any] = {"color": colour, "linewidth": 1.5, "path_effects": outline, "zorder": 4}
    left, right = axis.get_xlim()
    bottom, top = axis.get_ylim()
    sources, dimensions = boundary_line(active, 2**left, 2**right)
    if len(sources):
        axis.plot(
            np.log2(sources), np.log2(dimensions), linestyle=(0, (5, 2.5)), label="K ln(N/K) = M", **style
        )
    low, high = max(left, bottom), min(right, top)
    if low < high:
        axis.plot([low, high], [low, high], linestyle=":", label="M = N", **style)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def _bars(figure: Any, images: Sequence[Any], axes: np.ndarray, n_methods: int, metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    names = (metric.upper() if metric == "mcc" else metric, f"difference in {metric.upper()}")
    for image, own, name in zip(images, (axes[:, :n_methods], axes[:, n_methods:]), names, strict=True):
        if image is not None and own.size:
            bar = figure.colorbar(image, ax=own, location="bottom", shrink=0.6, aspect=40, pad=0.02)
            bar.set_label(name, fontsize=9.5)
            bar.ax.tick_params(labelsize=8)
            bar.locator = MaxNLocator(9)
            bar.update_ticks()
    caption = "dashed: K ln(N/K) = M, only where K ≤ N/2;  dotted: M = N;  hatched: within .05 of chance"
    figure.supxlabel(caption, fontsize=9, color="#444444")
