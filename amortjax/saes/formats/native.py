"""The native checkpoint: `NAME.safetensors` with the weights and `NAME.json` with the rest, a pair of one
stem.

Readable without amortjax: `safetensors.numpy.load_file` gives float32 arrays in the orientation of
`saes.sae` (W_enc (D, M), b_enc (M,), W_dec (M, D), b_dec (D,), pre_bias (D,), extra.threshold, ...), the
json says the variant:

    c = x - pre_bias,  pre = c @ W_enc + b_enc
    z = relu(pre)    "standard": everywhere; "topk": on the k largest of pre;
                     "jumprelu", "batch_topk", "matryoshka": where pre > extra.threshold;
                     "loca": on the group_k[g] largest of group g, for each group
    y = z @ W_dec + b_dec

Groups lie one after the other: `groups` in the json are their sizes. "mlp" adds to pre, on the latents of
block g,

    relu(c @ extra.W_hidden[g] + extra.b_hidden[g]) @ extra.W_up[:, block g]

where blocks are the groups, or all latents if W_hidden (G, D, H) has G = 1; then it fires as "loca" if group_k is
not empty, else as "topk" if k is not null, else as "standard".

No part of the maths: `extra.norm_factor` (), what training divided its inputs by, folded into the biases already,
so that x are raw activations; `extra.origin` (M,), the latent of another SAE that each latent was started from;
`extra.avar` (M,), that latent's angular variance.

The json is written last and holds the sha256 of the weights, so a pair of which one file is old, missing or
cut off is refused instead of read wrongly.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from amortjax.errors import CheckpointError
from amortjax.files import write_atomically
from amortjax.saes.checks import check, tensors
from amortjax.saes.formats.opened import Opened
from amortjax.saes.formats.tensors import to_jax
from amortjax.saes.sae import SAE, Info

VERSION = 1
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec", "pre_bias")


def stem_of(path: str | os.PathLike) -> Path:
    """The stem a path means: `f.safetensors`, `f.json` and `f` are the pair f; a folder F is the pair
    F/sae."""
    path = Path(path)
    if path.suffix in (".safetensors", ".json"):
        return path.with_suffix("")
    return path / "sae" if path.is_dir() or not path.name else path


def _file(stem: Path, suffix: str) -> Path:
    # Not with_suffix: a stem may have a dot of its own, as in `lam0.1`.
    return stem.with_name(stem.name + suffix)


def save_native(sae: SAE, path: str | os.PathLike) -> Path:
    """Writes the pair and returns the path of the weights. Refuses NaN weights and shapes that do not fit."""
    stem = stem_of(path)
    weights = _file(stem, ".safetensors")
    check(sae, str(weights))
    # ascontiguousarray would turn a 0-d threshold into shape (1,).
    arrays = {name: np.array(array, np.float32, order="C") for name, array in tensors(sae).items()}
    data = safetensors.numpy.save(arrays)
    settings = {
        "amortjax_sae": VERSION,
        "weights": weights.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "variant": sae.variant,
        "k": sae.k,
        "groups": list(sae.groups),
        "group_k": list(sae.group_k),
        "norm": sae.norm,
        "rescale": sae.rescale,
        "batch_rule": sae.batch_rule,
        "shapes": {name: list(array.shape) for name, array in arrays.items()},
        "info": dataclasses.asdict(sae.info) | {"format": "native"},
    }
    write_atomically(weights, data)
    write_atomically(_file(stem, ".json"), json.dumps(settings, indent=1) + "\n")
    return weights


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The json of a pair, or CheckpointError."""
    file = _file(stem_of(path), ".json")
    try:
        settings = json.loads(file.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{file}: no such file; a native checkpoint is a .safetensors and a .json"
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file}: not readable as json ({error}); copy or save the checkpoint again"
        ) from None
    if not isinstance(settings, dict) or "amortjax_sae" not in settings:
        raise CheckpointError(f"{file}: not an amortjax checkpoint, the key 'amortjax_sae' is missing")
    if settings["amortjax_sae"] != VERSION:
        raise CheckpointError(
            f"{file}: checkpoint version {settings['amortjax_sae']}, this amortjax reads version "
            f"{VERSION}: update it"
        )
    return settings


def detect(opened: Opened) -> bool:
    """Whether the file is the weights half of a native pair (the json alone is not counted: one SAE, one
    hit)."""
    settings = _file(stem_of(opened.path), ".json")
    if opened.path.suffix != ".safetensors" or not settings.is_file():
        return False
    try:
        return "amortjax_sae" in json.loads(settings.read_text())
    except ValueError:
        return True  # a damaged json beside weights: `load_native` says what is wrong with it


def load_native(opened: Opened) -> SAE:
    """Reads a pair. Raises CheckpointError (file and key) when it is missing, cut off, mixed up or has
    NaN."""
    settings, file = read_settings(opened.path), opened.path
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != settings.get("sha256"):
        raise CheckpointError(
            f"{file}: its bytes do not match the sha256 in {file.stem}.json: cut off, or the two files "
            "are of different saves; copy or save the pair again"
        )
    for key in WEIGHTS:
        if key not in opened.keys:
            raise CheckpointError(f"{file}: tensor {key!r} is missing")
    return check(_build(opened, settings), str(file))


def _build(opened: Opened, settings: dict) -> SAE:
    file = opened.path
    known = {field.name for field in dataclasses.fields(Info)}
    try:
        info: dict[str, Any] = {key: value for key, value in settings.get("info", {}).items() if key in known}
        info |= {"notes": tuple(info.get("notes", ())), "source": str(file), "format": "native"}
        return SAE(
            **{name: to_jax(opened.array(name)) for name in WEIGHTS},
            extra={
                name.removeprefix("extra."): to_jax(opened.array(name))
                for name in sorted(opened.keys)
                if name.startswith("extra.")
            },
            variant=_typed(settings, "variant", str),
            k=_typed(settings, "k", int | None),
            groups=_whole_numbers(settings, "groups"),
            group_k=_whole_numbers(settings, "group_k"),  # files from before LocA have none
            norm=_typed(settings, "norm", str),
            rescale=_typed(settings, "rescale", bool),
            batch_rule=_typed(settings, "batch_rule", bool),
            info=Info(**info),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file.with_suffix('.json')}: key {error} is missing or has a wrong type"
        ) from None


def _typed(settings: dict, key: str, kind: Any) -> Any:
    if not isinstance(settings[key], kind) or (kind == int | None and isinstance(settings[key], bool)):
        raise KeyError(key)
    return settings[key]


def _whole_numbers(settings: dict, key: str) -> tuple[int, ...]:
    numbers = settings.get(key, [])
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise KeyError(key)
    return tuple(numbers)
