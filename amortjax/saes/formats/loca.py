"""Reader of the folder that the LocA-SAE authors' code writes (github.com/wenjie1835/ICLR-rebuttal).

    config.json            group_ks, global_k, target_layer, ...
    multi_encoder_sae.pt   the LocA-SAE: encoders.{g}.weight (M_g, D) and .bias (M_g,), decoders.{g}.weight (D, M_g)
    loc_angular_meta.pt    of which latents of standard_sae.pt its groups were made, and their angular variance
    standard_sae.pt        that TopK SAE
    ae.pt                  a conversion of multi_encoder_sae.pt, without its biases and groups

The folder is the LocA-SAE; the path of one of the three SAEs' files is that SAE. None of them has a decoder bias.
Linear layers are (out, in), in ae.pt too. `loca_writer` writes such folders.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.common import build
from amortjax.saes.formats.opened import Opened, open_weights
from amortjax.saes.formats.tensors import Tensor
from amortjax.saes.sae import SAE, Info

CHOICES = ("k",)
CONFIG, MULTI, META, STANDARD, AE = (
    "config.json", "multi_encoder_sae.pt", "loc_angular_meta.pt", "standard_sae.pt", "ae.pt"
)  # fmt: skip
LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
NORMALISED = (
    "its authors trained it on rows divided by their L2 norm but evaluate it on raw ones; so it is read here"
)
LOST = f"{AE} has lost the biases and groups of the SAE that was trained; {MULTI} of the same run has them"


def detect(opened: Opened) -> bool:
    """Whether it is a `.pt` with the tensors of one of the three SAEs."""
    keys = opened.keys
    if opened.path.suffix != ".pt" or not all(opened.is_tensor(key) for key in keys):
        return False
    # Others use the names W_enc and W_dec for the transposes, so there the file's name counts too.
    plain = keys == {"W_enc", "W_dec"} and opened.path.name == AE
    return plain or keys == LINEAR or "encoders.0.weight" in keys


def main_file(path: Path) -> Path:
    """The file that is the SAE of the folder that `path` is in."""
    multi = path.with_name(MULTI)
    return multi if multi.is_file() else path


def load(opened: Opened, k: int | None = None) -> SAE:
    """Reads one of the three SAEs. `k`: of standard_sae.pt, instead of config.json's global_k; of ae.pt, to keep
    the k largest of a token instead of all."""
    config = opened.json(CONFIG)
    read = _loca if "encoders.0.weight" in opened.keys else _linear
    sae = read(opened, config, k)
    return check(dataclasses.replace(sae, info=_info(opened.path, config)), str(opened.path))


def _linear(file: Opened, config: dict[str, Any], k: int | None) -> SAE:
    """standard_sae.pt or ae.pt."""
    plain = "W_enc" in file.keys
    encoder, decoder = ("W_enc", "W_dec") if plain else ("encoder.weight", "decoder.weight")
    m, d = _two_axes(file, encoder)
    _check_shape(file, decoder, (d, m))
    _check_run(file.path, config, d, m)
    w_enc, w_dec = file.array(encoder, transpose=True), file.array(decoder, transpose=True)
    if plain:
        return build("standard" if k is None else "topk", w_enc, None, w_dec, None, None, k=k)
    if k is None and config.get("global_k") is not None:
        k = _whole(file.path, "global_k", config["global_k"])
    return build("topk", w_enc, file.array("encoder.bias"), w_dec, None, None, k=k)


class Block(NamedTuple):
    """One group's encoder and decoder, in amortjax's orientation."""

    w_enc: np.ndarray  # (D, M_g)
    b_enc: np.ndarray  # (M_g,)
    w_dec: np.ndarray  # (M_g, D)


def _loca(file: Opened, config: dict[str, Any], k: int | None) -> SAE:
    """multi_encoder_sae.pt."""
    path = file.path
    if k is not None:
        raise CheckpointError(f"{path}: takes no k; how many latents of each group fire is in {CONFIG}")
    blocks, ks = _blocks(file), config.get("group_ks")
    if not isinstance(ks, list) or len(ks) != len(blocks):
        raise CheckpointError(
            f"{path.with_name(CONFIG)}: group_ks is {ks or 'missing'}, and the {len(blocks)} encoders of {path.name} "
            "need a number each; copy the folder again, or write it again if that was interrupted"
        )
    ks = [_whole(path, "group_ks", number) for number in ks]
    _check_run(path, config, len(blocks[0].w_enc), sum(len(block.b_enc) for block in blocks), len(blocks))
    extra, b_dec = _started_from(path.with_name(META), ks), None
    if len(blocks) > 1 and ks[-1] == 1 and _is_bias(blocks[-1]):
        b_dec, ks = blocks.pop().w_dec[0], ks[:-1]
    sizes = tuple(len(block.b_enc) for block in blocks)
    w_enc, b_enc = (np.concatenate([block[i] for block in blocks], axis=-1) for i in (0, 1))
    w_dec = np.concatenate([block.w_dec for block in blocks])
    return build("loca", w_enc, b_enc, w_dec, b_dec, None, extra, groups=sizes, group_k=tuple(ks))


def _is_bias(block: Block) -> bool:
    """Whether a group's only latent is 1 for every token: how `loca_writer` stores a decoder bias."""
    return len(block.b_enc) == 1 and block.b_enc[0] == 1 and not block.w_enc.any()


