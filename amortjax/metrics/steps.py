"""Semi-amortized steps: ISTA from the encoder's code, or from ALISTA's, measured after several numbers of steps.

At one lambda the numbers of steps from one start are places on one way, which is gone once: a `Walk` goes on from where
fewer steps ended. At equal L0 each number of steps has a lambda, and so a way, of its own.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.files import write_atomically
from amortjax.inference import unrolled
from amortjax.metrics import kept, matching, streaming, uncertainty
from amortjax.metrics.bench import Bench
from amortjax.metrics.matching import Setting
from amortjax.metrics.measure import Knobs
from amortjax.metrics.plan import Plan, pose_subject
from amortjax.metrics.walk import SEMI, Point, Walk, jaccard, overlaps
from amortjax.saes.sae import SAE

COMPARED = (
    "nmse",
    "l0",
    "dead_half",
    "dense@0.1",
    "df1",
    "absorption",
    "absorption_excess",
)  # with the optimum
RISE = 1e-6  # relative rise of a token's P from which it is no rounding of float32 codes
BATCH = 128  # tokens of a step of ALISTA's training


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to sweep over. `alista_layers` and `alista_fit_steps`: of the network that the start "alista" is."""

    steps: tuple[int, ...]
    starts: tuple[str, ...] = ("encoder", "alista")
    alista_layers: int = 5
    alista_fit_steps: int = 300


