"""Training from start, or from the last checkpoint, to an SAE in raw units.

The state is kept with Orbax under `FOLDER/state`: weights, Adam's moments, dead counters, threshold, and
the step, from which the batches follow. A resumed run gives the same bits as one that was never stopped (on
a CPU).
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.saes.sae import SAE, Info, unscale_input
from amortjax.training import modules, step
from amortjax.training.batches import MEMORY, Batches, Rows, scale_and_centre
from amortjax.training.recipe import Recipe

SAMPLE = 32_768


@dataclasses.dataclass
class Meter:
    """Means over the steps since the last log line. Reports stay on the device until they are asked for."""

    reports: list[step.Report] = dataclasses.field(default_factory=list)
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def read(self, batch_size: int) -> dict[str, float]:
        sums = [float(np.sum(np.asarray(part, np.float64))) for part in zip(*self.reports, strict=True)]
        loss, error, spread, l0, _ = sums
        n, seconds = len(self.reports), time.perf_counter() - self.since
        dead = float(self.reports[-1].dead)
        self.reports, self.since = [], time.perf_counter()
        return {
            "loss": loss / n, "fvu": error / spread, "l0": l0 / (n * batch_size), "dead": dead,
            "tokens_per_second": n * batch_size / seconds,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training: the SAE in raw units, and its last log line."""

    sae: SAE
    summary: dict[str, float]


def train(
    store: Rows,
    recipe: Recipe,
    folder: Path,
    *,
    checkpoint_every: int = 500,
    log_every: int = 50,
    on_step: Callable[[int, step.State], Any] | None = None,
    memory: int | None = None,
) -> Trained:
    """Trains on the store's sae_train rows. Resumes from `folder/state`; log lines go to
    `folder/metrics.jsonl`.

    `on_step(steps done, state)` is called after each step, after its checkpoint. Raises AmortjaxError if
    activations or loss are not finite, or if `folder` holds the state of another recipe.
    """
    recipe.check()
    batches = Batches(store, recipe.batch_size, recipe.seed, MEMORY if memory is None else memory)
    scale, centre, mean = scale_and_centre(batches.sample(SAMPLE), recipe.b_dec_init)
    graph, weights = modules.split(modules.start(recipe, centre / scale))
    run = _Run(graph, recipe, batches, scale, jnp.asarray(mean / scale), folder, log_every)
    with _manager(folder / "state") as manager:
        state = _restore(manager, step.init(weights, recipe), recipe, folder)
        last: dict[str, float] = {}
        for after, line in run.steps(state, checkpoint_every):
            state, last, done = after, line, int(after.step)
            if done % checkpoint_every == 0 and done < recipe.steps:
                _save(manager, done, state, recipe)
            if on_step:
                on_step(done, state)
    return Trained(_finished(graph, state, recipe, scale), last)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from step to step."""

    graph: Any
    recipe: Recipe
    batches: Batches
    scale: float
    mean: jax.Array  # (D,), scaled
    folder: Path
    log_every: int

    def steps(
        self, state: step.State, checkpoint_every: int
    ) -> Iterator[tuple[step.State, dict[str, float]]]:
        """The state after each step that is left, and the last log line."""
        recipe, first, meter = self.recipe, int(state.step), Meter()
        line: dict[str, float] = {}
        log = _lines_until(self.folder / "metrics.jsonl", first)
        dead = int(np.sum(np.asarray(state.silent) >= recipe.dead_after))
        # While nothing is dead the auxiliary loss is zero: a step compiled without it is faster. Steps do not
        # depend on the seed, and two seeds should share one compilation.
        full = dataclasses.replace(recipe, seed=0)
        plain = dataclasses.replace(full, auxk=0.0)
        with _progress(recipe, first) as bar:
            for i in range(first, recipe.steps):
                x = jnp.asarray(self.batches[i] / np.float32(self.scale))
                now = full if dead else plain
                state, report = step.train_step(state, x, self.mean, graph=self.graph, recipe=now)
                meter.reports.append(report)
                dead, done = int(report.dead), i + 1
                # Before a checkpoint too, so that what is saved has been seen to be finite.
                if done % self.log_every == 0 or done % checkpoint_every == 0 or done == recipe.steps:
                    line = {"step": done, **_finite(meter.read(recipe.batch_size), done)}
                    log.append(json.dumps(line))
                    write_atomically(self.folder / "metrics.jsonl", "\n".join(log) + "\n")
                    bar.set_postfix_str(_short(line), refresh=False)
                bar.update()
                yield state, line


def _progress(recipe: Recipe, first: int) -> tqdm:
    # A log file gets a line now and then, not one per step.
    wait = 0.2 if sys.stderr.isatty() else 30
    text = f"training {recipe.variant}"
    return tqdm(total=recipe.steps, initial=first, unit=" steps", desc=text, mininterval=wait)


def _finished(graph: Any, state: step.State, recipe: Recipe, scale: float) -> SAE:
    """The SAE that acts on raw activations."""
    sae = modules.as_sae(graph, state.weights)
    if sae.batch_rule and float(state.threshold) >= 0:
        sae = dataclasses.replace(sae, extra={"threshold": state.threshold}, batch_rule=False)
    # |e|^2 + lam * sum z ||W|| in scaled units is, times s^2, |e|^2 + (lam * s) * sum z ||W|| in raw ones.
    lam = recipe.lam * scale if recipe.lam is not None and recipe.variant == "standard" else None
    sae = unscale_input(sae, scale)
    return dataclasses.replace(
        sae, info=Info(lam_train=lam, notes=(f"trained on inputs divided by {scale:.7g}",))
    )


def _finite(line: dict[str, float], done: int) -> dict[str, float]:
    if not np.isfinite(line["loss"]):
        raise AmortjaxError(
            f"training diverged: the loss is not finite within the steps before step {done}. Lower --lr; "
            "a run with the same --out goes on from the last checkpoint only if its flags are the same"
        )
    return line


def _short(line: dict[str, float]) -> str:
    return (
        f"loss {line['loss']:.4f}, FVU {line['fvu']:.4f}, L0 {line['l0']:.1f}, dead {line['dead']:.0f}, "
        f"{line['tokens_per_second']:,.0f} tokens/s"
    )


def _lines_until(path: Path, first: int) -> list[str]:
    """Lines of the log up to step `first`: what a killed run wrote after its last checkpoint is dropped."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line for line in lines if json.loads(line)["step"] <= first]


def _manager(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _save(manager: ocp.CheckpointManager, done: int, state: step.State, recipe: Recipe) -> None:
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state._asdict()),  # pyright: ignore[reportCallIssue]
        recipe=ocp.args.JsonSave(dataclasses.asdict(recipe)),  # pyright: ignore[reportCallIssue]
    )
    manager.save(done, args=items)
    manager.wait_until_finished()


def _restore(manager: ocp.CheckpointManager, start: step.State, recipe: Recipe, folder: Path) -> step.State:
    """The last saved state, or `start`."""
    last = manager.latest_step()
    if last is None:
        return start
    saved = manager.restore(last, args=ocp.args.Composite(recipe=ocp.args.JsonRestore()))["recipe"]  # pyright: ignore[reportCallIssue]
    for name, value in dataclasses.asdict(recipe).items():
        if saved.get(name) != value:
            raise AmortjaxError(
                f"{folder}/state is of a training with --{name}={saved.get(name)}, not {value}: use "
                "another --out, or delete that folder to start again"
            )
    items = ocp.args.Composite(state=ocp.args.StandardRestore(start._asdict()))  # pyright: ignore[reportCallIssue]
    return step.State(**manager.restore(last, args=items)["state"])
