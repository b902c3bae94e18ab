"""The claims ledger: each claim of the two papers with the verdict that result files give it.

    found = claims_rows.read(["outputs/quickstart"])
    entries = ledger(found.rows)                    # a dict per claim: id, claim, controlled, verdict, reason ...
    write(entries, found, "outputs/claims")         # claims.csv, claims.json, claims.md
    section(entries)                                # for report.html

Nothing is written by hand: without rows a claim is "not testable here", with the command that would make them.
"""

import json
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amortjax.files import write_atomically
from amortjax.report import html
from amortjax.report.claims_registry import CLAIMS, Claim
from amortjax.report.claims_rows import Found
from amortjax.report.evidence import VERDICTS, Evidence, Row, Verdict, hull, summary
from amortjax.report.trajectories import Table, markdown
from amortjax.report.trajectories import printed as printed_table

TITLE = "Claims of the papers"
COLUMNS = (
    "id",
    "paper",
    "claim",
    "where",
    "tested",
    "rule",
    "literal",
    "controlled",
    "interval",
    "verdict",
    "reason",
)
NOT_RUN = "-"
EXPLAINED = (
    "A verdict comes from intervals, never from values alone. A piece of evidence is one SAE or one training; its "
    "number is signed so that positive is as claimed. It is as claimed if its 95 % interval excludes 0 and not every "
    "effect of the size in the rule, against the claim if the interval excludes that size. Holds: all is as claimed, "
    "nothing is open or left out. Holds in part: for some SAEs, or under the literal protocol only. Does not hold: "
    "for none, and at least half are decided. Not testable here: nothing decides; the reason says what is missing."
)


def ledger(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """An entry per claim, in the registry's order. Pure: the same rows give the same entries."""
    return [_entry(paper, claim, claim.judge(rows)) for paper, own in CLAIMS.items() for claim in own]


def _entry(paper: str, claim: Claim, found: Verdict) -> dict[str, Any]:
    texts = {
        "id": claim.id, "paper": paper, "claim": claim.text, "where": claim.where, "tested": claim.tested,
        "rule": claim.rule, "literal": summary(found.literal) or NOT_RUN,
        "controlled": summary(found.controlled) or NOT_RUN, "interval": hull(found.controlled) or NOT_RUN,
        "verdict": found.verdict, "reason": found.reason,
    }  # fmt: skip
    evidence = {"controlled": found.controlled, "literal": found.literal}
    return texts | {"evidence": {name: list(map(_plain, own)) for name, own in evidence.items()}}


def _plain(one: Evidence) -> dict[str, Any]:
    return {"subject": one.subject, "what": one.what, **one.found._asdict(), "side": one.side}


def headlines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """How many claims of each paper have each verdict, and a sentence for each that was decided."""
    out = []
    for paper in CLAIMS:
        own = [entry for entry in entries if entry["paper"] == paper]
        count = Counter(entry["verdict"] for entry in own)
        told = ", ".join(f"{verdict} {count[verdict]}" for verdict in VERDICTS if count[verdict])
        out.append(f"{paper}: of {len(own)} claims {told}.")
    decided = [entry for entry in entries if entry["verdict"] != VERDICTS[-1]]
    return out + [f"{entry['claim']} {entry['verdict'].capitalize()}." for entry in decided]


def table(entries: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    return Table(TITLE, list(columns), [[str(entry[name]) for name in columns] for entry in entries])


def printed(entries: Sequence[dict[str, Any]]) -> str:
    """For a terminal: verdicts and numbers, then the reasons."""
    lines = [f"{entry['id']}: {entry['reason']}." for entry in entries if entry["reason"]]
    body = [[entry["id"], entry["verdict"], textwrap.shorten(entry["controlled"], 90)] for entry in entries]
    first = printed_table(Table(TITLE, ["claim", "verdict", "controlled"], body))
    return "\n".join([first, "", *lines, "", *headlines(entries)[: len(CLAIMS)]])


def section(entries: Sequence[dict[str, Any]]) -> html.Section:
    """The ledger as a part of report.html."""
    columns = ("claim", "where", "tested", "literal", "controlled", "interval", "verdict", "reason", "paper")
    body = table(entries, columns).body
    return html.Section(TITLE, EXPLAINED, columns, body, notes=headlines(entries)[: len(CLAIMS)])


def page(entries: Sequence[dict[str, Any]], files: Sequence[Path]) -> str:
    """claims.md."""
    parts = ["# " + TITLE, *headlines(entries)[: len(CLAIMS)], EXPLAINED]
    for paper in CLAIMS:
        own = [entry for entry in entries if entry["paper"] == paper]
        columns = ("id", "claim", "where", "literal", "controlled", "interval", "verdict", "reason")
        parts += [f"## {paper}", markdown(table(own, columns))]
    rules = [f"- {entry['id']}: {entry['tested']}. Counts as claimed: {entry['rule']}." for entry in entries]
    parts += ["## What is tested, and the rules", "\n".join(rules)]
    parts += ["## Result files", "\n".join(f"- {path.parent.name}/{path.name}" for path in files) or "None."]
    return "\n\n".join(parts) + "\n"


def write(entries: Sequence[dict[str, Any]], found: Found, folder: str | Path) -> list[Path]:
    """claims.csv, claims.md, and claims.json with all evidence; each whole or not at all."""
    import pandas as pd

    folder = Path(folder)
    frame = pd.DataFrame([{name: entry[name] for name in COLUMNS} for entry in entries])
    whole = {"files": [str(path) for path in found.files], "left_out": found.notices, "claims": list(entries)}
    texts = {
        "claims.csv": frame.to_csv(index=False),
        "claims.md": page(entries, found.files),
        "claims.json": json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]
