"""SOLVERS: every way to look for a sparse code, behind one signature.

To add one: a file with solve(Request) -> (folded codes, iterations) and a line here. All are scored by the one
certificate (`objective.certify`); the oracle tests run over this table.
"""

from amortjax.inference import active_set, iht, ista, lca, pursuit, unrolled
from amortjax.inference.request import Solver

SOLVERS: dict[str, Solver] = {
    "active_set": Solver(active_set.solve, "lasso", True, "active set; stops when each token is certified"),
    "ista": Solver(ista.solve_ista, "lasso", True, "proximal gradient, a fixed number of steps"),
    "fista": Solver(ista.solve_fista, "lasso", True, "accelerated proximal gradient with restarts"),
    "lca": Solver(
        lca.solve_lca, "lasso", True, "locally competitive algorithm, a fixed number of Euler steps"
    ),
    "lista": Solver(
        unrolled.solve_lista, "lasso", False, "a learned unrolling of ISTA; untrained, it is ISTA"
    ),
    "alista": Solver(
        unrolled.solve_alista, "lasso", False, "an unrolling of analytic weights, learned steps"
    ),
    "mp": Solver(pursuit.solve_mp, "l0", False, "non-negative matching pursuit"),
    "gradient_pursuit": Solver(pursuit.solve_gradient_pursuit, "l0", False, "non-negative gradient pursuit"),
    "iht": Solver(iht.solve_iht, "l0", False, "iterative hard thresholding, refitted on its support"),
    "omp": Solver(pursuit.solve_omp, "l0", False, "non-negative orthogonal matching pursuit"),
}
