"""Section 4.3: how encoders and their price change while SAEs train.

Finds the checkpoints below --ckpts (what launch.train --sweep=... --save_at=... writes, trainer_i/ of
dictionary_learning and SAEBench, VARIANT/SPARSITY/STEP/) and measures each like launch.section5: against the certified
optimum and against ISTA-200. Writes results.parquet, .csv and .json after each checkpoint; then trajectories over
training steps, report.md and report.html. A killed run goes on where it was. --part=i/n does every n-th checkpoint, for
array jobs; the same command without it gathers them.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, section5
from amortjax.launch.section5 import Condition, Mode

UNMATCHABLE = "unmatchable"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(section5.Config):
    ckpts: Annotated[
        tuple[str, ...], "Folders with checkpoints of trainings, or hub ids of folders (org/repo:path)."
    ]
    encode_modes: Annotated[tuple[Mode, ...], "Inference modes."] = (
        "amortized", "semi_amortized", "non_amortized", "optimal",
    )  # fmt: skip
    conditions: Annotated[tuple[Condition, ...], "What is held equal; trained_lambda needs an L1-trained SAE."] = (
        "same_lambda", "same_l0",
    )  # fmt: skip
    variants: Annotated[tuple[str, ...], "Only these variants."] = ()
    sparsities: Annotated[tuple[str, ...], "Only these, as in k=20 or 0.06."] = ()
    steps: Annotated[tuple[str, ...], "Only these training steps: numbers, final."] = ()
    part: Annotated[str | None, "i/n: only every n-th checkpoint, from the i-th on (1/n to n/n)."] = None
    details: Annotated[
        bool,
        "Also the gap's amplitude and support, and the optimum at other tolerances: several times slower where codes "
        "are dense.",
    ] = False
    densest: Annotated[
        float,
        "No other mode is matched to an encoder of a larger L0, as a share of the most that an optimum can have (the "
        "dictionary's rank): near 1 that takes hours.",
    ] = 0.4

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        super().checked()
        if self.stream:
            raise AmortjaxError(
                "--stream evaluates one checkpoint: collect a store (leave --stream out) for many"
            )
        if not 0 < self.densest <= 1:
            raise AmortjaxError(f"--densest={self.densest}: must be above 0, at most 1")
        self.share()
        return self

    def share(self) -> tuple[int, int]:
        """i and n of --part; 1 and 1 without it."""
        if self.part is None:
            return 1, 1
        found = re.fullmatch(r"(\d+)/(\d+)", self.part)
        i, n = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= i <= n:
            raise AmortjaxError(f"--part={self.part}: write it as i/n with i from 1 to n, as in 1/12")
        return i, n


def run(config: Config) -> list[dict[str, Any]]:
    """Evaluates, writes and prints; returns the rows. With --part only that part's, and nothing is gathered."""
    config = config.checked()
    out = config.folder
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.launch.section43_changes import with_changes
    from amortjax.report import tables
    from amortjax.saes import index

    entries = index.index(config.ckpts, config.variants, config.sparsities, config.steps)
    entries = [dataclasses.replace(entry, choices=entry.choices | config.given()) for entry in entries]
    plan = dataclasses.replace(section5.make_plan(config), details=config.details)
    acts = section5.activations(config)
    _fits(entries[-1], acts, plan)  # a mistake that all share, now and not after an hour
    (i, n), began = config.share(), time.monotonic()
    chosen, rows, measured = entries[i - 1 :: n], [], 0
    print(index.table(chosen), file=sys.stderr)
    for number, entry in enumerate(chosen, 1):
        found = finished(entry, config, plan, acts, out)
        if found is None:
            here = time.monotonic()
            found = measure(entry, config, plan, acts, out)
            measured += 1
            left = (time.monotonic() - began) / measured * (len(chosen) - number) / 60
            took = f"{time.monotonic() - here:.0f} s, at most {left:.0f} min left"
            print(f"{number}/{len(chosen)} {entry.name}: {took}", file=sys.stderr)
            if config.part is None:
                tables.write_results([*rows, *found], out)
        rows += found
    if config.part is not None:
        print(
            f"{len(chosen)} of {len(entries)} checkpoints done; the command without --part gathers all parts"
        )
        return rows
    rows = with_changes(rows, out / "rows")
    tables.write_results(rows, out)
    report(config, out, rows, acts, entries)
    return rows


