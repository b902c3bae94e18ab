"""Reads tensors out of a PyTorch `.pt` file without PyTorch, and without ever running what the file says.

A `.pt` file is a zip: `NAME/data.pkl` is a pickle of the structure, `NAME/data/KEY` the raw bytes of each
storage. A pickle may name any function of any installed package and have it called. This reader knows the
few names that rebuild tensors and dictionaries, gives its own stand-ins for them, and refuses the file for
any other name.
"""

import collections
import dataclasses
import io
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats.tensors import DTYPES, Damaged, Tensor

# torch's storage classes.
STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# A structure is small; this bounds the memory that a made-up one can take.
MAX_PICKLE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class _Storage:
    record: str
    dtype: str
    numel: int


def _tensor(file: "TorchFile", storage: _Storage, offset: int, shape: Any, strides: Any) -> Tensor:
    """A view of a storage; offset and strides are in elements. A matrix that is stored column by column (as the
    transpose of a Linear's weight is) is read as such, any other odd layout is copied out first."""
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(shape, default=0) < 0 or (0 not in shape and (min(strides, default=0) < 0 or offset < 0)):
        raise CheckpointError(f"{file.path}: a tensor of shape {shape} and strides {strides} can't be")
    if 0 not in shape and reach >= storage.numel:
        raise CheckpointError(f"{file.path}: a tensor of shape {shape} reaches beyond its storage")
    if 0 in shape or strides == _plain(shape):
        return Tensor(storage.dtype, shape, lambda: file.stream(storage, offset))
    if len(shape) == 2 and strides[::-1] == _plain(shape[::-1]):
        return Tensor(storage.dtype, shape, lambda: file.stream(storage, offset), swapped=True)
    return Tensor(storage.dtype, shape, lambda: io.BytesIO(_copied(file, storage, offset, shape, strides)))


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _copied(file: "TorchFile", storage: _Storage, offset: int, shape: Any, strides: Any) -> bytes:
    dtype = np.dtype(DTYPES[storage.dtype])
    with file.stream(storage, 0) as stream:
        flat = np.frombuffer(stream.read(storage.numel * dtype.itemsize), dtype)
    if flat.size < storage.numel:
        raise Damaged("is cut off")
    steps = tuple(stride * dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps).tobytes()


class TorchFile:
    """An opened `.pt` file. `load()` gives its structure with a `Tensor` for each tensor."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self.zip = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: no such file") from None
        except (zipfile.BadZipFile, EOFError):
            raise CheckpointError(
                f"{self.path}: cut off, or not a zip as torch.save has written since version 1.6; copy it "
                "again, or load and save it once with a current PyTorch"
            ) from None
        pickles = [
            name for name in self.zip.namelist() if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(pickles) != 1:
            raise CheckpointError(f"{self.path}: a zip, but not one of torch.save (no data.pkl)")
        self.root = pickles[0].removesuffix("data.pkl")

    def record(self, name: str) -> bytes:
        try:
            return self.zip.read(self.root + name)
        except KeyError:
            raise CheckpointError(
                f"{self.path}: the record {name!r} is missing; the file is damaged"
            ) from None
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise CheckpointError(
                f"{self.path}: the record {name!r} is damaged ({error}); copy it again"
            ) from None

    def stream(self, storage: _Storage, offset: int) -> BinaryIO:
        """The storage's bytes from an element on, little-endian."""
        try:
            stream = self.zip.open(f"{self.root}data/{storage.record}")
            stream.seek(offset * np.dtype(DTYPES[storage.dtype]).itemsize)
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise Damaged(f"is damaged ({error})") from None
        return cast(BinaryIO, stream)

    def load(self) -> Any:
        if self.root + "byteorder" in self.zip.namelist() and self.record("byteorder") != b"little":
            raise CheckpointError(f"{self.path}: written on a big-endian machine, which is not supported")
        if self.zip.getinfo(self.root + "data.pkl").file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{self.path}: its structure takes over {MAX_PICKLE_BYTES >> 20} MiB; refused"
            )
        try:
            return _Reader(self).load()
        except CheckpointError:
            raise
        except Exception as error:
            # A damaged pickle fails in many ways (IndexError, UnpicklingError, AttributeError, ...), all
            # harmless.
            raise CheckpointError(
                f"{self.path}: its structure can't be read ({error or type(error).__name__})"
            ) from None


class _Name:
    """Stands for a class or value of torch that is named but never used as such."""

    def __init__(self, name: str):
        self.name = name


class _Reader(pickle.Unpickler):
    """An unpickler that looks names up in a table made for this one file, never in a module."""

    def __init__(self, file: TorchFile):
        super().__init__(io.BytesIO(file.record("data.pkl")))
        self.file = file
        # Fresh functions per file: a pickle can set attributes on what it is given, so nothing is shared.
        self.names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *rest: _tensor(
                file, storage, int(offset), shape, strides
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
            ("torch", "Size"): lambda sizes=(): tuple(sizes),
            ("torch", "device"): lambda *args: _Name("device"),
        }
        self.names |= {("torch", name): _Name(name) for name in [*STORAGES, *STORAGES.values()]}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.names[module, name]
        except KeyError:
            raise CheckpointError(
                f"{self.file.path}: refused: reading it would execute code ({module}.{name}), which no "
                "SAE's weights need. Nothing of it was run; ask its author for a .safetensors file"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, numel = pid
        if not isinstance(kind, _Name) or kind.name not in STORAGES:
            raise CheckpointError(
                f"{self.file.path}: storage type {getattr(kind, 'name', kind)!r} is not supported"
            )
        return _Storage(str(key), STORAGES[kind.name], int(numel))


def read(path: str | os.PathLike) -> Any:
    """The structure of a `.pt` file, its tensors as `tensors.Tensor`."""
    return TorchFile(path).load()
