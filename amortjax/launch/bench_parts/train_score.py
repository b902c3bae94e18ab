"""FVU, L0 and dead share of a code, the same function for both sides."""

from typing import NamedTuple

import numpy as np


class Codes(NamedTuple):
    """The non-zero codes of N tokens, (T,) each, and the decoder that they were made for."""

    rows: np.ndarray
    latents: np.ndarray
    values: np.ndarray
    w_dec: np.ndarray  # (M, D)
    b_dec: np.ndarray  # (D,)


class Score(NamedTuple):
    fvu: float  # sum of |x - x_hat|^2 over the sum of |x - mean|^2, mean that of these tokens
    l0: float  # latents per token
    dead: float  # share of the latents that fire on none of these tokens


def score(codes: Codes, x: np.ndarray) -> Score:
    """Of x (N, D), in the units that both sides were trained in."""
    from scipy.sparse import csr_array

    n, m = len(x), len(codes.w_dec)
    z = csr_array((codes.values, (codes.rows, codes.latents)), shape=(n, m))
    error = np.sum(np.square(x - (z @ codes.w_dec + codes.b_dec), dtype=np.float64))
    spread = np.sum(np.square(x - x.mean(axis=0, dtype=np.float64)))
    fired = np.zeros(m, bool)
    fired[codes.latents] = True
    return Score(float(error / spread), len(codes.values) / n, float(1 - fired.mean()))
