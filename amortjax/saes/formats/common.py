"""What readers of torch files share: arrays, an SAE made of them, and the json beside it."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from amortjax.errors import CheckpointError
from amortjax.saes.formats import pickle_reader
from amortjax.saes.sae import SAE

Tensors = dict[str, Any]


def array(tensors: Tensors, key: str) -> np.ndarray:
    """A tensor or a number of the file, in float32."""
    value = tensors[key]
    return np.asarray(value.numpy() if isinstance(value, pickle_reader.Tensor) else value, np.float32)


def build(variant: str, w_enc, b_enc, w_dec, b_dec, pre_bias, extra=None, **settings) -> SAE:
    """An SAE of NumPy arrays in amortjax's orientation. `None` biases are zeros."""
    d, m = w_enc.shape
    fill = {"b_enc": (b_enc, m), "b_dec": (b_dec, w_dec.shape[1]), "pre_bias": (pre_bias, d)}
    biases = {
        key: jnp.zeros(size) if value is None else jnp.asarray(value) for key, (value, size) in fill.items()
    }
    extra = {key: jnp.asarray(value) for key, value in (extra or {}).items()}
    return SAE(
        W_enc=jnp.asarray(w_enc), W_dec=jnp.asarray(w_dec), extra=extra, variant=variant, **biases, **settings
    )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a json file; {} if there is no such file, or no object in it."""
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{file}: not readable as json ({error}); copy it again") from None
    return config if isinstance(config, dict) else {}
