"""Does a better encoder, or no encoder, give better features? The GPT-2 section of arXiv 2411.13117.

Trains on the sae_train documents of one store (--acts), or straight from a language model (--stream), a linear SAE, an
SAE with an MLP for an encoder, and a dictionary of searched codes ("LCA"); --ckpts lends those that are there already.
All are evaluated on the same test documents, and with them the SAE's dictionary under certified optimal codes: error
at equal L0, the encoder's gap at lambda* and on its own objective, dead latents, FLOPs of training and inference, and
how well a judge foretells where a latent fires (macro-F1). Writes FOLDER/NAME/sae.safetensors for each,
results.parquet, .csv and .json, pictures, report.md and report.html; what is finished is skipped when the command is
given again.
"""

import dataclasses
import math
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged, section5
from amortjax.launch.text import Text

Method = Literal["sae", "mlp", "lca"]
POSITIVE = (
    "n_latents", "lam", "mlp_lam", "lr", "steps", "batch_size", "lca_rounds", "lca_tol", "tol", "calibration_tokens",
    "eval_tokens", "probe_tokens", "chunk", "log_every", "buffer_tokens",
)  # fmt: skip
IF_GIVEN = ("hidden", "mlp_lr", "lca_lam", "lca_lr", "lca_steps", "lca_batch_size", "lca_iterations")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out, Text):
    acts: Annotated[
        str | None, "Activation store; collected into if --model_name is given and it is not there."
    ] = None
    ckpts: Annotated[tuple[str, ...], "Trained already: NAME=PATH or hub id, NAME sae, mlp or lca."] = ()
    methods: Annotated[tuple[Method, ...], "What is trained (or lent) and compared."] = ("sae", "mlp", "lca")
    stream: Annotated[bool, "Train and evaluate straight from the language model, with nothing stored."] = (
        False
    )
    n_latents: Annotated[int, "Number of latents, M (the paper: 16896)."] = 6144
    hidden: Annotated[int | None, "Width of the MLP's hidden layer; empty: M / 2, as in the paper."] = None
    lam: Annotated[
        float,
        "SAE: the loss is |x - x_hat|^2 over the data's variance, plus this times the sum of raw codes.",
    ] = 1e-4
    mlp_lam: Annotated[float, "MLP: the lambda of its loss, as --lam is the SAE's."] = 7e-5
    lr: Annotated[float, "Adam's rate, constant after --warmup."] = 3e-4
    mlp_lr: Annotated[float | None, "MLP: Adam's rate, which harms it sooner than the SAE; empty: --lr."] = (
        None
    )
    warmup: Annotated[int, "Steps over which the rates of SAE and MLP rise from 0; the paper has none."] = 0
    steps: Annotated[int, "Optimizer steps."] = 2000
    batch_size: Annotated[int, "Tokens per step."] = 1024
    resample_every: Annotated[
        int, "Steps between resamplings of dead latents (Bricken et al. 2023); 0: never."
    ] = 15000
    lca: Annotated[
        Literal["certified", "lca", "literal"],
        "Codes of the searched dictionary: the certified optimum, LCA's dynamics begun near it, or, literally, the "
        "released projected gradient on raw inputs, differentiated through.",
    ] = "certified"
    lca_lam: Annotated[
        float | None,
        "LCA dictionary: lambda of its codes, in the units of --lam (empty: --lam); with --lca=literal that of the "
        "released search, half form on raw inputs (empty: 0.1).",
    ] = None
    lca_lr: Annotated[
        float | None, "LCA dictionary: Adam's rate of the atoms; empty: --lr, with --lca=literal 3e-3."
    ] = None
    lca_steps: Annotated[int | None, "LCA dictionary: optimizer steps; empty: --steps."] = None
    lca_batch_size: Annotated[
        int | None, "LCA dictionary: tokens per step; empty: --batch_size, with --lca=literal 128."
    ] = None
    lca_iterations: Annotated[
        int | None,
        "LCA dictionary: iterations of a batch's search, with --lca=lca (empty: 100) or, at most, with --lca=literal "
        "(empty: 300).",
    ] = None
    lca_rounds: Annotated[
        int,
        "LCA dictionary: times codes and atoms take turns on a batch; later searches start at the last codes.",
    ] = 1
    lca_tol: Annotated[
        float, "LCA dictionary: relative duality gap of its codes in training, with --lca=certified."
    ] = 1e-3
    factors: Annotated[tuple[float, ...], "Optimal codes also at these multiples of the SAE's L0."] = (
        0.5,
        2.0,
    )
    judge: Annotated[
        Literal["offline", "none"],
        "Who explains latents and foretells firings: rules without a model, or nobody. For language models give "
        "OUT/sae and the others to amortjax.launch.autointerp.",
    ] = "offline"
    judge_latents: Annotated[
        int, "Latents judged for each method, drawn from those that fire in enough documents."
    ] = 200
    tol: Annotated[float, "Relative duality gap of the optimum."] = 1e-4
    solver: Annotated[Literal["active_set", "fista"], "Of the optimum."] = "active_set"
    precision: Annotated[
        Literal["highest", "tensorfloat32", "bfloat16"],
        "Of the optimum's search for candidate latents; its certificate is float32 always.",
    ] = "highest"
    calibration_tokens: Annotated[int, "Tokens (whole documents) on which lambda is calibrated."] = 16384
    eval_tokens: Annotated[int, "Test tokens (whole documents)."] = 32768
    probe_tokens: Annotated[int, "Tokens on which probes are fitted."] = 16384
    chunk: Annotated[int, "Tokens at a time in evaluation."] = 1024
    checkpoint_every: Annotated[int, "Steps between checkpoints of a training's state; 0: none."] = 500
    log_every: Annotated[int, "Steps between lines of metrics.jsonl."] = 50
    eval_every: Annotated[int, "Steps between FVU, L0 and dead on held-out rows; 0: never."] = 250
    model_dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], "In which a streamed model computes."
    ] = "float32"
    device: Annotated[str, "Of a streamed language model: auto, cpu or cuda."] = "auto"
    buffer_tokens: Annotated[int, "Tokens that are shuffled together when streamed."] = 262_144
    seed: Annotated[int, "Of first weights, order of tokens, row selection and resamples."] = 0

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag. The recipes have checks of their own."""
        for name in (*POSITIVE, *IF_GIVEN):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise AmortjaxError(f"--{name}={value}: must be above 0")
        for name in ("resample_every", "checkpoint_every", "eval_every", "judge_latents", "seed", "warmup"):
            if getattr(self, name) < 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must not be negative")
        if not self.methods:
            raise AmortjaxError("--methods is empty: name some of sae, mlp, lca")
        if any(not (factor > 0 and math.isfinite(factor)) for factor in self.factors):
            raise AmortjaxError("--factors: multiples of the SAE's L0 must be above 0")
        no_model = self.model_name is None or self.layer_index is None
        if self.stream and no_model:
            raise AmortjaxError(
                "--stream takes activations from a language model: give --model_name and --layer_index, or leave "
                "--stream out to train on the store of --acts"
            )
        if self.acts is None and no_model:
            raise AmortjaxError(
                "give --acts, or --model_name and --layer_index to take activations from a model"
            )
        self.lent()
        return self

    def lent(self) -> dict[str, str]:
        """{method: path} of --ckpts."""
        found = {}
        for text in self.ckpts:
            name, _, path = text.partition("=")
            if name not in self.methods or not path or name in found:
                raise AmortjaxError(
                    f"--ckpts={text}: say NAME=PATH, each NAME once, NAME one of --methods={','.join(self.methods)}"
                )
            found[name] = path
        return found

    @property
    def width(self) -> int:
        """Of the MLP's hidden layer."""
        return self.hidden or max(self.n_latents // 2, 1)

    def section5(self) -> section5.Config:
        """The flags that section5 has too, for what it does with them."""
        names = {field.name for field in dataclasses.fields(section5.Config)} - {"ckpts"}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names}
        return section5.Config(ckpts=("-",), **own)


