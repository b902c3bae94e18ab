"""Clocks: the encoder forward everything is counted in, a solver's cost in it, and peak memory.

The machine's speed drifts, so a solver's time is divided by that of the forwards run just before and after it.
"""

import ctypes
import gc
import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference.codes import Codes
from amortjax.inference.objective import HIGHEST
from amortjax.inference.request import Solved

FORWARDS = 3  # timed before, and again after, each repeat
# A slow solver is tried on few tokens first, and measured on as many as fit into its time.
LADDER = (4, 16, 64, 256)
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@jax.jit
def _forward(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return jax.nn.relu(jnp.matmul(x, w, precision=HIGHEST) + b)


class Unit:
    """One encoder forward: x (N, D) by (D, M), bias and ReLU, in float32, from and to the device's memory."""

    def __init__(self, t: np.ndarray, atoms: jax.Array) -> None:
        self.n = len(t)
        self._args = (jnp.asarray(t), jnp.array(atoms.T), jnp.zeros(len(atoms)))
        self.warm()

    def warm(self) -> None:
        for _ in range(2):
            _forward(*self._args).block_until_ready()

    def seconds(self) -> list[float]:
        """Of each of a few forwards of all N tokens."""
        out = []
        for _ in range(FORWARDS):
            start = time.perf_counter()
            _forward(*self._args).block_until_ready()
            out.append(time.perf_counter() - start)
        return out


class Gauge(NamedTuple):
    """Memory in bytes: now, the highest so far, and a way to forget that (False where there is none)."""

    now: Callable[[], int]
    highest: Callable[[], int]
    forget: Callable[[], bool]


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _forget_host() -> bool:
    """Linux forgets a process's peak when told 5."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def gauge(where: str) -> Gauge | None:
    """Of "jax" (its device; on a CPU the process), "torch" (its GPU if it has one) or "host"."""
    if where == "torch":
        import torch

        if torch.cuda.is_available():
            cuda = torch.cuda
            forget = lambda: cuda.reset_peak_memory_stats() is None  # noqa: E731
            return Gauge(cuda.memory_allocated, cuda.max_memory_allocated, forget)
    device = jax.devices()[0]
    if where == "jax" and device.platform != "cpu":
        if device.memory_stats() is None:
            return None
        read = lambda key: int((device.memory_stats() or {})[key])  # noqa: E731
        return Gauge(lambda: read("bytes_in_use"), lambda: read("peak_bytes_in_use"), lambda: False)
    if not STATUS.exists():
        return None
    return Gauge(lambda: _status("VmRSS"), lambda: _status("VmHWM"), _forget_host)


class Peak:
    """`with Peak(gauge) as peak: ...`, then `peak.megabytes`: how far memory rose above its level before (None
    without a gauge). Exact where the old peak can be forgotten or is exceeded; otherwise sampled every 2 ms."""

    def __init__(self, gauge: Gauge | None) -> None:
        self._gauge, self._sampled, self._stop = gauge, 0, threading.Event()
        self.megabytes: float | None = None

    def _sample(self, now: Callable[[], int]) -> None:
        while not self._stop.wait(0.002):
            self._sampled = max(self._sampled, now())

    def __enter__(self) -> "Peak":
        if self._gauge is not None:
            _give_back()
            self._exact = self._gauge.forget()
            self._before, self._old = self._gauge.now(), self._gauge.highest()
            if not self._exact:
                self._thread = threading.Thread(target=self._sample, args=(self._gauge.now,), daemon=True)
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._gauge is None:
            return
        if not self._exact:
            self._stop.set()
            self._thread.join()
        highest = self._gauge.highest()
        peak = highest if self._exact or highest > self._old else max(self._sampled, self._before)
        self.megabytes = max(peak - self._before, 0) / 2**20


def _give_back() -> None:
    """Memory that is free but still the process's would hide a rise: it goes back to the system (glibc)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


class Limits(NamedTuple):
    seconds: float  # about as long as a solver may be measured
    repeats: int


class Measured(NamedTuple):
    """Codes (folded) and iterations of the first `n` tokens. `seconds` of each repeat; `forwards`, `unit_ms`:
    its cost and the encoder's time per token, each repeat's beside it; `first`: seconds of the first call."""

    codes: Codes
    iterations: np.ndarray
    n: int
    seconds: list[float]
    forwards: list[float]
    unit_ms: float
    first: float
    peak_mb: float | None

    @property
    def ms_per_token(self) -> float:
        return 1e3 * statistics.median(self.seconds) / self.n


def _timed(run: Callable[[int], Any], n: int) -> tuple[float, Any]:
    start = time.perf_counter()
    out = run(n)
    return time.perf_counter() - start, out


def tokens_within(run: Callable[[int], Any], n_all: int, seconds: float, least: int = LADDER[0]) -> int:
    """How many tokens can be solved twice in `seconds`: all, or a step of the ladder."""
    for n, following in itertools.pairwise([*(n for n in LADDER if least <= n < n_all), n_all]):
        took, _ = _timed(run, n)
        if took < seconds:
            took, _ = _timed(run, n)  # the first compiled
        if 2 * took * n_all / n <= seconds:
            return n_all
        if 2 * took * following / n > seconds:
            return n
    return n_all


def measure(
    run: Callable[[int], Solved], unit: Unit, limits: Limits, memory: Gauge | None, least: int = LADDER[0]
) -> Measured:
    """A solver's cost: first call, then repeats as time allows, between encoder forwards."""
    n = tokens_within(run, unit.n, limits.seconds, least)
    # What was compiled while looking for n is compiled again, so that the first call shows it.
    jax.clear_caches()
    unit.warm()
    first, (codes, iterations) = _timed(run, n)
    seconds: list[float] = []
    forwards: list[float] = []
    units: list[float] = []
    peak = Peak(memory)
    while not seconds or (len(seconds) < limits.repeats and sum(seconds) + seconds[-1] <= limits.seconds):
        around = unit.seconds()
        if seconds:
            took, _ = _timed(run, n)
        else:
            with peak:
                took, _ = _timed(run, n)
        around += unit.seconds()
        one = statistics.median(around) / unit.n
        seconds.append(took)
        forwards.append(took / n / one)
        units.append(one)
    return Measured(
        codes,
        np.asarray(iterations),
        n,
        seconds,
        forwards,
        1e3 * statistics.median(units),
        first,
        peak.megabytes,
    )


def threads() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
