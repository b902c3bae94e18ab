"""Reader of OpenMOSS's SAEs: Llama Scope, Llama Scope R1-Distill, and llamascopium's own files.

    Llama Scope    FOLDER/hyperparams.json and FOLDER/checkpoints/final.safetensors; one threshold for all latents
    R1-Distill     config.json and sae_weights.safetensors; log_jumprelu_threshold (M,)
    llamascopium   config.json and sae_weights.safetensors with W_E (D, M) and W_D (M, D)

They are trained on x * f, where f = sqrt(D) / the data's average norm, and f is folded into the weights here: x are
raw activations. Codes are in the units of training, as SAELens has them, or with `scale="openmoss"` in those of raw
activations, f times smaller; what fires and the reconstructions are the same.

    pre = x f @ W_enc + b_enc;  fires where pre [* ||W_dec row|| if sparsity_include_decoder_norm] > threshold
"""

import re
from pathlib import Path

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.checks import check
from amortjax.saes.formats.checked import agree, axes, exponential, setting
from amortjax.saes.formats.common import build, loud
from amortjax.saes.formats.hooks import Site, site
from amortjax.saes.formats.llama_scope_norms import (
    AVERAGE,
    LINEAR,
    R1,
    SCOPE,
    SCOPIUM,
    Factors,
    Layout,
    Source,
    factors,
    to_raw,
    with_norms,
)
from amortjax.saes.formats.opened import Opened, read_json
from amortjax.saes.sae import SAE, Info, unit_decoder

