"""What dictionary_learning's `config.json` tells of an SAE's class and origin."""

import re
from pathlib import Path

import numpy as np

from amortjax.saes.formats.checked import block, setting
from amortjax.saes.formats.goodfire import named
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.sparsify import INPUTS
from amortjax.saes.sae import SAE, Info

OLD_JUMPRELU = (
    "files of August to December 2024 have codes times the norms of the decoder's rows, with the same reconstructions, "
    "and can't be told from later ones; normalize_decoder=True reads them so"
)


def config_file(path: Path) -> Path:
    """config.json of the SAE's folder, or of the one above for files in `checkpoints/`."""
    above = path.parent.parent / "config.json"
    own = path.with_name("config.json")
    return above if path.parent.name == "checkpoints" and not own.is_file() else own


def class_name(dict_class: str) -> str:
    """`AutoEncoder` of `dictionary_learning.dictionary.AutoEncoder` or of "<class '...AutoEncoder'>"."""
    found = re.fullmatch(r"(?:<class ')?(?:\w+\.)*(\w+)(?:'>)?", dict_class)
    return found.group(1) if found else dict_class


def info(path: Path, config: dict, name: str, factor: float | None, sae: SAE) -> Info:
    """Where the SAE comes from; `name` is its class, `factor` what inputs were divided by in training, if known."""
    file = config_file(path)
    trainer = setting(file, config, "trainer", dict, {})
    submodule = setting(file, trainer, "submodule_name", str, "")
    hook, index = site(submodule)
    model, layer = setting(file, trainer, "lm_name", str, ""), block(file, trainer, "layer", index)
    if not config:
        model, layer = named(path)
        hook = "" if layer is None else "resid_post"
    notes = [f"dict_class {name}", *sae.info.notes]
    io = setting(file, setting(file, config, "buffer", dict, {}), "io", str, "out")
    if io != "out":
        hook = INPUTS.get(hook, hook)
        notes.append(f"from the input of {submodule}" + (" to its output" if io == "in_and_out" else ""))
    if name == "JumpReluAutoEncoder" and not _unit_rows(sae):
        notes.append(OLD_JUMPRELU)
    lam, note = _penalty(file, trainer, name, factor)
    return Info(
        name=path.parent.name if path.name == "ae.pt" else path.stem,
        source=str(path), format="dictionary_learning", model_name=model, layer_index=layer, hook=hook,
        lam_train=lam, notes=(*notes, *note), transcoder=io == "in_and_out",
    )  # fmt: skip


def _unit_rows(sae: SAE) -> bool:
    rows = np.asarray(sae.W_dec)
    return bool(np.abs(np.einsum("md,md->m", rows, rows) - 1).max(initial=0) < 1e-2)


def _penalty(file: Path, trainer: dict, name: str, factor: float | None) -> tuple[float | None, list[str]]:
    """Info.lam_train, and why it is not known."""
    # |e|^2 + l1 * sum z ||W|| in units of x / factor is |e|^2 + l1 * factor * sum z ||W|| in raw ones. A Gated SAE's
    # penalty is on its gate.
    if name not in ("AutoEncoder", "AutoEncoderNew"):
        return None, []
    l1 = setting(file, trainer, "l1_penalty", float, None)
    if l1 is None or factor is not None:
        return None if l1 is None or factor is None else float(l1) * factor, []
    return None, [
        f"trained with l1_penalty={l1} on activations whose scale the file does not record; pass "
        "norm_factor=... (1 if they were not normalised) for the penalty in raw units"
    ]
