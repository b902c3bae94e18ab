"""Where arrays live: batches split over all devices, states on each. On one device, nothing changes."""

import functools
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


@functools.cache
def _mesh() -> Mesh:
    # Auto: XLA finds the communication, the step is the one of a single device.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def spread(x: np.ndarray) -> jax.Array:
    """This process's rows of a batch (N / processes, D) -> the batch (N, D), its rows over all devices."""
    if jax.device_count() == 1:
        return jax.numpy.asarray(x)
    rows = NamedSharding(_mesh(), PartitionSpec("data"))
    return jax.make_array_from_process_local_data(rows, np.asarray(x))


def everywhere(tree: Tree) -> Tree:
    """The same arrays on every device."""
    if jax.device_count() == 1:
        return tree
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))