def _blocks(file: Opened) -> list[Block]:
    n = sum(key.startswith("encoders.") and key.endswith(".weight") for key in file.keys)
    names = [(f"encoders.{g}.weight", f"encoders.{g}.bias", f"decoders.{g}.weight") for g in range(n)]
    known = {name for group in names for name in group}
    for key in sorted(known ^ file.keys):
        raise CheckpointError(
            f"{file.path}: tensor {key!r} is {'missing' if key in known else f'not of a LocA-SAE of {n} groups'}"
        )
    d, blocks = _two_axes(file, names[0][0])[1], []
    for weight, bias, decoder in names:
        m = _two_axes(file, weight)[0]
        for name, shape in ((weight, (m, d)), (bias, (m,)), (decoder, (d, m))):
            _check_shape(file, name, shape)
        blocks.append(Block(file.array(weight, True), file.array(bias), file.array(decoder, True)))
    return blocks


def _started_from(path: Path, ks: list[int]) -> dict[str, np.ndarray]:
    """`origin` and `avar` of SAE.extra (M,), as far as loc_angular_meta.pt is there and has them. float32 holds
    indices exactly up to 2^24."""
    file = open_weights(path)
    if file is None:
        return {}
    groups = file.content.get("groups_indices") if "groups_indices" in file.keys else None
    groups = groups if isinstance(groups, list) else []
    if len(groups) != len(ks) or not all(isinstance(group, Tensor) for group in groups):
        raise CheckpointError(
            f"{path}: groups_indices must be a list of {len(ks)} tensors, one per group; copy the folder again"
        )
    if file.content.get("group_ks", ks) != ks:
        raise CheckpointError(
            f"{path}: group_ks is {file.content['group_ks']}, but {CONFIG} says {ks}: the files are of different "
            "runs; copy the folder again"
        )
    indices = dataclasses.replace(file, content={str(g): group for g, group in enumerate(groups)})
    origin = np.concatenate([indices.integers(str(g)).reshape(-1) for g in range(len(groups))])
    if "angular_variance" not in file.keys or not file.is_tensor("angular_variance"):
        return {"origin": origin.astype(np.float32)}
    avar = file.array("angular_variance").reshape(-1)
    if origin.min(initial=0) < 0 or origin.max(initial=-1) >= len(avar):
        raise CheckpointError(
            f"{path}: groups_indices are not all from 0 to {len(avar) - 1}, angular_variance's last"
        )
    return {"origin": origin.astype(np.float32), "avar": np.nan_to_num(avar[origin], nan=-1.0)}


def _two_axes(file: Opened, name: str) -> tuple[int, int]:
    shape = file.shape(name)
    if len(shape) != 2:
        raise CheckpointError(f"{file.path}: {name} has shape {shape}; wanted two axes")
    return shape[0], shape[1]


def _check_shape(file: Opened, name: str, wanted: tuple[int, ...]) -> None:
    shape = file.shape(name)
    if shape != wanted:
        raise CheckpointError(f"{file.path}: {name} has shape {shape}; the other tensors ask for {wanted}")


def _check_run(path: Path, config: dict[str, Any], d: int, m: int, n_groups: int = 1) -> None:
    """Refuses weights (D, M) that config.json is not of."""
    total = config.get("dict_size", m)
    # The authors' groups are of one size: what is over is dropped.
    sizes = (total, total // n_groups * n_groups) if isinstance(total, int) else (total,)
    for key, size, wanted in (("d_model", d, (config.get("d_model", d),)), ("dict_size", m, sizes)):
        if size not in wanted:
            raise CheckpointError(
                f"{path.with_name(CONFIG)}: {key} is {wanted[0]}, but {path.name} has {size}: the files are of "
                "different runs; copy the folder again"
            )


def _whole(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"{path.with_name(CONFIG)}: {key} holds {value!r}; wanted a whole number")
    return value


def _info(path: Path, config: dict[str, Any]) -> Info:
    """target_layer counts Hugging Face's hidden_states, whose entry L + 1 is the output of block L."""
    layer, notes, hook, index = config.get("target_layer"), [], "", None
    if isinstance(layer, int) and layer >= 0:
        hook, index = ("resid_post", layer - 1) if layer else ("resid_pre", 0)
        notes.append(f"target_layer {layer} means hidden_states[{layer}]: {hook} of block {index}")
    if config.get("normalize_activations"):
        notes.append(NORMALISED)
    if path.name == AE:
        notes.append(LOST)
    folder = path.resolve().parent.name
    return Info(
        name=folder if path.name == MULTI else f"{folder}_{path.stem}",
        source=str(path),
        format="loca",
        model_name=str(config.get("model_name") or ""),
        layer_index=index,
        hook=hook,
        notes=tuple(notes),
    )
