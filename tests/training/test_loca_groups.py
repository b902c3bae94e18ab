"""LocA-SAE: angular variance against its meaning, grouping, budgets."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import api
from amortjax.saes.sae import SAE
from amortjax.training import loca
from amortjax.training.recipe import LOCA_K, Recipe

D, M = 16, 12


@pytest.fixture
def sae() -> SAE:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((M, D)).astype(np.float32)
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    bias = jnp.asarray(rng.standard_normal(D), jnp.float32)
    return SAE(
        W_enc=jnp.asarray(w.T), b_enc=jnp.zeros(M), W_dec=jnp.asarray(w), b_dec=bias, pre_bias=bias, extra={},
        variant="topk", k=4,
    )  # fmt: skip


def test_angular_variance_is_its_formula_and_any_split_of_the_stream_gives_it(sae):
    x = np.random.default_rng(1).standard_normal((300, D)).astype(np.float32) + 2
    found = loca.angular_variance(sae, [x[:100], x[100:]], corrected=False, least=1)
    firing = api.encode(sae, x) > 0
    c = x - np.asarray(sae.b_dec)
    unit = c / np.linalg.norm(c, axis=1, keepdims=True)
    for j in range(M):
        if firing[:, j].any():
            assert found.avar[j] == pytest.approx(
                1 - np.linalg.norm(unit[firing[:, j]].mean(axis=0)), abs=1e-5
            )
    np.testing.assert_array_equal(found.fires, firing.sum(axis=0))
    literal = loca.angular_variance(sae, [x], centred=False, corrected=False, least=0)
    plain = x / np.linalg.norm(x, axis=1, keepdims=True)
    j = int(firing.sum(axis=0).argmax())
    assert literal.avar[j] == pytest.approx(1 - np.linalg.norm(plain[firing[:, j]].mean(axis=0)), abs=1e-5)
    assert (literal.avar[~firing.any(axis=0)] == 1).all()  # as released: silent latents are the widest


def test_the_correction_takes_out_what_few_firings_add(sae):
    """Latents that fire on every token, of random directions: AVar is near 1 whatever the number of tokens."""
    always = dataclasses.replace(sae, variant="standard", k=None, b_enc=jnp.full(M, 100.0))
    rng = np.random.default_rng(2)
    raw, corrected = [], []
    for _ in range(200):
        x = rng.standard_normal((8, D)).astype(np.float32) + np.asarray(sae.b_dec)
        raw.append(loca.angular_variance(always, [x], corrected=False, least=1).avar[0])
        corrected.append(loca.angular_variance(always, [x], least=1).avar[0])
    # 1 - 1/sqrt(8) without it; with it only the square root's own bias is left.
    assert np.mean(raw) == pytest.approx(1 - 1 / np.sqrt(8), abs=0.03)
    assert np.mean(corrected) > np.mean(raw) + 0.1


def test_one_direction_has_no_variance_and_rare_latents_no_score(sae):
    x = np.tile(np.asarray(sae.b_dec) + np.asarray(sae.W_dec[3]), (50, 1)) * np.float32(1)
    found = loca.angular_variance(sae, [x])
    assert found.avar[3] == pytest.approx(0, abs=1e-5) and found.fires[3] == 50
    silent = found.fires == 0
    assert silent.any() and np.isnan(found.avar[silent]).all()


def test_order_is_by_falling_score_with_the_unknown_last():
    score = np.array([0.2, np.nan, 0.9, 0.5, np.nan])
    assert loca.order_by(score, np.array([50, 0, 30, 40, 7])).tolist() == [2, 3, 0, 4, 1]


def test_regrouping_keeps_the_dictionary_and_the_budget(sae):
    order = np.random.default_rng(3).permutation(M)
    grouped = loca.regroup(sae, order, (2, 1, 1), np.linspace(1, 0, M))
    assert grouped.groups == (4, 4, 4) and grouped.group_k == (2, 1, 1) and grouped.variant == "loca"
    x = np.random.default_rng(4).standard_normal((50, D)).astype(np.float32)
    z = api.encode(grouped, x)
    firing = (z > 0).reshape(50, 3, 4).sum(axis=2)
    assert (firing <= [2, 1, 1]).all() and firing.sum() > 0
    # Back in the first order, each value is the pre-activation of its latent, and decodes the same.
    back = np.zeros_like(z)
    back[:, order] = z
    pre = (x - np.asarray(sae.pre_bias)) @ np.asarray(sae.W_enc)
    np.testing.assert_allclose(back[back > 0], pre[back > 0], rtol=1e-4)
    np.testing.assert_allclose(api.decode(grouped, z), api.decode(sae, back), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(grouped.extra["origin"]), order)


def test_groups_need_not_divide(sae):
    grouped = loca.regroup(sae, np.arange(M), (1,) * 5)
    assert sum(grouped.groups) == M and max(grouped.groups) - min(grouped.groups) <= 1


@pytest.mark.parametrize(("order", "ks", "text"), [
    (np.zeros(M, int), (1, 1), "not a permutation"),
    (np.arange(M), (7, 1), "from 0 to its group's size"),
    (np.arange(M), (0, 0), "group_k"),
])  # fmt: skip
def test_bad_groups_are_refused(sae, order, ks, text):
    with pytest.raises(AmortjaxError, match=text):
        loca.regroup(sae, order, ks)


def test_budgets_of_the_controls():
    published = Recipe(variant="loca", group_k=LOCA_K).check().group_ks()
    assert sum(published) == 26
    assert loca.uniform(26, 8) == (4, 4, 3, 3, 3, 3, 3, 3)
    scaled = loca.scaled(published, 20)
    assert sum(scaled) == 20 and list(scaled) == sorted(scaled, reverse=True)
    exact = np.asarray(published) * 20 / 26
    assert np.abs(np.asarray(scaled) - exact).max() < 1
