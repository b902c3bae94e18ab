import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.saes.encoders import VARIANTS
from amortjax.saes.sae import SAE, Info

D, M, K = 12, 32, 4
GROUPS, GROUP_K, HIDDEN = (8, 24), (1, 3), 5


@pytest.fixture
def make_sae():
    """make_sae(variant, **replacements): a random SAE with the variant's arrays."""

    def make(variant: str = "standard", **replacements) -> SAE:
        rng = np.random.default_rng(0)

        def draw(*shape: int):
            return jnp.asarray(rng.standard_normal(shape), jnp.float32)

        arrays = {
            "r_mag": 0.3 * draw(M), "b_gate": 0.3 * draw(M), "b_mag": 0.3 * draw(M), "threshold": jnp.abs(draw(M))
        }  # fmt: skip
        if VARIANTS[variant].batch:
            arrays["threshold"] = jnp.asarray(0.8, jnp.float32)
        scalars = {"residual_threshold": 0.5, "max_iterations": 6, "stop_on_duplicate": 1}
        arrays |= {name: jnp.asarray(value, jnp.float32) for name, value in scalars.items()}
        if variant == "mlp":  # a hidden layer per group
            other = np.random.default_rng(3)
            shapes = {
                "W_hidden": (len(GROUPS), D, HIDDEN),
                "b_hidden": (len(GROUPS), HIDDEN),
                "W_up": (HIDDEN, M),
            }
            arrays |= {
                name: jnp.asarray(other.standard_normal(shape), jnp.float32) for name, shape in shapes.items()
            }
        sae = SAE(
            W_enc=draw(D, M), b_enc=0.1 * draw(M), W_dec=draw(M, D), b_dec=draw(D), pre_bias=draw(D),
            extra={key: arrays[key] for key in VARIANTS[variant].extra}, variant=variant,
            k=K if "topk" in variant or variant == "matryoshka" else None,
            groups=GROUPS if variant in ("matryoshka", "loca", "mlp") else (),
            group_k=GROUP_K if variant == "loca" else (), info=Info(name="random", lam_train=0.1),
        )  # fmt: skip
        if variant == "matching_pursuit":  # tied, with unit atoms: what is left gets shorter each time
            atoms = sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True)
            sae = dataclasses.replace(sae, W_enc=atoms.T, W_dec=atoms)
        return dataclasses.replace(sae, **replacements)

    return make


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, D)).astype(np.float32)
