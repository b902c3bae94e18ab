"""The dictionary relearned for exact codes: certified lasso codes and a least-squares update of the atoms, in turn.

P with penalty weights ||W_j|| does not change when an atom and its latent are rescaled, so atoms are kept at norm 1 in
the folded problem. The update is the block-coordinate descent of Mairal, Bach, Ponce & Sapiro (2010, algorithm 2):
each atom its own minimum within the unit ball. An atom left shorter than 1 is lengthened and its latent shortened,
which lowers the penalty. With the decoder's bias, a mean, no part of a round raises P on the training tokens, but for
the certificates' tolerance. What comes of a few rounds is a dictionary, not the best one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.inference import modes, objective
from amortjax.inference.codes import Codes
from amortjax.inference.modes import Options
from amortjax.inference.objective import Problem

SWEEPS = 10  # over atoms and bias, for the same codes


class Relearned(NamedTuple):
    """Atoms (M, D) of the first dictionary's norms; `shift` (D,), what was added to the decoder's bias; the round
    that was best on the validation tokens, and mean P of each round (objective units; the first is the old one's)."""

    atoms: np.ndarray
    shift: np.ndarray
    chosen: int
    train: list[float]
    validation: list[float]


def relearn(
    problem: Problem,
    train: np.ndarray,
    validation: np.ndarray,
    lam: float,
    rounds: int,
    options: Options,
    start: tuple[Codes, Codes],
    bar_of: Callable[[int, str], Any],
) -> Relearned:
    """At most `rounds` alternations on train t (N, D); stops where the validation tokens' optimum (n, D) no longer
    falls. start: codes in the SAE's units near which the optima are first looked for."""
    unit, shift = problem.unit64.copy(), np.zeros(problem.unit.shape[1])
    near, now, prices = list(start), problem, ([], [])
    best = (unit.copy(), shift.copy(), 0)
    for i in range(rounds + 1):
        for which, t in enumerate((train, validation)):
            here = (t - shift).astype(np.float32)
            with bar_of(len(t), f"relearning, round {i}, {('train', 'validation')[which]}") as bar:
                how = (near[which], lam, 1.0, options)
                near[which], _ = modes.solve("optimal", now, here, *how, start=near[which], bar=bar)
            found = objective.certify(now, here, near[which], lam).objective
            prices[which].append(float(found.mean()))
        if i and not prices[1][-1] < min(prices[1][:-1]):
            break
        best = (unit.copy(), shift.copy(), i)
        if i < rounds:
            unit, shift = update(unit, shift, now.fold(near[0]).csr(np.float64), train)
            now = objective.pose_dictionary(unit * problem.weights64[:, None], problem.record)
    unit, shift, chosen = best
    return Relearned(unit * problem.weights64[:, None], shift, chosen, *prices)


def update(
    unit: np.ndarray, shift: np.ndarray, codes: scipy.sparse.csr_array, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (M, D) of norm 1 and the shift (D,) that explain t (N, D) by folded codes (N, M) at no larger P than the
    given ones. Atoms of latents that do not fire stay. Latents are visited from the strongest down."""
    unit, t = unit.copy(), np.asarray(t, np.float64)
    mean: np.ndarray = t.mean(axis=0)
    turned = scipy.sparse.csr_array(codes.T)
    gram, with_t = scipy.sparse.csr_array(turned @ codes), np.asarray(turned @ t)
    sums: np.ndarray = np.asarray(turned @ np.ones(len(t)))
    energy = np.asarray(gram.diagonal())
    live = np.linalg.norm(unit, axis=1) > 0
    strongest = np.argsort(energy, kind="stable")[::-1].tolist()
    order = [j for j in strongest if energy[j] > 0 and live[j]]
    rows = {j: slice(gram.indptr[j], gram.indptr[j + 1]) for j in order}
    for _ in range(SWEEPS):
        explained: np.ndarray = sums @ unit / len(t)
        shift = mean - explained
        target = with_t - np.outer(sums, shift)
        for j in order:
            others = gram.data[rows[j]] @ unit[gram.indices[rows[j]]]
            atom = unit[j] + (target[j] - others) / energy[j]
            unit[j] = atom / max(1.0, float(np.linalg.norm(atom)))
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    return np.divide(unit, length, out=np.zeros_like(unit), where=length > 0), shift
