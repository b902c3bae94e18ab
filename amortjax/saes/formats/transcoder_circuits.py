"""Reader of jacobdunefsky/transcoder_circuits and the mats_sae_training it grew from (early SAELens): `.pt` or
`.pkl.gz` with {"cfg": a settings object, "state_dict": {...}}.

    z = relu((x - b_dec) @ W_enc + b_enc);  y = z @ W_dec + b_dec, for a transcoder + b_dec_out instead

A transcoder's b_dec (D,) and b_dec_out (D_out,) are two vectors. Of the settings object only its attributes are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import agree, axes, block, setting
from amortjax.saes.formats.common import build
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.formats.unpickler import StandIn
from amortjax.saes.sae import SAE, Info

TENSORS = {"W_enc": "DM", "b_enc": "M", "W_dec": "MO", "b_dec": "D"}
OUTPUT, SCALE = {"b_dec_out": "O"}, {"scaling_factor": "M"}
# What later versions of the library can do, and this reader can't; a setting must be one of these, or missing.
ONLY: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("relu", "standard", None),
    "activation_fn_str": ("relu", None),
    "architecture": ("standard", None),
    "normalize_activations": ("none", False, None),
    "apply_b_dec_to_input": (True, None),
}


def detect(opened: Opened) -> bool:
    """Whether it is a state_dict beside a settings object."""
    if opened.path.suffix not in (".pt", ".gz") or not opened.keys >= {"cfg", "state_dict"}:
        return False
    return isinstance(opened.content["cfg"], StandIn | dict) and isinstance(
        opened.content["state_dict"], Mapping
    )


def load(opened: Opened) -> SAE:
    path, config, tensors = opened.path, _config(opened.content["cfg"]), opened.within("state_dict")
    transcoder = setting(path, config, "is_transcoder", bool, False)
    sizes = axes(tensors, TENSORS | (OUTPUT if transcoder else {}), SCALE)
    if not transcoder and sizes["D"] != sizes["O"]:
        raise CheckpointError(
            f"{path}: W_dec has {sizes['O']} columns and b_dec {sizes['D']}; copy the file again"
        )
    for key, axis in (("d_in", "D"), ("d_sae", "M"), ("d_out", "O")):
        agree(path, f"cfg.{key}", setting(path, config, key, int, sizes[axis]), sizes[axis])
    for key, known in ONLY.items():
        if config.get(key) not in known:
            raise CheckpointError(
                f"{path}: cfg.{key} is {config[key]!r:.80}; here only {known[0]!r} is known"
            )
    bias = tensors.array("b_dec")
    factor = tensors.array("scaling_factor") if "scaling_factor" in tensors.keys else np.ones(1)
    sae = build(
        "standard", tensors.array("W_enc"), tensors.array("b_enc"), tensors.array("W_dec"),
        tensors.array("b_dec_out") if transcoder else bias, bias,
        {} if (factor == 1).all() else {"f_dec": factor}, info=_info(path, config, transcoder),
    )  # fmt: skip
    return check(sae, str(path))


def _config(cfg: Any) -> dict[str, Any]:
    """The settings that are plain values, whatever else the object holds."""
    attributes, plain = cfg.state if isinstance(cfg, StandIn) else cfg, {}
    for key, value in attributes.items():
        if isinstance(value, str | bool | float) or (type(value) is int and abs(value) < 2**63):
            plain[key] = value
        elif key in ONLY and value is not None:
            plain[key] = "an object"
    return plain


def _info(path: Path, config: dict[str, Any], transcoder: bool) -> Info:
    place = site(setting(path, config, "hook_point", str, ""))
    layer = block(path, config, "hook_point_layer", place.layer)
    notes = []
    if transcoder:
        to = setting(path, config, "out_hook_point", str, "another place")
        notes.append(f"a transcoder: from {config.get('hook_point', 'its hook')} to {to}")
    head = setting(path, config, "hook_point_head_index", int, None)
    notes += [] if head is None else [f"of head {head} alone"]
    name = path.name.removesuffix(".gz").removesuffix(".pkl").removesuffix(".pt")
    model = setting(path, config, "model_name", str, "")
    return Info(
        name, str(path), "transcoder_circuits", model, layer, place.hook, notes=tuple(notes), transcoder=transcoder
    )  # fmt: skip
