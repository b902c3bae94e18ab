"""Variants that must coincide: the same weights and batch give the same loss and the same gradients."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.saes import encoders
from amortjax.training import modules
from amortjax.training.losses import LOSSES, Now
from amortjax.training.recipe import Recipe

D, M = 8, 32


def _start(variant: Any, **more: Any):
    """(recipe, graph, weights away from their start): the same weights for variants with the same arrays."""
    recipe = Recipe(variant=variant, n_latents=M, **more).check()
    graph, weights = modules.split(modules.start(recipe, np.full(D, 0.1, np.float32)))
    rng = np.random.default_rng(0)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        weights[name] = weights[name] + 0.1 * rng.standard_normal(weights[name].shape).astype(np.float32)
    return recipe, graph, weights


def _loss_and_slope(start, x):
    recipe, graph, weights = start
    now = Now(jnp.arange(M) % 5 == 0, jnp.asarray(0.5))

    @jax.jit
    def both(weights):
        return jax.value_and_grad(
            lambda weights: LOSSES[recipe.variant](modules.as_sae(graph, weights), x, now, recipe)[0]
        )(weights)

    return both(weights)


@pytest.mark.parametrize(
    ("one", "other", "rows"),
    [
        (("batch_topk", {"k": 3}), ("topk", {"k": 3}), 1),
        (("matryoshka", {"k": 3, "groups": "1"}), ("batch_topk", {"k": 3}), 24),
        (("loca", {"group_k": "3"}), ("topk", {"k": 3}), 24),
        (("mlp", {"k": 3, "hidden": 4}), ("topk", {"k": 3}), 24),
        (("april", {"lam": 0.3, "decoder": "unit"}), ("standard", {"lam": 0.3}), 24),
        (("p_anneal", {"lam": 0.3}), ("standard", {"lam": 0.3}), 24),
    ],
    ids=lambda case: case[0] if isinstance(case, tuple) else "",
)
def test_special_cases_coincide(one, other, rows):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((rows, D)), jnp.float32)
    (loss, slope), (want, wanted) = (_loss_and_slope(_start(v, **more), x) for v, more in (one, other))
    assert loss == pytest.approx(float(want), rel=1e-5)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        np.testing.assert_allclose(slope[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_gated_with_unit_gate_is_relu():
    """Gate and magnitude share weight, bias and scale: the gate then only repeats what the ReLU says."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((24, D)), jnp.float32)
    _, graph, weights = _start("gated", lam=0.3)
    gated = modules.as_sae(graph, weights)
    relu = dataclasses.replace(gated, variant="standard", extra={})
    z = encoders.encode(gated, x)
    assert float(z.max()) > 0
    np.testing.assert_array_equal(z, encoders.encode(relu, x))
