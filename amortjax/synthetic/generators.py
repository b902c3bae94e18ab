"""Sparse codes, a dictionary and the data they make: the generators of arXiv 2411.13117, section 5, as released.

The paper's letters: N sources, M dimensions, K active sources. A sample is x = s D with s (sources,) sparse and not
negative and D (sources, dimensions) unit rows; there is no noise and nothing is centred.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np

from amortjax.errors import AmortjaxError
from amortjax.synthetic.torch_random import TorchStream

Distribution = Literal["uniform", "zipf", "hierarchical"]
DISTRIBUTIONS: tuple[str, ...] = get_args(Distribution)
ZIPF_FLOOR = 0.1  # added to a source's probability before it scales the source's values


class Data(NamedTuple):
    """float32 on the host. `inclusion`: the share of all samples in which a source is active."""

    codes_train: np.ndarray  # (n_train, sources)
    codes_test: np.ndarray  # (n_test, sources)
    x_train: np.ndarray  # (n_train, dimensions)
    x_test: np.ndarray  # (n_test, dimensions)
    dictionary: np.ndarray  # (sources, dimensions), unit rows
    inclusion: np.ndarray  # (sources,)


def check_sizes(sources: int, dimensions: int, active: int, samples: int) -> None:
    """AmortjaxError that names the flag of a size that makes no data."""
    for name, value in {
        "sources": sources,
        "dimensions": dimensions,
        "active": active,
        "samples": samples,
    }.items():
        if value < 1:
            raise AmortjaxError(f"--{name}={value}: must be at least 1")
    if active > sources:
        raise AmortjaxError(f"--active={active}: only {sources} sources there are (--sources={sources})")
    if samples < 4:
        raise AmortjaxError(
            f"--samples={samples}: half are for training and half for testing; give at least 4"
        )


def draw_codes(
    seed: int, n: int, sources: int, active: int, distribution: str = "uniform", out: np.ndarray | None = None
) -> np.ndarray:
    """(n, sources) float32, into `out` if given: |N(0, 1)| on `active` sources of each sample, 0 elsewhere.

    uniform: all supports are equally likely. zipf: sources are drawn without replacement with probabilities w_i
    proportional to 1 / i, and values are multiplied by w_i + 0.1. hierarchical: `trees.draw_tree_codes`, where
    `active` sources are active on average. Draws are those of NumPy's global generator after `numpy.random.seed(seed)`.
    """
    if distribution not in DISTRIBUTIONS:
        raise AmortjaxError(f"distribution {distribution!r} is not one of {', '.join(DISTRIBUTIONS)}")
    if distribution == "hierarchical":
        from amortjax.synthetic import trees

        drawn = trees.draw_tree_codes(seed, n, sources, active)
        if out is None:
            return drawn
        out[:] = drawn
        return out
    state = np.random.RandomState(seed & 0xFFFFFFFF)
    weights = None if distribution == "uniform" else zipf_weights(sources)
    scale = np.ones(sources) if weights is None else weights + ZIPF_FLOOR
    codes = np.zeros((n, sources), np.float32) if out is None else out
    for row in codes:
        values = np.abs(state.randn(sources)) * scale
        support = state.choice(sources, active, replace=False, p=weights)
        row[support] = values[support]
    return codes


def zipf_weights(sources: int) -> np.ndarray:
    """(sources,) float64: probabilities proportional to 1, 1/2, 1/3, ..."""
    weights = 1 / np.arange(1, sources + 1)
    return weights / weights.sum()


def draw_dictionary(seed: int, sources: int, dimensions: int) -> np.ndarray:
    """(sources, dimensions) float32, unit rows: torch.randn after torch.manual_seed(seed), each row normalised."""
    atoms = TorchStream(seed).randn(sources, dimensions)
    return atoms / np.linalg.norm(atoms, axis=1, keepdims=True)


def make_data(
    seed: int,
    sources: int = 16,
    dimensions: int = 8,
    active: int = 3,
    samples: int = 2048,
    distribution: str = "uniform",
) -> Data:
    """`samples` samples of which the first half is for training and the last for testing."""
    check_sizes(sources, dimensions, active, samples)
    codes = draw_codes(seed, samples, sources, active, distribution)
    dictionary = draw_dictionary(seed, sources, dimensions)
    x = codes @ dictionary
    half = samples // 2
    inclusion = np.mean(codes > 0, axis=0)
    return Data(codes[:half], codes[half:], x[:half], x[half:], dictionary, inclusion)
