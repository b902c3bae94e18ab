"""The files of a store: zarr v3 arrays and small files through TensorStore, local, gs:// or s3://."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amortjax.errors import StoreError


@contextmanager
def store_errors(path: str) -> Iterator[None]:
    """TensorStore's failures (full disk, missing or damaged chunk, no permission) as one line."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        reason = str(error).split("[source locations")[0].strip().splitlines()
        raise StoreError(f"{path}: {reason[0][:300] if reason else type(error).__name__}") from error


def _kvstore(path: str) -> dict | str:
    if "://" in path:
        return path.rstrip("/") + "/"
    return {"driver": "file", "path": str(Path(path).absolute()) + "/"}


def open_files(path: str) -> Any:
    import tensorstore as ts

    return ts.KvStore.open(_kvstore(path)).result()


def open_array(path: str, name: str, create: dict | None = None) -> Any:
    """The zarr array `name` of a store; made anew if `create` gives its metadata."""
    import tensorstore as ts

    spec: dict[str, Any] = {
        "driver": "zarr3",
        "kvstore": _kvstore(f"{path.rstrip('/')}/{name}"),
        # A chunk that is gone must not be read as zeros.
        "fill_missing_data_reads": False,
        # A chunk of zeros (a first document longer than a chunk has number 0 throughout) is a chunk all the same.
        "store_data_equal_to_fill_value": True,
    }
    if create is None:
        return ts.open(spec, read=True, write=True).result()
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    spec["metadata"] = {
        "shape": [0, *create["chunk"][1:]],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": create["chunk"]}},
        "data_type": create["dtype"],
        "codecs": codecs,
    }
    return ts.open(spec, create=True, delete_existing=True).result()


def read_manifest(path: str) -> dict | None:
    """The manifest of a store; None if there is none; StoreError if it can't be read."""
    if "://" not in path and not (Path(path) / "manifest.json").is_file():
        return None
    with store_errors(path):
        found = open_files(path).read("manifest.json").result()
        if found.state != "value":
            return None
        return json.loads(found.value)
