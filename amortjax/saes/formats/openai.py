"""Reader of openai/sparse_autoencoder: `LOCATION/autoencoders/LAYER.pt`, a state_dict with the activation's name in it.

    ReLU (versions 1 and 4):  z = relu((x - pre_bias) @ W_enc + latent_bias);  y = z @ W_dec + pre_bias
    TopK (version 5): the same of the layer-normed x, the k largest kept, then ReLU ("postact_fn"; Identity leaves their
    sign); y in the units of x again. That x is normed is not stored: it goes with TopK.

A tied SAE has the encoder's weight for a decoder. The file may hold the state of `activation` a second time.
"""

import itertools
import re
from pathlib import Path
from typing import Any

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes
from amortjax.saes.formats.common import build
from amortjax.saes.formats.hooks import Site, site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

CHOICES = ("k",)
TENSORS = {"encoder.weight": "MD", "pre_bias": "D", "latent_bias": "M"}
DECODER, TIED = {"decoder.weight": "DM"}, {"decoder.linear.weight": "MD"}
STATE, AGAIN = "activation_state_dict", ("activation.k", "activation.postact_fn")
# Of training; not read.
RECORDS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
AFTER = {"ReLU": "topk", "Identity": "signed_topk"}
LOCATIONS = {
    "resid_post_mlp": "hook_resid_post",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_delta_attn": "hook_attn_out",
    "mlp_post_act": "mlp.hook_post",
}


def detect(opened: Opened) -> bool:
    """Whether it has the two biases of OpenAI's names."""
    return opened.path.suffix in (".pt", ".pth") and opened.keys >= {"pre_bias", "latent_bias"}


def load(opened: Opened, k: Any = None) -> SAE:
    """Reads `LAYER.pt`; `k`: how many latents fire, instead of the file's."""
    tied = next(iter(TIED)) in opened.keys
    known = frozenset({"activation", STATE, *AGAIN, *RECORDS})
    axes(opened, TENSORS | (TIED if tied else DECODER), known=known)
    settings, bias = _activation(opened, k), opened.array("pre_bias")
    w_dec = opened.array("decoder.linear.weight") if tied else opened.array("decoder.weight", transpose=True)
    sae = build(
        settings.pop("variant"), opened.array("encoder.weight", transpose=True), opened.array("latent_bias"),
        w_dec, bias, bias, info=_info(opened.path), **settings,
    )  # fmt: skip
    return check(sae, str(opened.path))


def _activation(opened: Opened, chosen: Any) -> dict[str, Any]:
    """Variant and numbers, as `build` takes them."""
    path, name = opened.path, opened.content.get("activation", "ReLU")
    if name == "ReLU":
        if chosen is not None:
            raise CheckpointError(f"{path}: its activation is ReLU, which takes no k")
        return {"variant": "standard"}
    if name != "TopK":
        raise CheckpointError(f"{path}: activation {name!r:.80} is not supported; known: ReLU, TopK")
    after = _state(opened, "postact_fn", "ReLU")
    if not isinstance(after, str) or after not in AFTER:
        raise CheckpointError(f"{path}: TopK's postact_fn {after!r:.80} is not one of {', '.join(AFTER)}")
    found = chosen if chosen is not None else _state(opened, "k", None)
    k = None if found is None else Opened(path, {"k": found}).integer("k")
    return {"variant": AFTER[after], "k": k, "norm": "layer_norm"}


def _state(opened: Opened, key: str, default: Any) -> Any:
    """An entry of the activation's state, which may be there twice."""
    inside, outside = opened.content.get(STATE), f"activation.{key}"
    found = [inside[key]] if isinstance(inside, dict) and key in inside else []
    found += [opened.content[outside]] if outside in opened.keys else []
    if not all(isinstance(value, int | str) for value in found) or len(set(found)) > 1:
        raise CheckpointError(
            f"{opened.path}: {STATE}.{key} and {outside} are odd or differ; copy the file again"
        )
    return found[0] if found else default


def _info(path: Path) -> Info:
    layer, hook, model, name = re.fullmatch(r"\d{1,4}", path.stem), "", "", path.stem
    parts = path.absolute().parent.parts
    for above, part in itertools.pairwise(parts):
        found = re.fullmatch(rf"({'|'.join(LOCATIONS)})(_v\d\w*)?", part)
        if found:
            hook, name = LOCATIONS[found.group(1)], f"{part}_{path.stem}"
            model = above if above.startswith("gpt2") else ""
    place = (
        site(f"blocks.{path.stem}.{hook}") if layer and hook else Site("", int(path.stem) if layer else None)
    )
    return Info(name, str(path), "openai", model, place.layer, place.hook)