CHOICES = ("k", "scale", "norm_factor", "normalize_decoder")
SCALES = ("saelens", "openmoss")
VARIANTS = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "batch_topk"}
SITES = {"R": "resid_post", "A": "attn_out", "M": "mlp_out"}
# What of a path tells the language model.
MODELS = {
    "Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B",
    "Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "OpenR1-Math": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}


def detect(opened: Opened) -> bool:
    """Whether keys and names of files are those of one of the three layouts."""
    return opened.path.suffix == ".safetensors" and _layout(opened) is not None


def _layout(opened: Opened) -> Layout | None:
    path, keys = opened.path, opened.keys
    linear, own = bool(keys & set(LINEAR)), keys & {"W_E", "W_D", SCOPIUM.log_threshold}
    if linear and path.parent.name == "checkpoints" and _hyperparams(path).is_file():
        return SCOPE
    named = path.name == "sae_weights.safetensors"
    if R1.log_threshold in keys or (linear and named):
        return R1
    return SCOPIUM if len(own) > 1 or (own and named) else None


def _hyperparams(path: Path) -> Path:
    return path.absolute().parent.parent / "hyperparams.json"


def load(
    opened: Opened,
    k: int | None = None,
    scale: str = "saelens",
    norm_factor: float | None = None,
    normalize_decoder: bool = False,
) -> SAE:
    """Reads one of the three layouts.

    k: latents of a top-k SAE that fire, instead of the config's. scale: the units of the codes. norm_factor: what
    activations were divided by in training, 1 / f, instead of the file's; 1 = the weights as they are.
    normalize_decoder: decoder rows to norm 1, codes times what they lose.
    """
    path, layout = opened.path, _layout(opened) or R1
    file = _hyperparams(path) if layout is SCOPE else path.with_name("config.json")
    source = Source(opened, layout, file, read_json(file))
    if layout is SCOPIUM and not source.config:
        raise CheckpointError(f"{file}: missing or empty; it says how the SAE encodes: copy the whole folder")
    chosen = {"k": k, "norm_factor": norm_factor, "normalize_decoder": normalize_decoder}
    if scale not in SCALES:
        raise CheckpointError(f"{path}: scale {scale!r:.80} is not one of {', '.join(SCALES)}")
    name, single, k = _activation(source, setting(path, chosen, "k", int, None))
    sizes = _sizes(source, name)
    by, notes = factors(source, sizes["D"], setting(path, chosen, "norm_factor", float, None))
    a = _arrays(source, name, single, by.f_in, scale)
    notes += with_norms(source, a, name, by, scale)
    to_raw(a, by, scale)
    before = source.setting("apply_decoder_bias_to_pre_encoder", bool, False)
    extra = {"threshold": a["threshold"]} if name == "jumprelu" else {}
    sae = build(
        VARIANTS[name], a["w_enc"], a["b_enc"], a["w_dec"], a.get("b_dec"), a.get("b_dec") if before else None,
        extra, k=k, norm=by.norm, batch_rule=name == "batchtopk", info=_info(source, notes, by, scale),
    )  # fmt: skip
    unit = setting(path, chosen, "normalize_decoder", bool, False)
    return check(unit_decoder(sae) if unit else sae, str(path))


def _activation(source: Source, chosen: int | None) -> tuple[str, float | None, int | None]:
    """Its name; Llama Scope's threshold, in raw units; k."""
    layout, file = source.layout, source.file
    for key, wanted in (("sae_type", "sae"), ("use_glu_encoder", False)):
        said = source.setting(key, type(wanted), wanted)
        if said != wanted:
            raise CheckpointError(
                f"{file}: {key} is {said!r:.80}, which is not supported; only {wanted!r} is"
            )
    learned = layout.log_threshold in source.opened.keys
    default = "jumprelu" if learned or layout is not SCOPIUM else "relu"
    name, single = source.setting("act_fn", str, default).lower(), None
    if layout is SCOPE:
        single = source.setting("jump_relu_threshold", float)
        if name == "relu" and single:
            loud(
                file,
                f"act_fn is relu: jump_relu_threshold {single} is left out, which SAELens' reader applies",
            )
        # A top-k SAE with a threshold has been converted; its library reads it so too.
        name = "jumprelu" if name == "topk" and (single or 0) > 0 else name
        if name == "jumprelu" and (single is None or single < 0):
            raise CheckpointError(f"{file}: jump_relu_threshold is {single}; wanted a number from 0")
    if name not in VARIANTS or (layout is R1 and name != "jumprelu"):
        known = "jumprelu" if layout is R1 else ", ".join(VARIANTS)
        raise CheckpointError(f"{file}: act_fn is {name!r:.80}; known for {layout.name} files: {known}")
    if not name.endswith("topk"):
        if chosen is not None:
            raise CheckpointError(f"{source.opened.path}: its act_fn is {name}, which takes no k")
        return name, single, None
    return name, None, chosen if chosen is not None else source.setting("top_k", int)


def _sizes(source: Source, name: str) -> dict[str, int]:
    """D and M; keys, shapes and the config's sizes are checked."""
    layout, opened = source.layout, source.opened
    md, dm = ("MD", "DM") if layout.transpose else ("DM", "MD")
    needed = {layout.w_enc: md, layout.b_enc: "M", layout.w_dec: dm}
    if source.setting("use_decoder_bias", bool, True):
        needed[layout.b_dec] = "D"
    if name == "jumprelu" and layout.log_threshold:
        needed[layout.log_threshold] = "M"
    averages = frozenset(key for key in opened.keys if key.startswith(AVERAGE + "."))
    sizes = axes(opened, needed, known=averages)
    d, m = sizes["D"], sizes["M"]
    agree(source.file, "d_model", source.setting("d_model", int, d), d)
    times = source.setting("expansion_factor", float)
    latents = source.setting("d_sae", int, m if times is None else int(max(-1.0, min(times * d, 1e18))))
    agree(source.file, "d_sae (or expansion_factor times d_model)", latents, m)
    return sizes


def _arrays(
    source: Source, name: str, single: float | None, f_in: float, scale: str
) -> dict[str, np.ndarray]:
    """Weights as they are, and thresholds (M,) in the units of the codes. Llama Scope's is in raw ones."""
    opened, layout = source.opened, source.layout
    a = {"w_enc": opened.array(layout.w_enc, layout.transpose), "b_enc": opened.array(layout.b_enc)}
    a["w_dec"] = opened.array(layout.w_dec, layout.transpose)
    if layout.b_dec in opened.keys:
        a["b_dec"] = opened.array(layout.b_dec)
    trained = scale == "saelens"
    if name == "jumprelu" and single is not None:
        a["threshold"] = np.full(a["b_enc"].shape, single * (f_in if trained else 1.0), np.float32)
    elif name == "jumprelu":
        a["threshold"] = exponential(opened, layout.log_threshold)
        a["threshold"] /= np.float32(1.0 if trained else f_in)
    return a


def _info(source: Source, notes: list[str], by: Factors, scale: str) -> Info:
    path, layout = source.opened.path.absolute(), source.layout
    folder = path.parent.parent if layout is SCOPE else path.parent
    place = site(source.setting("hook_point_in", str, ""))
    named = re.search(r"L(\d{1,4})([RAM])(?![A-Za-z0-9])", folder.name)
    if named and not place.hook:
        place = Site(SITES[named[2]], int(named[1]))
    out = source.setting("hook_point_out", str, "")
    across = out not in ("", source.setting("hook_point_in", str, out))
    if across:
        notes = [*notes, f"a transcoder: its output is {out}"]
    if by.f_in != 1:
        units = "the units of training" if scale == "saelens" else "those of raw activations"
        notes = [*notes, f"x is multiplied by {by.f_in:.6g} in its weights; codes are in {units}"]
    model = source.setting("model_name", str, "")
    for part, known in MODELS.items():
        model = model or (known if part in path.as_posix() else "")
    return Info(
        folder.name, str(source.opened.path), "llama_scope", model, place.layer, place.hook, notes=tuple(notes),
        transcoder=across,
    )  # fmt: skip
