"""Does the language model notice?

Puts the reconstructions of every checkpoint, under several inference modes at equal L0, where the model's activations
were, on test documents, and measures what that does to its next-token loss: CE and KL recovered against zeros and
against the mean activation, beside the squared error. Codes that are best in squared error may be worse for the model.
Writes results.parquet, .csv and .json, a picture, report.md and report.html to --out; finished parts are skipped when
the command is given again.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.launch import core_parts, flagged, section5
from amortjax.launch.choices import Choices
from amortjax.launch.core_parts import Scene
from amortjax.launch.text import Text, model_and_corpus

Mode = Literal[
    "amortized", "encoder_scaled", "encoder_refit", "semi_amortized", "non_amortized", "optimal", "optimal_refit",
    "omp", "semi", "unamortized",
]  # fmt: skip
NO_SAE = "no SAE"
# {mode of the row: the ending of its CE and KL in `core_parts.references`}
ABLATIONS = {"zero_ablation": "zero", "zero_kept": "kept", "mean_ablation": "mean"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out, Text, Choices):
    ckpts: Annotated[tuple[str, ...], "SAE checkpoints: files, folders or hub ids (org/repo:path)."]
    encode_modes: Annotated[tuple[Mode, ...], "Inference modes, each brought to the encoder's L0."] = (
        "amortized", "encoder_refit", "optimal", "optimal_refit", "omp",
    )  # fmt: skip
    calibration_tokens: Annotated[int, "Tokens (whole documents) on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    batch_tokens: Annotated[
        int, "Tokens of a forward, with padding; as many rows of logits are held twice."
    ] = 2048
    semi_steps: Annotated[int, "ISTA steps of semi_amortized."] = 30
    ista_steps: Annotated[int, "ISTA steps of non_amortized."] = 200
    tol: Annotated[float, "Relative duality gap of the optimum."] = 1e-4
    chunk: Annotated[int, "Tokens at a time, in inference."] = 1024
    seed: Annotated[int, "Of the resamples."] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        if not self.ckpts:
            raise AmortjaxError("--ckpts is empty: name at least one SAE checkpoint")
        if self.model_name is None or self.layer_index is None:
            raise AmortjaxError("give --model_name and --layer_index: the model that is to notice, and where")
        if not self.encode_modes:
            raise AmortjaxError(
                "--encode_modes is empty: name at least one mode, as in --encode_modes=amortized"
            )
        positive = (
            "calibration_tokens",
            "eval_tokens",
            "batch_tokens",
            "semi_steps",
            "ista_steps",
            "tol",
            "chunk",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if self.seed < 0:
            raise AmortjaxError(f"--seed={self.seed}: must not be negative")
        return self

    @property
    def place(self) -> tuple[int, str]:
        return int(self.layer_index or 0), self.hook


def prepare(config: Config, folder: Path) -> Scene:
    """Loads the model, reads the text and collects its rows at the hook."""
    from amortjax.activations import splice

    model, corpus = model_and_corpus(config)
    causal = splice.with_head(model)
    budgets = {"calibrate": config.calibration_tokens, "test": config.eval_tokens}
    limits = (config.max_seq_len, config.num_sequences, config.batch_tokens)
    documents, store = splice.gather(causal, corpus, config.place, budgets, *limits)
    rows = {split: store.rows(split) for split in budgets}
    settings = (config.place, config.batch_tokens, core_parts.cut(documents))
    return Scene(causal, store, *settings, rows["calibrate"], rows["test"], folder)


def rows_of(config: Config, scene: Scene, sae: Any, alone: dict[str, np.ndarray], out: Path) -> list[dict]:
    """One SAE's rows, a mode each, with paired differences from the encoder."""
    from amortjax.metrics import fidelity, uncertainty
    from amortjax.metrics.bench import Bench

    plan = _plan(config)
    rows = (scene.calibrate_rows, scene.test_rows)
    subject = fidelity.pose(sae, scene.store, *rows, plan.options, scene.progress)
    bench = Bench(subject, plan, out / "rows", scene.progress)
    settings = fidelity.settings(bench)
    columns = core_parts.spliced(
        scene, subject, {mode: s.knobs for mode, s in settings.items() if s.evaluate}
    )
    found: dict[str, dict] = {}
    made = []
    for mode, setting in settings.items():
        row = bench.row("same_l0", mode, setting, None, None) | counts(alone)
        if mode in columns:
            found[mode] = fidelity.estimates(alone | columns[mode], scene.blocks, seed=config.seed)
            row |= uncertainty.flatten(found[mode])
            if "amortized" in found and mode != "amortized":
                row |= uncertainty.flatten_differences(found[mode], found["amortized"])
        made.append(row)
    return made


