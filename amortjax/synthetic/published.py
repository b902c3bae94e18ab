"""Numbers that arXiv 2411.13117's authors released or printed, and how near ours have to come.

Points of curves are read from a file (tests/golden/papers/sparse_inference_2411_13117.json, selected points of their
result files); what that file leaves out stands here. Means over five runs, in [0, 1].
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError

EARLY = 1000  # steps up to which narrow encoders and codes have to be the same, to TIGHT
TIGHT, EXACT, LOOSE = 1e-3, 1e-4, 0.03
LOSS = 0.1  # of a late loss, relative
REPORTED = ("mlp256", "mlp1024")  # wide ReLU networks amplify rounding: shown, not judged
SECTIONS = {
    "known_Z_uniform": "known_codes",
    "known_D_uniform": "known_dictionary",
    "unknown_uniform": "unknown",
}
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


# {scenario: {method: {step: (latent MCC, its deviation, dictionary MCC)}}}. Curves of the known scenarios end at step
# 19 900, those of `unknown` at 39 500.
ZIPF: dict[str, dict[str, dict[int, tuple[float, float | None, float | None]]]] = {
    "known_codes": {
        "sae": {100: (0.1549, None, None), 1000: (0.5858, None, None), 19_900: (0.591, 0.090, None)},
        "mlp32": {19_900: (0.561, 0.064, None)},
        "mlp256": {19_900: (0.646, 0.037, None)},
        "mlp1024": {19_900: (0.826, 0.068, None)},
    },
    "known_dictionary": {
        "sae": {19_900: (0.733, 0.003, None)},
        "sae_ito": {
            500: (0.47916, 0.0, None), 5000: (0.44566, 0.0, None), 10_000: (0.74095, 0.0, None),
            19_900: (0.87482, 0.0, None),
        },
        "mlp32": {19_900: (0.763, 0.111, None)},
        "mlp256": {19_900: (0.843, 0.103, None)},
    },
    "unknown": {
        "sae": {39_500: (0.520, None, 0.722)},
        "sae_ito": {39_500: (0.510, None, 0.722)},
        "sparse_coding": {39_500: (0.590, None, 0.832)},
        "mlp32": {39_500: (0.548, None, 0.767)},
        "mlp256": {39_500: (0.547, None, 0.793)},
    },
}  # fmt: skip


def target(point: Published) -> float | None:
    """How far ours may be from it; None: it is shown and not judged."""
    if point.method in REPORTED:
        return None
    if point.step <= EARLY:
        return TIGHT
    exact = (("known_dictionary", "sae_ito"), ("unknown", "sparse_coding"))
    if point.last and point.distribution == "uniform" and (point.scenario, point.method) in exact:
        return EXACT
    # LOOSE would say nothing of a loss, which is about .002 at the end.
    rest = LOSS * point.value if point.metric == "loss" else LOOSE
    return max(rest, 2 * (point.std or 0.0))


def read(path: str | Path) -> list[Published]:
    """The file's points and the tables'. AmortjaxError names what is wrong with the file."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return [*_curves(found), *_tables()]
    except OSError as error:
        raise AmortjaxError(
            f"{path}: {error.strerror or error}: give the file of published points as --golden"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AmortjaxError(f"{path} is not the file of published points ({error!r}): restore it") from None


def _curves(found: dict[str, Any]) -> Iterator[Published]:
    for section, scenario in SECTIONS.items():
        for name, points in found[section]["points"].items():
            if name not in METHODS:  # SAE_ITO_random: equal to SAE_ITO_init to the digit
                continue
            last = max(map(int, points))
            for step, values in points.items():
                for metric, key in (("mcc", "mcc_test"), ("dict_mcc", "dict_mcc"), ("loss", "loss_test")):
                    if key in values:
                        std, at = values.get(f"{key}_std"), int(step)
                        value = float(values[key])
                        yield Published(
                            scenario, "uniform", METHODS[name], at, metric, value, std, at == last
                        )


def _tables() -> Iterator[Published]:
    for scenario, methods in ZIPF.items():
        for method, steps in methods.items():
            for step, (value, std, dictionary) in steps.items():
                last = step == max(steps)
                yield Published(scenario, "zipf", method, step, "mcc", value, std, last)
                if dictionary is not None:
                    yield Published(scenario, "zipf", method, step, "dict_mcc", dictionary, None, last)
