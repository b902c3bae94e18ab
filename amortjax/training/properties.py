"""What is known of each latent before any optimum: what a price may be foretold from."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.inference.objective import HIGHEST, Problem
from amortjax.saes.sae import SAE
from amortjax.training.loca import LEAST_FIRES, angular_variance

CHUNK = 1024


def latent_properties(sae: SAE, problem: Problem, batches: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Of each latent, (M,): how often it fired on the raw x (n, D) of `batches`, `density`, `avar` (angular variance),
    `angle` between its encoder and decoder directions in degrees, and `neighbour`, the cosine to the nearest other
    atom. NaN where not defined: latents of fewer than 20 firings, zero vectors."""
    tokens = 0

    def counted() -> Iterable[np.ndarray]:
        nonlocal tokens
        for x in batches:
            tokens += len(x)
            yield x

    found = angular_variance(sae, counted())
    encoder, unit = np.asarray(sae.W_enc, np.float64).T, problem.unit64
    lengths = np.linalg.norm(encoder, axis=1) * np.linalg.norm(unit, axis=1)
    known = lengths > 0
    cosine = np.einsum("md,md->m", encoder, unit) / np.where(known, lengths, 1.0)
    angle = np.where(known, np.degrees(np.arccos(np.clip(cosine, -1, 1))), np.nan)
    density = np.where(found.fires >= LEAST_FIRES, found.fires / max(tokens, 1), np.nan)
    properties = {"density": density, "avar": found.avar, "angle": angle}
    return {"fires": found.fires} | properties | {"neighbour": nearest_cosine(problem)}


def nearest_cosine(problem: Problem) -> np.ndarray:
    """(M,): the largest cosine of each atom to another one; NaN for zero atoms."""
    norms = np.linalg.norm(np.asarray(problem.unit), axis=1)
    unit = problem.unit / jnp.where(norms > 0, norms, 1.0)[:, None]
    parts = [np.asarray(_nearest(unit, i, size=min(CHUNK, len(unit)))) for i in range(0, len(unit), CHUNK)]
    # The last part begins earlier where it would end beyond the last atom.
    last = len(unit) - CHUNK * (len(parts) - 1)
    parts[-1] = parts[-1][-last:]
    return np.where(norms > 0, np.concatenate(parts), np.nan)


@functools.partial(jax.jit, static_argnames="size")
def _nearest(unit: jax.Array, start: int, *, size: int) -> jax.Array:
    first = jnp.minimum(start, len(unit) - size)
    cosines = jnp.matmul(jax.lax.dynamic_slice_in_dim(unit, first, size), unit.T, precision=HIGHEST)
    own = jnp.arange(len(unit))[None, :] == (first + jnp.arange(size))[:, None]
    return jnp.max(jnp.where(own, -jnp.inf, cosines), axis=1)
