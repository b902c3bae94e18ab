"""Sweeps over synthetic data as tables and words (rows of `launch.synthetic_sweep`): ours beside the published value.

A row is a cell: its setting (sweep, method, sources, dimensions, active, hidden, bias, k, k_after, lam, goal, steps,
runs) and the mean over runs of each number, NAME_std over runs, NAME_chance, NAME_corrected, NAME_published,
NAME_published_std, NAME_difference and NAME_met: is it within NEAR, or two published deviations.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from amortjax.metrics import recovery
from amortjax.report.numbers import MISSING, short
from amortjax.report.sheets import Report, Sheet
from amortjax.report.synthetic_sweep_published import published

Row = dict[str, Any]
TITLES = {
    "size": "Sizes and the recovery boundary",
    "l1": "The L1 coefficient",
    "topk": "TopK",
    "width": "The MLP's width",
    "bias": "Bias",
    "large": "1000 sources in 200 dimensions",
    "ood": "Compositions never seen in training",
    "ceilings": "Ceilings: dictionary learning by exact steps and by scikit-learn",
}
NUMBERS = (
    "mcc", "mcc_cosine", "mcc_greedy", "mcc_hungarian", "mcc_independent", "dict_mcc", "dict_mcc_cosine",
    "dict_mcc_greedy", "mse", "loss", "density@0.001", "density@0.0001", "density@1e-05", "density@0", "mcc_exact",
    "objective", "objective_exact", "exact_gap", "mcc_least", "train_objective", "train_gap", "offset",
)  # fmt: skip
WITH_CHANCE = ("mcc", "mcc_cosine", "dict_mcc", "dict_mcc_cosine")
PUBLISHED = {"mcc": "mcc", "dict_mcc": "dict_mcc", "mse": "mse", "l0": "density@0.001"}
NEAR = 0.03  # of MCCs and shares of active codes
_OOD = ("in_distribution_", "new_pairs_")
SETTING = {
    "sources": "N", "dimensions": "M", "active": "K", "lam": "λ", "k": "TopK", "k_after": "TopK after",
    "hidden": "width", "bias": "bias", "steps": "steps",
}  # fmt: skip
EXPLAINED = (
    "MCC: mean |Pearson| of true and found latents on the test half under the best one-to-one matching; supervised "
    "encoders are read latent by latent and signed. Dictionary MCC: the same over the M entries of atoms, as the paper "
    "has it, which is not the cosine; that stands with the other measures.\n\n"
    "Chance: of latents what ReLU encoders with random weights score on the same x; of dictionaries what random "
    "Gaussian ones of that shape do. Corrected: (MCC - chance) / (1 - chance): 0 is as good as untrained. "
    "In brackets the standard deviation over runs, published beside ours where a value is published at that setting "
    "(whatever number of steps was asked for here). A star: the difference is above .03 and above two published "
    "standard deviations.\n\n"
    "λ is the released form, mean (x - zD)² + λ mean |z|; half form λ M / (2 N). Active share: of codes above 1e-3. "
    "The boundary K ln(N / K) = M is a guide only, and says nothing where K is above N / 2.\n\n"
    "Exact codes: certified optimal codes on the dictionary that was learned; their distance is what inference costs, "
    "the distance from there to the true dictionary what the dictionary does."
)


def label(row: Mapping[str, Any]) -> str:
    """ "MLP-32, supervised"."""
    names = {
        "sae": "SAE", "mlp": f"MLP-{row.get('hidden')}", "sparse_coding": "sparse coding",
        "certified_learner": "exact-step dictionary learning", "true_dictionary": "true dictionary, certified codes",
        "sklearn": "scikit-learn",
    }  # fmt: skip
    text = names.get(str(row["method"]), str(row["method"]))
    return f"{text}, supervised" if row.get("goal") == "codes" and row["method"] in ("sae", "mlp") else text


def summarised(sweep: str, runs: Sequence[Mapping[str, Any]]) -> Row:
    """One cell's row from those of its runs."""
    first = runs[0]
    row: Row = {key: value for key, value in first.items() if key not in ("run", "seconds")} | {
        "sweep": sweep
    }
    row |= {
        "checkpoint": f"N={first['sources']}, M={first['dimensions']}, K={first['active']}",
        "runs": len(runs),
    }
    row |= {"mode": label(first), "condition": sweep, "seconds": sum(float(one["seconds"]) for one in runs)}
    for key in [*NUMBERS, *(key for key in first if key.startswith(_OOD))]:
        values = [float(one[key]) for one in runs if one.get(key) is not None]
        if values:
            row |= {key: statistics.fmean(values), f"{key}_std": statistics.pstdev(values)}
    for key in WITH_CHANCE:
        levels = [float(one[f"{key}_chance"]) for one in runs if one.get(f"{key}_chance") is not None]
        if levels and row.get(key) is not None:
            row[f"{key}_chance"] = statistics.fmean(levels)
            row[f"{key}_corrected"] = recovery.corrected(row[key], row[f"{key}_chance"])
    known = published(row)
    for name, key in PUBLISHED.items():
        if name in known and row.get(key) is not None:
            row |= _beside(key, row, known[name], known.get(f"{name}_std"))
    if row.get("mcc_exact") is not None:
        row["mcc_exact_corrected"] = recovery.corrected(row["mcc_exact"], row["mcc_chance"])
    return row


