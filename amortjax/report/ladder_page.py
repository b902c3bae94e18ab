"""The page of the price rung by rung.

write_page(rows, table, folder, about, flags, pictures)      # report.md, and the same in one file, report.html
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amortjax.files import write_atomically
from amortjax.report.html import Section, write_html
from amortjax.report.ladder import (
    FORETOLD,
    LADDER,
    PARTS,
    RECONSTRUCTION,
    cells,
    headlines,
    ladder_of,
    markdown,
    notes,
    reconstruction_of,
)
from amortjax.report.numbers import grouped_digits
from amortjax.report.schema import Row

HOW = """All rungs minimise the same P(z) = 1/2 |t - z W|^2 + lambda * sum_j |W_j| z_j, z >= 0, at the same lambda. They
are fitted on sae_train documents and chosen on other sae_train documents, told apart by a hash of the document; lambda
is set on the calibrate split; all numbers below are of test documents. A rung starts as the one before: the affine map
as the scaled encoder (a TopK or threshold rule can't be carried over, so its start fires each latent as often instead),
the MLP as the affine map with a hidden layer that adds nothing, LISTA's layers from the MLP's code, whose weights then
stay. Amplitude is what the lasso restricted to a code's own latents would save, support the rest. A step is what a rung
takes off mean P; its share is of the whole price, the encoder's P minus the optimum's, so that the steps down to the
optimum sum to 100 %. Nothing is clipped: a step may be negative. The last rung's P is of another dictionary at the same
lambda (atoms of any norm, which P does not depend on): its step goes beyond the whole price, and a few alternations
give a dictionary, not the best one. Intervals are 95 %, from a bootstrap over blocks of documents, paired
over rungs; they hold for the rungs as fitted."""


EXACT = (
    "P of a rung minus P of the certified code, per token, divided among latents exactly: latents that only the "
    "optimum fires, only the rung fires, or both; the remainder is what the optimum's tolerance leaves. A part may be "
    "negative, because latents explain one residual together: a latent that is missed costs nothing where others have "
    "overshot."
)
OVER_LATENTS = (
    "Over latents that fire at least 20 times on the tokens rungs are fitted on; density, angular variance and firings "
    "are of those tokens, prices of test tokens. Everything is ranks; the ridge takes all four at once, and its R² is "
    "of latents left out. These intervals are from a bootstrap over latents, not over documents: they hold these "
    "tokens fixed. A correlation across latents is no cause."
)


def write_page(
    rows: Sequence[Row],
    table: Sequence[Row],
    folder: Path,
    about: Mapping[str, Any],
    flags: Mapping[str, Any],
    pictures: Sequence[Path],
    versions: Mapping[str, str] | None = None,
) -> Path:
    """report.md and report.html; returns the former's path."""
    ladder, same_l0, said = ladder_of(rows), reconstruction_of(rows), headlines(rows, table)
    first = ladder[0]
    n = f"{grouped_digits(first['n_tokens'])} test tokens of {grouped_digits(first['n_documents'])} documents"
    few = "" if first["n_documents"] >= 50 else " Fewer than 50 documents: no intervals."
    drawn = "\n\n".join(f"![{path.stem}]({path.name})" for path in pictures if path.suffix == ".png")
    head = "\n".join(f"- {label}: {value}" for label, value in about.items())
    text = f"""# The price of the encoder, rung by rung

{head}
- evaluated: {n}.{few}

{chr(10).join("- " + line for line in said)}

{drawn}

## The ladder

{markdown(ladder, LADDER)}

{chr(10).join(f"{note}  " for note in notes(ladder))}

{HOW}

## What each rung gets wrong

{markdown([row for row in ladder if row.get("price_missed") is not None], PARTS)}

{EXACT}

## Reconstruction at equal L0

{markdown(same_l0, RECONSTRUCTION)}

## Which latents cost

{markdown(table, FORETOLD)}

{OVER_LATENTS}

Flags: `{json.dumps(dict(flags))}`
"""
    write_atomically(folder / "report.md", text)
    sections = [
        Section("The ladder", HOW, *cells(ladder, LADDER), notes=notes(ladder)),
        Section(
            "What each rung gets wrong", EXACT,
            *cells([row for row in ladder if row.get("price_missed") is not None], PARTS),
        ),
        Section("Which latents cost", OVER_LATENTS, *cells(table, FORETOLD)),
    ]  # fmt: skip
    more = {"sentences": said, "title": "The price of the encoder, rung by rung"}
    write_html(same_l0, folder, about, pictures, sections=sections, versions=versions, flags=flags, **more)
    return folder / "report.md"