def ablation_rows(config: Config, scene: Scene, alone: dict[str, np.ndarray]) -> list[dict]:
    """What no SAE has a part in: zeros everywhere, zeros and the mean where tokens are not special."""
    from amortjax.metrics import fidelity, uncertainty

    out = []
    for mode, name in ABLATIONS.items():
        own = alone | {"ce": alone[f"ce_{name}"], "kl": alone[f"kl_{name}"]}
        found = fidelity.estimates(own, scene.blocks, seed=config.seed)
        row = {"checkpoint": NO_SAE, "mode": mode, "condition": "ablation", "protocol": "controlled"}
        out.append(row | {"seed": config.seed, "flags": ()} | counts(alone) | uncertainty.flatten(found))
    return out


def counts(alone: dict[str, np.ndarray]) -> dict[str, int]:
    """What a row says of how much was evaluated."""
    tokens, scored = int(alone["tokens"].sum()), int(alone["scored"].sum())
    return {"n_tokens": tokens, "n_scored_tokens": scored, "n_documents": len(alone["tokens"])}


def _plan(config: Config) -> Any:
    from amortjax.metrics.plan import make_plan

    names = ("semi_steps", "ista_steps", "tol", "chunk", "calibration_tokens", "seed")
    given = {name: getattr(config, name) for name in names}
    return make_plan(modes=config.encode_modes, conditions=("same_l0",), eval_tokens=None, **given)


def run(config: Config) -> list[dict]:
    """Evaluates, writes and prints; returns the rows."""
    config = config.checked()
    out = config.folder
    settled = {field.name: getattr(config, field.name) for field in dataclasses.fields(Choices)}
    saes = section5.load_all(section5.Config(ckpts=config.ckpts, out=config.out, **settled))
    # Heavy imports after the flags' and checkpoints' checks, so that mistakes are quick.
    from amortjax.metrics import fidelity
    from amortjax.report import core, tables

    scene = prepare(config, out / "parts")
    for sae in saes:  # all mistakes now, not after an hour
        fidelity.check(sae, scene.store)
        _warn(config, sae)
    alone = core_parts.references(scene)
    ablated, rows = ablation_rows(config, scene, alone), []
    for sae in saes:
        print(f"{sae.info.name}: {sae.variant}, {sae.n_latents} latents", file=sys.stderr)
        rows += rows_of(config, scene, sae, alone, out)
        tables.write_results(rows + ablated, out)
    rows += ablated
    print(core.printed(rows))
    report(config, out, rows, scene, saes)
    return rows


def _warn(config: Config, sae: Any) -> None:
    """A line if the SAE says that it was trained elsewhere."""
    info, own = sae.info, (config.layer_index, config.hook)
    there = (own[0] if info.layer_index is None else info.layer_index, info.hook or own[1])
    if there != own:
        print(
            f"warning: {info.name} was trained on {there[1]} of block {there[0]}, not on {own[1]} of block {own[0]}",
            file=sys.stderr,
        )


def report(config: Config, out: Path, rows: list[dict], scene: Scene, saes: list[Any]) -> None:
    """The picture, report.md and report.html."""
    import importlib.metadata as metadata

    from amortjax.files import write_atomically
    from amortjax.report import core, figures_core, html

    pictures, about = figures_core.draw_core(rows, out / "figures"), section5.about_run(scene.store, saes)
    about["documents"] = f"each alone, its first {config.max_seq_len} tokens at most"
    versions = section5.used_versions() | {name: metadata.version(name) for name in ("torch", "transformers")}
    core.write_page(rows, out, about, pictures, versions)
    write_atomically(out / "config.json", flagged.to_json(config))
    tables = core.make_tables(rows)
    sections = [html.Section(t.title, header=t.lines[0], rows=t.lines[1:], notes=t.notes) for t in tables]
    sections.append(html.Section("As SAEBench, and not", f"{core.AS_SAEBENCH}\n\n{core.UNLIKE_SAEBENCH}"))
    own = [row for row in rows if row["checkpoint"] != NO_SAE]
    path = html.write_html(
        own, out, about, pictures, None, sections, versions, dataclasses.asdict(config), title=core.TITLE,
        sentences=core.headlines(rows),
    )  # fmt: skip
    print(f"\nresults {out}/results.csv, pictures {out}/figures, report {path} (and report.md)")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.core_lite")
