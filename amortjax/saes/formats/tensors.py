"""Tensors of a weights file, read when asked for and only once: straight into the memory JAX will use.

A reader of a container (safetensors, PyTorch, NumPy) gives a `Tensor` for each entry. Rows go through a small
buffer into a float32 array aligned as XLA wants it, turned over and widened on the way, so an SAE takes no
more memory while it is read than after.
"""

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Callable
from typing import BinaryIO

import jax
import numpy as np

# XLA on the CPU takes an array as it is if it starts at a multiple of this many bytes.
ALIGNMENT = 64
BLOCK_BYTES = 2**23
FLOAT = np.dtype(np.float32)
# bfloat16 has no NumPy type: read as 16 bits, widened by `_widened`.
DTYPES = {
    "float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int64": "<i8", "int32": "<i4",
    "int16": "<i2", "int8": "|i1", "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "|u1",
    "bool": "|b1",
}  # fmt: skip


class Damaged(Exception):
    """What is wrong with a tensor's bytes; whoever knows file and key makes a CheckpointError of it."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One entry of a file. `open` gives a stream at its first byte; `swapped` says that the two axes of a matrix
    lie the other way round in the file (column by column)."""

    dtype: str
    shape: tuple[int, ...]
    open: Callable[[], BinaryIO]
    swapped: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def numpy(self) -> np.ndarray:
        """The tensor in its own type, C-ordered; bfloat16 becomes float32. Raises Damaged."""
        return self.read(np.dtype("float32" if self.dtype == "bfloat16" else DTYPES[self.dtype]))

    def read(self, dtype: np.dtype = FLOAT, transpose: bool = False) -> np.ndarray:
        """The tensor, C-ordered, aligned, in `dtype`; `transpose` turns a matrix over. Raises Damaged if bytes are
        missing."""
        flip = transpose != self.swapped and len(self.shape) == 2
        stored = self.shape[::-1] if self.swapped and len(self.shape) == 2 else self.shape
        out = aligned(stored[::-1] if flip else stored, dtype)
        rows = stored[0] if len(stored) == 2 else self.size
        width = stored[1] if len(stored) == 2 else 1
        target = out.T if flip else out.reshape(rows, width)
        item = np.dtype(DTYPES[self.dtype]).itemsize
        step = max(1, BLOCK_BYTES // max(1, width * item))
        try:
            with self.open() as stream:
                for first in range(0, rows if width else 0, step):
                    count = min(step, rows - first)
                    block = _exactly(stream, count * width * item)
                    target[first : first + count] = _widened(block, self.dtype).reshape(count, width)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
            raise Damaged(f"is damaged ({error})") from None
        return out


def _exactly(stream: BinaryIO, count: int) -> bytearray:
    data, got = bytearray(count), 0
    view = memoryview(data)
    while got < count:
        more = stream.readinto(view[got:])  # pyright: ignore[reportAttributeAccessIssue]
        if not more:
            raise Damaged("is cut off")
        got += more
    return data


def _widened(block: bytearray, dtype: str) -> np.ndarray:
    values = np.frombuffer(block, DTYPES[dtype])
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else values


def aligned(shape: tuple[int, ...], dtype: np.dtype = FLOAT) -> np.ndarray:
    """An uninitialised C-ordered array that JAX can take without a copy."""
    count = math.prod(shape) * dtype.itemsize
    memory = np.empty(count + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count].view(dtype).reshape(shape)


def to_jax(array: np.ndarray) -> jax.Array:
    """The array as JAX has it, on the CPU without a copy where it is aligned: it must not be written to any more."""
    return jax.device_put(np.asarray(array, np.float32, order="C"), may_alias=True)
