"""bench_training's rows: which there are to be, which are there, and the files that follow them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import amortjax
from amortjax.errors import AmortjaxError
from amortjax.launch.bench_inference import about_machine
from amortjax.launch.bench_parts.train_options import THEIRS, Variant
from amortjax.report import tables

STEM = "training"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row to be."""

    variant: Variant
    dead_share: float = 0.0
    seed: int = 0

    @property
    def label(self) -> str:
        more = f", {self.dead_share:g} dead" if self.dead_share else ""
        return f"{self.variant}{more}" + (f", seed {self.seed}" if self.seed else "")


def code() -> str:
    """A hash of the trainer's source: rows measured with another are measured again."""
    folder, digest = Path(amortjax.__file__).parent, hashlib.sha256()
    for pattern in ("training/*.py", "saes/*.py", "launch/bench_parts/train_*.py"):
        for file in sorted(folder.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class Bench:
    """The rows so far. Refuses a folder with rows of the same part that don't stand in one table with new ones."""

    def __init__(self, part: str, setting: dict[str, Any], peer_python: str, out: Path) -> None:
        self.part, self.out = part, out
        self.shared = {"part": part, "setting": setting, **about_machine()}
        self.identity = {"part": part, "code": code(), "peer_python": peer_python}
        self.rows = tables.read_results(out, STEM)
        for row in self.rows:
            for name in ("setting", "device", "threads") if row.get("part") == part else ():
                if row.get(name) != self.shared[name]:
                    raise AmortjaxError(
                        f"{out} holds {part} rows measured with {name} {row.get(name)}, not {self.shared[name]}: "
                        "use another --out, or delete that folder"
                    )

    def finished(self, case: Case) -> bool:
        """A row with a peer serves where none is asked for."""
        wanted = self.identity | dataclasses.asdict(case)
        if not wanted["peer_python"]:
            del wanted["peer_python"]
        return any(all(row.get(key) == value for key, value in wanted.items()) for row in self.rows)

    def add(self, case: Case, row: dict[str, Any]) -> None:
        """In the place of an outdated row, and written."""
        keys = ("part", *dataclasses.asdict(case))
        named = {"checkpoint": case.label, "mode": self.part, "condition": "bench_training"}
        new = {**named, **self.shared, **self.identity, **dataclasses.asdict(case), **row}
        self.rows = [old for old in self.rows if any(old.get(key) != new[key] for key in keys)] + [new]
        tables.write_results(self.rows, self.out, STEM)

    def blocks(self, asked: Sequence[Case]) -> dict[str, list[dict[str, Any]]]:
        """{part: its rows}: of this part those that are asked for, of the other all."""
        names, order = [field.name for field in dataclasses.fields(Case)], list(THEIRS)
        out: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["part"] != self.part or Case(**{name: row[name] for name in names}) in asked:
                out.setdefault(row["part"], []).append(row)
        for rows in out.values():
            rows.sort(key=lambda row: (order.index(row["variant"]), row["dead_share"], row["seed"]))
        return out
