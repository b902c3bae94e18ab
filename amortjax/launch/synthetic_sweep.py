"""Sweeps over synthetic data with known sources (arXiv 2411.13117): sizes, L1, TopK, widths, bias, scale, new pairs.

Trains SAEs, MLPs and sparse coding from several seeds at every setting of one sweep and measures whether sources and
dictionary are recovered, each number beside its chance level and the published value. --protocol=literal is the
released code's settings; controlled has equal terms, certified codes on every dictionary, dictionary learning by exact
steps, and the true dictionary. Letters are the paper's: N sources, M dimensions, K active. Writes results.parquet, .csv
and .json, a picture, report.md and report.html to --out; finished cells are skipped when the command is given again.

    size      N x M x K grid with the recovery boundary         bias      with and without
    l1        the L1 coefficient                                large     N = 1000, M = 200, K = 20, known codes
    topk      TopK in training, and only when coding            ood       pairs of sources never seen together
    width     of the MLP                                        ceilings  scikit-learn and exact steps, both unknown
"""

import dataclasses
from typing import Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged

Sweep = Literal["size", "l1", "topk", "width", "bias", "large", "ood", "ceilings"]
Method = Literal["sae", "mlp", "sparse_coding", "certified_learner", "true_dictionary", "sklearn"]
_AT_LEAST_1 = (
    "steps",
    "code_steps",
    "runs",
    "samples",
    "test_samples",
    "batch",
    "pairs",
    "restarts",
    "rounds",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    sweep: Annotated[Sweep, "What is swept."]
    protocol: Annotated[
        Literal["literal", "controlled"],
        "As released, or equal terms: fresh data for every run, the SAE's training FLOPs for all, certified codes.",
    ] = "literal"
    distribution: Annotated[
        Literal["uniform", "zipf", "hierarchical"], "Of the active sources; published values are of uniform."
    ] = "uniform"
    methods: Annotated[tuple[Method, ...], "Only these of the sweep's methods."] = ()
    sources: Annotated[
        tuple[int, ...], "N: several for size and ceilings, one for others. Default: published."
    ] = ()
    dimensions: Annotated[tuple[int, ...], "M: as --sources."] = ()
    active: Annotated[tuple[int, ...], "K: as --sources."] = ()
    lams: Annotated[
        tuple[float, ...], "L1 coefficients of --sweep=l1, released form. Default: the nine published."
    ] = ()
    topks: Annotated[tuple[int, ...], "k of --sweep=topk. Default: the eight published."] = ()
    widths: Annotated[
        tuple[int, ...],
        "Hidden widths of MLPs, for width and large; the first is that of bias and ood. Default: published.",
    ] = ()
    steps: Annotated[
        int | None, "Training steps (controlled: the SAE's). Default: those published for the sweep."
    ] = None
    code_steps: Annotated[
        int | None, "Steps of sparse coding's test codes under literal. Default: 10 000."
    ] = None
    runs: Annotated[
        int | None, "Seeds of each cell. Default: 3, 5 for ood and controlled ceilings, 1 for large."
    ] = None
    samples: Annotated[
        int | None, "Half for training, half for testing; all for training in large. Default: 2048."
    ] = None
    test_samples: Annotated[int | None, "Test samples of --sweep=large. Default: 500 000."] = None
    batch: Annotated[int | None, "Minibatch of --sweep=large. Default: 1024."] = None
    pairs: Annotated[
        int | None, "Pairs of sources held out of training in ood. Default: N / 2, sharing none."
    ] = None
    restarts: Annotated[
        int, "Starts of dictionary learning by exact steps; the best training objective is kept."
    ] = 8
    rounds: Annotated[int, "Rounds of each start: codes, then atoms."] = 300
    seed: Annotated[int | None, "Of data; run i trains from seed + i. Default: the published one."] = None

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        for name in _AT_LEAST_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise AmortjaxError(f"--{name}={value}: must be at least 1")
        for name in ("sources", "dimensions", "active", "topks", "widths"):
            if any(value < 1 for value in getattr(self, name)):
                raise AmortjaxError(f"--{name}={','.join(map(str, getattr(self, name)))}: must be at least 1")
        if any(not 0 < lam < float("inf") for lam in self.lams):
            raise AmortjaxError(f"--lams={','.join(map(str, self.lams))}: must be above 0")
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise AmortjaxError(f"--seed={self.seed}: must be from 0 to 2 147 483 647")
        if self.samples is not None and self.samples < 4:
            raise AmortjaxError(f"--samples={self.samples}: half are for testing; give at least 4")
        for name in ("sources", "dimensions", "active") if self.sweep not in ("size", "ceilings") else ():
            if len(getattr(self, name)) > 1:
                raise AmortjaxError(
                    f"--{name}: one value for --sweep={self.sweep}, only size and ceilings take several"
                )
        return self


def run(config: Config) -> list[dict[str, Any]]:
    """Trains, measures, writes and prints; returns a row for each cell."""
    config = config.checked()
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    from amortjax.launch import synthetic_sweep_parts as parts
    from amortjax.report import tables

    cells = parts.planned(config)
    found: dict[Any, list[dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = []
    for done in parts.measured(cells, config.sweep, config.folder):
        found |= done
        rows = parts.summarised(config.sweep, cells, found)
        tables.write_results(rows, config.folder)
    parts.write_report(config, rows)
    return rows


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.synthetic_sweep")
