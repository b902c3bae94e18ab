"""Reader of Google DeepMind's Gemma Scope (`params.npz`) and Gemma Scope 2 (`params.safetensors`): SAEs and
transcoders.

JumpReLU, pre = x @ W_enc + b_enc: b_dec is never subtracted. Gemma Scope 2's `affine_skip_connection` (D, D_out) is
added as x @ it. Where in the model they read is in the path and, for Gemma Scope 2, in a config.json that some lack.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import axes, setting
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.hooks import Site, site
from amortjax.saes.formats.opened import Opened
from amortjax.saes.sae import SAE, Info, unit_decoder

CHOICES = ("normalize_decoder",)
NAME = "params.npz"
TENSORS = {"w_enc": "DM", "b_enc": "M", "w_dec": "MO", "b_dec": "O", "threshold": "M"}
SKIP = {"affine_skip_connection": "DO"}
WIDTH = r"width_(\d+)([km])(?![a-z0-9])"
# Repositories of Gemma Scope end in these; folders of Gemma Scope 2 begin with these.
SITES = {"res": "resid_post", "mlp": "mlp_out", "att": "hook_z", "transcoders": "ln2"}
SITES_2 = {
    "resid_post": "resid_post",
    "mlp_out": "mlp_out",
    "attn_out": "hook_z",
    "transcoder": "ln2",
    "clt": "ln2",
}
TRANSCODER = (
    "a transcoder: from the MLP's normalised input to its output; Hugging Face's norm has its learned weight in, "
    "TransformerLens' hook_normalized only if that is folded: compare reconstructions"
)
EMBEDDING = (
    "an SAE of embeddings, with its weights as they are: for Hugging Face's hidden_states[0]; TransformerLens' "
    "hook_embed is smaller by sqrt(D)"
)
MATRYOSHKA = "trained with Matryoshka losses, whose groups the file does not tell"


def detect(opened: Opened) -> bool:
    """Whether most of the tensors are there: of a params.npz in capitals or not, of a .safetensors in small letters.
    Other .npz may have these names for matrices the other way round."""
    if opened.path.suffix == ".npz":
        return opened.path.name == NAME and len({key.lower() for key in opened.keys} & TENSORS.keys()) >= 4
    return (
        opened.path.suffix == ".safetensors"
        and len(opened.keys & (TENSORS | SKIP).keys()) >= 4
        and bool(opened.keys & {"w_enc", "w_dec"})
    )


def load(opened: Opened, normalize_decoder: bool = False) -> SAE:
    """Reads an SAE or transcoder; `normalize_decoder`: decoder rows to norm 1, codes times what they lose."""
    path, second = opened.path, opened.path.suffix == ".safetensors"
    file = opened if second else _small(opened)
    config = opened.json("config.json") if second else {}
    if "w_dec" in file.keys and len(file.shape("w_dec")) == 3:
        raise CheckpointError(
            f"{path}: w_dec has shape {file.shape('w_dec')}: a cross-layer transcoder, which writes to several "
            "layers; only SAEs and transcoders of one layer are read"
        )
    sizes = axes(file, TENSORS, SKIP if second else None)
    _check_config(path, config, "affine_skip_connection" in file.keys)
    extra = {"threshold": file.array("threshold")}
    if "affine_skip_connection" in file.keys:
        extra["W_skip"] = file.array("affine_skip_connection")
    info = _info(path, config, sizes["M"], second)
    if sizes["D"] != sizes["O"] and not info.transcoder:
        note = f"it takes {sizes['D']} numbers and gives {sizes['O']}: read as a transcoder, as no name says"
        info = dataclasses.replace(info, transcoder=True, notes=(*info.notes, loud(path, note)))
    w_enc, b_enc, w_dec, b_dec = (file.array(key) for key in ("w_enc", "b_enc", "w_dec", "b_dec"))
    sae = build("jumprelu", w_enc, b_enc, w_dec, b_dec, None, extra, info=info)
    wanted = setting(path, {"normalize_decoder": normalize_decoder}, "normalize_decoder", bool, False)
    return check(unit_decoder(sae) if wanted else sae, str(path))


def _small(opened: Opened) -> Opened:
    """The file with its keys in small letters."""
    content: dict[str, Any] = {}
    for key, tensor in opened.content.items():
        if key.lower() in content:
            raise CheckpointError(
                f"{opened.path}: tensor {key!r} is there twice, in small letters and capitals"
            )
        content[key.lower()] = tensor
    return Opened(opened.path, content)


def _check_config(path: Path, config: dict[str, Any], has_skip: bool) -> None:
    file = path.with_name("config.json")
    kind = setting(file, config, "architecture", str, "jump_relu")
    if kind != "jump_relu":
        raise CheckpointError(
            f"{file}: architecture is {kind!r:.80}; only jump_relu is known of Gemma Scope 2"
        )
    if setting(file, config, "affine_connection", bool, has_skip) != has_skip:
        raise CheckpointError(
            f"{file}: affine_connection does not agree with {path.name}, which has {'an' if has_skip else 'no'} "
            "affine_skip_connection: the files are of different SAEs; copy them again"
        )


def _info(path: Path, config: dict[str, Any], m: int, second: bool) -> Info:
    # Not resolved: the hub's cache has links to files without these names.
    where = path.absolute().parent.as_posix()
    place, model = (_place_2 if second else _place)(where, path, config)
    notes = [MATRYOSHKA] if second else []
    notes += [TRANSCODER] if place.hook == "ln2" else []
    notes += [EMBEDDING] if place.hook == "embed" else []
    if not place.hook:
        notes.append("the path does not say where in the model it reads: no repository name in it")
    width = _last(WIDTH, where)
    said = int(width[0]) * {"k": 2**10, "m": 2**20}[width[1]] if width else m
    if said != m:
        notes.append(
            loud(path, f"its folder says {said} latents, the file has {m}: is it in the right folder?")
        )
    name = "_".join(path.absolute().parent.parts[-3 if not second else -2 :])
    across = TRANSCODER in notes
    return Info(
        name, str(path), "gemma_scope", model, place.layer, place.hook, notes=tuple(notes), transcoder=across
    )  # fmt: skip


def _place(where: str, path: Path, config: dict[str, Any]) -> tuple[Site, str]:
    """Hook, layer and model from a path of Gemma Scope's."""
    repository = _last(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", where)
    layer = _last(r"/layer_(\d+)(?=/|$)", where)
    hook = SITES[repository[2]] if repository else "ln2" if "transcoder" in where else ""
    if re.search(r"/embedding(/|$)", where):
        hook, layer = "embed", None
    model = f"google/gemma-2-{repository[0]}{'-it' if repository[1] == 'it' else ''}" if repository else ""
    return Site(hook, int(layer[0]) if layer else None), model


def _place_2(where: str, path: Path, config: dict[str, Any]) -> tuple[Site, str]:
    """The same of Gemma Scope 2's, whose config.json counts for more."""
    file = path.with_name("config.json")
    repository = _last(r"gemma-scope-2-(\d+[mb])-(pt|it)", where)
    model = setting(file, config, "model_name", str, "").split("/")[-1].replace("gemma-v3-", "gemma-3-")
    model = model or (f"gemma-3-{repository[0]}-{repository[1]}" if repository else "")
    folder = _last(rf"/({'|'.join(SITES_2)})(?:_all)?(?=/)", where)
    layer = _last(r"/layer_(\d+)(?=_|/|$)", where)
    place = Site(SITES_2[folder[0]] if folder else "", int(layer[0]) if layer else None)
    said = setting(file, config, "hf_hook_point_in", str, "")
    return site(said) if said else place, f"google/{model}" if model.startswith("gemma-") else model


def _last(pattern: str, text: str) -> tuple[str, ...] | None:
    """Groups of the last match."""
    found = list(re.finditer(pattern, text))
    return found[-1].groups() if found else None
