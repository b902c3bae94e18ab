"""Numbers that arXiv 2411.13117's authors released or printed, and how near ours have to come.

Points of curves are read from files (tests/golden/papers, selected points of their result files). Means over five runs.
"""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError

EARLY = 1000  # steps up to which narrow encoders and codes have to be the same, to TIGHT
TIGHT, EXACT, LOOSE = 1e-3, 1e-4, 0.03
LOSS = 0.1  # of a late loss, relative; an early one is held to TIGHT of itself
REPORTED = ("mlp256", "mlp1024")  # wide ReLU networks amplify rounding: shown, not judged
SECTIONS = {"known_Z": "known_codes", "known_D": "known_dictionary", "unknown": "unknown"}
DISTRIBUTIONS = ("uniform", "zipf")
METHODS = {
    "SAE": "sae", "MLP-32": "mlp32", "MLP-256": "mlp256", "MLP-1024": "mlp1024", "SparseCoding": "sparse_coding",
    "SAE_ITO": "sae_ito", "SAE_ITO_init": "sae_ito",
}  # fmt: skip
METRICS = ("mcc", "dict_mcc", "loss")


class Published(NamedTuple):
    """`std` None: not published. `last`: it ends its curve."""

    scenario: str
    distribution: str
    method: str
    step: int
    metric: str
    value: float
    std: float | None = None
    last: bool = False


def target(point: Published) -> float | None:
    """How far ours may be from it; None: it is shown and not judged."""
    if point.method in REPORTED:
        return None
    if point.step <= EARLY:
        # TIGHT alone would say nothing of a loss, which is about .002 at the end, nor would LOOSE later.
        return TIGHT * point.value if point.metric == "loss" else TIGHT
    exact = (("known_dictionary", "sae_ito"), ("unknown", "sparse_coding"))
    if point.last and point.distribution == "uniform" and (point.scenario, point.method) in exact:
        return EXACT
    rest = LOSS * point.value if point.metric == "loss" else LOOSE
    return max(rest, 2 * (point.std or 0.0))


def read(path: str | Path) -> list[Published]:
    """A file's points. AmortjaxError names what is wrong with it."""
    try:
        points = [*_curves(json.loads(Path(path).read_text(encoding="utf-8")))]
        if not points:
            raise ValueError("no section of points")
        return points
    except OSError as error:
        raise AmortjaxError(
            f"{path}: {error.strerror or error}: give the file of published points as --golden"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AmortjaxError(f"{path} is not the file of published points ({error!r}): restore it") from None


def _curves(found: dict[str, Any]) -> Iterator[Published]:
    for (section, scenario), distribution in itertools.product(SECTIONS.items(), DISTRIBUTIONS):
        for name, points in found.get(f"{section}_{distribution}", {"points": {}})["points"].items():
            if name in METHODS:  # SAE_ITO_random is equal to SAE_ITO_init to the digit
                yield from _points(scenario, distribution, METHODS[name], points)


def _points(scenario: str, distribution: str, method: str, points: dict[str, Any]) -> Iterator[Published]:
    last = max(map(int, points))
    for step, values in points.items():
        for metric, key in (("mcc", "mcc_test"), ("dict_mcc", "dict_mcc"), ("loss", "loss_test")):
            if key in values:
                at, value, std = int(step), float(values[key]), values.get(f"{key}_std")
                if not math.isfinite(value):
                    raise ValueError(f"{method} at {step}: {key} is {value}")
                yield Published(scenario, distribution, method, at, metric, value, std, at == last)
