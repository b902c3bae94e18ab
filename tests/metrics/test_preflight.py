"""Preflight: the dictionary's numbers against plain linear algebra, and planted faults against their names."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.metrics import places, preflight, verdict, whatif
from amortjax.saes import api
from amortjax.saes.formats.hooks import Site
from amortjax.saes.sae import SAE, Info, unscale_input
from tests.problems import toy_sae

D, M, K, N = 32, 64, 2, 512
HERE = Site("resid_post", 1)


def planted() -> tuple[SAE, np.ndarray]:
    """A TopK SAE that explains its rows (N, D): K atoms each, a bias as long as they are, little noise."""
    r = np.random.default_rng(0)
    sae = toy_sae("topk", d=D, m=M, k=K)
    bias = jnp.asarray(0.5 * r.standard_normal(D), jnp.float32)
    sae = dataclasses.replace(sae, b_dec=bias, pre_bias=bias, info=Info(hook="resid_post", layer_index=1))
    z = np.zeros((N, M), np.float32)
    for row in z:
        row[r.choice(M, K, replace=False)] = 1 + r.exponential(size=K)
    return sae, (api.decode(sae, z) + 0.02 * r.standard_normal((N, D))).astype(np.float32)


@pytest.fixture(scope="module")
def problem() -> tuple[SAE, np.ndarray]:
    return planted()


def known(sae: SAE, x: np.ndarray, place: Site = HERE) -> verdict.Known:
    few = whatif.rows_for(sae, x)
    measured = preflight.on_rows(sae, x), whatif.ask(sae, few)
    return verdict.Known(sae, preflight.dictionary(sae), place, *measured, None, few)


def names(found: verdict.Known) -> list[str]:
    return [finding.name for finding in verdict.verdict(found)]


def test_dictionary_is_what_linear_algebra_says(problem):
    sae = problem[0]
    scale = np.linspace(0.5, 2, M).astype(np.float32)
    stretched = dataclasses.replace(sae, W_dec=sae.W_dec * scale[:, None])
    found = preflight.dictionary(stretched)
    unit = np.asarray(sae.W_dec, np.float64)
    cos = np.abs(unit @ unit.T) - 2 * np.eye(M)
    np.testing.assert_allclose(found.norms, scale, rtol=1e-5)
    assert found.coherence == pytest.approx(cos.max(), abs=1e-5) and found.compared == M
    assert cos[found.pair] == pytest.approx(cos.max(), abs=1e-5)
    exact = np.linalg.svd(unit, compute_uv=False)[0] ** 2
    assert exact <= found.lipschitz <= 1.021 * exact
    assert found.cosine == pytest.approx(1.0, abs=1e-5)  # tied


def test_coherence_of_a_sample_is_a_lower_bound_and_zero_rows_are_left_out(problem, monkeypatch):
    monkeypatch.setattr(preflight, "COHERENCE_FLOPS", 0)
    monkeypatch.setattr(preflight, "_BLOCK", 16)
    sae = dataclasses.replace(problem[0], W_dec=problem[0].W_dec.at[5].set(0))
    found = preflight.dictionary(sae)
    assert found.compared == 16 and found.norms[5] == 0 and 5 not in found.pair
    monkeypatch.undo()
    whole = preflight.dictionary(sae)
    assert 0 < found.coherence <= whole.coherence and whole.compared == M - 1
    assert "zero" in [f.name for f in verdict.verdict(verdict.Known(sae, whole, HERE))]


def test_numbers_on_rows(problem):
    sae, x = problem
    found, z = preflight.on_rows(sae, x), api.encode(sae, x)
    error = np.sum((x - api.reconstruct(sae, x)) ** 2)
    assert found.fvu == pytest.approx(error / np.sum((x - x.mean(0)) ** 2), rel=1e-4)
    assert found.nmse == pytest.approx(error / np.sum((x - np.asarray(sae.b_dec)) ** 2), rel=1e-4)
    assert found.l0 == pytest.approx((z != 0).sum(1).mean()) and found.silent == np.mean((z != 0).sum(0) == 0)
    assert (found.n_tokens, found.not_finite, found.outliers) == (N, 0, 0)


def test_a_correct_sae_has_no_fault(problem):
    found = known(*problem)
    assert found.seen and found.seen.fvu and found.seen.fvu < 0.3
    assert names(found) == [] and verdict.notes(found) == []


@pytest.mark.parametrize("times", [7.0, 0.1, 2.5])
def test_a_missing_scale_is_named_with_its_size(problem, times):
    sae, x = problem
    found = known(unscale_input(sae, 1 / times), x)
    assert names(found) == ["scale"]
    assert found.what_if and found.what_if.scale == pytest.approx(1 / times, rel=0.15)
    [finding] = verdict.verdict(found)
    assert "times what it was trained on" in finding.fault
    tried = [choice["norm_factor"] for choice in finding.choices]
    assert any(value == pytest.approx(times, rel=0.15) for value in tried)
    assert any(value == pytest.approx(1 / times, rel=0.15) for value in tried)


def test_topk_read_as_relu_is_named_with_its_k(problem, monkeypatch):
    sae, x = problem
    monkeypatch.setattr(whatif, "KS", (1, 2, 8, 20))
    relu = dataclasses.replace(sae, variant="standard", k=None)
    found = known(relu, x)
    assert names(found) == ["rule"]
    [finding] = verdict.verdict(found)
    assert "as TopK with k about 2 " in finding.fault and finding.choices[0] == {"k": 2}
    assert finding.fvu == pytest.approx(preflight.fvu(x, api.reconstruct(sae, x)), rel=1e-3)


def test_a_bias_on_the_wrong_side_is_named_both_ways(problem):
    sae, x = problem
    without = known(dataclasses.replace(sae, pre_bias=0 * sae.pre_bias), x)
    assert names(without) == ["bias"] and "not subtracted" in verdict.verdict(without)[0].fault
    # The same function with the bias in b_enc: then subtracting it as well is wrong.
    folded = dataclasses.replace(sae, b_enc=-sae.pre_bias @ sae.W_enc)
    twice = known(folded, x)
    assert names(twice) == ["bias"] and "is subtracted" in verdict.verdict(twice)[0].fault
    assert names(known(dataclasses.replace(folded, pre_bias=0 * sae.pre_bias), x)) == []


def test_centred_and_normed_rows_are_named(problem):
    sae, x = problem
    x = x - x.mean(axis=1, keepdims=True)
    # A dictionary and biases without a mean, of rows that have one.
    centre = lambda a: a - a.mean(axis=-1, keepdims=True)  # noqa: E731
    atoms = centre(sae.W_dec)
    bias = centre(sae.b_dec)
    centred = dataclasses.replace(sae, W_enc=atoms.T, W_dec=atoms, b_dec=bias, pre_bias=bias)
    shift = 3 * np.random.default_rng(1).standard_normal((N, 1)).astype(np.float32)
    assert names(known(centred, x)) == [] and names(known(centred, x + shift)) == ["centred"]
    # Rows of norm 1, as seen by an SAE of such, stretched by very different factors.
    unit = problem[1] / np.linalg.norm(problem[1], axis=1, keepdims=True)
    small = unscale_input(sae, 1 / float(np.linalg.norm(problem[1], axis=1).mean()))
    assert names(known(small, unit)) == []
    factors = np.exp(np.random.default_rng(2).uniform(0, 3, (N, 1))).astype(np.float32)
    assert names(known(small, unit * factors)) == ["rows"]
    assert "norm 1" in verdict.verdict(known(small, unit * factors))[0].fault


def test_outliers_nan_and_dead_latents_are_named(problem):
    sae, x = problem
    spiked = x.copy()
    spiked[::200] *= 100
    found = known(sae, spiked)
    assert names(found) == ["outliers"] and found.seen
    assert found.seen.fvu_ordinary == pytest.approx(preflight.fvu(np.delete(x, slice(None, None, 200), 0),
        api.reconstruct(sae, np.delete(x, slice(None, None, 200), 0))), rel=1e-3)  # fmt: skip
    dead = dataclasses.replace(sae, b_enc=sae.b_enc.at[: 3 * M // 4].set(-100.0))
    many = np.tile(x, (4, 1))  # so that every latent should have fired
    assert "dead" in names(
        verdict.Known(dead, preflight.dictionary(dead), HERE, preflight.on_rows(dead, many))
    )
    normed, zero = dataclasses.replace(sae, norm="constant_norm"), x.copy()
    zero[3] = 0
    seen = preflight.on_rows(normed, zero)
    assert seen.not_finite == 1 and np.isfinite(seen.fvu or np.nan)
    assert "finite" in names(verdict.Known(normed, preflight.dictionary(normed), HERE, seen))


def test_a_threshold_that_was_never_measured_is_the_only_fault_named(problem):
    sae, x = problem
    unmeasured = dataclasses.replace(sae, variant="batch_topk", extra={"threshold": jnp.asarray(-1.0)})
    found = known(unmeasured, x)
    assert names(found) == ["threshold"] and verdict.verdict(found)[0].choices == ({"batch_rule": True},)
    assert "threshold" not in names(known(dataclasses.replace(unmeasured, batch_rule=True), x))


def test_another_models_activations_are_never_called_good(problem):
    sae, x = problem
    other = np.random.default_rng(5).standard_normal(x.shape).astype(np.float32) * 0.3
    assert names(known(sae, other)) != []


def test_hooks_are_compared_at_equal_l0(problem):
    sae, x = problem
    r = np.random.default_rng(3)
    there = Site("resid_post", 2)
    blurred = (1.4 * (x + 0.25 * r.standard_normal(x.shape))).astype(np.float32)
    rows = {HERE: x, there: blurred}
    relu = dataclasses.replace(sae, variant="standard", k=None, b_enc=sae.b_enc - 1.6)
    fits = preflight.by_hook(relu, rows, HERE, few=N)
    # Larger activations fire more, which explains more; at equal L0 they do not.
    assert fits[there].fvu < fits[HERE].fvu and fits[there].l0 > 2 * fits[HERE].l0
    assert fits[HERE].ratio == 1 and fits[there].ratio > 1.02
    blurred = rows[there] = (x + 0.4 * r.standard_normal(x.shape)).astype(np.float32)
    found = known(sae, blurred, there)._replace(hooks=preflight.by_hook(sae, rows, there, few=N))
    assert names(found) == ["hook"]
    assert "--layer_index=1 --hook=resid_post" in verdict.verdict(found)[0].remedy
    # What the file says is believed where nothing else is known, and not against the measurement.
    elsewhere = known(sae, x, there)
    assert names(elsewhere) == ["hook"] and names(known(sae, x, Site("resid_pre", 2))) == []
    wrong_file = dataclasses.replace(sae, info=Info(hook="resid_post", layer_index=2))
    at_hooks = known(wrong_file, x)._replace(hooks=preflight.by_hook(sae, rows, HERE, few=N))
    assert names(at_hooks) == [] and any("the file says" in note for note in verdict.notes(at_hooks))


def test_neighbours_are_those_the_model_has():
    sites = places.neighbours(Site("resid_post", 1), 4)
    assert sites == [
        Site("resid_pre", 0), Site("resid_post", 0), Site("resid_post", 1), Site("resid_post", 2),
        Site("mlp_out", 1), Site("attn_out", 1),
    ]  # fmt: skip
    assert Site("resid_pre", 2) in places.neighbours(Site("resid_pre", 2), 4)
    assert Site("resid_post", 1) not in places.neighbours(Site("resid_pre", 2), 4)
    last = places.neighbours(Site("mlp_out", 3), 4)
    assert Site("mlp_out", 2) in last and max(site.layer or 0 for site in last) == 3


def test_transcoders_have_no_fvu(problem):
    sae, x = problem
    narrow = dataclasses.replace(sae, W_dec=sae.W_dec[:, :20], b_dec=sae.b_dec[:20])
    seen = preflight.on_rows(narrow, x)
    assert seen.fvu is None and seen.nmse is None and seen.l0 == pytest.approx(K, abs=0.2)
