"""k-sparse probes: can one latent, or two, tell a class? F1@1, F1@2 and dF1 = F1@2 - F1@1.

Latents are z-scored, ranked by |correlation| with the class and probed by logistic regression on probe_train
only; F1 is of the positive class on test, macro-averaged over classes (one against the rest). A large dF1
says that a concept needs a second latent (feature splitting). Source: "The Price of Amortized Inference",
released evaluation, with held-out F1 and real labels in place of its pseudo-labels (`literal` keeps those).

    result = evaluate_probes(train, test)      # Units of labels.py; the same units for every mode
    result.estimates["df1"]                    # uncertainty.Estimate, pairs with another mode's
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from amortjax.metrics.labels import MIN_DOCUMENTS, Units, usable_tasks
from amortjax.metrics.streaming import N_BLOCKS, block_of
from amortjax.metrics.uncertainty import MIN_DOCUMENTS as MIN_FOR_INTERVAL
from amortjax.metrics.uncertainty import N_RESAMPLES, Estimate, resample_weights

N_REFITS = 5
N_RANKED = 6  # the main latent and five auxiliary ones


class Result(NamedTuple):
    """Macro averages of a family of probe metrics. When `reason` is set no task could be used: every
    estimate's value is None and `reason` says why."""

    estimates: dict[str, Estimate]  # interval over test documents, with the probe held fixed
    spread: dict[str, float | None]  # standard deviation over refits on other splits of the documents
    details: list[dict[str, Any]]  # one dict per task
    n_tasks: int
    n_units: int  # of test
    n_documents: int  # of test
    source: str
    reason: str | None = None

    def row(self) -> dict[str, Any]:
        """What a result row keeps beside the flattened estimates."""
        named = {f"{name}_spread": value for name, value in self.spread.items()}
        about = {"n_probe_tasks": self.n_tasks, "n_probe_units": self.n_units, "probe_labels": self.source}
        return named | about | {"n_probe_documents": self.n_documents, "probe_reason": self.reason}


class Split(NamedTuple):
    """Units of probe_train and test together, so that refits are other masks of the same arrays."""

    codes: scipy.sparse.csc_array  # (U, M)
    tasks: np.ndarray  # (U, T) bool
    groups: np.ndarray  # (U,)
    train: np.ndarray  # (U,) bool; the others are test


def join(train: Units, test: Units, names: list[str]) -> Split:
    codes = scipy.sparse.csc_array(scipy.sparse.vstack([train.codes, test.codes]))
    tasks = np.stack([np.concatenate([train.tasks[n], test.tasks[n]]) for n in names], axis=1)
    mask = np.arange(len(tasks)) < len(train.groups)
    return Split(codes, tasks, np.concatenate([train.groups, test.groups]), mask)


def resplits(split: Split, n: int, seed: int) -> list[Split]:
    """The same units with documents dealt anew `n` times: as many to probe_train as before. None if the units
    are scored on the documents they were fitted on (`literal`): there is nothing to deal."""
    documents, first = np.unique(split.groups), np.unique(split.groups[split.train])
    if np.isin(split.groups[~split.train], first).any():
        return []
    rng = np.random.default_rng(seed)
    chosen = [rng.choice(documents, len(first), replace=False) for _ in range(n)]
    return [split._replace(train=np.isin(split.groups, documents)) for documents in chosen]


def correlations(split: Split) -> np.ndarray:
    """(M, T) Pearson correlation of every latent with every task on probe_train; 0 where a latent or a task
    does not vary."""
    mask = split.train.astype(np.float64)
    n = mask.sum()
    y = split.tasks * mask[:, None]  # (U, T)
    latents = split.codes.T  # csr (M, U)
    z, zz = latents @ mask, latents.power(2) @ mask  # (M,)
    rate = y.sum(axis=0) / n
    covariance = (latents @ y) / n - np.outer(z / n, rate)
    variance = zz / n - np.square(z / n)
    variance = np.where(variance > 1e-12 * zz / n, variance, 0.0)  # what is left of a constant is rounding
    scale = np.sqrt(np.outer(variance, rate * (1 - rate)))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def rank_latents(split: Split, n: int = N_RANKED) -> list[np.ndarray]:
    """For each task its latents of largest |correlation| on probe_train, at most `n`; ties go to the lower
    index, and a latent without correlation is never ranked."""
    strength = np.abs(correlations(split))
    ranked = []
    for column in strength.T:
        order = np.argsort(-column, kind="stable")[:n]
        ranked.append(order[column[order] > 0])
    return ranked


def columns(split: Split, latents: np.ndarray) -> np.ndarray:
    """(U, len(latents)) dense codes."""
    return np.asarray(split.codes[:, latents].toarray(), np.float64)


