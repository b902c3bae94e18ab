"""Reader of saprmarks/dictionary_learning: `ae.pt` (a torch state_dict) beside `config.json`, or a snapshot
`checkpoints/ae_{step}.pt` below it.

Also the files of the SAEBench suite, and others with the same tensors (qresearch's SAE of DeepSeek-R1). Each dictionary
class has a function from its tensors to an SAE; torch's Linear layers keep weights as (out, in), so they are transposed
here and nowhere else.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes, setting
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.dictionary_learning_config import class_name, config_file, info
from amortjax.saes.formats.opened import Opened, read_json
from amortjax.saes.formats.tensors import Tensor
from amortjax.saes.sae import SAE, unit_decoder, unscale_input

CHOICES = ("dict_class", "k", "threshold", "normalize_decoder", "norm_factor", "batch_rule")
BACKUP = {"step", "ae", "optimizer", "config", "norm_factor"}
UNMEASURED = (
    "its threshold is negative: training ended before it was measured, and with it every positive pre-activation would "
    "fire"
)


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


def _threshold(t: Opened) -> np.ndarray:
    if t.shape("threshold") != ():
        raise CheckpointError(f"{t.path}: threshold has shape {t.shape('threshold')}; wanted a single number")
    return t.array("threshold")


def _topk(t: Opened) -> SAE:
    """Per-row top-k; the stored threshold is used only if asked for (choice `threshold=True`)."""
    (w_enc, w_dec), bias = _linear(t), t.array("b_dec")
    return build("topk", w_enc, t.array("encoder.bias"), w_dec, bias, bias, k=_k(t))


def _batch_topk(t: Opened) -> SAE:
    extra = {"threshold": jnp.asarray(_threshold(t))}
    return dataclasses.replace(_topk(t), variant="batch_topk", extra=extra)


def _matryoshka(t: Opened) -> SAE:
    bias, groups = t.array("b_dec"), tuple(int(size) for size in t.integers("group_sizes").reshape(-1))
    return build(
        "matryoshka", t.array("W_enc"), t.array("b_enc"), t.array("W_dec"), bias, bias,
        {"threshold": _threshold(t)}, k=_k(t), groups=groups,
    )  # fmt: skip


def _jumprelu(t: Opened) -> SAE:
    """b_dec is not subtracted before encoding (a run-time attribute of the class that no file stores)."""
    w_enc, b_enc, w_dec, b_dec = (t.array(key) for key in ("W_enc", "b_enc", "W_dec", "b_dec"))
    return build("jumprelu", w_enc, b_enc, w_dec, b_dec, None, {"threshold": t.array("threshold")})


_LINEAR = {"encoder.weight": "MD", "encoder.bias": "M", "decoder.weight": "DM"}
_PLAIN = {"W_enc": "DM", "b_enc": "M", "W_dec": "MD", "b_dec": "D"}


@dataclasses.dataclass(frozen=True)
class Class:
    """`tensors`: their axes, as `axes` takes them; `numbers`: what else is needed; `optional`: what files of mid-2024
    may lack."""

    convert: Callable[[Opened], SAE]
    tensors: dict[str, str]
    numbers: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


# AutoEncoderTopK and BatchTopKSAE have the same keys.
CLASSES = {
    "AutoEncoder": Class(_autoencoder, _LINEAR | {"bias": "D"}),
    "AutoEncoderNew": Class(_autoencoder_new, _LINEAR | {"decoder.bias": "D"}),
    "GatedAutoEncoder": Class(
        _gated,
        {"encoder.weight": "MD", "decoder.weight": "DM", "decoder_bias": "D"}
        | dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), "M"),
    ),
    "AutoEncoderTopK": Class(_topk, _LINEAR | {"b_dec": "D"}, optional=frozenset({"k", "threshold"})),
    "BatchTopKSAE": Class(_batch_topk, _LINEAR | {"b_dec": "D"}, frozenset({"threshold"}), frozenset({"k"})),
    "MatryoshkaBatchTopKSAE": Class(
        _matryoshka, _PLAIN | {"group_sizes": "G"}, frozenset({"threshold"}), frozenset({"k"})
    ),
    "JumpReluAutoEncoder": Class(_jumprelu, _PLAIN | {"threshold": "M"}),
}


def _classes_with(opened: Opened) -> list[str]:
    """The classes that have these tensors."""
    found = []
    for name, known in CLASSES.items():
        needed = known.tensors.keys() | known.numbers
        if not needed <= opened.keys <= needed | known.optional:
            continue
        # A single threshold is another library's.
        vector = name != "JumpReluAutoEncoder" or (
            opened.is_tensor("threshold") and opened.shape("threshold") != ()
        )
        found += [name] if vector else []
    return found


def _state_dict(opened: Opened) -> Opened:
    """The tensors, out of a backup if it is one. Files of mid-2024 have the decoder as a bare matrix (M, D)."""
    tensors = opened.within("ae") if opened.keys == BACKUP else opened
    bare = tensors.content.get("decoder") if "decoder" in tensors.keys else None
    if not isinstance(bare, Tensor) or len(bare.shape) != 2 or "decoder.weight" in tensors.keys:
        return tensors
    linear = dataclasses.replace(bare, shape=bare.shape[::-1], swapped=not bare.swapped)
    rest = {key: value for key, value in tensors.content.items() if key != "decoder"}
    return dataclasses.replace(tensors, content=rest | {"decoder.weight": linear})


def detect(opened: Opened) -> bool:
    """Whether it has the keys of one of the classes."""
    return opened.path.suffix in (".pt", ".pth") and bool(_classes_with(_state_dict(opened)))


def main_file(path: Path) -> Path:
    """The SAE that a snapshot of its training belongs to."""
    final = path.parent.parent / "ae.pt"
    return final if path.parent.name == "checkpoints" and final.is_file() else path


def load(opened: Opened, **choices: Any) -> SAE:
    """Reads `ae.pt`; choices (all optional): `dict_class`, `k`, `batch_rule`, `normalize_decoder`
    (AutoEncoder rows to norm 1, as load_dictionary does), `threshold` (a number, or True for the stored
    one, instead of top-k), `norm_factor` (what activations were divided by in training; a backup's own by
    default, 1 = leave as it is).
    """
    path, tensors = opened.path, _state_dict(opened)
    file = config_file(path)
    config = read_json(file)
    trainer = setting(file, config, "trainer", dict, {})
    said = setting(path, choices, "dict_class", str, None) or setting(file, trainer, "dict_class", str, None)
    name = class_name(said) if said else _only_class(path, tensors)
    sae = _convert(path, name, tensors)
    stored = tensors.array("threshold") if tensors.content.get("threshold") is not None else None
    sae = _choose_rule(path, sae, stored, choices, setting(file, trainer, "k", int, None))
    factor = setting(path, choices, "norm_factor", float, None)
    backup = opened.keys == BACKUP
    if backup and factor is None and opened.content["norm_factor"] is not None:
        factor = float(opened.array("norm_factor").reshape(()))
    if factor is not None and not 0 < factor < float("inf"):
        raise CheckpointError(f"{path}: norm_factor is {factor}; inputs are divided by a positive number")
    if backup:
        sae = unscale_input(sae, factor if factor is not None else 1.0)
    sae = dataclasses.replace(sae, info=info(path, config, name, factor, sae))
    if setting(path, choices, "normalize_decoder", bool, False):
        sae = unit_decoder(sae)
    return check(sae, str(path))


def _only_class(path: Path, tensors: Opened) -> str:
    names = _classes_with(tensors)
    if len(names) == 1:
        return names[0]
    raise CheckpointError(
        f"{path}: {' and '.join(names) or 'no known class'} would have these tensors and there is no "
        f"config.json to tell: load it with dict_class=..., one of {', '.join(names or CLASSES)}"
    )


def _convert(path: Path, name: str, tensors: Opened) -> SAE:
    if name not in CLASSES:
        raise CheckpointError(f"{path}: dict_class {name!r:.80} is not one of {', '.join(CLASSES)}")
    known = CLASSES[name]
    missing = sorted((known.tensors.keys() | known.numbers) - tensors.keys)
    if missing:
        raise CheckpointError(f"{path}: tensor {missing[0]!r} is missing, which {name} needs")
    axes(tensors, known.tensors, known=known.numbers | known.optional)
    return known.convert(tensors)


def _choose_rule(path: Path, sae: SAE, stored: Any, choices: dict, config_k: int | None) -> SAE:
    """Top-k, threshold or batch rule, as the file and the choices say."""
    ranked = sae.variant in ("topk", "batch_topk", "matryoshka")
    chosen = setting(path, choices, "k", int, None)
    if chosen is not None and not ranked:
        raise CheckpointError(f"{path}: a {sae.variant} SAE takes no k")
    k = next((k for k in (chosen, sae.k, config_k) if k is not None), None) if ranked else None
    sae = dataclasses.replace(sae, k=k)
    batched = sae.variant in ("batch_topk", "matryoshka")
    if choices.get("threshold") is not None and choices["threshold"] is not False:
        return _with_threshold(path, sae, stored, choices["threshold"])
    rule = setting(path, choices, "batch_rule", bool, None)
    if rule and not batched:
        raise CheckpointError(
            f"{path}: batch_rule is for BatchTopKSAE and MatryoshkaBatchTopKSAE, not {sae.variant}"
        )
    # A negative threshold is the initial -1: training stopped before it was measured. With it every positive
    # pre-activation would fire, which is not the SAE that was trained.
    if batched and not rule and float(sae.extra["threshold"]) < 0:
        sae = _noted(
            sae, loud(path, UNMEASURED + ("" if rule is False else "; the k * N largest of a batch do"))
        )
        return dataclasses.replace(sae, batch_rule=rule is None)
    return dataclasses.replace(sae, batch_rule=True) if rule else sae


def _with_threshold(path: Path, sae: SAE, stored: Any, wanted: Any) -> SAE:
    """The SAE with one threshold instead of top-k; `wanted`: the number, or True for the stored one."""
    value = stored if wanted is True else setting(path, {"threshold": wanted}, "threshold", float, None)
    if value is None or sae.variant not in ("topk", "jumprelu", "batch_topk", "matryoshka"):
        raise CheckpointError(
            f"{path}: a {sae.variant} SAE without a stored threshold takes no threshold=True"
        )
    variant = "batch_topk" if sae.variant == "topk" else sae.variant
    shape = sae.extra["threshold"].shape if sae.variant == "jumprelu" else ()
    if wanted is True and sae.variant != "jumprelu" and float(np.asarray(value).reshape(())) < 0:
        sae = _noted(sae, loud(path, UNMEASURED))
    threshold = jnp.broadcast_to(jnp.asarray(value, jnp.float32), shape)
    return dataclasses.replace(sae, variant=variant, extra=sae.extra | {"threshold": threshold})


def _noted(sae: SAE, note: str) -> SAE:
    return dataclasses.replace(sae, info=dataclasses.replace(sae.info, notes=(*sae.info.notes, note)))
