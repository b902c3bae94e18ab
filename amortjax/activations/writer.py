"""Writing an activation store: whole chunks, one after the other, so that a kill loses at most the last."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.activations import disk
from amortjax.activations.store import (
    CHUNK_ROWS,
    FORMAT_VERSION,
    IDENTITY,
    NORM_ROWS,
    check_finite,
    norm_statistics,
    select_rows,
)
from amortjax.errors import StoreError


def _describe(manifest: dict) -> str:
    return (
        f"{manifest.get('model_name')} block {manifest.get('layer_index')} {manifest.get('hook')} "
        f"on {manifest.get('dataset')}"
    )


def check_identity(path: str, found: dict, wanted: dict) -> None:
    """StoreError, naming what differs, if a store on disk was written by another model, corpus or setting."""
    for key in IDENTITY:
        if found.get(key) != wanted.get(key):
            raise StoreError(
                f"{path}: holds activations of {_describe(found)} with {key}={found.get(key)}, not "
                f"{key}={wanted.get(key)}: choose another --out, or delete it."
            )


class Writer:
    """Appends rows to a new store, or goes on with an unfinished one of the same identity.

    `n_rows` is the number of rows on disk, a multiple of the chunk's rows until `finish`. A caller that goes
    on gives the same rows again from any row at or before it; those on disk are passed over.
    """

    def __init__(self, path: str | Path, manifest: dict) -> None:
        self.path = str(path)
        manifest = {"format_version": FORMAT_VERSION, "chunk_rows": CHUNK_ROWS} | manifest
        # What is compared with a manifest on disk must have been through JSON as well.
        self.manifest: dict[str, Any] = json.loads(json.dumps(manifest))
        found = disk.read_manifest(self.path)
        if found is not None:
            check_identity(self.path, found, self.manifest)
        self.finished = bool(found and found.get("finished"))
        self.n_rows = int(found["n_rows"]) if found else 0
        self._chunk = self.manifest["chunk_rows"]
        self._buffer: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._buffered = 0
        self._pending: list[Any] = []
        if self.finished:
            self.manifest = found or self.manifest
        else:
            self._open(anew=found is None)

    def _open(self, anew: bool) -> None:
        dtype, width = self.manifest["dtype"], self.manifest["d_model"]
        layouts = {
            "activations": {"chunk": [self._chunk, width], "dtype": dtype},
            "token_ids": {"chunk": [self._chunk], "dtype": "int32"},
            "doc_ids": {"chunk": [self._chunk], "dtype": "int32"},
        }
        with disk.store_errors(self.path):
            if anew:
                if "://" not in self.path:
                    Path(self.path).mkdir(parents=True, exist_ok=True)
                self._files = disk.open_files(self.path)
                group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
                self._files.write("zarr.json", json.dumps(group).encode()).result()
                self._arrays = {k: disk.open_array(self.path, k, create=v) for k, v in layouts.items()}
                self._write_manifest()
            else:
                self._files = disk.open_files(self.path)
                self._arrays = {name: disk.open_array(self.path, name) for name in layouts}
                self._resize(self.n_rows)

    def _record(self) -> dict[str, Any]:
        return self.manifest | {"n_rows": self.n_rows, "finished": self.finished}

    def _write_manifest(self) -> None:
        self._files.write("manifest.json", (json.dumps(self._record(), indent=1) + "\n").encode()).result()

    def _resize(self, n_rows: int) -> None:
        for name, array in self._arrays.items():
            bounds = [n_rows, *array.shape[1:]]
            self._arrays[name] = array.resize(exclusive_max=bounds).result()

    def append(self, start: int, x: np.ndarray, token_ids: np.ndarray, doc_ids: np.ndarray) -> None:
        """Rows x (n, D) whose first is row `start` of the store; those already taken are passed over.

        StoreError if a row holds NaN or infinity, or the disk is full.
        """
        taken = self.n_rows + self._buffered
        if start > taken:
            raise ValueError(f"row {start} before row {taken}")
        x, token_ids, doc_ids = x[taken - start :], token_ids[taken - start :], doc_ids[taken - start :]
        if not len(x):
            return
        check_finite(x, slice(taken, None), self.manifest["model_name"])
        self._buffer.append((x, token_ids, doc_ids))
        self._buffered += len(x)
        if self._buffered >= self._chunk:
            self._flush(self._buffered // self._chunk * self._chunk)

    def _flush(self, count: int) -> None:
        """Starts writing the first `count` buffered rows, once the previous ones are on disk."""
        columns = [np.concatenate(parts) for parts in zip(*self._buffer, strict=True)]
        first = self.n_rows
        with disk.store_errors(self.path):
            self._commit()
            self._resize(first + count)
            for array, column in zip(self._arrays.values(), columns, strict=True):
                data = column[:count].astype(array.dtype.numpy_dtype, copy=False)
                self._pending.append(array[first : first + count].write(data))
        self._buffer = [tuple(column[count:] for column in columns)]  # pyright: ignore[reportAttributeAccessIssue]
        self._buffered -= count
        self.n_rows += count

    def _commit(self) -> None:
        for future in self._pending:
            future.result()
        self._pending = []
        # n_rows counts what has just reached the disk: a flush adds its own rows after this.
        self._write_manifest()

    def finish(self, documents: dict[str, Any], vocab: list[str], **extra: Any) -> dict:
        """Writes the last rows, tables and norm statistics, and only then calls the store finished."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._buffered:
            self._flush(self._buffered)
        if not self.n_rows:
            raise StoreError(f"{self.path}: no activation row was written: the corpus gave no token.")
        buffer = io.BytesIO()
        pq.write_table(pa.table(documents), buffer)
        with disk.store_errors(self.path):
            self._commit()
            self._files.write("documents.parquet", buffer.getvalue()).result()
            self._files.write("vocab.json", json.dumps(vocab).encode()).result()
            self.manifest["norm"] = self._norm(documents)
            self.manifest |= {"n_documents": len(documents["split"]), **extra}
            self.finished = True
            self._write_manifest()
        return self._record()

    def _norm(self, documents: dict[str, Any]) -> dict:
        """Norm statistics of sae_train rows (of all rows where there are none), read back from the store."""
        table = {name: np.asarray(column) for name, column in documents.items()}
        chosen = "sae_train" if "sae_train" in table["split"] else None
        rows = select_rows(table, chosen, NORM_ROWS) if chosen else np.arange(min(self.n_rows, NORM_ROWS))
        return norm_statistics(
            self._arrays["activations"][rows[start : start + (1 << 14)]].read().result().astype(np.float32)
            for start in range(0, len(rows), 1 << 14)
        )
