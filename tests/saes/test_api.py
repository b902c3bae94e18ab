import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import api, encoders


@pytest.mark.parametrize("leading", [(), (5,), (2, 4), (2, 0)])
def test_leading_shapes_are_kept(leading, make_sae):
    sae = make_sae("topk")
    x = np.random.default_rng(0).standard_normal((*leading, sae.d_in)).astype(np.float32)
    z = api.encode(sae, x)
    assert isinstance(z, np.ndarray) and z.shape == (*leading, sae.n_latents)
    assert api.decode(sae, z).shape == x.shape == api.reconstruct(sae, x).shape
    rows = encoders.encode(sae, jnp.asarray(x.reshape(-1, sae.d_in)))
    np.testing.assert_allclose(z.reshape(-1, sae.n_latents), rows, rtol=1e-5, atol=1e-6)


def test_heads_are_flattened_and_given_back(make_sae, tokens):
    sae, split = make_sae(), tokens.reshape(-1, 3, 4)
    np.testing.assert_array_equal(api.encode(sae, split), api.encode(sae, tokens))
    np.testing.assert_array_equal(api.reconstruct(sae, split).reshape(-1, 12), api.reconstruct(sae, tokens))


def test_jax_in_jax_out(make_sae, tokens):
    assert isinstance(api.encode(make_sae(), jnp.asarray(tokens)), jax.Array)


def test_blocks_change_nothing(make_sae, tokens, monkeypatch):
    whole = api.encode(make_sae(), tokens)
    monkeypatch.setattr(api, "BLOCK", 16)
    np.testing.assert_allclose(api.encode(make_sae(), tokens), whole, rtol=1e-5, atol=1e-6)


def test_the_batch_rule_sees_the_whole_batch(make_sae, tokens, monkeypatch):
    monkeypatch.setattr(api, "BLOCK", 16)
    sae = make_sae("batch_topk", batch_rule=True)
    assert (api.encode(sae, tokens) > 0).sum() == sae.k * len(tokens)


def test_a_wrong_width_says_both_numbers(make_sae):
    with pytest.raises(AmortjaxError, match=r"width 12.*got 13"):
        api.encode(make_sae(), np.zeros((4, 13), np.float32))
    with pytest.raises(AmortjaxError, match=r"width 32.*got 12"):
        api.decode(make_sae(), np.zeros((4, 12), np.float32))


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_a_normalising_sae_decodes_with_its_tokens(norm, make_sae, tokens):
    sae = make_sae("topk", norm=norm)
    z = api.encode(sae, tokens)
    with pytest.raises(AmortjaxError, match="needs the tokens"):
        api.decode(sae, z)
    np.testing.assert_allclose(api.encode(sae, 3 * tokens), z, atol=1e-3)  # blind to the scale of x
    y = api.decode(sae, z, tokens)
    np.testing.assert_allclose(api.decode(sae, z, 3 * tokens), 3 * y, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(api.reconstruct(sae, tokens), y, rtol=1e-5, atol=1e-5)
    with pytest.raises(AmortjaxError, match="must be the same tokens"):
        api.decode(sae, z, tokens[:3])


def test_reconstruct_adds_the_skip_connection(make_sae, tokens):
    skip = np.random.default_rng(2).standard_normal((12, 12)).astype(np.float32)
    sae = make_sae()
    with_skip = make_sae(extra={"W_skip": jnp.asarray(skip)})
    np.testing.assert_allclose(
        api.reconstruct(with_skip, tokens), api.reconstruct(sae, tokens) + tokens @ skip, rtol=1e-4, atol=1e-4
    )
