"""The theorem's checks and measurements as tables and words (rows of `launch.theorem`)."""

from collections.abc import Sequence
from pathlib import Path

from amortjax.report.numbers import MISSING, percent, short
from amortjax.report.schema import Row
from amortjax.report.sheets import Report, Sheet

TITLE = "Exact codes through one linear map and a ReLU: where they end"
EXPLAINED = (
    "Codes s of N sources, at most K of them active, are seen as x = s D in M < N dimensions. An encoder ReLU(x W + b) "
    "sees them through D W, whose rank is at most M. To return the exact values of every code of K >= 2 sources it "
    "would need D W = I, of rank N: scaling one active source forces b = 0 and a diagonal of ones; one source alone "
    "forces the other entries to be at most 0; two sources together forbid them to be below 0. (Theorem 3.1 of arXiv "
    "2411.13117, here for ReLU.)\n\n"
    "The statement is about exact values through one linear map and a pointwise nonlinearity. It is not about "
    "supports, which such an encoder may well find, nor about encoders with hidden layers or iterations, although "
    "these too see x only through the dictionary.\n\n"
    "Energy of the error: sum of squared errors over the sum of squared codes, on codes that were not trained on. "
    "Exact: share of samples whose code is right to 1 % of its norm. Support found: share of samples whose active "
    "sources have the largest values.\n\n"
    "'ReLU, trained on the codes' was given the true codes, the squared error itself as its loss, and for each source "
    "the best of several starts: what remains is not for want of supervision. The lasso is non-negative, at a lambda "
    "so small that its shrinkage hardly counts, and certified by its duality gap; where it is not exact, the code of "
    "the least sum is another than the true one. 'Sparsest' tries all supports of K sources: where codes are unique it "
    "is exact always.\n\n"
    "Cover's count: one half-space through 0 must part an atom from all others for an encoder to be exact on it when "
    "it is active alone; for random atoms that has probability 2 sum_{k<M} C(N-1, k) / 2^N."
)


def report(rows: Sequence[Row], pictures: Sequence[Path]) -> Report:
    """Tables: the checks, the encoders, and errors by the number of active sources."""
    sheets = [checks(rows), encoders(rows), sparsity(rows)]
    return Report(TITLE, about(rows), sentences(rows), sheets, EXPLAINED, pictures)


def of(rows: Sequence[Row], condition: str) -> list[Row]:
    return [row for row in rows if row["condition"] == condition]


def about(rows: Sequence[Row]) -> dict[str, str]:
    found = of(rows, "sparsity")
    setting = found[0]["checkpoint"] if found else MISSING
    gap = max((row["gap"] for row in found if row.get("gap") is not None), default=None)
    return {"setting": setting, "lasso's largest relative gap": short(gap)}


def checks(rows: Sequence[Row]) -> Sheet:
    """Control, setting, what the theory says, what was measured."""
    body = []
    for row in of(rows, "check"):
        sign = {"=": "", "<=": "≤ ", ">=": "≥ "}[row["relation"]]
        body.append(
            [row["control"], row["setting"], row["claim"], sign + short(row["theory"]), short(row["measured"]),
             "yes" if row["ok"] else "NO"]
        )  # fmt: skip
    return Sheet("Checks", ["control", "setting", "claim", "theory", "measured", "holds"], body)


def encoders(rows: Sequence[Row]) -> Sheet:
    found = of(rows, "encoder")
    body = [
        [row["mode"], str(row["rank"]), short(row["distance"]), short(row["bound"]), short(row["energy"]),
         short(row["exact"]), short(row["supports"])]
        for row in found
    ]  # fmt: skip
    header = [
        "encoder",
        "rank of D W",
        "‖D W - I‖",
        "≥ √(N-M)",
        "energy of error ↓",
        "exact ↑",
        "support found ↑",
    ]
    text = f"{found[0]['checkpoint']}, {found[0]['active']} active sources." if found else ""
    return Sheet("Encoders", header, body, text)


def sparsity(rows: Sequence[Row]) -> Sheet:
    """A line per method: energy of the error, and share exact, at each number of active sources."""
    found = of(rows, "sparsity")
    at = sorted({row["active"] for row in found})
    cells = {(row["mode"], row["active"]): row for row in found}
    body = []
    for mode in dict.fromkeys(row["mode"] for row in found):
        line = [cells.get((mode, active)) for active in at]
        body.append([mode, *(f"{short(r['energy'])} ({short(r['exact'])})" if r else MISSING for r in line)])
    text = "Energy of the error; in brackets the share of samples that are exact."
    return Sheet("By the number of active sources", ["codes", *(f"K = {k}" for k in at)], body, text)


def sentences(rows: Sequence[Row]) -> list[str]:
    made, out = of(rows, "check"), []
    failed = [row for row in made if not row["ok"]]
    out.append(f"{len(made) - len(failed)} of {len(made)} checks hold.")
    out += [
        f"Does not hold: {row['setting']}, {row['claim']}: theory {row['relation']} {short(row['theory'])}, "
        f"measured {short(row['measured'])}."
        for row in failed
    ]
    by = {(row["mode"], row["active"]): row for row in of(rows, "sparsity")}
    for active in sorted({k for _, k in by if k > 1}):
        relu, lasso = (by.get((name, active)) for name in ("ReLU, trained on the codes", "certified lasso"))
        if relu and lasso:
            out.append(
                f"K = {active}: the ReLU encoder trained on the true codes leaves {percent(relu['energy'])} of their "
                f"energy and is exact on {percent(relu['exact'])} of samples; the certified lasso leaves "
                f"{_percent(lasso['energy'])} and is exact on {percent(lasso['exact'])}."
            )
    return out


def _percent(value: float) -> str:
    return "less than 0.01 %" if value < 1e-4 else percent(value)
