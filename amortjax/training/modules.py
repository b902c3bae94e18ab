"""Trainable SAEs as flax.nnx modules: they hold weights, the forward pass is the SAE's own (`saes.encoders`).

The only module that imports flax.nnx.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from amortjax.errors import AmortjaxError
from amortjax.saes.sae import SAE, is_transcoder, unscale_input
from amortjax.training.recipe import Recipe

# The SAE variant that a training variant leads to, where the names differ.
SAVED_AS = {"april": "standard", "p_anneal": "standard"}
# Variants whose encoder is one affine map: any variant can go on from them.
LINEAR = ("standard", "topk", "batch_topk", "matryoshka", "loca")
# Arrays (..., M) kept the other way round: gradients arrive latent by latent, which a (D, M) matrix would scatter
# over memory.
BY_LATENT = ("W_up",)


class Dictionary(nnx.Module):
    """Weights of an SAE under training; the decoder's bias is also subtracted from the input."""

    def __init__(self, start: SAE):
        self.w_enc = nnx.Param(start.W_enc.T)
        self.b_enc = nnx.Param(start.b_enc)
        self.w_dec = nnx.Param(start.W_dec)
        self.b_dec = nnx.Param(start.b_dec)
        self.extra = nnx.Dict({name: nnx.Param(_turned(name, a)) for name, a in start.extra.items()})
        self.variant, self.k = start.variant, start.k
        self.groups, self.group_k, self.batch_rule = start.groups, start.group_k, start.batch_rule

    def as_sae(self) -> SAE:
        """The SAE in the units it is trained in, without a copy of the weights."""
        b_dec = self.b_dec[...]
        return SAE(
            W_enc=self.w_enc[...].T,
            b_enc=self.b_enc[...],
            W_dec=self.w_dec[...],
            b_dec=b_dec,
            pre_bias=b_dec,
            extra={name: _turned(name, param[...]) for name, param in self.extra.items()},
            variant=self.variant,
            k=self.k,
            groups=self.groups,
            group_k=self.group_k,
            batch_rule=self.batch_rule,
        )


def _turned(name: str, array: jax.Array) -> jax.Array:
    return array.T if name in BY_LATENT else array


def start(recipe: Recipe, centre: np.ndarray) -> Dictionary:
    """First weights: decoder rows uniform on the sphere (times .1 if they are free), encoder their transpose (nearly,
    where there is a hidden layer alone), b_dec = centre (D,), no b_enc."""
    d, m = centre.shape[0], recipe.n_latents
    rows = np.random.default_rng([recipe.seed, 0]).standard_normal((m, d)).astype(np.float32)
    size = 1.0 if recipe.unit_decoder else 0.1  # as in Anthropic's April 2024 update
    w_dec = jnp.asarray(size * rows / np.linalg.norm(rows, axis=1, keepdims=True))
    b_dec = jnp.asarray(centre, jnp.float32)
    sae = SAE(
        W_enc=jnp.zeros((d, m)) if recipe.hidden_only else w_dec.T,
        b_enc=jnp.zeros((m,)),
        W_dec=w_dec,
        b_dec=b_dec,
        pre_bias=b_dec,
        extra=_tied(_extra(recipe, d), w_dec, recipe) if recipe.hidden_only else _extra(recipe, d),
        variant=SAVED_AS.get(recipe.variant, recipe.variant),
        k=recipe.k,
        groups=recipe.group_sizes(),
        group_k=recipe.group_ks(),
        # Until a threshold has been measured, which `finish` does.
        batch_rule=recipe.variant in ("batch_topk", "matryoshka"),
    )
    return Dictionary(sae)


def _extra(recipe: Recipe, d: int) -> dict[str, jax.Array]:
    m = recipe.n_latents
    if recipe.variant == "jumprelu":
        return {"threshold": jnp.full((m,), first_threshold(d), jnp.float32)}
    if recipe.variant == "gated":
        return {name: jnp.zeros((m,)) for name in ("r_mag", "b_gate", "b_mag")}
    if recipe.variant == "mlp":
        count, width = max(len(recipe.group_sizes()), 1), recipe.hidden or 1
        return _first_hidden(count, d, width, m, recipe.seed)
    return {}


def first_threshold(d: int) -> float:
    """JumpReLU's: a tenth of the typical pre-activation, 1 / sqrt(D), so that most latents fire and get a gradient."""
    return 0.1 / float(np.sqrt(d))


def _first_hidden(count: int, d: int, width: int, m: int, seed: int) -> dict[str, jax.Array]:
    """`count` hidden layers that add nothing yet: the encoder starts as the linear one. He initialisation."""
    w = np.random.default_rng([seed, 1]).standard_normal((count, d, width)) * np.sqrt(2 / d)
    return {
        "W_hidden": jnp.asarray(w, jnp.float32),
        "b_hidden": jnp.zeros((count, width)),
        "W_up": jnp.zeros((width, m)),
    }


