"""How a training went: small multiples over steps, several SAEs in one picture.

    draw({"k_20": lines, "k_40": lines}, "outputs/sweep/training.png")      # and training.svg

`lines` are those of metrics.jsonl: dicts with `step` and numbers, of which any may be missing or None.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.report.canvas import blank, log_ticks, saved

Line = Mapping[str, Any]

# Okabe & Ito (2008), told apart under the common colour blindnesses; then the same, dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))


class Panel(NamedTuple):
    title: str
    training: str = ""  # means over training batches, drawn thin
    held_out: str = ""
    zero: bool = False  # the axis starts at 0


PANELS = (
    Panel("FVU ↓", "fvu", "val_fvu"),
    Panel("L0", "l0", "val_l0"),
    Panel("dead latents ↓", "dead", zero=True),
    Panel("(P-P*) / P* ↓", held_out="val_gap"),
    Panel("silent on held-out rows ↓  (share)", held_out="val_dead", zero=True),
    Panel("tokens / s ↑", "tokens_per_second", zero=True),
)
# Values that differ by more than this factor are drawn on a logarithmic axis, unless it starts at 0.
LOG_FROM = 4
# A panel whose values differ by less than this share shows them as constant.
FLAT = 0.01


def draw(runs: Mapping[str, Sequence[Line]], path: str | Path) -> list[Path]:
    """Draws {name: its lines}, in this order, to `path` with ending png (150 dpi) and with ending svg; returns both
    paths. Panels in which nothing is known are left out; [] and no file if that is all of them."""
    named = list(runs.items())
    panels = [panel for panel in PANELS if any(_values(lines, panel) for _, lines in named)]
    if not panels:
        return []
    wide = min(len(panels), 3)
    high = -(-len(panels) // wide)
    # About 0.075 inches a letter.
    columns = min(len(named), max(1, int(3.1 * wide / (0.6 + 0.075 * max(len(name) for name, _ in named)))))
    figure = blank(3.1 * wide, 2.0 * high + 0.3 + 0.18 * -(-len(named) // columns))
    axes = figure.subplots(high, wide, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, named)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles = [axes[0].plot([], [], label=name, **_style(i))[0] for i, (name, _) in enumerate(named)]
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside upper left", ncols=columns)
    note = "Thin: training batches. " if any(panel.training for panel in panels) else ""
    note += (
        "Thick: held-out rows."
        if any(_known(lines, p.held_out) for p in panels for _, lines in named)
        else ""
    )
    figure.supxlabel(note, fontsize=8, x=0.01, ha="left")
    return saved(figure, Path(path).parent, Path(path).stem)


def _style(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th SAE."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def _known(lines: Sequence[Line], key: str) -> list[tuple[int, float]]:
    """(step, value) where the value is there and finite."""
    pairs = [(line["step"], line.get(key)) for line in lines] if key else []
    return [(step, value) for step, value in pairs if value is not None and math.isfinite(value)]


def _values(lines: Sequence[Line], panel: Panel) -> list[float]:
    return [value for key in (panel.training, panel.held_out) for _, value in _known(lines, key)]


def _draw_panel(axis: Any, panel: Panel, named: Sequence[tuple[str, Sequence[Line]]]) -> None:
    for i, (_, lines) in enumerate(named):
        _draw_line(axis, _known(lines, panel.training), {"linewidth": 0.8, "alpha": 0.6}, i)
        _draw_line(axis, _known(lines, panel.held_out), {"linewidth": 1.5, "marker": ".", "markersize": 3}, i)
    values = [value for _, lines in named for value in _values(lines, panel)]
    low, high = min(values), max(values)
    if panel.zero:
        axis.set_ylim(0, 1.06 * high or 1)
    elif low > 0 and high > LOG_FROM * low:
        axis.set_yscale("log")
        axis.set_ylim(low / 1.15, high * 1.15)
        log_ticks(axis.yaxis)
    elif high - low < FLAT * abs(high):
        # As good as constant: not a landscape of its last digits.
        axis.set_ylim(low - 10 * FLAT * abs(high), high + 10 * FLAT * abs(high))
    axis.set_title(panel.title, fontsize=8.5, loc="left")
    axis.set_xlabel("step", fontsize=7)
    axis.set_xlim(left=0)
    axis.tick_params(labelsize=7, length=2)
    axis.grid(color="#EEEEEE", linewidth=0.7)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _draw_line(axis: Any, points: Sequence[tuple[int, float]], style: dict[str, Any], i: int) -> None:
    if len(points) == 1:  # a line needs two
        style = style | {"marker": "."}
    axis.plot([step for step, _ in points], [value for _, value in points], **_style(i), **style)
