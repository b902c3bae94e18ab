"""Section 5: what does the encoder's guess cost?

Evaluates every checkpoint under every inference mode on held-out tokens, each comparison saying what was held
equal and how far each code is from optimal. Activations come from a store (--acts), are collected into one
(--model_name ... without --acts), or are streamed and never stored (--stream, one checkpoint). Writes
results.parquet, .csv and .json, pictures, report.md and report.html (with single latents in context) to --out;
finished rows are skipped when the command is given again.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged
from amortjax.launch.choices import Choices
from amortjax.launch.text import Text, model_and_corpus

Mode = Literal[
    "amortized", "encoder_scaled", "encoder_refit", "semi_amortized", "non_amortized", "optimal", "optimal_refit",
    "omp", "semi", "unamortized",
]  # fmt: skip
Condition = Literal["same_lambda", "same_l0", "same_nmse", "trained_lambda"]
Choice = Literal[
    "no_b_dec", "ignore_thresholds", "topk_without_relu", "signed", "unit_weights", "lambda_grid",
    "density_target", "pseudo_labels", "train_f1",
]  # fmt: skip

MOST_LATENTS = 1000  # in the explorer: more would be a page that is slow to open
MOST_NAMED = 6  # SAEs in a report's head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out, Text, Choices):
    ckpts: Annotated[tuple[str, ...], "SAE checkpoints: files, folders or hub ids (org/repo:path)."]
    acts: Annotated[str | None, "Activation store; without it activations are collected or streamed."] = None
    label_column: Annotated[str | None, "Column with a document's label, for probes."] = None
    stream: Annotated[bool, "Evaluate straight from streamed text, with nothing stored."] = False
    encode_modes: Annotated[tuple[Mode, ...], "Inference modes."] = (
        "amortized", "encoder_scaled", "encoder_refit", "semi_amortized", "non_amortized", "optimal",
        "optimal_refit", "omp",
    )  # fmt: skip
    conditions: Annotated[tuple[Condition, ...], "What is held equal; trained_lambda needs an L1-trained SAE."] = (
        "same_lambda", "same_l0", "same_nmse", "trained_lambda",
    )  # fmt: skip
    protocol: Annotated[
        Literal["controlled", "literal"],
        "Matched conditions with certificates, or the papers' released choices.",
    ] = "controlled"
    literal_choices: Annotated[tuple[Choice, ...], "Which released choices --protocol=literal makes."] = (
        "no_b_dec", "ignore_thresholds", "topk_without_relu", "signed", "unit_weights", "lambda_grid",
        "density_target", "pseudo_labels", "train_f1",
    )  # fmt: skip
    target_l0: Annotated[float | None, "L0 to match instead of the encoder's."] = None
    target_dense: Annotated[float | None, "Firing density to match instead of the encoder's."] = None
    semi_steps: Annotated[int, "ISTA steps of semi_amortized."] = 30
    ista_steps: Annotated[int, "ISTA steps of non_amortized."] = 200
    tol: Annotated[float, "Relative duality gap of the optimum."] = 1e-4
    solver: Annotated[Literal["active_set", "fista"], "Of the optimum."] = "active_set"
    precision: Annotated[
        Literal["highest", "tensorfloat32", "bfloat16"],
        "Of the optimum's search for candidate latents; its certificate is float32 always.",
    ] = "highest"
    calibration_tokens: Annotated[int, "Tokens (whole documents) on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    probe_tokens: Annotated[int, "Tokens on which probes are fitted."] = 16384
    head_tokens: Annotated[tuple[int, ...], "Also score the first so many test tokens."] = (512,)
    eval_split: Annotated[Literal["test", "sae_train", "probe_train", "calibrate"], "Rows to evaluate."] = (
        "test"
    )
    chunk: Annotated[int, "Tokens at a time."] = 1024
    seed: Annotated[int, "Of row selection, resamples and probes."] = 0
    nulls: Annotated[
        bool, "Also the pathology metrics of null models at the same L0 (all of them: amortjax.launch.nulls)."
    ] = False
    explorer_latents: Annotated[int, "Latents that report.html shows in context, of all SAEs (0: none)."] = (
        200
    )

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        if not self.ckpts:
            raise AmortjaxError("--ckpts is empty: name at least one SAE checkpoint")
        positive = (
            "semi_steps",
            "ista_steps",
            "tol",
            "calibration_tokens",
            "eval_tokens",
            "probe_tokens",
            "chunk",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if not 0 <= self.explorer_latents <= MOST_LATENTS:
            raise AmortjaxError(
                f"--explorer_latents={self.explorer_latents}: must be from 0 (none) to {MOST_LATENTS}"
            )
        if self.stream and len(self.ckpts) > 1:
            raise AmortjaxError(
                "--stream evaluates one checkpoint: collect a store (leave --stream out) for several"
            )
        if self.nulls and self.protocol == "literal":
            raise AmortjaxError(
                "--nulls has no meaning under --protocol=literal: its codes are matched in L0"
            )
        if self.acts is None and (self.model_name is None or self.layer_index is None):
            raise AmortjaxError("give --acts, or --model_name and --layer_index to collect activations")
        for name in ("target_l0", "target_dense"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise AmortjaxError(f"--{name}={value}: must be above 0")
        return self


def load_all(config: Config) -> list[Any]:
    """The SAEs, each with a name of its own; what the flags settle is settled for all of them."""
    from amortjax.saes.formats import load_sae

    saes, seen = [], set()
    for path in config.ckpts:
        sae = load_sae(path, **config.given())
        parts = Path(path.split(":")[-1]).with_suffix("").parts
        name = (
            parts[-1]
            if parts[-1] not in ("sae", "ae", "sae_weights")
            else parts[-2]
            if len(parts) > 1
            else path
        )
        name = path if name in seen else name
        seen.add(name)
        saes.append(dataclasses.replace(sae, info=dataclasses.replace(sae.info, name=name)))
    return saes


def activations(config: Config) -> Any:
    """The store of --acts, one collected now, or streamed rows in memory."""
    from amortjax.activations.store import open_store

    if config.acts and (config.model_name is None or _exists(config.acts)):
        return open_store(config.acts)
    if config.stream:
        return _streamed(config)
    from amortjax.launch import collect

    shared = {field.name for field in dataclasses.fields(collect.Config)} & {
        f.name for f in dataclasses.fields(Config)
    }
    given = {name: getattr(config, name) for name in shared if name not in ("out", "seed")}
    key = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]
    where = (
        config.acts
        or f"{config.cache_dir}/acts/{Path(str(config.model_name)).name}_{config.hook}{config.layer_index}_{key}"
    )
    collect.run(collect.Config(**given, out=where))
    return open_store(where)


def _exists(path: str) -> bool:
    return "://" in path or Path(path, "manifest.json").exists()


def _streamed(config: Config) -> Any:
    from amortjax.activations import stream

    model, corpus = model_and_corpus(config, config.label_column)
    budgets = {"calibrate": config.calibration_tokens, "probe_train": config.probe_tokens}
    budgets[config.eval_split] = config.eval_tokens
    where = (config.hook, config.max_seq_len)
    return stream.collect_in_memory(model, corpus, config.layer_index or 0, budgets, *where)


def make_plan(config: Config) -> Any:
    from amortjax.metrics.plan import make_plan as plan

    names = (
        "conditions",
        "protocol",
        "literal_choices",
        "target_l0",
        "target_dense",
        "semi_steps",
        "ista_steps",
    )
    names += (
        "tol",
        "solver",
        "precision",
        "calibration_tokens",
        "eval_tokens",
        "probe_tokens",
        "eval_split",
        "chunk",
        "seed",
    )
    given = {name: getattr(config, name) for name in names}
    return plan(modes=config.encode_modes, heads=config.head_tokens, **given)


def run(config: Config) -> list[dict]:
    """Evaluates, writes and prints; returns the rows."""
    config = config.checked()
    out = config.folder
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.metrics.plan import pose_subject
    from amortjax.price import rows_of
    from amortjax.report import tables

    saes, plan = load_all(config), make_plan(config)
    acts = activations(config)
    for sae in saes:
        pose_subject(sae, acts, plan)  # all mistakes now, not after an hour
    rows: list[dict] = []
    for sae in saes:
        print(f"{sae.info.name}: {sae.variant}, {sae.n_latents} latents", file=sys.stderr)
        for row in rows_of(sae, acts, plan, out / "rows"):
            rows.append(row)
            tables.write_results(rows, out)
    print(tables.print_table(rows))
    report(config, out, rows, acts, saes)
    return rows


def report(config: Config, out: Path, rows: list[dict], acts: Any, saes: list[Any]) -> None:
    """Pictures, report.md and report.html."""
    from amortjax.files import write_atomically
    from amortjax.report import figures, html, page

    pictures, about, versions = figures.draw(rows, out / "figures"), about_run(acts, saes), used_versions()
    sections, more = null_models(config, out, acts, saes) if config.nulls else ([], [])
    pictures = [*pictures, *more]
    page.write_page(rows, out, about, pictures, versions)
    write_atomically(out / "config.json", flagged.to_json(config))
    explored = explorers(config, out, rows, acts, saes)
    given = dataclasses.asdict(config)
    path = html.write_html(rows, out, about, pictures, explored, sections, versions, given)
    print(f"\nresults {out}/results.csv, pictures {out}/figures, report {path} (and report.md)")


def null_models(config: Config, out: Path, acts: Any, saes: list[Any]) -> tuple[list[Any], list[Path]]:
    """Sections of the page and pictures: what the metrics are when nothing was learned; nulls.csv beside."""
    from amortjax.launch import nulls
    from amortjax.report import figures_audit, null_report, sheets, tables

    rows = nulls.beside(config, out, acts, saes)
    tables.write_results(rows, out, "nulls")
    found = null_report.report(rows, about_run(acts, saes), figures_audit.draw_nulls(rows, out / "figures"))
    print(f"\n{sheets.printed(found)}")
    return sheets.sections(found, "Null models: what the numbers mean"), list(found.pictures)


def explorers(
    config: Config, out: Path, rows: list[dict], acts: Any, saes: list[Any]
) -> list[dict[str, Any]]:
    """The latent explorer's data of each SAE, kept in `out`/rows, at the optimum's lambda; of none without one."""
    from amortjax.metrics.explorer import explore
    from amortjax.metrics.plan import pose_subject

    plan, found = make_plan(config), []
    least, more = divmod(config.explorer_latents, len(saes))
    for i, sae in enumerate(saes):
        lam, n = _optimum_lambda(rows, sae.info.name), least + (i < more)
        if n and lam is None:
            print(
                f"{sae.info.name}: no lambda of an optimum, so its latents are not explored", file=sys.stderr
            )
        elif n and lam:
            found.append(explore(pose_subject(sae, acts, plan), plan, lam, n, out / "rows", progress=True))
    return found


def _optimum_lambda(rows: list[dict], name: str) -> float | None:
    """lambda* where the rows have it, else that of an optimum they hold."""
    own = [row for row in rows if row["checkpoint"] == name and row.get("lam")]
    at_star = [row["lam"] for row in own if row["condition"] == "same_lambda"]
    return next(iter(at_star + [row["lam"] for row in own if row["mode"] == "optimal"]), None)


def about_run(acts: Any, saes: list[Any]) -> dict[str, str]:
    """What was measured, for a report's head."""
    import jax

    manifest = acts.manifest
    return {
        "model": manifest["model_name"],
        "site": f"{manifest['hook']} of block {manifest['layer_index']}",
        "corpus": manifest["dataset"],
        "SAEs": _listed(saes),
        "device": str(jax.devices()[0].device_kind),
    }


def _listed(saes: list[Any]) -> str:
    """Each with its name; many, as in a sweep, by kind only."""
    kinds = [f"{sae.variant}, M = {sae.n_latents}, {sae.info.format}" for sae in saes]
    if len(saes) > MOST_NAMED:
        return "; ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return "; ".join(f"{sae.info.name} ({kind})" for sae, kind in zip(saes, kinds, strict=True))


def used_versions() -> dict[str, str]:
    """Of the packages that numbers depend on, if installed."""
    import contextlib
    import importlib.metadata as metadata

    found = {}
    for name in ("amortjax", "jax", "numpy", "scipy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.section5")
