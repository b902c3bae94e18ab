"""What training and inference buy: a metric against FLOPs, with the Pareto frontier over all methods.

    pareto(rows, "outputs/run/figures")      # pareto_known_dictionary.png and .svg, one picture per scenario

A row is one (scenario, method, seed, step): train_flops, inference_flops (of the whole test set), and any of mcc,
dict_mcc, loss with mcc_chance, dict_mcc_chance (or `chance`, of mcc). Lines are means over seeds, bands one standard
deviation, both from the seeds that have that step. Methods without training stand left of the axis, at "0".
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amortjax.report.canvas import blank, log_ticks, plain, saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008); with other dashes and markers once they are used up.
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")  # not as many as colours: no pair comes twice soon


class Metric(NamedTuple):
    key: str
    label: str
    higher: bool  # is better
    chance: tuple[str, ...] = ()  # columns of its chance level, the first that is there
    most: float = math.inf  # no band reaches above this


METRICS = (
    Metric("mcc", "latent MCC ↑", True, ("mcc_chance", "chance"), 1.0),
    Metric("dict_mcc", "dictionary MCC ↑", True, ("dict_mcc_chance",), 1.0),
    Metric("loss", "loss ↓", False),
)
AXES = {"train_flops": "training FLOPs", "inference_flops": "inference FLOPs"}


class Point(NamedTuple):
    """A method at a step: FLOPs, mean of the metric over `n` seeds, and its standard deviation (0 of one seed)."""

    step: float
    x: float
    mean: float
    spread: float
    n: int


def pareto(
    rows: Iterable[Mapping[str, Any]],
    folder: str | Path,
    stem: str = "pareto",
    metrics: Sequence[Metric] = METRICS,
) -> list[Path]:
    """STEM_SCENARIO.png and .svg; columns are metrics of which some row has a number, lines the two kinds of FLOPs.
    [] if there is nothing to draw."""
    rows, paths = list(rows), []
    for scenario in dict.fromkeys(str(row.get("scenario") or "") for row in rows):
        own = [row for row in rows if str(row.get("scenario") or "") == scenario]
        shown = [metric for metric in metrics if any(_number(row, metric.key) is not None for row in own)]
        axes = [key for key in AXES if any(_number(row, key) is not None for row in own)]
        if shown and axes:
            figure = _figure(own, scenario, shown, axes)
            paths += saved(figure, folder, f"{stem}_{scenario}" if scenario else stem)
    return paths


def points(rows: Iterable[Mapping[str, Any]], metric: str, flops: str) -> dict[str, list[Point]]:
    """{method: its points by step}; rows without the metric or the FLOPs are left out."""
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for row in rows:
        value, x = _number(row, metric), _number(row, flops)
        if value is not None and x is not None and x >= 0:
            found.setdefault((str(row["method"]), _number(row, "step") or 0.0), []).append((x, value))
    out: dict[str, list[Point]] = {}
    for (method, step), pairs in sorted(found.items(), key=lambda item: item[0][1]):
        values = [value for _, value in pairs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        x = statistics.fmean(x for x, _ in pairs)
        out.setdefault(method, []).append(Point(step, x, statistics.fmean(values), spread, len(values)))
    return out


def frontier(marks: Iterable[tuple[float, float]], higher: bool) -> list[tuple[float, float]]:
    """Of (cost, value) those that no other beats in both, by cost."""
    out: list[tuple[float, float]] = []
    sign = 1 if higher else -1
    for x, y in sorted(marks, key=lambda mark: (mark[0], -sign * mark[1])):
        if not out or sign * y > sign * out[-1][1]:
            out.append((x, y))
    return out


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _figure(
    rows: Sequence[Mapping[str, Any]], scenario: str, metrics: Sequence[Metric], axes: Sequence[str]
) -> Any:
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    figure = blank(1.2 + 4.6 * len(metrics), 0.9 + 3.5 * len(axes))
    panels = figure.subplots(len(axes), len(metrics), squeeze=False)
    for (i, key), (j, metric) in itertools.product(enumerate(axes), enumerate(metrics)):
        axis = panels[i, j]
        _panel(axis, rows, metric, key, methods)
        axis.set_xlabel(AXES[key], fontsize=9)
        if i == 0:
            axis.set_title(metric.label, fontsize=10.5, loc="left", weight="bold")
    handles: dict[str, Any] = {}
    for axis in panels.ravel():
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True)) | handles
    fits = max(2, int(1.9 * len(metrics)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), fits),
                  fontsize=9, frameon=False, handlelength=3.2)  # fmt: skip
    figure.suptitle(scenario.replace("_", " "), fontsize=11, x=0.008, ha="left", weight="bold")
    return figure


def _panel(
    axis: "Axes", rows: Sequence[Mapping[str, Any]], metric: Metric, flops: str, methods: Sequence[str]
) -> None:
    found = points(rows, metric.key, flops)
    if flops == "inference_flops":
        # Training moves a method along its own vertical: only its last step is what inference buys.
        found = {method: _last_at_each_cost(own) for method, own in found.items()}
    costs = [point.x for own in found.values() for point in own]
    positive = [x for x in costs if x > 0]
    nothing = min(positive, default=1.0) / 4  # where a cost of 0 stands on a logarithmic axis
    for method, own in found.items():
        _line(axis, metric, method, methods.index(method), [p._replace(x=p.x or nothing) for p in own])
    best = frontier(
        [(point.x or nothing, point.mean) for own in found.values() for point in own], metric.higher
    )
    if len(best) > 1 or positive:
        right = max(positive, default=1.0) * 1.3
        steps = [*best, (right, best[-1][1])] if best else []
        axis.step(*zip(*steps, strict=True), where="post", color="black", linewidth=0.9, linestyle=(0, (4, 2)),
                  zorder=1.5, label="Pareto frontier of the means")  # fmt: skip
    _chance(axis, rows, metric)
    axis.set_xscale("log")
    values = [point.mean for own in found.values() for point in own]
    if not metric.higher and values and 0 < 10 * min(values) < max(values):
        axis.set_yscale("log")
    plain(axis)
    if any(x == 0 for x in costs):
        axis.axvline(2 * nothing, color="#999999", linewidth=0.7, linestyle=":")
        axis.annotate("0", (nothing, 0), (0, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", va="top", fontsize=8)  # fmt: skip
        axis.set_xlim(left=nothing / 2)
    log_ticks(axis.xaxis)
    if any(x == 0 for x in costs):  # the number 0 stands there
        kept = [tick for tick in axis.get_xticks() if tick > 2 * nothing]
        axis.set_xticks(kept, [f"{tick:g}" for tick in kept])


def _last_at_each_cost(own: Sequence[Point]) -> list[Point]:
    """By cost, of several steps at one cost the last."""
    return sorted({point.x: point for point in own}.values(), key=lambda point: point.x)


def _line(axis: "Axes", metric: Metric, method: str, number: int, own: Sequence[Point]) -> None:
    colour, dash = PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]
    mark = MARKS[number % len(MARKS)]
    x, y = [p.x for p in own], [p.mean for p in own]
    style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.6, "zorder": 3}
    axis.plot(x, y, marker=mark, markersize=6, markevery=[len(x) - 1], label=method, **style)
    low, high = [p.mean - p.spread for p in own], [min(p.mean + p.spread, metric.most) for p in own]
    if len(set(x)) > 1:
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
    elif any(p.n > 1 for p in own):
        axis.plot([x[-1]] * 2, [low[-1], high[-1]], color=colour, linewidth=1.2, zorder=2.5)


def _chance(axis: "Axes", rows: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    """A line at the chance level; a band where it differs between rows."""
    for key in metric.chance:
        levels = [value for row in rows if (value := _number(row, key)) is not None]
        if levels:
            style: dict[str, Any] = {"color": "#777777", "zorder": 1}
            axis.axhline(statistics.fmean(levels), linewidth=1.2, linestyle=":", label="chance", **style)
            if max(levels) - min(levels) > 0.01:
                axis.axhspan(min(levels), max(levels), alpha=0.12, linewidth=0, **style)
            return
