"""Were the true sources found? MCC of codes and of dictionaries, with its chance level and the corrected value.

MCC is the mean, over the latents of the smaller side, of the correlation of each with its partner (arXiv 2411.13117:
|Pearson|, Hungarian matching). A latent that does not vary counts as 0: one dead latent of 16 caps MCC at 15/16.
The papers take Pearson over the D entries of an atom as well, where unrelated dictionaries already score .67 (D = 8,
M = 16): read a value beside `chance`, or `corrected`.

    found = mcc(z_true, z)                                        # Match(mcc, pairs, each)
    of_atoms = mcc(dictionary.T, other.T)                         # (D, M): columns are atoms
    corrected(of_atoms.mcc, chance(8, 16))                        # 0: as good as chance, 1: all found
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from amortjax.errors import AmortjaxError

Kind = Literal["pearson", "cosine"]
How = Literal["hungarian", "greedy", "identity"]
FLAT = 1e-12  # variance (mean square, for cosines) below which a column correlates with nothing (the papers' rule)


class Match(NamedTuple):
    """Pairs (P, 2) of a column of a and one of b, the similarity of `each` (P,), and their mean, P = min(Ma, Mb)."""

    mcc: float
    pairs: np.ndarray
    each: np.ndarray


class Chance(NamedTuple):
    """MCC of unrelated sides: mean and standard deviation over draws."""

    mean: float
    std: float


def correlations(a: Any, b: Any, kind: Kind = "pearson") -> Any:
    """Signed correlation of the columns of a (N, Ma) with those of b (N, Mb): (Ma, Mb). Cosine does not centre.

    Two NumPy arrays: float64 on the host; anything else: float32 in JAX, for jit and vmap. 0 where a column's variance
    is below FLAT. Raises AmortjaxError on shapes that do not fit.
    """
    shapes = np.shape(a), np.shape(b)
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][0] or not shapes[0][0]:
        raise AmortjaxError(
            f"columns of {shapes[0]} and {shapes[1]} can't be correlated: give (N, Ma) and (N, Mb)"
        )
    if kind not in ("pearson", "cosine"):
        raise AmortjaxError(f"kind {kind!r} of a correlation: choose pearson or cosine")
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _standard(np, a.astype(np.float64), kind).T @ _standard(np, b.astype(np.float64), kind)
    a, b = (_standard(jnp, jnp.asarray(side, jnp.float32), kind) for side in (a, b))
    return jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)


def _standard(xp: Any, z: Any, kind: str) -> Any:
    """Columns of length 1, centred for Pearson; zero where they are flat."""
    centred = z - z.mean(axis=0) if kind == "pearson" else z
    square = (centred**2).mean(axis=0)
    varies = ~(square < FLAT)  # so that NaN stays NaN
    return xp.where(varies, centred / xp.sqrt(xp.where(varies, square, 1.0) * z.shape[0]), 0.0)


def assign(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one matching of largest total similarity (Ma, Mb), rectangular allowed: indices a and b, ascending in
    a, min(Ma, Mb) of them."""
    similarity = np.asarray(similarity)
    if not np.isfinite(similarity).all():
        raise AmortjaxError("similarities hold NaN or infinity: nothing can be matched by them")
    return scipy.optimize.linear_sum_assignment(similarity, maximize=True)


def mcc_of(correlation: Any, match: How = "hungarian", signed: bool | None = None) -> Match:
    """MCC from a matrix of signed correlations (Ma, Mb); see `mcc`."""
    found = np.asarray(correlation, np.float64)
    signed = match == "identity" if signed is None else signed
    score = found if signed else np.abs(found)
    if not np.isfinite(score).all():
        raise AmortjaxError("correlations hold NaN or infinity: codes or atoms are not finite")
    if match == "identity":
        if score.shape[0] != score.shape[1]:
            raise AmortjaxError(f"{score.shape[0]} latents against {score.shape[1]} have no identity matching: "
                                "use hungarian")  # fmt: skip
        rows = columns = np.arange(len(score))
    elif match == "greedy":
        rows, columns = _greedy(score)
    elif match == "hungarian":
        rows, columns = assign(score)
    else:
        raise AmortjaxError(f"match {match!r}: choose hungarian, greedy or identity")
    each = score[rows, columns]
    return Match(float(each.mean()) if len(each) else 0.0, np.stack([rows, columns], axis=1), each)


