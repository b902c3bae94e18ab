"""Checks of keys, shapes and settings that readers share."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats.opened import Opened

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", dict: "an object"}


def setting(file: Path, config: dict[str, Any], key: str, kind: type, default: Any) -> Any:
    """config[key], or `default` if it is missing or null. CheckpointError if it is of another kind; a whole number
    will do for a float, 8.0 for 8, and NumPy's numbers for Python's."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, np.generic):
        value = value.item()
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool) or not _ordinary(value):
        raise CheckpointError(f"{file}: {key} is {value!r:.80}; wanted {KINDS[kind]}")
    return value


def _ordinary(value: Any) -> bool:
    """Whether it is no number, or one that computing with it is safe."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or abs(value) < 2**63


def block(file: Path, config: dict[str, Any], key: str, default: int | None) -> int | None:
    """config[key], the number of a block of the model, from 0; `default` if it is missing, null or negative."""
    number = setting(file, config, key, int, None)
    return default if number is None or number < 0 else number


def agree(file: Path, key: str, said: float, found: int) -> None:
    """Refuses weights that a config is not of."""
    if said != found:
        raise CheckpointError(
            f"{file}: {key} is {said}, but the weights have {found}: the files are of different SAEs; copy them again"
        )


def axes(
    opened: Opened,
    needed: dict[str, str],
    optional: dict[str, str] | None = None,
    known: frozenset = frozenset(),
) -> dict[str, int]:
    """Sizes of the axes that letters name: {"encoder.weight": "MD", "encoder.bias": "M"} gives {"M": ., "D": .}.
    CheckpointError naming the key if one is missing, is none of needed, optional and `known` (of any shape), or has a
    shape that does not fit the others'."""
    named, sizes = needed | (optional or {}), {}
    for key in sorted(needed.keys() - opened.keys):
        raise CheckpointError(f"{opened.path}: tensor {key!r} is missing; copy the file again")
    for key in sorted(opened.keys - named.keys() - known):
        raise CheckpointError(
            f"{opened.path}: tensor {key!r:.80} is not one of {', '.join(named)}: another format?"
        )
    for key in sorted(named.keys() & opened.keys, key=list(named).index):
        shape = opened.shape(key)
        fits = len(shape) == len(named[key]) and min(shape) > 0
        if not fits or any(sizes.setdefault(a, n) != n for a, n in zip(named[key], shape, strict=True)):
            wanted = ", ".join(str(sizes.get(axis, axis)) for axis in named[key])
            raise CheckpointError(
                f"{opened.path}: {key} has shape {shape}; the other tensors ask for ({wanted})"
            )
    return sizes


def exponential(opened: Opened, key: str) -> np.ndarray:
    """exp of a tensor that is stored as a logarithm, rounded to float32. An infinite one would be a 0 that no check
    finds."""
    stored = opened.array(key)
    if not np.isfinite(stored).all():
        raise CheckpointError(f"{opened.path}: {key} holds NaN or infinite values: the checkpoint is damaged")
    # NumPy's exp in float32 is off PyTorch's last bit for two values of five, which turns exact ties over; the exp of
    # float64 for one of a hundred.
    with np.errstate(over="ignore"):  # the SAE's check refuses what is infinite then
        return np.exp(stored, dtype=np.float64).astype(np.float32)
