"""What OpenMOSS's layouts leave to fold into the weights: the data's average norm and the decoder's norms."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats.checked import setting
from amortjax.saes.formats.common import loud
from amortjax.saes.formats.opened import Opened

AVERAGE = "dataset_average_activation_norm"
ROUNDING = 0.01  # rows of norm 1 that were rounded to bfloat16 stay within
FOLDED = (
    "decoder norms are off 1 by up to {off:.2g} and were divided out, as its own library does; SAELens' reader leaves "
    "that out and fires otherwise"
)
RANKED = (
    "decoder norms are off 1 by up to {off:.2g} and were divided out, for the ranking of its latents by them: codes "
    "are larger by the norm than its own library's, reconstructions are the same"
)
NOT_GATED = (
    "decoder norms are off 1 by up to {off:.2g}, and its config wants pre-activations times the norm compared with "
    "the thresholds: left out, as SAELens does; scale='openmoss' does it"
)


class Layout(NamedTuple):
    """A layout's names of the encoder, its bias, the decoder, its bias and the log thresholds. `transpose`: its
    matrices are torch's Linear's."""

    name: str
    w_enc: str
    b_enc: str
    w_dec: str
    b_dec: str
    log_threshold: str
    transpose: bool


LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
SCOPE = Layout("llama_scope", *LINEAR, "", True)
R1 = Layout("r1_distill", *LINEAR, "log_jumprelu_threshold", True)
SCOPIUM = Layout(
    "llamascopium", "W_E", "b_E", "W_D", "b_D", "activation_function.log_jumprelu_threshold", False
)


class Source(NamedTuple):
    opened: Opened
    layout: Layout
    file: Path  # the config
    config: dict[str, Any]

    def setting(self, key: str, kind: type, default: Any = None) -> Any:
        return setting(self.file, self.config, key, kind, default)


class Factors(NamedTuple):
    """What x and y were multiplied by in training; or the norm that each x is brought to."""

    f_in: float = 1.0
    f_out: float = 1.0
    norm: str = "none"


def factors(source: Source, d: int, chosen: float | None) -> tuple[Factors, list[str]]:
    """From the averages in the config (Llama Scope) or among the tensors."""
    file, path = source.file, source.opened.path
    if chosen is not None:
        f = 1 / _sound(path, "norm_factor", chosen)
        return Factors(f, f), []
    kind = source.setting("norm_activation", str, "dataset-wise")
    if kind in ("inference", "none"):
        return Factors(), []
    hook = source.setting("hook_point_in", str, "")
    out = source.setting("hook_point_out", str, hook)
    if kind == "token-wise" and hook == out:
        return Factors(norm="constant_norm"), []
    if kind != "dataset-wise":
        raise CheckpointError(
            f"{file}: norm_activation {kind!r:.80} is not supported; dataset-wise and inference are"
        )
    first, last = _average(source, "in", hook), _average(source, "out", out)
    if first is not None:
        return Factors(math.sqrt(d) / first, math.sqrt(d) / (last or first)), []
    if source.layout is SCOPE:
        raise CheckpointError(
            f"{file}: {AVERAGE} is missing; load it with norm_factor=average norm / sqrt(D)"
        )
    note = (
        f"trained on activations divided by (average norm / sqrt(D)), but {AVERAGE} is not in the file: it takes x so "
        "divided; for raw x load it with norm_factor=average norm / sqrt(D)"
    )
    return Factors(), [loud(path, note)]


def _average(source: Source, end: str, hook: str) -> float | None:
    """The average norm at one end, "in" or "out"; None if it is not said."""
    opened, file = source.opened, source.file
    if source.layout is SCOPE:
        said = setting(file, source.setting(AVERAGE, dict, {}), end, float, None)
        return None if said is None else _sound(file, f"{AVERAGE}.{end}", said)
    stored = sorted(key for key in opened.keys if key.startswith(AVERAGE + "."))
    key = stored[0] if len(stored) == 1 and not hook else f"{AVERAGE}.{hook}"
    if key not in stored:
        if stored:
            raise CheckpointError(
                f"{opened.path}: tensor {key!r:.160} is missing; there is {', '.join(stored)[:160]}"
            )
        return None
    value = opened.array(key)
    if value.size != 1:
        raise CheckpointError(f"{opened.path}: {key} has shape {value.shape}; wanted a single number")
    return _sound(opened.path, key, float(value.reshape(())))


def _sound(file: Path, key: str, value: float) -> float:
    if not 1e-18 < value < 1e18:
        raise CheckpointError(f"{file}: {key} is {value}; wanted a positive number of ordinary size")
    return value


def with_norms(
    source: Source, a: dict[str, np.ndarray], name: str, factors: Factors, scale: str
) -> list[str]:
    """Puts `sparsity_include_decoder_norm` into the arrays; notes.

    Llama Scope's library brings the decoder's rows to norm 1 and codes are larger by it. The others' gates the
    pre-activation times the norm n and leaves the code as it is: pre > threshold / n. For top-k, whose ranking has no
    threshold to divide, rows are brought to norm 1 too. A row of norm 0 never fires.
    """
    layout, path = source.layout, source.opened.path
    if not source.setting("sparsity_include_decoder_norm", bool, layout is SCOPIUM):
        return []
    n = np.sqrt(np.einsum("md,md->m", a["w_dec"], a["w_dec"], dtype=np.float64))
    ratio = factors.f_in / factors.f_out if layout is SCOPE else 1.0  # its library scales the decoder first
    n, off = n * ratio, float(np.abs(n * ratio - 1).max())
    if layout is R1 and scale == "saelens":
        return [loud(path, NOT_GATED.format(off=off))] if off > ROUNDING else []
    if layout is SCOPE and scale == "saelens" and off <= ROUNDING:
        return []
    a["w_enc"][:, n == 0], a["b_enc"][n == 0] = 0, 0
    safe = np.where(n > 0, n, 1).astype(np.float32)
    if layout is not SCOPE and not name.endswith("topk"):
        if name == "jumprelu":
            a["threshold"] /= safe
        return []
    a["w_enc"] *= safe
    a["b_enc"] *= safe
    a["w_dec"] /= safe[:, None]
    note = FOLDED if layout is SCOPE else RANKED
    return [loud(path, note.format(off=off))] if off > ROUNDING else []


def to_raw(a: dict[str, np.ndarray], factors: Factors, scale: str) -> None:
    """Folds the factors into the arrays, in place."""
    f_in, f_out = np.float32(factors.f_in), np.float32(factors.f_out)
    if f_in == f_out == 1:
        return
    if "b_dec" in a:
        a["b_dec"] /= f_out
    if scale == "saelens":
        a["w_enc"] *= f_in
        a["w_dec"] /= f_out
        return
    a["b_enc"] /= f_in
    if f_in != f_out:
        a["w_dec"] *= f_in / f_out
