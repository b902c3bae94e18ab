"""Encoders of the second paper's synthetic experiments as plain pytrees: the SAE's one layer and MLPs.

Weights of one seed: {"layers": ((W (n_in, n_out), b (n_out,) or None), ...), "atoms": (sources, dimensions), "offset":
(dimensions,)}; several seeds are stacked along a new first axis (`stacked`). "atoms" is there only where the dictionary
is learned, "offset" only where the reconstruction has a bias.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from amortjax.synthetic.torch_random import TorchStream

Weights = dict[str, Any]
_WIDE, _BLOCK = 512, 32
_FEW = 64
_TORCH_EPS = 1e-12  # of torch.nn.functional.normalize


@dataclasses.dataclass(frozen=True)
class Encoder:
    """x (n, dimensions) -> ReLU(... ReLU(x W + b) ...) (n, sources).

    hidden: width of the hidden layer; 0: there is none (the SAE). k: only the k largest codes of a sample stay; 0: all.
    bias: of the layers; offset: of the reconstruction.
    """

    hidden: int = 0
    bias: bool = False
    k: int = 0
    offset: bool = False


def init(
    seed: int | TorchStream, encoder: Encoder, sources: int, dimensions: int, learn_dictionary: bool
) -> Weights:
    """The released code's first weights, as PyTorch draws them after `torch.manual_seed(seed)`: the encoder's layers,
    a decoder of whose own initialisation nothing but the bias is used, and the randn (dimensions, sources) that
    replaces its weight. Encoder and decoder have a bias both or neither; one that is not used is drawn all the same."""
    stream = seed if isinstance(seed, TorchStream) else TorchStream(seed)
    widths = (dimensions, encoder.hidden, sources) if encoder.hidden else (dimensions, sources)
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        weight, bias = stream.linear(n_in, n_out, encoder.bias)
        layers.append((np.ascontiguousarray(weight.T), bias))
    weights: Weights = {"layers": tuple(layers)}
    if learn_dictionary:
        offset = stream.linear(sources, dimensions, encoder.bias)[1]
        weights["atoms"] = np.ascontiguousarray(stream.randn(dimensions, sources).T)
        if encoder.offset:
            weights["offset"] = np.zeros(dimensions, np.float32) if offset is None else offset
    return weights


def stacked(each: Iterable[Weights]) -> Weights:
    """One pytree of several seeds, arrays with a first axis more."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *each)


def encode(weights: Weights, x: jax.Array, encoder: Encoder) -> jax.Array:
    """Codes (n, sources) of x (n, dimensions).

    A wide hidden layer goes through a CPU in blocks of samples, and once more for the gradient: a block's activations
    stay in its caches, which halves a step of MLP-1024.
    """
    if encoder.hidden < _WIDE or x.shape[0] % _BLOCK or jax.default_backend() != "cpu":
        return _encode(weights, x, encoder)
    block = jax.checkpoint(functools.partial(_encode, weights, encoder=encoder))
    return jax.lax.map(block, x.reshape(-1, _BLOCK, x.shape[1])).reshape(x.shape[0], -1)


def _encode(weights: Weights, x: jax.Array, encoder: Encoder) -> jax.Array:
    z = x
    for weight, bias in weights["layers"]:
        z = z @ weight
        z = jax.nn.relu(z if bias is None else z + bias)
    return largest(z, encoder.k)


def largest(z: jax.Array, k: int) -> jax.Array:
    """z (n, M) with all but the k largest of each row at 0, of equal ones the first; k 0: all stay.

    Few latents are ranked by comparing each with each, which a CPU does sooner than it sorts them.
    """
    m = z.shape[-1]
    if not k or k >= m:
        return z
    if m > _FEW:
        kept = jax.lax.top_k(z, k)[1]
        return z * jnp.put_along_axis(jnp.zeros_like(z), kept, 1.0, axis=-1, inplace=False)
    first = jnp.arange(m)[:, None] < jnp.arange(m)  # [j, i]: j comes before i
    one, other = z[..., None, :], z[..., :, None]
    ahead = (other > one) | ((other == one) & first)
    return jnp.where(jnp.sum(ahead, axis=-2) < k, z, 0.0)


def unit_atoms(atoms: jax.Array, axis: int = -1) -> jax.Array:
    """Rows divided by their norms, (sources, dimensions); axis -2: columns, as an older release has it."""
    norms = jnp.sqrt(jnp.sum(jnp.square(atoms), axis=axis, keepdims=True))
    return atoms / jnp.maximum(norms, _TORCH_EPS)
