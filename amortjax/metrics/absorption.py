"""The absorption proxy: how often a concept's main latent is silent while one of its next five fires.

absorption = P(main <= 0 and any aux > 0 | y = 1). The main latent and five auxiliary ones have the largest
|correlation| with the class on probe_train; the rate is taken on test units. It rises with density alone, so
two values of "nothing is absorbed" stand beside it: the chance value (1 - p_main)(1 - prod(1 - p_aux)), from
the rates of those very latents on the positives, and a permutation null. Source: "The Price of Amortized
Inference", released evaluation (it has no control and counts on the training rows).
"""

import numpy as np

from amortjax.metrics.labels import MIN_DOCUMENTS, Units, usable_tasks
from amortjax.metrics.probes import (
    N_REFITS,
    Result,
    Split,
    blocks_of_test,
    columns,
    join,
    no_result,
    rank_latents,
    resampled_test,
    resplits,
    spread_of,
)
from amortjax.metrics.streaming import N_BLOCKS
from amortjax.metrics.uncertainty import MIN_DOCUMENTS as MIN_FOR_INTERVAL
from amortjax.metrics.uncertainty import N_RESAMPLES, Estimate

NAMES = ("absorption", "absorption_chance", "absorption_excess", "absorption_null")
N_PERMUTATIONS = 20


def chance(p_main: np.ndarray, p_aux: np.ndarray) -> np.ndarray:
    """Absorption of independent latents: p_main (...,) and p_aux (..., A) are firing rates on the positives.
    For five auxiliary latents of the main one's rate: .049 at .01, .215 at .05, .369 at .1, .582 at .3."""
    return (1 - p_main) * (1 - np.prod(1 - p_aux, axis=-1))


def absorbed(fires: np.ndarray) -> np.ndarray:
    """(P,) bool from fires (P, 1 + A) of the main latent and the auxiliary ones."""
    return ~fires[:, 0] & fires[:, 1:].any(axis=1) if fires.shape[1] else np.zeros(len(fires), bool)


def permuted(fires: np.ndarray, n_permutations: int, seed: int | list[int]) -> float:
    """Mean absorption when every latent's firings are shuffled over the positives, each by itself."""
    rng = np.random.default_rng(seed)
    rates = [absorbed(rng.permuted(fires, axis=0)).mean() for _ in range(n_permutations)]
    return float(np.mean(rates)) if len(fires) else 0.0


def absorption_counts(split: Split, block: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """(T, 8, N_BLOCKS) totals over the positive test units of each block: units, absorbed, firings of the
    main latent and of five others (0 for those that do not exist); and the (P, <= 6) firings themselves."""
    out = np.zeros((split.tasks.shape[1], 8, N_BLOCKS))
    kept = []
    for t, ranked in enumerate(rank_latents(split)):
        positive = split.tasks[:, t] & ~split.train
        fires = columns(split, ranked)[positive] > 0
        series = [np.ones(len(fires)), absorbed(fires), *fires.T]
        for i, values in enumerate(series):
            out[t, i] = np.bincount(block[positive], values, N_BLOCKS)
        kept.append(fires)
    return out, kept


def macro_absorption(counts: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: (R,)} from `absorption_counts` and block weights (R, N_BLOCKS), averaged over tasks."""
    total = counts @ weights.T  # (T, 8, R)
    rates = total[:, 1:] / np.maximum(total[:, :1], 1)
    rate = rates[:, 0].mean(axis=0)
    by_chance = chance(rates[:, 1], np.moveaxis(rates[:, 2:], 1, -1)).mean(axis=0)
    return {"absorption": rate, "absorption_chance": by_chance, "absorption_excess": rate - by_chance}


def evaluate_absorption(
    train: Units,
    test: Units,
    min_documents: int = MIN_DOCUMENTS,
    n_refits: int = N_REFITS,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Result:
    """The proxy, its chance value, their difference and the permutation null of one mode's codes."""
    names, reason = usable_tasks(train, test, min_documents)
    if reason:
        return no_result(NAMES, test, reason)
    split = join(train, test, names)
    block = blocks_of_test(split)
    counts, fires = absorption_counts(split, block)
    once = np.ones((1, N_BLOCKS))
    values = {name: float(v[0]) for name, v in macro_absorption(counts, once).items()}
    draws = {}
    if test.n_documents >= MIN_FOR_INTERVAL:
        draws = macro_absorption(counts, resampled_test(split, block, n_resamples, seed))
    found = {name: Estimate(value, draws.get(name)) for name, value in values.items()}
    nulls = [permuted(f, N_PERMUTATIONS, [seed, t]) for t, f in enumerate(fires)]
    found["absorption_null"] = Estimate(float(np.mean(nulls)))
    others = resplits(split, n_refits, seed)
    again = [macro_absorption(absorption_counts(other, block)[0], once) for other in others]
    spread = spread_of(again, NAMES[:3])
    details = [
        {"task": name, "positives": len(f), "absorption": float(absorbed(f).mean()), "absorption_null": null}
        for name, f, null in zip(names, fires, nulls, strict=True)
    ]
    return Result(found, spread, details, len(names), len(test.groups), test.n_documents, test.source)
