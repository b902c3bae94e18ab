"""A weights file as format readers see it: keys, shapes, settings beside it, tensors on demand."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats import npz_reader, pickle_reader, safetensors_reader
from amortjax.saes.formats.tensors import Damaged, Tensor

CONTAINERS = {
    ".safetensors": safetensors_reader.read,
    ".npz": npz_reader.read,
    ".pt": pickle_reader.read,
    ".pth": pickle_reader.read,
    ".gz": pickle_reader.read,
}


@dataclasses.dataclass(frozen=True)
class Opened:
    """`content` is {key: Tensor}; of a PyTorch file whatever structure was saved, with a Tensor for each tensor."""

    path: Path
    content: Any

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the content; none if it is no dictionary with strings for keys."""
        if not isinstance(self.content, Mapping) or not all(isinstance(key, str) for key in self.content):
            return frozenset()
        return frozenset(self.content)

    def within(self, key: str) -> "Opened":
        """The content under a key, as a file of its own."""
        return dataclasses.replace(self, content=self.content[key])

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, () of a number. CheckpointError if the key is missing."""
        return tuple(np.shape(self._value(key)) if not self.is_tensor(key) else self._value(key).shape)

    def is_tensor(self, key: str) -> bool:
        return isinstance(self._value(key), Tensor)

    def array(self, key: str, transpose: bool = False) -> np.ndarray:
        """A tensor or number in float32, C-ordered, the caller's own; `transpose` turns a matrix over: torch's Linear
        keeps weights as (out, in). CheckpointError naming file and key if it is missing or damaged."""
        value = self._value(key)
        if transpose and len(self.shape(key)) != 2:
            raise CheckpointError(f"{self.path}: tensor {key!r} has shape {self.shape(key)}; wanted two axes")
        try:
            if isinstance(value, Tensor):
                return value.read(transpose=transpose)
            return np.array(value, np.float32)
        except (Damaged, TypeError, ValueError, OverflowError, MemoryError, OSError) as error:
            reason = "is no number" if isinstance(error, (TypeError, ValueError)) else error
            raise CheckpointError(f"{self.path}: tensor {key!r} {reason}; copy the file again") from None

    def integers(self, key: str) -> np.ndarray:
        """A tensor or number of whole numbers, in int64."""
        value = self._value(key)
        try:
            found = np.asarray(value.numpy() if isinstance(value, Tensor) else value)
            whole = found.astype(np.int64)
            if (whole != found).any():
                raise ValueError
        except (Damaged, TypeError, ValueError, OverflowError, OSError):
            raise CheckpointError(
                f"{self.path}: {key!r} holds no whole numbers; copy the file again"
            ) from None
        return whole

    def integer(self, key: str) -> int:
        """A single whole number."""
        found = self.integers(key)
        if found.size != 1:
            raise CheckpointError(f"{self.path}: {key!r} has shape {found.shape}; wanted a single number")
        return int(found.reshape(()))

    def json(self, name: str, folder: Path | None = None) -> dict[str, Any]:
        """The object in a json file beside this one (or in `folder`); {} if there is none."""
        return read_json((folder or self.path.parent) / name)

    def _value(self, key: str) -> Any:
        if not isinstance(self.content, Mapping) or key not in self.content:
            raise CheckpointError(f"{self.path}: tensor {key!r} is missing")
        return self.content[key]


def open_weights(path: Path) -> Opened | None:
    """The file, or None if its ending is not one of CONTAINERS. Raises CheckpointError if it is damaged or hostile."""
    read = CONTAINERS.get(path.suffix)
    return None if read is None or not path.is_file() else Opened(path, read(path))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a json file; {} if there is no such file, or no object in it."""
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(f"{file}: not readable as json ({error}); copy it again") from None
    return config if isinstance(config, dict) else {}
