"""Means over the steps since the last log line."""

import dataclasses
import time

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.training.step import Report


@dataclasses.dataclass
class Meter:
    """Reports stay on the device until they are asked for."""

    reports: list[Report] = dataclasses.field(default_factory=list)
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def start(self) -> None:
        """Time counts from now."""
        self.since = time.perf_counter()

    def add(self, report: Report) -> None:
        self.reports.append(report)

    def read(self, batch_size: int, done: int, name: str) -> dict[str, float]:
        """A log line's numbers, `done` steps in. AmortjaxError naming the first step whose loss is not finite."""
        parts = [np.asarray(part, np.float64) for part in zip(*self.reports, strict=True)]
        loss, error, spread, l0, dead = parts
        n, seconds = len(self.reports), time.perf_counter() - self.since
        bad = np.flatnonzero(~np.isfinite(loss))
        if len(bad):
            raise AmortjaxError(
                f"{name}: training diverged, the loss is not finite at step {done - n + 1 + int(bad[0])}; the last "
                "checkpoint before it is kept. Lower --lr or --clip, with another --out (a run goes on only with "
                "the same flags)"
            )
        self.reports = []
        self.start()
        return {
            "loss": float(loss.mean()), "fvu": float(error.sum() / spread.sum()),
            "l0": float(l0.sum() / (n * batch_size)), "dead": float(dead[-1]),
            "tokens_per_second": n * batch_size / seconds,
        }  # fmt: skip
