"""Writer of the LocA-SAE authors' folder (see `loca`): torch files with their keys, shapes and types.

    z_g = relu(x @ encoders.g.weight.T + bias) on the group_ks[g] largest,  y = sum_g z_g @ decoders.g.weight.T

This has no decoder bias, and nothing is subtracted from x: pre_bias is folded into the encoders' biases, and b_dec
can be a latent of its own (`bias_latent`). Not kept: Info's name and lam_train, hooks other than the residual
stream, norm_factor. ae.pt is never written, since it would lose biases and groups.
"""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.saes.checks import check
from amortjax.saes.formats.loca import AE, CONFIG, META, MULTI, NORMALISED, STANDARD, Block
from amortjax.saes.sae import SAE, Info, is_transcoder

CHOICES = ("standard", "bias_latent")


def save(sae: SAE, path: str | os.PathLike, standard: SAE | None = None, bias_latent: bool = False) -> Path:
    """Writes a LocA-SAE into the folder `path` and returns the path of multi_encoder_sae.pt.

    standard: the TopK SAE it was started from, written beside it; `sae.extra["origin"]` are its latents.
    bias_latent: stores a b_dec that is not zero as the decoder row of one further latent, 1 for every token and in
    a group of its own; reading folds it back. Without it such an SAE is refused.

    config.json is removed first and written last, so an interrupted write leaves a folder that is refused.
    """
    folder = Path(path)
    check(sae, str(folder))
    _check_plain(sae, "loca", "this SAE")
    if bool(np.any(np.asarray(sae.b_dec))) and not bias_latent:
        raise AmortjaxError(
            "the loca format has no decoder bias, and this SAE's b_dec is not zero: write format='native', or pass "
            "bias_latent=True to store it as one more latent that is always 1"
        )
    if standard is not None:
        _check_standard(sae, standard)
    blocks, ks = _blocks(sae), [*sae.group_k]
    if np.any(np.asarray(sae.b_dec)):
        blocks.append(Block(np.zeros((sae.d_in, 1)), np.ones(1), np.asarray(sae.b_dec)[None]))
        ks.append(1)
    files = {MULTI: _multi(blocks), META: _meta(sae, ks, len(blocks), standard)}
    if standard is not None:
        files[STANDARD] = _linear(standard)
    data = {name: _torch_bytes(structure) for name, structure in files.items()}
    config = json.dumps(_config(sae, blocks, ks, standard), indent=2) + "\n"
    _write(folder, data, config)
    return folder / MULTI


def _write(folder: Path, data: dict[str, bytes], config: str) -> None:
    if folder.is_file() or folder.suffix in (".pt", ".json", ".safetensors"):
        raise AmortjaxError(f"{folder}: the loca format is a folder of files; give a folder's path")
    for name in {STANDARD, AE} - set(data):
        if (folder / name).exists():
            raise AmortjaxError(
                f"{folder}: holds {name} of another SAE; give a new folder, or remove that file"
            )
    if (folder / CONFIG).exists() and not (folder / MULTI).exists():
        raise AmortjaxError(f"{folder}: holds a {CONFIG} of something else; give a new folder")
    (folder / CONFIG).unlink(missing_ok=True)
    for name, content in data.items():
        write_atomically(folder / name, content)
    write_atomically(folder / CONFIG, config)


def _check_plain(sae: SAE, variant: str, what: str) -> None:
    """Refuses what the authors' maths has no place for."""
    wrong = {
        f"is a {sae.variant} SAE, where a {variant} SAE goes": sae.variant != variant,
        f"normalises its input ({sae.norm})": sae.norm != "none",
        "ranks pre-activations times the decoder's norms (rescale)": sae.rescale,
        "is a transcoder": is_transcoder(sae),
        "has fine-tuning factors (f_dec)": "f_dec" in sae.extra,
    }
    for reason, holds in wrong.items():
        if holds:
            raise AmortjaxError(f"the loca format can't hold it: {what} {reason}; write format='native'")


