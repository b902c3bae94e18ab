"""Trains a dictionary of searched codes (`training.lca_dictionary`) on a source's batches: logged, resumable.

State, log and batches are kept as `training.loop` keeps them; a killed run goes on from the last checkpoint.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from amortjax.errors import AmortjaxError
from amortjax.training import lca_dictionary, saved
from amortjax.training.batches import scale_and_centre
from amortjax.training.feed import Feed, Source
from amortjax.training.lca_dictionary import LcaRecipe
from amortjax.training.log import Log
from amortjax.training.loop import SAMPLE, Pace, Trained
from amortjax.training.meter import Meter

HELD_OUT = 512  # rows on which the optimum is measured


class _Job(NamedTuple):
    recipe: LcaRecipe
    init: None = None


def units(source: Source, literal: bool = False) -> saved.Units:
    """Scale, centre and mean of the training rows, raw; the released training has no units of its own."""
    found = saved.Units(*scale_and_centre(source.sample(SAMPLE), "mean", "none" if literal else "centred"))
    return found._replace(centre=np.zeros_like(found.centre)) if literal else found


def train(source: Source, recipe: LcaRecipe, folder: Path, state: Path, pace: Pace) -> Trained:
    """The trained dictionary as an SAE in raw units, and its last log line. Resumes from `state`.

    AmortjaxError if activations or weights are not finite, or if `state` is of another training.
    """
    jobs = [_Job(recipe.check())]
    with (
        saved.Checkpoints(state, jobs, source.manifest) as checkpoints,
        Feed(source, stop=recipe.steps) as feed,
    ):
        found = checkpoints.header()
        run = _Run(recipe, found.units[0] if found else units(source, recipe.literal), source, folder.name)
        begun = found.step if found else 0
        if found:
            print(f"{state}: going on after step {begun}", file=sys.stderr)
            feed.restore(found.feed)
            run.state = checkpoints.states([run.state])[0]
        wait = 0.2 if sys.stderr.isatty() else 30
        bar = tqdm(
            total=recipe.steps,
            initial=begun,
            unit=" steps",
            desc="training the LCA dictionary",
            mininterval=wait,
        )
        with Log(folder, begun, pace.tensorboard) as log, bar:
            for i, x in feed:
                run.step(x, i + 1)
                if _due(recipe, i + 1, pace.log_every, pace.eval_every, pace.checkpoint_every):
                    run.write(log, i + 1, _due(recipe, i + 1, pace.eval_every) and pace.eval_every > 0)
                    bar.set_postfix_str(_short(run.line), refresh=False)
                if _due(recipe, i + 1, pace.checkpoint_every) and i + 1 < recipe.steps:
                    checkpoints.save(i + 1, [run.state], [run.units], feed.state())
                bar.update()
    sae = lca_dictionary.as_sae(run.state, recipe, run.units.scale, source.manifest, folder.name)
    return Trained(sae, run.line)


def _due(recipe: LcaRecipe, done: int, *every: int) -> bool:
    return done == recipe.steps or any(n and done % n == 0 for n in every)


def _short(line: dict[str, Any]) -> str:
    return f"loss {line['loss']:.4f}, FVU {line['fvu']:.4f}, L0 {line['l0']:.1f}, silent {line['dead']:.0f}"


class _Run:
    """A dictionary on its way."""

    def __init__(self, recipe: LcaRecipe, units: saved.Units, source: Source, name: str) -> None:
        self.recipe, self.units, self.name = recipe, units, name
        scale = np.float32(units.scale)
        self.state = lca_dictionary.first(recipe, units.centre / scale)
        self.mean = np.asarray(units.mean / scale, np.float32)
        held = source.held_out(HELD_OUT)
        self.held = None if held is None else held[0] / scale
        self.meter, self.line = Meter(), {}

    def step(self, x: np.ndarray, done: int) -> None:
        recipe, x = self.recipe, np.asarray(x / np.float32(self.units.scale))
        self.state, report, each = lca_dictionary.advance(self.state, x, self.mean, recipe)
        self.meter.add(report)
        if recipe.resample_every and done % recipe.resample_every == 0 and done < recipe.steps:
            self.state = lca_dictionary.resample(self.state, x, each, recipe=recipe)

    def write(self, log: Log, done: int, look: bool) -> None:
        line = self.meter.read(self.recipe.batch_size, done, self.name)
        line["iterations"] = lca_dictionary.iterations(self.state)
        if look and self.held is not None:
            line |= self._held_out(self.held)
        self.line = log.write(done, line)
        self.meter.start()

    def _held_out(self, x: np.ndarray) -> dict[str, float]:
        """FVU and L0 of searched codes of x (n, D), scaled (of certified ones if the search is the released)."""
        weights = self.state.weights
        w_dec, b_dec = np.asarray(weights["w_dec"], np.float64), np.asarray(weights["b_dec"], np.float64)
        if not (np.isfinite(w_dec).all() and np.isfinite(b_dec).all()):
            raise AmortjaxError(
                f"{self.name}: training diverged, weights are not finite; the last checkpoint is kept. Lower the "
                "rate, with another --out"
            )
        recipe = self.recipe
        how = dataclasses.replace(recipe, codes="certified") if recipe.literal else recipe
        codes, _ = lca_dictionary.search(weights["w_dec"], np.asarray(x - b_dec, np.float32), how)
        error = np.sum(np.square(x - b_dec - codes.csr(np.float64) @ w_dec))
        return {"val_fvu": float(error / np.sum(np.square(x - self.mean))), "val_l0": float(codes.l0.mean())}
