"""Tensors of NumPy's `.npz`: a zip with one `KEY.npy` for each array. Pickled objects are refused, not read."""

import zipfile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats.tensors import DTYPES, Tensor

# Deflate packs at most this many bytes into one; more is not what was stored.
MOST_PACKED = 1032


def read(path: Path) -> dict[str, Tensor]:
    """{key: tensor}; nothing but the headers is read. Raises CheckpointError if the file is cut off or an array is no
    plain tensor."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: cut off, or not an .npz ({error}); copy it again") from None
    return {
        member.filename.removesuffix(".npy"): _tensor(path, member)
        for member in members
        if member.filename.endswith(".npy")
    }


def _tensor(path: Path, member: zipfile.ZipInfo) -> Tensor:
    key = member.filename.removesuffix(".npy")
    try:
        with zipfile.ZipFile(path) as file, file.open(member) as stream:
            shape, swapped, dtype = _header(cast(BinaryIO, stream))
            start = stream.tell()
    # Damaged deflate, lengths and headers fail in many ways, all harmless.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"{path}: array {key!r} can't be read ({reason}); copy the file again"
        ) from None
    name = next(
        (name for name, code in DTYPES.items() if np.dtype(code) == dtype and name != "bfloat16"), None
    )
    if name is None or (swapped and len(shape) > 2):
        raise CheckpointError(f"{path}: array {key!r} is of type {dtype}; wanted plain numbers")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape, default=0) < 0 or start + size > min(
        member.file_size, MOST_PACKED * (member.compress_size + 1)
    ):
        raise CheckpointError(f"{path}: array {key!r} of shape {shape} is cut off; copy the file again")

    def opened() -> BinaryIO:
        stream = zipfile.ZipFile(path).open(member)  # noqa: SIM115 (the caller closes it)
        stream.read(start)
        return cast(BinaryIO, stream)

    return Tensor(name, shape, opened, swapped and len(shape) == 2)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the npy format")
    return readers[version](stream)
