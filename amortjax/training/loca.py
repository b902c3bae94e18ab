"""LocA-SAE: latents grouped by how widely the directions they fire on are spread, a budget for each group.

The four steps ("The Price of Amortized Inference in Sparse Autoencoders", section 6): train a global SAE, measure
each latent's angular variance, split latents into groups by it, go on under the group TopK. G encoders of disjoint
groups over one shared decoder are one linear encoder with grouped TopK: LocA adds no capacity to the encoder, it
divides the budget.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.saes.encoders import HIGHEST, encode
from amortjax.saes.sae import SAE
from amortjax.training.recipe import split_sizes

# Fewer firings than this say nothing about a direction's spread.
LEAST_FIRES = 20


class Spread(NamedTuple):
    """Of each latent, (M,): angular variance from 0 (one direction) to 1 (all), and how often it fired. NaN where
    it fired too rarely."""

    avar: np.ndarray
    fires: np.ndarray


def angular_variance(
    sae: SAE,
    batches: Iterable[np.ndarray],
    *,
    centred: bool = True,
    corrected: bool = True,
    least: int = LEAST_FIRES,
) -> Spread:
    """AVar_j = 1 - |mean of x / |x|| over the tokens on which latent j fires; batches of raw x (n, D).

    `centred`: directions of x - b_dec, not of x, which all share the mean's. `corrected`: the mean of m random
    directions has squared length 1/m, so (m |mean|^2 - 1) / (m - 1) takes the place of |mean|^2; else a latent of
    few firings looks concentrated. The authors' version is centred=False, corrected=False, least=0 (where a latent
    that never fires has AVar 1).
    """
    total = np.zeros((sae.n_latents, sae.d_in))
    fires = np.zeros(sae.n_latents)
    for x in batches:
        sums, counts = _direction_sums(sae, jnp.asarray(x, jnp.float32), centred)
        total += np.asarray(sums)
        fires += np.asarray(counts)
    length = np.linalg.norm(total, axis=1) / np.maximum(fires, 1)
    if corrected:
        squared = (fires * length**2 - 1) / np.maximum(fires - 1, 1)
        length = np.sqrt(np.clip(squared, 0, 1))
    return Spread(np.where(fires >= least, 1 - length, np.nan), fires)


@functools.partial(jax.jit, static_argnames="centred")
def _direction_sums(sae: SAE, x: jax.Array, centred: bool) -> tuple[jax.Array, jax.Array]:
    """Sums (M, D) of the directions on which each latent fires, and how many (M,)."""
    firing = (encode(sae, x) > 0).astype(jnp.float32)
    c = x - sae.b_dec if centred else x
    unit = c / jnp.maximum(jnp.linalg.norm(c, axis=1, keepdims=True), 1e-20)
    return jnp.matmul(firing.T, unit, precision=HIGHEST), firing.sum(axis=0)


def order_by(score: np.ndarray, fires: np.ndarray) -> np.ndarray:
    """Latents (M,) by falling score; those without a score (NaN) last, the ones that fired more before others."""
    known = np.isfinite(score)
    return np.lexsort((-fires, np.where(known, -score, 0), ~known))


def regroup(sae: SAE, order: np.ndarray, group_k: tuple[int, ...], avar: np.ndarray | None = None) -> SAE:
    """The SAE's latents in a new order, split into len(group_k) groups (of one size, up to one), each with its k.

    Same weights, same raw units, variant `loca`; `extra` keeps each latent's place in `sae` (origin) and its angular
    variance (avar; -1 where it is not known). Raises AmortjaxError if a k does not fit.
    """
    m, count = sae.n_latents, len(group_k)
    if sorted(order.tolist()) != list(range(m)):
        raise AmortjaxError(f"order: not a permutation of the SAE's {m} latents")
    sizes = split_sizes(m, (1 / count,) * count)
    if any(not 0 <= k <= size for k, size in zip(group_k, sizes, strict=True)) or sum(group_k) < 1:
        raise AmortjaxError(f"group_k {group_k}: each must be from 0 to its group's size, of {sizes}")
    extra = {"origin": jnp.asarray(order, jnp.float32)}
    if avar is not None:
        extra["avar"] = jnp.asarray(np.nan_to_num(avar, nan=-1.0)[order], jnp.float32)
    factor = {name: sae.extra[name] for name in ("norm_factor",) if name in sae.extra}
    return dataclasses.replace(
        sae,
        W_enc=sae.W_enc[:, order],
        b_enc=sae.b_enc[order],
        W_dec=sae.W_dec[order],
        extra=extra | factor,
        variant="loca",
        k=None,
        groups=sizes,
        group_k=tuple(group_k),
        batch_rule=False,
    )


def uniform(total: int, count: int) -> tuple[int, ...]:
    """`total` divided among `count` groups as evenly as whole numbers can."""
    return tuple(total // count + (i < total % count) for i in range(count))


def scaled(group_k: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Budgets in the same proportions that add up to `total`, by largest remainders."""
    exact = np.asarray(group_k) * total / sum(group_k)
    ks = np.floor(exact).astype(int)
    # Stable: among equal remainders the earlier group, of the higher score, gets it.
    for i in np.argsort(-(exact - ks), kind="stable")[: total - ks.sum()]:
        ks[i] += 1
    return tuple(int(k) for k in ks)
