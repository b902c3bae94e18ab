"""The price of the encoder: every inference mode on one SAE, with what was held equal and a certificate.

`price` is Section 5 of "The Price of Amortized Inference in Sparse Autoencoders" from Python; the launcher
`amortjax.launch.section5` runs it for several checkpoints and writes tables, figures and a report.
"""

import dataclasses
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from amortjax.metrics.bench import Bench
from amortjax.metrics.plan import Plan, make_plan, pose_subject
from amortjax.saes.sae import SAE


def price(
    sae: SAE, acts: Any, *, folder: str | Path | None = None, progress: bool = False, **plan: Any
) -> pd.DataFrame:
    """Section 5's table of one SAE on an activation store: a row per condition and mode.

    acts: a Store or MemoryStore. folder: where finished measurements are kept, so that a second call with the
    same arguments is quick. Further arguments are fields of `Plan` (modes, conditions, protocol,
    calibration_tokens, eval_tokens, ...) and of `Options` (semi_steps, ista_steps, tol).
    Columns are those of `report.schema`.
    """
    return pd.DataFrame(list(rows_of(sae, acts, make_plan(**plan), folder, progress)))


def rows_of(
    sae: SAE, acts: Any, plan: Plan, folder: str | Path | None = None, progress: bool = True
) -> Iterator[dict[str, Any]]:
    """The rows, each as soon as it is finished (see `report.schema`)."""
    subject = dataclasses.replace(pose_subject(sae, acts, plan), progress=progress)
    bench = Bench(subject, plan, Path(folder) if folder else None, progress)
    yield from bench.literal_rows() if plan.protocol == "literal" else bench.controlled_rows()


class _Callable(types.ModuleType):
    """`amortjax.price` is this module once anything has imported it, and the function before: both can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> pd.DataFrame:
        return price(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
