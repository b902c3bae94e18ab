"""Held-out metrics while training, against the same numbers computed another way."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from problems import toy_sae

from amortjax.inference import api as inference
from amortjax.inference import objective
from amortjax.saes import api
from amortjax.saes.sae import SAE
from amortjax.training import modules, watch
from amortjax.training.losses import LOSSES
from amortjax.training.recipe import NEEDS, Recipe

D, M = 16, 64
GIVEN: dict[str, Any] = {"k": 3, "lam": 0.1, "target_l0": 4.0, "group_k": "2/1"}


def _sae(variant: Any) -> SAE:
    hidden = {"hidden": 4} if variant == "mlp" else {}
    recipe = Recipe(
        variant=variant, n_latents=M, **{NEEDS[variant][0]: GIVEN[NEEDS[variant][0]]}, **hidden
    ).check()
    return modules.as_sae(*modules.split(modules.start(recipe, np.full(D, 0.1, np.float32))))


def _rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)


@pytest.mark.parametrize("variant", LOSSES)
def test_held_out_is_what_the_public_functions_give(variant, monkeypatch):
    monkeypatch.setattr(watch, "ROWS", 100)
    sae, x, mean = _sae(variant), _rows(200), np.full(D, 0.05, np.float32)
    codes = [api.encode(sae, part) for part in (x[:100], x[100:])]  # a batch rule looks at a block
    error = sum(
        np.sum((part - api.decode(sae, z)) ** 2) for part, z in zip((x[:100], x[100:]), codes, strict=True)
    )
    z = np.concatenate(codes)
    found = watch.held_out(sae, x, mean)
    assert found["val_fvu"] == pytest.approx(error / np.sum((x - mean) ** 2), rel=1e-5)
    assert found["val_l0"] == pytest.approx((z > 0).sum(axis=1).mean(), rel=1e-6)
    assert found["val_dead"] == pytest.approx(np.mean((z <= 0).all(axis=0)), abs=1e-6)


@pytest.mark.parametrize("n", [1, 99, 100, 101, 350, 1000])
def test_blocks_are_equal_fit_and_leave_out_hardly_a_row(n, monkeypatch):
    monkeypatch.setattr(watch, "ROWS", 100)
    number, rows = watch.blocks(n, M)
    assert rows <= 100 and 0 <= n - number * rows < number


def test_blocks_of_a_wide_sae_are_small():
    number, rows = watch.blocks(8192, 1 << 20)
    assert 4 * rows << 20 <= watch.BLOCK_BYTES and number * rows == 8192


def test_a_run_compiles_once_for_all_its_evaluations():
    sae, x = _sae("topk"), _rows(64)
    before = watch._sums._cache_size()
    values = [
        watch.held_out(dataclasses.replace(sae, b_enc=sae.b_enc + i), x, x.mean(axis=0)) for i in range(3)
    ]
    assert watch._sums._cache_size() <= before + 1
    assert len({value["val_fvu"] for value in values}) == 3


def test_predicting_the_mean_is_an_fvu_of_one_and_silence_is_dead():
    sae, x = _sae("standard"), _rows(64)
    sae = dataclasses.replace(sae, b_enc=sae.b_enc - 100, b_dec=jnp.asarray(x.mean(axis=0)))
    assert watch.held_out(sae, x, x.mean(axis=0)) == pytest.approx({"val_fvu": 1, "val_l0": 0, "val_dead": 1})


def _tight(lam: float, scale: float = 1.0) -> tuple[SAE, np.ndarray]:
    """An orthonormal dictionary, whose lasso optimum at lambda is ReLU(t - lam): the encoder has just that, times
    `scale`. And rows on which it has an L0 of about 3."""
    eye, bias = jnp.eye(D), jnp.full(D, 0.3)
    sae = SAE(scale * eye, jnp.full(D, -scale * lam), eye, bias, bias, {}, "standard")
    r = np.random.default_rng(1)
    t = r.exponential(size=(256, D)) * (r.random((256, D)) < 0.25)
    return sae, (t + 0.3).astype(np.float32)


def test_an_encoder_that_is_optimal_has_no_gap():
    sae, x = _tight(0.2)
    found = watch.gap(sae, x)
    # Lambda is known to 1 % in L0, so P is not exactly least there.
    assert found["val_lam"] == pytest.approx(0.2, abs=0.03)
    assert 0 <= found["val_gap"] < 2e-3
    assert 0 <= found["val_gap_width"] < 1e-3


def test_the_gap_is_that_of_the_public_functions_at_the_same_lambda():
    sae, x = _tight(0.2, scale=0.7)
    found = watch.gap(sae, x)
    best = inference.infer(sae, x, found["val_lam"])
    own = inference.infer(sae, x, found["val_lam"], mode="amortized")
    expected = own.objective.sum() / best.objective.sum() - 1
    assert expected > 0.01
    assert found["val_gap"] - found["val_gap_width"] - 1e-9 <= expected <= found["val_gap"] + 1e-9
    l0 = best.codes.l0.mean()
    assert l0 == pytest.approx(np.mean((x - 0.3 > 0.2).sum(axis=1)), rel=0.011)
    again = watch.gap(sae, x, start=found["val_lam"])
    assert again["val_gap"] == pytest.approx(found["val_gap"], abs=5e-3)


def test_the_gap_does_not_depend_on_the_units():
    sae, x = _tight(0.2, scale=0.7)
    double = dataclasses.replace(sae, b_enc=2 * sae.b_enc, b_dec=2 * sae.b_dec, pre_bias=2 * sae.pre_bias)
    one, two = watch.gap(sae, x), watch.gap(double, 2 * x)
    assert two["val_gap"] == pytest.approx(one["val_gap"], rel=1e-3)
    assert two["val_lam"] == pytest.approx(2 * one["val_lam"], rel=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        {"b_enc": jnp.full(M, -100.0)},  # silent
        {"b_enc": jnp.full(M, 100.0)},  # every latent fires: no optimum does
        {"b_enc": jnp.full(M, jnp.nan)},
        {"W_dec": jnp.full((M, D), jnp.nan)},
        {"W_dec": jnp.zeros((M, D))},
    ],
    ids=["silent", "dense", "nan codes", "nan dictionary", "zero dictionary"],
)
def test_where_nothing_can_be_compared_the_gap_is_unknown_and_training_goes_on(change):
    sae = dataclasses.replace(toy_sae("standard", D, M), **change)
    assert watch.gap(sae, _rows(64)) == {"val_gap": None, "val_gap_width": None, "val_lam": None}
    held_out = watch.held_out(sae, _rows(64), np.zeros(D, np.float32))
    assert set(held_out) == {"val_fvu", "val_l0", "val_dead"}


def test_objectives_are_the_half_form():
    """What val_lam means: the lambda of P = 1/2 |t - zW|^2 + lam sum_j w_j z_j."""
    sae, x = _tight(0.2)
    problem, lam = objective.pose(sae), watch.gap(sae, x)["val_lam"]
    z = np.maximum(x - 0.3 - lam, 0)
    solved = inference.infer(sae, x, lam)
    np.testing.assert_allclose(solved.codes.dense(), z, atol=2e-3)
    assert problem.record.form == "half"
