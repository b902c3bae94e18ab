"""Judges of claims on inference (section 5 of the first paper): the encoder beside exact codes on the same dictionary.

A judge is a pure function: rows of `claims_rows.read` -> Verdict. Effects are signed so that positive is as claimed.
"""

import functools
from collections.abc import Callable

from amortjax.report import claims_views as views
from amortjax.report.claims_marks import (
    CORE,
    DEAD,
    LEAST,
    LITERAL,
    NULLS,
    ONE_PERCENT,
    SAME_L0,
    SECTION5,
    WHAT,
)
from amortjax.report.claims_views import Rows
from amortjax.report.evidence import (
    Evidence,
    Triple,
    Verdict,
    apart,
    change,
    decide,
    effect,
    minus,
    number,
    paired,
    triple,
    within,
)


def encoder_excess(rows: Rows, key: str) -> Verdict:
    """The encoder's number minus the certified optimum's at equal L0; literal: minus ISTA-200's."""
    found, off = views.at_equal_l0(rows, "optimal")
    controlled = [
        one
        for pair in found
        for one in effect(
            pair.subject, WHAT[key], minus(paired(pair.other, key)), LEAST[key], triple(pair.encoder, key)
        )
    ]
    raw = "absorption" if key == "absorption_excess" else key
    literal = [
        one
        for pair in views.pairs(rows, "literal", "non_amortized")
        for one in effect(pair.subject, WHAT[raw], minus(paired(pair.other, raw)), LEAST[raw])
    ]
    return decide(controlled, literal, SECTION5, left_out=off)


def dead_cause(rows: Rows) -> Verdict:
    """Of the encoder's dead latents, those alive under the optimum minus those dead under it too."""
    out: list[Evidence] = []
    for row in views.middle_tolerance(views.of(rows, "dead_audit")):
        both = _sum(triple(row, "dead_half"), triple(row, "under_converged_half"))
        balance = apart(triple(row, "encoder_only_half"), both)
        level = triple(row, "dead_encoder_half")
        out += effect(str(row["subject"]), "", balance, LEAST["dead_half"], level)
    return decide(out, command=DEAD)


def _sum(a: Triple | None, b: Triple | None) -> Triple | None:
    return apart(a, minus(b))


def better_nmse(rows: Rows) -> Verdict:
    """The encoder's NMSE minus that of exact codes, with the amplitudes of the lasso and refitted."""
    controlled, off = [], []
    for mode, what in (("optimal", "optimum"), ("optimal_refit", "optimum refitted")):
        found, missed = views.at_equal_l0(rows, mode)
        off += missed
        for pair in found:
            controlled += effect(pair.subject, what, minus(paired(pair.other, "nmse")), LEAST["nmse"])
    literal = _literal(rows, "non_amortized", "nmse_literal")
    return decide(controlled, literal, SECTION5, left_out=off)


def semi_nmse(rows: Rows) -> Verdict:
    """The encoder's NMSE minus that after 30 steps from its code."""
    found, off = views.at_equal_l0(rows, "semi_amortized")
    controlled = [
        one
        for pair in found
        for one in effect(pair.subject, "NMSE", minus(paired(pair.other, "nmse")), LEAST["nmse"])
    ]
    return decide(controlled, _literal(rows, "semi_amortized", "nmse_literal"), SECTION5, left_out=off)


def _literal(rows: Rows, mode: str, key: str) -> list[Evidence]:
    return [
        one
        for pair in views.pairs(rows, "literal", mode)
        for one in effect(pair.subject, "NMSE", minus(paired(pair.other, key)), LEAST["nmse"])
    ]


