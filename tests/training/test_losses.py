"""Losses against their formulas written densely, and where their gradients go."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.saes import encoders
from amortjax.saes.sae import SAE, decode
from amortjax.training import entries, jump, modules
from amortjax.training.losses import LOSSES, Now, power
from amortjax.training.recipe import NEEDS, Recipe

D, M, N = 8, 32, 24
SPARSITY: dict[str, dict[str, Any]] = {
    "lam": {"lam": 0.3},
    "k": {"k": 3},
    "target_l0": {"target_l0": 5.0},
    "group_k": {"group_k": "2/1"},
}


def _recipe(variant: Any, **more: Any) -> Recipe:
    given = dict(SPARSITY[NEEDS[variant][0]]) if not set(more) & set(SPARSITY) else {}
    if variant in ("matryoshka", "loca"):
        given["groups"] = "0.25/0.75"
    if variant == "mlp":
        given["hidden"] = 5
    return Recipe(variant=variant, n_latents=M, **(given | more)).check()


def _setting(variant: str, **more):
    """(recipe, graph, weights away from their start, x (N, D))"""
    recipe, rng = _recipe(variant, **more), np.random.default_rng(0)
    graph, weights = modules.split(modules.start(recipe, np.full(D, 0.1, np.float32)))
    weights = jax.tree.map(lambda w: w + 0.1 * rng.standard_normal(w.shape).astype(np.float32), weights)
    return recipe, graph, weights, jnp.asarray(rng.standard_normal((N, D)), jnp.float32)


def _now(dead: np.ndarray | None = None) -> Now:
    powers = jnp.asarray([0.6, 0.5, 2.0])
    return Now(jnp.zeros(M, bool) if dead is None else jnp.asarray(dead), jnp.asarray(0.5), powers)


def _dense(sae: SAE, x: jax.Array, recipe: Recipe) -> jax.Array:
    """The loss from the whole code matrix, with plain autodiff."""
    z = encoders.encode(sae, x)
    norms = jnp.linalg.norm(sae.W_dec, axis=1)
    error = jnp.mean(jnp.sum((x - decode(sae, z)) ** 2, axis=1))
    if recipe.variant == "p_anneal":
        return error + 0.5 * 0.3 * 2.0 * jnp.mean(jnp.sum(power(z * norms, jnp.asarray(0.6)), axis=1))
    if recipe.lam is not None and recipe.variant != "gated":
        return error + 0.5 * 0.3 * jnp.mean(z @ norms)
    if recipe.variant == "gated":
        # `b_enc` is there, and zero, in every gated SAE; here it has been moved away from zero.
        gate = jax.nn.relu(sae.b_enc + (x - sae.pre_bias) @ sae.W_enc + sae.extra["b_gate"])
        fixed = jax.lax.stop_gradient
        own = jnp.mean(jnp.sum((x - gate @ fixed(sae.W_dec) - fixed(sae.b_dec)) ** 2, axis=1))
        return error + 0.5 * 0.3 * jnp.mean(gate @ norms) + own
    if recipe.variant == "matryoshka":
        first = jnp.where(jnp.arange(M) < 8, z, 0)
        return (error + jnp.mean(jnp.sum((x - decode(sae, first)) ** 2, axis=1))) / 2
    return error


@pytest.mark.parametrize(
    ("variant", "more"),
    [(variant, {}) for variant in LOSSES]
    + [("mlp", {"lam": 0.3}), ("mlp", {"group_k": "2/1", "groups": "0.25/0.75"})],
    ids=str,
)
def test_loss_gradient_and_what_was_seen_are_the_dense_ones(variant, more):
    recipe, graph, weights, x = _setting(variant, **more)

    @jax.jit
    def ours(weights):
        def loss(weights):
            return LOSSES[variant](modules.as_sae(graph, weights), x, _now(), recipe)

        return jax.value_and_grad(loss, has_aux=True)(weights)

    @jax.jit
    def theirs(weights):
        return jax.value_and_grad(lambda weights: _dense(modules.as_sae(graph, weights), x, recipe))(weights)

    (got, seen), slope = ours(weights)
    sae = modules.as_sae(graph, weights)
    z = np.asarray(jax.jit(encoders.encode)(sae, x))
    np.testing.assert_array_equal(seen.fired, (z > 0).any(axis=0))
    assert seen.l0 == (z > 0).sum()
    assert seen.error == pytest.approx(float(np.sum((x - decode(sae, jnp.asarray(z))) ** 2)), rel=1e-4)
    if variant in ("topk", "loca"):
        assert seen.least == pytest.approx(np.mean([row[row > 0].min() for row in z]), rel=1e-5)
    if variant == "batch_topk":
        assert seen.least == z[z > 0].min()
    if variant == "jumprelu":
        # Its gradient is made up on purpose (tested below); the value is not.
        assert got == pytest.approx(float(seen.error / N + 0.5 * (seen.l0 / N / 5.0 - 1) ** 2), rel=1e-5)
        return
    want, dense = theirs(weights)
    assert got == pytest.approx(float(want), rel=1e-5)
    assert jax.tree.structure(slope) == jax.tree.structure(dense)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def _auxk_reference(sae: SAE, x: np.ndarray, residual: np.ndarray, dead: np.ndarray) -> float:
    pre = np.asarray((x - sae.pre_bias) @ sae.W_enc + sae.b_enc)
    pre = np.where(dead, np.maximum(pre, 0), 0)
    kept = np.where(pre >= np.sort(pre, axis=1)[:, [-(D // 2)]], pre, 0)
    left = residual - kept @ np.asarray(sae.W_dec)
    return float((left**2).sum() / ((residual - residual.mean(axis=0)) ** 2).sum())


def test_auxk_is_its_formula_and_reaches_dead_latents_only():
    _, graph, weights, x = _setting("topk")
    residual = jnp.asarray(np.random.default_rng(2).standard_normal((N, D)), jnp.float32)

    def loss(weights, residual, dead):
        sae = modules.as_sae(graph, weights)
        return entries.auxk(sae, x, residual, encoders.preactivation(sae, x - sae.pre_bias), dead)

    value_and_slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for n_dead in (0, 1, 3, D // 2, D // 2 + 1, M):
        dead = np.zeros(M, bool)
        dead[np.random.default_rng(1).permutation(M)[:n_dead]] = True
        value, (slope, by_residual) = value_and_slopes(weights, residual, jnp.asarray(dead))
        want = _auxk_reference(modules.as_sae(graph, weights), np.asarray(x), np.asarray(residual), dead)
        assert value == pytest.approx(want if n_dead else 0, rel=1e-4)
        for name in ("w_enc", "b_enc", "w_dec"):
            size = np.abs(np.asarray(slope[name])).reshape(M, -1).sum(axis=1)
            assert (size[~dead] == 0).all()
            assert not n_dead or (size[dead] > 0).mean() > 0.5
        # No bias is decoded twice, and neither residual nor centring is bent.
        assert not np.asarray(slope["b_dec"]).any() and not np.asarray(by_residual).any()


def test_auxk_of_a_constant_residual_is_zero():
    _, graph, weights, x = _setting("topk")
    sae = modules.as_sae(graph, weights)
    pre = encoders.preactivation(sae, x - sae.pre_bias)
    assert entries.auxk(sae, x, jnp.ones((N, D)), pre, jnp.ones(M, bool)) == 0


@pytest.mark.parametrize("variant", ["topk", "batch_topk", "matryoshka", "loca", "mlp"])
def test_auxk_is_added_with_its_weight(variant):
    recipe, graph, weights, x = _setting(variant)
    sae, dead = modules.as_sae(graph, weights), np.arange(M) % 7 == 0

    @jax.jit
    def losses_of():
        return [
            LOSSES[variant](sae, x, _now(dead), dataclasses.replace(recipe, auxk=w))[0] for w in (0.0, 0.5)
        ]

    @jax.jit
    def alone():
        c = x - sae.pre_bias
        z = encoders.encode(sae, x)
        return entries.auxk(sae, x, x - decode(sae, z), encoders.preactivation(sae, c), jnp.asarray(dead))

    without, with_it = losses_of()
    assert float(with_it - without) == pytest.approx(0.5 * float(alone()), rel=1e-3)


def test_jumprelu_reaches_thresholds_through_the_kernel_only():
    width = 0.5
    pre = jnp.asarray([[0.9, 1.1, 1.3, 2.0, -1.0]]).T  # threshold 1: kernel of width 0.5 covers 0.75 to 1.25
    slope = jnp.asarray([[1.0, 10.0, 100.0, 1000.0, 10000.0]]).T
    threshold = jnp.asarray([1.0])
    z, back = jax.vjp(lambda p, t: jump.jump(p, t, width), pre, threshold)
    np.testing.assert_allclose(z[:, 0], [0, 1.1, 1.3, 2.0, 0], rtol=1e-6)
    by_pre, by_threshold = back(slope)
    np.testing.assert_array_equal(by_pre[:, 0], [0, 10, 100, 1000, 0])
    assert by_threshold[0] == pytest.approx(-(1.0 / width) * 11.0)
    count, back = jax.vjp(lambda p, t: jump.count(p, t, width), pre, threshold)
    np.testing.assert_array_equal(count[:, 0], [0, 1, 1, 1, 0])
    by_pre, by_threshold = back(slope)
    assert not np.asarray(by_pre).any() and by_threshold[0] == pytest.approx(-(1 / width) * 11.0)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"variant": "topk"}, "--variant=topk needs --k"),
        ({"variant": "mlp", "hidden": 4}, "needs --k or --lam or --group_k"),
        ({"variant": "mlp", "hidden": 4, "k": 3, "lam": 0.1}, "not --k and --lam"),
        ({"variant": "mlp", "k": 3}, "--hidden: --variant=mlp needs it"),
        ({"variant": "topk", "k": 3, "hidden": 4}, "no other variant takes it"),
        ({"variant": "loca"}, "needs --group_k"),
        ({"variant": "loca", "group_k": "3/x"}, "not whole numbers"),
        ({"variant": "loca", "group_k": "0/0"}, "no latent could fire"),
        ({"variant": "loca", "group_k": "30/1"}, "30 is not from 0 to the group's 16"),
        ({"variant": "loca", "group_k": "3/1", "groups": "0.2/0.3/0.5"}, "2 numbers, but --groups has 3"),
        ({"variant": "topk", "k": 3, "groups": "0.5/0.5"}, "--groups does nothing"),
        ({"variant": "topk", "k": 3, "decoder": "free"}, "--decoder=free is for variants with --lam"),
        ({"variant": "topk", "k": 3, "beta1": 1.0}, "--beta1=1.0"),
        ({"variant": "p_anneal", "lam": 0.1, "p_end": 0.0}, "--p_end=0.0"),
        ({"variant": "topk", "k": 3, "resample_every": -1}, "--resample_every=-1"),
        ({"variant": "standard"}, "needs --lam"),
        ({"variant": "topk", "k": 3, "lam": 0.1}, "--lam does nothing"),
        ({"variant": "topk", "k": 0}, "--k=0"),
        ({"variant": "topk", "k": 33}, "at most --n_latents=32"),
        ({"variant": "jumprelu", "target_l0": 5.0, "bandwidth": 0.0}, "--bandwidth=0.0"),
        ({"variant": "topk", "k": 3, "lr": -1.0}, "--lr=-1.0"),
        ({"variant": "topk", "k": 3, "decay_from": 1.5}, "--decay_from=1.5"),
        ({"variant": "matryoshka", "k": 3, "groups": "0.5/0.6"}, "add up to 1"),
        ({"variant": "matryoshka", "k": 3, "groups": "a/b"}, "not numbers"),
        ({"variant": "matryoshka", "k": 3, "groups": "0.001/0.999"}, "would be empty"),
    ],
)
def test_bad_recipes_name_the_flag(flags, text):
    from amortjax.errors import AmortjaxError

    with pytest.raises(AmortjaxError, match=text):
        Recipe(n_latents=M, **flags).check()
