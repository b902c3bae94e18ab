"""Writer of SAELens' folder, version 6: cfg.json and sae_weights.safetensors, which `SAE.load_from_disk` and SAEBench
read. Orientation as here: W_enc (D, M), W_dec (M, D_out); W_skip is (D_out, D).

    standard, gated, topk, abs_topk, matching_pursuit   as themselves
    jumprelu, batch_topk, matryoshka                    jumprelu; the last two with their one threshold for each latent
    transcoders                                         transcoder, skip_transcoder, jumprelu_transcoder, ...

A pre_bias that is b_dec is apply_b_dec_to_input; any other is folded into the encoder's biases. f_dec goes into W_dec
(and so do the norms of `rescale`, but for topk and abstopk, which have that setting). Not kept: Info's name and most
notes, norm_factor, origin, avar.
"""

import ast
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

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

CHOICES = ("prepend_bos", "context_size")
WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
LAYOUT = "6.54.12"  # the version of SAELens whose files these are
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
ARCHITECTURES = {
    "standard": "standard", "topk": "topk", "abs_topk": "abstopk", "gated": "gated", "jumprelu": "jumprelu",
    "batch_topk": "jumprelu", "matryoshka": "jumprelu", "matching_pursuit": "matching_pursuit",
}  # fmt: skip
# What SAELens calls the class that trains it, where that is not the architecture.
TRAINED_AS = {"batch_topk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}
NOTED = (
    "prepend_bos",
    "context_size",
    "exclude_special_tokens",
    "hook_head_index",
    "hook_name_out",
    "seqpos_slice",
)
NO_CLASS = {
    "signed_topk": "its codes are the k largest pre-activations with their sign, and SAELens' topk has a ReLU",
    "loca": "SAELens has no architecture that limits how many latents of a group fire",
    "mlp": "SAELens has no architecture with a hidden layer",
}


def save(
    sae: SAE, path: str | os.PathLike, prepend_bos: bool | None = None, context_size: int | None = None
) -> Path:
    """Writes an SAE into the folder `path` and returns the path of sae_weights.safetensors.

    prepend_bos, context_size: how SAELens is to feed the language model; by default as the notes of a SAELens SAE
    say, else with a BOS token, as SAELens does. Raises AmortjaxError, with the reason, for an SAE that SAELens has no
    class for.
    """
    folder = Path(path)
    check(sae, str(folder))
    sae = one_group_as_topk(sae)
    architecture = _architecture(sae)
    if not ("topk" in architecture and "f_dec" not in sae.extra):
        sae = fold_decoder(sae)
    subtract = "transcoder" not in architecture and np.array_equal(host(sae.pre_bias), host(sae.b_dec))
    arrays = _tensors(sae, architecture, host(sae.b_dec) if subtract else np.zeros(sae.d_in))
    config = _config(sae, architecture, subtract)
    fed = known({"prepend_bos": prepend_bos, "context_size": context_size})
    config["metadata"] = _metadata(sae, architecture) | fed
    data = safetensors.numpy.save({name: host(array) for name, array in arrays.items()})
    return write_folder(folder, WEIGHTS, data, CONFIG, json.dumps(config, indent=1) + "\n")


def _architecture(sae: SAE) -> str:
    """SAELens' name for it; refuses what has none."""
    if sae.variant in NO_CLASS:
        refuse("saelens", NO_CLASS[sae.variant])
    refuse_batch_rule("saelens", sae)
    name = ARCHITECTURES[sae.variant]
    if name == "matching_pursuit":
        _check_pursuit(sae)
    if not is_transcoder(sae):
        return name
    if sae.norm != "none":
        refuse("saelens", f"its transcoders do not undo an input normalisation ({sae.norm})")
    names = {"standard": "", "jumprelu": "jumprelu_"}
    if name not in names:
        refuse("saelens", f"SAELens has no {name} transcoder")
    return f"{names[name]}{'skip_' if 'W_skip' in sae.extra else ''}transcoder"


def _check_pursuit(sae: SAE) -> None:
    """SAELens' matching pursuit is tied: W_enc = W_dec.T, and b_dec is subtracted as well as added."""
    if not np.array_equal(host(sae.W_enc), host(sae.W_dec).T):
        refuse("saelens", "its matching pursuit reads the input with W_dec, and W_enc is another matrix")
    if not np.array_equal(host(sae.pre_bias), host(sae.b_dec)):
        refuse(
            "saelens", "its matching pursuit subtracts b_dec from the input, and pre_bias is another vector"
        )
    if sae.rescale or "f_dec" in sae.extra:
        refuse("saelens", "its matching pursuit has no factors on the latents (rescale, f_dec)")


def _tensors(sae: SAE, architecture: str, centre: np.ndarray) -> dict[str, np.ndarray]:
    """The file's tensors, for an encoder that subtracts `centre` (D,)."""
    arrays = {"W_dec": host(sae.W_dec), "b_dec": host(sae.b_dec)}
    if architecture == "matching_pursuit":
        return arrays
    arrays["W_enc"] = host(sae.W_enc)
    if architecture == "gated":
        b_gate, b_mag = gate_biases(sae, centre)
        return arrays | {"b_gate": b_gate, "b_mag": b_mag, "r_mag": _each(sae, "r_mag")}
    arrays["b_enc"] = recentred_bias(sae, centre)
    if "jumprelu" in architecture:
        arrays["threshold"] = _each(sae, "threshold")
    if "skip" in architecture:
        arrays["W_skip"] = host(sae.extra["W_skip"]).T
    return arrays


def _each(sae: SAE, name: str) -> np.ndarray:
    """An array of `extra` with a value for each latent, (M,)."""
    return np.broadcast_to(host(sae.extra[name]), (sae.n_latents,))


def _config(sae: SAE, architecture: str, subtract: bool) -> dict[str, Any]:
    """cfg.json without its metadata."""
    # All heads side by side, which SAELens is given one by one.
    heads = sae.info.hook == "hook_z" and "transcoder" not in architecture
    heads = heads and _noted(sae.info, "hook_head_index") is None
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": bool(subtract),
        "normalize_activations": NORMS[sae.norm],
        "reshape_activations": "hook_z" if heads else "none",
    }
    if "topk" in architecture:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.rescale}
    if "transcoder" in architecture:
        config["d_out"] = sae.d_out
    if architecture == "matching_pursuit":
        config |= {
            "residual_threshold": float(sae.extra["residual_threshold"]),
            "max_iterations": int(sae.extra["max_iterations"]),
            "stop_on_duplicate_support": bool(sae.extra["stop_on_duplicate"] > 0),
        }
    return config


