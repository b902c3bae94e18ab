"""How fast and how well are SAEs trained here, beside dictionary_learning's own trainers (PyTorch), in one run?

--part=throughput: tokens per second of both, a few steps at a time in turn. --part=quality: both are trained on the
same batches of a store and scored alike on held-out rows. dictionary_learning runs unchanged in a Python of its own
(--peer_python), because it does not install beside what is needed here:

    python -m venv peer && peer/bin/pip install torch dictionary-learning && peer/bin/pip uninstall -y torchvision

Writes training.csv, .parquet and .json, report.md and a picture of each part to --out. What is finished is not
measured again, unless the trainer's code has changed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from amortjax.errors import AmortjaxError
from amortjax.launch import flagged

if TYPE_CHECKING:
    from amortjax.launch.bench_parts.train_data import Data
    from amortjax.launch.bench_parts.train_options import Plan
    from amortjax.launch.bench_parts.train_rows import Bench, Case

Part = Literal["throughput", "quality"]
# As train_options.Variant, which is dear to import.
Variant = Literal["topk", "batch_topk", "standard", "april", "jumprelu", "gated", "matryoshka"]
ALL: tuple[Variant, ...] = ("topk", "batch_topk", "standard", "april", "jumprelu", "gated", "matryoshka")
DEFAULT: dict[str, tuple[Variant, ...]] = {"throughput": ALL, "quality": ("topk", "batch_topk", "jumprelu")}
WITH_AUXK = ("topk", "batch_topk")
# Results of other values of these don't stand in one table.
SHARED = ("n_latents", "k", "lam", "batch_size", "lr", "acts")
SETTING = {
    "throughput": (*SHARED, "d_model", "rounds", "round_steps"),
    "quality": (
        *SHARED,
        "steps",
        "warmup",
        "sparsity_warmup",
        "decay_from",
        "dead_tokens",
        "held_out",
        "eval_rows",
    ),
}
# The schedule that throughput is measured in: so long that the few steps taken neither revive a latent nor kill one.
LONG, WARMUP, NEVER_DEAD = 100_000, 1000, 10_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(flagged.Out):
    part: Annotated[Part, "What to measure; both may go to the same --out, one after the other."] = (
        "throughput"
    )
    variants: Annotated[
        tuple[Variant, ...],
        "SAE variants. Empty: throughput measures all, quality topk, batch_topk and jumprelu.",
    ] = ()
    peer_python: Annotated[
        str, "Python with torch and dictionary-learning. Empty: only amortjax is measured."
    ] = ""
    acts: Annotated[str | None, "Activation store; quality needs it, throughput draws rows without it."] = (
        None
    )
    d_model: Annotated[int, "throughput without --acts: D."] = 384
    n_latents: Annotated[int, "Number of latents, M."] = 6144
    k: Annotated[int, "Latents per token; jumprelu: the L0 it is trained towards."] = 32
    lam: Annotated[float, "L1 penalty: standard, april, gated (inputs divided by sqrt(mean |x|^2))."] = 0.02
    batch_size: Annotated[int, "Tokens per step."] = 1024
    lr: Annotated[float, "Adam's peak learning rate, for every variant."] = 3e-4
    dead: Annotated[
        tuple[str, ...],
        "throughput: shares of latents, above 0 and below 1, that count as dead in further rows of topk and "
        "batch_topk.",
    ] = ("0.02", "0.1")
    rounds: Annotated[int, "throughput: rounds, each a few steps of one side and then of the other."] = 7
    round_steps: Annotated[int, "throughput: steps of a side in a round."] = 8
    steps: Annotated[int, "quality: optimizer steps."] = 2000
    warmup: Annotated[
        int | None, "quality: steps of linear warm-up; empty: a twentieth of them, at most 1000."
    ] = None
    sparsity_warmup: Annotated[
        int | None, "quality: steps over which sparsity losses grow to full; empty: a tenth, at most 2000."
    ] = None
    decay_from: Annotated[float, "quality: share of the steps after which the rate falls linearly to 0."] = (
        0.8
    )
    dead_tokens: Annotated[
        int | None,
        "quality: tokens without firing after which a latent is dead; empty: an eighth of the run, at most 10 M.",
    ] = None
    seeds: Annotated[tuple[str, ...], "quality: of the first weights and of the order of the batches."] = (
        "0",
    )
    held_out: Annotated[Literal["test", "calibrate"], "quality: split of the rows that are scored."] = "test"
    eval_rows: Annotated[int, "quality: about how many of them."] = 20_480
    points: Annotated[int, "quality: points of the curve of FVU against the step."] = 8

    def checked(self) -> "Config":
        """Itself, or AmortjaxError naming the flag."""
        positive = (
            "n_latents",
            "k",
            "batch_size",
            "lr",
            "lam",
            "rounds",
            "round_steps",
            "steps",
            "eval_rows",
        )
        for name in (*positive, "points", "d_model"):
            if not getattr(self, name) > 0:
                raise AmortjaxError(f"--{name}={getattr(self, name)}: must be above 0")
        if self.k > self.n_latents:
            raise AmortjaxError(f"--k={self.k}: must be at most --n_latents={self.n_latents}")
        if self.part == "quality":
            self._check_schedule()
        for share in self.dead_shares():
            if not 0 < share < 1:
                raise AmortjaxError(f"--dead={share}: shares must be above 0 and below 1")
        self.seed_numbers()
        return self

    def _check_schedule(self) -> None:
        """What dictionary_learning's trainers ask of a schedule; the others would take more."""
        if not self.acts:
            raise AmortjaxError(
                "--part=quality needs --acts, an activation store: python -m amortjax.launch.collect makes one"
            )
        warm, sparse, decay = self.schedule()
        if not 0 < self.decay_from <= 1:
            raise AmortjaxError(f"--decay_from={self.decay_from}: must be above 0 and at most 1")
        for name, value in (("warmup", warm), ("sparsity_warmup", sparse)):
            if not 0 <= value < decay:
                raise AmortjaxError(
                    f"--{name}={value}: must be from 0 to below the {decay} steps at which the decay starts"
                )
        if self.dead_tokens is not None and self.dead_tokens < 1:
            raise AmortjaxError(f"--dead_tokens={self.dead_tokens}: must be above 0")

    def schedule(self) -> tuple[int, int, int]:
        """quality: steps of the warm-up, of the sparsity's warm-up, and the first of the decay."""
        warm = min(1000, self.steps // 20) if self.warmup is None else self.warmup
        sparse = min(2000, self.steps // 10) if self.sparsity_warmup is None else self.sparsity_warmup
        return warm, sparse, int(self.decay_from * self.steps)

    def dead_shares(self) -> tuple[float, ...]:
        try:
            return tuple(float(share) for share in self.dead)
        except ValueError:
            raise AmortjaxError(f"--dead={','.join(self.dead)}: not numbers") from None

    def seed_numbers(self) -> tuple[int, ...]:
        try:
            seeds = tuple(int(seed) for seed in self.seeds)
        except ValueError:
            seeds = ()
        if not seeds or min(seeds) < 0:
            raise AmortjaxError(
                f"--seeds={','.join(self.seeds)}: name at least one whole number, none below 0"
            )
        return seeds


def cases(config: Config) -> "list[Case]":
    from amortjax.launch.bench_parts.train_rows import Case

    variants = config.variants or DEFAULT[config.part]
    if config.part == "quality":
        return [Case(variant, seed=seed) for seed in config.seed_numbers() for variant in variants]
    return [
        Case(variant, share)
        for variant in variants
        for share in (0.0, *(config.dead_shares() if variant in WITH_AUXK else ()))
    ]


def _plan(config: Config, case: "Case", d_model: int) -> "Plan":
    from amortjax.launch.bench_parts.train_options import Plan

    if config.part == "throughput":
        steps, warm, sparse, decay, dead = LONG, WARMUP, 2 * WARMUP, 0.8, NEVER_DEAD
    else:
        (warm, sparse, _), steps, decay = config.schedule(), config.steps, config.decay_from
        dead = min(NEVER_DEAD, max(steps * config.batch_size // 8, 1))
        dead = config.dead_tokens or dead
    return Plan(
        variant=case.variant, d_model=d_model, n_latents=config.n_latents, k=config.k, lam=config.lam,
        batch_size=config.batch_size, steps=steps, lr=config.lr, warmup=warm, sparsity_warmup=sparse,
        decay_from=decay, dead_tokens=dead, seed=case.seed,
    )  # fmt: skip


def _data(config: Config, store: Any, folder: Path, seed: int, batches: int) -> "Data":
    from amortjax.launch.bench_parts import train_data

    if store is None:
        return train_data.synthetic(
            folder, config.d_model, config.n_latents, config.batch_size, batches, seed
        )
    held_out = config.held_out if config.part == "quality" else None
    return train_data.stored(folder, store, config.batch_size, batches, seed, held_out, config.eval_rows)


def measure(config: Config, bench: "Bench", left: "list[Case]", store: Any, folder: Path) -> None:
    """The rows that are missing, with a progress bar of steps."""
    import contextlib

    from tqdm import tqdm

    from amortjax.launch.bench_parts import train_measure
    from amortjax.launch.bench_parts.train_process import Peer

    rounds = train_measure.Rounds(config.rounds, config.round_steps)
    each = 2 * (config.rounds * config.round_steps if config.part == "throughput" else config.steps)
    batches = rounds.batches if config.part == "throughput" else config.steps
    data, drawn = None, -1
    with tqdm(total=each * len(left), unit="step", file=sys.stderr, desc=config.part) as bar:
        for case in left:
            bar.set_postfix_str(case.label)
            if data is None or drawn != case.seed:
                data, drawn = _data(config, store, folder, case.seed, batches), case.seed
            plan = _plan(config, case, len(data.mean))
            with Peer(config.peer_python) if config.peer_python else contextlib.nullcontext() as peer:
                if config.part == "throughput":
                    tick = lambda: bar.update(config.round_steps)  # noqa: E731
                    row = train_measure.throughput(plan, data, peer, case.dead_share, rounds, tick)
                else:
                    row = train_measure.quality(plan, data, peer, config.points, bar.update)
            options = {"ours": dataclasses.asdict(plan.recipe())}
            bench.add(case, row | {"d_model": plan.d_model, "data": data.text, "options": options})


def run(config: Config, store: Any = None) -> list[dict[str, Any]]:
    """Measures, writes and prints; returns the rows of the part. `store` may be given instead of read."""
    config = config.checked()
    out = config.folder
    # Heavy imports after the flags' checks, so that --help and mistakes are quick.
    import shutil

    from amortjax.activations.store import open_store
    from amortjax.files import write_atomically
    from amortjax.launch.bench_parts import train_table
    from amortjax.launch.bench_parts.train_process import Peer
    from amortjax.launch.bench_parts.train_rows import STEM, Bench

    if store is None and config.acts:
        store = open_store(config.acts)
    setting = {name: getattr(config, name) for name in SETTING[config.part]}
    bench, asked = Bench(config.part, setting, config.peer_python, out), cases(config)
    left = [case for case in asked if not bench.finished(case)]
    if len(left) < len(asked):
        print(f"{config.part}: {len(asked) - len(left)} of {len(asked)} rows are finished", file=sys.stderr)
    if left and config.peer_python:
        with Peer(config.peer_python) as peer:
            peer.ask("hello")  # a wrong path now, not after the data are drawn
    try:
        measure(config, bench, left, store, out / "batches")
    finally:
        shutil.rmtree(out / "batches", ignore_errors=True)
    write_atomically(out / "config.json", flagged.to_json(config))
    blocks = bench.blocks(asked)
    pictures = {part: train_table.draw(part, rows, out) for part, rows in blocks.items()}
    write_atomically(out / "report.md", train_table.markdown(blocks, pictures))
    print(train_table.print_table(config.part, blocks[config.part]))
    print(f"\ntable {out}/report.md and {STEM}.csv, picture {pictures[config.part]}")
    return blocks[config.part]


if __name__ == "__main__":
    flagged.launch(Config, run, "amortjax.launch.bench_training")
