"""Training from start, or from the last checkpoint, to SAEs in raw units: one, or several on the same batches.

The state is kept with Orbax in one checkpoint for all of them: weights, Adam's moments, dead counters,
thresholds, and the place in the data. A resumed run gives the same bits as one that was never stopped (on a
CPU).
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from amortjax.errors import AmortjaxError
from amortjax.saes.sae import SAE, Info, unscale_input
from amortjax.training import devices, modules, saved, step, watch
from amortjax.training.batches import scale_and_centre
from amortjax.training.feed import Feed, Source
from amortjax.training.log import Log
from amortjax.training.meter import Meter
from amortjax.training.recipe import Recipe
from amortjax.training.resample import resample

SAMPLE = 32_768
HELD_OUT = 8_192
GAP_ROWS = 512
# Arrays of an SAE to go on from that nothing computes with: see `training.loca.regroup`.
ORIGINS = ("origin", "avar")


@dataclasses.dataclass(frozen=True)
class Job:
    """One SAE to train: its recipe, the folder of its log and snapshots, and the SAE to go on from."""

    recipe: Recipe
    folder: Path
    init: SAE | None = None

    @property
    def name(self) -> str:
        return self.folder.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How often, in steps, things happen that change no weight; 0: never."""

    checkpoint_every: int = 500
    log_every: int = 50
    eval_every: int = 250
    gap_every: int = 0
    # Shares of the steps after which a snapshot of the SAE is written.
    save_at: tuple[float, ...] = ()
    tensorboard: bool = False


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training: the SAE in raw units, and its last log line."""

    sae: SAE
    summary: dict[str, float]


def train(
    source: Source,
    jobs: Sequence[Job],
    state_folder: Path,
    pace: Pace | None = None,
    on_step: Callable[[int, list[step.State]], Any] | None = None,
) -> list[Trained]:
    """Trains every job on the source's batches, in one pass. Resumes from `state_folder`.

    `on_step(steps done, states)` is called after each step, after its checkpoint. Raises AmortjaxError if
    activations or a loss are not finite, or if `state_folder` holds the state of another training.
    """
    pace, same = pace or Pace(), _common(jobs)
    with (
        saved.Checkpoints(state_folder, jobs, source.manifest) as checkpoints,
        Feed(source, stop=same.steps) as feed,
    ):
        found = checkpoints.header()
        units = found.units if found else _units(source, jobs)
        held = source.held_out(HELD_OUT)
        rows = None if held is None else held[0]
        runs = [_Run(job, unit, pace, rows, source.manifest) for job, unit in zip(jobs, units, strict=True)]
        first = found.step if found else 0
        if found:
            print(f"{state_folder}: going on after step {first}", file=sys.stderr)
            feed.restore(found.feed)
            for run, state in zip(runs, checkpoints.states([run.state for run in runs]), strict=True):
                run.state = state
        with contextlib.ExitStack() as logs, _progress(jobs, first) as bar:
            for run in runs:
                logs.enter_context(run.begin(first))
            for i, x in feed:
                batch, done = devices.spread(x), i + 1
                for run in runs:
                    run.step(batch, done)
                if pace.checkpoint_every and done % pace.checkpoint_every == 0 and done < same.steps:
                    checkpoints.save(done, [run.state for run in runs], units, feed.state())
                if runs[0].line:
                    bar.set_postfix_str(_short(runs[0].line), refresh=False)
                bar.update()
                if on_step:
                    on_step(done, [run.state for run in runs])
    return [Trained(run.finished(), run.line) for run in runs]


def _common(jobs: Sequence[Job]) -> Recipe:
    """A recipe for what the jobs share, or AmortjaxError: batches are the same for all."""
    first = jobs[0].recipe.check()
    for job in jobs[1:]:
        recipe = job.recipe.check()
        for flag in ("steps", "batch_size", "order_seed"):
            if getattr(recipe, flag) != getattr(first, flag):
                name = "data_seed" if flag == "order_seed" else flag
                raise AmortjaxError(
                    f"{job.name}: --{name} is {getattr(recipe, flag)}, but {getattr(first, flag)} in "
                    f"{jobs[0].name}; SAEs trained in one pass share steps, batches and their order (for several "
                    "--seed give one --data_seed)"
                )
    if first.batch_size % jax.device_count():
        raise AmortjaxError(
            f"--batch_size={first.batch_size} does not divide by the {jax.device_count()} devices: use a multiple"
        )
    return first


def _units(source: Source, jobs: Sequence[Job]) -> list[saved.Units]:
    """Scale, centre and mean of the training rows, raw, as each job's recipe wants them."""
    sample = source.sample(SAMPLE)
    return [saved.Units(*scale_and_centre(sample, job.recipe.b_dec_init, job.recipe.scale)) for job in jobs]


