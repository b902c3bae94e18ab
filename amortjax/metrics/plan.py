"""What to measure of an SAE, and the SAE posed on a store's rows."""

import dataclasses
from typing import Any

import numpy as np

from amortjax.errors import AmortjaxError, StoreError
from amortjax.inference import modes, objective
from amortjax.inference.modes import MODES, Options
from amortjax.metrics import labels
from amortjax.metrics.matching import CONDITIONS
from amortjax.metrics.measure import Subject
from amortjax.saes.literal import CHOICES, literal_sae
from amortjax.saes.sae import SAE, is_transcoder

DEFAULT_MODES = tuple(MODES)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure. Token counts are budgets of whole documents; None takes the whole split.

    target_l0 or target_dense (firing density) replace the encoder's own L0 as what is matched.
    heads: also score the first so many test tokens (dead latents depend on the count).
    """

    modes: tuple[str, ...] = DEFAULT_MODES
    conditions: tuple[str, ...] = CONDITIONS
    protocol: str = "controlled"
    options: Options = dataclasses.field(default_factory=Options)
    calibration_tokens: int | None = 16384
    eval_tokens: int | None = 32768
    probe_tokens: int | None = 16384
    target_l0: float | None = None
    target_dense: float | None = None
    heads: tuple[int, ...] = (512,)
    literal_choices: tuple[str, ...] = tuple(CHOICES)
    eval_split: str = "test"
    seed: int = 0
    # At one lambda also the gap's amplitude and support, and the optimum at other tolerances.
    details: bool = True

    def __post_init__(self) -> None:
        # The encoder first: the others' paired differences are from it.
        chosen = sorted((modes.resolve(mode) for mode in self.modes), key=lambda mode: mode != "amortized")
        object.__setattr__(self, "modes", tuple(dict.fromkeys(chosen)))
        for name, allowed in (("conditions", CONDITIONS), ("literal_choices", tuple(CHOICES))):
            unknown = set(getattr(self, name)) - set(allowed)
            if unknown:
                raise AmortjaxError(
                    f"{name}: {', '.join(sorted(unknown))} is not one of {', '.join(allowed)}"
                )
        if self.protocol not in ("controlled", "literal"):
            raise AmortjaxError(f"protocol {self.protocol!r} is not one of controlled, literal")
        if self.target_l0 is not None and self.target_dense is not None:
            raise AmortjaxError("target_l0 and target_dense say the same thing: give one")


def make_plan(**given: Any) -> Plan:
    """A Plan from fields of Plan and of Options together."""
    names = {field.name for field in dataclasses.fields(Options)}
    options = dataclasses.replace(
        given.pop("options", Options()), **{name: given.pop(name) for name in names & given.keys()}
    )
    unknown = given.keys() - {field.name for field in dataclasses.fields(Plan)}
    if unknown:
        raise AmortjaxError(f"price has no argument {', '.join(sorted(unknown))}")
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Plan(options=options, **{**given, **lists})


def pose_subject(sae: SAE, acts: Any, plan: Plan) -> Subject:
    """The SAE on the store's rows, or why it doesn't belong there."""
    if sae.d_in != acts.d_model:
        raise StoreError(
            f"this SAE takes activations of width {sae.d_in}, the store's have {acts.d_model}: collect "
            "activations of the model, layer and hook the SAE was trained on"
        )
    if is_transcoder(sae):
        raise AmortjaxError(
            "this is a transcoder: its price needs recorded outputs beside the inputs, not supported"
        )
    known = sae.info.trained_on and sae.info.trained_on == acts.manifest["corpus_fingerprint"]
    if known and plan.eval_split == "sae_train":
        raise AmortjaxError("this SAE was trained on sae_train: evaluate on --eval_split=test")
    if plan.protocol == "controlled" and plan.eval_split in ("calibrate", "probe_train"):
        what = "lambda is calibrated" if plan.eval_split == "calibrate" else "probes are fitted"
        raise AmortjaxError(f"--eval_split={plan.eval_split}: {what} on these rows; evaluate on test")
    literal = plan.protocol == "literal"
    choices = plan.literal_choices if literal else ()
    sae = literal_sae(sae, choices) if literal else sae
    problem = objective.pose(
        sae,
        weights="unit" if "unit_weights" in choices else "norm",
        offset="none" if "no_b_dec" in choices else "b_out",
        signed=True if "signed" in choices else None,
    )
    pick = lambda split, budget: acts.rows(split, budget, seed=plan.seed)  # noqa: E731
    rows = {
        "calibrate_rows": pick("calibrate", plan.calibration_tokens),
        "probe_rows": pick("probe_train", plan.probe_tokens),
        "test_rows": pick(plan.eval_split, plan.eval_tokens),
    }
    units = _probe_units(acts, rows)
    if "pseudo_labels" in choices:
        units = "norms" if "train_f1" in choices else "tokens"
    return Subject(sae, problem, acts, **rows, options=plan.options, units=units, clip="signed" in choices)


def _probe_units(acts: Any, rows: dict[str, np.ndarray]) -> str:
    """Documents if some label has enough of them on both sides, in both splits; else token properties."""
    for name in ("probe_rows", "test_rows"):
        documents = np.unique(acts.doc_ids[rows[name]])
        own = acts.documents["label"][documents].astype(str)
        counts = {label: int(np.sum(own == label)) for label in np.unique(own) if label}
        sides = [min(n, sum(counts.values()) - n) for n in counts.values()]
        if max(sides, default=0) < labels.MIN_DOCUMENTS:
            return "tokens"
    return "documents"
