"""Reader of Kissane's and Connor-Rob's SAEs of attention outputs: `X.pt` beside `X_cfg.json`.

    z = relu((x - b_dec) @ W_enc + b_enc);  y = z @ W_dec + b_dec

x is hook_z, its heads flattened: (n_heads * d_head,).
"""

import re
from pathlib import Path
from typing import Any

from amortjax.saes.checks import check
from amortjax.saes.formats.checked import agree, axes, block, setting
from amortjax.saes.formats.common import build
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

TENSORS = {"W_enc": "DM", "b_enc": "M", "W_dec": "MD", "b_dec": "D"}


def _config(opened: Opened) -> dict[str, Any]:
    return opened.json(f"{opened.path.stem}_cfg.json")


def detect(opened: Opened) -> bool:
    """Whether it has these tensors, and a `_cfg.json` of its own with the size of its input."""
    named = opened.path.suffix == ".pt" and {"W_enc", "W_dec"} <= opened.keys <= TENSORS.keys()
    return named and bool(_config(opened).keys() & {"act_size", "act_name"})


def load(opened: Opened) -> SAE:
    path, config = opened.path, _config(opened)
    file, sizes = path.with_name(f"{path.stem}_cfg.json"), axes(opened, TENSORS)
    for key, axis in (("act_size", "D"), ("dict_size", "M")):
        agree(file, key, setting(file, config, key, int, sizes[axis]), sizes[axis])
    bias = opened.array("b_dec")
    sae = build(
        "standard", opened.array("W_enc"), opened.array("b_enc"), opened.array("W_dec"), bias, bias,
        info=_info(path, file, config),
    )  # fmt: skip
    return check(sae, str(path))


def _info(path: Path, file: Path, config: dict[str, Any]) -> Info:
    place = site(setting(file, config, "act_name", str, ""))
    model = re.match(r"(.+?)_L\d+_", path.stem)
    layer = block(file, config, "layer", place.layer)
    return Info(path.stem, str(path), "kissane", model.group(1) if model else "", layer, place.hook)