class _Run:
    """One SAE on its way."""

    def __init__(
        self,
        job: Job,
        units: saved.Units,
        pace: Pace,
        held_out: np.ndarray | None,
        manifest: Mapping[str, Any],
    ):
        self.job, self.recipe, self.units, self.pace = job, job.recipe, units, pace
        self.manifest = manifest
        recipe, scale = job.recipe, units.scale
        module = (
            modules.start(recipe, units.centre / scale)
            if job.init is None
            else modules.from_sae(job.init, recipe, scale)
        )
        self.graph, weights = modules.split(module)
        # Copies, because steps overwrite their state and an SAE to go on from belongs to its owner.
        weights = jax.tree.map(jnp.array, weights)
        self.state = devices.everywhere(step.init(weights, recipe))
        # Steps do not depend on the seeds, and several of them should share one compilation.
        self.compiled = dataclasses.replace(recipe, seed=0, data_seed=0)
        self.mean = jnp.asarray(units.mean / scale, jnp.float32)
        self.held_out = None if held_out is None else jnp.asarray(held_out / np.float32(scale))
        self.meter, self.line, self.lam = Meter(), {}, None
        self.snapshots = {round(share * recipe.steps) for share in pace.save_at}

    def begin(self, first: int) -> Log:
        """Opens the log, from step `first` on."""
        self.log = Log(self.job.folder, first, self.pace.tensorboard)
        if first == 0:
            saved.clear_steps(self.job.folder / "checkpoints")  # of a run that is not gone on with
        if first == 0 and 0 in self.snapshots:
            self._snapshot(0)
        return self.log

    def step(self, x: jax.Array, done: int) -> None:
        x, recipe = x / np.float32(self.units.scale), self.recipe
        self.state, report = step.train_step(self.state, x, self.mean, graph=self.graph, recipe=self.compiled)
        self.meter.add(report)
        # Not while the rate falls: what is made anew then would be saved half-trained.
        if (
            recipe.resample_every
            and done % recipe.resample_every == 0
            and done < recipe.decay_from * recipe.steps
        ):
            self.state = resample(self.state, x, recipe.seed, graph=self.graph, recipe=self.compiled)
        pace = self.pace
        # Before a checkpoint too, so that what is saved has been seen to be finite.
        if self._due(done, pace.log_every, pace.eval_every, pace.gap_every, pace.checkpoint_every):
            self._write(done)
        if done in self.snapshots and done < recipe.steps:
            self._snapshot(done)

    def _due(self, done: int, *every: int) -> bool:
        return done == self.recipe.steps or any(n and done % n == 0 for n in every)

    def _write(self, done: int) -> None:
        line = self.meter.read(self.recipe.batch_size, done, self.job.name)
        if self.held_out is not None:
            sae = self._scaled()
            if self.pace.eval_every and self._due(done, self.pace.eval_every):
                line |= watch.held_out(sae, self.held_out, self.mean)
            if self.pace.gap_every and self._due(done, self.pace.gap_every):
                line |= watch.gap(sae, self.held_out[:GAP_ROWS], start=self.lam)
                self.lam = line["val_lam"]
        self.line = self.log.write(done, line)
        self.meter.start()  # what measuring took is not training's

    def _scaled(self) -> SAE:
        """The SAE as it is, of scaled inputs."""
        sae = modules.as_sae(self.graph, self.state.weights)
        if sae.batch_rule and float(self.state.threshold) >= 0:
            return dataclasses.replace(sae, extra={"threshold": self.state.threshold}, batch_rule=False)
        return sae

    def finished(self) -> SAE:
        """The SAE that acts on raw activations, with the factor it was scaled by."""
        scale, recipe = self.units.scale, self.recipe
        sae = unscale_input(self._scaled(), scale)
        # |e|^2 + lam * sum z ||W|| in scaled units is, times s^2, |e|^2 + (lam * s) * sum z ||W|| in raw ones.
        lasso = recipe.variant in ("standard", "april") or (
            recipe.variant == "mlp" and recipe.lam is not None
        )
        info = Info(
            name=self.job.name,
            model_name=str(self.manifest.get("model_name", "")),
            layer_index=self.manifest.get("layer_index"),
            hook=str(self.manifest.get("hook", "")),
            trained_on=str(self.manifest.get("corpus_fingerprint", "")),
            lam_train=recipe.lam * scale if lasso and recipe.lam is not None else None,
            notes=(f"trained on inputs divided by {scale:.7g}",),
        )
        records = {"norm_factor": jnp.asarray(scale, jnp.float32)}
        if self.job.init is not None and sae.groups == self.job.init.groups:
            # Latents keep their places, so what is known of them from before stays true.
            records |= {name: self.job.init.extra[name] for name in ORIGINS if name in self.job.init.extra}
        return dataclasses.replace(sae, extra=sae.extra | records, info=info)

    def _snapshot(self, done: int) -> None:
        saved.snapshot(self.finished(), self.job.folder, done)


def _progress(jobs: Sequence[Job], first: int) -> tqdm:
    # A log file gets a line now and then, not one per step.
    wait = 0.2 if sys.stderr.isatty() else 30
    variant, more = jobs[0].recipe.variant, len(jobs) - 1
    text = f"training {variant}" + (f" and {more} more" if more else "")
    return tqdm(total=jobs[0].recipe.steps, initial=first, unit=" steps", desc=text, mininterval=wait)


def _short(line: dict[str, Any]) -> str:
    held = f", held-out FVU {line['val_fvu']:.4f}" if line.get("val_fvu") is not None else ""
    return (
        f"loss {line['loss']:.4f}, FVU {line['fvu']:.4f}{held}, L0 {line['l0']:.1f}, dead {line['dead']:.0f}, "
        f"{line['tokens_per_second']:,.0f} tokens/s"
    )
