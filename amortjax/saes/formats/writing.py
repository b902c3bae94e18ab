"""What writers of foreign formats share: folding what a format has no place for, and folders written whole or not
at all."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.saes.formats.opened import CONTAINERS
from amortjax.saes.sae import SAE

BLOCK = 4096  # latents at a time, so that no float64 copy of W_enc exists


def host(array) -> np.ndarray:
    """The array as float32 NumPy, C-ordered."""
    return np.asarray(array, np.float32, order="C")


def fold_decoder(sae: SAE) -> SAE:
    """The same codes and reconstructions without `rescale` and `f_dec`: norms of decoder rows n go into W_enc and
    b_enc, f_dec / n into W_dec. The SAE itself if there is nothing to fold; exact up to rounding."""
    if not sae.rescale and "f_dec" not in sae.extra:
        return sae
    w_enc, b_enc, w_dec = host(sae.W_enc), host(sae.b_enc), host(sae.W_dec)
    factor = host(sae.extra.get("f_dec", np.ones(sae.n_latents))).astype(np.float64)
    if sae.rescale:
        norm = np.sqrt(np.einsum("md,md->m", w_dec, w_dec, dtype=np.float64))
        w_enc, b_enc = w_enc * norm.astype(np.float32), b_enc * norm.astype(np.float32)
        factor = factor / np.where(norm > 0, norm, 1)
    w_dec = w_dec * factor.astype(np.float32)[:, None]
    extra = {name: value for name, value in sae.extra.items() if name != "f_dec"}
    return dataclasses.replace(
        sae,
        W_enc=w_enc,  # pyright: ignore[reportArgumentType]
        b_enc=b_enc,  # pyright: ignore[reportArgumentType]
        W_dec=w_dec,  # pyright: ignore[reportArgumentType]
        extra=extra,
        rescale=False,
    )


def recentred_bias(sae: SAE, centre: np.ndarray) -> np.ndarray:
    """b_enc (M,) of the same encoder with `centre` (D,) subtracted from the input instead of pre_bias:
    b_enc + (centre - pre_bias) @ W_enc, in float64; b_enc itself, to the bit, if they are the same."""
    move = host(centre).astype(np.float64) - host(sae.pre_bias)
    b_enc = host(sae.b_enc).astype(np.float64)
    if not move.any():
        return b_enc
    w_enc = host(sae.W_enc)
    for first in range(0, len(b_enc), BLOCK):
        part = slice(first, first + BLOCK)
        b_enc[part] += move @ w_enc[:, part].astype(np.float64)
    return b_enc


def gate_biases(sae: SAE, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """b_gate and b_mag (M,) of a gated SAE with b_enc, and pre_bias as far as it is not `centre` (D,), folded in:
    the gate reads u + b_gate, the magnitude exp(r_mag) * u + b_mag."""
    shift = recentred_bias(sae, centre)
    r_mag, b_gate, b_mag = (host(sae.extra[name]).astype(np.float64) for name in ("r_mag", "b_gate", "b_mag"))
    return b_gate + shift, b_mag + np.exp(r_mag) * shift


def one_group_as_topk(sae: SAE) -> SAE:
    """A LocA-SAE of a single group as the TopK SAE that it is; others unchanged."""
    if sae.variant == "loca" and len(sae.groups) == 1:
        return dataclasses.replace(sae, variant="topk", k=sae.group_k[0], groups=(), group_k=())
    return sae


def refuse(format: str, reason: str, remedy: str = "write format='native'") -> NoReturn:
    raise AmortjaxError(f"the {format} format can't hold this SAE: {reason}; {remedy}")


def refuse_batch_rule(format: str, sae: SAE) -> None:
    """Raises for an SAE that ranks whole batches: other libraries' inference classes need a threshold."""
    if sae.batch_rule:
        refuse(
            format,
            "it keeps the k * N largest of a batch, and so has no threshold",
            "load it with threshold=..., the one measured on data, or write format='native'",
        )


def write_folder(folder: Path, weights: str, data: bytes, config: str, settings: str) -> Path:
    """Writes `data` to folder/weights and `settings` to folder/config, and returns the path of the weights.

    An earlier config is removed first and the new one written last, so that an interrupted write leaves a folder
    that is refused. Raises AmortjaxError if the folder holds something else.
    """
    if folder.is_file() or folder.suffix in (*CONTAINERS, ".json"):
        raise AmortjaxError(f"{folder}: this format is a folder of files; give a folder's path")
    others = sorted(
        file.name for file in folder.glob("*") if file.suffix in CONTAINERS and file.name != weights
    )
    if others:
        raise AmortjaxError(f"{folder}: holds {others[0]}, which is not of this SAE; give a new folder")
    if (folder / config).exists() and not (folder / weights).exists():
        raise AmortjaxError(f"{folder}: holds a {config} of something else; give a new folder")
    (folder / config).unlink(missing_ok=True)
    write_atomically(folder / weights, data)
    write_atomically(folder / config, settings)
    return folder / weights


def known(values: Mapping) -> dict:
    """The entries that are not None."""
    return {key: value for key, value in values.items() if value is not None}
