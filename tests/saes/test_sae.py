"""Rewritings of an SAE that must not change what it computes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import api
from amortjax.saes.encoders import VARIANTS
from amortjax.saes.sae import unit_decoder, unscale_input


@pytest.mark.parametrize("variant", ["standard", "jumprelu", "gated", "mlp"])
def test_unit_decoder_keeps_reconstructions(variant, make_sae, tokens):
    sae = make_sae(variant)
    unit, norm = unit_decoder(sae), np.linalg.norm(np.asarray(sae.W_dec), axis=1)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(unit.W_dec), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(api.encode(unit, tokens), api.encode(sae, tokens) * norm, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(api.reconstruct(unit, tokens), api.reconstruct(sae, tokens), atol=1e-3)


@pytest.mark.parametrize("variant", ["topk", "loca"])
def test_a_top_k_rule_is_not_normalised(variant, make_sae):
    with pytest.raises(AmortjaxError, match="ranking of latents would change"):
        unit_decoder(make_sae(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folded_scale_reproduces_on_raw_inputs(variant, make_sae, tokens):
    scaled, factor = make_sae(variant), 7.5
    raw = unscale_input(scaled, factor)
    np.testing.assert_allclose(
        api.encode(raw, tokens * factor), factor * api.encode(scaled, tokens), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        api.reconstruct(raw, tokens * factor), factor * api.reconstruct(scaled, tokens), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("variant", ["standard", "loca", "mlp"])
def test_records_take_no_part_in_the_maths(variant, make_sae, tokens):
    sae, r = make_sae(variant), np.random.default_rng(5)
    records = {
        "norm_factor": jnp.asarray(7.5),
        "origin": jnp.asarray(r.permutation(32), jnp.float32),
        "avar": jnp.asarray(r.random(32), jnp.float32),
    }
    noted = make_sae(variant, extra=sae.extra | records)
    z = api.encode(sae, tokens)
    np.testing.assert_array_equal(api.encode(noted, tokens), z)
    np.testing.assert_array_equal(api.decode(noted, z), api.decode(sae, z))
    kept = unscale_input(noted, 2.0).extra
    assert all(np.array_equal(kept[name], records[name]) for name in records)


def test_an_input_normalising_sae_has_no_scale_to_fold(make_sae):
    with pytest.raises(AmortjaxError, match="no input scale"):
        unscale_input(dataclasses.replace(make_sae(), norm="layer_norm"), 2.0)
