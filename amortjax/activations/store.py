"""The activation store: rows of one hook of one model over one corpus, in zarr v3 through TensorStore.

A folder (local, gs:// or s3://) with zarr arrays `activations (n_rows, D)`, `token_ids (n_rows,)` and
`doc_ids (n_rows,)`, a table `documents.parquet`, `vocab.json` and `manifest.json`. Rows stand in document
order. Chunks are uncompressed, because zstd makes random reads several times slower, and checksummed. The
manifest is written last of all at each step, so what it counts is on disk whatever happens.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from amortjax.activations.disk import open_array, open_files, read_manifest, store_errors
from amortjax.activations.splits import SPLITS
from amortjax.errors import StoreError

FORMAT_VERSION = 1
CHUNK_ROWS = 2048
DTYPES = ("float32", "bfloat16")
# A store is gone on with only if all of these are the same.
IDENTITY = (
    "format_version",
    "model_name",
    "model_fingerprint",
    "hook",
    "layer_index",
    "d_model",
    "dtype",
    "dataset",
    "corpus_fingerprint",
    "num_sequences",
    "token_policy",
    "max_seq_len",
    "batch_tokens",
    "split_fractions",
    "seed",
    "chunk_rows",
)
# Norm statistics are taken from at most this many training rows.
NORM_ROWS = 1 << 20


class Readable(Protocol):
    """What a Store and a MemoryStore both give."""

    manifest: dict
    token_ids: np.ndarray
    doc_ids: np.ndarray
    documents: dict[str, np.ndarray]
    n_rows: int
    d_model: int

    def read(self, rows: np.ndarray | slice) -> np.ndarray: ...
    def rows(
        self, split: str, max_tokens: int | None = None, whole_documents: bool = True, seed: int = 0
    ) -> np.ndarray: ...
    def token_strings(self, ids: np.ndarray) -> list[str]: ...


def select_rows(
    documents: dict[str, np.ndarray],
    split: str,
    max_tokens: int | None = None,
    whole_documents: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Sorted row numbers of a split: documents in a shuffled order until `max_tokens` rows are reached.

    Whole documents overshoot the budget by part of one document; otherwise it is kept exactly. StoreError
    if the split is unknown or empty.
    """
    if split not in SPLITS:
        raise StoreError(f"split {split!r}: no such split. Splits: {', '.join(SPLITS)}.")
    chosen = np.flatnonzero((documents["split"] == split) & (documents["stop"] > documents["start"]))
    if not len(chosen):
        present = sorted(set(documents["split"].tolist()))
        raise StoreError(
            f"the store has no document of split {split!r} (it has {', '.join(present) or 'none'}): "
            "collect more documents, or give this split a part of --split_fractions."
        )
    sizes = documents["stop"] - documents["start"]
    if max_tokens is not None:
        chosen = np.random.default_rng(seed).permutation(chosen)
        until = int(np.searchsorted(np.cumsum(sizes[chosen]), max_tokens)) + 1
        chosen = chosen[:until]
    # Each document's range, written one after the other.
    starts, sizes = documents["start"][chosen], sizes[chosen]
    rows = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    if max_tokens is not None and not whole_documents:
        rows = rows[:max_tokens]
    return np.sort(rows).astype(np.int64)


def check_finite(x: np.ndarray, rows: np.ndarray | slice, where: str) -> None:
    """StoreError with the count and the first row if any row of x (n, D) holds NaN or infinity."""
    if np.isfinite(x).all():
        return
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    first = (rows.start or 0) + bad[0] if isinstance(rows, slice) else rows[bad[0]]
    raise StoreError(
        f"{where}: {len(bad)} of {len(x)} activation rows hold NaN or infinity, the first is row {first}: "
        "collect them again, with --model_dtype=float32 if a lower precision was used."
    )


