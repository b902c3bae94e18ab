"""What pickles of NumPy arrays and scalars name. Arrays become lazy tensors, scalars plain numbers."""

import io
import math
from typing import Any, BinaryIO, cast

import numpy as np

from amortjax.saes.formats.blob import Refused
from amortjax.saes.formats.tensors import DTYPES, Tensor
from amortjax.saes.formats.unpickler import Function, Kind, content

# {what NumPy calls it: name}; bfloat16 is none of NumPy's types.
_CODES = {code[1:]: name for name, code in DTYPES.items() if name != "bfloat16"} | {"?": "bool"}


class _Dtype:
    def __init__(self, code: Any):
        self.name = _CODES.get(code) if type(code) is str else None
        self.little = True

    def build(self, state: Any) -> None:
        self.little = not (isinstance(state, tuple) and len(state) > 1 and state[1] == ">")


class _Array(Tensor):
    """An array whose shape and bytes come after it was made."""

    def __init__(self):
        super().__init__("float32", (0,), io.BytesIO)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array that is none")
        _, shape, dtype, fortran, data = state
        for field, value in vars(_view(data, dtype, shape, fortran is True)).items():
            object.__setattr__(self, field, value)


def _view(data: Any, dtype: Any, shape: Any, columns: bool) -> Tensor:
    """The array of these bytes; `columns`: stored column by column."""
    data = content(data)
    if not isinstance(dtype, _Dtype) or dtype.name is None or not dtype.little:
        raise Refused("an array of a type that is not supported")
    if not isinstance(shape, tuple) or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused("an array with a shape that is none")
    if math.prod(shape) * np.dtype(DTYPES[dtype.name]).itemsize != data.size:
        raise Refused(f"an array of shape {shape} with {data.size} bytes")
    if columns and len(shape) > 2:
        raise Refused("an array of three or more axes stored column by column; save it in C order")
    return Tensor(
        dtype.name,
        shape,
        lambda: cast(BinaryIO, data.blob.stream(data.start, data.size)),
        columns and len(shape) == 2,
    )


def _scalar(dtype: Any, data: Any) -> Any:
    return _view(data, dtype, (), False).numpy().item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes in an old protocol."""
    if type(text) is not str or encoding != "latin1":
        raise Refused("bytes in an unknown encoding")
    return text.encode("latin1")


def names() -> dict[tuple[str, str], Any]:
    """{(module, name): stand-in}, made anew for each file."""
    known: dict[tuple[str, str], Any] = {
        ("numpy", "dtype"): Function(lambda code, *rest: _Dtype(code)),
        ("numpy", "ndarray"): Kind("numpy.ndarray"),
        ("_codecs", "encode"): Function(_encoded),
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = Function(lambda *args: _Array())
        known[f"{core}.multiarray", "scalar"] = Function(_scalar)
        known[f"{core}.numeric", "_frombuffer"] = Function(
            lambda data, dtype, shape, order: _view(data, dtype, shape, order == "F")
        )
    return known
