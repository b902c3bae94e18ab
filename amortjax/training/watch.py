"""Held-out metrics of an SAE under training: its reconstruction, and its encoder's gap to the certified optimum.

Every number is a ratio of totals over the rows. The SAE and the rows are in scaled units (`Recipe`), as the loss
is; none of these numbers depends on that scale.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.inference import api, gaps, modes, objective
from amortjax.inference.codes import Codes
from amortjax.inference.modes import Options
from amortjax.saes import encoders
from amortjax.saes.sae import SAE, decode

ROWS = 4096
# Codes of a block are dense: (rows, M) float32 within this many bytes.
BLOCK_BYTES = 1 << 26
# Where the encoder's L0 is above this share of the rank, an optimum of that L0 costs more than the training it
# would watch (hundreds of forwards a token), and there is soon none at all.
MOST_OF_RANK = 0.25


def blocks(n: int, n_latents: int) -> tuple[int, int]:
    """(number, rows in each) of the equal blocks in which n rows are encoded; up to number - 1 rows are left out."""
    most = max(1, min(ROWS, BLOCK_BYTES // (4 * n_latents)))
    number = -(-n // most)
    return number, n // number


def held_out(sae: SAE, x: jax.Array | np.ndarray, mean: jax.Array | np.ndarray) -> dict[str, float]:
    """{"val_fvu", "val_l0", "val_dead"} on x (N, D), N >= 1: |x - x_hat|^2 over |x - mean|^2, firing latents per
    token, and the share of latents that fire on none of these rows. Compiles once per shape and variant."""
    number, rows = blocks(len(x), sae.n_latents)
    parts = _sums(sae, jnp.asarray(x), jnp.asarray(mean), number=number, rows=rows)
    error, spread, l0 = (float(np.sum(np.asarray(part), dtype=np.float64)) for part in parts[:3])
    return {
        "val_fvu": error / spread if spread > 0 else float("nan"),
        "val_l0": l0 / (number * rows),
        "val_dead": float(np.mean(~np.asarray(parts[3]))),
    }


@functools.partial(jax.jit, static_argnames=("number", "rows"))
def _sums(sae: SAE, x: jax.Array, mean: jax.Array, *, number: int, rows: int):
    """Per block, (number,): squared error, squared distance from the mean, firing latents; (M,) who has fired."""

    def one(fired: jax.Array, block: jax.Array):
        z = encoders.encode(sae, block)
        fires = z != 0
        error = jnp.sum(jnp.square(block - decode(sae, z)))
        spread = jnp.sum(jnp.square(block - mean))
        return fired | jnp.any(fires, axis=0), (error, spread, jnp.sum(fires))

    start = jnp.zeros((sae.n_latents,), bool)
    fired, sums = jax.lax.scan(one, start, x[: number * rows].reshape(number, rows, -1))
    return *sums, fired


def gap(
    sae: SAE, x: jax.Array | np.ndarray, *, start: float | None = None, tol: float = 1e-3
) -> dict[str, float | None]:
    """{"val_gap", "val_gap_width", "val_lam"} on x (N, D), a few hundred rows.

    val_gap is (P - P*) / P* of the encoder's codes, summed over tokens, as its certificates bound it from above;
    it is at most val_gap_width too high. val_lam is lambda*, where the optimum has the encoder's L0 on these rows
    (to 1 %), half form, scaled units; the last one is a good `start` for the next. `tol` bounds the optimum's
    relative gap token by token. All None where no optimum can be compared: an encoder that is silent, or not
    finite, or fires for more than a quarter of the dictionary's rank.
    """
    nothing: dict[str, float | None] = dict.fromkeys(("val_gap", "val_gap_width", "val_lam"))
    rows = np.asarray(x, np.float32)
    sae = _here(sae)
    encoder = api.encode_codes(sae, rows)
    l0 = float(encoder.l0.mean())
    if not (np.isfinite(encoder.values).all() and np.isfinite(np.asarray(sae.W_dec)).all() and l0 > 0):
        return nothing
    problem = objective.pose(sae)
    if l0 > MOST_OF_RANK * problem.rank_bound:
        return nothing
    t, options = np.asarray(objective.targets(sae, rows)[0]), Options(tol=tol)
    try:
        found = api.match_l0("optimal", problem, t, encoder, l0, options, start=start, refuse=True)
        total = _total(problem, t, encoder, found.lam, options)
    except AmortjaxError:  # no lambda gives that L0: a number less, not the end of a training
        return nothing
    upper, lower = total.relative_upper, total.relative_lower
    if not np.isfinite(upper):
        return nothing
    return {"val_gap": upper, "val_gap_width": upper - lower, "val_lam": found.lam}


def _total(
    problem: objective.Problem, t: np.ndarray, encoder: Codes, lam: float, options: Options
) -> gaps.Total:
    """The encoder's gap, summed over tokens t (N, D)."""
    best, _ = modes.solve("optimal", problem, t, encoder, lam, 1.0, options)
    own, optimum = (
        gaps.proof_of(problem, objective.certify(problem, t, codes, lam), lam) for codes in (encoder, best)
    )
    return gaps.total(gaps.interval(own, optimum))


def _here(sae: SAE) -> SAE:
    """An SAE that lies on one device: solvers work there."""

    def one(array: Any) -> jax.Array:
        array = jnp.asarray(array)
        return array if len(array.devices()) == 1 else jnp.asarray(np.asarray(array))

    return jax.tree.map(one, sae)
