"""Flags of launchers that read a checkpoint: what settles what the file leaves open, as `load_sae` takes it."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from amortjax.launch.flagged import FlagError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    k: Annotated[int | None, "Latents that fire on a token, where the file does not say."] = None
    threshold: Annotated[
        str | None, "Fire above this number instead of by top-k; true = above the threshold in the file."
    ] = None
    dict_class: Annotated[
        str | None, "Class of a dictionary_learning file that does not say which it is."
    ] = None
    d_model: Annotated[int | None, "Width of the activations, where the shapes leave it open."] = None
    normalize_decoder: Annotated[
        bool | None, "true: decoder rows to norm 1, the encoder by as much the other way; false: as they are."
    ] = None
    norm_factor: Annotated[
        float | None,
        "What training divided its activations by (dictionary_learning, Llama Scope) or multiplied them by (SAELens); "
        "1 = the file as it is.",
    ] = None
    scale: Annotated[
        Literal["saelens", "openmoss"] | None,
        "Units of a Llama Scope SAE's codes: those of training, as SAELens has them, or of raw activations.",
    ] = None
    pre_bias: Annotated[
        bool | None,
        "Of a bare file that names no library: true = b_dec is subtracted before encoding; false = it is not.",
    ] = None
    batch_rule: Annotated[
        bool | None, "true: the k N largest of a batch of N tokens fire, not all above a threshold."
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that are set, as `load_sae(path, **given)` takes them. FlagError on a threshold that is no number."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Choices)}
        if self.threshold is not None:
            values["threshold"] = _threshold(self.threshold)
        return {name: value for name, value in values.items() if value is not None}


def _threshold(text: str) -> float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FlagError(f"--threshold={text}: not a number, and not true (the threshold in the file).")
    return value