class StepBench:
    """One SAE's sweep. Measurements, calibrations and ALISTA's constants are kept in `folder`."""

    def __init__(
        self, sae: SAE, acts: Any, plan: Plan, sweep: Sweep, folder: Path | None, progress: bool = False
    ) -> None:
        subject = dataclasses.replace(pose_subject(sae, acts, plan), progress=progress)
        given = {field.name: getattr(subject, field.name) for field in dataclasses.fields(subject)}
        self.walk, self.plan, self.sweep, self.folder = Walk(**given), plan, sweep, folder
        self.bench = Bench(self.walk, plan, folder, progress)
        self.target = float(plan.target_l0 or self.walk.calibration[1].l0.mean())
        bound = self.walk.problem.rank_bound
        if not self.target > 0:
            raise AmortjaxError(
                f"{sae.info.name}: its encoder fires on no calibration token: a wrong layer, hook or scale?"
            )
        if self.target > bound:
            raise AmortjaxError(
                f"{sae.info.name}: no optimum has an L0 of {self.target:g}: at most rank(W) = {bound} latents can be "
                "active. Give a smaller --target_l0."
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The optimum, then each start's steps, under each condition: rows of `report.schema` with `start`, `forwards`
        and how the supports change."""
        self.star = self.bench.calibrated("star", lambda: matching.star(self.walk, self.target))
        self.best = Point(self.walk, "optimal", Knobs(self.star.lam))
        self.encoder = Point(self.walk, "amortized", Knobs(None))
        for condition in self.plan.conditions:
            best = self.bench.measurement("optimal", self.best.knobs, None, "steps")
            setting = self.setting(condition, self.best, self.bench)
            base = self.bench.measurement(
                "amortized", self.encoder_knobs(condition), self.known(condition), "steps"
            )
            row = self.bench.row(condition, "optimal", setting, best, base.estimates)
            yield row | self.churn(self.best, None, best)
            for start in self.sweep.starts:
                yield from self.along(condition, start, base, best)

    def along(self, condition: str, start: str, base: kept.Kept, best: kept.Kept) -> Iterator[dict[str, Any]]:
        """The rows of one start."""
        before: tuple[Point, kept.Kept, int] | None = None
        for steps in sorted(set(self.sweep.steps)):
            point, setting, bench = self.point(condition, start, steps)
            found = bench.measurement(point.mode, point.knobs, self.known(condition), "steps")
            row = bench.row(condition, point.mode, setting, found, base.estimates)
            layers = self.sweep.alista_layers
            # An encoder forward is 2 D M operations a token, a step or a layer twice that; from zero, a layer is one.
            row |= {"start": start, "steps": steps}
            row["forwards"] = 2 * steps + (1 if start == "encoder" else 2 * layers - 1)
            near = {name: best.estimates[name] for name in COMPARED if name in best.estimates}
            row |= uncertainty.flatten_differences(found.estimates, near, "optimal")
            row |= self.churn(point, before and before[0], found)
            if before and condition == "same_lambda":
                row |= progress(before[1], found, steps - before[2])
            yield row
            before = point, found, steps
            self.walk.forget_all_but(point.place, self.best.place, self.encoder.place)

    # --- what is measured ---

    def point(self, condition: str, start: str, steps: int) -> tuple[Point, Setting, Bench]:
        if start == "encoder" and steps == 0:
            point = self.encoder._replace(knobs=self.encoder_knobs(condition))
            return point, self.setting(condition, point, self.bench), self.bench
        constants = self.constants() if start == "alista" else ()
        options = dataclasses.replace(self.plan.options, semi_steps=steps, alista=constants)
        walk = dataclasses.replace(self.walk, options=options)
        bench = Bench(walk, dataclasses.replace(self.plan, options=options), self.folder, self.bench.progress)
        point = Point(walk, SEMI, Knobs(self.star.lam))
        setting = self.setting(condition, point, bench)
        return point._replace(knobs=setting.knobs), setting, bench

    def setting(self, condition: str, point: Point, bench: Bench) -> Setting:
        walk, mode = point.walk, point.mode
        if condition == "same_lambda":
            columns = {"l0_target": self.target, "l0_calibration": self.star.achieved}
            found = matching.at_lambda(walk, mode, self.star.lam, columns)
            return dataclasses.replace(found, flags=matching.missed(self.star))
        find = lambda: matching.at_l0(walk, mode, self.target, self.star)  # noqa: E731
        return bench.calibrated(f"same_l0 {mode}", find)

    def encoder_knobs(self, condition: str) -> Knobs:
        return Knobs(self.star.lam if condition == "same_lambda" else None)

    def known(self, condition: str) -> Any:
        """The optimum's proof, where others are measured against it."""
        if condition != "same_lambda":
            return None
        return self.bench.measurement("optimal", self.best.knobs, None, "steps").proof

    def constants(self) -> tuple[tuple[float, float], ...]:
        """Of ALISTA's layers, trained on the calibration rows at lambda*; kept."""
        sweep, plan = self.sweep, self.plan
        about = {"lam": self.star.lam, "layers": sweep.alista_layers, "fit": sweep.alista_fit_steps}
        about |= {"batch": BATCH, "seed": plan.seed}
        path = self.path("alista", about)
        known = _read(path)
        if _are_constants(known, sweep.alista_layers):
            return tuple((float(gamma), float(theta)) for gamma, theta in known)
        t, problem = self.walk.calibration[0], self.walk.problem
        network = unrolled.init_alista(problem, sweep.alista_layers)
        with _bar(sweep.alista_fit_steps, not self.bench.progress) as bar:
            given = {
                "steps": sweep.alista_fit_steps,
                "lr": 3e-2,
                "batch": BATCH,
                "seed": plan.seed,
                "bar": bar,
            }
            found = unrolled.constants(unrolled.fit(problem, t, self.star.lam, network, **given))
        if not np.isfinite(found).all():
            raise AmortjaxError("training ALISTA diverged: --alista_fit_steps=0 leaves it untrained")
        if path:
            write_atomically(path, json.dumps(found))
        return found

    def churn(self, point: Point, before: Point | None, found: kept.Kept) -> dict[str, Any]:
        """`jaccard_...` of the support with the encoder's, the optimum's and that of the steps `before`."""
        others = {"encoder": self.encoder, "optimal": self.best} | ({"previous": before} if before else {})
        places = {name: [other.place, other.knobs] for name, other in others.items()}
        about = {"own": [point.place, point.knobs], "others": places}
        path = self.path("overlaps", about | {"tol": self.plan.options.tol})
        known = _read(path)
        if _are_overlaps(known, others):
            sums = {name: np.asarray(part, float) for name, part in known.items()}
        else:
            sums = overlaps(point, others)
            if path:
                write_atomically(path, json.dumps({name: part.tolist() for name, part in sums.items()}))
        weights = None
        if found.values["n_documents"] >= uncertainty.MIN_DOCUMENTS:
            tokens = self.walk.acts.doc_ids[self.walk.test_rows]
            counts = np.bincount(streaming.block_of(tokens), minlength=streaming.N_BLOCKS)
            weights = uncertainty.resample_weights(counts, seed=self.plan.seed)
        return uncertainty.flatten({f"jaccard_{name}": jaccard(part, weights) for name, part in sums.items()})

    def path(self, name: str, about: dict[str, Any]) -> Path | None:
        key = kept.key_of(self.bench.identity | about)
        return self.folder / f"{name}_{key}.json" if self.folder else None


def progress(before: kept.Kept, found: kept.Kept, steps: int) -> dict[str, float | None]:
    """`rises`: share of tokens whose P rose in these steps; `decay`: the factor of the mean gap, a step."""
    p, q = before.proof.objective, found.proof.objective
    gaps = [one.values.get("gap_upper") for one in (before, found)]
    decay = (gaps[1] / gaps[0]) ** (1 / steps) if gaps[0] and gaps[1] else None
    return {"rises": float(np.mean(q > p * (1 + RISE))), "decay": decay}


def _bar(total: int, silent: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="training ALISTA", unit="step", leave=False, disable=silent)


def _read(path: Path | None) -> Any:
    """What was kept, or None: a file that can't be read is made again."""
    try:
        return json.loads(path.read_text()) if path else None
    except (OSError, ValueError):
        return None


def _are_constants(known: Any, layers: int) -> bool:
    try:
        return np.shape(known) == (layers, 2) and bool(np.isfinite(np.asarray(known, float)).all())
    except (TypeError, ValueError):
        return False


def _are_overlaps(known: Any, names: Any) -> bool:
    try:
        shapes = {np.asarray(part, float).shape for part in known.values()}
        return set(known) == set(names) and shapes == {(2, streaming.N_BLOCKS)}
    except (AttributeError, TypeError, ValueError):
        return False
