"""Reader of mwhanna's transcoders: `layer_L.safetensors` beside `config.yaml`.

W_enc lies as torch's Linear has it, (M, D), and W_dec (M, D_out) does not. ReLU; nothing is subtracted from the
input, which is the MLP's, after the block's norm; the output is the MLP's.
"""

import re
from pathlib import Path

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes, setting
from amortjax.saes.formats.common import build
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info, unit_decoder

CHOICES = ("normalize_decoder",)
TENSORS = {"W_enc": "MD", "b_enc": "M", "W_dec": "MO", "b_dec": "O"}
NAME = r"layer_(\d+)\.safetensors"


def detect(opened: Opened) -> bool:
    """Whether it is a `layer_L.safetensors` with the four tensors' names, all or the two matrices'. Other libraries
    use these for other orientations, so that the file's name counts."""
    named = re.fullmatch(NAME, opened.path.name) and not opened.path.with_name("cfg.json").exists()
    return bool(named) and len(opened.keys & TENSORS.keys()) >= 3


def load(opened: Opened, normalize_decoder: bool = False) -> SAE:
    """Reads a layer; `normalize_decoder`: decoder rows to norm 1, codes times what they lose."""
    axes(opened, TENSORS)
    sae = build(
        "standard", opened.array("W_enc", transpose=True), opened.array("b_enc"),
        opened.array("W_dec"), opened.array("b_dec"), None, info=_info(opened.path),
    )  # fmt: skip
    wanted = setting(opened.path, {"normalize_decoder": normalize_decoder}, "normalize_decoder", bool, False)
    return check(unit_decoder(sae) if wanted else sae, str(opened.path))


def _info(path: Path) -> Info:
    layer = int(path.stem.removeprefix("layer_")[:9])
    source = _entry(path, "feature_input_hook") or "mlp.hook_in"
    target = _entry(path, "feature_output_hook") or "hook_mlp_out"
    notes = (f"a transcoder: from {source} to {target} of block {layer}, norms not folded",)
    model = _entry(path, "model_name")
    hook = site(f"blocks.{layer}.{source}").hook
    name = f"{path.absolute().parent.name}_{path.stem}"
    return Info(name, str(path), "mwhanna", model, layer, hook, notes=notes, transcoder=True)


def _entry(path: Path, key: str) -> str:
    """A top-level name in config.yaml; "" without one."""
    file = path.with_name("config.yaml")
    try:
        found = re.search(rf"^{key}:[ \t]*[\"']?([^\s\"'#]+)", file.read_text(), re.MULTILINE)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({error}); copy it again") from None
    return found.group(1) if found else ""
