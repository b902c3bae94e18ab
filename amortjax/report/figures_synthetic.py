"""Curves of the synthetic scenarios: what was found, against training steps (rows of `launch.synthetic`).

    draw(rows, "outputs/run/figures")      # synthetic_curves.png and .svg

A line of panels per scenario and distribution. Bands: one standard deviation over runs. Dotted: chance. For inference-
time optimisation on a known dictionary the steps are its iterations.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from amortjax.report.canvas import blank, log_ticks, plain, saved
from amortjax.report.schema import Row
from amortjax.report.synthetic import SCENARIOS, curves, groups, label_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008).
COLOURS = {
    "sae": "#D55E00", "sae_ito": "#0072B2", "sparse_coding": "#009E73", "mlp32": "#E69F00", "mlp256": "#CC79A7",
    "mlp1024": "#000000",
}  # fmt: skip
OTHERS = ("#56B4E9", "#7F7F7F", "#F0E442")


class Panel(NamedTuple):
    title: str
    key: str
    chance: str = ""
    logarithmic: bool = False


PANELS = (
    Panel("latent MCC ↑", "mcc", "mcc_chance"),
    Panel("dictionary MCC ↑", "dict_mcc", "dict_mcc_chance"),
    Panel("loss ↓", "loss_test", "", True),
    Panel("(P - P*) / P* ↓", "suboptimality", "", True),
    Panel("L0 (above .001)", "l0@0.001"),
)


def draw(rows: Iterable[Row], folder: str | Path, stem: str = "synthetic_curves") -> list[Path]:
    """STEM.png and STEM.svg in `folder`; [] without rows."""
    blocks = groups(rows, "scenario", "distribution")
    if not blocks:
        return []
    every = [row for block in blocks.values() for row in block]
    panels = [panel for panel in PANELS if any(row.get(panel.key) is not None for row in every)]
    figure = blank(3.1 * len(panels) + 1.2, 2.7 * len(blocks) + 0.2)
    parts = figure.subfigures(len(blocks), 1, squeeze=False)[:, 0]
    for part, ((scenario, distribution), block) in zip(parts, blocks.items(), strict=True):
        title = f"{SCENARIOS.get(scenario, scenario)}, {distribution}"
        part.suptitle(title, fontsize=9.5, x=0.008, ha="left", weight="bold")
        axes = part.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel, block)
        handles = axes[0].get_legend_handles_labels()
        part.legend(*handles, loc="outside right center", fontsize=7.5, frameon=False)
    return saved(figure, folder, stem)


def _draw_panel(axis: "Axes", panel: Panel, block: list[Row]) -> None:
    spare = iter(OTHERS * 10)
    for method, steps in curves(block).items():
        colour = COLOURS.get(method) or next(spare)
        known = {
            step: [r[panel.key] for r in runs if r.get(panel.key) is not None] for step, runs in steps.items()
        }
        known = {step: values for step, values in known.items() if values}
        at = [step + 1 for step in known]
        middle = [statistics.fmean(values) for values in known.values()]
        wide = [statistics.pstdev(values) for values in known.values()]
        if not at:
            continue
        axis.plot(at, middle, color=colour, linewidth=1.3, label=label_of({"method": method}))
        low = [m - w for m, w in zip(middle, wide, strict=True)]
        if not panel.logarithmic or min(low, default=0) > 0:
            high = [m + w for m, w in zip(middle, wide, strict=True)]
            axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    levels = [row[panel.chance] for row in block if panel.chance and row.get(panel.chance)]
    if levels:
        axis.axhline(statistics.fmean(levels), color="#444444", linewidth=1, linestyle=":")
    axis.set_xscale("log")
    drawn = [row[panel.key] for row in block if row.get(panel.key) is not None]
    if panel.logarithmic and drawn and min(drawn) > 0:
        axis.set_yscale("log")
    if not drawn:
        axis.text(
            0.5, 0.5, "not defined", transform=axis.transAxes, ha="center", fontsize=7.5, color="#999999"
        )
        axis.set_xlim(1, 10)
    axis.set_title(panel.title, fontsize=8.5, loc="left")
    axis.set_xlabel("steps", fontsize=8)
    plain(axis)
    log_ticks(axis.xaxis)
    if axis.get_yscale() == "log":
        log_ticks(axis.yaxis)
