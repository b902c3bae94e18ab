"""LocA-SAE beside its controls: one table, two pictures, and a page (rows of `launch.loca`).

text = write(rows, signals, folder, config_json)      # loca.csv, report.md, *.png; returns what to print
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.files import write_atomically
from amortjax.report.numbers import between, grouped_digits, short, with_interval

Row = Mapping[str, Any]

NAMES = {
    "loca": "LocA: groups by angular variance",
    "topk": "plain TopK of the same k",
    "random_groups": "random groups, same budgets",
    "uniform_k": "same groups, uniform budgets",
    "price_groups": "groups by measured price",
    "loca_same_k": "LocA, budgets scaled to the first k",
    "topk_same_k": "plain TopK of the first k",
    "mlp_groups": "a separate MLP encoder per group",
}
MINUS = "NMSE minus LocA's"
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("SAE", lambda row: str(NAMES.get(row["name"], row["name"]))),
    ("k", lambda row: str(row["k"])),
    ("parameters", lambda row: grouped_digits(row["parameters"])),
    ("L0", lambda row: short(row["l0"])),
    ("NMSE ↓", lambda row: _interval(row, "nmse")),
    (MINUS, lambda row: "" if row["name"] == "loca" else _interval(row, "nmse_minus_loca")),
    ("FVU ↓", lambda row: short(row["fvu"])),
    ("refit NMSE ↓", lambda row: short(row.get("nmse_encoder_refit"))),
    ("optimum's NMSE, refit ↓", lambda row: short(row.get("nmse_optimal_refit"))),
    ("(P-P*)/P* ↓", lambda row: between(row.get("suboptimality_lower"), row.get("suboptimality_upper"))),
    ("dead@N ↓", lambda row: short(row["dead"])),
    ("dead, half ↓", lambda row: _interval(row, "dead_half")),
    ("dense@0.1 ↓", lambda row: short(row["dense@0.1"])),
    ("ΔF1 ↓", lambda row: _interval(row, "df1")),
    (
        "absorption (chance) ↓",
        lambda row: f"{short(row.get('absorption'))} ({short(row.get('absorption_chance'))})",
    ),
)


def _interval(row: Row, key: str) -> str:
    return with_interval(row.get(key), row.get(f"{key}_lo"), row.get(f"{key}_hi"))


def markdown(rows: Iterable[Row]) -> str:
    lines = [[header for header, _ in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [[cell(row) for _, cell in COLUMNS] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def printed(rows: Iterable[Row]) -> str:
    """The table for a terminal, without the columns that are for the page."""
    narrow = [c for c in COLUMNS if c[0] not in ("parameters", "FVU ↓", "dense@0.1 ↓", "dead, half ↓")]
    table = [[header for header, _ in narrow]] + [[cell(row) for _, cell in narrow] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(narrow))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def about_signals(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How the grouping signals look: quartiles of AVar, dead latents, rank correlation with the price."""
    from scipy.stats import spearmanr

    avar, price, fires = found["avar"], found["price"], found["fires"]
    known = np.isfinite(avar) & (fires > 0)
    quartiles = np.nanquantile(avar, [0, 0.25, 0.5, 0.75, 1]) if known.any() else []
    pairs = {
        "avar_and_price": (avar, price),
        "avar_and_fires": (avar, fires),
        "price_and_fires": (price, fires),
    }
    return {
        "latents": len(avar),
        "never_fired": int((fires == 0).sum()),
        "too_rare_for_avar": int((~np.isfinite(avar)).sum()),
        "avar_quartiles": [float(q) for q in quartiles],
        "rank_correlation": {
            name: float(spearmanr(a[known], b[known])[0])  # pyright: ignore[reportArgumentType]
            if known.sum() > 2 and np.isfinite([a[known], b[known]]).all()
            else None
            for name, (a, b) in pairs.items()
        },
    }


def headlines(rows: Sequence[Row]) -> list[str]:
    """What the table says, a sentence for each control of LocA's own k."""
    by_name = {row["name"]: row for row in rows}
    own, out = by_name["loca"], []
    for name in ("topk", "random_groups", "uniform_k", "price_groups", "mlp_groups"):
        row = by_name.get(name)
        if row is None or row.get("nmse_minus_loca") is None:
            continue
        value, lo, hi = row["nmse_minus_loca"], row.get("nmse_minus_loca_lo"), row.get("nmse_minus_loca_hi")
        clear = lo is not None and hi is not None and (lo > 0 or hi < 0)
        how = ("worse than" if value > 0 else "better than") if clear else "not told apart from"
        out.append(
            f"{NAMES[name]} (L0 {short(row['l0'])}) is {how} LocA (L0 {short(own['l0'])}) in NMSE: difference "
            f"{_interval(row, 'nmse_minus_loca')}."
        )
    return out


def write(rows: Sequence[Row], found: Mapping[str, np.ndarray], folder: Path, config: str) -> str:
    """Table, pictures and page; returns the table and the sentences for the terminal."""
    import pandas as pd

    from amortjax.report.figures_loca import draw_loca, draw_signals

    about = about_signals(found)
    write_atomically(folder / "loca.csv", pd.DataFrame(rows).to_csv(index=False))
    draw_loca(rows, folder / "loca.png")
    draw_signals(found, folder / "signals.png")
    first, says = rows[0], headlines(rows)
    few = "" if (first.get("n_documents") or 0) >= 50 else " Fewer than 50 documents: no intervals."
    text = f"""# LocA-SAE and its controls

Every SAE below went on from the same TopK SAE, on the same batches and for as many steps. Evaluated on
{grouped_digits(first["n_tokens"])} held-out tokens of {first["n_documents"]} documents; differences are paired over
blocks of documents, intervals 95 %.{few}

{chr(10).join("- " + line for line in says)}

{markdown(rows)}

(P-P*)/P* is at each SAE's own λ*, where the certified optimum has its encoder's L0. "Refit": non-negative least
squares on the support. Disjoint groups of one linear encoder over a shared decoder are that encoder with a divided
budget: only the MLP per group has more parameters.

![NMSE at equal steps](loca.png)

## The signals that group

{about["never_fired"]} of {about["latents"]} latents never fired, {about["too_rare_for_avar"]} fired too rarely for an
angular variance. Quartiles of the angular variance:
{", ".join(short(q) for q in about["avar_quartiles"])}. Rank correlation of angular variance with measured price:
{short(about["rank_correlation"]["avar_and_price"])}; with firings {short(about["rank_correlation"]["avar_and_fires"])}.

![angular variance and price](signals.png)

![training](training.png)

Flags: `{json.dumps(json.loads(config))}`
"""
    write_atomically(folder / "report.md", text)
    lines = "\n".join(says)
    return f"{printed(rows)}\n\n{lines}\n\nresults {folder}/loca.csv, report {folder}/report.md"
