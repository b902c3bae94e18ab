"""Intervals from block totals: paired bootstrap for smooth metrics, rarefaction and jackknife for dead
latents.

An `Estimate` is a value with what its interval is made of. Two estimates made with the same seed on the same
tokens used the same resamples, so their difference is paired. Blocks are documents hashed into N_BLOCKS;
under MIN_DOCUMENTS documents there is no interval (`draws` is None).

    a = estimates(sums_a, n_documents)         # {"nmse": Estimate, ..., "dead_half": Estimate}
    interval(a["nmse"])                        # (lo, hi) or None
    difference(a["nmse"], b["nmse"])           # Difference(value, lo, hi) of a - b, or None
"""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import gammaln, ndtri

from amortjax.metrics.streaming import DENSE, Sums, finalise, ratios, totals

MIN_DOCUMENTS = 50
N_RESAMPLES = 1000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A metric's value with its bootstrap draws (R,), or its values with one block left out (B,)."""

    value: float | None
    draws: np.ndarray | None = None  # None: no interval
    kind: Literal["bootstrap", "jackknife"] = "bootstrap"


class Difference(NamedTuple):
    """a - b with its paired interval; the bounds are None where either has none."""

    value: float
    lo: float | None
    hi: float | None

    @property
    def clear(self) -> bool:
        """The interval excludes 0."""
        return self.lo is not None and self.hi is not None and (self.lo > 0 or self.hi < 0)


def resample_weights(counts: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0) -> np.ndarray:
    """(R, B): how often each block is drawn. Blocks without tokens (`counts` (B,) 0) are never drawn. The
    same counts and seed give the same resamples, which is what makes comparisons of modes paired."""
    filled = np.flatnonzero(np.asarray(counts) > 0)
    out = np.zeros((n_resamples, len(counts)))
    if len(filled):
        rng = np.random.default_rng(seed)
        out[:, filled] = rng.multinomial(len(filled), np.full(len(filled), 1 / len(filled)), size=n_resamples)
    return out


def estimates(
    sums: Sums, n_documents: int, n_resamples: int = N_RESAMPLES, seed: int = 0, chunk: int = 4096
) -> dict[str, Estimate]:
    """Estimates of all metrics of a stream that have an interval, and `dead_half`; None values stay None."""
    values = finalise(sums)
    weights = resample_weights(sums.tokens, n_resamples, seed) if n_documents >= MIN_DOCUMENTS else None
    out = {name: Estimate(_float(values[name])) for name in ratios(totals(sums), sums.fires.shape[1])}
    out |= {f"dense@{at:g}": Estimate(_float(values[f"dense@{at:g}"])) for at in DENSE}
    if weights is not None:
        smooth = ratios(totals(sums, weights), sums.fires.shape[1])
        out |= {name: out[name]._replace(draws=draws) for name, draws in smooth.items()}
        for at in DENSE:
            name = f"dense@{at:g}"
            out[name] = out[name]._replace(draws=dense_draws(sums, weights, at, chunk))
    out["dead_half"] = rarefied_dead(sums, with_interval=weights is not None)
    return out


def interval(e: Estimate, level: float = LEVEL) -> tuple[float, float] | None:
    """Percentile interval of the draws, or value +- z * jackknife standard error, cut to [0, 1]."""
    if e.value is None or e.draws is None:
        return None
    if e.kind == "jackknife":
        half = float(ndtri(0.5 + level / 2)) * jackknife_error(e.draws)
        return max(0.0, e.value - half), min(1.0, e.value + half)
    return _percentiles(e.draws, level)


def difference(a: Estimate, b: Estimate, level: float = LEVEL) -> Difference | None:
    """a - b, paired; None if either value is not defined."""
    if a.value is None or b.value is None:
        return None
    value = a.value - b.value
    if a.draws is None or b.draws is None:
        return Difference(value, None, None)
    if a.kind != b.kind or a.draws.shape != b.draws.shape:
        raise ValueError("these estimates come from different tokens or resamples: they can't be paired")
    draws = a.draws - b.draws
    if a.kind == "jackknife":
        half = float(ndtri(0.5 + level / 2)) * jackknife_error(draws)
        return Difference(value, value - half, value + half)
    bounds = _percentiles(draws, level)
    return Difference(value, *(bounds or (None, None)))


