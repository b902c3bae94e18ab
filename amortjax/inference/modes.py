"""How a token's code is found: one entry of MODES per way, all with the same signature.

To add one: a function (Task) -> (folded codes, iterations) and a line in MODES.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import active_set, pursuit, refit
from amortjax.inference.codes import Codes, concatenate, from_dense
from amortjax.inference.ista import descend
from amortjax.inference.objective import Problem


@dataclasses.dataclass(frozen=True)
class Options:
    """What the modes may be told. `tol` bounds the optimum's relative gap."""

    semi_steps: int = 30
    ista_steps: int = 200
    tol: float = 1e-4
    solver: Literal["active_set", "fista"] = "active_set"  # of the optimum
    fista_steps: int = 5000
    chunk: int = 1024  # tokens at a time


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


Solved = tuple[Codes, np.ndarray]  # folded codes and iterations (n,) int


def _steps(task: Task, start: np.ndarray, solver: str, n_steps: int) -> Solved:
    """`n_steps` first-order steps, the rows padded to the chunk so that a shape compiles once."""
    n, pad = len(task.t), task.options.chunk - len(task.t)
    wide = lambda a: np.pad(a, [(0, max(0, pad))] + [(0, 0)] * (a.ndim - 1))  # noqa: E731
    problem = task.problem
    v = descend(
        problem.unit,
        jnp.asarray(wide(task.t)),
        jnp.asarray(wide(start)),
        jnp.asarray(wide(task.lam), jnp.float32),
        problem.lipschitz,
        solver=solver,
        n_steps=n_steps,
        signed=problem.signed,
    )
    return from_dense(np.asarray(v)[:n]), np.full(n, n_steps)


def _zeros(task: Task) -> np.ndarray:
    return np.zeros((len(task.t), task.problem.n_latents), np.float32)


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
    return _steps(task, task.encoder.dense(), "ista", task.options.semi_steps)


def non_amortized(task: Task) -> Solved:
    return _steps(task, _zeros(task), "ista", task.options.ista_steps)


def optimal(task: Task) -> Solved:
    problem, options = task.problem, task.options
    if options.solver == "fista":
        return _steps(task, _zeros(task), "fista", options.fista_steps)
    if not problem.signed:
        return active_set.solve(problem, task.t, task.lam, task.start, options.tol)
    # Signed: the atoms and their negatives, of which an optimum never uses both.
    both = jnp.concatenate([problem.unit, -problem.unit])
    doubled = Problem(both, jnp.ones(len(both)), dataclasses.replace(problem.record, sign="nonneg"))
    codes, rounds = active_set.solve(doubled, task.t, task.lam, None, options.tol)
    negative, m = codes.indices >= problem.n_latents, problem.n_latents
    indices = np.where(negative, codes.indices - m, codes.indices)
    return Codes(indices, np.where(negative, -codes.values, codes.values), m), rounds


def optimal_refit(task: Task) -> Solved:
    codes, rounds = optimal(task)
    return refit.nnls(task.problem.unit, task.t, codes), rounds


def omp(task: Task) -> Solved:
    budget = task.encoder.l0
    # Under unit weights the atoms are not of unit norm, which the choice of the best one needs.
    norms = np.linalg.norm(np.asarray(task.problem.unit), axis=1)
    norms = np.where(norms > 0, norms, 1.0).astype(np.float32)
    codes = pursuit.omp(task.problem.unit / norms[:, None], task.t, budget, task.problem.signed)
    return codes.scaled(1 / norms), budget


class Mode(NamedTuple):
    """`knob`: what calibration may turn: lambda, the encoder's scale, or nothing."""

    solve: Callable[[Task], Solved]
    knob: Literal["none", "lam", "scale"]
    text: str


MODES = {
    "amortized": Mode(amortized, "none", "the encoder's code, one forward pass"),
    "encoder_scaled": Mode(encoder_scaled, "scale", "the encoder's code times the one scale that fits best"),
    "encoder_refit": Mode(encoder_refit, "none", "non-negative least squares on the encoder's support"),
    "semi_amortized": Mode(semi_amortized, "lam", "a few ISTA steps from the encoder's code"),
    "non_amortized": Mode(non_amortized, "lam", "ISTA from zero (200 steps: the papers' reference)"),
    "optimal": Mode(optimal, "lam", "the lasso optimum, certified token by token"),
    "optimal_refit": Mode(optimal_refit, "lam", "non-negative least squares on the optimum's support"),
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
