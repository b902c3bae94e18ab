"""Does the model notice: tables, sentences and a page of the rows of `launch.core_lite`.

print(printed(rows))                          # a table for each SAE, one of the ablations, and the sentences
write_page(rows, folder, about, pictures)     # folder/report.md
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.files import write_atomically
from amortjax.metrics.definitions import ARROWS, METRICS
from amortjax.report.numbers import grouped_digits, short, with_interval
from amortjax.report.schema import FLAGS, Row, flagged, grouped, mode_label

TITLE = "Does the model notice?"
ABLATIONS = {
    "zero_ablation": "zeros",
    "zero_kept": "zeros, special tokens kept",
    "mean_ablation": "mean activation, special tokens kept",
}
AS_SAEBENCH = (
    "As SAEBench's core evaluation has them: a token counts if it is not special (padding, BOS, EOS), whatever the one "
    "it predicts; its CE is the loss on the next token, so a sequence's last token has none; its KL is that of the "
    "whole next-token distribution, clean against spliced. Special tokens keep their activations under an SAE. Zero "
    "ablation puts zeros everywhere, special tokens included; a row with special tokens kept is shown beside it."
)
UNLIKE_SAEBENCH = (
    "Not as there: every document is run alone from its first token and cut at the length given, where SAEBench joins "
    "documents into full sequences of 128 tokens and puts BOS before each (here the tokenizer decides); documents are "
    "held-out ones of the given corpus, not 409 600 tokens of OpenWebText; the numbers are ratios of totals with "
    "intervals over documents; codes are float32, not in the model's dtype; KL is computed from log-probabilities, so "
    "that tiny ones do not make it infinite; lambda and L0 are matched across modes."
)


class Column(NamedTuple):
    header: str
    cell: Callable[[Mapping[str, Any]], str]


def _number(key: str, header: str = "") -> Column:
    return Column(header or METRICS[key].header, lambda row: short(row.get(key), 4))


def _interval(key: str, header: str = "") -> Column:
    def cell(row: Mapping[str, Any]) -> str:
        return with_interval(row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi"))

    return Column(header or METRICS[key].header, cell)


def _difference(key: str) -> Column:
    return _interval(f"{key}_minus_amortized", "- encoder")


_LOSS = (_number("ce", "CE"), _interval("ce_added"), _interval("ce_recovered"))
OF_SAES = (
    Column("λ", lambda row: short(row.get("lam"))), Column("L0", lambda row: short(row.get("l0"))),
    _interval("nmse"), _difference("nmse"), *_LOSS, _difference("ce_recovered"), _interval("kl"),
    _interval("kl_recovered"), _difference("kl_recovered"),
)  # fmt: skip
OF_ABLATIONS = (*_LOSS, _interval("kl"), _interval("kl_recovered"))


def label(row: Mapping[str, Any]) -> str:
    return ABLATIONS.get(str(row["mode"])) or mode_label(row)


class Table(NamedTuple):
    title: str
    lines: list[list[str]]  # the header first
    notes: list[str]


def make_tables(rows: Iterable[Row]) -> list[Table]:
    """One of each SAE and one of the ablations."""
    out = []
    for (checkpoint, condition), block in grouped(map(flagged, rows)).items():
        columns = OF_ABLATIONS if condition == "ablation" else OF_SAES
        first = block[0]
        title = (
            "Without any SAE" if condition == "ablation" else f"{checkpoint}: every mode at the encoder's L0"
        )
        counts = " of ".join(
            f"{grouped_digits(first.get(f'n_{what}'))} {what}" for what in ("tokens", "documents")
        )
        lines = [["at the hook", *(column.header for column in columns)]]
        lines += [[label(row), *(column.cell(row) for column in columns)] for row in block]
        notes = [f"CE clean {_interval('ce_clean').cell(first)} nats, {counts}."]
        notes += [
            f"{FLAGS.get(flag, flag)}: {'; '.join(label(row) for row in block if flag in row['flags'])}."
            for flag in dict.fromkeys(flag for row in block for flag in row["flags"])
        ]
        out.append(Table(title, lines, notes))
    return out


def headlines(rows: Iterable[Row]) -> list[str]:
    """What the rows show, a sentence each; nothing is said that no row holds."""
    out = []
    for (checkpoint, condition), block in grouped(map(flagged, rows)).items():
        by_mode = {row["mode"]: row for row in block if row.get("ce") is not None}
        first = by_mode.get("amortized")
        if condition == "ablation" or first is None:
            continue
        said = [_about_encoder(first)]
        said += [_about_mode(row, first) for mode, row in by_mode.items() if mode != "amortized"]
        out += [f"{checkpoint}: {sentence}" for sentence in (*said, *_about_order(by_mode))]
    return out


def _about_encoder(row: Row) -> str:
    clean, own, zero, mean = (short(row.get(key), 4) for key in ("ce_clean", "ce", "ce_zero", "ce_mean"))
    return (
        f"the model's loss is {clean} nats alone, {own} with the encoder's reconstructions (L0 {short(row.get('l0'))}, "
        f"NMSE {short(row.get('nmse'))}), {mean} with the mean activation, {zero} with zeros: CE recovered "
        f"{_interval('ce_recovered').cell(row)}, KL recovered {_interval('kl_recovered').cell(row)}."
    )


def _about_mode(row: Row, first: Row) -> str:
    """A mode beside the encoder: in squared error and for the model, with what is told apart and what is not."""
    error = _side(row, "nmse", ("lower", "higher"))
    losses = [
        (name, _side(row, key, ("better", "worse"))) for name, key in (("CE", "ce_added"), ("KL", "kl"))
    ]
    told = [f"{name}: {side}" for name, side in losses]
    parts = (
        f"NMSE {short(row.get('nmse'))} against {short(first.get('nmse'))}",
        f"CE recovered {_with_difference(row, 'ce_recovered')}",
        f"KL recovered {_with_difference(row, 'kl_recovered')}",
    )
    off = "l0_off" in row["flags"]
    at = (
        f" (L0 {short(row.get('l0'))}, the encoder's {short(first.get('l0'))}: not at equal L0)"
        if off
        else ""
    )
    return f"{label(row)}{at}: {', '.join(parts)}: squared error {error}; for the model, {', '.join(told)}."


def _side(row: Row, key: str, words: tuple[str, str]) -> str:
    """Which of two words the paired interval of a number that should be small allows."""
    lo, hi = (row.get(f"{key}_minus_amortized_{end}") for end in ("lo", "hi"))
    if lo is None or hi is None:
        return "no paired interval"
    return words[0] if hi < 0 else words[1] if lo > 0 else "not told apart"


def _with_difference(row: Row, key: str) -> str:
    return f"{short(row.get(key), 4)} (encoder's {_signed(_difference(key).cell(row))})"


def _signed(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def _about_order(by_mode: Mapping[str, Row]) -> list[str]:
    """Whether the best in squared error is the best for the model, among modes at the target L0."""
    rows = [row for row in by_mode.values() if not {"l0_off", "unmatchable"} & set(row["flags"])]
    if len(rows) < 2:
        return []
    ranked = [sorted(rows, key=lambda row, key=key: row[key]) for key in ("nmse", "ce", "kl")]
    orders = ["; ".join(label(row) for row in order) for order in ranked]
    if orders[0] == orders[1] == orders[2]:
        return [f"squared error, CE and KL order the modes alike, best first: {orders[0]}."]
    return [f"best first by NMSE: {orders[0]} | by CE: {orders[1]} | by KL: {orders[2]}."]


def printed(rows: Iterable[Row]) -> str:
    """All tables and sentences for a terminal."""
    rows, parts = list(rows), []
    for table in make_tables(rows):
        widths = [max(map(len, cells)) for cells in zip(*table.lines, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table.lines
        ]
        rule = "─" * len(lines[0])
        parts.append("\n".join([table.title, rule, lines[0], rule, *lines[1:], *table.notes]))
    return "\n\n".join([*parts, "\n".join(headlines(rows))])


def markdown(rows: Iterable[Row]) -> str:
    parts = []
    for table in make_tables(rows):
        lines = [f"| {' | '.join(cells)} |" for cells in table.lines]
        lines.insert(1, "|---" + "|---:" * (len(table.lines[0]) - 1) + "|")
        parts.append(
            "\n".join([f"### {table.title}", "", *lines, "", *(f"{note}  " for note in table.notes)]).rstrip()
        )
    return "\n\n".join(parts)


def write_page(
    rows: Iterable[Row],
    folder: str | Path,
    about: Mapping[str, Any],
    pictures: Iterable[str | Path] = (),
    versions: Mapping[str, str] | None = None,
) -> Path:
    """`about` says what was measured, {label: value}; pictures ending in png are linked. Written atomically."""
    rows, folder = list(rows), Path(folder)
    measured = ["| measured | |", "|---|---|"]
    measured += [f"| {key} | {_cell(value)} |" for key, value in about.items() if value not in (None, "")]
    parts = [f"# {TITLE}", "\n".join(measured)]
    if said := headlines(rows):
        parts.append("## In words\n\n" + "\n".join(f"- {sentence}" for sentence in said))
    shown = [
        Path(os.path.relpath(path, folder)).as_posix() for path in pictures if str(path).endswith(".png")
    ]
    parts += [f"![NMSE against CE recovered]({path})" for path in shown]
    parts += ["## Tables", markdown(rows), "## What the numbers mean", _meanings(rows)]
    parts += ["## Protocol", AS_SAEBENCH, UNLIKE_SAEBENCH]
    if versions:
        parts += ["## Versions", ", ".join(f"{name} {version}" for name, version in versions.items())]
    path = folder / "report.md"
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _meanings(rows: list[Row]) -> str:
    lines = ["| number | unit | meaning | definition |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        if any(row.get(name) is not None for row in rows):
            header = f"{metric.label} {ARROWS[metric.direction]}".strip()
            lines.append(f"| {_cell(header)} | {metric.unit} | {_cell(metric.text)} | `{metric.id}` |")
    return "\n".join(lines)
