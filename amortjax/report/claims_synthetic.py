"""Judges of the second paper's claims on synthetic data, from rows of launch.synthetic (one per run and step) and of
launch.synthetic_sweep (one per cell, over its runs). A judge is a pure function: rows of `claims_rows.read` -> Verdict.
Effects are signed so that positive is as claimed. `literal` rows count as such.
"""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from scipy import stats

from amortjax.report import claims_views as views
from amortjax.report.claims_views import Rows
from amortjax.report.evidence import Evidence, Row, Triple, Verdict, apart, decide, effect, number

MCC = 0.02  # the least difference that counts
SYNTHETIC = "python -m amortjax.launch.synthetic --protocol=controlled --out=outputs/synthetic/controlled"
SIZES = "python -m amortjax.launch.synthetic_sweep --sweep=size --out=outputs/synthetic_sweep/size"


class Data(NamedTuple):
    """What two models must share to be compared. `place`: the results they are from."""

    place: str
    protocol: str
    scenario: str
    distribution: str
    sources: float
    dimensions: float
    active: float

    @property
    def label(self) -> str:
        sizes = f"{self.sources:g}/{self.dimensions:g}/{self.active:g}"
        return f"{self.distribution} {sizes}"


class Model(NamedTuple):
    """What a model ends with on some data: MCC of each run, or only its mean and interval. kind: sae, mlp, ito, sc."""

    data: Data
    kind: str
    name: str
    each: dict[int, float]
    mcc: Triple
    train_flops: float | None


def kind_of(row: Row) -> str:
    """ito: codes that were solved for, on the dictionary the SAE was trained with; "": no kind that claims name."""
    method, codes = str(row.get("method")), str(row.get("codes", "own"))
    if method == "sae_ito" or (method == "sae" and codes in ("optimal", "ito_warm")):
        return "ito"
    if codes != "own" or row.get("goal") == "codes":
        return ""
    known = {"sae": "sae", "sparse_coding": "sc", "mlp": "mlp"}
    return known.get(method, "mlp" if re.fullmatch(r"mlp\d+", method) else "")


def interval(values: Sequence[float]) -> Triple:
    """Mean over runs and Student's 95 % interval, none of a single run."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Triple(mean, None, None)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Triple(mean, mean - half, mean + half)


def _of_cell(row: Row, mcc: float) -> Triple:
    """From the mean and the (population) standard deviation over a sweep's runs."""
    runs, std = number(row, "runs"), number(row, "mcc_std")
    if runs is None or std is None or runs < 2:
        return Triple(mcc, None, None)
    half = float(stats.t.ppf(0.975, runs - 1)) * std / math.sqrt(runs - 1)
    return Triple(mcc, mcc - half, mcc + half)


def _data(row: Row) -> Data | None:
    size = [
        number(row, name) or number(row, other)
        for name, other in (("n", "sources"), ("m", "dimensions"), ("k", "active"))
    ]
    scenario = row.get("scenario") or ("unknown" if row.get("sweep") == "size" else None)
    if scenario is None or None in size:
        return None
    about = (str(row.get("folder")), str(row.get("protocol")), str(scenario))
    named = str(row.get("distribution") or row.get("data") or "uniform")
    return Data(*about, named, *(float(value or 0) for value in size))


def models(rows: Rows) -> list[Model]:
    """Each at its last step, with its runs together."""
    found: dict[tuple[Data, str, str], list[Row]] = {}
    for row in views.of(rows, "synthetic"):
        data, kind = _data(row), kind_of(row)
        if data and kind and number(row, "mcc") is not None:
            name = f"{row['method']}{row.get('hidden') or ''} {row.get('codes', 'own')}"
            found.setdefault((data, kind, name.removesuffix(" own")), []).append(row)
    return [_last(*key, own) for key, own in found.items()]


def _last(data: Data, kind: str, name: str, rows: list[Row]) -> Model:
    when = lambda row: (number(row, "step") or 0.0, number(row, "iterations") or 0.0)  # noqa: E731
    last = [row for row in rows if when(row) == max(map(when, rows))]
    each = {int(row["run"]): float(row["mcc"]) for row in last if number(row, "run") is not None}
    mcc = interval(list(each.values())) if each else _of_cell(last[0], float(last[0]["mcc"]))
    return Model(data, kind, name, each, mcc, number(last[0], "train_flops"))


