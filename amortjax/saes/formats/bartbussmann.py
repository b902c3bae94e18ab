"""Reader of bartbussmann/BatchTopK and bartbussmann/matryoshka_sae: `sae.pt` beside `config.json`.

    vanilla:    z = relu((x' - b_dec) @ W_enc + b_enc)
    topk:       a = relu((x' - b_dec) @ W_enc), the top_k largest of a token; b_enc is in the file but not used
    batchtopk, global-matryoshka-topk:  the same a, where a > threshold; BatchTopK's files have no threshold: the
                top_k * N largest of a batch of N
    jumprelu:   a = relu(x' @ W_enc + b_enc), where a > exp(log_threshold); b_dec is not subtracted
    y = z @ W_dec + b_dec

x' is x, or with `input_unit_norm` the layer-normed x, and then y is in the units of x again.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import agree, axes, block, exponential, setting
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

CHOICES = ("k", "threshold", "batch_rule")
CONFIG = "config.json"
TENSORS = {"W_enc": "DM", "b_enc": "M", "W_dec": "MD", "b_dec": "D"}
LOG = {"jumprelu.log_threshold": "M"}
TYPES = {
    "vanilla": "standard",
    "topk": "topk",
    "batchtopk": "batch_topk",
    "batch-topk": "batch_topk",
    "global-matryoshka-topk": "matryoshka",
    "jumprelu": "jumprelu",
}
BATCHED = ("batch_topk", "matryoshka")
NO_THRESHOLD = (
    "it stores no threshold, so the k * N largest of a whole batch fire: codes depend on the batch; threshold=... "
    "stands in for it"
)
UNMEASURED = (
    "its threshold is 0, where training starts: every positive pre-activation fires; batch_rule=True is top-k"
)


def detect(opened: Opened) -> bool:
    """Whether it is a `.pt` with these tensors beside a config.json with this library's names for its sizes."""
    known = {*TENSORS, *LOG, "threshold"}
    if opened.path.suffix != ".pt" or not {"W_enc", "W_dec"} <= opened.keys <= known:
        return False
    return opened.json(CONFIG).keys() >= {"act_size", "sae_type"}


def load(opened: Opened, **choices: Any) -> SAE:
    """Reads `sae.pt`; choices: `k`, instead of top_k; `threshold` (a number) and `batch_rule` (true or false) of the
    batched kinds."""
    path, config = opened.path, opened.json(CONFIG)
    file = path.with_name(CONFIG)
    kind = setting(file, config, "sae_type", str, "")
    if kind not in TYPES:
        raise CheckpointError(f"{file}: sae_type is {kind!r:.80}; known: {', '.join(TYPES)}")
    variant = TYPES[kind]
    batched = {"threshold": ""} if variant in BATCHED else None
    sizes = _axes(opened, variant, batched)
    for key, axis in (("act_size", "D"), ("dict_size", "M")):
        agree(file, key, setting(file, config, key, int, sizes[axis]), sizes[axis])
    normed = setting(file, config, "input_unit_norm", bool, None)
    if normed is None:
        raise CheckpointError(
            f"{file}: input_unit_norm is missing; it says whether inputs are normalised, true or false"
        )
    rule, extra, notes = _rule(opened, variant, choices, config)
    bias = opened.array("b_dec")
    sae = build(
        variant, opened.array("W_enc"), opened.array("b_enc") if variant in ("standard", "jumprelu") else None,
        opened.array("W_dec"), bias, None if variant == "jumprelu" else bias, extra,
        groups=_groups(file, config) if variant == "matryoshka" else (), norm="layer_norm" if normed else "none",
        info=_info(path, config, notes), **rule,
    )  # fmt: skip
    return check(sae, str(path))


def _axes(opened: Opened, variant: str, batched: dict[str, str] | None) -> dict[str, int]:
    if batched and "threshold" in opened.keys and opened.shape("threshold") != ():
        raise CheckpointError(
            f"{opened.path}: threshold has shape {opened.shape('threshold')}; wanted a single number"
        )
    known = frozenset(batched or ())
    return axes(opened, TENSORS | (LOG if variant == "jumprelu" else {}), known=known)


def _rule(
    opened: Opened, variant: str, choices: dict[str, Any], config: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """What fires: settings and arrays as `build` takes them, and what is to be said of it."""
    path, batched = opened.path, variant in BATCHED
    needless = [key for key in ("threshold", "batch_rule") if choices.get(key) is not None and not batched]
    needless += ["k"] if choices.get("k") is not None and variant in ("standard", "jumprelu") else []
    if needless:
        raise CheckpointError(f"{path}: a {variant} SAE takes no {needless[0]}")
    if variant == "standard":
        return {}, {}, []
    if variant == "jumprelu":
        return {}, {"threshold": exponential(opened, "jumprelu.log_threshold")}, []
    k = setting(path, choices, "k", int, setting(path.with_name(CONFIG), config, "top_k", int, None))
    if not batched:
        return {"k": k}, {}, []
    threshold = setting(path, choices, "threshold", float, None)
    if threshold is None and "threshold" in opened.keys:
        threshold = float(opened.array("threshold"))
    wanted = setting(path, choices, "batch_rule", bool, None)
    if threshold is None and (wanted is False or (wanted is None and config["sae_type"] != "batchtopk")):
        raise CheckpointError(
            f"{path}: threshold is missing: give threshold=..., or batch_rule=True to do without"
        )
    by_batch, notes = threshold is None if wanted is None else wanted, []
    if threshold is None and wanted is None:
        notes = [loud(path, NO_THRESHOLD)]
    elif threshold is not None and threshold <= 0 and not by_batch:
        notes = [loud(path, UNMEASURED)]
    extra = {} if threshold is None else {"threshold": np.array(threshold, np.float32)}
    return {"k": k, "batch_rule": by_batch}, extra, notes


def _groups(file: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """group_sizes: a list, which the library writes as text."""
    said = config.get("group_sizes")
    try:
        sizes = json.loads(said) if isinstance(said, str) else said
    except (ValueError, RecursionError):
        sizes = None
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int for size in sizes):
        raise CheckpointError(f"{file}: group_sizes is {said!r:.80}; wanted a list of whole numbers")
    return tuple(sizes)


def _info(path: Path, config: dict[str, Any], notes: list[str]) -> Info:
    file = path.with_name(CONFIG)
    place = site(setting(file, config, "hook_point", str, ""))
    layer = block(file, config, "layer", place.layer)
    name = setting(file, config, "name", str, "") or path.absolute().parent.name
    model = setting(file, config, "model_name", str, "")
    return Info(name, str(path), "bartbussmann", model, layer, place.hook, notes=tuple(notes))
