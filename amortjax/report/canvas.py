"""Pictures without a display: an empty figure, its axes' looks, its files."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amortjax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Multiples of powers of ten that get a number, the fewest first that give three.
MULTIPLES = ((1,), (1, 2, 5), tuple(range(1, 10)))


def plain(axis: "Axes") -> None:
    """Small ticks, a light grid, no frame above and on the right."""
    axis.tick_params(labelsize=8, length=2)
    axis.grid(color="#EEEEEE", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def log_ticks(side: Any) -> None:
    """Numbers at powers of ten of a logarithmic axis (axis.xaxis or axis.yaxis, after all is drawn and its limits are
    set), at 1, 2 and 5 of each decade where these are few; none between, where they run together."""
    low, high = sorted(side.get_view_interval())
    decades = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    ticks: list[float] = []
    for multiples in MULTIPLES:
        ticks = [m * decade for decade in decades for m in multiples if low <= m * decade <= high]
        if len(ticks) > 2:
            break
    side.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    side.set_ticks([], minor=True)


def saved(figure: "Figure", folder: str | Path, stem: str) -> list[Path]:
    """STEM.png (150 dpi) and STEM.svg in `folder`."""
    paths = [Path(folder) / f"{stem}.{ending}" for ending in ("png", "svg")]
    for path in paths:
        write_atomically(path, rendered(figure, path.suffix[1:]))
    return paths


def blank(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: "Figure", ending: str) -> bytes:
    """The file's bytes; svg without date and with fixed ids, so that equal results give equal files."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "amortjax", "svg.fonttype": "none"}):
        if ending == "svg":
            figure.savefig(buffer, format="svg", metadata={"Date": None})
        else:
            figure.savefig(buffer, format=ending, dpi=150)
    return buffer.getvalue()
