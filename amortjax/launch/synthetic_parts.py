"""What `launch.synthetic` runs: one part per scenario and method, kept in OUT/parts and made once."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.synthetic import controlled, scenarios, scoring
from amortjax.synthetic.scenarios import Setup

if TYPE_CHECKING:
    from amortjax.launch.synthetic import Config

VERSION = 3  # of the parts: one that another version left is measured again
CONTROLLED_POINTS = 10
Row = dict[str, Any]


class Job(NamedTuple):
    """One method in one scenario. `steps`: log points of `literal`, or how many points (`controlled`)."""

    setup: Setup
    method: str
    protocol: str
    at: tuple[int, ...]
    budget: float


def jobs(config: "Config") -> list[Job]:
    """In the order they run; AmortjaxError on a method that no chosen scenario has, or a budget that can't be spent."""
    names = scenarios.SCENARIOS if config.scenario == "all" else (config.scenario,)
    found, refused = [], dict.fromkeys(config.methods, 0)
    for name in names:
        setup = setup_of(config, name)
        for method in _methods(config, name, refused):
            if config.protocol == "controlled":
                controlled.steps_of(setup, method, controlled.budget_of(setup, config.budget))
            found.append(Job(setup, method, config.protocol, _log_points(config, setup), config.budget))
    for method, times in refused.items():
        if times == len(names):
            scenarios.check_methods(names[-1], (method,))
    return found


def methods_of(jobs: list[Job]) -> list[tuple[Setup, str]]:
    """Each scenario's methods, once."""
    return list({(job.setup.scenario, job.method): (job.setup, job.method) for job in jobs}.values())


def setup_of(config: "Config", scenario: str) -> Setup:
    seed = scenarios.SEEDS[scenario] if config.seed is None else config.seed
    shared = {f.name for f in dataclasses.fields(Setup)} - {"scenario", "seed"}
    given = {name: getattr(config, name) for name in shared}
    return Setup(scenario, seed=seed, **given).checked()


def _methods(config: "Config", scenario: str, refused: dict[str, int]) -> list[str]:
    """Those the scenario has; `refused` counts the others. `controlled` has other codes' solvers beside each method."""
    kept = []
    for method in config.methods or scenarios.METHODS[scenario]:
        try:
            scenarios.check_methods(scenario, (method,))
        except AmortjaxError:
            refused[method] += 1
            continue
        known = scenario == "known_dictionary"
        if config.protocol == "controlled" and (method == "sae_ito" or (method == "sparse_coding" and known)):
            method = "sae"
        kept.append(method)
    return list(dict.fromkeys(kept))


def _log_points(config: "Config", setup: Setup) -> tuple[int, ...]:
    if config.protocol == "controlled":
        every = config.log_every
        return (CONTROLLED_POINTS if every is None else max(1, config.steps // every),)
    every = config.log_every or scenarios.LOG_EVERY[setup.scenario]
    return tuple(scenarios.log_points(config.steps, every))


def part_of(folder: Path, job: Job) -> Path:
    about = json.dumps([VERSION, dataclasses.asdict(job.setup), *job[1:]], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:12]
    return folder / f"{job.setup.scenario}_{job.setup.distribution}_{job.method}_{digest}.json"


def finished(config: Any, job: Job) -> list[Row]:
    """A job's rows, from disk or made now. `config`: anything with a `folder`."""
    path = part_of(config.folder / "parts", job)
    rows = read_part(path)
    name = f"{job.setup.scenario}, {job.setup.distribution}: {job.method}"
    if rows is not None:
        print(f"{name}: finished before", file=sys.stderr)
        return rows
    began, cpu = time.monotonic(), time.process_time()
    with bar_of(job, name) as bar:
        rows = [row for batch in made(job, bar.update) for row in batch]
    spent = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
    rows = [row | spent for row in rows]
    write_atomically(path, json.dumps(rows))
    print(f"{name}: {spent['seconds']:.0f} s ({spent['cpu_seconds']:.0f} s of CPU)", file=sys.stderr)
    return rows


def read_part(path: Path) -> list[Row] | None:
    """None if it is not there or not whole: then it is made again."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    keys = {"checkpoint", "mode", "condition", "method", "step", "mcc"}
    whole = (
        isinstance(rows, list) and rows and all(isinstance(row, dict) and keys <= row.keys() for row in rows)
    )
    return rows if whole else None


def bar_of(job: Job, name: str) -> Any:
    from tqdm import tqdm

    total = job.at[-1] + 1
    if job.protocol == "controlled":
        total = controlled.steps_of(job.setup, job.method, controlled.budget_of(job.setup, job.budget))
        print(f"{name}: {total} steps for the budget", file=sys.stderr)
    return tqdm(total=total, desc=name, unit="step", leave=False, disable=not sys.stderr.isatty())


def made(job: Job, moved: Callable[[int], Any]) -> Iterator[list[Row]]:
    """Rows of one log point after the other."""
    if job.protocol == "controlled":
        yield list(controlled.rows(job.setup, job.method, job.budget, job.at[0], moved))
        return
    data = [job.setup.data()] * job.setup.seeds  # literal: all runs have the same
    for point in scenarios.points(job.setup, job.method, job.at, moved):
        yield scoring.rows_of(job.setup, job.method, data, point, "literal", codes="own")
