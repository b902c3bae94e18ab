"""Judges of claims on training (section 4.3 of the first paper), on numbers of steps, and on LocA (section 6).

A judge is a pure function: rows of `claims_rows.read` -> Verdict. Effects are signed so that positive is as claimed.
"""

import itertools

from amortjax.report import claims_views as views
from amortjax.report.claims_marks import LEAST, LOCA, ONE_PERCENT, SECTION43, SWEEP, WHAT
from amortjax.report.claims_views import Rows
from amortjax.report.evidence import (
    Evidence,
    Triple,
    Verdict,
    apart,
    at_most,
    change,
    decide,
    effect,
    minus,
    number,
    paired,
    triple,
    within,
)

PATHOLOGIES = ("dead_half", "dense@0.1", "df1", "absorption_excess")


def gap_falls(rows: Rows) -> Verdict:
    """The relative gap at the first step minus that at the last."""
    out: list[Evidence] = []
    for way in views.ways(rows):
        for key, what in (("certified", "to the optimum"), ("ista", "to ISTA-200")):
            out += effect(way.subject, what, _fall(way, key), ONE_PERCENT)
    literal = []
    for way in views.ways(rows):
        ends = [triple(block.get("literal", {}), "literal_gap_mean") for block in (way.first, way.last)]
        literal += effect(way.subject, "literal gap", apart(*ends), 0.0)
    return decide(out, literal, SECTION43)


def _fall(way: views.Way, key: str) -> Triple | None:
    for condition in ("same_lambda", "trained_lambda"):
        together = views.certified_fall(way, condition) if key == "certified" else None
        if together is not None:
            return together
        ends = [block.get(condition, {}) for block in (way.first, way.last)]
        found = [
            views.gap(row) if key == "certified" else triple(row, "relative_gap_to_ista") for row in ends
        ]
        if None not in found:
            return apart(*found)
    return None


def pathologies_grow(rows: Rows) -> Verdict:
    """Each pathology at the last step minus that at the first."""
    found = [one for way in views.ways(rows) for key in PATHOLOGIES for one in _rise(way, key)]
    return decide(found, command=SECTION43)


def _rise(way: views.Way, key: str) -> list[Evidence]:
    return effect(way.subject, WHAT[key], views.risen(way, key), LEAST[key])


def divergence(rows: Rows) -> Verdict:
    """Of trainings whose gap falls: the pathology that rose most clearly."""
    out: list[Evidence] = []
    falling = 0
    for way in views.ways(rows):
        if not any(e.side == "for" for e in effect(way.subject, "", _fall(way, "certified"), ONE_PERCENT)):
            continue
        falling += 1
        rises = [one for key in PATHOLOGIES for one in _rise(way, key)]
        order = ("for", "undecided", "no interval", "small", "opposite", "absent")
        out += sorted(rises, key=lambda e: order.index(e.side))[:1]
    ways = len(views.ways(rows))
    missing = (
        f"the gap falls, told apart, in none of {ways} trainings" if ways else "no trajectory was measured"
    )
    notes = [f"the gap falls in {falling} of {ways} trainings"] if out else []
    return decide(out, command=SECTION43, missing=missing, notes=notes)


def topk_rises(rows: Rows) -> Verdict:
    """TopK's ΔF1 and absorption at the last step minus those at the first."""
    chosen = [way for way in views.ways(rows) if way.variant == "topk"]
    found = [one for way in chosen for key in ("df1", "absorption_excess") for one in _rise(way, key)]
    return decide(found, command=SECTION43)


def topk_sparser(rows: Rows) -> Verdict:
    """ΔF1 and absorption of the sparsest TopK SAE minus those of the densest, at their last steps."""
    last = [(way, way.last.get("same_l0") or way.last.get("literal")) for way in views.ways(rows)]
    own = [(number(row, "l0"), row) for way, row in last if way.variant == "topk" and row]
    known = sorted(((l0, row) for l0, row in own if l0 is not None), key=lambda pair: pair[0])
    out: list[Evidence] = []
    if len(known) > 1:
        sparse, dense = known[0][1], known[-1][1]
        name = f"{sparse.get('sparsity')} against {dense.get('sparsity')}"
        for key in ("df1", "absorption_excess"):
            out += effect(name, WHAT[key], apart(triple(sparse, key), triple(dense, key)), LEAST[key])
    return decide(out, command=SECTION43, missing="no two TopK trainings of different sparsity")


