"""Judges of the second paper's claims on SAEs of language models: what no encoder can do, and what seeds agree on. A
judge is a pure function: rows of `claims_rows.read` -> Verdict. Effects are signed so that positive is as claimed.
"""

from collections.abc import Callable

from amortjax.report import claims_views as views
from amortjax.report.claims_marks import SECTION5
from amortjax.report.claims_views import Rows
from amortjax.report.evidence import (
    Evidence,
    Verdict,
    decide,
    effect,
    paired,
    triple,
)

NO_JUDGE_MODEL = "it needs a language model that writes and judges explanations, and GPT-2 SAEs of both kinds"
DECOMPOSE = (
    "python -m amortjax.launch.decompose --acts=outputs/quickstart/acts --ckpt=outputs/quickstart/topk "
    "--out=outputs/quickstart/decompose"
)
CONSISTENCY = (
    "python -m amortjax.launch.consistency --acts=outputs/quickstart/acts --ckpts=SEED0,SEED1 "
    "--out=outputs/consistency"
)


def encoder_has_gap(rows: Rows) -> Verdict:
    """The certified lower bound of the encoder's gap, at lambda* and at the trained lambda; and the gap that the best
    affine encoder fitted to the same objective leaves."""
    out: list[Evidence] = []
    for condition in ("same_lambda", "trained_lambda"):
        for subject, modes in views.by_mode(views.saes(rows), condition).items():
            found = triple(modes.get("amortized", {}), "suboptimality_lower")
            out += effect(subject, condition.replace("_", " "), found, 0.0)
    for row in views.of(rows, "decompose"):
        if row.get("mode") == "affine":
            out += effect(str(row["subject"]), "best affine encoder", triple(row, "excess_lower"), 0.0)
    return decide(out, command=f"{SECTION5}; {DECOMPOSE}")


def wider_encoder_helps(rows: Rows) -> Verdict:
    """The share of the price that an MLP encoder removes beyond the best affine one."""
    out: list[Evidence] = []
    for row in views.of(rows, "decompose"):
        if row.get("mode") == "mlp":
            out += effect(str(row["subject"]), "share of the price", triple(row, "share"), 0.01)
    return decide(out, command=DECOMPOSE)


def seeds_agree(rows: Rows) -> Verdict:
    """How much more codes of two seeds agree under the optimum than the encoder, latents matched by dictionary."""
    out: list[Evidence] = []
    for row in views.of(rows, "consistency"):
        if row.get("mode") == "optimal" and views.matched(row):
            out += effect(str(row["subject"]), "", paired(row, "mcc_by_dictionary"), 0.01)
    return decide(out, command=CONSISTENCY, missing="no two SAEs of different seeds were compared")


def not_testable(missing: str) -> Callable[[Rows], Verdict]:
    return lambda rows: decide((), missing=missing)