def worse_than_zeros(rows: Rows) -> Verdict:
    """TopK's NMSE minus 1, which all-zero codes have."""
    one = Triple(1.0, 1.0, 1.0)
    encoders = [
        row for row in views.saes(rows) if row.get("mode") == "amortized" and row.get("variant") == "topk"
    ]
    sides: dict[str, list[Evidence]] = {"same_l0": [], "literal": []}
    for condition, key in (("same_l0", "nmse"), ("literal", "nmse_literal")):
        for row in encoders:
            if row.get("condition") == condition:
                above = apart(triple(row, key), one)
                sides[condition] += effect(str(row["subject"]), "NMSE - 1", above, LEAST["nmse"])
    # The claim is about the released reading: the controlled number alone says nothing of it.
    controlled = sides["same_l0"] if sides["literal"] else ()
    return decide(
        controlled, sides["literal"], LITERAL, "no TopK SAE was evaluated under the literal protocol"
    )


def ista_is_optimum(rows: Rows) -> Verdict:
    """How far ISTA-200 is from the optimum of its lambda, in P and in L0."""
    out: list[Evidence] = []
    for pair in views.pairs(rows, "same_lambda", "non_amortized"):
        out += within(pair.subject, "(P-P*)/P*", views.gap(pair.other), ONE_PERCENT)
    for subject, modes in views.by_mode(views.saes(rows), "same_lambda").items():
        best, own = modes.get("optimal", {}), modes.get("non_amortized", {})
        more, l0 = change(best, own, "l0"), number(best, "l0")
        if more is not None and l0:
            relative = Triple(*(None if v is None else v / l0 for v in more))  # pyright: ignore[reportArgumentType]
            out += within(subject, "L0 above the optimum's", relative, SAME_L0)
    return decide(out, command=SECTION5)


def gated_dense(rows: Rows) -> Verdict:
    """Share of dense latents of Gated SAEs, and 1 % minus their dead share."""
    out: list[Evidence] = []
    literal: list[Evidence] = []
    for row in views.saes(rows):
        if row.get("variant") != "gated" or row.get("mode") != "amortized":
            continue
        found = [*effect(str(row["subject"]), "dense", triple(row, "dense@0.1"), 0.1)]
        few = apart(Triple(0.01, 0.01, 0.01), triple(row, "dead_half"))
        found += effect(str(row["subject"]), "1 % - dead", few, 0.0)
        if row.get("condition") == "same_l0":
            out += found
        elif row.get("condition") == "literal":
            literal += found
    train = (
        "python -m amortjax.launch.train --variant=gated --acts=outputs/quickstart/acts --out=outputs/gated"
    )
    return decide(out, literal, f"{train}, then launch.section5 on it", "no Gated SAE was evaluated")


def above_chance(rows: Rows) -> Verdict:
    """Absorption minus that of independent latents; absorption and splitting minus those of null models."""
    out: list[Evidence] = []
    for row in views.saes(rows):
        if row.get("condition") == "same_l0" and row.get("mode") == "amortized":
            found = triple(row, "absorption_excess")
            out += effect(str(row["subject"]), "absorption - chance", found, LEAST["absorption"])
    for row in views.of(rows, "nulls"):
        if row.get("mode") not in ("amortized", "optimal"):
            for key in ("df1", "absorption"):
                what = f"{WHAT[key]} - that of {str(row.get('mode')).replace('_', ' ')}"
                out += effect(str(row["subject"]), what, minus(paired(row, key)), LEAST[key])
    return decide(out, command=f"{SECTION5}; {NULLS}")


def model_notices(rows: Rows) -> Verdict:
    """CE recovered by better codes minus that of the encoder's, at equal L0."""
    modes = {"optimal": "optimum", "optimal_refit": "optimum refitted", "omp": "OMP"}
    out: list[Evidence] = []
    for row in views.of(rows, "core_lite"):
        if row.get("mode") in modes and views.matched(row):
            out += effect(str(row["subject"]), modes[str(row["mode"])], paired(row, "ce_recovered"), 0.005)
    return decide(out, command=CORE)


def excess_of(key: str) -> Callable[[Rows], Verdict]:
    return functools.partial(encoder_excess, key=key)
