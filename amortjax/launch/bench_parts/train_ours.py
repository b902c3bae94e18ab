"""This side of bench_training: the trainer's own steps, as `training.loop` calls them."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.launch.bench_parts.train_data import Data
from amortjax.launch.bench_parts.train_options import RANKED, Plan
from amortjax.launch.bench_parts.train_score import Codes
from amortjax.saes.encoders import encode
from amortjax.saes.sae import SAE
from amortjax.training import modules, step
from amortjax.training.batches import scale_and_centre

CHUNK = 1024  # rows encoded at once


class Ours:
    """A training in memory: the state, and the batches it is fed with."""

    def __init__(self, plan: Plan, data: Data) -> None:
        recipe = plan.recipe()
        self.graph, weights = modules.split(modules.start(recipe, _centre(plan, data)))
        self.state = step.init(weights, recipe)
        self.recipe, self.mean = recipe, jnp.asarray(data.mean)
        self.rows, self.order = np.load(data.rows, mmap_mode="r"), np.load(data.order, mmap_mode="r")
        # As the loop does: steps do not depend on the seed, and all seeds share one compilation.
        self._compiled = dataclasses.replace(recipe, seed=0)

    def write_weights(self, path: Path) -> None:
        """The first w_enc and w_dec, (M, D) each, for the other side to start from."""
        weights = self.state.weights
        np.savez(path, w_enc=np.asarray(weights["w_enc"]), w_dec=np.asarray(weights["w_dec"]))

    @property
    def done(self) -> int:
        return int(self.state.step)

    @property
    def dead(self) -> int:
        return int(np.sum(np.asarray(self.state.silent) >= self.recipe.dead_after))

    def train(self, steps: int) -> float:
        """Seconds of so many steps, fetching the batches included. AmortjaxError if the loss is not finite."""
        first, report = self.done, None
        start = time.perf_counter()
        for i in range(first, first + steps):
            x = jnp.asarray(self.rows[self.order[i]])
            self.state, report = step.train_step(
                self.state, x, self.mean, graph=self.graph, recipe=self._compiled
            )
        jax.block_until_ready((self.state, report))
        seconds = time.perf_counter() - start
        if report is not None and not np.isfinite(report.loss):
            raise AmortjaxError(f"{self.recipe.variant} diverged before step {first + steps}: lower --lr")
        return seconds

    def quieten(self, latents: np.ndarray, factor: float) -> None:
        """Shrinks the encoders of some latents by `factor`, and counts these latents as dead."""
        weights: dict[str, Any] = dict(self.state.weights)
        weights["w_enc"] = weights["w_enc"].at[latents].multiply(factor)
        silent = self.state.silent.at[latents].set(self.recipe.dead_after)
        self.state = self.state._replace(weights=weights, silent=silent)

    def encode(self, x: np.ndarray) -> Codes:
        """The non-zero codes of x (N, D) as the finished SAE has them."""
        sae, parts = self._sae(), []
        for first in range(0, len(x), CHUNK):
            z = np.asarray(_encode(sae, jnp.asarray(x[first : first + CHUNK])))
            rows, latents = np.nonzero(z)
            parts.append((rows + first, latents, z[rows, latents]))
        rows, latents, values = map(np.concatenate, zip(*parts, strict=True))
        return Codes(rows, latents, values, np.asarray(sae.W_dec), np.asarray(sae.b_dec))

    def _sae(self) -> SAE:
        sae = modules.as_sae(self.graph, self.state.weights)
        if not sae.batch_rule or float(self.state.threshold) < 0:
            return sae
        return dataclasses.replace(sae, extra={"threshold": self.state.threshold}, batch_rule=False)


def _centre(plan: Plan, data: Data) -> np.ndarray:
    """Where b_dec starts (D,): for the ranked variants, as there, the geometric median of the first batch."""
    if plan.variant not in RANKED:
        return data.mean
    first = np.load(data.rows, mmap_mode="r")[np.load(data.order, mmap_mode="r")[0]]
    return scale_and_centre(first, "geometric_median")[1]


_encode = jax.jit(encode)
