"""One latent in context: its activations under the encoder and under the optimum, token by token.

found = explore(subject, plan, lam)                           # metrics.explorer
draw_latent(found, found["latents"][0]["id"], "latent.png")   # latent.png, returned
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.report.canvas import rendered
from amortjax.report.figures import COLOURS
from amortjax.report.numbers import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CODES = {"encoder": COLOURS["amortized"], "optimum": COLOURS["optimal"]}
LONGEST = 14  # characters of a token that are shown


def draw_latent(found: Mapping[str, Any], latent: int, path: str | Path, most: int = 6) -> Path:
    """At most `most` examples, one kind after the other, each in its window of tokens; activations are times the norm
    of the atom. AmortjaxError if `found` (what `explore` returns) does not hold the latent or an example of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    one = next((own for own in found["latents"] if own["id"] == latent), None)
    if one is None:
        shown = ", ".join(str(own["id"]) for own in found["latents"][:8])
        raise AmortjaxError(
            f"latent {latent} is not among the {len(found['latents'])} explored: {shown}, ..."
        )
    examples = in_turn(one["examples"], most)
    if not examples:
        raise AmortjaxError(f"latent {latent} has no example: it fires on none of the tokens")
    figure = Figure(figsize=(10, 1.75 * len(examples) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), squeeze=False)[:, 0]
    top = max(abs(value) for example in examples for fire in example["fires"] for value in fire[1:])
    signed = any(value < 0 for example in examples for fire in example["fires"] for value in fire[1:])
    for axis, example in zip(axes, examples, strict=True):
        _window(axis, example, found["strings"])
        axis.set_ylim(-1.08 * top if signed else 0, 1.08 * top)
    own, best, both = one["fires"]
    figure.suptitle(
        f"latent {latent}: fires on {own} tokens under the encoder, on {best} under the optimum, on {both} under both; "
        f"price {short(one['price'])} a token",
        fontsize=10,
    )
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    write_atomically(path, rendered(figure, "png"))
    return Path(path)


def in_turn(examples: list[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The first of every kind, then the second of every kind, and so on, up to `most`."""
    seen: dict[str, int] = {}
    ranked = []
    for place, example in enumerate(examples):
        ranked.append((seen.setdefault(example["why"], 0), place))
        seen[example["why"]] += 1
    return [examples[place] for _, place in sorted(ranked)[:most]]


def _window(axis: "Axes", example: Mapping[str, Any], strings: list[str]) -> None:
    """Two bars on each token on which the latent fires."""
    n = len(example["tokens"])
    values = np.zeros((2, n))
    for place, own, best in example["fires"]:
        values[:, place] = own, best
    for shift, height, (name, colour) in zip((-0.2, 0.2), values, CODES.items(), strict=True):
        axis.bar(np.arange(n) + shift, height, 0.4, color=colour, label=name)
    axis.axvspan(example["at"] - 0.5, example["at"] + 0.5, color="#eeeeee", zorder=0)
    axis.set_xticks(
        range(n), [shown(strings[i]) for i in example["tokens"]], rotation=60, ha="right", fontsize=7
    )
    for text in axis.get_xticklabels():
        text.set_parse_math(False)  # a dollar is a dollar
        text.set_rotation_mode("anchor")
    label = f" ({example['label']})" if example["label"] else ""
    axis.set_title(f"{example['why']}{label}", fontsize=9, loc="left").set_parse_math(False)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlim(-0.6, n - 0.4)
    axis.spines[["top", "right"]].set_visible(False)


def shown(token: str) -> str:
    """A token's text as a tick label: line ends as signs, what can't be printed as a box, long ones cut."""
    text = token.replace("\n", "↵").replace("\t", "→").strip() or "·"
    text = "".join(c if c.isprintable() else "□" for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