def norm_statistics(chunks: Iterable[np.ndarray]) -> dict:
    """Of chunks of rows x (n, D), in raw units, n_rows in all:

    mean_sq_norm = mean of ||x||^2; mean (D); rms_centred = sqrt(mean of ||x - mean||^2 / D), per coordinate.
    """
    total: np.ndarray | float = 0.0
    total_sq, count = 0.0, 0
    for x in chunks:
        total = total + x.sum(axis=0, dtype=np.float64)
        total_sq += float(np.einsum("nd,nd->", x, x, dtype=np.float64))
        count += len(x)
    mean = np.asarray(total) / count
    variance = max(total_sq / count - float(mean @ mean), 0.0) / len(mean)
    return {
        "mean_sq_norm": total_sq / count,
        "rms_centred": float(np.sqrt(variance)),
        "mean": [float(value) for value in mean.astype(np.float32)],
        "n_rows": count,
    }


def _digest(x: np.ndarray, doc_ids: np.ndarray, words: Sequence[str]) -> str:
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8)
    for array in (x, doc_ids):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class MemoryStore:
    """A store held in memory, for evaluation straight from streamed text and for tests."""

    def __init__(
        self,
        x: np.ndarray,
        token_ids: np.ndarray,
        doc_ids: np.ndarray,
        documents: dict[str, np.ndarray],
        manifest: dict,
        vocab: list[str] | tuple[str, ...] = (),
    ) -> None:
        self._x = x
        self.token_ids = np.asarray(token_ids, dtype=np.int32)
        self.doc_ids = np.asarray(doc_ids, dtype=np.int32)
        self.documents = documents
        self.manifest = manifest
        self._vocab = vocab
        self.n_rows, self.d_model = x.shape

    @classmethod
    def build(
        cls,
        x: np.ndarray,
        doc_ids: np.ndarray,
        splits: Sequence[str],
        labels: Sequence[str] | None = None,
        token_ids: np.ndarray | None = None,
        vocab: list[str] | tuple[str, ...] = (),
        **manifest: Any,
    ) -> "MemoryStore":
        """From rows x (n, D), the document of each (ascending), and each document's split and label."""
        doc_ids = np.asarray(doc_ids, dtype=np.int32)
        if len(doc_ids) != len(x) or np.any(np.diff(doc_ids) < 0):
            raise StoreError(f"{len(x)} rows need {len(x)} ascending document numbers.")
        numbers = np.arange(len(splits))
        documents = {
            "split": np.asarray(splits, dtype=object),
            "label": np.asarray([""] * len(splits) if labels is None else labels, dtype=object),
            "start": np.searchsorted(doc_ids, numbers, side="left"),
            "stop": np.searchsorted(doc_ids, numbers, side="right"),
        }
        if token_ids is None:
            token_ids = np.zeros(len(x), dtype=np.int32)
        filled = {
            "format_version": FORMAT_VERSION,
            "model_name": "memory",
            "hook": "resid_post",
            "layer_index": 0,
            "dtype": "float32",
            "dataset": "memory",
            # Of what is measured, so that kept results of other rows are never taken for these.
            "corpus_fingerprint": _digest(x, doc_ids, [*splits, *(labels or ())]),
            "d_model": int(x.shape[1]),
            "n_rows": len(x),
            "n_documents": len(splits),
            "finished": True,
        }
        store = cls(x, token_ids, doc_ids, documents, filled | manifest, vocab)
        if "norm" not in store.manifest:
            rows = np.flatnonzero(documents["split"][doc_ids] == "sae_train")
            store.manifest["norm"] = norm_statistics([x[rows] if len(rows) else x])
        return store

    def read(self, rows: np.ndarray | slice) -> np.ndarray:
        """Rows as float32 (n, D); StoreError if any holds NaN or infinity."""
        x = np.asarray(self._x[rows], dtype=np.float32)
        check_finite(x, rows, "activations in memory")
        return x

    def rows(
        self, split: str, max_tokens: int | None = None, whole_documents: bool = True, seed: int = 0
    ) -> np.ndarray:
        """Sorted row numbers of a split; see select_rows."""
        return select_rows(self.documents, split, max_tokens, whole_documents, seed)

    def token_strings(self, ids: np.ndarray) -> list[str]:
        """The text of each token id, a leading space shown as such; empty strings without a vocabulary."""
        return [self._vocab[i] if 0 <= i < len(self._vocab) else "" for i in np.asarray(ids).tolist()]


