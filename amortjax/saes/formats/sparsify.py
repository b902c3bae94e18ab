"""Reader of EleutherAI/sparsify: `RUN/HOOKPOINT/sae.safetensors` beside `cfg.json`, with `RUN/config.json` above.

    c = x - b_dec, but x itself if `transcode`;  z = relu(c @ W_enc + b_enc) on the k largest ("topk"), or on the
    largest of each of k equal groups ("groupmax");  y = z @ W_dec + b_dec [+ x @ W_skip]

Files of 2024 know neither transcode nor skip_connection, and with `signed` keep the k largest in magnitude.
`normalize_decoder` is about training.
"""

from pathlib import Path
from typing import Any

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import agree, axes, setting
from amortjax.saes.formats.common import build
from amortjax.saes.formats.hooks import Site, site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

CHOICES = ("k",)
CONFIG = "cfg.json"
TENSORS = {"encoder.weight": "MD", "encoder.bias": "M", "W_dec": "MD", "b_dec": "D"}
SKIP = {"W_skip": "DD"}
# What a transcoder reads is the input of the module whose output an SAE of that name reads.
INPUTS = {"resid_post": "resid_pre", "mlp_out": "mlp_in", "attn_out": "attn_in"}


def detect(opened: Opened) -> bool:
    """Whether it is a .safetensors with torch's encoder and sparsify's own names for the decoder."""
    keys = opened.keys
    return opened.path.suffix == ".safetensors" and (
        keys >= TENSORS.keys() or ("encoder.weight" in keys and bool(keys & {"W_dec", "b_dec"}))
    )


def load(opened: Opened, k: int | None = None) -> SAE:
    """Reads `sae.safetensors`; `k`: how many latents fire, instead of cfg.json's."""
    path, file = opened.path, opened.path.with_name(CONFIG)
    config = opened.json(CONFIG)
    if not config:
        raise CheckpointError(f"{file}: missing or empty; it says how the SAE encodes: copy the whole folder")
    transcode = setting(file, config, "transcode", bool, False)
    skip = SKIP if setting(file, config, "skip_connection", bool, False) else {}
    sizes = axes(opened, TENSORS | skip)
    _check_sizes(file, config, sizes)
    settings = _activation(path, config, sizes["M"], setting(path, {"k": k}, "k", int, None))
    bias = opened.array("b_dec")
    sae = build(
        settings.pop("variant"), opened.array("encoder.weight", transpose=True), opened.array("encoder.bias"),
        opened.array("W_dec"), bias, None if transcode else bias,
        {key: opened.array(key, transpose=True) for key in skip}, info=_info(path, opened, transcode), **settings,
    )  # fmt: skip
    return check(sae, str(path))


def _check_sizes(file: Path, config: dict[str, Any], sizes: dict[str, int]) -> None:
    d, m = sizes["D"], sizes["M"]
    # 0 stands for expansion_factor times d_in.
    latents = setting(file, config, "num_latents", int, 0) or d * setting(
        file, config, "expansion_factor", int, 0
    )
    agree(file, "d_in", setting(file, config, "d_in", int, d), d)
    agree(file, "num_latents (or expansion_factor times d_in)", latents or m, m)


def _activation(path: Path, config: dict[str, Any], m: int, chosen: int | None) -> dict[str, Any]:
    """Variant and numbers, as `build` takes them."""
    file = path.with_name(CONFIG)
    name = setting(file, config, "activation", str, "topk")
    signed = setting(file, config, "signed", bool, False)
    k = chosen if chosen is not None else setting(file, config, "k", int, None)
    if k is None or not 0 < k <= m:
        raise CheckpointError(
            f"{path}: k is {k}; wanted from 1 to {m}, the number of latents: load it with k=..."
        )
    if name == "topk":
        return {"variant": "abs_topk" if signed else "topk", "k": k}
    if name != "groupmax" or signed:
        what = f"{name!r} with signed codes" if signed else repr(name)[:80]
        raise CheckpointError(f"{file}: activation {what} is not supported; known: topk, groupmax")
    if m % k:
        raise CheckpointError(f"{path}: k is {k}; groupmax needs one that divides the {m} latents")
    return {"variant": "loca", "groups": (m // k,) * k, "group_k": (1,) * k}


def _info(path: Path, opened: Opened, transcode: bool) -> Info:
    folder, run = path.absolute().parent.name, path.absolute().parent.parent
    place, notes = site(folder), ()
    if place == Site(folder):  # not a name of a place
        place = Site()
    if transcode:
        notes = (f"a transcoder: from the input of {folder} to its output",)
        place = Site(INPUTS.get(place.hook, place.hook), place.layer)
    model = setting(run / "config.json", opened.json("config.json", run), "model", str, "")
    return Info(
        folder, str(path), "sparsify", model, place.layer, place.hook, notes=notes, transcoder=transcode
    )