# --- one checkpoint ---


def finished(entry: Any, config: Config, plan: Any, acts: Any, out: Path) -> list[dict[str, Any]] | None:
    """The rows of a checkpoint that was measured before, or None."""
    from amortjax.report import tables

    return tables.read_results(out / "rows", _stem(entry, config, plan, acts)) or None


def measure(entry: Any, config: Config, plan: Any, acts: Any, out: Path) -> list[dict[str, Any]]:
    """The rows of a checkpoint. One that can't be measured has a row that says why, and is tried again next time."""
    from amortjax.report import tables

    rows: list[dict[str, Any]] = []
    try:
        for row in rows_of_entry(entry, config, plan, acts, out):
            rows.append(row)
    except (AmortjaxError, ArithmeticError, ValueError) as error:  # what diverged may fail anywhere
        reason = " ".join(str(error).split())[:300]
        print(f"{entry.name}: {reason}", file=sys.stderr)
        row = {"mode": plan.modes[0], "condition": plan.conditions[0], "protocol": plan.protocol}
        return [*rows, describe(row | {"reason": reason, "flags": (f"not measured: {reason}",)}, entry)]
    rows = [describe(row, entry) for row in against_ista(rows)]
    tables.write_results(rows, out / "rows", _stem(entry, config, plan, acts))
    return rows


def rows_of_entry(entry: Any, config: Config, plan: Any, acts: Any, out: Path) -> Iterator[dict[str, Any]]:
    """price's rows. Of an encoder too dense to match, those that need no matching, marked."""
    from amortjax.price import rows_of

    sae, bars = _load(entry), sys.stderr.isatty()  # a log gets a line for each checkpoint instead
    l0, bound = encoder_l0(sae, acts, plan)
    if plan.protocol == "literal" or l0 <= config.densest * bound:
        yield from rows_of(sae, acts, plan, out / "rows", bars)
        return
    why = (
        UNMATCHABLE
        if l0 > bound
        else f"{UNMATCHABLE} in reasonable time: its L0 is above --densest={config.densest:g} of the rank"
    )
    alone = dataclasses.replace(plan, modes=("amortized",), conditions=("same_l0",))
    for row in rows_of(sae, acts, alone, out / "rows", bars):
        yield row | {"flags": (*row["flags"], why), "unmatchable": True}
    if "trained_lambda" in plan.conditions:
        trained = dataclasses.replace(plan, conditions=("trained_lambda",))
        yield from rows_of(sae, acts, trained, out / "rows", bars)


def encoder_l0(sae: Any, acts: Any, plan: Any) -> tuple[float, int]:
    """The encoder's mean L0 on the calibration rows, and the most that an optimum of its dictionary can have."""
    from amortjax.inference.api import encode_codes
    from amortjax.metrics.plan import pose_subject

    subject = pose_subject(sae, acts, plan)
    x = subject.batch(subject.calibrate_rows)[0]
    return float(encode_codes(subject.sae, x, subject.options.chunk).l0.mean()), subject.problem.rank_bound


