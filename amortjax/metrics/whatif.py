"""What the FVU would be if the SAE were meant otherwise: another input scale, another rule, another use of its bias.

Each question changes one thing and leaves the SAE's arrays alone. Rows are raw activations x (N, D); every FVU is of x
in its own units, whatever the SAE is fed.
"""

import dataclasses

import numpy as np

from amortjax.metrics.preflight import chunks, fvu, ordinary, reconstruction
from amortjax.saes import api
from amortjax.saes.sae import SAE

# Multiplications and additions of all questions together; they are asked of as many rows as that allows.
FLOPS = 2e12
ROWS = (64, 1024)  # at least, at most
SCALES = 2.0 ** np.arange(-10, 11)
# What TopK SAEs are trained with.
KS = (8, 16, 20, 24, 32, 40, 50, 64, 80, 100, 128, 160, 192, 256, 320, 400, 512)


@dataclasses.dataclass(frozen=True)
class WhatIf:
    """FVU on the same `n_rows` rows under each reading; None where the question has no sense for this SAE."""

    n_rows: int
    now: float
    l0: float
    scales: dict[float, float]  # {s: FVU of SAE(s x) / s}
    topk: dict[int, float]  # {k: FVU if only the k largest latents fired}, of SAEs without k
    bias_flipped: float | None  # b_dec subtracted before encoding if it is not, and not if it is
    centred: float | None  # each row without its own mean
    unit: float | None  # each row at norm 1
    constant: float | None  # each row at norm sqrt(D)
    layer_norm: float | None  # each row without its mean, at standard deviation 1

    @property
    def scale(self) -> float:
        """The s with the smallest FVU."""
        return min(self.scales, key=self.scales.__getitem__, default=1.0)


def rows_for(sae: SAE, x: np.ndarray, seed: int = 0) -> np.ndarray:
    """Random rows of x without its outliers, as many as FLOPS allows."""
    usual = np.flatnonzero(ordinary(x))
    return x[np.sort(np.random.default_rng(seed).permutation(usual)[: n_rows(sae)])]


def n_rows(sae: SAE) -> int:
    """How many rows FLOPS allows."""
    return int(np.clip(FLOPS / (200 * sae.d_in * sae.n_latents), *ROWS))


def ask(sae: SAE, x: np.ndarray) -> WhatIf:
    """Answers for x (N, D), as `rows_for` chooses them; not for transcoders."""
    z = np.concatenate([api.encode(sae, x[part]) for part in chunks(len(x), sae.n_latents)])
    now = _decoded(sae, z, x)
    flipped = None
    if np.any(sae.pre_bias) or np.any(sae.b_dec):
        other = sae.b_dec * 0 if np.any(sae.pre_bias) else sae.b_dec
        flipped = fvu(x, reconstruction(dataclasses.replace(sae, pre_bias=other), x))
    plain = sae.norm == "none"
    width, mean = np.sqrt(x.shape[1]), x.mean(axis=1, keepdims=True)
    norms = np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    deviation = np.maximum(np.std(x, axis=1, ddof=1, keepdims=True), 1e-30)
    return WhatIf(
        n_rows=len(x),
        now=now,
        l0=float(np.count_nonzero(z) / len(z)),
        scales=_scales(sae, x, now) if plain else {},
        topk=_topk(sae, z, x),
        bias_flipped=flipped,
        centred=_fed(sae, x, shift=mean) if sae.norm != "layer_norm" else None,
        unit=_fed(sae, x, scale=norms) if plain else None,
        constant=_fed(sae, x, scale=norms / width) if plain else None,
        layer_norm=_fed(sae, x, deviation, mean) if plain else None,
    )


def _decoded(sae: SAE, z: np.ndarray, x: np.ndarray) -> float:
    parts = [api.decode(sae, z[part], x[part]) for part in chunks(len(x), sae.n_latents)]
    return fvu(x, np.concatenate(parts))


def _fed(sae: SAE, x: np.ndarray, scale: np.ndarray | float = 1.0, shift: np.ndarray | float = 0.0) -> float:
    """FVU where the SAE is fed (x - shift) / scale and what it gives is taken back."""
    fed = np.asarray((x - shift) / scale, np.float32)
    return fvu(x, np.asarray(reconstruction(sae, fed) * scale + shift, np.float32))


def _scales(sae: SAE, x: np.ndarray, now: float) -> dict[float, float]:
    """On a grid of powers of two, then closer and closer to the best: to 2^(1/8)."""
    found = {1.0: now} | {float(s): _fed(sae, x, 1 / s) for s in SCALES if s != 1}
    for step in (2**0.5, 2**0.25, 2**0.125):
        best = min(found, key=found.__getitem__)
        found |= {s: _fed(sae, x, 1 / s) for s in (best / step, best * step)}
    return dict(sorted(found.items()))


def _topk(sae: SAE, z: np.ndarray, x: np.ndarray) -> dict[int, float]:
    """Of SAEs whose number of latents per token is not limited: the same codes without all but their k largest."""
    if sae.k is not None and (sae.variant in ("topk", "signed_topk", "abs_topk") or sae.batch_rule):
        return {}
    if sae.group_k or sae.variant == "matching_pursuit":
        return {}
    found, order = {}, np.sort(z, axis=1)
    for k in (k for k in KS if k < z.shape[1] and k < np.count_nonzero(z, axis=1).max()):
        found[k] = _decoded(sae, np.where(z >= order[:, -k : z.shape[1] - k + 1], z, 0), x)
    return found
