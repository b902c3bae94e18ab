"""Reads tensors out of a PyTorch `.pt` file without PyTorch, and without ever running what the file says.

A `.pt` file is a zip: `NAME/data.pkl` is a pickle of the structure, `NAME/data/KEY` the raw bytes of each
storage. A pickle may name any function of any installed package and have it called. This reader knows the
few names that rebuild tensors and dictionaries, gives its own stand-ins for them, and refuses the file for
any other name.
"""

import collections
import dataclasses
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import CheckpointError

# torch's storage classes; bfloat16 has no NumPy type: it is read as 16 bits and widened.
STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
# A structure is small; this bounds the memory that a made-up one can take.
MAX_PICKLE_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class _Storage:
    record: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the file; its bytes are read when asked for, so unwanted ones cost nothing."""

    file: "TorchFile"
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements, as torch counts them

    def numpy(self) -> np.ndarray:
        """A C-ordered copy; bfloat16 becomes float32. Raises CheckpointError if the bytes are not all
        there."""
        flat = self.file.read_storage(self.storage)
        reach = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        if 0 not in self.shape and not (
            self.offset >= 0 and min(self.strides, default=0) >= 0 and reach < flat.size
        ):
            raise CheckpointError(
                f"{self.file.path}: a tensor of shape {self.shape} reaches beyond its storage"
            )
        if 0 in self.shape:
            return np.zeros(self.shape, flat.dtype)
        strides = tuple(stride * flat.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides)
        return np.array(view, order="C")


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

    def read_storage(self, storage: _Storage) -> np.ndarray:
        """The whole storage, (numel,), little-endian on disk."""
        data, name = self.record(f"data/{storage.record}"), storage.dtype
        dtype = np.dtype("<u2" if name == "bfloat16" else name)
        if len(data) < storage.numel * dtype.itemsize:
            raise CheckpointError(
                f"{self.path}: the record 'data/{storage.record}' is cut off; copy the file again"
            )
        flat = np.frombuffer(data, dtype, count=storage.numel)
        return (flat.astype(np.uint32) << 16).view(np.float32) if name == "bfloat16" else flat

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
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *rest: Tensor(
                file, storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides))
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
            ("torch", "Size"): lambda sizes=(): tuple(sizes),
            ("torch", "device"): lambda *args: _Name("device"),
        }
        self.names |= {("torch", name): _Name(name) for name in [*STORAGES, *DTYPES]}

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
    """The structure of a `.pt` file, its tensors as `Tensor` (see `Tensor.numpy`)."""
    return TorchFile(path).load()
