"""The scenarios under equal terms: fresh data for every seed, equal training FLOPs, certified codes beside each method.

What `literal` leaves open: how far are an encoder's codes from the optimum of their own objective on their own
dictionary, (P - P*) / P*; what do exact codes change in what is found; does a warm start from the encoder's codes help?
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.metrics import flops
from amortjax.synthetic import coding, scenarios
from amortjax.synthetic.encoders import init, stacked
from amortjax.synthetic.generators import Data
from amortjax.synthetic.scenarios import Point, Setup
from amortjax.synthetic.scoring import Row, cost, rows_of
from amortjax.synthetic.torch_random import TorchStream
from amortjax.synthetic.training import Numbers

FISTA_STEPS, ISTA_STEPS = 100, 200
ITO_STEPS = (100, 300, 1000, 3000, 10_000)  # iterations of the codes' optimiser that are shown on the way
STARTS = ("warm", "random", "released")


class Optimum(NamedTuple):
    """Of each seed: certified codes (S, n, sources), mean P* (S,) and mean duality gap (S,), half form, and the mean
    rounds that a code took (S,)."""

    codes: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    rounds: np.ndarray


def budget_of(setup: Setup, budget: float) -> float:
    """Training FLOPs that every method may spend: `budget`, or, if 0, the SAE's in `setup.steps`."""
    return budget or float(cost(setup, "sae", setup.steps)["train_flops"])


def steps_of(setup: Setup, method: str, budget: float) -> int:
    """How many training steps of a method the budget pays for, at least one."""
    trained = "sae" if method == "sae_ito" else method
    steps = max(1, round(budget / cost(setup, trained, 1)["train_flops"]))
    if steps >= 2**31:
        raise AmortjaxError(f"--budget={budget:g}: {steps:.1e} steps of {method}, more than can be counted")
    return steps


def data_of(setup: Setup) -> list[Data]:
    """Data of each seed: unlike the released runs of the known scenarios, these differ in data and in weights."""
    return [setup.data(run) for run in range(setup.seeds)]


def optimum(setup: Setup, data: list[Data], dictionaries: Any = None) -> Optimum:
    """On the true dictionaries, or on those of each seed (S, sources, dimensions)."""
    parts = []
    for run, one in enumerate(data):
        atoms = one.dictionary if dictionaries is None else dictionaries[run]
        found = coding.optimum(one.x_test, atoms, setup.lam_half)
        cost = coding.half_objective(found.codes, one.x_test, atoms, setup.lam_half).mean()
        parts.append((found.codes, cost, found.gap.mean(), found.rounds.mean()))
    return Optimum(*(np.stack(part) for part in zip(*parts, strict=True)))


def rows(
    setup: Setup, method: str, budget: float, n_points: int, moved: Callable[[int], Any] = lambda n: None
) -> Iterator[Row]:
    """A method's curve at `n_points` log points; then, on the dictionary it ends with, the certified codes and the
    solvers beside it. `method` is sae, mlpWIDTH or sparse_coding; the SAE brings inference-time optimisation."""
    data = data_of(setup)
    steps = steps_of(setup, method, budget_of(setup, budget))
    at = sorted({max(round(steps * (i + 1) / n_points) - 1, 0) for i in range(n_points)})
    supervised = setup.scenario == "known_codes"
    best = None if setup.learn_dictionary else optimum(setup, data)
    point = None
    for point in _points(setup, method, data, at, moved):
        if setup.learn_dictionary:
            best = optimum(setup, data, point.dictionaries)
        yield from _judged(
            rows_of(setup, method, data, point, "controlled", codes="own", budget_steps=steps),
            None if supervised else best,
        )
    assert point is not None and best is not None  # n_points >= 1
    others = [_optimal(point, best)] if supervised else _beside(setup, method, data, point, best)
    for name, beside in others:
        yield from _judged(
            [
                row | _paid(setup, beside, name, best)
                for row in rows_of(setup, method, data, beside, "controlled", codes=name, budget_steps=steps)
            ],
            None if supervised else best,
        )


def _points(
    setup: Setup, method: str, data: list[Data], at: list[int], moved: Callable[[int], Any]
) -> Iterator[Point]:
    fit = scenarios.fit_of(setup.scenario, method)
    each = [scenarios.batch_of(one, fit) for one in data]
    batch = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
    x_test = np.stack([one.x_test for one in data])
    for step, state in scenarios.trained_states(setup, fit, batch, _weights(setup, method), at, moved):
        atoms = scenarios.atoms_of(setup, state, fit)
        if fit.encoder is None:
            z = scenarios.test_codes(setup, x_test, atoms)
            yield Point(step, z, atoms, step + 1, setup.iterations)
        else:
            yield Point(step, scenarios.encoded(setup, state, x_test, fit), atoms, step + 1)