def _beside(key: str, row: Mapping[str, Any], value: float, spread: float | None) -> Row:
    """No verdict on an error, whose scale differs, nor where terms are not the released ones."""
    far = row[key] - value
    found = {f"{key}_published": value, f"{key}_published_std": spread, f"{key}_difference": far}
    judged = key != "mse" and row.get("protocol") == "literal"
    return found | ({f"{key}_met": abs(far) <= max(NEAR, 2 * (spread or 0.0))} if judged else {})


def report(sweep: str, rows: Sequence[Row], about: Mapping[str, str], pictures: Sequence[Path]) -> Report:
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        blocks.setdefault(row["checkpoint"] if sweep == "width" else f"K={row['active']}", []).append(row)
    sheets = [sheet(f"{TITLES[sweep]}: {name}", block) for name, block in blocks.items()]
    sheets += [_measures(name, block) for name, block in blocks.items()]
    if sweep == "ood":
        sheets.append(_compositions(rows))
    return Report(
        f"Synthetic sweep: {TITLES[sweep]}", about, sentences(sweep, rows), sheets, EXPLAINED, pictures
    )


def sheet(title: str, rows: Sequence[Row]) -> Sheet:
    """A line per cell; settings that do not vary are in the text, columns without a number are left out."""
    varied = [
        key for key in SETTING if len({row.get(key) for row in rows}) > 1 and key not in ("hidden", "steps")
    ]
    fixed = [f"{SETTING[key]} = {_plain(rows[0].get(key))}" for key in SETTING if key not in (*varied, "hidden")
             and len({row.get(key) for row in rows}) == 1 and rows[0].get(key)]  # fmt: skip
    columns = [
        ("MCC", lambda r: _spread(r, "mcc")),
        ("published", lambda r: _published(r, "mcc")),
        ("difference", lambda r: _difference(r, "mcc")),
        ("chance", lambda r: short(r.get("mcc_chance"))),
        ("corrected", lambda r: short(r.get("mcc_corrected"))),
        ("exact codes", lambda r: _spread(r, "mcc_exact")),
        ("corrected", lambda r: short(r.get("mcc_exact_corrected"))),
        ("dictionary MCC", lambda r: _spread(r, "dict_mcc")),
        ("published", lambda r: _published(r, "dict_mcc")),
        ("difference", lambda r: _difference(r, "dict_mcc")),
        ("chance", lambda r: short(r.get("dict_mcc_chance"))),
        ("corrected", lambda r: short(r.get("dict_mcc_corrected"))),
        ("MSE", lambda r: short(r.get("mse"))),
        ("published", lambda r: _published(r, "mse")),
        ("active share", lambda r: short(r.get("density@0.001"))),
        ("published", lambda r: _published(r, "density@0.001")),
        ("difference", lambda r: _difference(r, "density@0.001")),
        ("worst latent", lambda r: short(r.get("mcc_least"))),
    ]
    body = [
        [*(_plain(row.get(key)) for key in varied), row["mode"], *(cell(row) for _, cell in columns)]
        for row in rows
    ]
    header = [*(SETTING[key] for key in varied), "method", *(name for name, _ in columns)]
    kept = [i for i in range(len(header)) if any(line[i] != MISSING for line in body)]
    text = f"{', '.join(fixed)}." if fixed else ""
    return Sheet(title, [header[i] for i in kept], [[line[i] for i in kept] for line in body], text)