def _greedy(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As the papers' code matches unequal sides: pairs taken from the most similar on, each latent once; then the best
    matching of those that were taken. The same as Hungarian for equal sides, never above it for others."""
    taken: tuple[list[int], list[int]] = ([], [])
    free = score.copy()
    for _ in range(min(score.shape)):
        row, column = np.unravel_index(int(np.argmax(free)), free.shape)
        taken[0].append(int(row))
        taken[1].append(int(column))
        free[row], free[:, column] = -np.inf, -np.inf
    rows, columns = (np.sort(np.array(side, int)) for side in taken)
    best = assign(score[np.ix_(rows, columns)])
    return rows[best[0]], columns[best[1]]


def mcc(
    a: Any, b: Any, match: How = "hungarian", kind: Kind = "pearson", signed: bool | None = None
) -> Match:
    """MCC of columns: of codes a (N, Ma) and b (N, Mb) of the same samples, or of dictionaries (D, M) whose columns are
    atoms. `signed`: a negative correlation counts as such; by default only under identity matching, which is for
    encoders trained on known codes."""
    return mcc_of(correlations(a, b, kind), match, signed)


def corrected(value: float | None, level: float | Chance) -> float | None:
    """(mcc - chance) / (1 - chance): 0 at chance, 1 for all found, negative below chance. None where chance is 1 (atoms
    of two entries: Pearson is always 1), or without a value."""
    level = level.mean if isinstance(level, Chance) else float(level)
    return None if value is None or 1 - level < 1e-6 else (value - level) / (1 - level)


@functools.lru_cache(maxsize=256)
def chance(
    rows: int,
    columns: int,
    other: int | None = None,
    *,
    kind: Kind = "pearson",
    match: How = "hungarian",
    density: float | None = None,
    draws: int = 10,
    seed: int = 0,
) -> Chance:
    """MCC of unrelated sides (rows, columns) and (rows, other or columns), by `draws` draws; seeded and cached.

    density None: two Gaussian dictionaries of `rows` dimensions. A density in (0, 1]: codes of `rows` samples, each
    latent active independently with that probability, |N(0, 1)| where it is. Codes of an untrained encoder see the
    same x as the truth and score more than independent ones: that level is the encoder's own to report.
    """
    other = columns if other is None else other
    if min(rows, columns, other, draws) < 1:
        raise AmortjaxError(
            f"chance of ({rows}, {columns}) against {other}, {draws} draws: all must be at least 1"
        )
    if density is not None and not 0 < density <= 1:
        raise AmortjaxError(f"density {density}: must be above 0 and at most 1")
    rng = np.random.default_rng([seed, rows, columns, other])
    found = [mcc(_drawn(rng, rows, columns, density), _drawn(rng, rows, other, density), match, kind).mcc
             for _ in range(draws)]  # fmt: skip
    return Chance(float(np.mean(found)), float(np.std(found)))


def _drawn(rng: np.random.Generator, rows: int, columns: int, density: float | None) -> np.ndarray:
    values = rng.standard_normal((rows, columns))
    return values if density is None else np.abs(values) * (rng.random((rows, columns)) < density)


def chance_of_codes(a: Any, b: Any, draws: int = 5, seed: int = 0, match: How = "hungarian") -> Chance:
    """MCC of codes a (N, Ma) with codes b (N, Mb) dealt to other samples: rates and amplitudes of both stay."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng = np.random.default_rng(seed)
    found = [mcc(a, b[rng.permutation(len(b))], match).mcc for _ in range(draws)]
    return Chance(float(np.mean(found)), float(np.std(found)))