def early_dense(rows: Rows) -> Verdict:
    """The densest trained checkpoint's dense@0.2 minus .66, of each Standard training; step 0 is no training."""
    mark, out = Triple(0.66, 0.66, 0.66), []
    for line, steps in views.trainings(rows).items():
        known = [
            found
            for step, block in steps.items()
            for row in block.values()
            if step > 0 and (found := triple(row, "dense@0.2")) is not None
        ]
        if line.variant == "standard" and known:
            most = max(known, key=lambda found: found.value)
            out += effect(line.name, "dense@0.2 - .66", apart(most, mark), 0.0)
    return decide(out, command=SECTION43, missing="no Standard SAE was followed through training")


# --- the step sweep ---

FEW, MODERATE, MANY = 5, 25, 50


def steps_nmse(rows: Rows) -> Verdict:
    """NMSE after the fewest of 5 to 50 steps minus that after the most; a rise between neighbours speaks against."""
    out: list[Evidence] = []
    for subject, (_, steps) in views.sweeps(rows, "same_l0").items():
        inside = [steps[n] for n in steps if FEW <= n <= MANY]
        if len(inside) < 2:
            continue
        rises = [change(a, b, "nmse") for a, b in itertools.pairwise(inside)]
        found = effect(subject, "", minus(change(inside[0], inside[-1], "nmse")), LEAST["nmse"])
        risen = any(rise is not None and rise.lo is not None and rise.lo > 0 for rise in rises)
        out += [one._replace(side="opposite") for one in found] if risen else found
    return decide(out, command=SWEEP)


def steps_dead(rows: Rows) -> Verdict:
    """1 % minus the dead share after at most 5 steps."""
    out: list[Evidence] = []
    for subject, (_, steps) in views.sweeps(rows, "same_l0").items():
        early = [n for n in steps if 0 < n <= FEW]
        level = triple(steps.get(0, {}), "dead_half")
        if early:
            few = apart(Triple(0.01, 0.01, 0.01), triple(steps[max(early)], "dead_half"))
            nothing = level is not None and level.hi is not None and level.hi < LEAST["dead_half"]
            found = effect(subject, f"{max(early)} steps", few, 0.0)
            out += [one._replace(side="absent") for one in found] if nothing else found
    return decide(out, command=SWEEP)


def steps_flat(rows: Rows) -> Verdict:
    """ΔF1 and absorption after 25 steps minus those after 5."""
    out: list[Evidence] = []
    for subject, (_, steps) in views.sweeps(rows, "same_l0").items():
        if FEW in steps and MODERATE in steps:
            for key in ("df1", "absorption_excess"):
                out += within(subject, WHAT[key], change(steps[FEW], steps[MODERATE], key), LEAST[key])
    return decide(out, command=SWEEP)


def steps_suffice(rows: Rows) -> Verdict:
    """After 25 steps: each number minus the optimum's at equal L0, and the gap at the same lambda."""
    out: list[Evidence] = []
    for subject, (best, steps) in views.sweeps(rows, "same_l0").items():
        for key in ("nmse", "dead_half", "df1", "absorption_excess"):
            if MODERATE in steps and best:
                out += at_most(subject, WHAT[key], change(best, steps[MODERATE], key), LEAST[key])
    for subject, (_, steps) in views.sweeps(rows, "same_lambda").items():
        if MODERATE in steps:
            out += at_most(subject, "(P-P*)/P*", views.gap(steps[MODERATE]), ONE_PERCENT)
    return decide(out, command=SWEEP)


# --- section 6: LocA ---

CONTROLS = {"random_groups": "random groups", "uniform_k": "uniform budgets"}
LOCA_KEYS = {"nmse": 0.005, "dead_half": 0.01, "df1": 0.01, "absorption": 0.02}


def loca_beats_single(rows: Rows) -> Verdict:
    """Plain TopK of the same k and as much training, minus LocA."""
    out: list[Evidence] = []
    for row in views.of(rows, "loca"):
        if row.get("name") == "topk":
            for key, least in LOCA_KEYS.items():
                out += effect(str(row["folder"]), WHAT[key], paired(row, key, "loca"), least)
    return decide(out, command=LOCA)


def grouping_matters(rows: Rows) -> Verdict:
    """NMSE of LocA's controls (random groups, uniform budgets) minus LocA's."""
    out: list[Evidence] = []
    for row in views.of(rows, "loca"):
        if row.get("name") in CONTROLS:
            name = f"{row['folder']}, {CONTROLS[str(row['name'])]}"
            out += effect(name, "NMSE", paired(row, "nmse", "loca"), LOCA_KEYS["nmse"])
    return decide(out, command=LOCA)