def flatten(found: dict[str, Estimate], level: float = LEVEL) -> dict[str, float | None]:
    """Columns of a result row: {"nmse": v, "nmse_lo": lo, "nmse_hi": hi, ...}; None where not defined."""
    out: dict[str, float | None] = {}
    for name, e in found.items():
        lo, hi = interval(e, level) or (None, None)
        out |= {name: e.value, f"{name}_lo": lo, f"{name}_hi": hi}
    return out


def flatten_differences(
    found: dict[str, Estimate], reference: dict[str, Estimate], against: str = "amortized"
) -> dict[str, float | None]:
    """Columns `NAME_minus_AGAINST` with `_lo` and `_hi`: the paired difference of every common metric."""
    out: dict[str, float | None] = {}
    for name in found.keys() & reference.keys():
        d = difference(found[name], reference[name])
        key = f"{name}_minus_{against}"
        out |= {key: d and d.value, f"{key}_lo": d and d.lo, f"{key}_hi": d and d.hi}
    return dict(sorted(out.items()))


def dense_draws(sums: Sums, weights: np.ndarray, at: float, chunk: int = 4096) -> np.ndarray:
    """(R,) share of latents whose resampled firing rate is at least `at`, `chunk` latents at a time.

    A resampled rate lies between a latent's lowest and highest block rate, so only latents for which `at`
    lies between the two are resampled.
    """
    filled = sums.tokens > 0
    tokens, n_latents = sums.tokens[filled].astype(np.float64), sums.fires.shape[1]
    w = weights[:, filled]
    need = w @ tokens  # (R,)
    count = np.zeros(len(w))
    for start in range(0, n_latents, chunk):
        fires = sums.fires[filled, start : start + chunk].astype(np.float64)
        rate = fires / tokens[:, None]
        always, never = rate.min(axis=0) >= at, rate.max(axis=0) < at
        open_ = ~(always | never)
        count += always.sum() + ((w @ fires[:, open_]) / need[:, None] >= at).sum(axis=1)
    return count / n_latents


def unseen(n_blocks: int, drawn: int) -> np.ndarray:
    """(n_blocks + 1,): the chance that a latent that fires in b of the blocks, b = 0 ... n_blocks, fires in
    none of `drawn` blocks drawn without replacement: C(n_blocks - b, drawn) / C(n_blocks, drawn)."""
    b = np.arange(n_blocks + 1)
    left = np.maximum(n_blocks - b - drawn, 0)
    log = (
        gammaln(n_blocks - b + 1) - gammaln(left + 1) - gammaln(n_blocks + 1) + gammaln(n_blocks - drawn + 1)
    )
    return np.where(n_blocks - b >= drawn, np.exp(log), 0.0)


def rarefied_dead(sums: Sums, with_interval: bool = True) -> Estimate:
    """Expected share of latents that never fire on a random half of the filled blocks (of the documents, up
    to N_BLOCKS of them), in closed form; `draws` are its values with one block left out, rarefied to half of
    the rest. The bootstrap would lose rare latents and call them dead, so it is not used."""
    filled = sums.tokens > 0
    n, n_latents = int(filled.sum()), sums.fires.shape[1]
    fired = sums.fires[filled] > 0  # (n, M)
    b = fired.sum(axis=0)
    value = float(unseen(n, n // 2)[b].mean())
    if not with_interval or n < 2:
        return Estimate(value, kind="jackknife")
    table = unseen(n - 1, (n - 1) // 2)
    kept = table[np.minimum(b, n - 1)]  # if the block left out holds no firing; b = n then never happens
    gained = np.where(b > 0, table[np.maximum(b - 1, 0)] - kept, 0.0)
    without = np.array([(kept.sum() + gained[row].sum()) / n_latents for row in fired])
    return Estimate(value, without, "jackknife")


def jackknife_error(without: np.ndarray) -> float:
    """Delete-a-block jackknife standard error from the leave-one-out values (B,) (Efron & Stein 1981)."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.sum(np.square(without - without.mean()))))


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float] | None:
    if not np.isfinite(draws).all():
        return None
    lo, hi = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(lo), float(hi)


def _float(value: float | int | None) -> float | None:
    return None if value is None else float(value)
