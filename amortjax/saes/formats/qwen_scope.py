"""Reader of Qwen Scope: `layer{L}.sae.pt` of a repository `SAE-Res-MODEL-W{width}K-L0_{k}`.

    pre = x @ W_enc + b_enc, the k largest, then ReLU;  y = z @ W_dec + b_dec: b_dec is never subtracted

Both matrices lie transposed, W_enc (M, D) and W_dec (D, M), under the names that others use for (D, M) and (M, D). How
many latents fire is only in the repository's name.
"""

import re
from pathlib import Path
from typing import Any

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes, setting
from amortjax.saes.formats.common import build
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

CHOICES = ("k",)
TENSORS = {"W_enc": "MD", "b_enc": "M", "W_dec": "DM", "b_dec": "D"}
NAME = r"layer(\d{1,4})\.sae\.pt"
REPOSITORY = r"(?:.*--)?SAE-Res-(.+)-W\d+[KM]-L0_(\d{1,9})"


def detect(opened: Opened) -> bool:
    """Whether it is a `layer{L}.sae.pt` with the two matrices: the names alone are others' too."""
    return bool(re.fullmatch(NAME, opened.path.name)) and opened.keys >= {"W_enc", "W_dec"}


def load(opened: Opened, k: Any = None) -> SAE:
    """Reads a layer; `k`: how many latents fire, instead of what the repository's name says."""
    path, (model, said) = opened.path, _repository(opened.path)
    axes(opened, TENSORS)
    k = setting(path, {"k": k}, "k", int, said)
    if k is None:
        raise CheckpointError(
            f"{path}: how many latents fire is not in the file, and no folder above is named ...-L0_{{k}}: pass k=..."
        )
    sae = build(
        "topk", opened.array("W_enc", transpose=True), opened.array("b_enc"),
        opened.array("W_dec", transpose=True), opened.array("b_dec"), None, k=k, info=_info(path, model),
    )  # fmt: skip
    return check(sae, str(path))


def _repository(path: Path) -> tuple[str, int | None]:
    """Model and k, as far as a folder's name says them."""
    for part in reversed(path.absolute().parent.parts):
        found = re.fullmatch(REPOSITORY, part)
        if found:
            return f"Qwen/{found.group(1)}", int(found.group(2))
        short = re.search(r"L0_(\d{1,9})(?!\d)", part)
        if short:
            return "", int(short.group(1))
    return "", None


def _info(path: Path, model: str) -> Info:
    layer = int(path.name.removeprefix("layer").partition(".")[0])
    return Info(path.name.removesuffix(".sae.pt"), str(path), "qwen_scope", model, layer, "resid_post")
