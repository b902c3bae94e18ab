"""Each variant against a plain NumPy reading of its formula, and the identities that tie variants together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import encoders
from amortjax.saes.encoders import VARIANTS

# Compiled as a whole: op by op, each new shape would compile dozens of small programs.
encode = jax.jit(encoders.encode)
largest_of_batch = jax.jit(encoders.largest_of_batch, static_argnums=1)


largest_of_groups = jax.jit(encoders.largest_of_groups, static_argnums=(1, 2))


def reference(sae, x: np.ndarray) -> np.ndarray:
    """Codes in float64, one token and one latent rule at a time."""
    w = {name: np.asarray(getattr(sae, name), np.float64) for name in ("W_enc", "b_enc", "pre_bias")}
    extra = {name: np.asarray(array, np.float64) for name, array in sae.extra.items()}
    c = x.astype(np.float64) - w["pre_bias"]
    pre = c @ w["W_enc"] + w["b_enc"]
    block = np.repeat(np.arange(len(sae.groups)), sae.groups)  # each latent's group
    if sae.variant == "mlp":
        for j in range(sae.n_latents):
            g = block[j] if len(extra["W_hidden"]) > 1 else 0
            pre[:, j] += np.maximum(c @ extra["W_hidden"][g] + extra["b_hidden"][g], 0) @ extra["W_up"][:, j]
    relu = np.maximum(pre, 0)
    if sae.group_k:
        z = np.zeros_like(relu)
        for row, values in zip(z, relu, strict=True):
            for g, k in enumerate(sae.group_k):
                best = sorted(np.flatnonzero(block == g), key=lambda j: -values[j])[:k]
                row[best] = values[best]
        return z
    if sae.variant == "mlp" and sae.k is not None:
        return np.where(relu >= np.sort(relu, axis=1)[:, [-sae.k]], relu, 0)
    if sae.variant == "mlp":
        return relu
    if sae.batch_rule:
        return np.where(relu >= np.sort(relu.ravel())[-sae.k * len(x)], relu, 0)
    if sae.variant == "standard":
        return relu
    if sae.variant == "topk":
        return np.where(relu >= np.sort(relu, axis=1)[:, [-sae.k]], relu, 0)
    if sae.variant == "signed_topk":
        return np.where(pre >= np.sort(pre, axis=1)[:, [-sae.k]], pre, 0)
    if sae.variant == "abs_topk":
        return np.where(abs(pre) >= np.sort(abs(pre), axis=1)[:, [-sae.k]], pre, 0)
    if sae.variant == "matching_pursuit":
        return np.stack([pursued(sae, row) for row in c])
    if sae.variant == "gated":
        return np.where(
            pre + extra["b_gate"] > 0, np.maximum(np.exp(extra["r_mag"]) * pre + extra["b_mag"], 0), 0
        )
    return np.where(pre > extra["threshold"], relu, 0)


def pursued(sae, left: np.ndarray) -> np.ndarray:
    """The codes of one centred token: the best match again and again."""
    encoder, atoms = np.asarray(sae.W_enc, np.float64), np.asarray(sae.W_dec, np.float64)
    z, limits = np.zeros(sae.n_latents), {name: float(value) for name, value in sae.extra.items()}
    for _ in range(int(limits["max_iterations"])):
        match = np.maximum(left @ encoder, 0)
        best = int(match.argmax())
        known = z[best] != 0 or match[best] == 0
        z[best] += match[best]
        left = left - match[best] * atoms[best]
        if (known and limits["stop_on_duplicate"]) or np.linalg.norm(left) < limits["residual_threshold"]:
            break
    return z


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_its_formula(variant, make_sae, tokens):
    sae = make_sae(variant)
    want = reference(sae, tokens)
    z = np.asarray(encode(sae, jnp.asarray(tokens)))
    np.testing.assert_array_equal(z != 0, want != 0)
    np.testing.assert_allclose(z, want, atol=2e-5)
    assert 0 < (z != 0).mean() < 1


def test_matching_pursuit_takes_a_first_step_on_a_short_token(make_sae, tokens):
    sae = make_sae("matching_pursuit")
    short = 0.01 * tokens[:4] + np.asarray(sae.pre_bias)
    z = np.asarray(encode(sae, jnp.asarray(short)))
    np.testing.assert_array_equal((z > 0).sum(axis=1), 1)
    np.testing.assert_allclose(z, reference(sae, short), atol=2e-5)


@pytest.mark.parametrize("settings", [{"group_k": (3, 1)}, {"k": 4}, {}], ids=str)
@pytest.mark.parametrize("layers", [1, 2])
def test_an_mlp_is_its_formula_under_every_rule(settings, layers, make_sae, tokens):
    extra = make_sae("mlp").extra
    extra |= {name: extra[name][:layers] for name in ("W_hidden", "b_hidden")}
    sae = make_sae("mlp", extra=extra, **settings)
    z, want = np.asarray(encode(sae, jnp.asarray(tokens))), reference(sae, tokens)
    np.testing.assert_array_equal(z != 0, want != 0)
    np.testing.assert_allclose(z, want, atol=1e-4)


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


def test_loca_with_one_group_is_topk(make_sae, tokens):
    one = make_sae("loca", groups=(32,), group_k=(4,))
    np.testing.assert_array_equal(
        encode(one, jnp.asarray(tokens)), encode(make_sae("topk"), jnp.asarray(tokens))
    )


def test_a_group_may_be_silent(make_sae, tokens):
    z = np.asarray(encode(make_sae("loca", group_k=(0, 4)), jnp.asarray(tokens)))
    assert not z[:, :8].any() and (z[:, 8:] > 0).sum(axis=1).max() == 4


def test_loca_follows_a_permutation_within_groups_and_not_across_them(make_sae, tokens):
    sae, r = make_sae("loca"), np.random.default_rng(4)
    within = np.concatenate([r.permutation(8), 8 + r.permutation(24)])
    z = np.asarray(encode(sae, jnp.asarray(tokens)))
    moved = encode(make_sae("loca", W_enc=sae.W_enc[:, within], b_enc=sae.b_enc[within]), jnp.asarray(tokens))
    np.testing.assert_array_equal(moved, z[:, within])
    across = r.permutation(32)
    other = encode(make_sae("loca", W_enc=sae.W_enc[:, across], b_enc=sae.b_enc[across]), jnp.asarray(tokens))
    assert (np.asarray(other) != z[:, across]).any()


@pytest.mark.parametrize("rule", ["standard", "topk", "loca"])
def test_an_mlp_whose_hidden_layer_leads_nowhere_is_the_linear_encoder(rule, make_sae, tokens):
    linear = make_sae(rule)
    extra = make_sae("mlp").extra
    sae = make_sae("mlp", extra=extra | {"W_up": 0 * extra["W_up"]}, k=linear.k, group_k=linear.group_k)
    np.testing.assert_array_equal(encode(sae, jnp.asarray(tokens)), encode(linear, jnp.asarray(tokens)))


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_largest_of_groups_is_top_k_of_each(leading):
    pre = np.random.default_rng(0).standard_normal((*leading, 30)).astype(np.float32)
    value, index = largest_of_groups(jnp.asarray(pre), (10, 0, 15, 5), (2, 0, 0, 5))
    assert value.shape == index.shape == (*leading, 7)
    np.testing.assert_array_equal(np.take_along_axis(pre, np.asarray(index), axis=-1), value)
    np.testing.assert_array_equal(value[..., :2], -np.sort(-pre[..., :10], axis=-1)[..., :2])
    np.testing.assert_array_equal(value[..., 2:], -np.sort(-pre[..., 25:], axis=-1))
    assert index[..., 2:].min() >= 25


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


def test_groups_without_numbers_are_refused(make_sae, tokens):
    with pytest.raises(AmortjaxError, match="set group_k"):
        encode(make_sae("loca", group_k=()), jnp.asarray(tokens))


def test_the_batch_rule_is_refused_where_there_is_none(make_sae, tokens):
    with pytest.raises(AmortjaxError, match="no batch rule"):
        encode(make_sae("standard", batch_rule=True), jnp.asarray(tokens))
    assert encoders.VARIANTS["batch_topk"].batch is not None
