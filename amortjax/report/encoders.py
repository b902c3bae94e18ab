"""The methods of `launch.encoders` as tables and words: at equal L0, on their own objectives, in FLOPs, to a judge."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from amortjax.report.numbers import MISSING, between, grouped_digits, percent, short, with_interval
from amortjax.report.schema import Row, flagged
from amortjax.report.sheets import Report, Sheet, noted

TITLE = "Encoders, and no encoder"
LABELS = {
    "sae": "SAE",
    "mlp": "MLP encoder",
    "lca": "LCA dictionary",
    "sae_optimal": "SAE + optimal codes",
    "mlp_optimal": "MLP's dictionary + optimal codes",
}
WHOSE = {"sae": "the SAE's encoder", "mlp": "the MLP encoder"}
EXPLAINED = (
    "SAE: a linear map and a ReLU. MLP encoder: one hidden layer and no linear map beside it. LCA dictionary: "
    "learned with searched codes and without an encoder. Optimal codes: certified optima of the lasso on a "
    "dictionary; refit: non-negative least squares on their support, which takes the lasso's shrinkage away. "
    "All are evaluated on the same test tokens; intervals are over documents, differences paired.\n\n"
    "At equal L0: searched codes have the lambda at which they have the encoder's L0 on the calibration "
    "tokens. NMSE is about the decoder's bias, NMSE uncentred is over |x|^2, FVU (variance-normalised NMSE, "
    "the paper's) over the squared distance from the mean of all tokens, where the paper's code takes each "
    "batch's.\n\n"
    "Gap, lambda*: (P - P*) / P* of the encoder at the lambda where the optimum has its L0. Gap, own: the same "
    "at the lambda it was trained with, its own objective. Of searched codes it is what their certificate "
    "leaves open.\n\n"
    "FLOPs are closed forms: 2 a multiply-add, dense products; inference is encoding and decoding a token, of "
    "searched codes the encoder's pass and the rounds of the active set (metrics.flops), of the released "
    "search its iterations. The SAE's dictionary costs its training whatever codes it is given. FLOPs are not "
    "time: the active set's small problems are few operations and slow ones.\n\n"
    "Macro-F1: how well descriptions tell contexts in which a latent fires from those in which it is silent, a "
    "mean of both classes' F1 and then of latents; a coin's, about .5, is chance and stands beside it. The "
    "offline judge knows rules about tokens and n-grams, no language: its scores compare methods with one "
    "another, not with those of a language model, for which amortjax.launch.autointerp takes these SAEs. "
    "Latents are drawn from those that fire in enough documents: a method with many dead ones is judged on the "
    "rest."
)


def label(row: Row) -> str:
    """ "LCA dictionary, refit"."""
    text = str(LABELS.get(row["method"], row["method"]))
    return text + {"optimal_refit": ", refit", "released": ", released search"}.get(str(row["mode"]), "")


def size(n: float | int | None) -> str:
    """FLOPs: 1.2e9, or as they are where they are few."""
    if n is None:
        return MISSING
    return f"{n:.2e}".replace("e+", "e").replace("e0", "e") if n >= 1e5 else grouped_digits(n)


def _interval(key: str) -> Callable[[Row], str]:
    return lambda row: with_interval(*(row.get(f"{key}{end}") for end in ("", "_lo", "_hi")))


def _gap(prefix: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if row["mode"] == "optimal_refit":  # amplitudes of another objective
            return MISSING
        return between(row.get(f"{prefix}suboptimality_lower"), row.get(f"{prefix}suboptimality_upper"))

    return cell


Column = tuple[str, Callable[[Row], str]]
_NUMBERS: tuple[Column, ...] = (
    ("λ", lambda row: short(row.get("lam"))),
    ("L0", lambda row: short(row.get("l0"))),
    ("NMSE ↓", _interval("nmse")),
    ("- encoder's", _interval("nmse_minus_encoder")),
    ("NMSE uncentred ↓", lambda row: short(row.get("nmse_literal"))),
    ("FVU ↓", lambda row: short(row.get("fvu"))),
)
_REST: tuple[Column, ...] = (
    ("dead@N ↓", lambda row: short(row.get("dead"))),
    ("dead, half ↓", _interval("dead_half")),
    ("macro-F1 ↑", _interval("macro_f1")),
    ("a coin's", lambda row: short(row.get("judge_chance_random"))),
    ("FLOPs, training", lambda row: size(row.get("train_flops"))),
    ("FLOPs, a token", lambda row: size(row.get("inference_flops"))),
)
MATCHED: tuple[Column, ...] = (
    *_NUMBERS, ("gap, λ* ↓", _gap("star_")), ("gap, own ↓", _gap("trained_")), *_REST,
)  # fmt: skip
OWN: tuple[Column, ...] = (
    *(c for c in _NUMBERS if c[0] != "- encoder's"),
    ("gap, own ↓", _gap("")),
    *_REST[:2],
    _REST[-1],
)


def report(rows: Sequence[Row], about: Mapping[str, str], pictures: Sequence[Path], judge: str) -> Report:
    rows = [flagged(row) for row in rows]
    matched = list(dict.fromkeys(row["matched"] for row in rows if row["condition"] == "same_l0"))
    sheets = [_at(rows, whose) for whose in matched]
    sheets += [sheet for sheet in (_own(rows), _judged(rows)) if sheet.body]
    about = {**about, "judge": judge}
    return Report(TITLE, about, sentences(rows), sheets, EXPLAINED, pictures)


def _at(rows: Sequence[Row], whose: str) -> Sheet:
    """All methods at one L0."""
    block = [row for row in rows if row["condition"] == "same_l0" and row["matched"] == whose]
    target = next((row["l0_target"] for row in block if row.get("l0_target")), None)
    return _sheet(f"At the L0 of {_named(whose)}, {short(target)}", block, MATCHED)


def _named(whose: str) -> str:
    """ "sae x 0.5" is the SAE's L0 times .5."""
    name, _, factor = whose.partition(" x ")
    return WHOSE.get(name, name) + (f" times {factor}" if factor else "")