def _weights(setup: Setup, method: str) -> Any:
    """First weights of each seed's own."""
    if method == "sparse_coding":
        return scenarios.first_weights(setup, method)
    sizes = (setup.sources, setup.dimensions)
    seeds = [setup.seed + run + scenarios.MODEL_SEED for run in range(setup.seeds)]
    encoder = scenarios.encoder_of(setup.scenario, method)
    return stacked(init(TorchStream(seed), encoder, *sizes, setup.learn_dictionary) for seed in seeds)


def _judged(found: list[Row], best: Optimum | None) -> Iterator[Row]:
    """With the distance to the certified optimum on the same dictionary; gap_certified bounds P* itself."""
    for row in found:
        if best is None:
            yield row
            continue
        least = float(best.objective[row["run"]])
        yield row | {
            "objective_optimum": least,
            "suboptimality": (row["objective"] - least) / least if least > 0 else None,
            "gap_certified": float(best.gap[row["run"]]),
        }


def _beside(
    setup: Setup, method: str, data: list[Data], point: Point, best: Optimum
) -> Iterator[tuple[str, Point]]:
    """Codes on the same dictionary by other means: (name, point)."""
    yield _optimal(point, best)
    atoms = [
        one.dictionary if point.dictionaries is None else point.dictionaries[r] for r, one in enumerate(data)
    ]
    for solver, n_steps in (("fista", FISTA_STEPS), ("ista", ISTA_STEPS)):
        z = [
            coding.descended(o.x_test, a, setup.lam_half, solver, n_steps)
            for o, a in zip(data, atoms, strict=True)
        ]
        yield f"{solver}{n_steps}", point._replace(codes=np.stack(z), iterations=n_steps)
    if method != "sae":
        return
    x, stacked_atoms = np.stack([one.x_test for one in data]), np.stack(atoms)
    for name in STARTS:
        begin = _start(setup, name, point.codes)
        # The last of them is --iterations.
        for n_steps in (*(n for n in ITO_STEPS if n < setup.iterations), setup.iterations):
            numbers = Numbers(setup.lam, scenarios.RATE_UNKNOWN)
            z = coding.optimised(x, stacked_atoms, begin, n_steps, numbers)
            yield f"ito_{name}", point._replace(codes=np.asarray(z), iterations=n_steps)


def _optimal(point: Point, best: Optimum) -> tuple[str, Point]:
    return "optimal", point._replace(codes=best.codes, iterations=0)


def _start(setup: Setup, name: str, z: np.ndarray) -> Any:
    """warm: the SAE's codes; random: |N(0, 1)| / 10; released: exp(-10) everywhere."""
    if name == "warm":
        return coding.from_codes(z)
    if name == "random":
        return coding.from_codes(np.abs(np.random.default_rng(setup.seed).standard_normal(z.shape)) / 10)
    return coding.log_codes(len(z), z.shape[1], setup.sources)


def _paid(setup: Setup, beside: Point, name: str, best: Optimum) -> Row:
    """Training as the method's own; inference as the codes' solver, the active set by the rounds it took."""
    sizes = (setup.dimensions, setup.sources)
    n_test = setup.samples - setup.samples // 2
    active = float(np.mean(np.sum(beside.codes > 0, axis=-1)))
    kind, more = {
        "optimal": (
            "active_set",
            {"iterations": int(np.ceil(best.rounds.mean())), "active": int(np.ceil(active))},
        ),
        f"fista{FISTA_STEPS}": ("fista", {"iterations": beside.iterations}),
        f"ista{ISTA_STEPS}": ("ista", {"iterations": beside.iterations}),
    }.get(name, ("ito", {"iterations": beside.iterations, "warm": name == "ito_warm"}))
    given: dict[str, Any] = {"test_samples": n_test, **more}
    inference = flops.total(kind, *sizes, **given).inference
    free = not setup.learn_dictionary and name not in ("ito_warm",)  # nothing was trained for these codes
    row: Row = {"inference_flops": inference, "inference_flops_paper": inference}
    return row | ({"train_flops": 0, "train_flops_paper": 0, "updates": 0} if free else {})
