"""Reading SAEs: one reader per library, found by what is on disk. `load_sae` is the way in.

To add a format: one file with `detect(opened)` and `load(opened, **choices)`, one line in FORMATS; to write it, a
line in WRITERS.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError, CheckpointError
from amortjax.saes.formats import (
    bartbussmann,
    dictionary_learning,
    dictionary_learning_writer,
    gemma_scope,
    goodfire,
    hub,
    kissane,
    llama_scope,
    loca,
    loca_writer,
    mwhanna,
    native,
    openai,
    overcomplete,
    plain,
    qwen_scope,
    saelens,
    saelens_writer,
    sparsify,
    transcoder_circuits,
)
from amortjax.saes.formats.opened import CONTAINERS, Opened, open_weights
from amortjax.saes.sae import SAE


class Format(NamedTuple):
    """One library's layout. `detect` sees one file, opened, and whatever lies beside it. Where a folder may hold
    several such files, `main` gives the one that is the folder's SAE."""

    detect: Callable[[Opened], bool]
    load: Callable[..., SAE]
    choices: tuple[str, ...] = ()
    main: Callable[[Path], Path] = lambda file: file


class Writer(NamedTuple):
    save: Callable[..., Path]
    choices: tuple[str, ...] = ()


UNFORESEEN = "its tensors and settings are not"


FORMATS = {
    "native": Format(native.detect, native.load_native),
    # These four have names that the next would take for its own.
    "bartbussmann": Format(bartbussmann.detect, bartbussmann.load, bartbussmann.CHOICES),
    "openai": Format(openai.detect, openai.load, openai.CHOICES),
    "qwen_scope": Format(qwen_scope.detect, qwen_scope.load, qwen_scope.CHOICES),
    "kissane": Format(kissane.detect, kissane.load),
    "dictionary_learning": Format(
        dictionary_learning.detect,
        dictionary_learning.load,
        dictionary_learning.CHOICES,
        dictionary_learning.main_file,
    ),
    "loca": Format(loca.detect, loca.load, loca.CHOICES, loca.main_file),
    "saelens": Format(saelens.detect, saelens.load, saelens.CHOICES),
    "sparsify": Format(sparsify.detect, sparsify.load, sparsify.CHOICES),
    "gemma_scope": Format(gemma_scope.detect, gemma_scope.load, gemma_scope.CHOICES),
    "llama_scope": Format(llama_scope.detect, llama_scope.load, llama_scope.CHOICES),
    "mwhanna": Format(mwhanna.detect, mwhanna.load, mwhanna.CHOICES),
    "transcoder_circuits": Format(transcoder_circuits.detect, transcoder_circuits.load),
    "overcomplete": Format(overcomplete.detect, overcomplete.load, overcomplete.CHOICES),
    "goodfire": Format(goodfire.detect, goodfire.load),
    # Last: it takes any file with the two matrices.
    "plain": Format(plain.detect, plain.load, plain.CHOICES),
}
WRITERS = {
    "native": Writer(native.save_native),
    "saelens": Writer(saelens_writer.save, saelens_writer.CHOICES),
    "dictionary_learning": Writer(dictionary_learning_writer.save),
    "loca": Writer(loca_writer.save, loca_writer.CHOICES),
}


def load_sae(path_or_hub_id: str | os.PathLike, **choices: Any) -> SAE:
    """Reads an SAE from a file, a folder that holds exactly one, or the hub (`org/repo:path/in/it`).

    `choices` settle what a file leaves open: `k`, `threshold`, `dict_class`, `d_model`, `pre_bias`,
    `normalize_decoder`, `norm_factor`, `scale`, `batch_rule`; each format takes some of them (its `CHOICES`, told by
    its reader's `load`). Raises CheckpointError naming file and remedy; warns of what may make the SAE another than
    the one that was trained.
    """
    path = _local(path_or_hub_id)
    name, opened = _only_sae(path)
    _check_choices(opened.path, name, choices, FORMATS[name].choices)
    try:
        return FORMATS[name].load(opened, **choices)
    except CheckpointError as error:
        if str(opened.path.parent) in str(error):
            raise
        raise CheckpointError(f"{opened.path}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # The readers name the key of what they check; this is for damage nobody thought of.
        raise CheckpointError(
            f"{opened.path}: {UNFORESEEN} of {name} ({error!r}); copy the file again"
        ) from None


def save_sae(sae: SAE, path: str | os.PathLike, format: str = "native", **choices: Any) -> Path:
    """Writes an SAE and returns the path of the weights. `path` is a stem, one of the native pair's two names, or a
    folder; for the others a folder. "saelens" takes `prepend_bos` and `context_size`, "loca" `standard` and
    `bias_latent`."""
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


def _only_sae(path: Path) -> tuple[str, Opened]:
    """The one SAE at or below `path`: its format, and its file opened."""
    if path.is_file():
        opened = open_weights(path)
        name = opened and _format_of(opened)
        if not opened or not name:
            raise CheckpointError(f"{path}: not an SAE of a known format ({', '.join(FORMATS)})")
        return name, opened
    found, error = {}, None
    for file in sorted(file for file in path.rglob("*") if file.suffix in CONTAINERS and file.is_file()):
        try:
            opened = open_weights(file)
            name = opened and _format_of(opened)
        except CheckpointError as caught:
            # Another file of the folder may be the SAE; if none is, this is why.
            error = error or caught
            continue
        if opened and name:
            found.setdefault(FORMATS[name].main(file), name)
    if len(found) == 1:
        [(file, name)] = found.items()
        return name, Opened(file, CONTAINERS[file.suffix](file))
    if found:
        files = ", ".join(str(file.relative_to(path)) for file in list(found)[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        raise CheckpointError(f"{path}: holds {len(found)} SAEs; give the path of one: {files}{more}")
    raise error or CheckpointError(f"{path}: no SAE of a known format ({', '.join(FORMATS)}) in this folder")


def _format_of(opened: Opened) -> str | None:
    return next((name for name, form in FORMATS.items() if form.detect(opened)), None)
