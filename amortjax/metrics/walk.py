"""A way of ISTA steps that is gone once: codes of fewer steps are remembered, and more steps go on from them.

Also how much the supports of two codes have in common, which needs both on the same rows.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.sparse

from amortjax.inference import modes
from amortjax.inference.codes import Codes, from_dense
from amortjax.inference.request import Solved
from amortjax.metrics import streaming
from amortjax.metrics.measure import Knobs, Subject
from amortjax.metrics.uncertainty import Estimate

SEMI = "semi_amortized"


Chunk = tuple[int, int]


def chunk_of(rows: np.ndarray) -> Chunk:
    return int(rows[0]), len(rows)


class Place(NamedTuple):
    """What made some codes. `lam`: of modes that have one."""

    mode: str
    lam: float | None
    alista: tuple[tuple[float, float], ...] = ()
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Walk(Subject):
    """A subject that remembers codes, and whose steps go on from those of fewer steps on the same way."""

    # {what made them: {first row and length of a chunk: codes (n, M)}}
    memory: dict[Place, dict[Chunk, scipy.sparse.csr_array]] = dataclasses.field(default_factory=dict)

    def place(self, mode: str, knobs: Knobs) -> Place:
        lam = knobs.lam if modes.MODES[mode].knob == "lam" else None
        return (
            Place(mode, lam, self.options.alista, self.options.semi_steps)
            if mode == SEMI
            else Place(mode, lam)
        )

    def solve(self, mode: str, knobs: Knobs, rows: np.ndarray, x: np.ndarray, t: np.ndarray) -> Solved:
        here = self.place(mode, knobs)
        found = self._further(here, chunk_of(rows), t) if mode == SEMI else None
        found = super().solve(mode, knobs, rows, x, t) if found is None else found
        self.memory.setdefault(here, {})[chunk_of(rows)] = found[0].csr()
        return found

    def _further(self, here: Place, at: Chunk, t: np.ndarray) -> Solved | None:
        """From the most steps on this way that are remembered and not too many; None if there are none."""
        before = [
            p for p in self.memory if p[:3] == here[:3] and p.steps <= here.steps and at in self.memory[p]
        ]
        if not before:
            return None
        last = max(before, key=lambda p: p.steps)
        codes: Codes = from_dense(self.memory[last][at].toarray())
        if last.steps < here.steps:
            options = dataclasses.replace(self.options, semi_steps=here.steps - last.steps, alista=())
            codes, _ = modes.solve(SEMI, self.problem, t, codes, here.lam or 0.0, 1.0, options)
        return codes, np.full(len(t), len(here.alista) + here.steps)

    def forget_all_but(self, *places: Place) -> None:
        for place in set(self.memory) - set(places):
            del self.memory[place]


class Point(NamedTuple):
    """Codes that are measured: a mode under `walk`'s options."""

    walk: Walk
    mode: str
    knobs: Knobs

    @property
    def place(self) -> Place:
        return self.walk.place(self.mode, self.knobs)

    def fires(self, rows: np.ndarray, x: np.ndarray, t: np.ndarray) -> scipy.sparse.csr_array:
        """(n, M) of ones where latents fire."""
        known = self.walk.memory.get(self.place, {}).get(chunk_of(rows))
        codes = self.walk.solve(self.mode, self.knobs, rows, x, t)[0].csr() if known is None else known
        ones = np.ones(len(codes.data), np.float32)
        return scipy.sparse.csr_array((ones, codes.indices, codes.indptr), shape=codes.shape)


def overlaps(point: Point, others: dict[str, Point]) -> dict[str, np.ndarray]:
    """{name: (2, N_BLOCKS)} of the test rows: how many pairs of a token and a latent fire in both codes, and in
    either. Their ratio is the Jaccard index of the supports."""
    walk = point.walk
    rows = walk.test_rows
    block = streaming.block_of(walk.acts.doc_ids[rows])
    sums = {name: np.zeros((2, streaming.N_BLOCKS)) for name in others}
    for i in range(0, len(rows), walk.options.chunk):
        part = slice(i, i + walk.options.chunk)
        x, t, _ = walk.batch(rows[part])
        own = point.fires(rows[part], x, t)
        for name, other in others.items():
            theirs = other.fires(rows[part], x, t)
            both = np.asarray(own.multiply(theirs).sum(axis=1)).ravel()
            either = np.diff(own.indptr) + np.diff(theirs.indptr) - both
            sums[name] += np.stack([np.bincount(block[part], n, streaming.N_BLOCKS) for n in (both, either)])
    return sums


def jaccard(sums: np.ndarray, weights: np.ndarray | None) -> Estimate:
    """From `overlaps`, and how often each resample (R, N_BLOCKS) draws each block. Two codes that are empty agree."""

    def ratio(both: np.ndarray, either: np.ndarray) -> np.ndarray:
        return np.divide(both, either, out=np.ones_like(both), where=either > 0)

    value = float(ratio(*sums.sum(axis=1, keepdims=True))[0])
    return Estimate(value, None if weights is None else ratio(*(weights @ part for part in sums)))
