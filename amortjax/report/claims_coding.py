"""Judges of the second paper's claims on SAEs of language models: what no encoder can do, and what seeds agree on. A
judge is a pure function: rows of `claims_rows.read` -> Verdict. Effects are signed so that positive is as claimed.
"""

from amortjax.report import claims_views as views
from amortjax.report.claims_marks import SECTION5
from amortjax.report.claims_views import Rows
from amortjax.report.evidence import (
    Evidence,
    Row,
    Verdict,
    apart,
    decide,
    effect,
    number,
    paired,
    triple,
)

ENCODERS = "python -m amortjax.launch.encoders --flagfile=configs/encoders/embedded.flags"
# Of macro-F1: what matters, and by how much, relatively, the L0 of two encoders may differ that are compared in it.
LEAST_F1, NEAR_L0 = 0.02, 0.1
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


def mlp_is_explained(rows: Rows) -> Verdict:
    """Macro-F1 of a judge on the MLP encoder's latents minus the SAE's, trained on the same tokens. Of unequal L0, as
    in the paper, it counts as literal: sparser latents are easier to explain, whatever encodes them."""
    controlled: list[Evidence] = []
    literal: list[Evidence] = []
    folders: dict[str, dict[str, Row]] = {}
    for row in views.of(rows, "encoders"):
        if row.get("mode") == "amortized" and row.get("matched") == row.get("method"):
            folders.setdefault(str(row["folder"]), {})[str(row["method"])] = row
    for folder, own in folders.items():
        sae, mlp = own.get("sae", {}), own.get("mlp", {})
        found = apart(triple(mlp, "macro_f1"), triple(sae, "macro_f1"))
        l0, other = number(sae, "l0"), number(mlp, "l0")
        near = l0 is not None and other is not None and abs(other - l0) <= NEAR_L0 * l0
        what = "" if l0 is None or other is None else f"L0 {other:.3g} and {l0:.3g}"
        (controlled if near else literal).extend(effect(folder, what, found, LEAST_F1))
    missing = "no MLP encoder and SAE of about the same L0 were judged"
    return decide(controlled, literal, command=ENCODERS, missing=missing)
