"""Sparse products and their gradients against the dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from amortjax.training import sparse

N, D, M = 13, 6, 20


@pytest.fixture(params=[7, 300])
def entries(request):
    """T entries; 300 is more than one chunk and not a multiple of it. Latents and rows repeat."""
    rng, total = np.random.default_rng(0), request.param
    rows, latents = rng.integers(0, N, total), rng.integers(0, M, total)
    return jnp.asarray(rows), jnp.asarray(latents), jnp.asarray(rng.standard_normal(total), jnp.float32)


def _random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)


def test_decode_is_the_dense_product_with_its_gradient(entries):
    rows, latents, values = entries
    w, slope = _random(M, D), _random(N, D)

    def dense(values, w):
        return jnp.zeros((N, M)).at[rows, latents].add(values) @ w

    got, back = jax.vjp(lambda values, w: sparse.decode(values, w, rows, latents, N), values, w)
    want, dense_back = jax.vjp(dense, values, w)
    np.testing.assert_allclose(np.asarray(got), want, atol=1e-5)
    for ours, theirs in zip(back(slope), dense_back(slope), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_preactivations_have_the_dense_gradient_of_the_weights(entries):
    rows, latents, slope = entries
    x, bias, w, b = _random(N, D), _random(D), _random(M, D), _random(M)

    def dense(bias, w, b):
        return ((x - bias) @ w.T + b)[rows, latents]

    known = dense(bias, w, b)
    got, back = jax.vjp(lambda *p: sparse.preactivations(known, x, *p, rows, latents), bias, w, b)
    want, dense_back = jax.vjp(dense, bias, w, b)
    np.testing.assert_array_equal(got, want)
    for ours, theirs in zip(back(slope), dense_back(slope), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
