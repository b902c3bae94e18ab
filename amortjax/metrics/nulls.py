"""Null models: what a metric is when nothing was learned, at the same density. Pure and seeded.

random_encoder(sae, seed)        the encoder's directions rotated at random; the decoder as it is
with_l0(sae, x, l0)              that encoder with the one threshold at which x has this L0
shuffled(codes, seed)            codes dealt to other tokens: rates, amplitudes and co-firing stay
rotated_dictionary(sae, seed)    W Q: norms and every cosine between atoms stay, their directions do not
random_support(codes, seed)      each token's L0 and each latent's rate stay, which fires where is random
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from amortjax.errors import AmortjaxError
from amortjax.metrics.coded import shape
from amortjax.saes.encoders import preactivation
from amortjax.saes.sae import SAE, norm_in

TRADES = 40  # rounds of trades: two tokens in a round, so after 2 log2(tokens) rounds firings may be anywhere
BY_RANK = ("topk", "signed_topk", "abs_topk", "loca", "matching_pursuit")


def rotation(d: int, seed: int | list[int]) -> np.ndarray:
    """(D, D) float64, uniform over orthogonal matrices (Mezzadri 2007, arXiv math-ph/0609050: QR with the signs of
    R's diagonal)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    return q * np.sign(np.diagonal(r))


def _turned(matrix: jax.Array, by: np.ndarray, axis: int) -> jax.Array:
    """Rotated in the axis of model dimensions, in float64."""
    turned = np.moveaxis(np.moveaxis(np.asarray(matrix, np.float64), axis, -1) @ by, -1, axis)
    return jnp.asarray(turned, jnp.float32)


def random_encoder(sae: SAE, seed: int | list[int]) -> SAE:
    """The same decoder; encoder directions (and a hidden layer's) times one random rotation, biases as they are. So
    the encoder's own geometry stays, but it no longer looks where its atoms are."""
    by = rotation(sae.d_in, seed)
    extra = dict(sae.extra)
    if "W_hidden" in extra:
        extra["W_hidden"] = _turned(extra["W_hidden"], by, 1)
    return dataclasses.replace(sae, W_enc=_turned(sae.W_enc, by, 0), extra=extra)


def rotated_dictionary(sae: SAE, seed: int | list[int]) -> SAE:
    """Decoder rows times one random rotation, W Q: W W^T, so norms and coherence, are what they were. The encoder is
    rotated alike, so that it looks where its atoms are; the output bias stays."""
    by = rotation(sae.d_out, seed)
    turned = random_encoder(sae, seed) if sae.d_in == sae.d_out else sae
    return dataclasses.replace(turned, W_dec=_turned(sae.W_dec, by, 1))


def ranks(sae: SAE) -> bool:
    """Whether the encoder fires a number of latents by rank, so that its L0 does not depend on its directions."""
    return sae.batch_rule or sae.variant in BY_RANK or (sae.variant == "mlp" and bool(sae.k or sae.group_k))


def _margin(sae: SAE) -> jax.Array:
    """(M,) what each latent's projection is compared with, as a bias: it fires where projection + margin > 0."""
    if sae.variant == "gated":
        return sae.b_enc + sae.extra["b_gate"]
    return sae.b_enc - sae.extra["threshold"] if "threshold" in sae.extra else sae.b_enc


@functools.partial(jax.jit)
def _pre(sae: SAE, x: jax.Array) -> jax.Array:
    return jax.vmap(preactivation, in_axes=(None, 0))(sae, norm_in(sae, x)[0] - sae.pre_bias)


def with_l0(sae: SAE, x: np.ndarray, l0: float, chunk: int = 1024) -> SAE:
    """A ReLU encoder of this SAE's projections, all biases moved by the one amount at which the mean L0 on x (N, D)
    is `l0`, to half a firing in N; as it is where latents are ranked. AmortjaxError if no amount does."""
    if ranks(sae):
        return sae
    variant = "mlp" if sae.variant == "mlp" else "standard"
    extra = sae.extra if variant == "mlp" else {}
    plain = dataclasses.replace(sae, variant=variant, b_enc=_margin(sae), extra=extra, rescale=False, k=None)
    wanted = round(l0 * len(x))
    if not 0 < wanted < len(x) * sae.n_latents:
        raise AmortjaxError(
            f"no threshold gives an L0 of {l0:g} with {sae.n_latents} latents on {len(x)} tokens"
        )
    largest = np.zeros(0, np.float32)
    for i in range(0, len(x), chunk):
        part = np.pad(x[i : i + chunk], ((0, max(0, i + chunk - len(x))), (0, 0)))
        pre = np.asarray(_pre(plain, part))[: len(x) - i]
        largest = np.concatenate([largest, pre.ravel()])
        if len(largest) > wanted + 1:
            largest = np.partition(largest, len(largest) - wanted - 1)[-wanted - 1 :]
    below, least = np.partition(largest, 1)[:2]
    return dataclasses.replace(plain, b_enc=plain.b_enc - np.float32((float(below) + float(least)) / 2))


def shuffled(codes: scipy.sparse.csr_array, seed: int | list[int]) -> scipy.sparse.csr_array:
    """Codes (n, M) dealt to the tokens anew: every row stays a row, so L0, rates and co-firing stay."""
    order = np.random.default_rng(seed).permutation(shape(codes)[0])
    return scipy.sparse.csr_array(scipy.sparse.csr_array(codes)[order])


def random_support(
    codes: scipy.sparse.csr_array, seed: int | list[int], rounds: int = TRADES
) -> scipy.sparse.csr_array:
    """(n, M) of ones: a random firing pattern in which each token has its own L0 and each latent its own rate, both
    exactly.

    Curveball trades (Strona et al. 2014, Nature Communications 5:4114): tokens are paired at random, and the latents
    that one of a pair has and the other has not are dealt between the two anew.
    """
    rng = np.random.default_rng(seed)
    n, m = shape(codes)
    count = np.diff(codes.indptr).astype(np.int64)
    token, latent = np.repeat(np.arange(n), count), codes.indices.astype(np.int64)
    for _ in range(rounds if n > 1 and len(token) else 0):
        order = rng.permutation(n)
        pair = np.empty(n, np.int64)
        pair[order] = np.arange(n) // 2  # with an odd number of tokens the last one rests
        token, latent = _trade(token, latent, pair, m, rng)
    out = scipy.sparse.csr_array((np.ones(len(token), np.float32), (token, latent)), shape=(n, m))
    out.sort_indices()
    return out


def _trade(
    token: np.ndarray, latent: np.ndarray, pair: np.ndarray, m: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One round of trades between the tokens of each pair; firings as parallel arrays of tokens and latents."""
    place = pair[token] * m + latent
    order = np.argsort(place, kind="stable")
    token, latent, place = token[order], latent[order], place[order]
    same = place[1:] == place[:-1]
    shared = np.concatenate([same, [False]]) | np.concatenate([[False], same])
    free = np.flatnonzero(~shared)
    # Of a pair's free firings, as many stay the first token's as were: in the order of tokens, latents come shuffled.
    own = pair[token[free]]
    by_token = free[np.lexsort((token[free], own))]
    at_random = free[np.lexsort((rng.random(len(free)), own))]
    latent = latent.copy()
    latent[by_token] = latent[at_random]
    return token, latent
