"""Do the synthetic scenarios give the published numbers of arXiv 2411.13117? Every published point beside ours.

Trains what `launch.synthetic --protocol=literal` trains, to the published steps, and prints published, ours,
difference, target and whether it is met; MLP-256 and MLP-1024 are shown without a target. Exits with 1 if a target is
missed. --torch times the same training loops in PyTorch in the same run, call by call in turn. Writes results.parquet,
.csv and .json and table.txt to --out; finished parts are skipped when the command is given again.
"""

import dataclasses
import importlib.util
import statistics
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged

if TYPE_CHECKING:
    from amortjax.synthetic.published import Published

Scenario = Literal["known_codes", "known_dictionary", "unknown"]
Distribution = Literal["uniform", "zipf"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    golden: Annotated[tuple[str, ...], "Files of published points."] = (
        "tests/golden/papers/sparse_inference_2411_13117.json",
        "tests/golden/papers/sparse_inference_2411_13117_zipf.json",
    )
    scenarios: Annotated[tuple[Scenario, ...], "Which to run."] = (
        "known_codes",
        "known_dictionary",
        "unknown",
    )
    distributions: Annotated[tuple[Distribution, ...], "Which to run."] = ("uniform", "zipf")
    methods: Annotated[tuple[str, ...], "Which to run, as of launch.synthetic; by default all."] = ()
    most_steps: Annotated[int, "Published points beyond this step are left out."] = 100_000
    torch: Annotated[bool, "Also time the training loops beside PyTorch's."] = False
    repeats: Annotated[int, "Timed calls of each loop, after a first one."] = 5

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        for name in ("golden", "scenarios", "distributions"):
            if not getattr(self, name):
                raise AmortjaxError(f"--{name} is empty: name at least one, or leave the flag out")
        for name, least in (("most_steps", 0), ("repeats", 1)):
            if getattr(self, name) < least:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be at least {least}")
        return self


def chosen(config: Config) -> list["Published"]:
    """The published points that the flags ask for; AmortjaxError if there are none."""
    from amortjax.synthetic import published

    every = [point for path in config.golden for point in published.read(path)]
    found = [
        point
        for point in every
        if point.scenario in config.scenarios
        and point.distribution in config.distributions
        and point.step <= config.most_steps
        and (not config.methods or point.method in config.methods)
    ]
    if not found:
        known = ", ".join(dict.fromkeys(point.method for point in every))
        raise AmortjaxError(f"no published point is left by these flags; methods are {known}")
    return found


def compared(config: Config, points: list["Published"]) -> list[dict[str, Any]]:
    """A row for each published point: ours, the difference and the verdict."""
    from amortjax.launch import synthetic_parts
    from amortjax.report import tables
    from amortjax.synthetic import published, scenarios
    from amortjax.synthetic.scenarios import Setup

    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((p.scenario, p.distribution, p.method) for p in points):
        wanted = [p for p in points if (p.scenario, p.distribution, p.method) == key]
        scenario, distribution, method = key
        at = tuple(sorted({p.step for p in wanted}))
        setup = Setup(scenario, distribution, steps=at[-1] + 1, seed=scenarios.SEEDS[scenario])
        job = synthetic_parts.Job(setup, method, "literal", at, 0.0)
        found = synthetic_parts.finished(config, job)
        for point in wanted:
            runs = [row for row in found if row["step"] == point.step]
            rows.append(verdict(point, runs, published.target(point)))
        tables.write_results(rows, config.folder)
    return rows


def verdict(point: "Published", runs: list[dict[str, Any]], target: float | None) -> dict[str, Any]:
    """ok None: not judged."""
    key = "loss_test" if point.metric == "loss" else point.metric
    if any(key not in row for row in runs):
        raise AmortjaxError(
            f"--golden has {point.metric} of {point.scenario}, {point.method}: there is none to compare"
        )
    ours = [row[key] for row in runs]
    difference = statistics.fmean(ours) - point.value
    levels = [row[f"{key}_chance"] for row in runs if f"{key}_chance" in row]
    return {
        "chance": statistics.fmean(levels) if levels else None,
        "checkpoint": point.scenario, "mode": point.method, "condition": point.distribution, **point._asdict(),
        "published": point.value, "ours": statistics.fmean(ours), "ours_std": statistics.pstdev(ours),
        "difference": difference, "target": target, "ok": None if target is None else abs(difference) <= target,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each published point."""
    head = (
        "scenario",
        "distribution",
        "method",
        "step",
        "metric",
        "chance",
        "published",
        "ours",
        "difference",
        "target",
        "ok",
    )
    lines = [
        (
            row["scenario"], row["distribution"], row["method"], str(row["step"]), row["metric"],
            "-" if row["chance"] is None else f"{row['chance']:.3f}",
            f"{row['published']:.5f}", f"{row['ours']:.5f}", f"{row['difference']:+.1e}",
            "-" if row["target"] is None else f"{row['target']:g}",
            "reported" if row["ok"] is None else "yes" if row["ok"] else "NO",
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(map(len, cells)) for cells in zip(head, *lines, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)
    )


def run(config: Config) -> list[dict[str, Any]]:
    """Trains, compares, writes and prints; exits with 1 if a target is missed."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.files import write_atomically

    points = chosen(config)
    if config.torch and importlib.util.find_spec("torch") is None:
        raise AmortjaxError("--torch needs PyTorch: pip install torch, or leave the flag out")
    rows = compared(config, points)
    text = table(rows)
    missed = [row for row in rows if row["ok"] is False]
    judged = sum(row["ok"] is not None for row in rows)
    text += (
        f"\n\n{judged - len(missed)} of {judged} targets met, {len(rows) - judged} points without a target"
    )
    if config.torch:
        from amortjax.launch import bench_synthetic_torch

        text += "\n\n" + bench_synthetic_torch.beside(config.repeats)
    write_atomically(config.folder / "table.txt", text + "\n")
    print(text)
    print(f"\ntable {config.folder}/results.csv and table.txt", file=sys.stderr)
    if missed:
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.bench_synthetic")
