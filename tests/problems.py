"""Small problems with known structure, for the tests of every room."""

import jax.numpy as jnp
import numpy as np

from amortjax.saes.sae import SAE, Info


def sparse_problem(
    seed: int, n: int = 24, d: int = 20, m: int = 48, k: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """Atoms (M, D), coherent and of unequal norms, and tokens (N, D) made of k of them plus noise."""
    r = np.random.default_rng(seed)
    shared = np.repeat(r.standard_normal((m // 4, d)), 4, axis=0)
    atoms = (shared * 0.7 + r.standard_normal((m, d))) * r.uniform(0.5, 2.0, (m, 1)) / np.sqrt(d)
    z = np.zeros((n, m))
    for row in z:
        row[r.choice(m, k, replace=False)] = r.exponential(size=k) + 0.3
    return atoms.astype(np.float32), (z @ atoms + 0.02 * r.standard_normal((n, d))).astype(np.float32)


def toy_sae(variant: str = "topk", d: int = 16, m: int = 64, k: int = 4, seed: int = 0) -> SAE:
    """A tied SAE with unit-norm atoms."""
    r = np.random.default_rng(seed)
    atoms = r.standard_normal((m, d))
    atoms = jnp.asarray(atoms / np.linalg.norm(atoms, axis=1, keepdims=True), jnp.float32)
    bias = jnp.asarray(0.2 * r.standard_normal(d), jnp.float32)
    zeros = jnp.zeros(m)
    extra = {
        "standard": {},
        "topk": {},
        "signed_topk": {},
        "abs_topk": {},
        "matching_pursuit": {
            "residual_threshold": jnp.asarray(0.1), "max_iterations": jnp.asarray(float(k)),
            "stop_on_duplicate": jnp.asarray(1.0),
        },
        "jumprelu": {"threshold": zeros + 1.0},
        "batch_topk": {"threshold": jnp.asarray(1.0)},
        "matryoshka": {"threshold": jnp.asarray(1.0)},
        "gated": {"r_mag": zeros + 0.1, "b_gate": zeros - 1.0, "b_mag": zeros},
        "loca": {},
        "mlp": {"W_hidden": atoms.T[None, :, :8], "b_hidden": zeros[None, :8], "W_up": 0.3 * atoms.T[:8]},
    }[variant]  # fmt: skip
    b_enc = zeros - 1.0 if variant == "standard" else zeros
    groups = (m // 4, m - m // 4) if variant in ("matryoshka", "loca") else ()
    group_k = (1, k - 1) if variant == "loca" else ()
    info = Info(name=f"toy {variant}")
    return SAE(atoms.T, b_enc, atoms, bias, bias, extra, variant, k, groups, group_k, info=info)
