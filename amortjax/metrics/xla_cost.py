"""FLOPs as XLA counts them in what it compiled. `metrics.flops` has the closed forms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class XlaCost(NamedTuple):
    """What XLA's cost analysis says of one call. `flops` is None where the backend does not report. Bodies of loops
    (scan, while) are counted once, however often they run, and custom calls (sorts, factorisations) not at all: with
    `loops` or `custom_calls` above 0 the number is a lower bound."""

    flops: int | None
    loops: int = 0
    custom_calls: int = 0

    @property
    def whole(self) -> bool:
        return self.flops is not None and not self.loops and not self.custom_calls


def xla_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> XlaCost:
    """XLA's count of jit(fn)(*args, **kwargs) as compiled for this backend; nothing is run.

    Pass a single training step, or a single solver iteration, and multiply: a whole training under `lax.scan` is
    counted as one step. Unlike the closed forms it counts what is there: Adam once per parameter and not per sample,
    the loss, the gradient of the dictionary.
    """
    import jax

    jitted: Any = fn if hasattr(fn, "lower") else jax.jit(fn)
    compiled = jitted.lower(*args, **kwargs).compile()
    try:
        found = compiled.cost_analysis()
    except (NotImplementedError, RuntimeError):  # a backend without a cost analysis
        found = None
    try:
        text = compiled.as_text() or ""
    except (NotImplementedError, RuntimeError):
        text = ""
    return XlaCost(_flops_of(found), text.count(" while("), text.count(" custom-call("))


def _flops_of(found: Any) -> int | None:
    """A dict, or one per device in a list; "flops" absent, negative or NaN where it is not known."""
    parts: Sequence[Any] = found if isinstance(found, list | tuple) else [found]
    counts = [part.get("flops") for part in parts if isinstance(part, dict)]
    known = [int(count) for count in counts if isinstance(count, int | float) and 0 <= count < float("inf")]
    return sum(known) if known and len(known) == len(parts) else None
