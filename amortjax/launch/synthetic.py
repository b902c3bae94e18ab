"""SAE, MLP, sparse coding and inference-time optimisation on synthetic data with known truth (arXiv 2411.13117).

Three scenarios: true codes are known and encoders are trained on them; the dictionary is known; only x is known. After
every so many steps: were the true codes and atoms found (MCC beside its chance level), at what error, with how many
active codes, for how many FLOPs. `literal` has the authors' data, first weights, optimisers and log conventions, and
meets their published curves; `controlled` has fresh data for every seed, equal training FLOPs for all methods, the
certified optimum beside every method's codes, and inference-time optimisation that really starts from the SAE's codes.
Sizes have the paper's letters: N sources, M dimensions, K active. Sweeps over sizes, L1, TopK, widths and biases are
amortjax.launch.synthetic_sweep. Writes results.parquet, .csv and .json, pictures,
report.md and report.html to --out; finished parts are skipped when the command is given again.
"""

import dataclasses
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged

Scenario = Literal["known_codes", "known_dictionary", "unknown", "all"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    scenario: Annotated[Scenario, "What is known; `all` runs the three."] = "all"
    distribution: Annotated[
        Literal["uniform", "zipf", "hierarchical"],
        "Of the active sources. zipf: frequencies and magnitudes fall as 1 / i; hierarchical: a tree whose children "
        "are active only with their parent.",
    ] = "uniform"
    protocol: Annotated[Literal["literal", "controlled"], "The authors' runs, or equal terms."] = "literal"
    methods: Annotated[
        tuple[str, ...],
        "sae, mlpWIDTH (any width), sae_ito, sparse_coding; what a scenario lacks is left out of it. By default those "
        "of the paper.",
    ] = ()
    sources: Annotated[int, "The paper's N."] = 16
    dimensions: Annotated[int, "The paper's M."] = 8
    active: Annotated[int, "The paper's K: active sources of a sample."] = 3
    samples: Annotated[int, "Half for training, half for testing."] = 2048
    steps: Annotated[
        int, "Training steps; under `controlled` the SAE's, the others' follow from the budget."
    ] = 20_000
    seeds: Annotated[int, "Runs, trained together."] = 5
    seed: Annotated[
        int | None,
        "Of the data; run i trains from seed + i. By default the authors': 20240625, unknown: 20240926.",
    ] = None
    lam: Annotated[
        float, "L1 coefficient in the authors' form, where error and |z| are means over all entries."
    ] = 0.01
    lr: Annotated[float, "Adam's learning rate of encoders and dictionaries."] = 1e-3
    iterations: Annotated[int, "Of Adam on the test samples' log codes, where the dictionary is learned."] = (
        10_000
    )
    log_every: Annotated[
        int | None, "Steps between log points. By default 200, unknown 500; `controlled` has ten log points."
    ] = None
    budget: Annotated[
        float, "controlled: training FLOPs of every method (linear convention); 0: the SAE's in --steps."
    ] = 0.0
    precision: Annotated[
        Literal["auto", "float32", "float64"],
        "Of training. auto: float64 for encoders up to 64 wide, float32 for others and for codes.",
    ] = "auto"

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        for name in ("sources", "dimensions", "active", "steps", "seeds", "lr", "iterations"):
            if not 0 < getattr(self, name) < float("inf"):
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0, and finite")
        for name in ("lam", "budget"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must not be negative, and finite")
        if self.log_every is not None and self.log_every < 1:
            raise AmortjaxError(f"--log_every={self.log_every}: must be at least 1")
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise AmortjaxError(f"--seed={self.seed}: must be from 0 to {2**31 - 1}")
        if self.active > self.sources:
            raise AmortjaxError(f"--active={self.active}: there are only --sources={self.sources}")
        if self.samples < 4:
            raise AmortjaxError(f"--samples={self.samples}: half train, half test; give at least 4")
        if self.protocol == "controlled" and self.lam == 0:
            raise AmortjaxError(
                "--lam=0: nothing is certified there, and controlled compares with the optimum"
            )
        if self.protocol == "literal" and self.budget:
            raise AmortjaxError(
                "--budget: of --protocol=controlled only; literal trains all methods for --steps"
            )
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Trains, measures, writes and prints; returns the rows."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.launch import synthetic_parts
    from amortjax.report import tables
    from amortjax.synthetic import step_costs

    jobs = synthetic_parts.jobs(config)
    rows: list[dict[str, Any]] = []
    for job in jobs:
        rows += synthetic_parts.finished(config, job)
        tables.write_results(rows, config.folder)
    counted = [step_costs.counted(setup, method) for setup, method in synthetic_parts.methods_of(jobs)]
    report(config, rows, counted)
    return rows


def report(config: Config, rows: list[dict[str, Any]], counted: list[dict[str, Any]]) -> None:
    """Tables in the terminal, pictures, report.md and report.html. `counted`: FLOPs in three conventions."""
    from amortjax.files import write_atomically
    from amortjax.launch import section5
    from amortjax.report import figures_pareto, figures_synthetic, sheets
    from amortjax.report import synthetic as words

    shown = words.for_pareto(rows)
    pictures = [*figures_synthetic.draw(rows, config.folder / "figures")]
    pictures += figures_pareto.pareto(shown, config.folder / "figures")
    made = words.report(rows, pictures, counted)
    write_atomically(config.folder / "config.json", flagged.to_json(config))
    sheets.write(made, config.folder, section5.used_versions(), dataclasses.asdict(config))
    print(sheets.printed(made))
    print(f"\nresults {config.folder}/results.csv, report {config.folder}/report.md and report.html")


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.synthetic")
