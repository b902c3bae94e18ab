"""Pictures of the theorem (rows of `launch.theorem`, and the arrays of its plane)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amortjax.report.canvas import blank, plain, saved
from amortjax.report.schema import Row
from amortjax.report.theorem import of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008).
COLOURS = {
    "random": "#7F7F7F",
    "ReLU, W = D'": "#E69F00",
    "pseudo-inverse": "#009E73",
    "least squares": "#56B4E9",
    "SAE, trained": "#CC79A7",
    "ReLU, trained on the codes": "#D55E00",
    "ReLU, exact for one pair": "#CC79A7",
    "certified lasso": "#0072B2",
    "sparsest, by trying all": "#000000",
}
MARKS = ("o", "s", "^", "D", "v", "P")
NONE = 1e-16  # a singular value below this is drawn here


def draw(rows: Sequence[Row], plane: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """theorem_rank, theorem_failure and theorem_plane, each .png and .svg."""
    return [*draw_rank(rows, folder), *draw_failure(rows, folder), *draw_plane(plane, folder)]


# --- the rank argument ---


def draw_rank(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Singular values of D W, its distance to the identity, and Cover's count."""
    found = of(rows, "encoder")
    figure = blank(14, 4.2)
    axes = figure.subplots(1, 3, width_ratios=(1.15, 1, 1.1))
    _singular(axes[0], found)
    _distances(axes[1], found)
    _half_spaces(axes[2], of(rows, "half_space"))
    return saved(figure, folder, "theorem_rank")


def _singular(axis: "Axes", found: Sequence[Row]) -> None:
    for mark, row in zip(MARKS, found, strict=False):
        values = np.maximum(np.asarray(row["singular"], float), NONE)
        at = np.arange(1, len(values) + 1)
        style = {"color": COLOURS[row["mode"]], "marker": mark, "markersize": 4.5, "linewidth": 1}
        axis.plot(at, values, label=row["mode"], **style)
    n = len(found[0]["singular"])
    axis.axhline(
        1, color="black", linewidth=1.2, linestyle=(0, (5, 3)), label="identity: what is needed", zorder=1
    )
    axis.axvline(found[0]["rank"] + 0.5, color="#777777", linewidth=0.8, linestyle=":")
    axis.text(
        found[0]["rank"] + 0.7,
        1e-7,
        f"rank of D W\nat most {found[0]['rank']}",
        fontsize=8.5,
        color="#555555",
    )
    axis.set_yscale("log")
    axis.set_ylim(NONE / 5, 1e2)
    axis.set_xlim(0.4, n + 0.6)
    axis.set_title("singular values of D W", fontsize=10, loc="left", weight="bold")
    axis.set_xlabel("index", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="center left")
    plain(axis)


