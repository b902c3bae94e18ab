"""Steps with straight-through gradients: JumpReLU's value and its count, differentiable in the threshold.

Rajamanoharan et al. 2024, arXiv 2407.14435, eqs. 9 to 12, with a rectangular kernel.
"""

import jax
import jax.numpy as jnp


def _kernel(pre: jax.Array, threshold: jax.Array, width: float) -> jax.Array:
    """A rectangle of area 1 about the threshold."""
    return (jnp.abs(pre - threshold) < width / 2) / width


@jax.custom_vjp
def jump(pre: jax.Array, threshold: jax.Array, width: float) -> jax.Array:
    """pre (N, M), threshold (M,) -> pre where it is above the threshold and positive, else 0."""
    return jnp.where(pre > threshold, jax.nn.relu(pre), 0)


def _jump_fwd(pre, threshold, width):
    return jump(pre, threshold, width), (pre, threshold, width)


def _jump_bwd(saved, slope):
    pre, threshold, width = saved
    by_threshold = -threshold * jnp.sum(slope * _kernel(pre, threshold, width), axis=0)
    return jnp.where((pre > threshold) & (pre > 0), slope, 0), by_threshold, None


jump.defvjp(_jump_fwd, _jump_bwd)


@jax.custom_vjp
def count(pre: jax.Array, threshold: jax.Array, width: float) -> jax.Array:
    """1 where pre is above the threshold and positive, else 0. Its gradient reaches the thresholds only."""
    return ((pre > threshold) & (pre > 0)).astype(pre.dtype)


def _count_fwd(pre, threshold, width):
    return count(pre, threshold, width), (pre, threshold, width)


def _count_bwd(saved, slope):
    pre, threshold, width = saved
    return jnp.zeros_like(pre), -jnp.sum(slope * _kernel(pre, threshold, width), axis=0), None


count.defvjp(_count_fwd, _count_bwd)
