"""Steps of launch.synthetic_sweep: which cells, their rows from disk or measured now, and the report."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.launch import flagged, section5
from amortjax.synthetic.sweeps import Asked, Cell, plan


def planned(config: Any) -> list[Cell]:
    """The sweep's cells; all mistakes of sizes now."""
    from amortjax.synthetic.generators import check_sizes

    names = {field.name for field in dataclasses.fields(Asked)}
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name in names}
    cells = plan(config.sweep, Asked(**given))
    for cell in cells:
        check_sizes(cell.sources, cell.dimensions, cell.active, cell.samples)
        if cell.k > cell.sources:
            raise AmortjaxError(f"--topks={cell.k}: only {cell.sources} sources there are")
    return cells


def measured(cells: list[Cell], sweep: str, folder: Path) -> Iterator[dict[Cell, list[dict[str, Any]]]]:
    """Rows of each cell's runs, a group of cells at a time; what is on disk is read."""
    from tqdm import tqdm

    kept = {cell: path for cell in cells if (path := folder / "cells" / f"{cell.name}.json").exists()}
    if kept:
        yield {cell: _read(path) for cell, path in kept.items()}
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        if cell not in kept:
            groups.setdefault(cell.group(), []).append(cell)
    bars = sys.stderr.isatty()  # a log gets a line for each cell instead
    with tqdm(total=len(cells), initial=len(kept), desc=sweep, unit="cell", disable=not bars) as bar:
        for group in groups.values():
            found = _measure(group, sweep, folder, bars)
            for cell, rows in found.items():
                text = json.dumps(rows, indent=1, allow_nan=False)
                write_atomically(folder / "cells" / f"{cell.name}.json", text + "\n")
                said = f"  {cell.name}: MCC {rows[0]['mcc']:.3f} in run 0, {sum(r['seconds'] for r in rows):.0f} s"
                tqdm.write(said, file=sys.stderr)
            bar.update(len(group))
            yield found


def _measure(group: list[Cell], sweep: str, folder: Path, bars: bool) -> dict[Cell, list[dict[str, Any]]]:
    from amortjax.synthetic import large, sweep_cells

    if sweep == "large":
        return large.measured(group, folder / "cells", bars)
    return sweep_cells.measured(group, bars)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        numbers = [(float(row["mcc"]), float(row["seconds"]), str(row["method"])) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AmortjaxError(f"{path}: not a finished cell ({error!r}): remove it and run again") from None
    if not numbers:
        raise AmortjaxError(f"{path}: holds no run: remove it and run again")
    return rows


def summarised(
    sweep: str, cells: list[Cell], found: dict[Cell, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """A row for each cell that is finished, in the plan's order."""
    from amortjax.report import synthetic_sweep

    return [synthetic_sweep.summarised(sweep, found[cell]) for cell in cells if cell in found]


def write_report(config: Any, rows: list[dict[str, Any]]) -> None:
    """The picture, report.md, report.html and config.json; prints tables and sentences."""
    import jax

    from amortjax.report import figures_synthetic_sweep, sheets, synthetic_sweep

    out = config.folder
    pictures = figures_synthetic_sweep.draw(config.sweep, rows, out / "figures")
    about = {
        "sweep": f"{config.sweep}, {config.protocol}",
        "cells": f"{len(rows)}, {sum(row['runs'] for row in rows)} runs",
        "seconds": f"{sum(row['seconds'] for row in rows):.0f}",
        "device": str(jax.devices()[0].device_kind),
    }
    report = synthetic_sweep.report(config.sweep, rows, about, pictures)
    if config.steps is not None:
        said = f"Trained for {config.steps} steps, whatever was published: that is what published values are beside."
        report = report._replace(sentences=[said, *report.sentences])
    sheets.write(report, out, section5.used_versions(), dataclasses.asdict(config))
    write_atomically(out / "config.json", flagged.to_json(config))
    print(sheets.printed(report))
    print(f"\nresults {out}/results.csv, pictures {out}/figures, report {out}/report.md and report.html")