def _check_standard(sae: SAE, standard: SAE) -> None:
    check(standard, STANDARD)
    _check_plain(standard, "topk", STANDARD)
    if np.any(np.asarray(standard.b_dec)):
        raise AmortjaxError(
            f"{STANDARD} has no decoder bias, and standard.b_dec is not zero: leave standard out"
        )
    if "origin" not in sae.extra:
        raise AmortjaxError(
            "standard needs sae.extra['origin'], the latent of standard that each latent came from"
        )
    last = int(np.asarray(sae.extra["origin"]).max())
    if standard.d_in != sae.d_in or last >= standard.n_latents:
        raise AmortjaxError(
            f"standard (D = {standard.d_in}, {standard.n_latents} latents) is not what this SAE (D = {sae.d_in}, "
            f"origins up to {last}) was started from"
        )


def _folded_bias(sae: SAE) -> np.ndarray:
    """b_enc (M,) of the same encoder without pre_bias, in float64."""
    b_enc, pre_bias, w_enc = (np.asarray(a, np.float64) for a in (sae.b_enc, sae.pre_bias, sae.W_enc))
    return b_enc - pre_bias @ w_enc


def _blocks(sae: SAE) -> list[Block]:
    ends = np.cumsum(sae.groups)[:-1]
    parts = (
        np.split(np.asarray(sae.W_enc), ends, axis=1),
        np.split(_folded_bias(sae), ends),
        np.split(np.asarray(sae.W_dec), ends),
    )
    return [Block(*block) for block in zip(*parts, strict=True)]


def _multi(blocks: list[Block]) -> dict[str, np.ndarray]:
    encoders = {
        f"encoders.{g}.{name}": values
        for g, block in enumerate(blocks)
        for name, values in (("weight", block.w_enc.T), ("bias", block.b_enc))
    }
    return encoders | {f"decoders.{g}.weight": block.w_dec.T for g, block in enumerate(blocks)}


def _linear(standard: SAE) -> dict[str, np.ndarray]:
    return {
        "encoder.weight": np.asarray(standard.W_enc).T,
        "encoder.bias": _folded_bias(standard),
        "decoder.weight": np.asarray(standard.W_dec).T,
    }


def _meta(sae: SAE, ks: list[int], n_groups: int, standard: SAE | None) -> dict[str, Any]:
    """loc_angular_meta.pt. Without `origin` latents are their own; without `avar` angular_variance is left out;
    of standard's latents that are in no group it is not known: NaN."""
    origin = np.asarray(sae.extra.get("origin", np.arange(sae.n_latents))).astype(np.int64)
    # The bias latent has none.
    groups = [*np.split(origin, np.cumsum(sae.groups)[:-1]), origin[:0]][:n_groups]
    meta: dict[str, Any] = {"groups_indices": groups, "group_ks": ks}
    if "avar" in sae.extra:
        avar = np.asarray(sae.extra["avar"])
        size = standard.n_latents if standard is not None else int(origin.max()) + 1
        meta["angular_variance"] = np.full(size, np.nan)
        meta["angular_variance"][origin] = np.where(avar >= 0, avar, np.nan)
    return meta


def _config(sae: SAE, blocks: list[Block], ks: list[int], standard: SAE | None) -> dict[str, Any]:
    """Of the fields of the authors' SAEConfig those that are known; other keys its constructor would refuse."""
    return {
        "model_name": sae.info.model_name,
        "d_model": sae.d_in,
        "target_layer": _target_layer(sae.info),
        "dict_size": sum(len(block.b_enc) for block in blocks),
        "n_sub_encoders": len(blocks),
        "global_k": standard.k if standard is not None else None,
        "group_ks": ks,
        "normalize_activations": NORMALISED in sae.info.notes,
    }


def _target_layer(info: Info) -> int | None:
    """The entry of Hugging Face's hidden_states; None if it is not known or none of them."""
    after = {"resid_pre": 0, "resid_post": 1}.get(info.hook)
    return None if after is None or info.layer_index is None else info.layer_index + after


def _torch_bytes(structure: dict[str, Any]) -> bytes:
    """What torch.save writes: floats as float32, whole numbers as int64."""
    try:
        import torch
    except ImportError:
        raise AmortjaxError(
            "writing the loca format needs torch: pip install 'amortjax[export]', or write format='native'"
        ) from None

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            dtype = np.int64 if value.dtype.kind == "i" else np.float32
            return torch.from_numpy(np.array(value, dtype, order="C"))  # a copy: torch saves whole storages
        return [tensors(part) for part in value] if isinstance(value, list) else value

    buffer = io.BytesIO()
    torch.save({key: tensors(value) for key, value in structure.items()}, buffer)
    return buffer.getvalue()
