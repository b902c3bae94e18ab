"""Reader of saprmarks/dictionary_learning: `ae.pt` (a torch state_dict) beside `config.json`.

Also the files of the SAEBench suite. Each dictionary class has a function from its tensors to an SAE; torch's
Linear layers keep weights as (out, in), so they are transposed here and nowhere else.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.common import build
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.opened import Opened, read_json
from amortjax.saes.sae import SAE, Info, unit_decoder, unscale_input

CHOICES = ("dict_class", "k", "threshold", "normalize_decoder", "norm_factor", "batch_rule")
BACKUP = {"step", "ae", "optimizer", "config", "norm_factor"}


def _linear(t: Opened) -> tuple[np.ndarray, np.ndarray]:
    return t.array("encoder.weight", transpose=True), t.array("decoder.weight", transpose=True)


def _autoencoder(t: Opened) -> SAE:
    """Its `bias` is b_dec: subtracted before encoding, added after decoding."""
    (w_enc, w_dec), bias = _linear(t), t.array("bias")
    return build("standard", w_enc, t.array("encoder.bias"), w_dec, bias, bias)


def _autoencoder_new(t: Opened) -> SAE:
    w_enc, w_dec = _linear(t)
    return build("standard", w_enc, t.array("encoder.bias"), w_dec, t.array("decoder.bias"), None)


def _gated(t: Opened) -> SAE:
    (w_enc, w_dec), bias = _linear(t), t.array("decoder_bias")
    extra = {"r_mag": t.array("r_mag"), "b_gate": t.array("gate_bias"), "b_mag": t.array("mag_bias")}
    return build("gated", w_enc, None, w_dec, bias, bias, extra)


def _k(t: Opened) -> int | None:
    return t.integer("k") if "k" in t.keys and t.content["k"] is not None else None


def _topk(t: Opened) -> SAE:
    """Per-row top-k; the stored threshold is used only if asked for (choice `threshold=True`)."""
    (w_enc, w_dec), bias = _linear(t), t.array("b_dec")
    return build("topk", w_enc, t.array("encoder.bias"), w_dec, bias, bias, k=_k(t))


def _batch_topk(t: Opened) -> SAE:
    extra = {"threshold": jnp.asarray(t.array("threshold"))}
    return dataclasses.replace(_topk(t), variant="batch_topk", extra=extra)


def _matryoshka(t: Opened) -> SAE:
    bias, groups = t.array("b_dec"), tuple(int(size) for size in t.integers("group_sizes").reshape(-1))
    return build(
        "matryoshka", t.array("W_enc"), t.array("b_enc"), t.array("W_dec"), bias, bias,
        {"threshold": t.array("threshold")}, k=_k(t), groups=groups,
    )  # fmt: skip


def _jumprelu(t: Opened) -> SAE:
    """b_dec is not subtracted before encoding (a run-time attribute of the class that no file stores)."""
    w_enc, b_enc, w_dec, b_dec = (t.array(key) for key in ("W_enc", "b_enc", "W_dec", "b_dec"))
    return build("jumprelu", w_enc, b_enc, w_dec, b_dec, None, {"threshold": t.array("threshold")})


class _Keys:
    """Keys that tell the classes apart. AutoEncoderTopK and BatchTopKSAE have the same."""

    linear = frozenset({"encoder.weight", "encoder.bias", "decoder.weight"})
    plain = frozenset({"W_enc", "b_enc", "W_dec", "b_dec", "threshold"})


CLASSES: dict[str, tuple[frozenset[str], Callable[[Opened], SAE]]] = {
    "AutoEncoder": (_Keys.linear | {"bias"}, _autoencoder),
    "AutoEncoderNew": (_Keys.linear | {"decoder.bias"}, _autoencoder_new),
    "GatedAutoEncoder": (
        frozenset({"decoder_bias", "r_mag", "gate_bias", "mag_bias", "encoder.weight", "decoder.weight"}),
        _gated,
    ),
    # Files of mid-2024 have no `k` or no `threshold`.
    "AutoEncoderTopK": (_Keys.linear | {"b_dec"}, _topk),
    "BatchTopKSAE": (_Keys.linear | {"b_dec", "threshold"}, _batch_topk),
    "MatryoshkaBatchTopKSAE": (_Keys.plain | {"group_sizes"}, _matryoshka),
    "JumpReluAutoEncoder": (_Keys.plain, _jumprelu),
}
OPTIONAL = {"k", "threshold"}


def _classes_with(keys: frozenset[str]) -> list[str]:
    return [name for name, (needed, _) in CLASSES.items() if needed <= keys <= needed | OPTIONAL]


def _state_dict(opened: Opened) -> Opened:
    return opened.within("ae") if opened.keys == BACKUP else opened


def detect(opened: Opened) -> bool:
    """Whether it has the keys of one of the classes."""
    return opened.path.suffix == ".pt" and bool(_classes_with(_state_dict(opened).keys))


def load(opened: Opened, **choices: Any) -> SAE:
    """Reads `ae.pt`; choices (all optional): `dict_class`, `k`, `batch_rule`, `normalize_decoder`
    (AutoEncoder rows to norm 1, as load_dictionary does), `threshold` (a number, or True for the stored
    one, instead of top-k), `norm_factor` (what activations were divided by in training; a backup's own by
    default, 1 = leave as it is).
    """
    path, config, tensors = opened.path, _config(opened.path), _state_dict(opened)
    trainer = config.get("trainer", {})
    name = choices.get("dict_class") or trainer.get("dict_class") or _only_class(path, tensors)
    sae = _convert(path, name, tensors)
    stored = tensors.array("threshold") if tensors.content.get("threshold") is not None else None
    sae = _choose_rule(path, sae, stored, choices, trainer.get("k"))
    factor = choices.get("norm_factor")
    if tensors is not opened:
        factor = factor if factor is not None else opened.content["norm_factor"]
        sae = unscale_input(sae, float(factor if factor is not None else 1.0))
    if choices.get("normalize_decoder"):
        sae = unit_decoder(sae)
    return check(dataclasses.replace(sae, info=_info(path, config, name, factor)), str(path))


def _config(path: Path) -> dict:
    """config.json of the SAE's folder, or of the one above for files in `checkpoints/`; {} if there is
    none."""
    for folder in (path.parent, path.parent.parent):
        file = folder / "config.json"
        if file.is_file():
            return read_json(file)
        if path.parent.name != "checkpoints":
            break
    return {}


def _only_class(path: Path, tensors: Opened) -> str:
    names = _classes_with(tensors.keys)
    if len(names) == 1:
        return names[0]
    raise CheckpointError(
        f"{path}: {' and '.join(names) or 'no known class'} would have these tensors and there is no "
        f"config.json to tell: load it with dict_class=..., one of {', '.join(names or CLASSES)}"
    )


def _convert(path: Path, name: str, tensors: Opened) -> SAE:
    if name not in CLASSES:
        raise CheckpointError(f"{path}: dict_class {name!r} is not one of {', '.join(CLASSES)}")
    needed, convert = CLASSES[name]
    missing = sorted(needed - tensors.keys)
    if missing:
        raise CheckpointError(f"{path}: tensor {missing[0]!r} is missing, which {name} needs")
    return convert(tensors)


def _choose_rule(path: Path, sae: SAE, stored: Any, choices: dict, config_k: int | None) -> SAE:
    """Top-k, threshold or batch rule, as the file and the choices say."""
    k = (
        choices.get("k")
        or sae.k
        or (config_k if sae.variant in ("topk", "batch_topk", "matryoshka") else None)
    )
    sae = dataclasses.replace(sae, k=int(k) if k is not None else None)
    batched = sae.variant in ("batch_topk", "matryoshka")
    wanted = choices.get("threshold")
    if wanted is not None and wanted is not False:
        value = stored if wanted is True else np.float32(wanted)
        if value is None or (sae.variant not in ("topk", "jumprelu") and not batched):
            raise CheckpointError(
                f"{path}: a {sae.variant} SAE without a stored threshold takes no threshold=True"
            )
        variant = "batch_topk" if sae.variant == "topk" else sae.variant
        shape = sae.extra["threshold"].shape if sae.variant == "jumprelu" else ()
        return dataclasses.replace(
            sae, variant=variant, extra=sae.extra | {"threshold": jnp.broadcast_to(jnp.asarray(value), shape)}
        )
    if choices.get("batch_rule") and not batched:
        raise CheckpointError(
            f"{path}: batch_rule is for BatchTopKSAE and MatryoshkaBatchTopKSAE, not {sae.variant}"
        )
    rule = choices.get("batch_rule")
    # A negative threshold is the initial -1: training stopped before it was measured. With it every positive
    # pre-activation would fire, which is not the SAE that was trained.
    if batched and (rule or (rule is None and float(sae.extra["threshold"]) < 0)):
        return dataclasses.replace(sae, batch_rule=True)
    return sae


def _info(path: Path, config: dict, name: str, factor: float | None) -> Info:
    trainer = config.get("trainer", {})
    hook, index = site(str(trainer.get("submodule_name", "")))
    layer = trainer.get("layer")
    # |e|^2 + l1 * sum z ||W|| in units of x / factor is |e|^2 + l1 * factor * sum z ||W|| in raw ones.
    l1, notes = trainer.get("l1_penalty"), []
    l1 = l1 if name in ("AutoEncoder", "AutoEncoderNew") else None  # a Gated SAE's penalty is on its gate
    lam = float(l1) * factor if l1 is not None and factor is not None else None
    if l1 is not None and lam is None:
        notes.append(
            f"trained with l1_penalty={l1} on activations whose scale the file does not record; pass "
            "norm_factor=... (1 if they were not normalised) for the penalty in raw units"
        )
    return Info(
        name=path.parent.name if path.name == "ae.pt" else path.stem,
        source=str(path),
        format="dictionary_learning",
        model_name=str(trainer.get("lm_name") or ""),
        layer_index=int(layer) if layer is not None else index,
        hook=hook,
        lam_train=lam,
        notes=(f"dict_class {name}", *notes),
    )
