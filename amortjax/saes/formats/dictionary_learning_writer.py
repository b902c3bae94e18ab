"""Writer of saprmarks/dictionary_learning: `ae.pt` (a torch state_dict) beside `config.json`, as its `load_dictionary`
and SAEBench read them.

    AutoEncoder, AutoEncoderNew   standard: with and without b_dec subtracted before encoding
    GatedAutoEncoder              gated
    AutoEncoderTopK               topk
    BatchTopKSAE                  batch_topk
    MatryoshkaBatchTopKSAE        matryoshka
    JumpReluAutoEncoder           jumprelu

Where a class subtracts b_dec and the SAE another vector, or none, that goes into the encoder's biases; f_dec and
`rescale` into the matrices. Not kept: Info's name and notes, norm_factor, origin, avar. `load_dictionary` divides the
decoder rows of an AutoEncoder by their norms: the codes it gives are larger by these, x_hat is the same.
"""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.saes.checks import check
from amortjax.saes.formats.hooks import transformer_lens_name
from amortjax.saes.formats.writing import (
    fold_decoder,
    gate_biases,
    host,
    known,
    one_group_as_topk,
    recentred_bias,
    refuse,
    refuse_batch_rule,
    write_folder,
)
from amortjax.saes.sae import SAE, Info, is_transcoder

FORMAT = "dictionary_learning"
WEIGHTS, CONFIG = "ae.pt", "config.json"
NO_CLASS = {
    "signed_topk": "its codes keep their sign, and AutoEncoderTopK has a ReLU",
    "abs_topk": "its codes keep their sign, and AutoEncoderTopK has a ReLU",
    "loca": "no class limits how many latents of a group fire",
    "mlp": "no class has a hidden layer",
    "matching_pursuit": "no class chooses its latents one after the other",
}


def save(sae: SAE, path: str | os.PathLike) -> Path:
    """Writes an SAE into the folder `path` and returns the path of ae.pt. Raises AmortjaxError, with the reason, for
    an SAE that the library has no class for."""
    folder = Path(path)
    check(sae, str(folder))
    sae = one_group_as_topk(sae)
    _check_plain(sae)
    sae = fold_decoder(sae)
    name = _class_of(sae)
    config = {"trainer": _trainer(sae, name)}
    data = _torch_bytes(CLASSES[name].tensors(sae))
    return write_folder(folder, WEIGHTS, data, CONFIG, json.dumps(config, indent=4) + "\n")


def _check_plain(sae: SAE) -> None:
    if sae.variant in NO_CLASS:
        refuse(FORMAT, NO_CLASS[sae.variant])
    refuse_batch_rule(FORMAT, sae)
    if sae.norm != "none":
        refuse(FORMAT, f"it normalises its input ({sae.norm})", "write format='saelens' or 'native'")
    if is_transcoder(sae):
        refuse(FORMAT, "it is a transcoder", "write format='saelens' or 'native'")


def _class_of(sae: SAE) -> str:
    if sae.variant == "standard":
        return "AutoEncoder" if np.array_equal(host(sae.pre_bias), host(sae.b_dec)) else "AutoEncoderNew"
    if sae.variant in ("batch_topk", "matryoshka"):
        # Their classes have a k and one threshold of all latents, which is below zero until it was measured.
        threshold = host(sae.extra["threshold"])
        whole = sae.k is not None and np.ptp(threshold) == 0 and threshold.min() >= 0
        names = {"batch_topk": "BatchTopKSAE", "matryoshka": "MatryoshkaBatchTopKSAE"}
        return names[sae.variant] if whole else "JumpReluAutoEncoder"
    return {"topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder", "jumprelu": "JumpReluAutoEncoder"}[
        sae.variant
    ]


def _linear(sae: SAE) -> dict[str, np.ndarray]:
    return {"encoder.weight": host(sae.W_enc).T, "decoder.weight": host(sae.W_dec).T}


def _autoencoder(sae: SAE) -> dict[str, np.ndarray]:
    return {"bias": host(sae.b_dec)} | _linear(sae) | {"encoder.bias": _b_enc(sae, sae.b_dec)}


def _autoencoder_new(sae: SAE) -> dict[str, np.ndarray]:
    return _linear(sae) | {"encoder.bias": _b_enc(sae), "decoder.bias": host(sae.b_dec)}


