"""One token's lasso in float64 on the host: for the few that float32 leaves short of the tolerance, where lambda
is small against the token or atoms are nearly dependent."""

from typing import NamedTuple

import numpy as np


class Solved(NamedTuple):
    """Indices and folded values (k,), and how often a product over all atoms was taken."""

    indices: np.ndarray
    values: np.ndarray
    rounds: int


def solve_token(
    unit: np.ndarray,
    t: np.ndarray,
    lam: float,
    indices: np.ndarray,
    v: np.ndarray,
    signed: bool,
    tol: float,
    max_atoms: int = 100,
) -> Solved:
    """Of min 1/2 ||t - v U||^2 + lam sum |v|, from the given ones: unit (M, D) and
    t (D,) float64. Takes in the worst violator and minimises over the support again (Lawson & Hanson 1974,
    chapter 23, with lam), until the relative gap is below `tol` or `max_atoms` were taken in.
    """
    used = v != 0
    support, sign, z = indices[used], np.sign(v[used]), np.abs(v[used]).astype(np.float64)
    best, rounds = (np.inf, support, sign * z), 0
    for _ in range(max_atoms):
        rounds += 1
        support, sign, z = _minimised(unit, t, lam, support, sign, z)
        r = t - (sign * z) @ unit[support]
        c = unit @ r
        score = np.abs(c) if signed else c
        top = score.max(initial=0.0)
        s = lam / top if top > lam else 1.0
        gap = 0.5 * (1 - s) ** 2 * (r @ r) + z @ np.maximum(lam - s * sign * c[support], 0.0)
        p = 0.5 * (r @ r) + lam * z.sum()
        if gap / max(p, 1e-300) < best[0]:
            best = gap / max(p, 1e-300), support, sign * z
        score[support] = -np.inf
        worst = int(np.argmax(score))
        if best[0] <= tol or score[worst] <= lam:
            break
        turn = -1.0 if c[worst] < 0 else 1.0
        support, sign, z = np.append(support, worst), np.append(sign, turn), np.append(z, 0.0)
    return Solved(best[1], best[2], rounds)


def _minimised(unit, t, lam, support, sign, z):
    """The minimum over the support with these signs: to the face's minimum, or as far as the first value that
    reaches zero, which then leaves. Where atoms are dependent P falls along a line, down to a zero."""
    for _ in range(2 * len(support) + 1):
        atoms = sign[:, None] * unit[support]
        gram, gain = atoms @ atoms.T, atoms @ t - lam
        target = np.linalg.lstsq(gram, gain, rcond=1e-12)[0]
        rest = gain - gram @ target
        dependent = np.linalg.norm(rest) > 1e-9 * np.linalg.norm(gain)
        step = rest if dependent else target - z
        falling = step < 0
        length = float(np.min(z[falling] / -step[falling], initial=np.inf))
        length = length if dependent and np.isfinite(length) else min(length, 1.0)
        z = np.maximum(z + length * step, 0.0)
        keep = z > 1e-14 * z.max(initial=0.0)
        support, sign, z = support[keep], sign[keep], z[keep]
        if length == 1.0 and not dependent:
            break
    return support, sign, z
