"""Pictures of the synthetic sweeps: maps with the recovery boundary, lines over what is swept, bars with chance levels.

    draw("l1", rows, "outputs/run/figures")      # l1.png and .svg; rows as report.synthetic_sweep has them

Filled: ours, with the standard deviation over runs; hollow: published. Dotted: chance.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amortjax.report.canvas import blank, plain, saved
from amortjax.report.figures_boundary import boundary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
# Okabe & Ito, as in the other pictures.
COLOURS = ("#D55E00", "#009E73", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


class Panel(NamedTuple):
    title: str
    x: str
    y: str
    x_label: str
    log: tuple[bool, bool] = (False, False)


_L0 = "share of codes above 1e-3"
PANELS = {
    "l1": (
        Panel("Latent MCC ↑", "lam", "mcc", "λ (released form)", (True, False)),
        Panel("Latent MCC ↑ at L0", "density@0.001", "mcc", _L0),
        Panel("MSE ↓ at L0", "density@0.001", "mse", _L0, (False, True)),
        Panel("Dictionary MCC ↑", "lam", "dict_mcc", "λ (released form)", (True, False)),
    ),
    "topk": (
        Panel("Latent MCC ↑", "k", "mcc", "k"),
        Panel("MSE ↓", "k", "mse", "k"),
        Panel("Dictionary MCC ↑", "k", "dict_mcc", "k"),
    ),
    "width": (
        Panel("Latent MCC ↑", "hidden", "mcc", "hidden width", (True, False)),
        Panel("Dictionary MCC ↑", "hidden", "dict_mcc", "hidden width", (True, False)),
    ),
}  # fmt: skip
BARS = (("mcc", "Latent MCC ↑"), ("dict_mcc", "Dictionary MCC ↑"))
OOD_BARS = (("support_exact", "Whole support found ↑"), ("mcc", "Latent MCC ↑"))


def draw(sweep: str, rows: Iterable[Row], folder: str | Path) -> list[Path]:
    """SWEEP.png and .svg (boundary.png and .svg of sizes); [] if there is nothing to draw."""
    rows = [row for row in rows if row.get("mcc") is not None]
    if not rows:
        return []
    if sweep == "size":
        return boundary([{**row, "method": row["mode"]} for row in rows], folder, reference=_base(rows))
    figure = blank(3.6 * len(PANELS.get(sweep, BARS)), 3.4 if sweep in PANELS else 1.2 + 0.3 * len(rows))
    panels = PANELS.get(sweep, ())
    axes = figure.subplots(1, len(panels) or 2, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=False):
        _lines(axis, panel, rows)
    if not panels and sweep == "ood":
        for axis, (key, title) in zip(axes, OOD_BARS, strict=True):
            _pairs_of_bars(axis, key, title, rows)
    elif not panels:
        for axis, (key, title) in zip(axes, BARS, strict=True):
            _bars(axis, key, title, rows)
    for axis in axes[1:] if not panels else ():
        axis.set_yticklabels([])
    handles = next((h for h in (axis.get_legend_handles_labels() for axis in axes) if h[0]), None)
    if handles:
        figure.legend(
            *handles, loc="outside lower center", ncols=min(len(handles[0]), 4), fontsize=8, frameon=False
        )
    return saved(figure, folder, sweep)


def _base(rows: Sequence[Row]) -> str | None:
    return next((row["mode"] for row in rows if row["method"] == "sae"), None)


def _line_of(row: Row) -> str:
    """Cells of one line differ only in what is swept."""
    if row["sweep"] == "width":
        return f"N={row['sources']}, M={row['dimensions']}, K={row['active']}"
    return f"{row['mode']}, TopK only after" if row.get("k_after") else str(row["mode"])


def _lines(axis: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(_line_of(row) for row in rows if _x(row, panel) is not None))
    for name, colour in zip(names, COLOURS * 3, strict=False):
        own = [row for row in rows if _line_of(row) == name and row.get(panel.y) is not None]
        at = [(_x(row, panel), row) for row in own if _x(row, panel) is not None]
        at.sort(key=lambda pair: pair[0])
        if not at:
            continue
        x, y = [a for a, _ in at], [row[panel.y] for _, row in at]
        spread = [row.get(f"{panel.y}_std") or 0.0 for _, row in at]
        axis.errorbar(
            x, y, spread, fmt="o-", color=colour, markersize=3.5, linewidth=1.2, capsize=1.5, label=name
        )
        x_key = f"{panel.x}_published" if panel.x == "density@0.001" else ""
        known = [
            (row[x_key] if x_key else a, row[f"{panel.y}_published"])
            for a, row in at
            if row.get(f"{panel.y}_published") is not None and (not x_key or row.get(x_key) is not None)
        ]
        if known:
            style = {
                "color": colour,
                "markerfacecolor": "white",
                "linewidth": 0.8,
                "markersize": 4.5,
                "zorder": 1,
            }
            axis.plot(*zip(*sorted(known), strict=True), "o--", **style)
        _chance(axis, f"{panel.y}_chance", at, colour if "dict" in panel.y else "#333333")
    _scales(axis, panel)


def _x(row: Row, panel: Panel) -> Any:
    return row.get("k") or row.get("k_after") or None if panel.x == "k" else row.get(panel.x)


def _chance(axis: "Axes", key: str, at: Sequence[tuple[Any, Row]], colour: str) -> None:
    levels = [(a, row[key]) for a, row in at if row.get(key) is not None]
    if levels:
        axis.plot(*zip(*levels, strict=True), ":", color=colour, linewidth=1, zorder=0)


def _scales(axis: "Axes", panel: Panel) -> None:
    axis.set_title(panel.title, fontsize=9.5, loc="left")
    axis.set_xlabel(panel.x_label, fontsize=8.5)
    if panel.log[0]:
        axis.set_xscale("log")
    if panel.log[1] and axis.dataLim.minposy < float("inf") and axis.dataLim.y0 > 0:
        axis.set_yscale("log")
    if "mcc" in panel.y:
        axis.set_ylim(0, 1.02)
    plain(axis)
    axis.tick_params(which="both", labelsize=7.5)


def _named(row: Row) -> str:
    parts = [row["mode"]]
    if row["sweep"] == "bias":
        parts.append("bias" if row["bias"] else "no bias")
    if row["sweep"] == "ceilings" and row.get("data") == "sklearn":
        parts.append(row["checkpoint"])
    return ", ".join(parts)


def _bars(axis: "Axes", key: str, title: str, rows: Sequence[Row]) -> None:
    for y, row in enumerate(rows):
        if row.get(key) is None:
            continue
        axis.barh(-y, row[key], xerr=row.get(f"{key}_std") or None, height=0.65, color=_colour(row), zorder=2)
        if row.get(f"{key}_chance") is not None:
            axis.plot([row[f"{key}_chance"]] * 2, [-y - 0.33, -y + 0.33], ":", color="black", zorder=3)
        if row.get(f"{key}_published") is not None:
            axis.plot(row[f"{key}_published"], -y, "o", color="black", markerfacecolor="white", zorder=4)
    _names(axis, title, rows)


def _pairs_of_bars(axis: "Axes", key: str, title: str, rows: Sequence[Row]) -> None:
    """Known compositions above, new pairs below."""
    for y, row in enumerate(rows):
        for where, offset, alpha in (("in_distribution", 0.18, 1.0), ("new_pairs", -0.18, 0.5)):
            value = row.get(f"{where}_{key}")
            if value is not None:
                words = {"in_distribution": "known compositions", "new_pairs": "pairs never seen in training"}
                axis.barh(-y + offset, value, height=0.34, color=_colour(row), alpha=alpha, zorder=2,
                          label=words[where] if y == 0 else None)  # fmt: skip
    _names(axis, title, rows)


def _names(axis: "Axes", title: str, rows: Sequence[Row]) -> None:
    axis.set_yticks([-y for y in range(len(rows))], [_named(row) for row in rows], fontsize=8)
    axis.set_xlim(0, 1.02)
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.set_title(title, fontsize=9.5, loc="left")
    plain(axis)


def _colour(row: Row) -> str:
    names = ("sae", "mlp", "sparse_coding", "certified_learner", "sklearn", "true_dictionary")
    return COLOURS[names.index(row["method"])] if row["method"] in names else COLOURS[-1]
