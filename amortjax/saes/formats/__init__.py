"""Reading SAEs: one reader per library, found by what is on disk. `load_sae` is the way in.

To add a format: one file with `detect(path)` and `load(path, **choices)`, one line in FORMATS; to write it, a
line in WRITERS.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.saes import checkpoint
from amortjax.saes.formats import dictionary_learning, hub, loca, loca_writer
from amortjax.saes.sae import SAE


class Format(NamedTuple):
    """One library's layout. `detect` sees one file. Where a folder may hold several such files, `main` gives the
    one that is the folder's SAE."""

    detect: Callable[[Path], bool]
    load: Callable[..., SAE]
    choices: tuple[str, ...] = ()
    main: Callable[[Path], Path] = lambda file: file


class Writer(NamedTuple):
    save: Callable[..., Path]
    choices: tuple[str, ...] = ()


FORMATS = {
    "native": Format(checkpoint.is_native, checkpoint.load_native),
    "dictionary_learning": Format(
        dictionary_learning.detect, dictionary_learning.load, dictionary_learning.CHOICES
    ),
    "loca": Format(loca.detect, loca.load, loca.CHOICES, loca.main_file),
}
WRITERS = {
    "native": Writer(checkpoint.save_native),
    "loca": Writer(loca_writer.save, loca_writer.CHOICES),
}


def load_sae(path_or_hub_id: str | os.PathLike, **choices: Any) -> SAE:
    """Reads an SAE from a file, a folder that holds exactly one, or the hub (`org/repo:path/in/it`).

    `choices` settle what a file leaves open: `k`, `threshold`, `dict_class`, `normalize_decoder`,
    `norm_factor`, `batch_rule`; each format takes some of them. Raises CheckpointError naming file and
    remedy.
    """
    path = _local(path_or_hub_id)
    name, file = _only_sae(path)
    _check_choices(file, name, choices, FORMATS[name].choices)
    return FORMATS[name].load(file, **choices)


def save_sae(sae: SAE, path: str | os.PathLike, format: str = "native", **choices: Any) -> Path:
    """Writes an SAE and returns the path of the weights. `path` is a stem, one of the native pair's two names, or a
    folder; for "loca" a folder, with the choices of `loca_writer.save`: `standard`, `bias_latent`."""
    if format not in WRITERS:
        raise AmortjaxError(f"format {format!r} can't be written; choices: {', '.join(WRITERS)}")
    _check_choices(path, format, choices, WRITERS[format].choices)
    return WRITERS[format].save(sae, path, **choices)


def _check_choices(
    file: str | os.PathLike, name: str, choices: dict[str, Any], known: tuple[str, ...]
) -> None:
    for choice in sorted(set(choices) - set(known)):
        takes = ", ".join(known) or "no choices"
        raise CheckpointError(f"{file}: the {name} format has no choice {choice!r}; it takes {takes}")


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
            hits = [(name, form.main(file)) for name, form in FORMATS.items() if form.detect(file)]
            found += [hit for hit in hits if hit not in found]
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
