"""Result files as rows that know where they come from, for the claims ledger.

found = read(["outputs/quickstart", "outputs/loca"])     # every results.json and loca.json below
found.rows[0]["source"], found.rows[0]["subject"]        # "section5", "topk"
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from amortjax.errors import AmortjaxError
from amortjax.report.schema import CONDITIONS

NAMES = ("results.json", "loca.json")
# Folders of finished parts, stores and the like: no results are in them.
SKIPPED = {"rows", "parts", "acts", "figures", "state", "base_state", "checkpoints", "ckpts", "tensorboard"}
# Launchers whose rows say by their condition where they come from.
BY_CONDITION = {"dead_audit": "dead_audit", "consistency": "consistency", "ladder": "decompose"}


class Found(NamedTuple):
    """Rows with `source` and `subject` added, the files they are from, and a line on each file that was left out."""

    rows: list[dict[str, Any]]
    files: list[Path]
    notices: list[str]


def read(places: Sequence[str | Path]) -> Found:
    """Everything below some folders, or of some files. AmortjaxError in one line on what can't be read."""
    files = list({path.resolve(): path for place in places for path in _files(Path(place))}.values())
    if not files:
        raise AmortjaxError(
            f"--results: no {' or '.join(NAMES)} in or below {', '.join(map(str, places))}: run a launcher first, "
            "amortjax.launch.section5 for one"
        )
    rows, used, notices = [], [], []
    for path in files:
        own = _rows(path)
        source = "loca" if path.name == "loca.json" else source_of(own)
        if source is None:
            kinds = sorted({str(row.get("condition")) for row in own}) or ["none"]
            notices.append(f"{path}: left out, no claim reads its rows (conditions: {', '.join(kinds[:4])})")
            continue
        used.append(path)
        rows += [
            {**row, "source": source, "subject": _name(row, path), "folder": path.resolve().parent.name}
            for row in own
        ]
    return Found(_told_apart(rows), used, notices)


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise AmortjaxError(f"--results={place}: no such folder or file")
    found = []
    for folder, below, names in os.walk(place):
        below[:] = sorted(name for name in below if name not in SKIPPED and not name.startswith("."))
        found += [Path(folder, name) for name in NAMES if name in names]
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AmortjaxError(
            f"{path}: can't be read ({error}): move it away or run its launcher again"
        ) from None
    if isinstance(held, Mapping):
        held = held.get("rows")
    if not isinstance(held, list) or not all(isinstance(row, Mapping) for row in held):
        raise AmortjaxError(f"{path}: not a list of result rows: move it away or run its launcher again")
    return [dict(row) for row in held]


def source_of(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Which launcher wrote them, None if it is not one that claims are about."""
    rows = list(rows)
    keys = {key for row in rows for key, value in row.items() if value is not None}
    conditions = {str(row.get("condition")) for row in rows}
    if {"method", "mcc"} <= keys and keys & {"scenario", "sweep"}:
        return "synthetic"
    if {"method", "matched"} <= keys:
        return "encoders"
    named = next((source for name, source in BY_CONDITION.items() if name in conditions), None)
    if named:
        return named
    by_key = {"ce_clean": "core_lite", "start": "step_sweep", "null_draws": "nulls"}
    known = next((source for key, source in by_key.items() if key in keys), None)
    if known:
        return known
    if not conditions & set(CONDITIONS):
        return None
    return "section43" if {"sparsity", "step"} <= keys else "section5"


def _name(row: Mapping[str, Any], path: Path) -> str:
    return str(row.get("checkpoint") or row.get("name") or path.parent.name)


def _told_apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Subjects of one source that are in several folders under one name get the folder's name."""
    keys = [(row["source"], str(row.get("protocol")), row["subject"]) for row in rows]
    places = {(*key, row["folder"]) for key, row in zip(keys, rows, strict=True)}
    shared = Counter(place[:3] for place in places)
    for key, row in zip(keys, rows, strict=True):
        if shared[key] > 1:
            row["subject"] = f"{row['subject']} ({row['folder']})"
    return rows
