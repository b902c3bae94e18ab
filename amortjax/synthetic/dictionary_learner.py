"""Dictionary learning by exact steps: the certified non-negative lasso for the codes, block minimisation for the atoms.

    min over D (unit atoms), Z >= 0 of  mean_i 1/2 ||x_i - z_i D||^2 + lam sum_j z_ij

Both steps only ever lower this. Begun at a small lambda itself they end in poor minima, as gradient sparse coding does.
So lambda comes down from START of the mean ||x||, and of several restarts the one of the lowest training objective is
kept; the truth is never looked at. At 16 sources, 8 dimensions, 3 active that finds all atoms.

    found = learn(x_train, sources=16, lam=0.0025)       # Learned(dictionary, codes, objective, relative_gap, ...)
    z, proof = certified_codes(found.dictionary, x_test, 0.0025)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import active_set, exact
from amortjax.inference.codes import from_dense
from amortjax.inference.objective import HIGHEST, Certificate, certify, pose_dictionary

START = 0.3  # lambda of the first round, of the mean ||x||
WITHIN = 1e-3  # relative duality gap of the codes of a round, mean over samples
DENSE = 256  # sources up to which codes are found by coordinate descent over all of them
_SWEEPS = 4  # of coordinate descent between two looks at the gap
_MOST_LOOKS = 30  # at the gap in a round
_PART = 20  # rounds in one compiled call
_MOST_NUMBERS = 1 << 25  # of codes held at once, over restarts and data sets


class Learned(NamedTuple):
    """dictionary (sources, D) float32, unit rows; codes (n, sources) of the training data; the mean training
    `objective` and its certified duality gap relative to it, in float64; `tried` (restarts,): the objectives
    that the restarts reached, ascending."""

    dictionary: np.ndarray
    codes: np.ndarray
    objective: float
    relative_gap: float
    tried: np.ndarray


def certified_codes(dictionary: Any, x: Any, lam: float, tol: float = 1e-4) -> tuple[np.ndarray, Certificate]:
    """Optimal non-negative codes (n, sources) of x (n, D) on a dictionary (sources, D) at lam (half form), and their
    certificate. Few sources are all visited in turn, of many an active set is kept; every sample that float32 leaves
    short of `tol` is solved again in float64."""
    problem, x = pose_dictionary(dictionary), np.asarray(x, np.float32)
    if problem.n_latents <= DENSE:
        v = _dense(problem.unit, jnp.asarray(x), jnp.float32(lam))
        folded = from_dense(np.asarray(v).T)
    else:
        folded, _ = active_set.optimum(problem, x, np.full(len(x), lam), None, tol)
    proof = certify(problem, x, problem.unfold(folded), lam)
    z = folded.dense()
    for i in np.flatnonzero(proof.relative_gap > tol):
        every, t = np.arange(len(z[i])), x[i].astype(np.float64)
        one = exact.solve_token(problem.unit64, t, lam, every, z[i], problem.signed, 0.1 * tol)
        z[i] = 0
        z[i, one.indices] = one.values
    codes = problem.unfold(from_dense(z))
    return codes.dense(), certify(problem, x, codes, lam)


@jax.jit
def _dense(atoms: jax.Array, x: jax.Array, lam: jax.Array) -> jax.Array:
    return lasso(atoms, x, jnp.zeros((len(atoms), len(x))), lam, 1e-6, 50)


def learn(
    x: Any,
    sources: int,
    lam: float = 0.0025,
    restarts: int = 8,
    rounds: int = 300,
    seed: int = 0,
    progress: bool = False,
) -> Learned:
    """The best of `restarts` on x (n, D); see `learn_many`."""
    return learn_many(np.asarray(x)[None], sources, lam, restarts, rounds, (seed,), progress)[0]


def learn_many(
    x: Any,
    sources: int,
    lam: float = 0.0025,
    restarts: int = 8,
    rounds: int = 300,
    seeds: tuple[int, ...] | None = None,
    progress: bool = False,
) -> list[Learned]:
    """Of each data set x (S, n, D), with a seed for its restarts each; as many at a time as memory takes."""
    x = _checked(x, sources, lam, restarts, rounds)
    seeds = tuple(range(len(x))) if seeds is None else seeds
    from tqdm import tqdm

    at_once = max(1, _MOST_NUMBERS // (x.shape[1] * sources * restarts))
    parts = [slice(i, i + at_once) for i in range(0, len(x), at_once)]
    with tqdm(
        total=len(parts) * rounds, desc="dictionary", unit="round", leave=False, disable=not progress
    ) as bar:
        return [
            one
            for part in parts
            for one in _learn_part(x[part], sources, lam, restarts, rounds, seeds[part], bar)
        ]


def _checked(x: Any, sources: int, lam: float, restarts: int, rounds: int) -> np.ndarray:
    x = np.asarray(x, np.float32)
    if x.ndim != 3 or not x.size or not np.isfinite(x).all() or not x.any():
        raise AmortjaxError(f"data of shape {x.shape} to learn a dictionary of: finite samples, not all zero")
    if min(sources, restarts, rounds) < 1 or not lam > 0:
        raise AmortjaxError(
            f"{sources} sources, {restarts} restarts, {rounds} rounds, lam {lam:g}: all must be above 0"
        )
    return x


def _learn_part(x, sources: int, lam: float, restarts: int, rounds: int, seeds, bar: Any) -> list[Learned]:
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    atoms = jax.vmap(lambda key: jax.random.normal(key, (restarts, sources, x.shape[2])))(keys)
    atoms = atoms / jnp.linalg.norm(atoms, axis=-1, keepdims=True)
    z = jnp.zeros((len(x), restarts, sources, x.shape[1]))
    first = np.maximum(START * np.linalg.norm(x, axis=-1).mean(axis=-1), lam)
    down = min(1.0, 1 / max(0.8 * rounds - 1, 1)) * np.arange(rounds + _PART)  # the last fifth at lam itself
    lams = first[:, None] * (lam / first[:, None]) ** np.minimum(down, 1.0)
    for start in range(0, rounds, _PART):
        part = jnp.asarray(lams[:, start : start + _PART], jnp.float32)
        # Rounds past the last are taken at lam too, so that a part compiles once.
        atoms, z, _ = _rounds(jnp.asarray(x), atoms, z, part)
        bar.update(min(_PART, rounds - start))
    reached = np.asarray(_reached(jnp.asarray(x), atoms, z, lam))
    found = []
    for i, own in enumerate(reached):
        dictionary = np.asarray(atoms[i, int(np.argmin(own))])
        codes, proof = certified_codes(dictionary, x[i], lam)
        objective = float(proof.objective.mean())
        gap = float(proof.gap.mean()) / max(objective, 1e-300)
        found.append(Learned(dictionary, codes, objective, gap, np.sort(own)))
    return found


def _mean_objective(x: jax.Array, atoms: jax.Array, z: jax.Array, lam: float) -> jax.Array:
    residual = x - jnp.matmul(z.T, atoms, precision=HIGHEST)
    return 0.5 * jnp.square(residual).sum() / len(x) + lam * z.sum() / len(x)


@jax.jit
def _reached(x, atoms, z, lam):
    """(S, restarts): the training objective with codes brought to the optimum on the final atoms."""

    def one(x, atoms, z):
        return _mean_objective(x, atoms, lasso(atoms, x, z, lam, 0.1 * WITHIN, 4 * _MOST_LOOKS), lam)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0, 0)))(x, atoms, z)


@jax.jit
def _rounds(x: jax.Array, atoms: jax.Array, z: jax.Array, lams: jax.Array):
    """Some rounds of each data set (S, n, D) and restart: atoms (S, R, M, D), z (S, R, M, n), lams (S, rounds)."""

    def one(x, atoms, z, lams):
        def step(state, lam):
            atoms, z = state
            z = lasso(atoms, x, z, lam)
            after = updated(atoms, x, z)
            return (after, z), _mean_objective(x, after, z, lam)

        (atoms, z), objectives = jax.lax.scan(step, (atoms, z), lams)
        return atoms, z, objectives

    return jax.vmap(jax.vmap(one, in_axes=(None, 0, 0, None)))(x, atoms, z, lams)


def lasso(atoms, x, z, lam, within: float = WITHIN, most: int = _MOST_LOOKS) -> jax.Array:
    """Codes (M, n) of x (n, D) from z: coordinate descent, all samples at once, until their mean duality gap is
    `within` of their mean objective. Atoms (M, D) have length 1."""
    gram, c = jnp.matmul(atoms, atoms.T, precision=HIGHEST), jnp.matmul(atoms, x.T, precision=HIGHEST)

    def look(state):
        z, looks, _ = state
        slope = c - lam - jnp.matmul(gram, z, precision=HIGHEST)
        z, _ = jax.lax.fori_loop(0, _SWEEPS * len(z), functools.partial(_visit, gram), (z, slope))
        return z, looks + 1, _relative_gap(atoms, x, z, lam)

    go_on = lambda state: (state[1] < most) & (state[2] > within)  # noqa: E731
    return jax.lax.while_loop(go_on, look, (z, 0, jnp.inf))[0]


def _visit(gram, i, state):
    z, slope = state
    j = i % len(z)
    new = jnp.maximum(z[j] + slope[j], 0.0)
    return z.at[j].set(new), slope - gram[:, j, None] * (new - z[j])


def _relative_gap(atoms, x, z, lam) -> jax.Array:
    """Mean duality gap over mean objective; `inference.objective.certify` says how the gap is formed."""
    residual = x.T - jnp.matmul(atoms.T, z, precision=HIGHEST)
    at = jnp.matmul(atoms, residual, precision=HIGHEST)
    top, energy = at.max(axis=0), jnp.square(residual).sum(axis=0)
    s = jnp.where(top > lam, lam / jnp.maximum(top, 1e-30), 1.0)
    gap = 0.5 * jnp.square(1 - s) * energy + (z * jnp.maximum(lam - s * at, 0.0)).sum(axis=0)
    return gap.sum() / jnp.maximum((0.5 * energy + lam * z.sum(axis=0)).sum(), 1e-30)


def updated(atoms, x, z, passes: int = 3) -> jax.Array:
    """Atoms (M, D) after block minimisation: each in turn is put where the error is least on the unit sphere, the
    others held. An atom that no sample uses stays."""
    both, with_x = jnp.matmul(z, z.T, precision=HIGHEST), jnp.matmul(z, x, precision=HIGHEST)

    def visit(i, atoms):
        j = i % len(atoms)
        pull = with_x[j] - jnp.matmul(both[j], atoms, precision=HIGHEST) + both[j, j] * atoms[j]
        size = jnp.linalg.norm(pull)
        return atoms.at[j].set(
            jnp.where((both[j, j] > 0) & (size > 1e-12), pull / jnp.maximum(size, 1e-12), atoms[j])
        )

    return jax.lax.fori_loop(0, passes * len(atoms), visit, atoms)
