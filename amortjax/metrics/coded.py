"""Codes of an SAE's rows under a mode, on disk in parts: made once, shared by the audits, and a killed run goes on.

    coder = Coder(bench, folder, progress=True)          # of a Bench, whose calibrations are shared
    z = coder.codes("test", "optimal", Knobs(lam))       # (n, M) csr, the SAE's units
    seen = coder.screen(z, "test", lam, stages, 1e-6)    # (S, M) bool: not proved inactive on a stage's tokens

Codes are sparse: 8 bytes a firing, in memory and on disk.
"""

import dataclasses
import functools
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.files import write_atomically
from amortjax.inference import gaps, modes, objective
from amortjax.inference.api import bar_of, encode_codes
from amortjax.inference.codes import Codes, round_up
from amortjax.metrics import kept
from amortjax.metrics.bench import Bench
from amortjax.metrics.measure import Knobs, Subject

PART_CHUNKS = 8  # chunks of tokens in a part
NUMBERS = 1  # raised with every change of what a part holds, so that old ones are not reused


class Screened(NamedTuple):
    """`open` (S, M) bool: latents that the gap-safe test did not exclude on each stage's own tokens; `certified`:
    the share of tokens whose relative gap is within the tolerance."""

    open: np.ndarray
    certified: float


@dataclasses.dataclass(frozen=True)
class Coder:
    """Makes and keeps codes of one SAE. `folder`: where parts lie (None: nothing is kept)."""

    bench: Bench
    folder: Path | None
    progress: bool = False

    @property
    def subject(self) -> Subject:
        return self.bench.subject

    def rows(self, split: str) -> np.ndarray:
        """Rows of the store: `split` is test, probe or calibrate."""
        return getattr(self.subject, f"{split}_rows")

    def codes(self, split: str, mode: str, knobs: Knobs, tol: float | None = None) -> scipy.sparse.csr_array:
        """(n, M) codes in the SAE's units, float32. `tol`: the optimum's, if not that of the options."""
        subject = self.subject
        if tol is not None:
            subject = dataclasses.replace(subject, options=dataclasses.replace(subject.options, tol=tol))
        about = {"codes": split, "mode": mode, "knobs": list(knobs), "tol": subject.options.tol}
        solve = functools.partial(_solve, subject, mode, knobs)
        parts = [
            scipy.sparse.csr_array((part["data"], part["indices"], part["indptr"]), shape=part["shape"])
            for part in self._parts(split, about, f"{split}: {mode}", solve)
        ]
        return scipy.sparse.csr_array(scipy.sparse.vstack(parts))

    def screen(
        self, codes: scipy.sparse.csr_array, split: str, lam: float, stage: np.ndarray, tol: float
    ) -> Screened:
        """What the gap-safe test says of the optimum's `codes` (n, M), computed to `tol`, at `lam` > 0. stage (n,):
        of each token, from 0."""
        n_stages = int(stage.max(initial=0)) + 1
        about = {"screen": split, "lam": lam, "tol": tol, "stages": np.bincount(stage, minlength=1).tolist()}

        def examine(rows: np.ndarray, part: slice) -> dict[str, np.ndarray]:
            return _examine(self.subject, rows, codes[part], lam, stage[part], n_stages, tol)

        found = list(self._parts(split, about, f"{split}: gap-safe test", examine))
        packed = np.any([np.unpackbits(p["open"], axis=1).astype(bool) for p in found], axis=0)
        certified = sum(int(p["certified"]) for p in found) / max(len(stage), 1)
        return Screened(packed[:, : self.subject.problem.n_latents], certified)

    def _parts(self, split: str, about: dict[str, Any], text: str, make: Any) -> Iterator[dict[str, Any]]:
        """make(rows, slice) of each part, or what is on disk."""
        rows, size = self.rows(split), PART_CHUNKS * self.subject.options.chunk
        with bar_of(self.progress, len(rows), f"{self.subject.sae.info.name} {text}") as bar:
            for i in range(0, max(len(rows), 1), size):
                part = slice(i, min(i + size, len(rows)))
                key = kept.key_of(self.bench.identity | about | {"part": [i, size], "numbers": NUMBERS})
                path = self.folder and self.folder / f"part_{key}.npz"
                found = _load(path) if path else None
                if found is None:
                    found = make(rows[part], part)
                    if path:
                        _save(path, found)
                bar.update(part.stop - part.start)
                yield found


def _solve(subject: Subject, mode: str, knobs: Knobs, rows: np.ndarray, _: slice) -> dict[str, Any]:
    chunks = [scipy.sparse.csr_array((0, subject.sae.n_latents), dtype=np.float32)]
    for i in range(0, len(rows), subject.options.chunk):
        x, t = subject.batch(rows[i : i + subject.options.chunk])[:2]
        own = encode_codes(subject.sae, x, subject.options.chunk)
        knob = (knobs.lam or 0.0, knobs.scale)
        chunks.append(modes.solve(mode, subject.problem, t, own, *knob, subject.options)[0].csr())
    z = scipy.sparse.csr_array(scipy.sparse.vstack(chunks))
    return {
        "data": z.data,
        "indices": z.indices.astype(np.int32),
        "indptr": z.indptr,
        "shape": np.asarray(z.shape),
    }


def shape(z: Any) -> tuple[int, int]:
    """(n, M) of a sparse array, whose shape has no type."""
    return int(z.shape[0]), int(z.shape[1])


def as_codes(z: scipy.sparse.csr_array) -> Codes:
    """Sparse rows (n, M) as `Codes`."""
    count = np.diff(z.indptr)
    slots = (len(count), round_up(int(count.max(initial=0))))
    indices, values = np.zeros(slots, np.int32), np.zeros(slots, np.float32)
    row = np.repeat(np.arange(len(count)), count)
    slot = np.arange(z.nnz) - np.repeat(z.indptr[:-1], count)
    indices[row, slot], values[row, slot] = z.indices, z.data
    return Codes(indices, values, shape(z)[1])


def _examine(
    subject: Subject,
    rows: np.ndarray,
    codes: scipy.sparse.csr_array,
    lam: float,
    stage: np.ndarray,
    n_stages: int,
    tol: float,
) -> dict[str, Any]:
    """The gap-safe test of a part's tokens, stage by stage; padded to few shapes by tokens of the same stage."""
    open_, certified = np.zeros((n_stages, subject.problem.n_latents), bool), 0
    for i in range(0, len(rows), subject.options.chunk):
        here = slice(i, i + subject.options.chunk)
        t = subject.batch(rows[here])[1]
        found = objective.certify(subject.problem, t, as_codes(codes[here]), lam)
        certified += int((found.relative_gap <= tol).sum())
        for s in np.unique(stage[here]):
            chosen = np.flatnonzero(stage[here] == s)
            chosen = np.resize(chosen, round_up(len(chosen), at_least=64))
            same = objective.Certificate(*(column[chosen] for column in found))
            open_[s] |= gaps.possibly_active(subject.problem, same, lam).latents
    return {"open": np.packbits(open_, axis=1), "certified": np.asarray(certified)}


def _load(path: Path) -> dict[str, Any] | None:
    """None if there is no such file, or it can't be read (it is then made again)."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if "shape" in found:
        found["shape"] = tuple(int(n) for n in found["shape"])
    return found or None


def _save(path: Path, found: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **found)
    write_atomically(path, buffer.getvalue())
