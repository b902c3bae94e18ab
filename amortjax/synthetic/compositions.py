"""Out-of-distribution compositions: test supports that hold a pair of sources never active together in training.

Every source is seen in training, and every other pair: what is new is only the combination. An encoder that has learned
sources codes it as well as any other; one that has learned which sources go together does not (arXiv 2603.28744).

    split = draw_split(lambda seed, n: draw_codes(seed, n, 16, 3, "uniform"), sources=16, n_train=1024, n_test=1024)
    rows = scores(encode, split, dictionary)      # [{"where": "in_distribution", ...}, {"where": "new_pairs", ...}]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.metrics import recovery

MOST_ROUNDS = 400
FIRES = 1e-3  # a code above this counts as active (the papers' L0 threshold)
WHERE = ("in_distribution", "new_pairs")


class Split(NamedTuple):
    """Codes (n, sources) float32. `train` and `test_in` never hold one of the `pairs` (P, 2); each row of `test_out`
    holds at least one."""

    train: np.ndarray
    test_in: np.ndarray
    test_out: np.ndarray
    pairs: np.ndarray


def held_out_pairs(seed: int, sources: int, count: int | None = None) -> np.ndarray:
    """(count, 2) distinct pairs a < b. The first sources // 2 of them (the default) share no source."""
    every = sources * (sources - 1) // 2
    count = sources // 2 if count is None else count
    if sources < 2 or not 1 <= count <= every:
        raise AmortjaxError(
            f"{count} held-out pairs of {sources} sources: there are {every}, and 1 is the least"
        )
    rng = np.random.default_rng([seed, sources])
    disjoint = np.sort(rng.permutation(sources)[: sources // 2 * 2].reshape(-1, 2), axis=1)
    if count > len(disjoint):
        upper = np.stack(np.triu_indices(sources, 1), axis=1)
        known = {tuple(pair) for pair in disjoint}
        rest = np.array([pair for pair in upper if tuple(pair) not in known])
        disjoint = np.concatenate([disjoint, rng.permutation(rest)])
    return disjoint[:count]


def holds_pair(codes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(n,) bool: rows of codes (n, sources) in which both sources of some pair are active."""
    fires = np.asarray(codes) != 0
    return np.any(fires[:, pairs[:, 0]] & fires[:, pairs[:, 1]], axis=1)


def draw_split(
    draw: Callable[[int, int], np.ndarray],
    sources: int,
    n_train: int,
    n_test: int,
    pairs: np.ndarray | int | None = None,
    seed: int = 0,
) -> Split:
    """Rows of `draw(seed, n) -> codes (n, sources)`, any distribution, parted by whether they hold one of the pairs
    (given, or how many to hold out). AmortjaxError if nearly all rows hold one, or next to none."""
    pairs = (
        held_out_pairs(seed, sources, pairs) if pairs is None or isinstance(pairs, int) else np.asarray(pairs)
    )
    without: list[np.ndarray] = []
    with_pair: list[np.ndarray] = []
    need_without, need_with = n_train + n_test, n_test
    for round_ in range(MOST_ROUNDS):
        z = np.asarray(draw(seed + 7919 * round_, n_train + n_test), np.float32)
        if z.ndim != 2 or z.shape[1] != sources:
            raise AmortjaxError(f"codes of shape {z.shape} are not of {sources} sources")
        held = holds_pair(z, pairs)
        without.append(z[~held][:need_without])
        with_pair.append(z[held][:need_with])
        need_without, need_with = need_without - len(without[-1]), need_with - len(with_pair[-1])
        if not need_without and not need_with:
            known = np.concatenate(without)
            return Split(known[:n_train], known[n_train:], np.concatenate(with_pair), pairs)
    kind = "with" if need_with else "without"
    raise AmortjaxError(
        f"{len(pairs)} held-out pairs of {sources} sources: too few samples {kind} one of them; hold out "
        f"{'more' if need_with else 'fewer'}, or activate {'more' if need_with else 'fewer'} sources"
    )


def scores(
    code: Callable[[np.ndarray], Any],
    split: Split,
    dictionary: np.ndarray,
    lam: float | None = None,
    atoms: np.ndarray | None = None,
    identity: bool = False,
) -> list[dict[str, Any]]:
    """How an encoder or solver `code(x (n, D)) -> z (n, M)` does on both tests, a row each.

    dictionary (sources, D): the truth, x = codes @ dictionary. atoms (M, D): those of the coder, for the error, and
    with `lam` (half form) the objective; default the truth. Latents are matched with sources on `test_in` (or are the
    same: `identity`) and stay so for both: new pairs must not choose whom they are read by.
    """
    dictionary = np.asarray(dictionary, np.float32)
    atoms = dictionary if atoms is None else np.asarray(atoms, np.float32)
    tests = dict(zip(WHERE, (split.test_in, split.test_out), strict=True))
    coded = {where: np.asarray(code(truth @ dictionary), np.float32) for where, truth in tests.items()}
    match = "identity" if identity else "hungarian"
    found = recovery.mcc(split.test_in, coded[WHERE[0]], match)
    rows = []
    for where, truth in tests.items():
        z = coded[where]
        row = _recovered(truth, z, found.pairs, identity)
        row |= {"where": where, "n_samples": len(z), "l0": float((z > FIRES).sum(axis=1).mean())}
        residual = truth @ dictionary - z @ atoms
        row["mse"] = float((residual**2).mean())
        if lam is not None:
            row["objective"] = float((0.5 * (residual**2).sum(axis=1) + lam * np.abs(z).sum(axis=1)).mean())
        rows.append(row)
    pairs_found = _pairs_found(split, coded[WHERE[1]], found.pairs)
    rows[1]["pair_found"] = pairs_found
    return rows


def _recovered(truth: np.ndarray, z: np.ndarray, pairs: np.ndarray, signed: bool) -> dict[str, float]:
    """MCC under a matching that is given, and whether supports are right: the K largest matched latents of a sample
    with K active sources are exactly these, and their share among them."""
    source, latent = pairs.T
    a, b = truth[:, source], z[:, latent]
    each = np.array([recovery.correlations(a[:, [i]], b[:, [i]])[0, 0] for i in range(len(pairs))])
    fires = a > FIRES
    rank = np.argsort(np.argsort(-b, axis=1, kind="stable"), axis=1)
    right = ((rank < fires.sum(axis=1, keepdims=True)) & fires & (b > FIRES)).sum(axis=1)
    active = (truth > FIRES).sum(axis=1)
    return {
        "mcc": float((each if signed else np.abs(each)).mean()),
        "support_share": float((right / np.maximum(active, 1)).mean()),
        "support_exact": float((right == active).mean()),
    }


def _pairs_found(split: Split, z: np.ndarray, pairs: np.ndarray) -> float:
    """Of the held-out pairs that are active in `test_out`, the share of which both latents fire among the K largest."""
    latent_of = np.full(split.test_out.shape[1], -1)
    latent_of[pairs[:, 0]] = pairs[:, 1]
    rank = np.argsort(np.argsort(-z, axis=1, kind="stable"), axis=1)
    fires = (rank < (split.test_out != 0).sum(axis=1, keepdims=True)) & (z > FIRES)
    held, found = 0, 0
    for a, b in split.pairs:
        rows = (split.test_out[:, a] != 0) & (split.test_out[:, b] != 0)
        held += int(rows.sum())
        if latent_of[a] >= 0 and latent_of[b] >= 0:
            found += int((fires[rows, latent_of[a]] & fires[rows, latent_of[b]]).sum())
    return found / max(held, 1)
