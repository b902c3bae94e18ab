"""Seeded, shuffled batches of an activation store's training rows: batch number i is a function of seed and
i alone.

Rows that fit in memory are read once and shuffled whole. Otherwise each epoch visits blocks of neighbouring
rows in a random order, a window of many blocks at a time, shuffled within. An interrupted run goes on at
the same batch.
"""

import functools
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from amortjax.errors import AmortjaxError, StoreError

# Neighbouring rows come from the same documents; blocks are small against a window so that it mixes many of
# them.
BLOCK = 4096
MEMORY = 4 * 2**30
READ = 65_536
# Where held-out rows come from: the first of these that has any.
HELD_OUT = ("calibrate", "test")


class Rows(Protocol):
    """What training needs of a store (activations.store). `rows` raises StoreError if a split is empty."""

    @property
    def d_model(self) -> int: ...
    @property
    def manifest(self) -> dict: ...
    def read(self, rows: np.ndarray) -> np.ndarray: ...
    def rows(self, split: str) -> np.ndarray: ...


class Batches:
    """`batches[i]` is batch i (batch_size, D), float32, raw: a `feed.Source` of a store. Raises AmortjaxError
    for NaN or too few rows."""

    def __init__(self, store: Rows, batch_size: int, seed: int, memory: int = MEMORY):
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.d_model = store.d_model
        self.rows = np.asarray(store.rows("sae_train"))
        if len(self.rows) < batch_size:
            raise AmortjaxError(
                f"the store has {len(self.rows)} sae_train rows, fewer than one batch: collect more text, "
                f"or lower --batch_size={batch_size}"
            )
        fit = max(memory // (4 * store.d_model), batch_size)
        self.whole = len(self.rows) <= fit
        self.window_rows = len(self.rows) if self.whole else max(fit // BLOCK, 1) * BLOCK
        self._epoch: tuple[int, np.ndarray] = (-1, self.rows)
        # Epoch, number, rows as read, and their order.
        self._window: tuple[int, int, np.ndarray, np.ndarray] | None = None
        # A window's last rows that fill no batch are left out; another epoch's shuffle leaves out others.
        full, rest = divmod(len(self.rows), self.window_rows)
        self.per_window = [self.window_rows // batch_size] * full + (
            [rest // batch_size] if rest >= batch_size else []
        )
        self.per_epoch = sum(self.per_window)

    @functools.cached_property
    def all(self) -> np.ndarray:
        """All rows (n, D), if they fit; read when first asked for, after the memory plan."""
        return self._read(self.rows, "reading activations")

    def __getitem__(self, i: int) -> np.ndarray:
        epoch, place = divmod(i, self.per_epoch)
        window = 0
        while place >= self.per_window[window]:
            place -= self.per_window[window]
            window += 1
        chosen = slice(place * self.batch_size, (place + 1) * self.batch_size)
        if self.whole:
            return self.all[self._order(epoch)[chosen]]
        x, order = self._load(epoch, window)
        return x[order[chosen]]

    @property
    def manifest(self) -> dict:
        return self.store.manifest

    def position(self, i: int) -> dict[str, Any]:
        """What `restore` needs to go on with batch i: nothing but i."""
        return {"batch": i}

    def restore(self, position: dict[str, Any]) -> None:
        """Nothing to do: any batch can be asked for at any time."""

    def close(self) -> None:
        """Nothing to do: no thread is running."""

    def sample(self, n: int) -> np.ndarray:
        """(up to n, D) rows spread over the whole split, for the scale and the centre."""
        chosen = np.random.default_rng([self.seed, 1]).permutation(len(self.rows))[:n]
        chosen.sort()
        return self.all[chosen] if self.whole else self._read(self.rows[chosen], "sampling activations")

    def held_out(self, n: int) -> tuple[np.ndarray, str] | None:
        """(up to n, D) rows spread evenly over a split that is not trained on, the same for every seed, and
        its name; None if the store has no such split."""
        for split in HELD_OUT:
            try:
                rows = np.asarray(self.store.rows(split))
            except StoreError:
                continue
            n = min(n, len(rows))
            return self._read(rows[np.arange(n) * len(rows) // max(n, 1)], ""), split
        return None

    def _order(self, epoch: int) -> np.ndarray:
        """Positions in `self.rows`, in the order of an epoch."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, 2, epoch])
            if self.whole:
                order = rng.permutation(len(self.rows))
            else:
                blocks = rng.permutation(-(-len(self.rows) // BLOCK))
                order = np.concatenate(
                    [np.arange(b * BLOCK, min((b + 1) * BLOCK, len(self.rows))) for b in blocks]
                )
            self._epoch = (epoch, order)
        return self._epoch[1]

    def _load(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """A window's rows and their order; kept until the next is asked for."""
        if self._window is None or self._window[:2] != (epoch, window):
            self._window = None  # frees the last one first
            places = np.sort(self._order(epoch)[window * self.window_rows : (window + 1) * self.window_rows])
            x = self._read(self.rows[places], "")
            order = np.random.default_rng([self.seed, 3, epoch, window]).permutation(len(x))
            self._window = (epoch, window, x, order)
        return self._window[2:]

    def _read(self, rows: np.ndarray, text: str) -> np.ndarray:
        out = np.empty((len(rows), self.store.d_model), np.float32)
        starts = range(0, len(rows), READ)
        for start in tqdm(
            starts, desc=text, unit_scale=READ, unit=" rows", disable=not text or len(starts) < 4
        ):
            part = rows[start : start + READ]
            out[start : start + len(part)] = self.store.read(part)
            bad = ~np.isfinite(out[start : start + len(part)]).all(axis=1)
            if bad.any():
                raise AmortjaxError(
                    f"activations: {int(bad.sum())} of {len(part)} rows read have NaN or infinite values, "
                    f"the first is row {int(part[np.argmax(bad)])}: collect them again in float32"
                )
        return out


def scale_and_centre(
    sample: np.ndarray, how: str, unit: str = "centred"
) -> tuple[float, np.ndarray, np.ndarray]:
    """Of a sample (n, D): its scale s; where b_dec starts (D,); the mean (D,). Raw units.

    `unit`: centred, s^2 = mean of |x - mean|^2; norm, s^2 = mean of |x|^2; none, s = 1. `how`: mean,
    geometric_median or zero.
    """
    mean = sample.mean(axis=0, dtype=np.float64)
    spread = float(np.sqrt(np.mean(np.sum((sample - mean) ** 2, axis=1))))
    if not spread > 0:
        raise AmortjaxError("all sae_train activations are the same vector: nothing to train on")
    scales = {"centred": spread, "norm": float(np.hypot(spread, np.linalg.norm(mean))), "none": 1.0}
    centre = {
        "mean": lambda: mean,
        "geometric_median": lambda: geometric_median(sample.astype(np.float64), 1e-5 * spread),
        "zero": lambda: np.zeros_like(mean),
    }[how]()
    return scales[unit], centre.astype(np.float32), mean.astype(np.float32)


def geometric_median(x: np.ndarray, tolerance: float, most: int = 100) -> np.ndarray:
    """The point (D,) with the least sum of distances to x (n, D), by Weiszfeld's iteration."""
    point = x.mean(axis=0)
    for _ in range(most):
        weight = 1 / np.maximum(np.linalg.norm(x - point, axis=1), 1e-12)
        last, point = point, weight @ x / weight.sum()
        if np.linalg.norm(point - last) < tolerance:
            break
    return point
