"""What does a sparse code cost, and how good is it? Every solver here beside other libraries, in one run.

Costs are counted in encoder forwards (the float32 matmul of the tokens with the encoder, bias and ReLU), timed
between the solvers; codes are scored by the duality gap. Problems: a synthetic dictionary at three densities,
and a trained SAE at the lambda where the optimum has its encoder's L0 (--ckpt, --acts). Writes results.csv,
.parquet and .json and compute_against_gap.png and .svg to --out. What is finished is not measured again, unless
the code of its solver has changed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged

if TYPE_CHECKING:
    from amortjax.launch.bench_parts.entries import Entry
    from amortjax.launch.bench_parts.problems import Case, Sizes
    from amortjax.launch.bench_parts.timing import Measured, Unit

Problem = Literal["synthetic", "sae", "synthetic_l0_100", "synthetic_l0_300"]
Precision = Literal["highest", "tensorfloat32", "bfloat16"]  # as request.Precision, which is dear to import
HOW_TO_TRAIN = (
    "python -m amortjax.launch.collect --flagfile=configs/collect/minilm_wikitext.flags && "
    "python -m amortjax.launch.train --flagfile=configs/train/minilm_wikitext_topk.flags"
)
# Results of other values of these don't stand in one table.
SETTING = (
    "n_tokens",
    "d_model",
    "n_latents",
    "calibration_tokens",
    "unrolled_steps",
    "tol",
    "seconds",
    "repeats",
    "seed",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    problems: Annotated[
        tuple[Problem, ...],
        "What to solve: `synthetic` (its optimum has L0 28), the same dictionary with 100 and 300 atoms a token, "
        "and `sae`, which needs --ckpt and --acts.",
    ] = ("synthetic", "sae", "synthetic_l0_100", "synthetic_l0_300")
    solvers: Annotated[
        tuple[str, ...],
        "`all`, `ours`, `peers`, or names: NAME, NAME:STEPS, and NAME@encoder to start from the encoder's code.",
    ] = ("all",)
    precision: Annotated[
        tuple[Precision, ...],
        "Of the matmuls inside this library's solvers; several are measured one after the other. The encoder "
        "forward and the certificates are float32 always.",
    ] = ("highest",)
    ckpt: Annotated[str | None, "SAE of the problem `sae`: file, folder or hub id."] = None
    acts: Annotated[str | None, "Activation store of the problem `sae`; its test split is solved."] = None
    n_tokens: Annotated[int, "Tokens of each problem."] = 1024
    d_model: Annotated[int, "D of the synthetic problems."] = 768
    n_latents: Annotated[int, "M of the synthetic problems, a multiple of 8."] = 12288
    calibration_tokens: Annotated[
        int, "Further tokens: lambda of `sae` is found on them, unrolled solvers learn."
    ] = 2048
    unrolled_steps: Annotated[int, "Adam steps that lista and alista are trained for; 0: not at all."] = 0
    tol: Annotated[float, "Relative gap at which solvers with a stopping rule stop."] = 1e-4
    seconds: Annotated[
        float, "About how long a solver is measured on a problem; slower ones get fewer tokens, and say so."
    ] = 120.0
    repeats: Annotated[int, "Timed repeats after the first call, as far as --seconds allows."] = 5
    seed: Annotated[
        int, "Of the synthetic draws (0 is the published problem) and of the choice of tokens."
    ] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        for name in ("n_tokens", "d_model", "calibration_tokens", "tol", "seconds", "repeats"):
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if self.unrolled_steps < 0:
            raise AmortjaxError(f"--unrolled_steps={self.unrolled_steps}: must not be negative")
        for name in ("problems", "solvers", "precision"):
            if not getattr(self, name):
                raise AmortjaxError(f"--{name} is empty: name at least one; --help lists the choices")
        atoms = {"synthetic": 30, "synthetic_l0_100": 100, "synthetic_l0_300": 300}
        for name in self.problems:
            most = atoms.get(name, 0)
            if most > 30 and self.d_model < most:
                raise AmortjaxError(
                    f"--problems={name} needs --d_model of at least {most}, not {self.d_model}"
                )
            if most and (self.n_latents % 8 or self.n_latents < most):
                raise AmortjaxError(
                    f"--n_latents={self.n_latents}: {name} needs a multiple of 8, at least {-(-most // 8) * 8}"
                )
        return self

    def sizes(self) -> "Sizes":
        from amortjax.launch.bench_parts.problems import Sizes

        return Sizes(self.n_tokens, self.d_model, self.n_latents, self.calibration_tokens, self.seed)


def missing_sae(config: Config) -> str:
    """Why there is no SAE to solve for, and what makes one; empty if there is."""
    given = {"--ckpt": config.ckpt, "--acts": config.acts}
    absent = [
        f"{flag}={path} is not there" if path else f"{flag} is not given"
        for flag, path in given.items()
        if not path or (path.startswith(("/", ".", "outputs")) and not Path(path).exists())
    ]
    return f"problem sae left out: {' and '.join(absent)}. To make them: {HOW_TO_TRAIN}" if absent else ""


def about_machine() -> dict[str, Any]:
    """Device, cores and versions, the same for every row."""
    import importlib.metadata
    import platform

    import jax

    from amortjax.launch.bench_parts.timing import threads

    device = jax.devices()[0].device_kind
    if device == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        device = f"cpu ({named[0] if named else platform.machine()})"
    versions = {"python": platform.python_version()}
    for name in ("amortjax", "jax", "numpy", "torch", "scikit-learn", "spams-bin", "celer"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"device": device, "threads": threads(), "versions": versions}


def row_of(case: "Case", entry: "Entry", found: "Measured", config: Config) -> dict[str, Any]:
    """Cost and certificate of one solver on one problem. `checkpoint`, `mode` and `condition` are what the
    report room's tables are keyed by."""
    import statistics

    import numpy as np

    from amortjax.inference.objective import certify

    n, t = found.n, case.t[: found.n].astype(np.float64)
    proof = certify(case.problem, t, case.problem.unfold(found.codes), case.lam)
    gap, middle = proof.relative_gap, statistics.median(found.seconds)
    return {
        "checkpoint": case.name, "mode": entry.label, "condition": "bench_inference",
        "problem": case.name, "problem_text": case.text, "solver": entry.label, "key": entry.key,
        "library": entry.library, "goal": entry.goal, "precision": entry.precision,
        "n_tokens": len(case.t), "n_measured": n, "d_model": case.t.shape[1], "n_latents": case.problem.n_latents,
        "lam": case.lam, "optimum_l0": float(case.l0.mean()), "tol": config.tol,
        "ms_per_token": found.ms_per_token, "unit_ms_per_token": found.unit_ms,
        "forwards": statistics.median(found.forwards), "forwards_each": found.forwards,
        "relative_gap_median": float(np.median(gap)), "relative_gap_worst": float(gap.max()),
        "certified": float(np.mean(gap <= config.tol)),
        "suboptimality": float(proof.objective.sum() / case.objective[:n].sum() - 1),
        "l0": float(found.codes.l0.mean()), "error": float((proof.residual**2).sum() / (t**2).sum()),
        "iterations": float(np.mean(found.iterations)), "repeats": len(found.seconds),
        "compile_seconds": max(found.first - middle, 0.0) if entry.compiles else None,
        "peak_mb": found.peak_mb,
    }  # fmt: skip