def against_ista(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `gap_to_ista`, mean of P - P(ISTA-200) at one lambda, half form, and the same over ISTA's P.

    Its sign is kept: ISTA-200 is no optimum. The encoder's interval is paired. Under `literal` it is the papers' gap.
    """
    out = []
    at = {(row["condition"], row["mode"]): row for row in rows}
    for row in rows:
        ista, own, more = at.get((row["condition"], "non_amortized")), row.get("objective"), {}
        if row.get("literal_gap_mean") is not None:
            more = {"gap_to_ista": row["literal_gap_mean"]}
        elif (
            row["condition"] in ("same_lambda", "trained_lambda")
            and ista
            and ista.get("objective")
            and own is not None
        ):
            more = {"gap_to_ista": own - ista["objective"]}
            low, high = (ista.get(f"objective_minus_amortized_{end}") for end in ("lo", "hi"))
            if row["mode"] == "amortized" and low is not None and high is not None:
                more |= {"gap_to_ista_lo": -high, "gap_to_ista_hi": -low}
            more |= {f"relative_{name}": value / ista["objective"] for name, value in more.items()}
        out.append(row | more)
    return out


def describe(row: dict[str, Any], entry: Any) -> dict[str, Any]:
    """The row with what tells its checkpoint from the others."""
    about = {
        "variant": entry.variant,
        "sparsity": entry.sparsity,
        "sparsity_value": entry.value,
        "step": entry.step,
    }
    return row | about | {"checkpoint": entry.name, "final": entry.final, "path": entry.path}


def _load(entry: Any) -> Any:
    from amortjax.saes.formats import load_sae

    sae = load_sae(entry.path, **entry.choices)
    return dataclasses.replace(sae, info=dataclasses.replace(sae.info, name=entry.name))


def _fits(entry: Any, acts: Any, plan: Any) -> None:
    """Refuses activations that are not of this SAE; of one that can't be read its row will tell."""
    from amortjax.errors import CheckpointError
    from amortjax.metrics.plan import pose_subject

    try:
        sae = _load(entry)
    except CheckpointError:
        return
    pose_subject(sae, acts, plan)


def _stem(entry: Any, config: Config, plan: Any, acts: Any) -> str:
    """The name of a checkpoint's finished rows, different when anything they depend on is."""
    import amortjax
    from amortjax.activations.store import IDENTITY
    from amortjax.metrics import bench, kept

    file = Path(entry.path).stat()
    about = {
        "version": [amortjax.__version__, bench.NUMBERS],
        "entry": [entry.name, entry.path, file.st_size, file.st_mtime_ns, entry.choices],
        "plan": dataclasses.asdict(plan),
        "densest": config.densest,
        "store": {name: acts.manifest.get(name) for name in (*IDENTITY, "n_rows")},
    }
    return f"entry_{re.sub(r'[^A-Za-z0-9=.-]+', '_', entry.name)}_{kept.key_of(about)[:12]}"


# --- the report ---


def report(config: Config, out: Path, rows: list[dict[str, Any]], acts: Any, entries: list[Any]) -> None:
    """Trajectories, tables, report.md and report.html, whose tables and explorer are of the last steps."""
    from amortjax.files import write_atomically
    from amortjax.report import figures_section43, html, trajectories

    pictures, last = figures_section43.draw(rows, out / "figures"), [row for row in rows if row["final"]]
    explorable = {row["checkpoint"] for row in last if row["condition"] == "same_lambda" and row.get("lam")}
    saes = [_load(entry) for entry in entries if entry.name in explorable]
    about, versions = section5.about_run(acts, saes), section5.used_versions()
    about["checkpoints"] = str(len(entries))
    page = trajectories.write_page(rows, out, about, pictures, config.ista_steps)
    write_atomically(out / "config.json", flagged.to_json(config))
    explored = section5.explorers(config, out, last, acts, saes) if saes else []
    tables = [trajectories.final_table(rows), trajectories.steps_table(rows)]
    html.write_html(
        last, out, about, pictures, explored,
        [html.Section(table.title, header=table.header, rows=table.body) for table in tables], versions,
        dataclasses.asdict(config), title="Training dynamics", sentences=trajectories.sentences(rows),
    )  # fmt: skip
    print(f"{trajectories.printed(tables[0])}\n\nresults {out}/results.csv, report {page} and report.html")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.section43")
