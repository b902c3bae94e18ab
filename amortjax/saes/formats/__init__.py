"""Reading SAEs: one reader per library, found by what is on disk. `load_sae` is the way in.

To add a format: one file with `detect(path)` and `load(path, **choices)`, one line in FORMATS.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.saes import checkpoint
from amortjax.saes.formats import dictionary_learning, hub
from amortjax.saes.sae import SAE


class Format(NamedTuple):
    """One library's layout. `detect` sees one file, and is true for exactly one file of an SAE."""

    detect: Callable[[Path], bool]
    load: Callable[..., SAE]
    choices: tuple[str, ...] = ()


FORMATS = {
    "native": Format(checkpoint.is_native, checkpoint.load_native),
    "dictionary_learning": Format(
        dictionary_learning.detect, dictionary_learning.load, dictionary_learning.CHOICES
    ),
}
WRITERS = {"native": checkpoint.save_native}


def load_sae(path_or_hub_id: str | os.PathLike, **choices: Any) -> SAE:
    """Reads an SAE from a file, a folder that holds exactly one, or the hub (`org/repo:path/in/it`).

    `choices` settle what a file leaves open: `k`, `threshold`, `dict_class`, `normalize_decoder`,
    `norm_factor`, `batch_rule`; each format takes some of them. Raises CheckpointError naming file and
    remedy.
    """
    path = _local(path_or_hub_id)
    name, file = _only_sae(path)
    form = FORMATS[name]
    unknown = sorted(set(choices) - set(form.choices))
    if unknown:
        takes = ", ".join(form.choices) or "no choices"
        raise CheckpointError(f"{file}: the {name} format has no choice {unknown[0]!r}; it takes {takes}")
    return form.load(file, **choices)


def save_sae(sae: SAE, path: str | os.PathLike, format: str = "native") -> Path:
    """Writes an SAE; `path` is a stem, one of the pair's two names, or a folder. Returns the path of the
    weights."""
    if format not in WRITERS:
        raise AmortjaxError(f"format {format!r} can't be written; choices: {', '.join(WRITERS)}")
    return WRITERS[format](sae, path)


def _local(path_or_hub_id: str | os.PathLike) -> Path:
    path = Path(path_or_hub_id)
    if path.suffix == ".json" and path.with_suffix(".safetensors").exists():
        return path.with_suffix(".safetensors")
    if path.exists():
        return path
    pair = path.with_name(path.name + ".safetensors") if path.name else path
    if pair.is_file():
        return pair
    if hub.is_hub_id(str(path_or_hub_id)):
        return hub.download(str(path_or_hub_id))
    raise CheckpointError(f"{path}: no such file or folder")


def _only_sae(path: Path) -> tuple[str, Path]:
    """(format, file) of the one SAE at or below `path`."""
    if path.is_file():
        for name, form in FORMATS.items():
            if form.detect(path):
                return name, path
        raise CheckpointError(f"{path}: not an SAE of a known format ({', '.join(FORMATS)})")
    found, error = [], None
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        try:
            found += [(name, file) for name, form in FORMATS.items() if form.detect(file)]
        except CheckpointError as caught:
            # Another file of the folder may be the SAE; if none is, this is why.
            error = error or caught
    if len(found) == 1:
        return found[0]
    if found:
        files = ", ".join(str(file.relative_to(path)) for _, file in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise CheckpointError(f"{path}: holds {len(found)} SAEs; give the path of one: {files}{more}")
    raise error or CheckpointError(f"{path}: no SAE of a known format ({', '.join(FORMATS)}) in this folder")
