"""Metrics beside their null models as tables and words (rows of `launch.nulls`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from amortjax.metrics.definitions import METRICS
from amortjax.report.numbers import MISSING, short, with_interval
from amortjax.report.schema import Row, mode_label
from amortjax.report.sheets import Report, Sheet, noted

LABELS = {
    "random_encoder": "random encoder",
    "shuffled_codes": "shuffled codes",
    "shuffled_optimum": "shuffled optimum",
    "random_dictionary": "random dictionary, its optimum",
    "random_support": "random support",
    "random_support_optimum": "random support, optimum's rates",
}
SHOWN = (
    "nmse",
    "nmse_refit",
    "dead",
    "dead_half",
    "dense@0.1",
    "f1@1",
    "df1",
    "absorption",
    "absorption_chance",
)
# What the sentences speak of, and how a metric of learned codes should differ from its nulls.
PATHOLOGIES = ("nmse_refit", "dead_half", "dense@0.1", "f1@1", "df1", "absorption_excess")
EXPLAINED = (
    "All rows have the encoder's L0 on the calibration tokens. Null rows are means over draws, in brackets the "
    "standard deviation over draws; intervals are over documents, given the draws.\n\n"
    "Random encoder: the encoder's directions turned by one random rotation, biases as they are, latents fired by the "
    "same rank rule or, without one, above the one threshold that gives the encoder's L0; the decoder is the trained "
    "one.\n\n"
    "Shuffled codes: the encoder's codes dealt to other tokens of the split: rates, amplitudes and which latents fire "
    "together stay. Dead and dense latents are therefore the encoder's own.\n\n"
    "Random dictionary: atoms turned by one random rotation, which keeps norms and every cosine between atoms "
    "exactly; its certified optimum at its own lambda.\n\n"
    "Random support: each token's L0 and each latent's firing rate stay, exactly, which fires where is random; "
    "amplitudes by non-negative least squares, which leaves some at zero: those count as firing, so that L0 and rates "
    "are the encoder's. F1 is of the amplitudes.\n\n"
    "NMSE, refit: least squares on the support, amplitudes of one sign, whatever the codes' own amplitudes are. "
    "Absorption rises with density alone: its chance value is that of independent latents with the same rates. A "
    "metric that learned codes share with their nulls says nothing about them."
)


def label(row: Mapping[str, object]) -> str:
    return LABELS.get(str(row["mode"])) or mode_label(row)


def header(key: str) -> str:
    return "NMSE, refit ↓" if key == "nmse_refit" else METRICS[key].header


def report(rows: Sequence[Row], about: Mapping[str, str], pictures: Sequence[Path]) -> Report:
    names = dict.fromkeys(row["checkpoint"] for row in rows)
    sheets = [sheet(name, [row for row in rows if row["checkpoint"] == name]) for name in names]
    return Report("Metrics beside their null models", about, sentences(rows), sheets, EXPLAINED, pictures)


def sheet(name: str, rows: Sequence[Row]) -> Sheet:
    """A line per kind of codes."""
    body = []
    for row in rows:
        flags = [flag for flag in row["flags"] if flag not in rows[0]["flags"]]
        line = [label(row), short(row.get("lam")), short(row.get("l0")), *(_cell(row, key) for key in SHOWN)]
        body.append([*line, noted(flags) or MISSING])
    n = f"{rows[0]['n_tokens']} tokens of {rows[0]['n_documents']} documents"
    shared = noted(rows[0]["flags"])
    text = f"{n}." + (f" All rows: {shared}." if shared else "")
    return Sheet(name, ["codes", "λ", "L0", *map(header, SHOWN), "note"], body, text)


def _cell(row: Row, key: str) -> str:
    text = with_interval(*(row.get(f"{key}{end}") for end in ("", "_lo", "_hi")))
    spread = row.get(f"{key}_spread")
    return text if spread is None or text == MISSING else f"{text} ({short(spread, 2)})"


def sentences(rows: Sequence[Row]) -> list[str]:
    """Which nulls each pathology of the encoder is told apart from, by its paired interval over documents."""
    out = []
    for name in dict.fromkeys(row["checkpoint"] for row in rows):
        block = [row for row in rows if row["checkpoint"] == name]
        nulls = [row for row in block if row["mode"] in LABELS]
        for key in PATHOLOGIES:
            said = [_against(row, key) for row in nulls]
            if block[0].get(key) is not None and any(said):
                parts = "; ".join(part for part in said if part)
                out.append(f"{name}, {header(key).strip(' ↓↑')}: encoder {short(block[0][key])}; {parts}.")
    return out


def _against(row: Row, key: str) -> str:
    value, lo, hi = (row.get(f"{key}_minus_amortized{end}") for end in ("", "_lo", "_hi"))
    if value is None:
        return ""
    if lo is None or hi is None:
        side = "no interval"
    elif value == lo == hi == 0:
        side = "the same by construction"
    else:
        side = "above" if lo > 0 else "below" if hi < 0 else "not told apart"
    return f"{label(row)} {short(row.get(key))} ({side})"
