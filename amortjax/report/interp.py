"""Automated interpretability as tables and words (rows of `launch.autointerp`).

Beside `schema`'s columns a row has those of `interp.summary`, shuffled_macro_f1 where it was asked for, and, against
the SAE's first mode (`_mode`) and the first SAE (`_sae`), macro_f1_difference with its interval. A latent's row has
checkpoint, mode, latent, status, explanation, its scores and `examples` (tokens, values, use, source, positive,
said).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amortjax.report import html, sheets
from amortjax.report.numbers import MISSING, grouped_digits, short, with_interval
from amortjax.report.schema import Row, mode_label
from amortjax.report.sheets import Report, Sheet, noted

TITLE = "Can it be said what a latent fires on?"
SHOWN = 100  # latents of each SAE and mode that the page shows in context
STATUS = {
    "scored": "",
    "too_few": "too few examples",
    "no_negatives": "no context in which it is silent",
    "unparsed": "an answer could not be read",
}
EXPLAINED = (
    "A judge describes a latent from contexts in which it fires. From the description alone it then says of further "
    "contexts, of other documents, whether the latent fires there; about half of them hold no firing. Macro-F1 is "
    "the mean of the F1 of yes and of no. A fair coin has about .5, always saying the same 1/3, and the exact "
    "values for the numbers of contexts that were judged are printed beside it.\n\n"
    "controlled: contexts by rank and by importance are dealt in turn to explaining and scoring, and a context "
    "counts as silent only if the latent fires on none of its tokens. literal: the released protocol of arXiv "
    "2411.13117: the ten top contexts, the upper half explains, and negatives are the top contexts of one fixed "
    "other latent, which nobody checked: how many of them hold a firing all the same is printed.\n\n"
    "Modes are compared on the same latents, drawn from those that have enough examples under every one of them. A "
    "latent has contexts of its own under each mode, so a mode is also helped by firing where it is easier to say "
    "so. Intervals are 95 %, a bootstrap over latents, none under 10 latents: they are of these documents and this "
    "judge.\n\n"
    "Latents whose answers can't be read twice over are left out of the means; their number is printed, and the "
    "mean if they counted as 0 is in results.csv. Scores of the offline judge, whose descriptions are rules about "
    "single tokens and their neighbours, say how far such rules go; they are no language model's."
)


def _interval(row: Row, key: str, end: str = "") -> str:
    return with_interval(*(row.get(f"{key}{bound}{end}") for bound in ("", "_lo", "_hi")))


def report(rows: Sequence[Row], about: Mapping[str, str], pictures: Sequence[Path]) -> Report:
    """All of a run but the latents themselves."""
    tables = [scores_sheet(rows), *differences_sheets(rows)]
    return Report(TITLE, about, sentences(rows), tables, EXPLAINED, pictures)


def scores_sheet(rows: Sequence[Row]) -> Sheet:
    """A line per SAE and mode."""
    shown = {
        "macro-F1 ↑": "macro_f1", "median ↑": "macro_f1_median", "another's description": "shuffled_macro_f1",
        "precision": "precision", "recall": "recall", "balanced accuracy ↑": "balanced_accuracy", "fuzzing ↑": "fuzz",
    }  # fmt: skip
    shown = {title: key for title, key in shown.items() if any(row.get(key) is not None for row in rows)}
    header = ["SAE", "codes", *shown, "coin", "always yes", "scored", "skipped", "unread", "L0"]
    literal = any(row.get("protocol") == "literal" for row in rows)
    header += ["negatives that fire"] if literal else []
    body = []
    for row in rows:
        line = [row["checkpoint"], mode_label(row), *(_interval(row, key) for key in shown.values())]
        line += [short(row.get("chance_random")), short(row.get("chance_all_ones")), _count(row, "n_scored")]
        skipped = [row.get(name) for name in ("n_too_few", "n_no_negatives")]
        line += [MISSING if None in skipped else str(sum(n or 0 for n in skipped)), _count(row, "n_unparsed")]
        line += [short(row.get("l0")), *([_count(row, "n_negatives_active")] if literal else [])]
        body.append([*line, noted(row.get("flags") or ())])
    text = "Means over latents, with 95 % intervals."
    return Sheet("Scores", [*header, "note"], body, text)


def _count(row: Row, key: str) -> str:
    return MISSING if row.get(key) is None else grouped_digits(row[key])


def differences_sheets(rows: Sequence[Row]) -> list[Sheet]:
    """Modes against the SAE's first one, and SAEs against the first."""
    out = []
    for which, title in (("mode", "Modes compared"), ("sae", "SAEs compared")):
        body = []
        for row in rows:
            if row.get(f"against_{which}") is None:
                continue
            other = row[f"against_{which}"]
            other = mode_label({"mode": other}) if which == "mode" else other
            line = [row["checkpoint"], mode_label(row), other]
            line += [_interval(row, f"macro_f1{kind}_difference", f"_{which}") for kind in ("", "_median")]
            how = "paired" if row.get(f"paired_{which}") else "each its own latents"
            body.append([*line, str(row.get(f"n_pairs_{which}")), how])
        if body:
            header = ["SAE", "codes", "less", "macro-F1 ↑", "median ↑", "latents", "how"]
            out.append(Sheet(title, header, body))
    return out


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows show; nothing is said that no row holds."""
    out = []
    for row in rows:
        if row.get("macro_f1") is None:
            continue
        name = f"{row['checkpoint']}, {mode_label(row)}"
        text = f"{name}: macro-F1 {_interval(row, 'macro_f1')} (median {short(row['macro_f1_median'])}) over "
        text += f"{row['n_scored']} latents; a coin has {short(row['chance_random'])}, always yes "
        text += short(row["chance_all_ones"])
        if row.get("shuffled_macro_f1") is not None:
            text += f", another latent's description {_interval(row, 'shuffled_macro_f1')}"
        if row.get("n_negatives_active"):
            text += f"; the latent fires in {row['n_negatives_active']} of the contexts given as silent"
        if row.get("n_unparsed"):
            text += f"; latents left out because an answer could not be read: {row['n_unparsed']}"
        out.append(text + ".")
        for which in ("mode", "sae"):
            out += _compared(row, which, name)
    return out


def _compared(row: Row, which: str, name: str) -> list[str]:
    key = "macro_f1_difference"
    value, lo, hi = (row.get(f"{key}{bound}_{which}") for bound in ("", "_lo", "_hi"))
    if value is None:
        return []
    other = row[f"against_{which}"]
    other = mode_label({"mode": other}) if which == "mode" else other
    how = "on the same latents" if row.get(f"paired_{which}") else "each on its own latents"
    told = (
        "no interval"
        if lo is None or hi is None
        else f"the interval {'in' if lo <= 0 <= hi else 'ex'}cludes 0"
    )
    return [f"{name}: {with_interval(value, lo, hi)} in macro-F1 against {other}, {how} ({told})."]


# --- latents in context ---


def context(example: Mapping[str, Any]) -> str:
    """A context as one line: firing tokens between « and », line breaks as ⏎."""
    out = []
    for token, value in zip(example["tokens"], example["values"], strict=True):
        out.append(f"«{token}»" if value else token)
    return "".join(out).replace("»«", "").replace("\r", "").replace("\n", "⏎")


def latent_sections(latents: Sequence[Row]) -> list[html.Section]:
    """Tables of the latents of each SAE: descriptions and scores, then contexts."""
    out = []
    for name, mode in dict.fromkeys((row["checkpoint"], row["mode"]) for row in latents):
        own = [row for row in latents if (row["checkpoint"], row["mode"]) == (name, mode)]
        label = f"{name}, {mode_label({'mode': mode})}"
        own.sort(key=lambda row: (-(row["macro_f1"] if row["macro_f1"] is not None else -1), row["latent"]))
        lines = [_latent_line(row) for row in own]
        header = ["latent", "macro-F1 ↑", "precision", "recall", "description", "strongest context", "note"]
        out.append(html.Section(f"{label}: latents", header=header, rows=lines))
        lines = [line for row in own[:SHOWN] for line in _context_lines(row)]
        header = ["latent", "context", "used to", "from", "fires", "scorer says"]
        notes = [f"At most {SHOWN} latents, the best described first."] if len(own) > SHOWN else []
        out.append(html.Section(f"{label}: contexts", header=header, rows=lines, notes=notes))
    return out


def _latent_line(row: Row) -> list[Any]:
    strongest = context(row["examples"][0]) if row["examples"] else MISSING
    numbers = [row["macro_f1"], row["precision"], row["recall"]]
    return [
        row["latent"],
        *numbers,
        row["explanation"] or MISSING,
        strongest,
        STATUS.get(row["status"], row["status"]),
    ]


def _context_lines(row: Row) -> list[list[Any]]:
    out = []
    for example in row["examples"]:
        said = {None: MISSING, 0: "no", 1: "yes"}[example["said"]]
        wrong = example["said"] is not None and bool(example["said"]) != example["positive"]
        fires = "yes" if any(example["values"]) else "no"
        use = "explain" if example["use"] == "explained" else "score"
        out.append(
            [
                row["latent"],
                context(example),
                use,
                example["source"],
                fires,
                said + (" (wrong)" if wrong else ""),
            ]
        )
    return out


def write(
    found: Report, latents: Sequence[Row], folder: Path, versions: Mapping[str, str], flags: Mapping[str, Any]
) -> None:
    """report.md, without text of the corpus, which markdown would show as markup; report.html with the latents, as
    text only."""
    sheets.write(found, folder, versions, flags)
    sections = [html.Section(sheet.title, sheet.text, sheet.header, sheet.body) for sheet in found.sheets]
    sections += latent_sections(latents)
    sections.append(html.Section("What the numbers mean", found.explained))
    html.write_html(
        [], folder, found.about, found.pictures, None, sections, versions, flags, title=found.title,
        sentences=found.sentences,
    )  # fmt: skip
