"""The rungs between an encoder and the optimum: each removes what it should, and none can hide a loss."""

import contextlib
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from problems import toy_sae

from amortjax.errors import AmortjaxError
from amortjax.inference import modes, objective
from amortjax.inference.api import encode_codes
from amortjax.inference.modes import Options
from amortjax.inference.objective import certify, pose
from amortjax.training import encoder_fit, ladder
from amortjax.training.encoder_fit import Pace
from amortjax.training.ladder import Fit, Sample, coder, fit_rung

LAM = 0.3
FIT = Fit(hidden=8, layers=2, pace=Pace(steps=100, batch=64))
OPTIONS = Options(tol=1e-6)


def no_bar(total, text):
    return contextlib.nullcontext()


def tokens(sae, n, seed):
    r = np.random.default_rng(seed)
    z = np.zeros((n, sae.n_latents))
    for row in z:
        row[r.choice(sae.n_latents, 4, replace=False)] = r.exponential(size=4) + 0.3
    x = z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec) + 0.02 * r.standard_normal((n, sae.d_in))
    return x.astype(np.float32)


def sample_of(sae, seed=0, n=512, held=256):
    parts = []
    for x in (tokens(sae, n, seed), tokens(sae, held, seed + 1)):
        parts += [np.asarray(objective.targets(sae, x)[0]), encode_codes(sae, x)]
    return Sample(*parts)


def orthonormal(factor):
    """An SAE of orthonormal atoms whose encoder is the lasso optimum at LAM, each latent times its factor."""
    r, d = np.random.default_rng(3), 16
    atoms = np.linalg.qr(r.standard_normal((d, d)))[0].astype(np.float32)
    zero = jnp.zeros(d)
    base = toy_sae("standard", d=d, m=d)
    weight, bias = (
        jnp.asarray(atoms.T * factor, jnp.float32),
        jnp.asarray(np.full(d, -LAM) * factor, jnp.float32),
    )
    return dataclasses.replace(
        base, W_enc=weight, b_enc=bias, W_dec=jnp.asarray(atoms), b_dec=zero, pre_bias=zero
    )


def price(problem, t, folded, lam=LAM):
    return float(certify(problem, t, problem.unfold(folded), lam).objective.mean())


def best(problem, t, codes, lam=LAM):
    return certify(problem, t, modes.solve("optimal", problem, t, codes, lam, 1.0, OPTIONS)[0], lam)


@functools.cache
def climbed(variant="topk"):
    sae = toy_sae(variant)
    problem, sample, rungs = pose(sae), sample_of(sae), {}
    for name in ladder.FITTED:
        rungs[name] = fit_rung(name, sae, problem, sample, LAM, rungs, FIT, no_bar)
    return sae, problem, sample, rungs


def test_one_scale_removes_the_price_of_an_encoder_that_is_the_optimum_up_to_a_scale():
    sae = orthonormal(2.5)
    problem, sample = pose(sae), sample_of(sae)
    star = best(problem, sample.train, sample.train_codes).objective.mean()
    assert price(problem, sample.train, problem.fold(sample.train_codes)) > 1.05 * star
    rung = fit_rung("scaled", sae, problem, sample, LAM, {}, FIT, no_bar)
    assert rung.about["scale"] == pytest.approx(0.4, rel=1e-4)
    codes = coder(rung, problem)(sample.train, sample.train_codes)
    assert price(problem, sample.train, codes) == pytest.approx(star, rel=1e-6)
    assert rung.about["train"] == pytest.approx(star, rel=1e-5)


def test_a_scale_per_latent_removes_shrinkage_that_differs_by_latent():
    factor = np.linspace(0.4, 3.0, 16)
    sae = orthonormal(factor)
    problem, sample = pose(sae), sample_of(sae)
    star = best(problem, sample.train, sample.train_codes).objective.mean()
    one = fit_rung("scaled", sae, problem, sample, LAM, {}, FIT, no_bar)
    each = fit_rung("scaled_each", sae, problem, sample, LAM, {"scaled": one}, FIT, no_bar)
    assert one.about["train"] > 1.02 * star
    assert each.about["train"] == pytest.approx(star, rel=1e-3)
    np.testing.assert_allclose(each.arrays["scales"], 1 / factor, rtol=0.1)


def test_the_affine_start_is_the_scaled_encoder_where_that_is_a_relu():
    sae = orthonormal(np.linspace(0.4, 3.0, 16))
    problem, sample = pose(sae), sample_of(sae)
    scales = np.linspace(0.5, 1.5, 16)
    start = ladder.affine_start(sae, problem, sample, LAM, scales)
    expected = problem.fold(sample.train_codes.scaled(scales)).dense()
    np.testing.assert_allclose(encoder_fit.codes_of(start, sample.train), expected, atol=1e-5)


