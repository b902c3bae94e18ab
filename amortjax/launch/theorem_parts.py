"""What launch.theorem measures, part by part, as rows. A row's condition says what it is: half_space, encoder,
sparsity, pair; `theorem_facts` makes the checks of them."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from amortjax.synthetic import generators, relu_fit, theorem

Row = dict[str, Any]
TRAINED, TIED, SAE = "ReLU, trained on the codes", "ReLU, W = D'", "SAE, trained"
LASSO, SPARSEST = "certified lasso", "sparsest, by trying all"
MOST_PAIRS, ORACLE_SAMPLES = 400, 128
COVERED = ((16, 8), (16, 12), (32, 8))  # sources and dimensions at which Cover's count is checked


class Sizes(NamedTuple):
    """Of a run: the paper's N, M, K, and how much is drawn and trained."""

    sources: int
    dimensions: int
    active: int
    sparsities: tuple[int, ...]
    samples: int
    test_samples: int
    starts: int
    steps: int
    lam: float
    dictionaries: int
    seed: int

    @property
    def text(self) -> str:
        return f"{self.sources} sources in {self.dimensions} dimensions"


@functools.cache
def dictionary(sizes: Sizes) -> np.ndarray:
    """(N, M) float64, unit rows."""
    return generators.draw_dictionary(sizes.seed, sizes.sources, sizes.dimensions).astype(np.float64)


@functools.cache
def codes(sizes: Sizes, active: int, split: str) -> np.ndarray:
    """(n, N) float64 with `active` sources each; the splits share no draw."""
    n = sizes.samples if split == "train" else sizes.test_samples
    seed = sizes.seed + 1000 * active + (0 if split == "train" else 1)
    return generators.draw_codes(seed, n, sizes.sources, active).astype(np.float64)


@functools.cache
def trained(sizes: Sizes, active: int) -> relu_fit.Linear:
    """The ReLU encoder trained on the true codes of `active` sources."""
    own = codes(sizes, active, "train")
    return relu_fit.best_relu(dictionary(sizes), own, sizes.starts, sizes.steps, seed=sizes.seed)


@functools.cache
def sae(sizes: Sizes, active: int) -> relu_fit.Linear:
    return relu_fit.sae_encoder(dictionary(sizes), codes(sizes, active, "train"), sizes.steps)


# --- the rank argument ---


def encoders(sizes: Sizes) -> list[Row]:
    """Several encoders: the map from sources to pre-activations, and how good their codes are."""
    atoms, own = dictionary(sizes), codes(sizes, sizes.active, "train")
    noise = np.random.default_rng(sizes.seed).standard_normal(atoms.T.shape) / math.sqrt(sizes.dimensions)
    named = {
        "random": relu_fit.Linear(noise, np.zeros(sizes.sources)),
        TIED: relu_fit.Linear(atoms.T, np.zeros(sizes.sources)),
        "pseudo-inverse": relu_fit.Linear(np.linalg.pinv(atoms), np.zeros(sizes.sources)),
        "least squares": relu_fit.Linear(theorem.linear_encoder(own, own @ atoms), np.zeros(sizes.sources)),
        SAE: sae(sizes, sizes.active),
        TRAINED: trained(sizes, sizes.active),
    }
    test, rows = codes(sizes, sizes.active, "test"), []
    for name, (w, b) in named.items():
        found = theorem.composed(atoms, w)
        score = theorem.errors(theorem.relu_codes(test @ atoms, w, b), test)
        about = {"checkpoint": sizes.text, "mode": name, "condition": "encoder", "active": sizes.active}
        rows.append(about | found._asdict() | score._asdict())
    return rows


# --- where ReLU encoders fail ---


def sparsity(sizes: Sizes) -> list[Row]:
    """Error by the number of active sources, of encoders and of methods that are not linear-nonlinear."""
    atoms, rows = dictionary(sizes), []
    for active in sizes.sparsities:
        test = codes(sizes, active, "test")
        x = test @ atoms
        optimum, gap = theorem.lasso_codes(atoms, x, sizes.lam)
        found: dict[str, Any] = {
            TIED: theorem.relu_codes(x, atoms.T),
            SAE: theorem.relu_codes(x, *sae(sizes, active)),
            TRAINED: theorem.relu_codes(x, *trained(sizes, active)),
            LASSO: optimum,
            SPARSEST: theorem.sparsest_codes(atoms, x[:ORACLE_SAMPLES], active),
        }
        for name, z in found.items():
            if z is None:
                continue
            row = {
                "checkpoint": sizes.text,
                "mode": name,
                "condition": "sparsity",
                "active": active,
                "n": len(z),
            }
            more = {"gap": float(gap.max()), "lam": sizes.lam} if name == LASSO else {}
            rows.append(row | theorem.errors(z, test[: len(z)])._asdict() | more)
    return rows


def pairs(sizes: Sizes) -> list[Row]:
    """Two active sources: the error of each pair against the cosine between its atoms."""
    atoms, draw = dictionary(sizes), np.random.default_rng([sizes.seed, 2])
    every = np.array(list(itertools.combinations(range(sizes.sources), 2)))
    chosen = every[np.sort(draw.permutation(len(every))[:MOST_PAIRS])]
    each = 8
    true = np.zeros((len(chosen) * each, sizes.sources))
    np.put_along_axis(
        true, np.repeat(chosen, each, axis=0), np.abs(draw.standard_normal((len(true), 2))), axis=1
    )
    x = true @ atoms
    found = {
        TIED: theorem.relu_codes(x, atoms.T),
        TRAINED: theorem.relu_codes(x, *trained(sizes, 2)),
        LASSO: theorem.lasso_codes(atoms, x, sizes.lam)[0],
    }
    rows = []
    for number, (i, j) in enumerate(chosen):
        part = slice(number * each, (number + 1) * each)
        about = {"checkpoint": sizes.text, "condition": "pair", "cosine": float(atoms[i] @ atoms[j])}
        for name, z in found.items():
            rows.append(about | {"mode": name} | theorem.errors(z[part], true[part])._asdict())
    return rows


def half_spaces(sizes: Sizes) -> list[Row]:
    """One active source: the share of random atoms that an encoder can be exact for, and Cover's count."""
    draw, rows = np.random.default_rng([sizes.seed, 3]), []
    asked = {
        (16, 8),
        (16, 12),
        (32, 8),
        *((n, m) for n in (16, 32) for m in (4, 6, 10, 14, 16, 20, 24) if m < n),
    }
    if sizes.sources <= 64:
        asked.add((sizes.sources, sizes.dimensions))
    for sources, dimensions in sorted(asked):
        drawn = draw.standard_normal((sizes.dictionaries, sources, dimensions))
        shares = [float(theorem.one_sparse_encoder(atoms)[1].mean()) for atoms in drawn]
        spread = float(np.std(shares)) / math.sqrt(len(shares))
        theory = theorem.cover(sources, dimensions)
        rows.append({
            "checkpoint": f"{sources} sources in {dimensions} dimensions", "mode": "random dictionary",
            "condition": "half_space", "sources": sources, "dimensions": dimensions, "measured": float(np.mean(shares)),
            "standard_error": max(spread, math.sqrt(theory * (1 - theory) / (len(shares) * sources))),
            "theory": theory,
        })  # fmt: skip
    return rows


PARTS: dict[str, Callable[[Sizes], list[Row]]] = {
    "half_spaces": half_spaces,
    "encoders": encoders,
    "sparsity": sparsity,
    "pairs": pairs,
}
