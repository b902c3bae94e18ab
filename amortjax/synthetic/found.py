"""Were the true codes and atoms found? What scenarios and sweeps report, each value with its chance level.

    of_codes(truth, x, z, "hungarian")      # {"mcc": .97, "mcc_chance": .48, "mcc_corrected": .94, ...}
    of_atoms(truth, found)                  # {"dict_mcc": .99, "dict_mcc_chance": .67, ...}

The chance level of codes is what encoders with random weights score on the same x, because it is no merit of a training
that latents go with what they see: .48 at 16/8/3, where codes that have nothing to do with x score .06
(`mcc_independent`). That of atoms is what unrelated Gaussian dictionaries of the same shape score.
"""

import functools
from typing import Any

import numpy as np

from amortjax.metrics import recovery

Row = dict[str, Any]
DRAWS = 5


def of_codes(
    truth: np.ndarray, x: np.ndarray, z: np.ndarray, match: recovery.How, signed: bool = False
) -> Row:
    """Of true codes (n, N), x (n, M) and codes z (n, N'): mcc (Pearson under `match`) and mcc_cosine, each with
    NAME_chance and NAME_corrected; mcc_hungarian and mcc_greedy whatever `match` is; mcc_independent.

    signed: codes have both signs, and so have the random encoder's.
    """
    truth, z = np.asarray(truth, np.float64), np.asarray(z, np.float64)
    row: Row = {}
    kinds: tuple[tuple[str, recovery.Kind], ...] = (("mcc", "pearson"), ("mcc_cosine", "cosine"))
    for name, kind in kinds:
        correlation = recovery.correlations(truth, z, kind)
        level = untrained(truth, x, match, kind, signed)
        row |= _levelled(name, recovery.mcc_of(correlation, match).mcc, level)
        if kind == "pearson":
            row |= {f"mcc_{how}": recovery.mcc_of(correlation, how).mcc for how in ("hungarian", "greedy")}
    density = float(np.mean(truth != 0))
    unrelated = recovery.chance(len(truth), truth.shape[1], z.shape[1], match=match, density=density or None)
    return row | {"mcc_independent": unrelated.mean}


def of_atoms(truth: np.ndarray, found: np.ndarray) -> Row:
    """Of true atoms (N, M) and those found (N', M): dict_mcc (Pearson over the M entries, as the paper has it) and
    dict_mcc_cosine, each with NAME_chance and NAME_corrected; dict_mcc_greedy."""
    row: Row = {"dict_mcc_greedy": recovery.mcc(truth.T, found.T, "greedy").mcc}
    kinds: tuple[tuple[str, recovery.Kind], ...] = (("dict_mcc", "pearson"), ("dict_mcc_cosine", "cosine"))
    for name, kind in kinds:
        level = recovery.chance(truth.shape[1], len(truth), len(found), kind=kind).mean
        row |= _levelled(name, recovery.mcc(truth.T, found.T, kind=kind).mcc, level)
    return row


def _levelled(name: str, value: float, level: float) -> Row:
    return {name: value, f"{name}_chance": level, f"{name}_corrected": recovery.corrected(value, level)}


def untrained(
    truth: np.ndarray,
    x: np.ndarray,
    match: recovery.How,
    kind: recovery.Kind = "pearson",
    signed: bool = False,
) -> float:
    """MCC of encoders with random weights on x (n, M), mean of DRAWS; ReLU unless codes are `signed`."""
    sides = (np.ascontiguousarray(truth, np.float32), np.ascontiguousarray(x, np.float32))
    return _untrained(*(side.tobytes() for side in sides), len(x), match, kind, signed)


@functools.lru_cache(maxsize=256)  # one set of data is scored at hundreds of log points
def _untrained(
    truth: bytes, x: bytes, n: int, match: recovery.How, kind: recovery.Kind, signed: bool
) -> float:
    codes, seen = (np.frombuffer(side, np.float32).reshape(n, -1) for side in (truth, x))
    rng = np.random.default_rng([7, *seen.shape, codes.shape[1]])
    found = []
    for _ in range(DRAWS):
        z = seen @ rng.standard_normal((seen.shape[1], codes.shape[1]))
        found.append(recovery.mcc(codes, z if signed else np.maximum(z, 0), match, kind).mcc)
    return float(np.mean(found))