def kept_rows(out: Path, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run; refused if they were measured under another setting or on another machine."""
    from amortjax.report import tables

    rows = tables.read_results(out)
    for row in rows:
        for name in ("setting", "device", "threads"):
            if row.get(name) != shared[name]:
                raise AmortjaxError(
                    f"{out} holds rows measured with {name} {row.get(name)}, not {shared[name]}: use another "
                    "--out, or delete that folder"
                )
    return rows


class Bench:
    """The rows so far, and the files that follow them."""

    def __init__(self, config: Config, out: Path) -> None:
        setting = {name: getattr(config, name) for name in SETTING}
        self.config, self.out = config, out
        self.shared = {"setting": setting, **about_machine()}
        self.rows = kept_rows(out, self.shared)

    def identity(self, problem: str, entry: "Entry") -> dict[str, Any]:
        """What tells a row from others; with `code` and the SAE, whether it is still what would be measured."""
        from amortjax.launch.bench_parts.entries import code_of

        source = [self.config.ckpt, self.config.acts] if problem == "sae" else None
        return {"problem": problem, "solver": entry.label, "code": code_of(entry), "source": source}

    def finished(self, problem: str, entry: "Entry") -> bool:
        wanted = self.identity(problem, entry)
        return any(all(row.get(key) == value for key, value in wanted.items()) for row in self.rows)

    def add(self, row: dict[str, Any], identity: dict[str, Any]) -> None:
        """In the place of an outdated row, and written."""
        from amortjax.report import tables

        keys = ("problem", "solver")
        self.rows = [old for old in self.rows if any(old[key] != row[key] for key in keys)]
        self.rows.append({**row, **self.shared, **identity})
        tables.write_results(self.rows, self.out)

    def run_problem(self, name: str) -> None:
        from tqdm import tqdm

        from amortjax.launch.bench_parts import entries, problems
        from amortjax.launch.bench_parts.timing import Unit

        config = self.config
        keys = entries.expand(config.solvers, with_encoder=name == "sae")
        asked = entries.Asked(config.precision, config.tol, config.unrolled_steps)
        wanted = entries.entries(keys, asked)
        left = [entry for entry in wanted if not self.finished(name, entry)]
        if len(left) < len(wanted):
            print(f"{name}: {len(wanted) - len(left)} of {len(wanted)} solvers are finished", file=sys.stderr)
        if not left:
            return
        print(f"{name}: drawing the problem, and its optimum", file=sys.stderr)
        case = problems.make(name, config.sizes(), config.ckpt, config.acts)
        unit = Unit(case.t, case.problem.unit)
        with tqdm(left, desc=name, unit="solver", file=sys.stderr) as bar:
            for entry in bar:
                bar.set_postfix_str(entry.label)
                self.measure(case, entry, unit)

    def measure(self, case: "Case", entry: "Entry", unit: "Unit") -> None:
        """A solver that can't do its work here is named and left out; the others go on."""
        from tqdm import tqdm

        from amortjax.launch.bench_parts import timing

        limits = timing.Limits(self.config.seconds, self.config.repeats)
        # The other libraries raise what they like, and one failing must not cost the hour of the rest.
        failures = AmortjaxError if entry.library == "amortjax" else Exception
        try:
            memory = timing.gauge(entry.memory)
            found = timing.measure(entry.make(case), unit, limits, memory, entry.least)
            row = row_of(case, entry, found, self.config)
        except failures as error:
            tqdm.write(f"{case.name}: {entry.label} left out: {error}", file=sys.stderr)
            return
        self.add(row, self.identity(case.name, entry))


def run(config: Config) -> list[dict[str, Any]]:
    """Measures, writes and prints; returns the rows."""
    config = config.checked()
    out = config.folder
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.files import write_atomically
    from amortjax.launch.bench_parts import entries, table
    from amortjax.report import figures

    why = missing_sae(config) if "sae" in config.problems else ""
    chosen = [name for name in config.problems if not (why and name == "sae")]
    entries.expand(config.solvers, with_encoder=True)  # a misspelt name now, not after an hour
    for precision in config.precision:
        entries.settings_of(precision, config.tol, None, 1)
    if why:
        print(why, file=sys.stderr)
    bench = Bench(config, out)
    for name in chosen:
        bench.run_problem(name)
    rows = [row for row in bench.rows if row["problem"] in chosen]
    if not rows:
        raise AmortjaxError(why or "nothing could be measured: the lines above say why")
    write_atomically(out / "config.json", flagged.to_json(config))
    text = table.print_table(rows)
    write_atomically(out / "table.txt", text + "\n")
    pictures = figures.draw_bench(rows, out)
    print(text)
    if why:
        print(f"\n{why}")
    print(f"\ntable {out}/results.csv and table.txt, figure {pictures[0]}")
    return rows


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.bench_inference")
