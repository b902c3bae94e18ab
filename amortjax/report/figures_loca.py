"""Pictures of LocA-SAE beside its controls, and of the signals that group its latents."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.files import write_atomically
from amortjax.report.canvas import rendered
from amortjax.report.figures import COLOURS
from amortjax.report.loca import NAMES
from amortjax.report.numbers import short

Row = Mapping[str, Any]
KINDS = {
    "nmse": ("encoder", COLOURS["amortized"]),
    "nmse_encoder_refit": ("encoder's support, refit", COLOURS["encoder_refit"]),
    "nmse_optimal_refit": ("optimum's support, refit", COLOURS["optimal_refit"]),
}


def draw_loca(rows: Sequence[Row], path: Path) -> Path:
    """NMSE of each SAE's encoder, of its support refitted, and of the optimum's support refitted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.62 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    y = np.arange(len(rows))[::-1]
    for shift, (key, (label, colour)) in zip((0.26, 0, -0.26), KINDS.items(), strict=True):
        values = [row.get(key) or 0 for row in rows]
        axis.barh(y + shift, values, 0.24, color=colour, label=label)
    for row, at in zip(rows, y, strict=True):
        lo, hi = row.get("nmse_lo"), row.get("nmse_hi")
        if lo is not None and hi is not None:
            axis.plot([lo, hi], [at + 0.26] * 2, color="black", linewidth=1.2)
        axis.annotate(
            short(row["nmse"]), (max(row["nmse"], hi or 0), at + 0.26), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axis.set_yticks(
        y, [f"{NAMES.get(row['name'], row['name'])}\nL0 {short(row['l0'])}" for row in rows], fontsize=9
    )
    axis.set_xlabel("NMSE (lower is better); thin line: 95 % interval")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(
        frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.4, 1.0 + 0.8 / len(rows)), ncols=3
    )
    write_atomically(path, rendered(figure, "png"))
    return path


def draw_signals(found: Mapping[str, np.ndarray], path: Path) -> Path:
    """Angular variance of each latent against how often it fires and against its price."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    avar, fires, price = found["avar"], found["fires"], found["price"]
    known = np.isfinite(avar)
    axes[0].hist(avar[known], 50, color=COLOURS["optimal"])
    axes[0].set(xlabel="angular variance", ylabel="latents")
    axes[1].scatter(avar[known], fires[known], 3, color=COLOURS["optimal"], alpha=0.4, linewidths=0)
    axes[1].set(xlabel="angular variance", ylabel="firings", yscale="log")
    costs = known & (price > 0)
    axes[2].scatter(avar[costs], price[costs], 3, color=COLOURS["amortized"], alpha=0.4, linewidths=0)
    axes[2].set(xlabel="angular variance", ylabel="price on the sample", yscale="log")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    write_atomically(path, rendered(figure, "png"))
    return path