def _gated(sae: SAE) -> dict[str, np.ndarray]:
    b_gate, b_mag = gate_biases(sae, host(sae.b_dec))
    biases = {"r_mag": _each(sae, "r_mag"), "gate_bias": host(b_gate), "mag_bias": host(b_mag)}
    return {"decoder_bias": host(sae.b_dec)} | biases | _linear(sae)


def _topk(sae: SAE) -> dict[str, np.ndarray]:
    """AutoEncoderTopK and BatchTopKSAE have the same tensors; -1 is a threshold that was never measured."""
    threshold = float(np.max(host(sae.extra.get("threshold", -1.0))))
    return {
        "b_dec": host(sae.b_dec),
        "k": np.array(sae.k, np.int32),
        "threshold": np.array(threshold, np.float32),
        "encoder.bias": _b_enc(sae, sae.b_dec),
    } | _linear(sae)


def _matryoshka(sae: SAE) -> dict[str, np.ndarray]:
    sizes = [size for size in sae.groups if size] or [sae.n_latents]  # the class wants positive ones
    plain = {"W_enc": host(sae.W_enc), "b_enc": _b_enc(sae, sae.b_dec), "W_dec": host(sae.W_dec)}
    buffers = {name: _topk(sae)[name] for name in ("b_dec", "k", "threshold")}
    return plain | buffers | {"group_sizes": np.array(sizes, np.int64)}


def _jumprelu(sae: SAE) -> dict[str, np.ndarray]:
    return {
        "W_enc": host(sae.W_enc),
        "b_enc": _b_enc(sae),
        "W_dec": host(sae.W_dec),
        "b_dec": host(sae.b_dec),
        "threshold": _each(sae, "threshold"),
    }


def _b_enc(sae: SAE, centre: Any = None) -> np.ndarray:
    """b_enc (M,) for a class that subtracts `centre` (D,), or nothing."""
    return host(recentred_bias(sae, np.zeros(sae.d_in) if centre is None else host(centre)))


def _each(sae: SAE, name: str) -> np.ndarray:
    return np.broadcast_to(host(sae.extra[name]), (sae.n_latents,))


class Class(NamedTuple):
    """A dictionary class: its tensors of an SAE, and the trainer whose product SAEBench takes it for."""

    tensors: Callable[[SAE], dict[str, np.ndarray]]
    trainer: str


CLASSES = {
    "AutoEncoder": Class(_autoencoder, "StandardTrainer"),
    "AutoEncoderNew": Class(_autoencoder_new, "StandardTrainerAprilUpdate"),
    "GatedAutoEncoder": Class(_gated, "GatedSAETrainer"),
    "AutoEncoderTopK": Class(_topk, "TopKTrainer"),
    "BatchTopKSAE": Class(_topk, "BatchTopKTrainer"),
    "MatryoshkaBatchTopKSAE": Class(_matryoshka, "MatryoshkaBatchTopKTrainer"),
    "JumpReluAutoEncoder": Class(_jumprelu, "JumpReluTrainer"),
}


def _trainer(sae: SAE, name: str) -> dict[str, Any]:
    """config.json's record of the training run, as far as it is known."""
    info = sae.info
    return {
        "trainer_class": CLASSES[name].trainer,
        "dict_class": name,
        "activation_dim": sae.d_in,
        "dict_size": sae.n_latents,
        "layer": info.layer_index,
        "lm_name": info.model_name,
        "submodule_name": _submodule(info),
    } | known(
        {
            "k": sae.k if name in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE") else None,
            "l1_penalty": info.lam_train if name in ("AutoEncoder", "AutoEncoderNew") else None,
        }
    )


def _submodule(info: Info) -> str:
    """`resid_post_layer_8`, as the library's own runs are named; TransformerLens' name for other hooks."""
    if info.hook in ("resid_pre", "resid_post", "mlp_out", "attn_out") and info.layer_index is not None:
        return f"{info.hook}_layer_{info.layer_index}"
    return transformer_lens_name(info.hook, info.layer_index)


def _torch_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """What torch.save writes of a state_dict, each array in its own type."""
    try:
        import torch
    except ImportError:
        raise AmortjaxError(
            "writing the dictionary_learning format needs torch: pip install 'amortjax[export]', or write "
            "format='saelens' or 'native'"
        ) from None

    buffer = io.BytesIO()
    # Copies: torch saves whole storages, and these are contiguous.
    torch.save({name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}, buffer)
    return buffer.getvalue()
