"""The MLP encoder without a linear map beside it: it starts alive, stays without one, and comes back from the dead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes.encoders import encode, preactivation
from amortjax.training import modules, resample, step
from amortjax.training.recipe import Recipe
from tests.problems import toy_sae
from tests.training.conftest import D, M, planted_activations

PLAIN = Recipe(variant="mlp", lam=0.1, hidden=512, linear=False, n_latents=M, steps=20, batch_size=256, lr=3e-3,
               warmup=0, resample_every=5)  # fmt: skip


def start(recipe: Recipe, x: np.ndarray):
    graph, weights = modules.split(modules.start(recipe, x.mean(axis=0)))
    return graph, step.init(jax.tree.map(jnp.array, weights), recipe)


@pytest.mark.parametrize("sparsity", [{"lam": 0.1}, {"lam": None, "group_k": "2/2"}], ids=["lam", "groups"])
def test_it_starts_near_the_linear_encoder(sparsity):
    x = planted_activations(256)[0] / 20
    recipe = dataclasses.replace(PLAIN, **sparsity, hidden=4096).check()
    sae = modules.as_sae(*modules.split(modules.start(recipe, x.mean(axis=0))))
    c = x - np.asarray(sae.pre_bias)
    linear, own = c @ np.asarray(sae.W_dec).T, np.asarray(preactivation(sae, jnp.asarray(c)))
    assert not np.asarray(sae.W_enc).any()
    assert np.corrcoef(linear.ravel(), own.ravel())[0, 1] > 0.9
    assert np.polyfit(linear.ravel(), own.ravel(), 1)[0] == pytest.approx(1, abs=0.1)


def test_training_moves_all_but_the_linear_map():
    x = planted_activations(256)[0] / 20
    graph, state = start(PLAIN.check(), x)
    before = jax.tree.map(np.asarray, state.weights)
    losses = []
    for _ in range(12):
        state, report = step.train_step(state, x, x.mean(axis=0), graph=graph, recipe=PLAIN)
        losses.append(float(report.loss))
    assert losses[-1] < 0.6 * losses[0]
    assert not np.asarray(state.weights["w_enc"]).any()
    for name in ("W_hidden", "W_up"):
        assert np.abs(np.asarray(state.weights["extra"][name]) - before["extra"][name]).max() > 1e-3
    dead = np.arange(M) < 5
    w_up = np.array(state.weights["extra"]["W_up"])
    w_up[:5] = -1.0
    weights = state.weights | {"extra": state.weights["extra"] | {"W_up": jnp.array(w_up)}}
    state = state._replace(weights=weights, silent=jnp.where(dead, 5 * 256, 0))
    state = resample.resample(state, x, 0, graph=graph, recipe=PLAIN)
    sae = modules.as_sae(graph, state.weights)
    assert not np.asarray(sae.W_enc).any()
    assert np.asarray(encode(sae, x)[:, :5] > 0).any(axis=0).all()
    np.testing.assert_array_equal(np.asarray(state.weights["extra"]["W_up"])[5:], w_up[5:])


def test_mistakes_are_one_line():
    with pytest.raises(AmortjaxError, match="--linear is for --variant=mlp"):
        Recipe(variant="topk", k=4, linear=False).check()
    with pytest.raises(AmortjaxError, match="has a linear map, which --linear=false would take from it"):
        modules.from_sae(toy_sae("topk", d=D, m=M), PLAIN, 1.0)
    assert Recipe(variant="mlp", lam=0.1, hidden=8, linear=True).check().hidden_only is False
