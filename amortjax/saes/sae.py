"""The SAE as a pytree: weights, and everything that changes what encode and decode compute.

    x -> norm_in -> (- pre_bias) -> @ W_enc -> + b_enc [+ hidden layer] -> [* s] -> activation -> z
    z -> [/ s] -> [* f_dec] -> @ W_dec -> + b_dec -> norm_out -> y      (+ x @ W_skip for skip transcoders)

Axes: D model dimension, M latents, N tokens. `saes.encoders` computes the first line.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import ArrayLike

from amortjax.errors import AmortjaxError

NORMS = ("none", "layer_norm", "constant_norm")


@dataclasses.dataclass(frozen=True)
class Info:
    """What is known of an SAE's origin. No field takes part in comparison, so that two SAEs with the same
    shapes and variant share compiled code."""

    name: str = dataclasses.field(default="sae", compare=False)
    source: str = dataclasses.field(default="", compare=False)  # file or hub id it was read from
    format: str = dataclasses.field(default="memory", compare=False)
    model_name: str = dataclasses.field(default="", compare=False)
    layer_index: int | None = dataclasses.field(default=None, compare=False)
    hook: str = dataclasses.field(default="", compare=False)
    # L1 coefficient it was trained with, for |e|^2 + lam_train * sum_j z_j ||W_j|| in raw input units; None
    # if its loss had no such term. The half form's lambda is lam_train / 2.
    lam_train: float | None = dataclasses.field(default=None, compare=False)
    # Ids of the documents' split it was trained on: ("sae_train",) if made here, () if unknown (imported).
    trained_on: str = dataclasses.field(default="", compare=False)  # corpus fingerprint; "" = unknown
    # It predicts another place of the model than it reads; needed where its shapes do not tell.
    transcoder: bool = dataclasses.field(default=False, compare=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)


@struct.dataclass
class SAE:
    """A sparse autoencoder. Shapes: W_enc (D, M), b_enc (M,), W_dec (M, D_out), b_dec (D_out,), pre_bias
    (D,).

    `extra` holds the variant's further arrays (`threshold`, `r_mag`, `b_gate`, `b_mag`, `f_dec`, `W_skip`,
    `W_hidden`, ...) and records that neither encode nor decode reads: `norm_factor` (), what training divided its
    inputs by, folded into the biases already; `origin` (M,), the latent of another SAE that each latent was
    started from; `avar` (M,), that latent's angular variance, from 0 to 1, -1 where it is not known.
    """

    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array
    pre_bias: jax.Array
    extra: dict[str, jax.Array]
    variant: str = struct.field(pytree_node=False)
    k: int | None = struct.field(pytree_node=False, default=None)
    # Sizes of Matryoshka's or LocA's groups of latents, which lie one after the other.
    groups: tuple[int, ...] = struct.field(pytree_node=False, default=())
    # How many latents of each group may fire (LocA); () where groups do not limit firing.
    group_k: tuple[int, ...] = struct.field(pytree_node=False, default=())
    norm: str = struct.field(pytree_node=False, default="none")
    # Rank or threshold pre-activations times ||W_dec row|| (SAELens' rescale_acts_by_decoder_norm).
    rescale: bool = struct.field(pytree_node=False, default=False)
    # BatchTopK and Matryoshka without a stored threshold: the k * N largest of the whole batch.
    batch_rule: bool = struct.field(pytree_node=False, default=False)
    info: Info = struct.field(pytree_node=False, default=Info())

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        return self.W_dec.shape[0]


def is_transcoder(sae: SAE) -> bool:
    """Whether its output is no reconstruction of its input."""
    return sae.d_in != sae.d_out or "W_skip" in sae.extra or sae.info.transcoder


class NormStats(NamedTuple):
    """What norm_out needs of the input: y = normalised * scale + shift, both (N, 1)."""

    scale: jax.Array
    shift: jax.Array


def norm_in(sae: SAE, x: jax.Array) -> tuple[jax.Array, NormStats]:
    """x (N, D) as the encoder sees it, and what undoes it. `layer_norm` uses the unbiased deviation and adds
    1e-5 to it; undoing leaves the 1e-5 out (as SAELens does). `constant_norm` scales rows to norm sqrt(D)."""
    ones, zeros = jnp.ones((x.shape[0], 1), x.dtype), jnp.zeros((x.shape[0], 1), x.dtype)
    if sae.norm == "none":
        return x, NormStats(ones, zeros)
    if sae.norm == "layer_norm":
        mean = x.mean(axis=1, keepdims=True)
        centred = x - mean
        std = jnp.std(centred, axis=1, keepdims=True, ddof=1)
        return centred / (std + 1e-5), NormStats(std, mean)
    if sae.norm == "constant_norm":
        c = jnp.sqrt(jnp.asarray(x.shape[1], x.dtype)) / jnp.linalg.norm(x, axis=1, keepdims=True)
        return x * c, NormStats(1 / c, zeros)
    raise AmortjaxError(f"norm {sae.norm!r} is not one of {', '.join(NORMS)}")


def norm_out(y: ArrayLike, stats: NormStats) -> jax.Array:
    return jnp.asarray(y) * stats.scale + stats.shift


def atoms(sae: SAE) -> jax.Array:
    """The dictionary as decode applies it: (M, D_out), decoder rows with fine-tuning factors and the
    encoder's rescaling folded in, so that decode is z @ atoms + b_dec."""
    factor = jnp.ones((sae.n_latents,), sae.W_dec.dtype)
    if "f_dec" in sae.extra:
        factor = factor * sae.extra["f_dec"]
    if sae.rescale:
        norm = jnp.linalg.norm(sae.W_dec, axis=1)
        factor = factor / jnp.where(norm > 0, norm, 1)
    return sae.W_dec * factor[:, None]


