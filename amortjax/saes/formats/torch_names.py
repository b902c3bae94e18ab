"""What PyTorch's pickles name: storages, and the functions that make tensors of them."""

import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from amortjax.saes.formats.blob import Refused
from amortjax.saes.formats.tensors import DTYPES, Damaged, Tensor
from amortjax.saes.formats.unpickler import Function, Name

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
NO_TENSOR_TYPES = ("complex64", "complex128", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
MOST_AXES = 16
# A tensor may have more elements than its storage (torch's expand); up to this many.
MOST_REPEATED = 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """The bytes of one or more tensors; `open` gives them from a byte on."""

    dtype: str
    numel: int
    open: Callable[[int], BinaryIO]

    def stream(self, offset: int) -> BinaryIO:
        """From an element on."""
        return self.open(offset * self.item)

    @property
    def item(self) -> int:
        return item_size(self.dtype)


def item_size(dtype: str) -> int:
    return np.dtype(DTYPES[dtype]).itemsize


def storage_type(kind: Any, numel: Any) -> tuple[str, int]:
    """The dtype and length of a persistent id's storage. Raises Refused."""
    if not isinstance(kind, Name) or kind.name not in STORAGES:
        raise Refused(f"storage type {getattr(kind, 'name', 'of no name')!r} is not supported")
    if type(numel) is not int or numel < 0:
        raise Refused("a storage's length is no number")
    return STORAGES[kind.name], numel


def names() -> dict[tuple[str, str], Any]:
    """{(module, name): stand-in}, made anew for each file, so that nothing of one is there for another."""
    known: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): Function(dict),
        ("torch._utils", "_rebuild_tensor"): Function(tensor),
        ("torch._utils", "_rebuild_tensor_v2"): Function(lambda a, b, c, d, *rest: tensor(a, b, c, d)),
        ("torch._utils", "_rebuild_parameter"): Function(lambda data, *rest: data),
        ("torch._utils", "_rebuild_parameter_with_state"): Function(lambda data, *rest: data),
        ("torch", "Size"): Function(lambda sizes=(): _numbers(sizes)),
    }
    for module in ("torch", "torch.cuda"):
        known |= {(module, name): Name(name) for name in STORAGES}
    return known | {("torch", name): Name(name) for name in (*STORAGES.values(), *NO_TENSOR_TYPES)}


def tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """A view of a storage; offset and strides are in elements. A matrix that is stored column by column (as the
    transpose of a Linear's weight is) is read as such, any other odd layout is copied out first."""
    if not isinstance(storage, Storage):
        raise Refused("a tensor without a storage")
    shape, strides, (offset,) = _numbers(shape), _numbers(strides), _numbers((offset,))
    if len(shape) != len(strides) or min(shape, default=0) < 0:
        raise Refused(f"a tensor of shape {shape} and strides {strides} can't be")
    if 0 in shape:
        return Tensor(storage.dtype, shape, lambda: io.BytesIO())
    if min(strides, default=0) < 0 or offset < 0:
        raise Refused(f"a tensor of shape {shape} and strides {strides} can't be")
    reach = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if reach >= storage.numel or math.prod(shape) > max(storage.numel, MOST_REPEATED):
        raise Refused(f"a tensor of shape {shape} reaches beyond its storage")
    if strides == _plain(shape):
        return Tensor(storage.dtype, shape, lambda: storage.stream(offset))
    if len(shape) == 2 and strides[::-1] == _plain(shape[::-1]):
        return Tensor(storage.dtype, shape, lambda: storage.stream(offset), swapped=True)
    return Tensor(storage.dtype, shape, lambda: io.BytesIO(_copied(storage, offset, reach, shape, strides)))


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _copied(storage: Storage, offset: int, reach: int, shape: Any, strides: Any) -> bytes:
    dtype, count = np.dtype(DTYPES[storage.dtype]), reach + 1 - offset
    with storage.stream(offset) as stream:
        flat = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    if flat.size < count:
        raise Damaged("is cut off")
    steps = tuple(stride * dtype.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(flat, shape, steps).tobytes()


def _numbers(values: Any) -> tuple[int, ...]:
    """A shape; bounded, so that no sum over it overflows anything."""
    if not isinstance(values, tuple | list) or len(values) > MOST_AXES:
        raise Refused("a shape that is none")
    if not all(type(value) is int and abs(value) < 2**62 for value in values):
        raise Refused("a shape with odd numbers")
    return tuple(values)
