"""The picture of automated interpretability: the distribution of macro-F1 over latents, with chance."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amortjax.report.canvas import blank, plain, saved
from amortjax.report.figures import COLOURS
from amortjax.report.schema import Row, mode_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OTHER = "#999999"
BINS = np.linspace(0, 1, 21)


def draw(rows: Sequence[Row], latents: Sequence[Row], folder: str | Path) -> list[Path]:
    """macro_f1.png and .svg: a panel per SAE, a line per mode: each latent a point, piled up; the median with its
    interval (thick), and chance (dashed: a coin; dotted: always yes). [] if nothing was scored."""
    names = list(dict.fromkeys(row["checkpoint"] for row in latents if row["macro_f1"] is not None))
    if not names:
        return []
    modes = {
        name: list(dict.fromkeys(r["mode"] for r in latents if r["checkpoint"] == name)) for name in names
    }
    height = sum(0.9 * len(own) + 0.9 for own in modes.values())
    figure = blank(8.5, height + 0.4)
    ratios = [len(own) + 1 for own in modes.values()]
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
    for axis, name in zip(axes, names, strict=True):
        for y, mode in enumerate(modes[name]):
            scores = [r["macro_f1"] for r in latents if (r["checkpoint"], r["mode"]) == (name, mode)]
            row = next((r for r in rows if (r["checkpoint"], r["mode"]) == (name, mode)), {})
            _line(axis, y, [s for s in scores if s is not None], row, COLOURS.get(mode, OTHER))
        labels = [mode_label({"mode": mode}) for mode in modes[name]]
        axis.set_yticks(range(len(labels)), labels, fontsize=9)
        axis.set_ylim(len(labels) - 0.35, -0.75)
        axis.set_title(name, fontsize=10, loc="left", weight="bold")
        plain(axis)
    axes[-1].set_xlim(-0.02, 1.02)
    axes[-1].set_xlabel("macro-F1 of a latent; dashed: a coin, dotted: always yes", fontsize=9)
    return saved(figure, folder, "macro_f1")


def _line(axis: "Axes", y: int, scores: list[float], row: Row, colour: str) -> None:
    """Points piled up from y upwards, the median and its interval on y."""
    place = np.clip(np.digitize(scores, BINS) - 1, 0, len(BINS) - 2)
    counts = np.bincount(place, minlength=len(BINS) - 1)
    step = min(0.05, 0.6 / max(int(counts.max(initial=1)), 1))
    for b in np.flatnonzero(counts):
        middle = (BINS[b] + BINS[b + 1]) / 2
        heights = y - 0.08 - step * np.arange(counts[b])
        axis.plot(
            np.full(counts[b], middle), heights, "o", color=colour, markersize=2.6, mec="none", zorder=3
        )
    for key, style in (("chance_random", "--"), ("chance_all_ones", ":")):
        if row.get(key) is not None:
            axis.plot([row[key]] * 2, [y - 0.7, y + 0.2], style, color="#555555", linewidth=1, zorder=2)
    value, lo, hi = (row.get(f"macro_f1_median{end}") for end in ("", "_lo", "_hi"))
    if lo is not None and hi is not None:
        axis.plot([lo, hi], [y + 0.06] * 2, color=colour, linewidth=3, solid_capstyle="butt", zorder=4)
    if value is not None:
        axis.plot([value], [y + 0.06], "d", color="#000000", markersize=5, zorder=5)