def _measures(title: str, rows: Sequence[Row]) -> Sheet:
    """What else was measured: other similarities and matchings, densities at each threshold, FLOPs."""
    varied = [key for key in SETTING if len({row.get(key) for row in rows}) > 1 and key != "hidden"]
    columns = {
        "latent cosine": "mcc_cosine", "chance": "mcc_cosine_chance", "corrected": "mcc_cosine_corrected",
        "greedy MCC": "mcc_greedy", "MCC of unrelated codes": "mcc_independent", "dictionary cosine": "dict_mcc_cosine",
        "chance ": "dict_mcc_cosine_chance", "corrected ": "dict_mcc_cosine_corrected",
        "greedy dictionary MCC": "dict_mcc_greedy", "active above 1e-3": "density@0.001", "1e-4": "density@0.0001",
        "1e-5": "density@1e-05", "0": "density@0", "training FLOPs": "train_flops", "(paper's)": "train_flops_paper",
        "inference FLOPs": "inference_flops", "(paper's) ": "inference_flops_paper",
    }  # fmt: skip
    kept = {name: key for name, key in columns.items() if any(row.get(key) is not None for row in rows)}
    body = [
        [
            *(_plain(row.get(key)) for key in varied),
            row["mode"],
            *(_number(row.get(key)) for key in kept.values()),
        ]
        for row in rows
    ]
    header = [*(SETTING[key] for key in varied), "method", *(name.strip() for name in kept)]
    return Sheet(
        f"{title}: other measures",
        header,
        body,
        "FLOPs: of all training steps of a run, and of coding one sample.",
    )


def _number(value: Any) -> str:
    return short(None if value is None else float(value))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return MISSING if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _spread(row: Mapping[str, Any], key: str) -> str:
    text = short(row.get(key))
    return (
        text if row.get("runs", 1) < 2 or text == MISSING else f"{text} ({short(row.get(f'{key}_std'), 2)})"
    )


def _published(row: Mapping[str, Any], key: str) -> str:
    value = row.get(f"{key}_published")
    if value is None:
        return MISSING
    spread = row.get(f"{key}_published_std")
    return f"{value:.3g}" + ("" if spread is None else f" ({spread:.2g})")


def _difference(row: Mapping[str, Any], key: str) -> str:
    """A star marks what is beyond NEAR and two published deviations."""
    value = row.get(f"{key}_difference")
    return MISSING if value is None else f"{value:+.3f}" + (" *" if row.get(f"{key}_met") is False else "")


def _compositions(rows: Sequence[Row]) -> Sheet:
    """In distribution and out of it, side by side."""
    keys = {
        "mcc": "MCC",
        "support_share": "support found",
        "support_exact": "whole support",
        "mse": "MSE",
        "l0": "L0",
    }
    header = ["method", *(f"{name}, {where}" for name in keys.values() for where in ("known", "new pairs")),
              "both of the new pair"]  # fmt: skip
    body = []
    for row in rows:
        cells = [short(row.get(f"{where}{key}")) for key in keys for where in _OOD]
        body.append([row["mode"], *cells, short(row.get("new_pairs_pair_found"))])
    text = (
        "Known: test samples of the training distribution, in which the held-out pairs never meet. New pairs: each "
        "sample holds at least one of them. Latents are matched on the known ones and read in both. Support: are the K "
        "largest codes those of the active sources."
    )
    return Sheet("Known and new compositions", header, body, text)


def sentences(sweep: str, rows: Sequence[Row]) -> list[str]:
    """How near the published values are, and what each method adds to the SAE."""
    said = []
    for key, name in (
        ("mcc", "latent MCCs"),
        ("dict_mcc", "dictionary MCCs"),
        ("density@0.001", "shares of active codes"),
    ):
        compared = [row for row in rows if row.get(f"{key}_met") is not None]
        if compared:
            most = max(abs(row[f"{key}_difference"]) for row in compared)
            met = sum(row[f"{key}_met"] for row in compared)
            said.append(
                f"{met} of {len(compared)} {name} are within .03 (or two published standard deviations) of the "
                f"published value; the largest difference is {most:.3f}."
            )
    chanced = [row for row in rows if row.get("mcc_corrected") is not None and row["mcc_corrected"] <= 0.05]
    if chanced:
        said.append(
            f"{len(chanced)} of {len(rows)} cells have latents no better than those of random encoders."
        )
    return said + _best(rows) + (_kept(rows) if sweep == "ood" else [])


def _best(rows: Sequence[Row]) -> list[str]:
    """The highest MCC of each method at the setting where it has one."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.get("mcc") is not None and row["mcc"] > best.get(row["mode"], {"mcc": -1})["mcc"]:
            best[row["mode"]] = row
    if not best:
        return []
    return [
        "Highest MCC by method: "
        + ", ".join(f"{name} {short(row['mcc'])}" for name, row in best.items())
        + "."
    ]


def _kept(rows: Iterable[Row]) -> list[str]:
    lost = [
        f"{row['mode']} {short(row['in_distribution_support_exact'])} and {short(row['new_pairs_support_exact'])}"
        for row in rows
        if row.get("new_pairs_support_exact") is not None
    ]
    return (
        [f"Whole supports found, of known compositions and of new pairs: {'; '.join(lost)}."] if lost else []
    )