def best(found: list[Model], kind: str) -> Model | None:
    return max((model for model in found if model.kind == kind), key=lambda m: m.mcc.value, default=None)


def lead(a: Model, b: Model) -> Triple | None:
    """MCC of a minus that of b, paired where they have the same runs."""
    if len(a.each) > 1 and a.each.keys() == b.each.keys():
        return interval([a.each[run] - b.each[run] for run in a.each])
    return apart(a.mcc, b.mcc)


def by_data(rows: Rows, scenario: str) -> dict[Data, list[Model]]:
    out: dict[Data, list[Model]] = {}
    for model in models(rows):
        if model.data.scenario == scenario:
            out.setdefault(model.data, []).append(model)
    return out


def beats(rows: Rows, scenario: str, better: str, worse: str) -> dict[str, list[Evidence]]:
    """{protocol: evidence}: the best model of one kind against the best of another, on the same data."""
    out: dict[str, list[Evidence]] = {"controlled": [], "literal": []}
    for data, found in by_data(rows, scenario).items():
        a, b = best(found, better), best(found, worse)
        if a and b:
            out.setdefault(data.protocol, []).extend(
                effect(data.label, f"{a.name} - {b.name}", lead(a, b), MCC)
            )
    return out


def together(rows: Rows, scenario: str, *comparisons: tuple[str, str]) -> Verdict:
    """Several of them (better, worse) as one claim."""
    found = [beats(rows, scenario, better, worse) for better, worse in comparisons]
    controlled, literal = ([e for one in found for e in one[which]] for which in ("controlled", "literal"))
    return decide(controlled, literal, command=SYNTHETIC)


def scenario(name: str, *chain: str) -> Callable[[Rows], Verdict]:
    """The judge of a claim that each kind of model of a chain beats the next."""
    return lambda rows: together(rows, name, *itertools.pairwise(chain))


def boundary(rows: Rows) -> Verdict:
    """Sparse coding's mean lead over the SAE where codes are recoverable (K ln(N/K) <= M < N) minus that elsewhere."""
    found: dict[str, list[Evidence]] = {"controlled": [], "literal": []}
    for protocol in found:
        leads: dict[bool, list[Triple]] = {True: [], False: []}
        for data, own in by_data(rows, "unknown").items():
            sc, sae = best(own, "sc"), best(own, "sae")
            more = lead(sc, sae) if sc and sae else None
            if data.protocol == protocol and more is not None and data.active < data.sources:
                need = data.active * math.log(data.sources / data.active)
                leads[need <= data.dimensions < data.sources].append(more)
        if all(leads.values()):
            what = f"{len(leads[True])} sizes inside, {len(leads[False])} outside"
            found[protocol] += effect("mean lead", what, apart(_mean(leads[True]), _mean(leads[False])), MCC)
    return decide(found["controlled"], found["literal"], command=SIZES, missing="no grid of sizes")


def _mean(found: list[Triple]) -> Triple:
    """Its ends are means of ends, which is wider than need be."""
    value = sum(one.value for one in found) / len(found)
    lows = [one.lo for one in found if one.lo is not None]
    highs = [one.hi for one in found if one.hi is not None]
    if len(lows) < len(found) or len(highs) < len(found):
        return Triple(value, None, None)
    return Triple(value, sum(lows) / len(found), sum(highs) / len(found))


def coding_per_operation(rows: Rows) -> Verdict:
    """Sparse coding's MCC minus the SAE's, where it took no more training operations (within a step's rounding)."""
    found: dict[str, list[Evidence]] = {"controlled": [], "literal": []}
    for data, own in by_data(rows, "unknown").items():
        sc, sae = best(own, "sc"), best(own, "sae")
        if sc and sae and sc.train_flops and sae.train_flops and sc.train_flops <= 1.001 * sae.train_flops:
            more = effect(data.label, "sparse coding - SAE at no more operations", lead(sc, sae), MCC)
            found.setdefault(data.protocol, []).extend(more)
    return decide(found["controlled"], found["literal"], command=SYNTHETIC)
