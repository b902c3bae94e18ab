"""Steps beyond the loss: schedules, p-annealing, free and unit decoders, resampling."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.training import modules, step
from amortjax.training.losses import power
from amortjax.training.recipe import Recipe
from amortjax.training.resample import ENCODER_NORM, resample

D, M, N = 8, 16, 32
MEAN = np.zeros(D, np.float32)


def _begin(variant: Any, **more: Any):
    recipe = Recipe(variant=variant, n_latents=M, batch_size=N, **more).check()
    graph, weights = modules.split(modules.start(recipe, MEAN))
    return recipe, graph, step.init(weights, recipe)


def _x(seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((N, D)), jnp.float32)


def _run(recipe, graph, state, count: int) -> list[step.State]:
    states = []
    for i in range(count):
        state, _ = step.train_step(state, _x(i), MEAN, graph=graph, recipe=recipe)
        states.append(jax.tree.map(np.array, state))
    return states


@pytest.mark.parametrize(("variant", "free"), [("standard", False), ("april", True)])
def test_rows_of_the_decoder_are_held_or_free(variant, free):
    recipe, graph, state = _begin(variant, lam=0.1, lr=1e-2, steps=20)
    first = np.linalg.norm(state.weights["w_dec"], axis=1)
    np.testing.assert_allclose(first, 0.1 if free else 1, rtol=1e-5)
    norms = np.linalg.norm(_run(recipe, graph, state, 5)[-1].weights["w_dec"], axis=1)
    assert (np.abs(norms - first).max() > 1e-3) == free


def test_the_exponent_falls_in_ten_steps_to_its_end():
    recipe = Recipe(variant="p_anneal", lam=0.1, steps=1000, p_from=0.1, p_end=0.2)
    p = [float(step.exponent(i, recipe)[0]) for i in range(1000)]
    assert p[0] == 1 and p[99] == 1 and p[-1] == pytest.approx(0.2)
    values = sorted(set(p), reverse=True)
    np.testing.assert_allclose(values, np.linspace(1, 0.2, 11), rtol=1e-6)
    changed = [i for i in range(1, 1000) if bool(step.exponent(i, recipe)[2])]
    assert len(changed) == 10 and changed[0] == 100 and np.ptp(np.diff(changed)) == 0


def test_the_penalty_keeps_its_size_when_the_exponent_changes():
    recipe, graph, state = _begin("p_anneal", lam=0.05, steps=40, p_from=0.5, lr=1e-4, warmup=0)
    for i in range(22):
        before = np.array(state.anneal)
        p, after, changed = (np.array(part) for part in step.exponent(i, recipe))
        state, _ = step.train_step(state, _x(i), MEAN, graph=graph, recipe=recipe)
        if changed:
            # Same weights, the old and the new exponent: factor * sum z^p stays near.
            assert float(state.anneal[0]) == pytest.approx(before[0] * before[1] / before[2], rel=1e-5)
        else:
            assert float(state.anneal[0]) == before[0]
    assert i == 21 and float(after) < float(p) < 1
    assert float(state.anneal[0]) != 1


def test_the_annealed_penalty_has_a_bounded_slope():
    z = jnp.asarray([0.0, 1e-6, 5e-3, 1e-2, 0.5, 2.0])
    p = jnp.asarray(0.2)
    np.testing.assert_allclose(power(z, p)[3:], np.asarray(z)[3:] ** 0.2, rtol=1e-5)
    slope = jax.vmap(jax.grad(lambda z: power(z, p)))(z)
    assert np.isfinite(slope).all() and slope.max() <= 0.01 ** (0.2 - 1) * 1.001
    np.testing.assert_allclose(power(z, jnp.asarray(1.0)), z, rtol=1e-6)


@pytest.mark.parametrize("variant", ["standard", "april", "topk", "gated", "jumprelu", "mlp"])
def test_resampling_makes_the_dead_anew_and_leaves_the_rest(variant):
    more: dict[str, Any] = {
        "topk": {"k": 3},
        "jumprelu": {"target_l0": 3.0},
        "mlp": {"k": 3, "hidden": 4},
    }.get(variant, {"lam": 0.1})
    recipe, graph, state = _begin(variant, steps=50, resample_every=5, lr=1e-2, **more)
    for i in range(4):
        state, _ = step.train_step(state, _x(i), MEAN, graph=graph, recipe=recipe)
    dead = np.arange(M) % 4 == 0
    state = state._replace(silent=jnp.where(jnp.asarray(dead), 5 * N, 0))
    before, x = jax.tree.map(np.array, state), _x(9)
    after = jax.tree.map(np.array, resample(state, x, 0, graph=graph, recipe=recipe))
    alike = jax.tree.structure(before) == jax.tree.structure(after)
    assert alike and not after.silent[dead].any()
    if variant == "jumprelu":  # the threshold that a latent died of would keep it dead
        np.testing.assert_allclose(after.weights["extra"]["threshold"][dead], 0.1 / np.sqrt(D), rtol=1e-6)
    for name in ("w_enc", "b_enc", "w_dec"):
        np.testing.assert_array_equal(before.weights[name][~dead], after.weights[name][~dead])
        for moment in ("mu", "nu"):
            old, new = (getattr(s.optimizer[1][0], moment)[name] for s in (before, after))
            np.testing.assert_array_equal(old[~dead], new[~dead])
            assert old[dead].any() and not new[dead].any()
    np.testing.assert_array_equal(before.weights["b_dec"], after.weights["b_dec"])
    assert not after.weights["b_enc"][dead].any()
    directions = np.asarray(x) - before.weights["b_dec"]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    fresh = after.weights["w_enc"][dead]
    size = np.linalg.norm(before.weights["w_enc"][~dead], axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(fresh, axis=1), ENCODER_NORM * size, rtol=1e-4)
    cosines = (fresh / np.linalg.norm(fresh, axis=1, keepdims=True)) @ directions.T
    np.testing.assert_allclose(cosines.max(axis=1), 1, atol=1e-5)
    assert len(set(cosines.argmax(axis=1))) == dead.sum()  # no token twice
    if variant == "mlp":
        np.testing.assert_array_equal(before.weights["extra"]["W_hidden"], after.weights["extra"]["W_hidden"])
        assert not after.weights["extra"]["W_up"][dead].any()


def test_badly_reconstructed_tokens_are_drawn_more_often():
    recipe, graph, state = _begin("standard", lam=0.1, steps=50, resample_every=1)
    x = np.full((N, D), 1e-3, np.float32)
    x[3] = [10, -10, 10, -10, 10, 10, 10, -10]
    state = state._replace(silent=jnp.full(M, 10 * N))
    after = resample(state, jnp.asarray(x), 0, graph=graph, recipe=recipe)
    # One token is badly reconstructed, each is drawn once: the first dead latent gets it.
    np.testing.assert_allclose(np.abs(np.asarray(after.weights["w_dec"][0])), 1 / np.sqrt(D), rtol=1e-3)
