"""Rewritings of an SAE that must not change what it computes."""

import dataclasses

import numpy as np
import pytest

from amortjax.errors import AmortjaxError
from amortjax.saes import api
from amortjax.saes.encoders import VARIANTS
from amortjax.saes.sae import unit_decoder, unscale_input


@pytest.mark.parametrize("variant", ["standard", "jumprelu", "gated"])
def test_unit_decoder_keeps_reconstructions(variant, make_sae, tokens):
    sae = make_sae(variant)
    unit, norm = unit_decoder(sae), np.linalg.norm(np.asarray(sae.W_dec), axis=1)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(unit.W_dec), axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(api.encode(unit, tokens), api.encode(sae, tokens) * norm, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(api.reconstruct(unit, tokens), api.reconstruct(sae, tokens), atol=1e-3)


def test_a_top_k_rule_is_not_normalised(make_sae):
    with pytest.raises(AmortjaxError, match="ranking would change"):
        unit_decoder(make_sae("topk"))


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


def test_an_input_normalising_sae_has_no_scale_to_fold(make_sae):
    with pytest.raises(AmortjaxError, match="no input scale"):
        unscale_input(dataclasses.replace(make_sae(), norm="layer_norm"), 2.0)
