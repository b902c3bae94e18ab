"""Finished parts of `core_lite`: what the language model makes of some test documents, under one mode, as a file.

A part's numbers are sums of each of its documents, so how documents are cut into parts and batches changes nothing but
rounding.
"""

import dataclasses
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NUMBERS = 1  # raised with every change of what a part computes, so that old ones are not reused
PART_TOKENS = 4096  # of a part, about


class Part(NamedTuple):
    """Some test documents, and which of the test rows are theirs."""

    documents: list[Any]
    rows: slice
    digest: str

    @property
    def sizes(self) -> np.ndarray:
        return np.asarray([int(document.keep.sum()) for document in self.documents])


@dataclasses.dataclass(frozen=True)
class Scene:
    """The model, the text and where finished parts are kept; the same for every SAE."""

    causal: Any  # activations.splice.Causal
    store: Any
    place: tuple[int, str]
    batch_tokens: int
    parts: list[Part]
    calibrate_rows: np.ndarray
    test_rows: np.ndarray
    folder: Path
    progress: bool = True

    @property
    def blocks(self) -> np.ndarray:
        """(documents,) the block of each, for intervals."""
        from amortjax.metrics.streaming import block_of

        return block_of(np.unique(self.store.doc_ids[self.test_rows]))

    def path(self, name: str, about: dict[str, Any], part: Part) -> Path:
        from amortjax.metrics.kept import key_of

        rows = self.store.token_ids[self.calibrate_rows]
        known = {"numbers": NUMBERS, "model": self.causal.model.fingerprint, "place": self.place}
        known |= {"text": part.digest, "calibrate": _digest(rows), "name": name}
        return self.folder / f"{name}_{key_of(known | about)}.npz"


def cut(documents: list[Any]) -> list[Part]:
    """Parts of PART_TOKENS tokens or a little more, in order."""
    parts, own, start, count = [], [], 0, 0
    for i, document in enumerate(documents):
        own.append(document)
        count += int(document.keep.sum())
        if count >= PART_TOKENS or i == len(documents) - 1:
            ids = [np.asarray([len(d.ids), *d.ids]) for d in own]
            parts.append(Part(own, slice(start, start + count), _digest(np.concatenate(ids))))
            own, start, count = [], start + count, 0
    return parts


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(ids, np.int64).tobytes()).hexdigest()[:16]


def load_part(path: Path, documents: int) -> dict[str, np.ndarray] | None:
    """None if there is no such file, or it can't be read (it is then measured again)."""
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if found and all(column.shape == (documents,) for column in found.values()) else None


def save_part(path: Path, columns: dict[str, np.ndarray]) -> None:
    from amortjax.files import write_atomically

    buffer, arrays = io.BytesIO(), dict[str, Any](columns)
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def references(scene: Scene) -> dict[str, np.ndarray]:
    """(documents,) sums without any SAE: the clean model, zeros at the hook (everywhere as in SAEBench, or at tokens
    that are not special), and the mean activation."""
    from amortjax.activations import splice
    from amortjax.inference.api import bar_of

    x = scene.store.read(scene.calibrate_rows)
    zero, mean = np.zeros(x.shape[1], np.float32), x.mean(axis=0, dtype=np.float64).astype(np.float32)
    splices = {
        "zero": splice.Splice(zero, everywhere=True),
        "kept": splice.Splice(zero),
        "mean": splice.Splice(mean),
    }
    found = []
    with bar_of(scene.progress, len(scene.test_rows), "the model alone, and ablated") as bar:
        for part in scene.parts:
            path = scene.path("ablations", {}, part)
            columns = load_part(path, len(part.documents))
            if columns is None:
                scores = splice.score(scene.causal, part.documents, scene.place, splices, scene.batch_tokens)
                clean = scores.pop(splice.CLEAN)
                columns = {"tokens": part.sizes, "scored": clean.scored, "ce_clean": clean.ce}
                for name, own in scores.items():
                    columns |= {f"ce_{name}": own.ce, f"kl_{name}": own.kl}
                save_part(path, columns)
            found.append(columns)
            bar.update(part.rows.stop - part.rows.start)
    return joined(found)


def spliced(scene: Scene, subject: Any, knobs: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """{mode: (documents,) sums} of one SAE's reconstructions at the hook. Parts that are on disk are not made again."""
    from amortjax.inference.api import bar_of, encode_codes
    from amortjax.metrics import fidelity
    from amortjax.saes.digest import digest

    about, encoder = {"sae": digest(subject.sae)}, None
    if subject.sae.batch_rule:  # its codes depend on all tokens
        about["tokens"] = _digest(scene.store.token_ids[scene.test_rows])
    found: dict[str, list] = {mode: [] for mode in knobs}
    total = len(scene.test_rows) * len(knobs)
    with bar_of(scene.progress, total, f"{subject.sae.info.name}: {len(knobs)} modes") as bar:
        for part in scene.parts:
            paths = {
                mode: scene.path(mode, about | fidelity.identity(subject, mode, own), part)
                for mode, own in knobs.items()
            }
            columns = {mode: load_part(path, len(part.documents)) for mode, path in paths.items()}
            missing = {mode: knobs[mode] for mode, own in columns.items() if own is None}
            if missing and encoder is None:
                x = scene.store.read(scene.test_rows)
                encoder = encode_codes(subject.sae, x, subject.options.chunk)
            made = measured(scene, subject, missing, part, encoder, bar) if missing else {}
            for mode, own in made.items():
                save_part(paths[mode], own)
            for mode, own in (columns | made).items():
                found[mode].append(own)
            bar.update((part.rows.stop - part.rows.start) * (len(knobs) - len(missing)))
    return {mode: joined(parts) for mode, parts in found.items()}


def measured(
    scene: Scene, subject: Any, knobs: dict[str, Any], part: Part, encoder: Any, bar: Any
) -> dict[str, dict[str, np.ndarray]]:
    """{mode: (documents,) sums} of one part: codes of every mode, then a clean forward and one for each mode."""
    from amortjax.activations import splice
    from amortjax.metrics import fidelity

    rows, own = scene.test_rows[part.rows], encoder.rows(part.rows.start, part.rows.stop)
    rebuilt = {}
    for mode, knob in knobs.items():
        rebuilt[mode] = fidelity.rebuild(subject, mode, knob, rows, own)
        bar.update(len(rows))
    splices = {mode: splice.Splice(found.x_hat) for mode, found in rebuilt.items()}
    scores = splice.score(scene.causal, part.documents, scene.place, splices, scene.batch_tokens)
    out = {}
    for mode, found in rebuilt.items():
        sums = {name: fidelity.by_document(getattr(found, name), part.sizes) for name in fidelity.REBUILT}
        out[mode] = {"ce": scores[mode].ce, "kl": scores[mode].kl} | sums
    return out
