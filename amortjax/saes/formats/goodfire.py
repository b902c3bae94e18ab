"""Reader of Goodfire's SAEs of Llama: `Llama-3.1-8B-Instruct-SAE-l19.pth`, a state_dict of two linear layers.

    z = relu(x @ W_enc + b_enc);  y = z @ W_dec + b_dec: b_dec is never subtracted

Also here: model and layer from such a file name, which other releases have too.
"""

import re
from pathlib import Path

from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes
from amortjax.saes.formats.common import build
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info

TENSORS = {
    "encoder_linear.weight": "MD", "encoder_linear.bias": "M", "decoder_linear.weight": "DM", "decoder_linear.bias": "D"
}  # fmt: skip
ORGANISATIONS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}


def detect(opened: Opened) -> bool:
    """Whether it has Goodfire's names of the layers' weights."""
    weights = {"encoder_linear.weight", "decoder_linear.weight"}
    return opened.path.suffix in (".pt", ".pth") and bool(opened.keys & weights)


def load(opened: Opened) -> SAE:
    axes(opened, TENSORS)
    model, layer = named(opened.path)
    sae = build(
        "standard", opened.array("encoder_linear.weight", transpose=True), opened.array("encoder_linear.bias"),
        opened.array("decoder_linear.weight", transpose=True), opened.array("decoder_linear.bias"), None,
        info=Info(opened.path.stem, str(opened.path), "goodfire", model, layer, "" if layer is None else "resid_post"),
    )  # fmt: skip
    return check(sae, str(opened.path))


def named(path: Path) -> tuple[str, int | None]:
    """Model and block of `MODEL-SAE-lN`, the name of a file or of a folder above it; ("", None) without one."""
    for part in (path.stem, *reversed(path.absolute().parent.parts)):
        found = re.fullmatch(r"(?:.*--)?([A-Z][\w.-]+?)-SAE-l(\d{1,4})", part)
        if found:
            model = found.group(1)
            organisation = ORGANISATIONS.get(model.partition("-")[0])
            return f"{organisation}/{model}" if organisation else model, int(found.group(2))
    return "", None