def _metadata(sae: SAE, architecture: str) -> dict[str, Any]:
    """Where it reads, and what is known of its training."""
    info, trained_as = sae.info, TRAINED_AS.get(sae.variant, architecture)
    # SAELens' widths are prefixes, ours are sizes; a jumprelu that has them was a matryoshka in training.
    widths = np.cumsum([size for size in sae.groups if size]).tolist()
    details = {"k": sae.k, "matryoshka_widths": widths or None, "l1_coefficient": info.lam_train}
    return {
        "sae_lens_version": LAYOUT,
        "sae_lens_training_version": None,
        "model_name": info.model_name or None,
        "hook_name": transformer_lens_name(info.hook, info.layer_index) or None,
        "hook_head_index": None,
        "model_from_pretrained_kwargs": {},
        "training_architecture": TRAINED_AS["matryoshka"] if widths else trained_as,
        "training_architecture_details": known(details),
        "prepend_bos": True,
    } | {key: value for key in NOTED if (value := _noted(info, key)) is not None}


def _noted(info: Info, key: str) -> Any:
    """A setting that SAELens' reader keeps as the note `key value`; None if there is no such note."""
    found = next((note for note in info.notes if note.startswith(f"{key} ")), "")
    try:
        return ast.literal_eval(found.removeprefix(f"{key} "))
    except (ValueError, SyntaxError):
        return None
