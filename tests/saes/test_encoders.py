"""Each variant against a plain NumPy reading of its formula, and the identities that tie variants together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.saes import encoders
from amortjax.saes.encoders import VARIANTS

# Compiled as a whole: op by op, each new shape would compile dozens of small programs.
encode = jax.jit(encoders.encode)
largest_of_batch = jax.jit(encoders.largest_of_batch, static_argnums=1)


def reference(sae, x: np.ndarray) -> np.ndarray:
    """Codes in float64, one token and one latent rule at a time."""
    w = {name: np.asarray(getattr(sae, name), np.float64) for name in ("W_enc", "b_enc", "pre_bias")}
    extra = {name: np.asarray(array, np.float64) for name, array in sae.extra.items()}
    pre = (x.astype(np.float64) - w["pre_bias"]) @ w["W_enc"] + w["b_enc"]
    relu = np.maximum(pre, 0)
    if sae.batch_rule:
        return np.where(relu >= np.sort(relu.ravel())[-sae.k * len(x)], relu, 0)
    if sae.variant == "standard":
        return relu
    if sae.variant == "topk":
        return np.where(relu >= np.sort(relu, axis=1)[:, [-sae.k]], relu, 0)
    if sae.variant == "signed_topk":
        return np.where(pre >= np.sort(pre, axis=1)[:, [-sae.k]], pre, 0)
    if sae.variant == "gated":
        return np.where(
            pre + extra["b_gate"] > 0, np.maximum(np.exp(extra["r_mag"]) * pre + extra["b_mag"], 0), 0
        )
    return np.where(pre > extra["threshold"], relu, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_its_formula(variant, make_sae, tokens):
    sae = make_sae(variant)
    want = reference(sae, tokens)
    z = np.asarray(encode(sae, jnp.asarray(tokens)))
    np.testing.assert_array_equal(z != 0, want != 0)
    np.testing.assert_allclose(z, want, atol=2e-5)
    assert 0 < (z != 0).mean() < 1


@pytest.mark.parametrize("variant", ["batch_topk", "matryoshka"])
def test_batch_rule_keeps_k_times_n(variant, make_sae, tokens):
    sae = make_sae(variant, batch_rule=True)
    z = np.asarray(encode(sae, jnp.asarray(tokens)))
    assert (z > 0).sum() == sae.k * len(tokens)
    assert len(set((z > 0).sum(axis=1))) > 1  # tokens share the budget unevenly
    np.testing.assert_allclose(z, reference(sae, tokens), atol=2e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_is_encoded_alone(variant, make_sae, tokens):
    sae = make_sae(variant)
    whole = np.asarray(encode(sae, jnp.asarray(tokens)))
    parts = [np.asarray(encode(sae, jnp.asarray(part))) for part in np.split(tokens, [1, 17])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)


def test_batch_topk_of_one_token_is_topk(make_sae, tokens):
    topk, batch = make_sae("topk"), make_sae("batch_topk", batch_rule=True)
    for x in tokens[:8]:
        np.testing.assert_array_equal(encode(topk, jnp.asarray(x[None])), encode(batch, jnp.asarray(x[None])))


def test_matryoshka_encodes_like_batch_topk(make_sae, tokens):
    batch, nested = make_sae("batch_topk", batch_rule=True), make_sae("matryoshka", batch_rule=True)
    np.testing.assert_array_equal(encode(nested, jnp.asarray(tokens)), encode(batch, jnp.asarray(tokens)))


def test_gated_with_a_plain_gate_is_relu(make_sae, tokens):
    bias = make_sae().b_enc
    extra = {"r_mag": jnp.zeros_like(bias), "b_gate": bias, "b_mag": bias}
    gated = make_sae("gated", b_enc=jnp.zeros_like(bias), extra=extra)
    np.testing.assert_array_equal(encode(gated, jnp.asarray(tokens)), encode(make_sae(), jnp.asarray(tokens)))


def test_jumprelu_with_threshold_zero_is_relu(make_sae, tokens):
    jump = make_sae("jumprelu")
    jump = dataclasses.replace(jump, extra={"threshold": jnp.zeros_like(jump.b_enc)})
    np.testing.assert_array_equal(encode(jump, jnp.asarray(tokens)), encode(make_sae(), jnp.asarray(tokens)))


def test_topk_never_lets_a_negative_through(make_sae, tokens):
    sae = make_sae("topk", b_enc=jnp.full((32,), -3.0))
    z = np.asarray(encode(sae, jnp.asarray(tokens)))
    assert z.min() >= 0 and (z > 0).sum(axis=1).min() < sae.k


def test_rescaled_topk_ranks_by_decoder_norm(make_sae, tokens):
    sae = make_sae("topk", rescale=True)
    norm = np.linalg.norm(np.asarray(sae.W_dec), axis=1)
    scaled = make_sae("topk", W_enc=sae.W_enc * norm, b_enc=sae.b_enc * norm)
    np.testing.assert_allclose(
        encode(sae, jnp.asarray(tokens)), encode(scaled, jnp.asarray(tokens)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 16), (3, 10), (16, 64), (40, 160)])
@pytest.mark.parametrize("kind", ["normal", "ties", "one row", "negative"])
def test_largest_of_batch_is_exact(shape, kind):
    rng = np.random.default_rng(0)
    pre = rng.standard_normal(shape).astype(np.float32)
    if kind == "ties":
        pre = np.round(pre * 2)
    if kind == "one row":
        pre[0] += 10  # all of the budget is in one row
    if kind == "negative":
        pre -= 5
    k = 3
    index, value = map(np.asarray, largest_of_batch(jnp.asarray(pre), k))
    assert len(set(index)) == k * len(pre)
    np.testing.assert_array_equal(pre.ravel()[index], value)
    want = np.sort(np.maximum(pre.ravel(), 0))[::-1][: k * len(pre)]
    np.testing.assert_array_equal(np.sort(np.maximum(value, 0))[::-1], want)


def test_the_batch_rule_is_refused_where_there_is_none(make_sae, tokens):
    from amortjax.errors import AmortjaxError

    with pytest.raises(AmortjaxError, match="no batch rule"):
        encode(make_sae("standard", batch_rule=True), jnp.asarray(tokens))
    assert encoders.VARIANTS["batch_topk"].batch is not None
