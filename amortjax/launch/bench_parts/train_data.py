"""The batches that both sides train on: rows.npy (R, D), divided by sqrt(mean |x|^2), and order.npy (steps, B).

Both sides open the same two files, and batch i is rows[order[i]].
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError

SYNTHETIC_ROWS, SYNTHETIC_L0 = 65_536, 30
READ = 65_536


class Data(NamedTuple):
    rows: Path
    order: Path
    held_out: Path | None  # (H, D), divided by the same scale
    scale: float
    mean: np.ndarray  # (D,) of the rows, after the division
    text: str


def synthetic(folder: Path, d_model: int, n_latents: int, batch_size: int, steps: int, seed: int) -> Data:
    """Sums of 30 random atoms with exponential amplitudes, and noise: what a step costs does not depend on it."""
    from scipy.sparse import csr_array

    rng = np.random.default_rng([seed, 0])
    atoms = rng.standard_normal((n_latents, d_model), dtype=np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    count, active = max(min(SYNTHETIC_ROWS, steps * batch_size), batch_size), min(SYNTHETIC_L0, n_latents)
    rows = _new(folder, "rows.npy", (count, d_model))
    at = rng.integers(0, n_latents, (count, active), dtype=np.int32)
    z = rng.standard_exponential((count, active), dtype=np.float32)
    codes = csr_array((z.ravel(), at.ravel(), np.arange(0, z.size + 1, active)), shape=(count, n_latents))
    rows[:] = codes @ atoms + 0.05 * rng.standard_normal(rows.shape, dtype=np.float32)
    text = f"synthetic: {count} sums of {active} of {n_latents} random atoms"
    return _finish(folder, rows, None, batch_size, steps, seed, text)


def stored(
    folder: Path,
    store: Any,
    batch_size: int,
    steps: int,
    seed: int,
    held_out: str | None = None,
    eval_rows: int = 0,
) -> Data:
    """Of a store's sae_train rows as many as are needed, and `eval_rows` of its split `held_out`."""
    at = np.asarray(store.rows("sae_train"))
    if len(at) < batch_size:
        raise AmortjaxError(
            f"the store has {len(at)} sae_train rows, fewer than one batch: collect more text, or lower "
            f"--batch_size={batch_size}"
        )
    if len(at) > steps * batch_size:
        at = np.sort(np.random.default_rng([seed, 1]).permutation(at)[: steps * batch_size])
    rows = _fill(_new(folder, "rows.npy", (len(at), store.d_model)), store, at)
    kept = None
    if held_out is not None:
        others = np.asarray(store.rows(held_out, max_tokens=eval_rows, whole_documents=False, seed=0))
        kept = _fill(_new(folder, "held_out.npy", (len(others), store.d_model)), store, others)
    manifest = store.manifest
    text = f"{manifest.get('model_name')}, {manifest.get('hook')} of block {manifest.get('layer_index')}"
    text += f", {manifest.get('dataset')}: {len(at)} training rows"
    return _finish(folder, rows, kept, batch_size, steps, seed, text)


def _new(folder: Path, name: str, shape: tuple[int, int]) -> np.memmap:
    folder.mkdir(parents=True, exist_ok=True)
    return np.lib.format.open_memmap(folder / name, "w+", np.float32, shape)


def _fill(into: np.memmap, store: Any, at: np.ndarray) -> np.memmap:
    for start in range(0, len(at), READ):
        part = np.asarray(store.read(at[start : start + READ]), np.float32)
        if not np.isfinite(part).all():
            raise AmortjaxError("the store has NaN or infinite activations: collect them again in float32")
        into[start : start + READ] = part
    return into


def _finish(
    folder: Path,
    rows: np.memmap,
    held_out: np.memmap | None,
    batch_size: int,
    steps: int,
    seed: int,
    text: str,
) -> Data:
    """Divides by the scale that dictionary_learning uses, and draws the order: shuffled epochs."""
    total = sum(float(np.sum(np.square(part, dtype=np.float64))) for part in _parts(rows))
    scale = math.sqrt(total / len(rows))
    if not scale > 0:
        raise AmortjaxError("all training rows are zero: nothing to train on")
    for array in (rows, held_out):
        for part in [] if array is None else _parts(array):
            part /= np.float32(scale)
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in _parts(rows)) / len(rows)
    per_epoch = len(rows) // batch_size
    rng, epochs = np.random.default_rng([seed, 2]), -(-steps // per_epoch)
    order = [
        rng.permutation(len(rows))[: per_epoch * batch_size].reshape(per_epoch, -1) for _ in range(epochs)
    ]
    np.save(folder / "order.npy", np.concatenate(order)[:steps])
    for array in (rows, held_out):
        if array is not None:
            array.flush()
    kept = None if held_out is None else folder / "held_out.npy"
    return Data(folder / "rows.npy", folder / "order.npy", kept, scale, np.asarray(mean, np.float32), text)


def _parts(array: np.memmap) -> list[np.ndarray]:
    return [array[start : start + READ] for start in range(0, len(array), READ)]
