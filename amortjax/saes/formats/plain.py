"""Reader of weights that say nothing of themselves: W_enc and W_dec, maybe b_enc, b_dec and threshold, and no settings
that another reader knows.

Libraries that use these names differ in what they mean, so nothing is guessed. Choices say which axis of W_enc is D
(`d_model`), whether b_dec is subtracted from the input (`pre_bias`), how many latents of a token fire (`k`).
"""

from typing import Any

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import setting
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

CHOICES = ("d_model", "pre_bias", "k")
KEYS = frozenset({"W_enc", "W_dec", "b_enc", "b_dec", "threshold"})
RELU = "nothing says how many latents fire: read as ReLU; pass k=... if it is a TopK SAE"


def detect(opened: Opened) -> bool:
    """Whether it holds W_enc and W_dec and at most biases and thresholds beside."""
    return opened.keys >= {"W_enc", "W_dec"} and opened.keys <= KEYS


def load(opened: Opened, d_model: Any = None, pre_bias: Any = None, k: Any = None) -> SAE:
    """Reads what the choices say it is: `d_model` (always needed), `pre_bias` (true or false, needed if there is a
    b_dec other than 0), `k` (TopK instead of ReLU). With a threshold it is a JumpReLU SAE, strictly above it."""
    path, choices = opened.path, {"d_model": d_model, "pre_bias": pre_bias, "k": k}
    width, k = setting(path, choices, "d_model", int, None), setting(path, choices, "k", int, None)
    flip_enc, flip_dec = _orientation(opened, width)
    b_dec = opened.array("b_dec") if "b_dec" in opened.keys else None
    subtract = setting(path, choices, "pre_bias", bool, None)
    if subtract is None and b_dec is not None and b_dec.any():
        raise CheckpointError(
            f"{path}: nothing says whether b_dec is subtracted from the input before encoding: pass pre_bias=True "
            "(as in SAELens) or pre_bias=False (as in Gemma Scope)"
        )
    jump = "threshold" in opened.keys
    if jump and k is not None:
        raise CheckpointError(f"{path}: has thresholds, so it takes no k")
    extra = {"threshold": opened.array("threshold")} if jump else {}
    notes = ("orientation and biases as d_model and pre_bias said",)
    if not jump and k is None:
        notes += (loud(path, RELU),)
    sae = build(
        "jumprelu" if jump else "standard" if k is None else "topk",
        opened.array("W_enc", transpose=flip_enc), opened.array("b_enc") if "b_enc" in opened.keys else None,
        opened.array("W_dec", transpose=flip_dec), b_dec, b_dec if subtract else None, extra, k=k,
        info=Info(path.stem, str(path), "plain", notes=notes),
    )  # fmt: skip
    return check(sae, str(path))


def _orientation(opened: Opened, width: int | None) -> tuple[bool, bool]:
    """Whether W_enc and W_dec lie transposed. W_enc has D and M for axes, W_dec M and D, or M and another D_out."""
    path, enc, dec = opened.path, opened.shape("W_enc"), opened.shape("W_dec")
    if len(enc) != 2 or len(dec) != 2:
        raise CheckpointError(f"{path}: W_enc {enc} and W_dec {dec} must both have two axes")
    if width is None:
        raise CheckpointError(
            f"{path}: nothing says which axis of W_enc {enc} is the model's; pass d_model=..., the width of the "
            "activations it reads"
        )
    if enc.count(width) != 1:
        raise CheckpointError(
            f"{path}: W_enc has shape {enc}, so d_model={width} does not tell its axes apart"
            if width in enc
            else f"{path}: W_enc has shape {enc}, none of its axes is d_model={width}"
        )
    m = enc[1 - enc.index(width)]
    if dec.count(m) != 1:
        raise CheckpointError(
            f"{path}: W_dec has shape {dec}; wanted one axis of the {m} latents of W_enc {enc}"
        )
    return enc.index(width) == 1, dec.index(m) == 1
