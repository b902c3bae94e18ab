"""An SAE as the papers' released evaluation reads it, one named choice at a time.

Only `--protocol=literal` uses this; it exists so that what the released code measured can be measured again
and told apart from what the SAE does.
"""

import dataclasses

import jax.numpy as jnp

from amortjax.saes.sae import SAE

# Choices that change the encoder; the others (below) change calibration and scoring.
ENCODER_CHOICES = {
    "no_b_dec": "the decoder bias is neither subtracted before encoding nor part of the reconstruction",
    "ignore_thresholds": "thresholds and gates are left out: ReLU of the first affine map",
    "topk_without_relu": "TopK keeps the k largest pre-activations with their sign",
}
CHOICES = ENCODER_CHOICES | {
    "signed": "ISTA with the signed soft threshold; pathology metrics read max(z, 0)",
    "unit_weights": "the penalty does not weigh atoms by their norm",
    "lambda_grid": "lambda is the best of nine fixed values, judged after a quarter of the steps",
    "density_target": "every non-amortized mode aims at firing density 0.10 instead of the encoder's",
    "pseudo_labels": "probe labels are 1 where ||x|| exceeds its median",
    "train_f1": "probes are scored on the rows they were fitted on",
}
LAMBDA_GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2)
DENSITY_TARGET = 0.10


def literal_sae(sae: SAE, choices: tuple[str, ...]) -> SAE:
    """The SAE under the encoder choices among `choices`."""
    if "no_b_dec" in choices:
        sae = dataclasses.replace(sae, pre_bias=jnp.zeros_like(sae.pre_bias))
    top = sae.variant in ("topk", "batch_topk", "matryoshka") and sae.k is not None
    if top and "topk_without_relu" in choices:
        sae = dataclasses.replace(sae, variant="signed_topk", extra=_kept(sae), batch_rule=False)
    elif sae.variant not in ("topk", "standard") and "ignore_thresholds" in choices:
        sae = dataclasses.replace(sae, variant="standard", extra=_kept(sae), batch_rule=False)
    return dataclasses.replace(sae, info=dataclasses.replace(sae.info, notes=(*sae.info.notes, "literal")))


def _kept(sae: SAE) -> dict:
    """What concerns the decoder."""
    return {name: value for name, value in sae.extra.items() if name in ("f_dec", "W_skip")}