class Store:
    """A finished activation store, read lazily; see open_store."""

    def __init__(self, path: str, manifest: dict) -> None:
        import pyarrow.parquet as pq

        self.path = path
        self.manifest = manifest
        self.n_rows, self.d_model = int(manifest["n_rows"]), int(manifest["d_model"])
        self._check_chunks()
        with store_errors(path):
            files = open_files(path)
            self._x = open_array(path, "activations")
            if tuple(self._x.shape) != (self.n_rows, self.d_model):
                raise ValueError(
                    f"the array is {self._x.shape}, the manifest says {self.n_rows} rows: damaged"
                )
            self.token_ids = open_array(path, "token_ids").read().result()
            self.doc_ids = open_array(path, "doc_ids").read().result()
            table = pq.read_table(io.BytesIO(files.read("documents.parquet").result().value))
            self._vocab = json.loads(files.read("vocab.json").result().value)
        self.documents = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}

    def _check_chunks(self) -> None:
        """StoreError at once, not in the middle of a run, if a chunk of a local store is missing or short."""
        if "://" in self.path:
            return
        rows = self.manifest["chunk_rows"]
        item = 4 if self.manifest["dtype"] == "float32" else 2
        sizes = {"activations": rows * self.d_model * item, "token_ids": 4 * rows, "doc_ids": 4 * rows}
        for name, size in sizes.items():
            for number in range(-(-self.n_rows // rows)):
                file = Path(self.path, name, "c", str(number), *(["0"] if name == "activations" else []))
                # Four bytes of checksum.
                if not file.is_file() or file.stat().st_size != size + 4:
                    raise StoreError(f"{file}: missing or truncated: delete the store and collect it again.")

    def read(self, rows: np.ndarray | slice) -> np.ndarray:
        """Rows as float32 (n, D); StoreError if any holds NaN or infinity, or a chunk is damaged."""
        x = self._read(rows)
        check_finite(x, rows, self.path)
        return x

    def _read(self, rows: np.ndarray | slice) -> np.ndarray:
        if isinstance(rows, slice):
            # TensorStore, unlike NumPy, does not cut a slice at the end.
            start, stop, step = rows.indices(self.n_rows)
            rows = slice(start, max(start, stop), step)
        with store_errors(self.path):
            return np.asarray(self._x[rows].read().result()).astype(np.float32, copy=False)

    def check_finite(self) -> None:
        """Reads all rows; StoreError with the count and the first row if any holds NaN or infinity."""
        count, first = 0, None
        for start in range(0, self.n_rows, 1 << 14):
            part = self._read(slice(start, start + (1 << 14)))
            bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
            count += len(bad)
            if first is None and len(bad):
                first = start + int(bad[0])
        if count:
            raise StoreError(
                f"{self.path}: {count} of {self.n_rows} activation rows hold NaN or infinity, "
                f"the first is row {first}: collect them again, with --model_dtype=float32."
            )

    def rows(
        self, split: str, max_tokens: int | None = None, whole_documents: bool = True, seed: int = 0
    ) -> np.ndarray:
        """Sorted row numbers of a split; see select_rows."""
        return select_rows(self.documents, split, max_tokens, whole_documents, seed)

    def token_strings(self, ids: np.ndarray) -> list[str]:
        """The text of each token id, a leading space shown as such."""
        return [self._vocab[i] if 0 <= i < len(self._vocab) else "" for i in np.asarray(ids).tolist()]


def open_store(path: str | Path) -> Store:
    """Opens a finished store for reading; StoreError says what to do about a missing or unfinished one."""
    path = str(path)
    manifest = read_manifest(path)
    if manifest is None:
        raise StoreError(
            f"{path}: no activation store there (no manifest.json): make one with amortjax.launch.collect."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path}: store format {manifest.get('format_version')}, not {FORMAT_VERSION}: collect it again."
        )
    if not manifest.get("finished"):
        raise StoreError(
            f"{path}: unfinished, {manifest.get('n_rows', 0)} rows so far: give the collect command again."
        )
    return Store(path, manifest)