def run(config: Config) -> list[dict[str, Any]]:
    """Trains, evaluates, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.launch import encoders_parts, encoders_training
    from amortjax.report import tables

    for recipe in encoders_training.recipes(config, 1.0).values():
        recipe.check()
    lent = encoders_training.lent_saes(config)  # mistakes in them before hours of collecting and training
    # One after the other: a streamed model is not held while the other part runs.
    acts = None if config.stream else section5.activations(config.section5())
    saes = encoders_training.trained(config, acts, lent)
    acts = section5.activations(config.section5()) if acts is None else acts
    found = encoders_parts.Comparison(config, saes, acts)
    rows: list[dict[str, Any]] = []
    for row in found.rows():
        rows.append(row)
        tables.write_results(rows, config.folder)
    judged = found.judged(rows)
    tables.write_results(rows, config.folder)
    report(config, rows, judged, acts, list(saes.values()))
    return rows


def report(
    config: Config, rows: list[dict[str, Any]], judged: dict[str, list[float]], acts: Any, saes: list
) -> None:
    """The pictures, report.md and report.html."""
    from amortjax.files import write_atomically
    from amortjax.report import encoders, figures_encoders, sheets

    out = config.folder
    about = section5.about_run(acts, saes)
    pictures = figures_encoders.draw(rows, judged, out / "figures")
    made = encoders.report(rows, about, [*pictures, *sorted(out.glob("training.*g"))], config.judge)
    sheets.write(made, out, section5.used_versions(), dataclasses.asdict(config))
    write_atomically(out / "config.json", flagged.to_json(config))
    print(sheets.printed(made))
    print(f"\nresults {out}/results.csv, pictures {out}/figures, report {out}/report.html (and report.md)")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.encoders")
