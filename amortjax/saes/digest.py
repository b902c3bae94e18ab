"""What tells one SAE from another."""

import hashlib

import numpy as np

from amortjax.saes.checks import tensors
from amortjax.saes.sae import SAE


def digest(sae: SAE) -> str:
    """A hash of what the SAE computes: its settings and arrays, not its origin."""
    settings = (sae.variant, sae.k, sae.groups, sae.group_k, sae.norm, sae.rescale, sae.batch_rule)
    found = hashlib.sha256(repr(settings).encode())
    for name, array in sorted(tensors(sae).items()):
        found.update(name.encode() + np.ascontiguousarray(np.asarray(array)).tobytes())
    return found.hexdigest()[:16]
