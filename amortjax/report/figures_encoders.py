"""The picture of `launch.encoders`: error against L0 and against what a token's code costs, and a judge's scores.

draw(rows, {"sae": [.7, .62, ...]}, "outputs/run/figures")      # encoders.png and .svg
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amortjax.report.canvas import blank, saved
from amortjax.report.encoders import LABELS
from amortjax.report.schema import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008): a colour for each method; filled for the codes as they are, open for their support refitted.
COLOURS = {
    "sae": "#D55E00", "mlp": "#CC79A7", "lca": "#009E73", "sae_optimal": "#0072B2", "mlp_optimal": "#56B4E9",
}  # fmt: skip


def draw(rows: Iterable[Row], judged: Mapping[str, Sequence[float]], folder: str | Path) -> list[Path]:
    """encoders.png (150 dpi) and .svg in `folder`; panels of which nothing is known are left out. [] without rows."""
    shown = [row for row in rows if row["condition"] == "same_l0" and row.get("nmse") is not None]
    if not shown:
        return []
    scores = {method: values for method, values in judged.items() if len(values)}
    costs = any(row.get("inference_flops") for row in shown)
    panels = 1 + costs + bool(scores)
    figure = blank(4.3 * panels + 0.3, 4.1)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    _draw_errors(axes[0], shown, "l0", "L0", True)
    if costs:
        _draw_errors(axes[1], shown, "inference_flops", "FLOPs a token: encode and decode", False)
    if scores:
        _draw_scores(axes[-1], scores)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(len(names), 4), fontsize=8, frameon=False
    )
    return saved(figure, folder, "encoders")


def _draw_errors(axis: "Axes", rows: Sequence[Row], key: str, text: str, joined: bool) -> None:
    """NMSE over a number that rows have; a line joins the L0s of one method and mode."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, ScalarFormatter

    for method, colour in COLOURS.items():
        for mode in ("amortized", "optimal", "optimal_refit"):
            block = [r for r in rows if (r["method"], r["mode"]) == (method, mode) and r.get(key)]
            block.sort(key=lambda row: row[key])
            if not block:
                continue
            refit = mode == "optimal_refit"
            name = LABELS[method] + (", refit" if refit else "")
            style = {
                "color": colour, "marker": "D" if mode == "amortized" else "o", "markersize": 6,
                "markerfacecolor": "white" if refit else colour, "linewidth": 1.1,
                "linestyle": ("--" if refit else "-") if joined else "none",
            }  # fmt: skip
            axis.plot([r[key] for r in block], [r["nmse"] for r in block], label=name, zorder=3, **style)
            for row in block:
                lo, hi = row.get("nmse_lo"), row.get("nmse_hi")
                if lo is not None and hi is not None:
                    axis.plot([row[key]] * 2, [lo, hi], color=colour, linewidth=0.9, zorder=2)
    axis.set_xscale("log")
    if joined:  # L0s: few octaves, plain numbers
        axis.xaxis.set_major_locator(LogLocator(2, numticks=12))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=0)
    axis.set_xlabel(text, fontsize=9)
    axis.set_ylabel("NMSE ↓", fontsize=9)
    _tidy(axis)


def _draw_scores(axis: "Axes", scores: Mapping[str, Sequence[float]]) -> None:
    """Each latent's macro-F1 as a dot, the median as a line."""
    rng = np.random.default_rng(0)  # so that dots do not hide one another
    for place, (method, values) in enumerate(scores.items()):
        spread = place + 0.3 * (rng.random(len(values)) - 0.5)
        colour = COLOURS.get(method, "#444444")
        axis.plot(spread, values, ".", color=colour, markersize=4, alpha=0.5, zorder=2)
        axis.plot(
            [place - 0.25, place + 0.25],
            [float(np.median(values))] * 2,
            color="black",
            linewidth=1.6,
            zorder=3,
        )
    axis.axhline(0.5, color="#555555", linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    names = [LABELS.get(method, method).replace(" + ", "\n+ ").replace("'s ", "'s\n") for method in scores]
    axis.set_xticks(range(len(scores)), names, fontsize=7.5)
    axis.set_ylim(0, 1.02)
    axis.set_ylabel("macro-F1 of a latent ↑", fontsize=9)
    axis.set_title("line: median; dashes: chance", fontsize=8, loc="left")
    _tidy(axis)


def _tidy(axis: "Axes") -> None:
    axis.tick_params(labelsize=8)
    axis.grid(color="#EEEEEE", zorder=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
