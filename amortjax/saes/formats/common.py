"""What readers share: an SAE made of a file's arrays, and saying aloud what a file leaves open."""

import warnings
from pathlib import Path

import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats.tensors import to_jax
from amortjax.saes.sae import SAE


def build(variant: str, w_enc, b_enc, w_dec, b_dec, pre_bias, extra=None, **settings) -> SAE:
    """An SAE of float32 NumPy arrays in amortjax's orientation: w_enc (D, M), w_dec (M, D_out). `None` biases are
    zeros. Arrays of `Opened.array` are taken over, not copied, so they must not be written to afterwards."""
    if w_enc.ndim != 2 or w_dec.ndim != 2:
        raise CheckpointError(f"encoder {w_enc.shape} and decoder {w_dec.shape} must both have two axes")
    d, m = w_enc.shape
    fill = {"b_enc": (b_enc, m), "b_dec": (b_dec, w_dec.shape[1]), "pre_bias": (pre_bias, d)}
    biases = {
        key: to_jax(np.zeros(size, np.float32) if value is None else value)
        for key, (value, size) in fill.items()
    }
    extra = {key: to_jax(value) for key, value in (extra or {}).items()}
    return SAE(W_enc=to_jax(w_enc), W_dec=to_jax(w_dec), extra=extra, variant=variant, **biases, **settings)


def loud(path: Path, note: str) -> str:
    """Warns of what may make the SAE another than the one that was trained; the note, for Info.notes."""
    warnings.warn(f"{path}: {note}", stacklevel=2)
    return note
