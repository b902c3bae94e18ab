"""What every solver is asked and what it answers: one signature for all of SOLVERS."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from amortjax.inference.codes import Codes
from amortjax.inference.objective import Problem

Precision = Literal["highest", "tensorfloat32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a solver may be told. `tol` bounds the relative gap a certifying solver leaves; `n_steps` is the
    budget of one with a fixed number of steps (None: its own default). `precision`: of matmuls that only look
    for candidates; what certifies is float32 always. Fixed-step solvers have no such matmul and ignore it."""

    tol: float = 1e-4
    n_steps: int | None = None
    chunk: int = 1024  # tokens at a time, for solvers whose state is dense
    precision: Precision = "highest"
    params: Any = None  # trained weights, for the unrolled solvers


class Request(NamedTuple):
    """Some tokens to code. All arrays are the host's.

    t (n, D) targets, lam (n,) half form; `start`: folded codes to begin from, or None for zero; `budget` (n,)
    int: the most latents a token may use, for solvers bounded in L0 (None: those refuse).
    """

    problem: Problem
    t: np.ndarray
    lam: np.ndarray
    start: Codes | None = None
    budget: np.ndarray | None = None
    settings: Settings = Settings()


Solved = tuple[Codes, np.ndarray]  # folded codes of every token, and iterations (n,) int


class Solver(NamedTuple):
    """`goal`: what it minimises: the lasso P at lam, or the squared error with at most `budget` latents.
    `exact`: whether more budget takes a lasso solver to the optimum (so that the oracle tests apply)."""

    solve: Callable[[Request], Solved]
    goal: Literal["lasso", "l0"]
    exact: bool
    text: str