def _tied(extra: dict[str, jax.Array], w_dec: jax.Array, recipe: Recipe) -> dict[str, jax.Array]:
    """Hidden layers from which W_up reads about c @ W_dec^T: zeros, as beside a linear map, would be silent for good.
    E[relu(c . h) (h . w)] = c . w / D for h ~ N(0, 2 / D)."""
    d, width = extra["W_hidden"].shape[1:]
    sizes = recipe.group_sizes() or (recipe.n_latents,)
    own = jnp.split(w_dec, np.cumsum(sizes)[:-1])
    product = lambda h, w: jnp.matmul(h.T, w.T, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    parts = [product(h, w) for h, w in zip(extra["W_hidden"], own, strict=True)]
    return extra | {"W_up": jnp.concatenate(parts, axis=1) * (d / width)}


def from_sae(sae: SAE, recipe: Recipe, scale: float) -> Dictionary:
    """Goes on from a trained SAE, which acts on raw inputs, in inputs divided by `scale`.

    Variant, groups and sizes are the recipe's where the SAE leaves them open. Raises AmortjaxError if the SAE
    can't be the start of such a training.
    """
    _check_start(sae, recipe)
    sae = unscale_input(_one_bias(sae), 1 / scale)
    extra = {}
    for name, first in _extra(recipe, sae.d_in).items():
        own = sae.extra.get(name, first)
        if own.shape not in ((), first.shape):
            raise AmortjaxError(
                f"--init: {name} of {sae.info.name} has shape {own.shape}, but --hidden and the groups ask for "
                f"{first.shape}"
            )
        extra[name] = jnp.broadcast_to(own, first.shape)
    groups = sae.groups if _keeps_groups(sae, recipe) else recipe.group_sizes()
    for size, k in zip(groups, recipe.group_ks(), strict=False):
        if k > size:
            raise AmortjaxError(f"--group_k={recipe.group_k}: {k} is more than the group's {size} latents")
    return Dictionary(
        dataclasses.replace(
            sae,
            extra=extra,
            variant=SAVED_AS.get(recipe.variant, recipe.variant),
            k=recipe.k,
            groups=groups,
            group_k=recipe.group_ks(),
            batch_rule=recipe.variant in ("batch_topk", "matryoshka"),
        )
    )


def _one_bias(sae: SAE) -> SAE:
    """The same function with pre_bias = b_dec, as the trainer has it: the rest of the shift goes into b_enc, and
    into a hidden layer's bias."""
    shift, highest = sae.pre_bias - sae.b_dec, jax.lax.Precision.HIGHEST
    extra = dict(sae.extra)
    if "W_hidden" in extra:
        extra["b_hidden"] = extra["b_hidden"] - jnp.matmul(shift, extra["W_hidden"], precision=highest)
    b_enc = sae.b_enc - jnp.matmul(shift, sae.W_enc, precision=highest)
    return dataclasses.replace(sae, b_enc=b_enc, pre_bias=sae.b_dec, extra=extra)


def _keeps_groups(sae: SAE, recipe: Recipe) -> bool:
    """Whether the SAE's own groups hold: they need not be those that the recipe has by default."""
    count = len(recipe.group_ks()) or (len(sae.groups) if recipe.variant == "matryoshka" else 0)
    return recipe.groups is None and bool(sae.groups) and len(sae.groups) == count


def _check_start(sae: SAE, recipe: Recipe) -> None:
    name = sae.info.name
    if sae.n_latents != recipe.n_latents:
        raise AmortjaxError(f"--init: {name} has {sae.n_latents} latents, not --n_latents={recipe.n_latents}")
    if is_transcoder(sae) or sae.norm != "none" or sae.rescale or "f_dec" in sae.extra:
        raise AmortjaxError(
            f"--init: {name} is a transcoder, or normalises its input, or has factors the trainer does not keep"
        )
    target = SAVED_AS.get(recipe.variant, recipe.variant)
    plain = sae.variant in LINEAR or (sae.variant == "jumprelu" and recipe.k is not None)
    if sae.variant != target and not plain:
        raise AmortjaxError(
            f"--init: {name} is a {sae.variant} SAE; as a {recipe.variant} one it would lose a part of its encoder. "
            f"Any variant goes on from {', '.join(LINEAR)}"
        )
    if recipe.hidden_only and np.any(np.asarray(sae.W_enc)):
        raise AmortjaxError(f"--init: {name} has a linear map, which --linear=false would take from it")
    norm = np.linalg.norm(np.asarray(sae.W_dec), axis=1)
    if recipe.unit_decoder and np.abs(norm - 1).max() > 1e-3:
        raise AmortjaxError(
            f"--init: decoder rows of {name} have norms {norm.min():.3g} to {norm.max():.3g}, and this variant keeps "
            "them at 1: use an SAE with unit rows, or --decoder=free"
        )


def split(module: Dictionary) -> tuple[Any, dict]:
    """(graph, weights): a static description and a plain nested dict of arrays."""
    graph, weights = nnx.split(module)
    return graph, nnx.to_pure_dict(weights)


def as_sae(graph: Any, weights: dict[str, Any]) -> SAE:
    """The SAE of a plain dict of weights."""
    return nnx.merge(graph, weights).as_sae()
