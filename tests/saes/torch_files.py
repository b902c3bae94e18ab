"""Writes PyTorch's files without PyTorch: what they hold is chosen, hostile or not."""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class Named:
    """Pickles as a bare name, `module.name`: how torch's classes appear in a file."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


Pickler: Any = pickle.__dict__["_Pickler"]  # the one written in Python, whose `save` can be extended


class Writer(Pickler):
    """Writes the names of Named objects, and storages as torch does."""

    def persistent_id(self, obj):
        return obj[1:] if isinstance(obj, tuple) and obj and obj[0] == "PERSISTENT" else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class Call:
    def __init__(self, function: Named, *args):
        self.function, self.args = function, args


def tensor(storage: str, key: str, numel: int, offset: int, shape: tuple, strides: tuple) -> Call:
    stored = ("PERSISTENT", "storage", Named("torch", storage), key, "cpu", numel)
    rebuild = Named("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, stored, offset, shape, strides, False, Call(Named("collections", "OrderedDict")))


def write_pt(path, structure, records: dict[str, bytes]) -> None:
    """A zip as torch.save writes it; `records` are the storages' bytes."""
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(structure)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ae/data.pkl", buffer.getvalue())
        archive.writestr("ae/byteorder", "little")
        for key, data in records.items():
            archive.writestr(f"ae/data/{key}", data)


STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
}


def write_state(path: Path, state: dict[str, Any], bf16: bool = False) -> Path:
    """A state_dict: arrays as tensors (`bf16`: float32 ones in that type, cut), everything else as it is."""
    structure, records = {}, {}
    for key, value in state.items():
        if not isinstance(value, np.ndarray):
            structure[key] = value
            continue
        kind, data = STORAGES[value.dtype.name], np.ascontiguousarray(value)
        if bf16 and kind == "FloatStorage":
            kind, data = "BFloat16Storage", (data.view(np.uint32) >> 16).astype("<u2")
        strides = tuple(math.prod(value.shape[axis + 1 :]) for axis in range(value.ndim))
        name = str(len(records))
        structure[key] = tensor(kind, name, value.size, 0, value.shape, strides)
        records[name] = data.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pt(path, structure, records)
    return path


def cut_to_bf16(array: np.ndarray) -> np.ndarray:
    """float32 whose lower 16 bits are 0: what bfloat16 can hold."""
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