def _own(rows: Sequence[Row]) -> Sheet:
    """Each objective's own."""
    block = [
        row
        for row in rows
        if row["condition"] in ("trained_lambda", "released") and row["mode"] != "optimal_refit"
    ]
    return _sheet("Each at the lambda of its training", block, OWN)


def _judged(rows: Sequence[Row]) -> Sheet:
    block = [row for row in rows if row.get("macro_f1") is not None or row.get("judge_n_latents_asked")]
    columns: tuple[Column, ...] = (
        ("L0", lambda row: short(row.get("l0"))),
        ("latents asked", lambda row: grouped_digits(row.get("judge_n_latents_asked"))),
        ("scored", lambda row: grouped_digits(row.get("judge_n_scored"))),
        ("macro-F1, mean ↑", _interval("macro_f1")),
        ("median ↑", _interval("macro_f1_median")),
        ("chance: random", lambda row: short(row.get("judge_chance_random"))),
        ("all fire", lambda row: short(row.get("judge_chance_all_ones"))),
    )
    return _sheet("What a judge makes of the latents", block, columns)


def _sheet(title: str, rows: Sequence[Row], columns: Iterable[Column]) -> Sheet:
    columns = [c for c in columns if any(c[1](row) != MISSING for row in rows)]
    shared = [flag for flag in rows[0]["flags"] if all(flag in row["flags"] for row in rows)] if rows else []
    body = []
    for row in rows:
        own = noted(flag for flag in row["flags"] if flag not in shared)
        body.append([label(row), *(cell(row) for _, cell in columns), own or MISSING])
    header = ["method", *(name for name, _ in columns), "note"]
    if all(line[-1] == MISSING for line in body):
        header, body = header[:-1], [line[:-1] for line in body]
    text = (
        f"{grouped_digits(rows[0].get('n_tokens'))} tokens of {grouped_digits(rows[0].get('n_documents'))} documents."
        if rows
        else ""
    )
    return Sheet(title, header, body, text + (f" All rows: {noted(shared)}." if shared else ""))


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the tables say, where the intervals say it."""
    out = []
    for whose in WHOSE:
        block = [row for row in rows if row["condition"] == "same_l0" and row["matched"] == whose]
        base = next((row for row in block if row["method"] == whose), None)
        if base is None:
            continue
        said = [text for text in (_against(row) for row in block if row is not base) if text]
        if said:
            out.append(
                f"At the L0 of {WHOSE[whose]} ({short(base['l0'])}, NMSE {short(base['nmse'])}): {'; '.join(said)}."
            )
        out += _gaps(base, whose)
    judged = [row for row in rows if row.get("macro_f1") is not None]
    if len(judged) > 1:
        parts = [f"{label(row)} {_interval('macro_f1')(row)}{_coin(row)}" for row in judged]
        out.append(f"Macro-F1 of the judge: {', '.join(parts)}.")
    return out


def _coin(row: Row) -> str:
    level = row.get("judge_chance_random")
    return "" if level is None else f" (a coin {short(level)})"


def _against(row: Row) -> str:
    value, lo, hi = (row.get(f"nmse_minus_encoder{end}") for end in ("", "_lo", "_hi"))
    if value is None:
        return ""
    side = (
        "no interval"
        if lo is None or hi is None
        else "worse"
        if lo > 0
        else "better"
        if hi < 0
        else "not told apart"
    )
    return f"{label(row)} {short(row.get('nmse'))} ({side})"


def _gaps(base: Row, whose: str) -> list[str]:
    """How far an encoder is above the optimum of its own dictionary."""
    at = [
        (text, base.get(f"{prefix}_suboptimality_upper"))
        for prefix, text in (("star", "at lambda*"), ("trained", "on its own objective"))
    ]
    said = [f"at most {percent(value)} {text}" for text, value in at if value is not None]
    return (
        [f"{WHOSE[whose][0].upper()}{WHOSE[whose][1:]} is {' and '.join(said)} above the optimum."]
        if said
        else []
    )
