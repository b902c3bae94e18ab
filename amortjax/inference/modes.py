"""How a token's code is found: one entry of MODES per way, all with the same signature.

To add one: a function (Task) -> (folded codes, iterations) and a line in MODES.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import refit, unrolled
from amortjax.inference.codes import Codes, concatenate
from amortjax.inference.objective import Problem
from amortjax.inference.request import Precision, Request, Settings, Solved
from amortjax.inference.solvers import SOLVERS


@dataclasses.dataclass(frozen=True)
class Options:
    """What the modes may be told. `tol` bounds the optimum's relative gap. `alista`: (gamma, theta) of each layer of
    the ALISTA network whose codes semi_amortized starts from (`unrolled.constants`); (): from the encoder's."""

    semi_steps: int = 30
    ista_steps: int = 200
    tol: float = 1e-4
    solver: Literal["active_set", "fista"] = "active_set"  # of the optimum
    fista_steps: int = 5000
    chunk: int = 1024  # tokens at a time
    precision: Precision = (
        "highest"  # of the optimum's search for candidates; its certificate is float32 always
    )
    alista: tuple[tuple[float, float], ...] = ()


_SPARSE = 64  # L0 up to which the encoder's codes are where the optimum's solver starts


class Task(NamedTuple):
    """Some tokens to code: t (n, D), the encoder's folded codes, lam (n,), the encoder's scale, and folded codes
    from which the optimum may start (another lambda's optimum)."""

    problem: Problem
    t: np.ndarray
    encoder: Codes
    lam: np.ndarray
    scale: float
    options: Options
    start: Codes | None = None


def _request(task: Task, start: Codes | None, n_steps: int | None = None, params: Any = None) -> Request:
    options = task.options
    settings = Settings(options.tol, n_steps, options.chunk, options.precision, params)
    return Request(task.problem, task.t, task.lam, start, task.encoder.l0, settings)


def _none(task: Task) -> np.ndarray:
    return np.zeros(len(task.t), int)


def amortized(task: Task) -> Solved:
    return task.encoder, _none(task)


def encoder_scaled(task: Task) -> Solved:
    values = np.asarray(task.encoder.values) * np.float32(task.scale)
    return Codes(np.asarray(task.encoder.indices), values, task.encoder.n_latents), _none(task)


def encoder_refit(task: Task) -> Solved:
    return refit.nnls(task.problem.unit, task.t, task.encoder), _none(task)


def semi_amortized(task: Task) -> Solved:
    start, layers = task.encoder, _none(task)
    if task.options.alista:
        network = unrolled.with_constants(task.problem, task.options.alista)
        start, layers = SOLVERS["alista"].solve(_request(task, None, params=network))
    codes, steps = SOLVERS["ista"].solve(_request(task, start, task.options.semi_steps))
    return codes, layers + steps


def non_amortized(task: Task) -> Solved:
    return SOLVERS["ista"].solve(_request(task, None, task.options.ista_steps))


def optimal(task: Task) -> Solved:
    options = task.options
    if options.solver == "fista":
        return SOLVERS["fista"].solve(_request(task, task.start, options.fista_steps))
    # A sparse encoder's support is a good guess, and free; a dense one is more than the solver's own start.
    own = task.encoder if task.encoder.l0.max(initial=0) <= _SPARSE else None
    return SOLVERS["active_set"].solve(_request(task, own if task.start is None else task.start))


def optimal_refit(task: Task) -> Solved:
    codes, rounds = optimal(task)
    return refit.nnls(task.problem.unit, task.t, codes), rounds


def omp(task: Task) -> Solved:
    return SOLVERS["omp"].solve(_request(task, None))


class Mode(NamedTuple):
    """`knob`: what calibration may turn: lambda, the encoder's scale, or nothing. `options`: those of Options that its
    codes depend on, beside `chunk`."""

    solve: Callable[[Task], Solved]
    knob: Literal["none", "lam", "scale"]
    text: str
    options: tuple[str, ...] = ()


_EXACT = ("tol", "solver", "fista_steps", "precision")


MODES = {
    "amortized": Mode(amortized, "none", "the encoder's code, one forward pass"),
    "encoder_scaled": Mode(encoder_scaled, "scale", "the encoder's code times the one scale that fits best"),
    "encoder_refit": Mode(encoder_refit, "none", "non-negative least squares on the encoder's support"),
    "semi_amortized": Mode(
        semi_amortized, "lam", "a few ISTA steps from the encoder's code", ("semi_steps", "alista")
    ),
    "non_amortized": Mode(
        non_amortized, "lam", "ISTA from zero (200 steps: the papers' reference)", ("ista_steps",)
    ),
    "optimal": Mode(optimal, "lam", "the lasso optimum, certified token by token", _EXACT),
    "optimal_refit": Mode(
        optimal_refit, "lam", "non-negative least squares on the optimum's support", _EXACT
    ),
    "omp": Mode(
        omp, "none", "non-negative orthogonal matching pursuit at the encoder's K; best found, not certified"
    ),
}
ALIASES = {"unamortized": "non_amortized", "semi": "semi_amortized"}


def resolve(name: str) -> str:
    """A mode's name from any accepted spelling."""
    name = ALIASES.get(name, name)
    if name not in MODES:
        raise AmortjaxError(f"mode {name!r} is not one of {', '.join(MODES)}")
    return name


def relevant(mode: str, options: Options) -> dict[str, Any]:
    """{name: value} of the options that a measurement of `mode` depends on. Every mode's codes are judged by `tol`."""
    return {name: getattr(options, name) for name in ("chunk", "tol", *MODES[mode].options)}


def best_scale(problem: Problem, t: np.ndarray, encoder: Codes, lam: np.ndarray | float) -> float:
    """The scale a >= 0 of all codes that minimises the total P at `lam`, a scalar or (N,) (0: squared error)."""
    v = encoder.csr(np.float64)
    reconstruction = v @ problem.unit64
    energy = float(np.sum(reconstruction**2))
    gain = float(np.sum(reconstruction * t)) - float(np.sum(lam * abs(v).sum(axis=1)))
    return max(gain, 0.0) / energy if energy > 0 else 1.0


def solve(
    mode: str,
    problem: Problem,
    t: np.ndarray,
    encoder: Codes,
    lam: np.ndarray | float,
    scale: float,
    options: Options,
    start: Codes | None = None,
    bar: Any = None,
) -> tuple[Codes, np.ndarray]:
    """Codes in the SAE's units of t (N, D), and iterations (N,), a chunk of tokens at a time.

    `encoder`: the encoder's codes in the SAE's units, where the mode starts or what it refits. `start`: codes
    near the optimum, from which its solver may begin. `bar`: a tqdm bar, moved on by the tokens done.
    """
    lam = np.broadcast_to(np.asarray(lam, np.float64), (len(t),))
    folded, near = problem.fold(encoder), None if start is None else problem.fold(start)
    parts, iterations = [], []
    for i in range(0, len(t), options.chunk):
        j = min(i + options.chunk, len(t))
        here = None if near is None else near.rows(i, j)
        task = Task(
            problem, np.asarray(t[i:j], np.float32), folded.rows(i, j), lam[i:j], scale, options, here
        )
        codes, steps = MODES[mode].solve(task)
        parts.append(codes)
        iterations.append(steps)
        if bar is not None:
            bar.update(j - i)
    return problem.unfold(concatenate(parts)), np.concatenate(iterations)
