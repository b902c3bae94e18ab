"""SOLVERS: every way to look for a sparse code, behind one signature.

To add one: a file with solve(Request) -> (folded codes, iterations) and a line here. All are scored by the one
certificate (`objective.certify`); the oracle tests run over this table.
"""

from amortjax.inference import active_set, ista, pursuit
from amortjax.inference.request import Solver

SOLVERS: dict[str, Solver] = {
    "active_set": Solver(active_set.solve, "lasso", True, "active set; stops when each token is certified"),
    "ista": Solver(ista.solve_ista, "lasso", True, "proximal gradient, a fixed number of steps"),
    "fista": Solver(ista.solve_fista, "lasso", True, "accelerated proximal gradient with restarts"),
    "omp": Solver(pursuit.solve_omp, "l0", False, "non-negative orthogonal matching pursuit"),
}
