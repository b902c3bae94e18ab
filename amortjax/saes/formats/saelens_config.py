"""Settings of a SAELens SAE: `cfg.json` of version 6 (what is known of the origin in `metadata`) and of the flat
files before it, whose keys were renamed more than once."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import CheckpointError
from amortjax.saes.formats.hooks import site
from amortjax.saes.formats.opened import read_json

_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")


class Architecture(NamedTuple):
    variant: str  # of encoders.VARIANTS
    keys: tuple[str, ...]  # tensors of the file, all of them needed


ARCHITECTURES = {
    "standard": Architecture("standard", _PLAIN),
    "topk": Architecture("topk", _PLAIN),
    "abstopk": Architecture("abs_topk", _PLAIN),
    "jumprelu": Architecture("jumprelu", (*_PLAIN, "threshold")),
    "gated": Architecture("gated", ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")),
    # Only checkpoints of training: SAELens saves the finished SAE as jumprelu.
    "batchtopk": Architecture("batch_topk", (*_PLAIN, "topk_threshold")),
    "matryoshka_batchtopk": Architecture("matryoshka", (*_PLAIN, "topk_threshold")),
    "transcoder": Architecture("standard", _PLAIN),
    "skip_transcoder": Architecture("standard", (*_PLAIN, "W_skip")),
    "jumprelu_transcoder": Architecture("jumprelu", (*_PLAIN, "threshold")),
    "jumprelu_skip_transcoder": Architecture("jumprelu", (*_PLAIN, "threshold", "W_skip")),
    "matching_pursuit": Architecture("matching_pursuit", ("W_dec", "b_dec")),
}
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm"}
# Done to the activations before the SAE sees them, and folded into the weights when training ends.
OUTSIDE = ("expected_average_only_in", "covariance_whitening")
DTYPES = ("float32", "float64", "float16", "bfloat16")
MAX_ITERATIONS = 2**24  # the largest that float32 counts exactly


class Origin(NamedTuple):
    model_name: str
    hook: str
    layer: int | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


class Config(NamedTuple):
    file: Path
    architecture: str
    d_in: int | None  # None = not said, the tensors' shapes tell
    d_sae: int | None
    d_out: int | None
    subtract_b_dec: bool
    norm: str  # of sae.NORMS
    outside: str  # one of OUTSIDE, or ""
    k: float | None
    rescale: bool
    fine_tuned: bool
    widths: tuple[int, ...]  # of Matryoshka's prefixes, cumulative
    trained_as: str  # architecture while training, "" if not said
    residual_threshold: float
    max_iterations: int | None
    stop_on_duplicate: bool
    origin: Origin

    @property
    def variant(self) -> str:
        return ARCHITECTURES[self.architecture].variant

    @property
    def is_transcoder(self) -> bool:
        return self.architecture.endswith("transcoder")


@dataclasses.dataclass(frozen=True)
class Settings:
    """A json object. Each method gives a value of its kind, the default if it is missing or null, or raises
    CheckpointError."""

    file: Path
    values: dict[str, Any]

    def text(self, key: str, default: str = "") -> str:
        return self._typed(key, str, "a string", default)

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, bool, "true or false", default)

    def table(self, key: str) -> "Settings":
        return Settings(self.file, self._typed(key, dict, "an object", {}))

    def number(self, key: str, above: float = 0.0) -> float | None:
        """A finite number above a bound."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) not in (int, float) or not _finite(value) or value <= above:
            raise self.wrong(key, f"a number above {above:g}")
        return float(value)

    def count(self, key: str) -> int | None:
        value = self.number(key)
        if value is not None and value % 1:
            raise self.wrong(key, "a whole number")
        return None if value is None else int(value)

    def wrong(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {key} is {shown(self.values.get(key))}; wanted {wanted}")

    def _typed(self, key: str, kind: type, wanted: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None and not isinstance(value, kind):
            raise self.wrong(key, wanted)
        return default if value is None else value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number beyond floats
        return False


def shown(value: Any) -> str:
    """The value on one short line."""
    try:
        text = " ".join(repr(value).split())
    except RecursionError:
        return f"a deep {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def read(folder: Path) -> Config:
    """The settings in a folder's `cfg.json`. Raises CheckpointError, also for what amortjax can't compute."""
    file = folder / "cfg.json"
    top = Settings(file, read_json(file))
    if not top.values:
        raise CheckpointError(
            f"{file}: missing, or holds no settings; SAELens weights can't be read without it, copy it too"
        )
    meta = top.table("metadata") if isinstance(top.values.get("metadata"), dict) else top
    architecture, k = _architecture(top)
    transcoder = architecture.endswith("transcoder")
    if top.text("reshape_activations", "none") not in ("none", "hook_z"):  # saes.api flattens heads by itself
        raise top.wrong("reshape_activations", "none or hook_z")
    norm, outside = _normalisation(top, transcoder)
    details = meta.table("training_architecture_details")
    return Config(
        file,
        architecture,
        *(top.count(key) for key in ("d_in", "d_sae")),
        d_out=top.count("d_out") if transcoder else top.count("d_in"),
        subtract_b_dec=_subtracts(top, transcoder),
        norm=norm,
        outside=outside,
        k=details.number("k") if k is None else k,
        rescale=top.flag("rescale_acts_by_decoder_norm", False),
        fine_tuned=top.flag("finetuning_scaling_factor", False),
        widths=_widths(top) or _widths(details),
        trained_as=meta.text("training_architecture"),
        residual_threshold=_residual_threshold(top),
        max_iterations=_iterations(top),
        stop_on_duplicate=top.flag("stop_on_duplicate_support", True),
        origin=_origin(top, meta),
    )


def _architecture(top: Settings) -> tuple[str, float | None]:
    """Architecture and k. Before version 6 a TopK SAE may call itself standard with the activation topk."""
    name, k = top.text("architecture", "standard"), top.number("k")
    activation = top.text("activation_fn_str") or top.text("activation_fn", "relu")
    if name == "temporal":
        raise CheckpointError(
            f"{top.file}: architecture temporal: its codes of a token depend on the tokens before it, which "
            "no SAE here can do; not supported"
        )
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"{top.file}: architecture {shown(name)} is not one of {', '.join(ARCHITECTURES)}"
        )
    if activation == "topk" and name in ("standard", "topk"):
        settings = top.table("activation_fn_kwargs")
        if settings.values.keys() - {"k"}:
            extra = min(settings.values.keys() - {"k"})
            raise CheckpointError(f"{top.file}: activation topk with {shown(extra)} is not supported")
        return "topk", k if settings.number("k") is None else settings.number("k")
    if activation != "relu":
        raise CheckpointError(
            f"{top.file}: activation {shown(activation)} of a {name} SAE is not supported; supported: relu, and "
            "topk of a standard one (SAELens 6 itself reads tanh-relu as relu, which is not what was trained)"
        )
    return name, k


def _normalisation(top: Settings, transcoder: bool) -> tuple[str, str]:
    """The SAE's own norm, and what is done outside of it. Before version 4 it is true, false or null."""
    value = top.values.get("normalize_activations")
    value = {True: OUTSIDE[0], False: "none"}[value] if isinstance(value, bool) else value
    value = "none" if value is None else value
    if isinstance(value, str) and value in OUTSIDE:
        return "none", value
    if not isinstance(value, str) or value not in NORMS:
        raise top.wrong("normalize_activations", f"one of {', '.join((*NORMS, *OUTSIDE))}")
    if transcoder and value != "none":
        raise CheckpointError(
            f"{top.file}: a transcoder with normalize_activations={value} is not supported: SAELens does not "
            "undo the normalisation of its output"
        )
    return NORMS[value], ""


def _subtracts(top: Settings, transcoder: bool) -> bool:
    subtracts = top.flag("apply_b_dec_to_input", not transcoder)
    if transcoder and subtracts:
        raise CheckpointError(
            f"{top.file}: apply_b_dec_to_input is true, but a transcoder's b_dec is of its output; set it to false"
        )
    return subtracts


def _widths(settings: Settings) -> tuple[int, ...]:
    key = "matryoshka_widths"
    widths = settings.values.get(key) or []
    wanted = "growing whole numbers of latents, all positive"
    if not isinstance(widths, list) or not all(type(width) is int for width in widths):
        raise settings.wrong(key, wanted)
    if any(width <= below for below, width in zip([0, *widths], widths, strict=False)):
        raise settings.wrong(key, wanted)
    return tuple(widths)


def _residual_threshold(top: Settings) -> float:
    """SAELens' default is 0.01; 0 or less never stops."""
    if top.values.get("residual_threshold") is None:
        return 0.01
    return max(top.number("residual_threshold", above=-math.inf) or 0.0, 0.0)


def _iterations(top: Settings) -> int | None:
    count = top.count("max_iterations")
    if count is not None and count > MAX_ITERATIONS:
        raise top.wrong("max_iterations", f"at most {MAX_ITERATIONS}")
    return count


def _origin(top: Settings, meta: Settings) -> Origin:
    name = meta.text("hook_name") or meta.text("hook_point") or meta.text("hf_hook_name")
    if len(name) > 200:
        raise meta.wrong("hook_name", "the name of a place in a model")
    hook, layer = site(name)
    if layer is None:
        told = meta.values.get("hook_layer", meta.values.get("hook_point_layer"))
        within = re.match(r"blocks\.(\d+)\.", name)
        layer = int(within[1]) if within else told if type(told) is int and told >= 0 else None
    notes, warnings = [f"prepend_bos {meta.flag('prepend_bos', True)}"], []
    for key in ("context_size", "exclude_special_tokens", "hook_head_index", "hook_name_out", "seqpos_slice"):
        value = meta.values.get(key)
        if value not in (None, False, [None]):
            notes.append(f"{key} {shown(value)}")
    kwargs = meta.table("model_from_pretrained_kwargs").values
    if kwargs.get("center_writing_weights"):
        warnings.append(
            "trained on a TransformerLens model with center_writing_weights: in its residual stream x is "
            "x - mean(x) over the D entries of a token; give it such activations"
        )
    elif kwargs:
        notes.append(f"trained on a model loaded with {shown(kwargs)}")
    dtype = top.text("dtype", "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise top.wrong("dtype", f"one of {', '.join(DTYPES)}")
    if dtype != "float32":
        notes.append(f"SAELens computes it in {dtype}; here the stored weights are used in float32")
    return Origin(meta.text("model_name"), hook, layer, tuple(notes), tuple(warnings))
