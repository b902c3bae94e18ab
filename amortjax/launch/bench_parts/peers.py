"""The other libraries, each used as its documentation says and asked for the same problem.

A peer is made from a case (the dictionary is converted once, outside the clock) and then solves its first n
tokens. Libraries without a batch of their own go token by token. Where a stopping rule has to be given, it is
the duality gap that the benchmark asks of everyone, put into the library's units.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from amortjax.inference.codes import from_dense
from amortjax.inference.request import Solved
from amortjax.launch.bench_parts.problems import Case

Run = Callable[[int], Solved]  # codes of the first n tokens, folded
ISTA_STEPS = 200


def _torch_ista(case: Case, tol: float) -> Run:
    """The papers' reference, 200 steps from zero; float32, on the GPU if there is one."""
    import torch

    where = "cuda" if torch.cuda.is_available() else "cpu"
    atoms = torch.tensor(np.asarray(case.problem.unit), device=where)
    step = 1 / case.problem.lipschitz

    def run(n: int) -> Solved:
        t = torch.tensor(case.t[:n], device=where)
        v = torch.zeros((n, len(atoms)), device=where)
        with torch.inference_mode():
            for _ in range(ISTA_STEPS):
                residual = torch.addmm(t, v, atoms, alpha=-1)
                v = torch.addmm(v, residual, atoms.T, alpha=step).sub_(step * case.lam).clamp_(min=0)
        return from_dense(v.cpu().numpy()), np.full(n, ISTA_STEPS)

    return run


def _spams(case: Case, tol: float) -> Run:
    """LARS to lambda, exact, all tokens in one call and on all cores; float32, which is its faster."""
    import spams  # pyright: ignore[reportMissingImports]

    atoms = np.asfortranarray(np.asarray(case.problem.unit).T)

    def run(n: int) -> Solved:
        t = np.asfortranarray(case.t[:n].T)
        z: Any = spams.lasso(t, D=atoms, lambda1=case.lam, mode=2, pos=True, numThreads=-1)
        return from_dense(z.toarray().T), np.zeros(n, int)

    return run


def _token_by_token(case: Case, tol: float, lasso: Callable[..., Any]) -> Run:
    """scikit-learn's interface: samples are the D coordinates of one token, in Fortran order, float64.

    Its objective is ours divided by D; it stops at a gap of its tolerance times ||t||^2. It is asked for half the
    relative gap, as our own active set asks of itself: at the very edge, rounding would cost certificates.
    """
    atoms = np.asfortranarray(np.asarray(case.problem.unit, np.float64).T)
    t = case.t.astype(np.float64)
    tols = 0.5 * tol * case.objective / np.einsum("nd,nd->n", t, t)
    alpha = case.lam / len(atoms)

    def run(n: int) -> Solved:
        z, steps = np.zeros((n, atoms.shape[1]), np.float32), np.zeros(n, int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one that didn't converge is seen in its certificate
            for i in range(n):
                model = lasso(alpha=alpha, positive=True, fit_intercept=False, tol=tols[i])
                z[i], steps[i] = model.fit(atoms, t[i]).coef_, model.n_iter_
        return from_dense(z), steps

    return run


def _sklearn(case: Case, tol: float) -> Run:
    from sklearn.linear_model import Lasso

    def lasso(**options: Any) -> Any:
        return Lasso(max_iter=100_000, **options)

    return _token_by_token(case, tol, lasso)


def _celer(case: Case, tol: float) -> Run:
    from celer import Lasso  # pyright: ignore[reportMissingImports]

    return _token_by_token(case, tol, Lasso)


class Peer(NamedTuple):
    """`module`: what has to be installed, by amortjax's `extra`."""

    make: Callable[[Case, float], Run]  # (case, relative gap to stop at)
    module: str
    extra: str
    text: str

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


PEERS = {
    "torch_ista": Peer(_torch_ista, "torch", "bench", "ISTA-200, PyTorch"),
    "sklearn": Peer(_sklearn, "sklearn", "bench", "scikit-learn Lasso"),
    "spams": Peer(_spams, "spams", "bench", "SPAMS LARS"),
    "celer": Peer(_celer, "celer", "bench", "celer Lasso"),
}