def _distances(axis: "Axes", found: Sequence[Row]) -> None:
    bound, most = found[0]["bound"], max(row["distance"] for row in found)
    for y, row in enumerate(found):
        axis.barh(y, row["distance"], color=COLOURS[row["mode"]], height=0.66, zorder=2)
        axis.annotate(f"{row['distance']:.2f}", (row["distance"], y), (3, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axis.axvline(bound, color="black", linewidth=1.2, linestyle=(0, (5, 3)), zorder=3)
    axis.text(bound + 0.015 * most, -0.78, f"√(N-M) = {bound:.2f}", fontsize=8.5, va="center")
    axis.set_yticks(range(len(found)), [row["mode"] for row in found], fontsize=8)
    axis.set_ylim(len(found) - 0.4, -1.2)
    axis.set_xlim(0, 1.15 * most)
    axis.set_title("‖D W - I‖: no encoder is nearer", fontsize=10, loc="left", weight="bold")
    axis.set_xlabel("Frobenius norm", fontsize=9)
    plain(axis)


def _half_spaces(axis: "Axes", found: Sequence[Row]) -> None:
    for colour, sources in zip(
        ("#0072B2", "#D55E00", "#009E73"), sorted({row["sources"] for row in found}), strict=False
    ):
        own = [row for row in found if row["sources"] == sources]
        at = np.arange(1, sources + 1)
        curve = [_cover(sources, int(m)) for m in at]
        axis.plot(at, curve, color=colour, linewidth=1.2, label=f"N = {sources}, Cover's count")
        points = [(row["dimensions"], row["measured"], 2 * row["standard_error"]) for row in own]
        x, y, spread = zip(*points, strict=True)
        axis.errorbar(
            x,
            y,
            spread,
            color=colour,
            fmt="o",
            markersize=4.5,
            linewidth=1.2,
            label=f"N = {sources}, measured",
        )
    axis.set_ylim(-0.03, 1.06)
    axis.set_title("K = 1, random atoms: share that can be exact", fontsize=10, loc="left", weight="bold")
    axis.set_xlabel("dimensions M", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    plain(axis)


def _cover(sources: int, dimensions: int) -> float:
    return 2 * sum(math.comb(sources - 1, k) for k in range(dimensions)) / 2**sources


# --- where ReLU encoders fail ---


def draw_failure(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Error and share exact by the number of active sources, and error by the cosine between two active atoms."""
    figure = blank(14, 4.6)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    found = of(rows, "sparsity")
    for mark, mode in zip(MARKS, dict.fromkeys(row["mode"] for row in found), strict=False):
        own = [row for row in found if row["mode"] == mode]
        style = {"color": COLOURS[mode], "marker": mark, "markersize": 5, "linewidth": 1.4, "label": mode}
        style |= {"linestyle": (0, (2, 2)), "zorder": 4} if mode.startswith("sparsest") else {}
        at = [row["active"] for row in own]
        axes[0].plot(at, [row["energy"] for row in own], **style)
        axes[1].plot(at, [row["exact"] for row in own], **style)
    setting = found[0]["checkpoint"]
    axes[0].set_yscale("symlog", linthresh=1e-3, linscale=0.4)
    axes[0].set_ylim(-1e-4, max(1.5, 1.6 * max(row["energy"] for row in found)))
    axes[0].set_title("energy of the error ↓", fontsize=10, loc="left", weight="bold")
    axes[1].set_title("share of samples that are exact ↑", fontsize=10, loc="left", weight="bold")
    for axis in axes[:2]:
        axis.set_xlabel("active sources K", fontsize=9)
        axis.set_xticks(sorted({row["active"] for row in found}))
        plain(axis)
    _by_cosine(axes[2], of(rows, "pair"))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9, frameon=False)
    figure.suptitle(setting, fontsize=10, x=0.008, ha="left")
    return saved(figure, folder, "theorem_failure")


def _by_cosine(axis: "Axes", found: Sequence[Row]) -> None:
    """A point per pair of atoms, and the median over tenths of the pairs."""
    for mode in dict.fromkeys(row["mode"] for row in found):
        own = sorted((row["cosine"], row["energy"]) for row in found if row["mode"] == mode)
        x, y = np.array(own).T
        axis.scatter(x, y, s=9, color=COLOURS[mode], alpha=0.35, linewidths=0, zorder=2)
        parts = [part for part in np.array_split(np.arange(len(x)), 10) if len(part)]
        axis.plot([np.median(x[p]) for p in parts], [np.median(y[p]) for p in parts], color=COLOURS[mode],
                  linewidth=1.8, zorder=3)  # fmt: skip
    axis.set_yscale("symlog", linthresh=1e-3, linscale=0.4)
    axis.set_ylim(-1e-4, None)
    axis.set_title("K = 2: energy of the error by the pair's cosine", fontsize=10, loc="left", weight="bold")
    axis.set_xlabel("cosine between the two active atoms; lines: medians", fontsize=9)
    plain(axis)


# --- the plane ---


def draw_plane(plane: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """A disc per method: the relative error of its code of each point, white where it is exact; then by direction."""
    from matplotlib.colors import LinearSegmentedColormap

    methods = list(plane["methods"])
    figure = blank(2.7 * len(methods) + 5, 3.5)
    axes = figure.subplots(1, len(methods) + 1, width_ratios=[1] * len(methods) + [1.35])
    # White is exact; the rest runs from light to dark in one hue, which needs no colour vision.
    colours = LinearSegmentedColormap.from_list(
        "error", ["#FFFFFF", "#FDE3C8", "#E69F00", "#A0420A", "#3B1500"]
    )
    image: Any = None
    for axis, name, error in zip(axes, methods, plane["error"], strict=False):
        shown = np.ma.masked_invalid(error)
        image = axis.imshow(shown, origin="lower", extent=(-1, 1, -1, 1), cmap=colours, vmin=0, vmax=1)
        for i, (dx, dy) in enumerate(plane["atoms"]):
            axis.annotate(
                "", (dx, dy), (0, 0), arrowprops={"arrowstyle": "->", "color": "#0072B2", "linewidth": 1.6}
            )
            axis.text(
                1.17 * dx, 1.17 * dy, f"d{i + 1}", ha="center", va="center", fontsize=9, color="#0072B2"
            )
        exact = float(np.mean(error[np.isfinite(error)] <= 0.01))
        axis.set_title(f"{name}\nexact on {100 * exact:.0f} % of the disc", fontsize=9.5)
        axis.add_patch(_circle())
        axis.set(xlim=(-1.28, 1.28), ylim=(-1.1, 1.3))
        axis.set_axis_off()
    bar = figure.colorbar(image, ax=list(axes[:-1]), location="bottom", shrink=0.45, aspect=45, pad=0.01)
    bar.set_label("error of the code, relative to its norm (white: exact)", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    _by_direction(axes[-1], plane, methods)
    return saved(figure, folder, "theorem_plane")


def _circle() -> Any:
    from matplotlib.patches import Circle

    return Circle((0, 0), 1, fill=False, edgecolor="#999999", linewidth=0.7)


def _by_direction(axis: "Axes", plane: Mapping[str, Any], methods: Sequence[str]) -> None:
    degrees = np.degrees(plane["angle"])
    for name, along in zip(methods, plane["along"], strict=True):
        axis.plot(degrees, along, color=COLOURS[name], linewidth=1.5, label=name)
    for i, (dx, dy) in enumerate(plane["atoms"]):
        at = math.degrees(math.atan2(dy, dx)) % 360
        axis.axvline(at, color="#0072B2", linewidth=0.8, linestyle=":")
        axis.text(at, 1.02, f"d{i + 1}", ha="center", va="bottom", fontsize=9, color="#0072B2",
                  transform=axis.get_xaxis_transform())  # fmt: skip
    axis.set_xlim(0, 360)
    axis.set_xticks(range(0, 361, 60))
    axis.set_ylim(-0.02, 1.35 * max(float(np.max(plane["along"])), 0.1))
    axis.set_xlabel("direction of x, degrees (on the circle)", fontsize=9)
    axis.set_ylabel("relative error", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="upper center", ncols=2)
    plain(axis)
