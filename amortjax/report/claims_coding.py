"""Judges of claims of the second paper: sparse coding against encoders, and what no encoder can do.

Of the synthetic scenarios a row needs scenario (known_z, known_d, unknown), model, mcc, mcc_lo and mcc_hi; where
several data sets are compared also n_sources, n_dims and n_active, and zipf where values are Zipfian. A judge is a pure
function: rows of `claims_rows.read` -> Verdict. Effects are signed so that positive is as claimed.
"""

import itertools
import math
from collections.abc import Callable, Mapping

from amortjax.report import claims_views as views
from amortjax.report.claims_marks import SECTION5
from amortjax.report.claims_views import Rows
from amortjax.report.evidence import (
    Evidence,
    Row,
    Triple,
    Verdict,
    apart,
    decide,
    effect,
    number,
    paired,
    triple,
)

MCC = 0.02  # the least difference that counts
NO_LAUNCHER = (
    "this version has no launcher of the synthetic scenarios: rows with scenario, model, mcc, its interval"
)
NO_JUDGE_MODEL = "it needs a language model that writes and judges explanations, and GPT-2 SAEs of both kinds"
SCALE = ("n_sources", "n_dims", "n_active", "zipf")
DECOMPOSE = (
    "python -m amortjax.launch.decompose --acts=outputs/quickstart/acts --ckpt=outputs/quickstart/topk "
    "--out=outputs/quickstart/decompose"
)
CONSISTENCY = (
    "python -m amortjax.launch.consistency --acts=outputs/quickstart/acts --ckpts=SEED0,SEED1 "
    "--out=outputs/consistency"
)


def kind_of(model: object) -> str:
    """sae, mlp, ito (inference-time optimisation on the SAE's dictionary), sc (sparse coding), or "" ."""
    name = str(model).lower().replace("_", "-")
    if "ito" in name:
        return "ito"
    if name in ("sc", "sparse-coding"):
        return "sc"
    return next((kind for kind in ("sae", "mlp") if name.startswith(kind)), "")


def settings(rows: Rows, scenario: str) -> dict[tuple, dict[str, list[Row]]]:
    """{data: {kind of model: rows}} of one scenario."""
    found: dict[tuple, dict[str, list[Row]]] = {}
    for row in views.of(rows, "synthetic"):
        kind = kind_of(row.get("model"))
        if row.get("scenario") == scenario and kind and number(row, "mcc") is not None:
            data = tuple(str(row.get(key)) for key in SCALE)
            found.setdefault(data, {}).setdefault(kind, []).append(row)
    return found


def _best(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: number(row, "mcc") or -math.inf)


def beats(rows: Rows, scenario: str, better: str, worse: str) -> list[Evidence]:
    """MCC of the best of one kind of model minus that of the best of another, on the same data."""
    out: list[Evidence] = []
    for data, kinds in settings(rows, scenario).items():
        if better in kinds and worse in kinds:
            a, b = _best(kinds[better]), _best(kinds[worse])
            more = apart(triple(a, "mcc"), triple(b, "mcc"))
            out += effect(_data(data), f"{a['model']} - {b['model']}", more, MCC)
    return out


def _data(data: tuple) -> str:
    named = [f"{key} {value}" for key, value in zip(SCALE, data, strict=True) if value != "None"]
    return ", ".join(named) or "the default data"


def together(rows: Rows, scenario: str, *comparisons: tuple[str, str]) -> Verdict:
    """Several of them (better, worse) as one claim."""
    found = [e for better, worse in comparisons for e in beats(rows, scenario, better, worse)]
    return decide(found, missing=NO_LAUNCHER)


def boundary(rows: Rows) -> Verdict:
    """Sparse coding's mean lead over the SAE where codes are recoverable (K ln(N/K) <= M < N) minus that elsewhere."""
    leads: dict[bool, list[Triple]] = {True: [], False: []}
    for data, kinds in settings(rows, "unknown").items():
        size = [_positive(value) for value in data[:3]]
        if None in size or not {"sc", "sae"} <= kinds.keys():
            continue
        n, m, k = (float(value or 0) for value in size)
        lead = apart(triple(_best(kinds["sc"]), "mcc"), triple(_best(kinds["sae"]), "mcc"))
        if lead is not None and k < n:
            leads[k * math.log(n / k) <= m < n].append(lead)
    if not all(leads.values()):
        return decide((), missing=f"no grid of sizes: {NO_LAUNCHER}")
    what = f"{len(leads[True])} sizes inside, {len(leads[False])} outside"
    found = apart(_mean(leads[True]), _mean(leads[False]))
    return decide(effect("mean lead", what, found, MCC), missing=NO_LAUNCHER)


def _mean(found: list[Triple]) -> Triple:
    """Its ends are means of ends, which is wider than need be."""
    value = sum(one.value for one in found) / len(found)
    lows = [one.lo for one in found if one.lo is not None]
    highs = [one.hi for one in found if one.hi is not None]
    if len(lows) < len(found) or len(highs) < len(found):
        return Triple(value, None, None)
    return Triple(value, sum(lows) / len(found), sum(highs) / len(found))


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def scenario(name: str, *chain: str) -> Callable[[Rows], Verdict]:
    """The judge of a claim that each kind of model of a chain beats the next."""
    return lambda rows: together(rows, name, *itertools.pairwise(chain))


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


def coding_per_operation(rows: Rows) -> Verdict:
    """Sparse coding's MCC minus the SAE's, where it took no more training operations."""
    out: list[Evidence] = []
    for data, kinds in settings(rows, "unknown").items():
        spent: Mapping[str, float | None] = {
            kind: number(_best(own), "train_flops") for kind, own in kinds.items()
        }
        if {"sc", "sae"} <= kinds.keys() and None not in (spent["sc"], spent["sae"]):
            lead = apart(triple(_best(kinds["sc"]), "mcc"), triple(_best(kinds["sae"]), "mcc"))
            if (spent["sc"] or 0) <= (spent["sae"] or 0):
                out += effect(_data(data), "sc - sae at no more operations", lead, MCC)
    return decide(out, missing=f"no rows with train_flops: {NO_LAUNCHER}")
