"""Reader of overcomplete's state_dicts (KempnerInstitute/overcomplete) of SAEs with the default linear encoder.

    pre = x @ W_enc + b_enc;  y = z @ D, without any decoder bias
    D = rows of `dictionary._weights` / (their norm + 1e-8) * exp(multiplier)
    SAE: z = relu(pre);  TopKSAE: its k largest of a token, k not stored
    JumpSAE: relu(pre) where it is >= exp(thresholds);  BatchTopKSAE: where it is >= a threshold that is not stored

Thresholds are not strict there and strict here, so each becomes the next smaller float32.
"""

from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes, exponential, setting
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

CHOICES = ("k", "threshold")
ENCODER, BIAS, RAW = "encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights"
TENSORS = {ENCODER: "MD", BIAS: "M", RAW: "MD"}
SCALE = "dictionary.multiplier"
ANY_RULE = (
    "SAE, TopKSAE and BatchTopKSAE have the same tensors; read as a plain SAE: pass k=... for a TopKSAE's top_k, "
    "threshold=... for a BatchTopKSAE's running_threshold"
)
UNIT = "dictionary rows are taken to be normalised to L2 norm 1, the library's default, which the file does not store"


def detect(opened: Opened) -> bool:
    """Whether it has overcomplete's names of the dictionary and the encoder."""
    return opened.path.suffix in (".pt", ".pth") and RAW in opened.keys


def load(opened: Opened, k: Any = None, threshold: Any = None) -> SAE:
    """Reads a state_dict; `k` makes it a TopKSAE, `threshold` (a number that fires where it is reached) a
    BatchTopKSAE."""
    path = opened.path
    foreign = sorted(key for key in opened.keys if key.startswith("encoder.") and key not in TENSORS)
    if foreign:
        raise CheckpointError(
            f"{path}: {foreign[0]:.80} is not of the linear encoder without normalisation, the only one that is read"
        )
    axes(opened, TENSORS, {"thresholds": "M"}, known=frozenset({SCALE}))
    variant, extra, notes = _rule(opened, setting(path, {"k": k}, "k", int, None),
                                  setting(path, {"threshold": threshold}, "threshold", float, None))  # fmt: skip
    info = Info(path.stem, str(path), "overcomplete", notes=(*notes, UNIT))
    w_enc, b_enc = opened.array(ENCODER, transpose=True), opened.array(BIAS)
    return check(
        build(variant, w_enc, b_enc, _dictionary(opened), None, None, extra, k=k, info=info), str(path)
    )


def _dictionary(opened: Opened) -> np.ndarray:
    """D (M, D)."""
    if opened.shape(SCALE) != ():
        raise CheckpointError(
            f"{opened.path}: {SCALE} has shape {opened.shape(SCALE)}; wanted a single number"
        )
    rows = opened.array(RAW)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + np.float32(1e-8)
    rows *= exponential(opened, SCALE)
    return rows


def _rule(
    opened: Opened, k: int | None, threshold: float | None
) -> tuple[str, dict[str, np.ndarray], list[str]]:
    path: Path = opened.path
    stored = "thresholds" in opened.keys
    if (k is not None) + (threshold is not None) + stored > 1:
        raise CheckpointError(
            f"{path}: a JumpSAE, which has its own thresholds: takes neither k nor threshold"
            if stored
            else f"{path}: takes k=... (a TopKSAE) or threshold=... (a BatchTopKSAE), not both"
        )
    if stored:
        return "jumprelu", {"threshold": _below(exponential(opened, "thresholds"))}, []
    if threshold is not None:
        return "batch_topk", {"threshold": _below(np.array(threshold, np.float32))}, []
    return ("topk", {}, []) if k is not None else ("standard", {}, [loud(path, ANY_RULE)])


def _below(threshold: np.ndarray) -> np.ndarray:
    """The strict threshold that lets pass what reaches this one; an infinite one stays, to be refused."""
    below = np.nextafter(threshold, np.float32(-np.inf))
    return np.asarray(np.where(np.isfinite(threshold), below, threshold), np.float32)
