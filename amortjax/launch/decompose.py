"""The price of an encoder, rung by rung: how much of it is scale, capacity, iteration, and how much the dictionary?

Encoder, one scale, a scale per latent, the best refitted affine encoder, an MLP, LISTA, the certified optimum, and the
optimum with the dictionary relearned: all minimise the same objective at the same lambda (where the optimum has the
encoder's L0), are fitted on sae_train documents, chosen on others of them and measured on test documents. Beside it
the reconstruction ladder at equal L0, support against amplitude, and which latents the price is paid for. Writes
results.parquet, .csv and .json, latents.csv, latents.json, ladder.png, latents.png, report.md and report.html. Each
rung is kept on disk: a killed run goes on with the next one.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged
from amortjax.launch.choices import Choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out, Choices):
    ckpt: Annotated[str, "SAE checkpoint: a file, a folder or a hub id (org/repo:path)."]
    acts: Annotated[str, "Activation store, as written by amortjax.launch.collect, with a sae_train split."]
    lam: Annotated[
        float | None, "Lambda (half form) of all rungs; empty: where the optimum has the encoder's L0."
    ] = None
    mlp_hidden: Annotated[int | None, "Hidden units of the MLP; empty: four times the model's width."] = None
    lista_layers: Annotated[int, "Layers of LISTA, after the MLP's code."] = 8
    fit_steps: Annotated[int, "Optimizer steps of each network."] = 2000
    fit_batch: Annotated[int, "Tokens per step."] = 256
    fit_lr: Annotated[float, "Adam's peak rate, relative to each parameter's typical size."] = 0.03
    fit_tokens: Annotated[int, "sae_train tokens (whole documents) on which rungs are fitted."] = 65536
    validation_tokens: Annotated[
        int, "Further sae_train tokens (other documents) by which they are chosen."
    ] = 8192
    relearn_rounds: Annotated[
        int, "Most alternations of codes and dictionary (0: the dictionary as it is)."
    ] = 4
    relearn_tokens: Annotated[int, "Of the fit's tokens, how many the dictionary is relearned on."] = 16384
    calibration_tokens: Annotated[int, "Tokens on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    tol: Annotated[float, "Relative duality gap of the optimum."] = 1e-4
    precision: Annotated[
        Literal["highest", "tensorfloat32", "bfloat16"],
        "Of the optimum's search for candidate latents; its certificate is float32 always.",
    ] = "highest"
    chunk: Annotated[int, "Tokens at a time."] = 1024
    seed: Annotated[int, "Of row selection, first weights, batches and resamples."] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        import math

        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, str | None) or name in ("seed", "relearn_rounds"):
                continue
            if not (math.isfinite(value) and value > 0):
                raise AmortjaxError(f"--{name}={value}: must be above 0")
        for name in ("seed", "relearn_rounds"):
            if getattr(self, name) < 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be 0 or more")
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Fits, measures, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.activations.store import open_store
    from amortjax.launch import decompose_parts as parts
    from amortjax.metrics import ladder
    from amortjax.saes.formats import load_sae

    out = config.folder
    climb, star, l0 = _climb(config, load_sae(config.ckpt, **config.given()), open_store(config.acts), out)
    print(
        f"{climb.subject.sae.info.name}: lambda {climb.lam:.4g}, L0 of the encoder {l0:.4g}", file=sys.stderr
    )
    made = climb.run()
    rows = parts.ladder_rows(climb, made, star, l0)
    rows += ladder.reconstruction(climb.bench, star, l0)
    rows = [parts.shared_columns(climb.bench) | row for row in rows]
    columns, table = parts.latents(climb, made)
    report(config, out, climb, rows, columns, table)
    return rows


def _climb(config: Config, sae: Any, acts: Any, out: Path) -> Any:
    """The ladder to be climbed, its lambda and the encoder's L0; all mistakes are found here."""
    from amortjax.launch import decompose_parts as parts
    from amortjax.metrics.bench import Bench
    from amortjax.metrics.plan import make_plan, pose_subject
    from amortjax.training.encoder_fit import Pace
    from amortjax.training.ladder import Fit, check_ladder

    shared = ("calibration_tokens", "eval_tokens", "tol", "precision", "chunk", "seed")
    plan = make_plan(**{name: getattr(config, name) for name in shared}, probe_tokens=1)
    subject = dataclasses.replace(pose_subject(sae, acts, plan), progress=sys.stderr.isatty())
    check_ladder(sae, subject.problem)
    rows = parts.fit_rows(acts, config.fit_tokens, config.validation_tokens, config.seed)
    bench = Bench(subject, plan, out / "rungs", subject.progress)
    star, l0 = parts.lambda_star(bench, config.lam)
    pace = Pace(config.fit_steps, config.fit_batch, config.fit_lr, config.seed)
    fit = Fit(config.mlp_hidden or 4 * sae.d_in, config.lista_layers, pace)
    climb = parts.Climb(bench, rows, star.lam, fit, config.relearn_rounds, config.relearn_tokens)
    return climb, star, l0


def report(config: Config, out: Path, climb: Any, rows: list[dict], columns: Any, table: list[dict]) -> None:
    """Result files, pictures and pages."""
    import importlib.metadata

    import jax
    import pandas as pd

    from amortjax.files import write_atomically
    from amortjax.report import figures_ladder, ladder, ladder_page, tables

    tables.write_results(rows, out)
    write_atomically(out / "latents.csv", pd.DataFrame(columns).to_csv(index=False))
    write_atomically(out / "latents.json", json.dumps(table, indent=1, allow_nan=False) + "\n")
    pictures = figures_ladder.draw_ladder(rows, out / "ladder")
    pictures += figures_ladder.draw_latents(columns, table, out / "latents")
    sae, manifest = climb.subject.sae, climb.subject.acts.manifest
    n = {name: len(part) for name, part in climb.rows._asdict().items()}
    about = {
        "model": manifest["model_name"],
        "site": f"{manifest['hook']} of block {manifest['layer_index']}",
        "corpus": manifest["dataset"],
        "SAE": f"{sae.info.name} ({sae.variant}, M = {sae.n_latents}, {sae.info.format})",
        "fitted on": f"{n['train']} tokens of sae_train, chosen by {n['validation']} of other documents",
        "device": str(jax.devices()[0].device_kind),
    }
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax", "numpy", "scipy")}
    given = dataclasses.asdict(config)
    path = ladder_page.write_page(rows, table, out, about, given, pictures, versions)
    write_atomically(out / "config.json", flagged.to_json(config))
    print(ladder.printed(ladder.ladder_of(rows), ladder.LADDER))
    print("\n" + ladder.printed(ladder.reconstruction_of(rows), ladder.RECONSTRUCTION))
    print("\n" + "\n".join(ladder.headlines(rows, table)))
    print(f"\nresults {out}/results.csv, picture {out}/ladder.png, report {path} (and report.html)")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.decompose")