def decode(sae: SAE, z: jax.Array, stats: NormStats | None = None) -> jax.Array:
    """z (N, M) -> y (N, D_out) in raw units, without the skip connection. `stats` from `norm_in` of the same
    tokens is needed when the SAE normalises its input."""
    y = jnp.matmul(z, atoms(sae), precision=jax.lax.Precision.HIGHEST) + sae.b_dec
    if sae.norm == "none":
        return y
    if stats is None:
        raise AmortjaxError(
            f"this SAE normalises its input ({sae.norm}): decode needs the tokens, decode(sae, z, x)"
        )
    return norm_out(y, stats)


def unit_decoder(sae: SAE) -> SAE:
    """The same reconstructions with decoder rows of norm 1: z is multiplied by the rows' norms n.

    W_enc, b_enc, W_up, thresholds and gates take the factor, W_dec loses it; a gate's r_mag is a ratio and
    stays. Rows of norm 0 stay. Not for top-k rules, whose ranking of latents would change.
    """
    if sae.k is not None or sae.group_k or sae.rescale or sae.variant == "matching_pursuit":
        raise AmortjaxError(
            f"the decoder of a {sae.variant} SAE can't be normalised: its ranking of latents would change"
        )
    norm = jnp.linalg.norm(sae.W_dec, axis=1)
    norm = jnp.where(norm > 0, norm, 1)
    by_latent = ("threshold", "b_gate", "b_mag", "W_up")
    scaled = {key: sae.extra[key] * norm for key in by_latent if key in sae.extra}
    return dataclasses.replace(
        sae,
        W_enc=sae.W_enc * norm,
        b_enc=sae.b_enc * norm,
        W_dec=sae.W_dec / norm[:, None],
        extra=sae.extra | scaled,
    )


def unscale_input(sae: SAE, factor: float) -> SAE:
    """An SAE of x / factor as one of x: biases and thresholds take the factor, weights stay, so hidden layers,
    z and y grow by it."""
    if sae.norm != "none":
        raise AmortjaxError(f"an SAE that normalises each input ({sae.norm}) has no input scale to fold")
    biases = ("threshold", "b_gate", "b_mag", "b_hidden")
    scaled = {key: sae.extra[key] * factor for key in biases if key in sae.extra}
    return dataclasses.replace(
        sae,
        b_enc=sae.b_enc * factor,
        b_dec=sae.b_dec * factor,
        pre_bias=sae.pre_bias * factor,
        extra=sae.extra | scaled,
    )
