"""Squared error against what the language model makes of it: one panel per SAE, one point per mode."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortjax.metrics.definitions import METRICS
from amortjax.report.canvas import blank, saved
from amortjax.report.core import label
from amortjax.report.figures import COLOURS
from amortjax.report.schema import Row, flagged, grouped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = ("ce_recovered", "kl_recovered")


def draw_core(rows: Iterable[Row], folder: str | Path) -> list[Path]:
    """core.png (150 dpi) and core.svg in `folder`: NMSE against CE and KL recovered, with 95 % intervals."""
    blocks = {
        name: [row for row in block if row.get("nmse") is not None and row.get("ce_recovered") is not None]
        for (name, condition), block in grouped(map(flagged, rows)).items()
        if condition == "same_l0"
    }
    blocks = {name: block for name, block in blocks.items() if block}
    if not blocks:
        return []
    figure = blank(10.5, 3.3 * len(blocks) + 0.5)
    axes = figure.subplots(len(blocks), len(AXES), squeeze=False)
    for line, (name, block) in zip(axes, blocks.items(), strict=True):
        for axis, key in zip(line, AXES, strict=True):
            _draw_panel(axis, block, key)
        line[0].set_title(
            f"{name}: L0 {block[0].get('l0_target') or block[0]['l0']:.3g}", fontsize=10, loc="left"
        )
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return saved(figure, folder, "core")


def _draw_panel(axis: "Axes", block: list[Row], key: str) -> None:
    for row in block:
        off = "l0_off" in row["flags"]
        style: dict[str, Any] = {"color": COLOURS.get(row["mode"], "#444444"), "capsize": 2, "elinewidth": 1}
        style |= {"marker": "o", "markersize": 5, "linestyle": "none"} | ({"mfc": "white"} if off else {})
        text = label(row) + (" (not at the L0)" if off else "")
        errors = {"xerr": _error(row, "nmse"), "yerr": _error(row, key)}
        if row.get(key) is not None:
            axis.errorbar(row["nmse"], row[key], **errors, **style, label=text)
    axis.set_xlabel(METRICS["nmse"].header, fontsize=9)
    axis.set_ylabel(METRICS[key].header, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.margins(0.12)
    axis.grid(color="#EEEEEE", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)


def _error(row: Row, key: str) -> list[list[float]] | None:
    lo, hi = row.get(f"{key}_lo"), row.get(f"{key}_hi")
    if lo is None or hi is None:
        return None
    return [[max(row[key] - lo, 0.0)], [max(hi - row[key], 0.0)]]
