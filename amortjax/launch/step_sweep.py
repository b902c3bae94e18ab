"""How many steps make up for the encoder's guess?

Measures semi-amortized codes after 0, 1, 2, ... 200 ISTA steps, from the encoder's code and from that of an ALISTA
network: error, dead latents, splitting, absorption, how far P is above the certified optimum's, and how the supports
change. At one lambda, and at equal L0, where each number of steps has a lambda of its own. Activations come from a
store (--acts) or are collected into one (--model_name ... without --acts). Writes results.parquet, .csv and .json, a
picture, report.md and report.html to --out; what is finished is skipped when the command is given again.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, section5
from amortjax.launch.choices import Choices
from amortjax.launch.text import Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out, Text, Choices):
    ckpts: Annotated[tuple[str, ...], "SAE checkpoints: files, folders or hub ids (org/repo:path)."]
    acts: Annotated[str | None, "Activation store; without it activations are collected."] = None
    label_column: Annotated[str | None, "Column with a document's label, for probes."] = None
    steps: Annotated[tuple[int, ...], "Numbers of ISTA steps; 0 is the start itself."] = (
        0, 1, 2, 5, 10, 15, 20, 25, 30, 50, 100, 200,
    )  # fmt: skip
    starts: Annotated[tuple[Literal["encoder", "alista"], ...], "Where steps start."] = ("encoder", "alista")
    conditions: Annotated[
        tuple[Literal["same_lambda", "same_l0"], ...],
        "What is held equal: lambda*, where the optimum has the encoder's L0; or the L0, each number of steps by its "
        "own lambda.",
    ] = ("same_lambda", "same_l0")
    target_l0: Annotated[float | None, "L0 to match instead of the encoder's."] = None
    alista_layers: Annotated[int, "Of the ALISTA network; each costs what a step does."] = 5
    alista_fit_steps: Annotated[
        int, "Training steps of its step sizes and thresholds, on calibration tokens (0: untrained)."
    ] = 300
    tol: Annotated[float, "Relative duality gap of the optimum."] = 1e-4
    solver: Annotated[Literal["active_set", "fista"], "Of the optimum."] = "active_set"
    precision: Annotated[
        Literal["highest", "tensorfloat32", "bfloat16"],
        "Of the optimum's search for candidate latents; its certificate is float32 always.",
    ] = "highest"
    calibration_tokens: Annotated[int, "Tokens (whole documents) on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    probe_tokens: Annotated[int, "Tokens on which probes are fitted."] = 16384
    chunk: Annotated[int, "Tokens at a time."] = 1024
    seed: Annotated[int, "Of row selection, resamples, probes and ALISTA's training."] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        self.shared().checked()
        for name in ("steps", "starts", "conditions"):
            if not getattr(self, name):
                raise AmortjaxError(f"--{name} is empty: name at least one, or leave the flag out")
        if min(self.steps) < 0:
            raise AmortjaxError(
                f"--steps={','.join(map(str, self.steps))}: a number of steps can't be negative"
            )
        if self.alista_layers < 1:
            raise AmortjaxError(f"--alista_layers={self.alista_layers}: must be at least 1")
        if self.alista_fit_steps < 0:
            raise AmortjaxError(f"--alista_fit_steps={self.alista_fit_steps}: must not be negative")
        if self.seed < 0:
            raise AmortjaxError(f"--seed={self.seed}: must not be negative")
        return self

    def shared(self) -> section5.Config:
        """The flags that section5 has too, for what it does with them."""
        names = {field.name for field in dataclasses.fields(section5.Config)} - {"conditions"}
        return section5.Config(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names}
        )


def make_plan(config: Config) -> Any:
    from amortjax.metrics.matching import CONDITIONS
    from amortjax.metrics.plan import make_plan as plan

    names = ("target_l0", "tol", "solver", "precision", "calibration_tokens", "eval_tokens", "probe_tokens")
    given = {name: getattr(config, name) for name in (*names, "chunk", "seed")}
    conditions = tuple(name for name in CONDITIONS if name in config.conditions)
    modes = ("amortized", "semi_amortized", "optimal")
    return plan(modes=modes, conditions=conditions, heads=(), **given)


def run(config: Config) -> list[dict[str, Any]]:
    """Evaluates, writes and prints; returns the rows."""
    config = config.checked()
    out = config.folder
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.metrics.steps import StepBench, Sweep
    from amortjax.report import sweep, tables, trajectories

    saes, plan = section5.load_all(config.shared()), make_plan(config)
    acts = section5.activations(config.shared())
    asked = Sweep(config.steps, config.starts, config.alista_layers, config.alista_fit_steps)
    bars = sys.stderr.isatty()  # a log gets a line for each row instead
    benches = [StepBench(sae, acts, plan, asked, out / "rows", bars) for sae in saes]  # all mistakes now
    rows: list[dict[str, Any]] = []
    for bench in benches:
        sae = bench.walk.sae
        print(f"{sae.info.name}: {sae.variant}, {sae.n_latents} latents", file=sys.stderr)
        for row in bench.rows():
            rows.append(row)
            tables.write_results(rows, out)
            print(_progress(row), file=sys.stderr)
    for table in sweep.tables(rows):
        print(trajectories.printed(table), end="\n\n")
    print("\n".join(sweep.sentences(rows)))
    report(config, out, rows, acts, saes)
    return rows


def _progress(row: dict[str, Any]) -> str:
    from amortjax.report.numbers import short
    from amortjax.report.sweep import start_of

    steps = "" if row.get("steps") is None else f", {row['steps']} steps"
    numbers = f"L0 {short(row['l0'])}, NMSE {short(row['nmse'])}, {row['seconds']:.0f} s"
    return f"  {row['condition']}, {start_of(row)}{steps}: {numbers}"


def report(config: Config, out: Path, rows: list[dict[str, Any]], acts: Any, saes: list[Any]) -> None:
    """The picture, report.md and report.html."""
    from amortjax.files import write_atomically
    from amortjax.report import figures_sweep, html, sweep

    about = section5.about_run(acts, saes)
    if "alista" in config.starts:
        trained = f"trained for {config.alista_fit_steps} steps" if config.alista_fit_steps else "untrained"
        about["ALISTA"] = f"{config.alista_layers} layers, {trained}"
    pictures = figures_sweep.draw(rows, out / "figures")
    page = sweep.write_page(rows, out, about, pictures)
    write_atomically(out / "config.json", flagged.to_json(config))
    changed = [table for table in sweep.tables(rows) if table.title.endswith("cost")]
    sections = [html.Section(table.title, header=table.header, rows=table.body) for table in changed]
    html.write_html(
        rows, out, about, pictures, None, sections, section5.used_versions(), dataclasses.asdict(config),
        title=sweep.TITLE, sentences=sweep.sentences(rows),
    )  # fmt: skip
    print(f"\nresults {out}/results.csv, picture {out}/figures/step_sweep.png, report {page} and report.html")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.step_sweep")
