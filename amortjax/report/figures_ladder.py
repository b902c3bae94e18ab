"""Pictures of the price rung by rung, and of which latents cost.

draw_ladder(rows, folder / "ladder")            # ladder.png, ladder.svg
draw_latents(columns, table, folder / "latents")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amortjax.report.canvas import blank, saved
from amortjax.report.figures import COLOURS
from amortjax.report.ladder import PREDICTORS, ladder_of, reconstruction_of, rung_label
from amortjax.report.numbers import percent, short
from amortjax.report.schema import Row, mode_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AMPLITUDE, SUPPORT, BELOW = COLOURS["amortized"], COLOURS["optimal"], COLOURS["optimal_refit"]


def draw_ladder(rows: Sequence[Row], path: Path) -> list[Path]:
    """Left: how far each rung's P is above the optimum's, in its two parts. Middle: the share of the price that each
    step removes. Right: NMSE at equal L0. PATH.png and PATH.svg."""
    ladder, same_l0 = ladder_of(rows), reconstruction_of(rows)
    figure = blank(13.2, 0.44 * len(ladder) + 1.1)
    axes = figure.subplots(1, 3, width_ratios=(1.25, 1.1, 0.9))
    _draw_excess(axes[0], ladder)
    _draw_shares(axes[1], ladder)
    _draw_reconstruction(axes[2], same_l0)
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labelsize=8)
    return saved(figure, path.parent, path.name)


def _names(axis: "Axes", names: list[str]) -> None:
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.axvline(0, color="black", linewidth=0.6)


def _draw_excess(axis: "Axes", ladder: Sequence[Row]) -> None:
    room = max(abs(row["excess_upper"]) for row in ladder) or 1.0
    for y, row in enumerate(ladder):
        amplitude, support = row.get("price_amplitude"), row.get("price_support")
        if amplitude is None or support is None:  # the optimum, and another dictionary's
            axis.barh(y, row["excess_upper"], 0.66, color=BELOW)
        else:
            axis.barh(y, amplitude, 0.66, color=AMPLITUDE, label="amplitude" if y == 0 else None)
            axis.barh(y, support, 0.66, left=amplitude, color=SUPPORT, label="support" if y == 0 else None)
        lo, hi = row.get("excess_upper_lo"), row.get("excess_upper_hi")
        if lo is not None and hi is not None:
            axis.plot([lo, hi], [y, y], color="black", linewidth=1.2)
        text = short(row["excess_upper"]) if row["mode"] != "optimum" else f"≤{short(row['excess_upper'])}"
        right = max(row["excess_upper"], hi or 0, 0)
        axis.text(right + 0.015 * room, y, text, va="center", fontsize=8)
    _names(axis, [rung_label(row) for row in ladder])
    low = min(0.0, *(row["excess_upper"] for row in ladder))
    axis.set_xlim(1.05 * low, 1.15 * room)
    axis.set_title("(P - P*) / P* ↓ at the same λ", fontsize=9.5, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_shares(axis: "Axes", ladder: Sequence[Row]) -> None:
    ends = [0.0]
    for y, row in enumerate(ladder):
        share = row.get("share")
        if share is None:
            continue
        lo, hi = (row.get(f"share_{end}") for end in ("lo", "hi"))
        axis.barh(
            y, 100 * share, 0.66, color=BELOW if row["mode"] == "relearned" else COLOURS["non_amortized"]
        )
        if lo is not None and hi is not None:
            axis.plot([100 * lo, 100 * hi], [y, y], color="black", linewidth=1.2)
        end = max(100 * share, 100 * (hi or 0), 0)
        ends += [end, min(100 * share, 0)]
        axis.annotate(
            percent(share), (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    _names(axis, ["" for _ in ladder])
    axis.set_xlim(1.1 * min(ends), 1.22 * (max(ends) or 1.0))
    axis.set_title("% of the price that the step removes", fontsize=9.5, loc="left")


def _draw_reconstruction(axis: "Axes", rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        axis.barh(y, row["nmse"], 0.6, color=COLOURS[row["mode"]])
        lo, hi = row.get("nmse_lo"), row.get("nmse_hi")
        if lo is not None and hi is not None:
            axis.plot([lo, hi], [y, y], color="black", linewidth=1.2)
        end = max(row["nmse"], hi or 0)
        axis.annotate(
            short(row["nmse"]), (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    _names(axis, [mode_label(row) for row in rows])
    axis.margins(x=0.18)
    axis.set_title("NMSE ↓ at equal L0", fontsize=9.5, loc="left")


def draw_latents(columns: Mapping[str, np.ndarray], table: Sequence[Row], path: Path) -> list[Path]:
    """Each latent's price per token against what may foretell it. PATH.png and PATH.svg."""
    figure = blank(3.1 * len(PREDICTORS), 3.3)
    axes = figure.subplots(1, len(PREDICTORS), sharey=True)
    price = columns["price"]
    found = {(row["target"], row["predictor"]): row for row in table}
    size = max(float(np.quantile(np.abs(price), 0.5)), 1e-12)
    for axis, (name, label) in zip(axes, PREDICTORS.items(), strict=True):
        x = columns[name]
        known = np.isfinite(x) & np.isfinite(price)
        # As pixels in the svg: thousands of points would be megabytes.
        axis.scatter(x[known], price[known], 4, color=AMPLITUDE, alpha=0.4, linewidths=0, rasterized=True)
        row = found.get(("price", name), {})
        axis.set_title(f"rank correlation {short(row.get('correlation'), 2)}", fontsize=9, loc="left")
        axis.set_xlabel(label, fontsize=9)
        if name == "density" and known.any():
            axis.set_xscale("log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[0].set_yscale("symlog", linthresh=size)  # a latent's price may be negative
    axes[0].set_ylabel("price per token (objective units)", fontsize=9)
    return saved(figure, path.parent, path.name)