def predict(features: np.ndarray, y: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(U,) bool predictions of a logistic regression fitted on the `train` units of features (U, k), z-scored
    by their moments, classes weighted alike. Without features, or with one class only in `train`, nothing is
    predicted positive."""
    from sklearn import config_context
    from sklearn.linear_model import LogisticRegression

    rate = y[train].mean()
    if features.shape[1] == 0 or rate in (0, 1):
        return np.zeros(len(y), bool)
    mean, std = features[train].mean(axis=0), features[train].std(axis=0)
    scaled = (features - mean) / np.where(std > 0, std, 1.0)
    units, weight = _silent_units_merged(features, y, train)
    weight = weight * np.where(y[units], 0.5 / rate, 0.5 / (1 - rate))  # class_weight="balanced"
    probe = LogisticRegression(solver="liblinear", max_iter=1000)
    with config_context(assume_finite=True, skip_parameter_validation=True):  # checked already
        probe.fit(scaled[units], y[units], sample_weight=weight)
    return scaled @ np.ravel(probe.coef_) + np.ravel(probe.intercept_) > 0


def _silent_units_merged(
    features: np.ndarray, y: np.ndarray, train: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of the units to fit on: those of `train` on which no feature fires are one unit per
    class with their number as weight, which is the same fit (codes are sparse, so several times faster)."""
    silent = train & ~features.any(axis=1)
    units, weight = [np.flatnonzero(train & ~silent)], [np.ones(np.count_nonzero(train & ~silent))]
    for alike in (np.flatnonzero(silent & y), np.flatnonzero(silent & ~y)):
        units.append(alike[:1])
        weight.append(np.full(min(len(alike), 1), float(len(alike))))
    return np.concatenate(units), np.concatenate(weight)


def f1_counts(split: Split, block: np.ndarray) -> np.ndarray:
    """(2, T, 2, N_BLOCKS): for k = 1 and 2 and each task, 2 tp and 2 tp + fp + fn of the test units per
    block."""
    out = np.zeros((2, split.tasks.shape[1], 2, N_BLOCKS))
    test = ~split.train
    for t, ranked in enumerate(rank_latents(split, 2)):
        y, features = split.tasks[:, t], columns(split, ranked)
        for k in (1, 2):
            guess = predict(features[:, :k], y, split.train)
            hit = np.bincount(block[test], (guess & y)[test], N_BLOCKS)
            miss = np.bincount(block[test], (guess ^ y)[test], N_BLOCKS)
            out[k - 1, t] = 2 * hit, 2 * hit + miss
    return out


def macro_f1(counts: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: (R,)} from `f1_counts` and block weights (R, N_BLOCKS); F1 is 0 where nothing is to be
    found."""
    above, below = counts[:, :, 0] @ weights.T, counts[:, :, 1] @ weights.T  # (2, T, R)
    f1 = np.divide(above, below, out=np.zeros_like(above), where=below > 0).mean(axis=1)
    return {"f1@1": f1[0], "f1@2": f1[1], "df1": f1[1] - f1[0]}


def evaluate_probes(
    train: Units,
    test: Units,
    min_documents: int = MIN_DOCUMENTS,
    n_refits: int = N_REFITS,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Result:
    """F1@1, F1@2 and dF1 of one mode's codes. `usable_tasks` says which classes count."""
    names, reason = usable_tasks(train, test, min_documents)
    if reason:
        return no_result(("f1@1", "f1@2", "df1"), test, reason)
    split = join(train, test, names)
    block = blocks_of_test(split)
    counts = f1_counts(split, block)
    once = np.ones((1, N_BLOCKS))
    values = {name: float(v[0]) for name, v in macro_f1(counts, once).items()}
    draws = {}
    if test.n_documents >= MIN_FOR_INTERVAL:
        draws = macro_f1(counts, resampled_test(split, block, n_resamples, seed))
    found = {name: Estimate(value, draws.get(name)) for name, value in values.items()}
    again = [macro_f1(f1_counts(other, block), once) for other in resplits(split, n_refits, seed)]
    details = [_detail(name, split, t, counts) for t, name in enumerate(names)]
    spread = spread_of(again, tuple(values))
    return Result(found, spread, details, len(names), len(test.groups), test.n_documents, test.source)


def blocks_of_test(split: Split) -> np.ndarray:
    """(U,) block of each test unit's document; 0 for units of probe_train, which no interval counts."""
    block = np.zeros(len(split.groups), np.int64)
    block[~split.train] = block_of(split.groups[~split.train])
    return block


def resampled_test(split: Split, block: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Resamples of the blocks that hold test units."""
    return resample_weights(np.bincount(block[~split.train], minlength=N_BLOCKS), n_resamples, seed)


def spread_of(refits: list[dict[str, np.ndarray]], names: tuple[str, ...]) -> dict[str, float | None]:
    """Standard deviation over refits; None with fewer than two."""
    if len(refits) < 2:
        return dict.fromkeys(names)
    return {name: float(np.std([refit[name][0] for refit in refits], ddof=1)) for name in names}


def no_result(names: tuple[str, ...], test: Units, reason: str) -> Result:
    found = {name: Estimate(None) for name in names}
    return Result(found, dict.fromkeys(names), [], 0, len(test.groups), test.n_documents, test.source, reason)


def _detail(name: str, split: Split, t: int, counts: np.ndarray) -> dict[str, Any]:
    above, below = counts[:, t, 0].sum(axis=1), counts[:, t, 1].sum(axis=1)
    one, two = (float(a / b) if b > 0 else 0.0 for a, b in zip(above, below, strict=True))
    positives = int(split.tasks[~split.train, t].sum())
    return {"task": name, "positives": positives, "f1@1": one, "f1@2": two}
