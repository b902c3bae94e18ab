"""Tensors of a safetensors file."""

import json
from pathlib import Path
from typing import BinaryIO

import safetensors

from amortjax.errors import CheckpointError
from amortjax.saes.formats.tensors import Tensor

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def read(path: Path) -> dict[str, Tensor]:
    """{key: tensor}; nothing but the header is read. Raises CheckpointError if the file is cut off or its header
    says what can't be."""
    try:
        # The library checks sizes, offsets and their order; its own reading takes twice the memory.
        with safetensors.safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: not readable as safetensors ({reason}): cut off or damaged, copy it again"
        ) from None
    return {
        key: _tensor(path, key, entry, 8 + length) for key, entry in header.items() if key != "__metadata__"
    }


def _tensor(path: Path, key: str, entry: dict, start: int) -> Tensor:
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {key!r} is of type {entry['dtype']}; supported: {', '.join(DTYPES)}. Save it as F32"
        )

    def opened() -> BinaryIO:
        file = path.open("rb")
        file.seek(start + entry["data_offsets"][0])
        return file

    return Tensor(DTYPES[entry["dtype"]], tuple(entry["shape"]), opened)
