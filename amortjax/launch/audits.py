"""Flags and steps that dead_audit, nulls and consistency share: SAEs on the test rows of one store, matched in L0."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, section5
from amortjax.launch.choices import Choices
from amortjax.launch.text import Text

POSITIVE = ("ista_steps", "tol", "calibration_tokens", "eval_tokens", "chunk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out, Text, Choices):
    ckpts: Annotated[tuple[str, ...], "SAE checkpoints: files, folders or hub ids (org/repo:path)."]
    acts: Annotated[str | None, "Activation store; without it activations are collected."] = None
    label_column: Annotated[str | None, "Column with a document's label, for probes."] = None
    kept: Annotated[
        str | None,
        "Folder of finished parts; that of a launch.section5 (its OUT/rows) lends its calibrations, made with the same "
        "flags. Default: OUT/rows.",
    ] = None
    ista_steps: Annotated[int, "ISTA steps of non_amortized."] = 200
    tol: Annotated[float, "Relative duality gap of the optimum, when lambda is calibrated."] = 1e-4
    solver: Annotated[Literal["active_set", "fista"], "Of the optimum."] = "active_set"
    calibration_tokens: Annotated[int, "Tokens (whole documents) on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    probe_tokens: Annotated[int, "Tokens on which probes are fitted."] = 16384
    eval_split: Annotated[Literal["test", "sae_train"], "Rows to evaluate."] = "test"
    chunk: Annotated[int, "Tokens at a time."] = 1024
    seed: Annotated[int, "Of row selection, and of whatever is drawn."] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        self.section5()
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if self.probe_tokens < 0 or self.seed < 0:
            name = "seed" if self.seed < 0 else "probe_tokens"
            raise AmortjaxError(f"--{name}={getattr(self, name)}: must not be negative")
        return self

    def section5(self) -> section5.Config:
        """The flags that launch.section5 has too, as its Config; checked."""
        names = {field.name for field in dataclasses.fields(section5.Config)}
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given = {
            name: value
            for name, value in own.items()
            if name in names and (name != "probe_tokens" or value > 0)
        }
        return section5.Config(**given).checked()

    @property
    def parts(self) -> Path:
        return Path(self.kept) if self.kept else self.folder / "rows"


class Posed(NamedTuple):
    """An SAE on the store's rows, what keeps its codes, and {mode: what brings it to the encoder's L0}."""

    coder: Any  # metrics.coded.Coder
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return self.coder.subject.sae.info.name

    @property
    def sae(self) -> Any:
        return self.coder.subject.sae

    @property
    def doc_ids(self) -> Any:
        """(n,) document of each test token."""
        return self.coder.subject.acts.doc_ids[self.coder.subject.test_rows]


def prepare(config: Config) -> tuple[list[Any], Any]:
    """The SAEs and the activations; all mistakes now, not after an hour."""
    from amortjax.metrics.plan import pose_subject

    given = config.section5()
    saes = section5.load_all(given)
    acts = section5.activations(given)
    for sae in saes:
        pose_subject(sae, acts, _plan(config, ()))
    return saes, acts


def pose(
    config: Config, sae: Any, acts: Any, modes: tuple[str, ...], target_l0: float | None = None
) -> Posed:
    """One SAE with `modes` calibrated at equal L0, as launch.section5 does (to `target_l0`, not its encoder's)."""
    from amortjax.metrics import fidelity
    from amortjax.metrics.bench import Bench
    from amortjax.metrics.coded import Coder
    from amortjax.metrics.plan import pose_subject

    plan = dataclasses.replace(_plan(config, modes), target_l0=target_l0)
    subject = dataclasses.replace(pose_subject(sae, acts, plan), progress=True)
    bench = Bench(subject, plan, config.parts, True)
    if target_l0 is None:
        print(f"{sae.info.name}: {sae.variant}, {sae.n_latents} latents", file=sys.stderr)
        return Posed(Coder(bench, config.parts, True), fidelity.settings(bench))
    from amortjax.metrics import matching

    star = bench.calibrated("star", lambda: matching.star(subject, target_l0))
    at = lambda mode: matching.at_l0(subject, mode, target_l0, star)  # noqa: E731
    settings = {mode: bench.calibrated(f"same_l0 {mode}", lambda mode=mode: at(mode)) for mode in plan.modes}
    return Posed(Coder(bench, config.parts, True), settings)


def _plan(config: Config, modes: tuple[str, ...]) -> Any:
    from amortjax.metrics.plan import make_plan

    names = ("ista_steps", "tol", "solver", "calibration_tokens", "eval_tokens", "probe_tokens", "eval_split")
    given = {name: getattr(config, name) for name in (*names, "chunk", "seed")}
    return make_plan(modes=("amortized", *modes), conditions=("same_l0",), **given)


def write_report(config: Config, report: Any) -> None:
    """report.md, report.html and config.json in --out; prints tables and sentences."""
    from amortjax.files import write_atomically
    from amortjax.report import sheets

    out = config.folder
    sheets.write(report, out, section5.used_versions(), dataclasses.asdict(config))
    write_atomically(out / "config.json", flagged.to_json(config))
    print(sheets.printed(report))
    print(f"\nresults {out}/results.csv, pictures {out}/figures, report {out}/report.md and report.html")
