"""Agreement of SAEs of several seeds as tables and words (rows of `launch.consistency`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from amortjax.report.numbers import MISSING, short, with_interval
from amortjax.report.schema import Row, mode_label
from amortjax.report.sheets import Report, Sheet, noted

DICTIONARY = "dictionary"
EXPLAINED = (
    "MCC: latents of two SAEs are matched one to one so that the sum of their similarities is largest (Hungarian "
    "method); it is the mean similarity over the latents of the smaller side. Of dictionaries, the similarity is the "
    "|cosine| of decoder rows; of codes, the correlation over the test tokens. Latents that fire on fewer tokens than "
    "--min_fires are left out: of the dictionary under the encoder, of codes under that mode.\n\n"
    "Unrelated SAEs do not score 0, because each latent is given the best partner among many. Chance: the second "
    "dictionary turned by a random rotation (its cosines kept); the second SAE's codes dealt to other tokens (rates "
    "and co-firing kept). The matching of codes is made on the tokens it is scored on, as is usual.\n\n"
    "Of latents that dictionaries match: the correlation of the codes of pairs that decoder rows matched, the same "
    "pairs for every mode, chosen on no token; a pair of which one is silent counts as 0. It says whether inference "
    "finds the same code where the dictionaries agree. Chance: those pairs with partners exchanged at random.\n\n"
    "Intervals are 95 %, a delete-a-block jackknife over documents, the matching held fixed; differences are paired. "
    "Where the matrix of similarities is too large, latents are matched among the 32 nearest of each: MCC is then at "
    "least the one given, and at most the bound."
)


def label(row: Mapping[str, object]) -> str:
    return "decoder rows" if row["mode"] == DICTIONARY else f"codes, {mode_label(row)}"


def report(rows: Sequence[Row], about: Mapping[str, str], pictures: Sequence[Path]) -> Report:
    names = dict.fromkeys(row["checkpoint"] for row in rows)
    sheets = [sheet(name, [row for row in rows if row["checkpoint"] == name]) for name in names]
    title = "Do SAEs of several seeds agree?"
    return Report(title, about, sentences(rows), sheets, EXPLAINED, pictures)


def _interval(row: Row, key: str) -> str:
    return with_interval(*(row.get(f"{key}{end}") for end in ("", "_lo", "_hi")))


def sheet(name: str, rows: Sequence[Row]) -> Sheet:
    """A line for the dictionaries and one for each mode's codes."""
    header = [
        "of",
        "MCC ↑",
        "chance",
        "- encoder",
        "of latents that dictionaries match ↑",
        "chance",
        "- encoder",
    ]
    header += ["latents", "matched", "L0", "note"]
    body = []
    for row in rows:
        line = [
            label(row),
            _bounded(row),
            short(row.get("mcc_chance")),
            _interval(row, "mcc_minus_amortized"),
        ]
        line += [_interval(row, "mcc_by_dictionary"), short(row.get("mcc_by_dictionary_chance"))]
        line += [
            _interval(row, "mcc_by_dictionary_minus_amortized"),
            _both(row, "n_alive"),
            str(row.get("n_matched", MISSING)),
        ]
        notes = [noted(row["flags"])] if row["flags"] else []
        notes += [f"{short(row['shared'])} of latents at |cos| ≥ .7"] if "shared" in row else []
        body.append([*line, _both(row, "l0"), "; ".join(notes) or MISSING])
    text = f"{rows[0]['n_tokens']} test tokens of {rows[0]['n_documents']} documents."
    return Sheet(name, header, body, text)


def _bounded(row: Row) -> str:
    if row.get("mcc") is None or row.get("matched_whole", True):
        return _interval(row, "mcc")
    return f"{_interval(row, 'mcc')} to {short(row['mcc_bound'])}"


def _both(row: Row, key: str) -> str:
    values = [row.get(f"{key}_{side}") for side in "ab"]
    return MISSING if None in values else ", ".join(short(value) for value in values)


def sentences(rows: Sequence[Row]) -> list[str]:
    """What each pair shows; nothing is said that no row holds."""
    out = []
    for name in dict.fromkeys(row["checkpoint"] for row in rows):
        by_mode = {
            row["mode"]: row for row in rows if row["checkpoint"] == name and row.get("mcc") is not None
        }
        said = [
            f"{label(row)} {_bounded(row)} (chance {short(row.get('mcc_chance'))})"
            for row in by_mode.values()
        ]
        if said:
            out.append(f"{name}: MCC of {'; '.join(said)}.")
        out += [f"{name}: {part}" for row in by_mode.values() for part in _against_encoder(row)]
    return out


def _against_encoder(row: Row) -> list[str]:
    key = "mcc_by_dictionary_minus_amortized"
    value, lo, hi = (row.get(f"{key}{end}") for end in ("", "_lo", "_hi"))
    if value is None or lo is None or hi is None:
        return []
    side = "agree more" if lo > 0 else "agree less" if hi < 0 else "are not told apart"
    return [
        f"where dictionaries match, {label(row)} {side} than the encoder's ({_interval(row, key)})."
        if side != "are not told apart"
        else f"where dictionaries match, {label(row)} and the encoder's are not told apart ({_interval(row, key)})."
    ]