def test_the_affine_start_of_a_topk_encoder_fires_each_latent_as_often():
    sae, problem, sample, rungs = climbed()
    start = ladder.affine_start(sae, problem, sample, LAM, rungs["scaled_each"].arrays["scales"])
    ours = (encoder_fit.codes_of(start, sample.train) > 0).mean(axis=0)
    theirs = (sample.train_codes.dense() > 0).mean(axis=0)
    moved = np.abs(ours - theirs)[ours > 0]  # a latent whose best scale is 0 is silent
    assert moved.max() < 0.01 and (ours > 0).sum() > 55


@pytest.mark.parametrize("variant", ["topk", "standard"])
def test_a_fit_is_never_worse_than_its_start_and_never_better_than_the_optimum(variant):
    _, problem, sample, rungs = climbed(variant)
    for which, t, codes in (
        ("train", sample.train, sample.train_codes), ("validation", sample.validation, sample.validation_codes)
    ):  # fmt: skip
        found = best(problem, t, codes)
        for name, rung in rungs.items():
            own = price(problem, t, coder(rung, problem)(t, codes))
            assert own >= found.dual.mean() * (1 - 1e-6), name
            if f"{which}_start" in rung.about:
                assert rung.about[which] <= rung.about[f"{which}_start"] * (1 + 1e-6), name
            if which == "validation":
                assert own == pytest.approx(rung.about[which], rel=1e-4), name
    # Rungs that begin as the one before can't lose to it on the tokens that choose.
    chosen = [rungs[name].about["validation"] for name in ("scaled", "scaled_each")]
    assert chosen[1] <= chosen[0] * (1 + 1e-9)
    chosen = [rungs[name].about["validation"] for name in ("affine", "mlp", "lista")]
    assert chosen == sorted(chosen, reverse=True)


def test_more_capacity_comes_nearer_to_the_optimum():
    _, problem, sample, rungs = climbed()
    star = best(problem, sample.validation, sample.validation_codes).objective.mean()
    left = {name: rung.about["validation"] / star - 1 for name, rung in rungs.items()}
    assert left["lista"] < 0.5 * left["mlp"] < 0.5 * left["affine"]
    assert rungs["affine"].about["validation"] < 0.9 * rungs["affine"].about["validation_start"]
    # A ReLU of an affine map can't do what the TopK rule does: this step is negative, and stays so.
    assert left["affine"] > left["scaled_each"]


def test_an_affine_fit_starts_from_the_scales_of_a_relu_encoder():
    _, _, _, rungs = climbed("standard")
    start = rungs["affine"].about["validation_start"]
    assert start == pytest.approx(rungs["scaled_each"].about["validation"], rel=1e-5)
    assert rungs["affine"].about["validation"] < 0.9 * start


def test_renaming_latents_changes_nothing():
    sae, _, sample, rungs = climbed()
    order = np.random.default_rng(5).permutation(sae.n_latents)
    renamed = dataclasses.replace(
        sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order]
    )
    other, theirs, ours = pose(renamed), sample_of(toy_sae()), {}
    codes = [encode_codes(renamed, t + np.asarray(sae.b_dec)) for t in (theirs.train, theirs.validation)]
    theirs = Sample(sample.train, codes[0], sample.validation, codes[1])
    for name in ladder.FITTED:
        ours[name] = fit_rung(name, renamed, other, theirs, LAM, ours, FIT, no_bar)
        assert ours[name].about["validation"] == pytest.approx(rungs[name].about["validation"], rel=2e-3), (
            name
        )
    np.testing.assert_allclose(
        ours["scaled_each"].arrays["scales"], rungs["scaled_each"].arrays["scales"][order], atol=1e-3
    )


def test_a_fit_that_diverges_says_so_in_one_line():
    sae, problem, sample, rungs = climbed()
    wild = FIT._replace(pace=Pace(steps=100, batch=64, lr=1e30))
    with pytest.raises(AmortjaxError, match=r"not finite at step .*--fit_lr") as caught:
        fit_rung("affine", sae, problem, sample, LAM, rungs, wild, no_bar)
    assert "\n" not in str(caught.value)


def test_signed_codes_are_refused():
    sae = toy_sae("signed_topk")
    with pytest.raises(AmortjaxError, match="may be negative"):
        ladder.check_ladder(sae, pose(sae))


def test_costs():
    _, _, _, rungs = climbed()
    about = {name: (rung.about["parameters"], rung.about["forwards"]) for name, rung in rungs.items()}
    d, m, h, layers = 16, 64, FIT.hidden, FIT.layers
    mlp = d * m + m + d * h + h + h * m
    assert about["scaled"] == (1, 1.0) and about["scaled_each"] == (m, 1.0)
    assert about["affine"] == (d * m + m, 1.0)
    assert about["mlp"] == (mlp, pytest.approx(1 + (d * h + h * m) / (d * m)))
    assert about["lista"] == (mlp + d * m + 2 * layers, pytest.approx(about["mlp"][1] + 2 * layers))
