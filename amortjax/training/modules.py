"""Trainable SAEs as flax.nnx modules: they hold weights, the forward pass is the SAE's own (`saes.encoders`).

The only module that imports flax.nnx.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from amortjax.saes.sae import SAE
from amortjax.training.recipe import Recipe


class Dictionary(nnx.Module):
    """Weights of an SAE under training; the decoder's bias is also subtracted from the input."""

    def __init__(self, start: SAE):
        # (M, D): gradients arrive latent by latent, which a (D, M) matrix would scatter over memory.
        self.w_enc = nnx.Param(start.W_enc.T)
        self.b_enc = nnx.Param(start.b_enc)
        self.w_dec = nnx.Param(start.W_dec)
        self.b_dec = nnx.Param(start.b_dec)
        self.extra = nnx.Dict({name: nnx.Param(array) for name, array in start.extra.items()})
        self.variant, self.k, self.groups = start.variant, start.k, start.groups
        self.batch_rule = start.batch_rule

    def as_sae(self) -> SAE:
        """The SAE in the units it is trained in, without a copy of the weights."""
        b_dec = self.b_dec[...]
        extra = {name: param[...] for name, param in self.extra.items()}
        return SAE(
            W_enc=self.w_enc[...].T,
            b_enc=self.b_enc[...],
            W_dec=self.w_dec[...],
            b_dec=b_dec,
            pre_bias=b_dec,
            extra=extra,
            variant=self.variant,
            k=self.k,
            groups=self.groups,
            batch_rule=self.batch_rule,
        )


def start(recipe: Recipe, centre: np.ndarray) -> Dictionary:
    """First weights: decoder rows uniform on the sphere, encoder their transpose, b_dec = centre (D,), no
    b_enc."""
    d, m = centre.shape[0], recipe.n_latents
    rows = np.random.default_rng([recipe.seed, 0]).standard_normal((m, d)).astype(np.float32)
    w_dec = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    b_dec = jnp.asarray(centre, jnp.float32)
    extra = {
        # A tenth of the typical pre-activation, 1 / sqrt(D): most latents fire at first, so all get a
        # gradient.
        "jumprelu": {"threshold": jnp.full((m,), 0.1 / np.sqrt(d), jnp.float32)},
        "gated": {name: jnp.zeros((m,)) for name in ("r_mag", "b_gate", "b_mag")},
    }.get(recipe.variant, {})
    sae = SAE(
        W_enc=w_dec.T,
        b_enc=jnp.zeros((m,)),
        W_dec=w_dec,
        b_dec=b_dec,
        pre_bias=b_dec,
        extra=extra,
        variant=recipe.variant,
        k=recipe.k,
        groups=recipe.group_sizes(),
        # Until a threshold has been measured, which `loop` does.
        batch_rule=recipe.variant in ("batch_topk", "matryoshka"),
    )
    return Dictionary(sae)


def split(module: Dictionary) -> tuple[Any, dict]:
    """(graph, weights): a static description and a plain nested dict of arrays."""
    graph, weights = nnx.split(module)
    return graph, nnx.to_pure_dict(weights)


def as_sae(graph: Any, weights: dict[str, Any]) -> SAE:
    """The SAE of a plain dict of weights."""
    return nnx.merge(graph, weights).as_sae()
