"""Sparse codes: K slots a token, padded, so that a million tokens of a 65 536-latent SAE fit in memory."""

import numpy as np
import scipy.sparse
from flax import struct


def round_up(n: int, at_least: int = 8) -> int:
    """The next power of two: few distinct capacities, so few compilations."""
    return max(at_least, 1 << max(0, int(n) - 1).bit_length())


def chunk_rows(n: int, bytes_per_row: int, budget: int = 192 << 20) -> int:
    """Rows at a time within `budget` bytes: 64, 256 or 1024 (or fewer, if the budget asks), so that the shapes
    of a whole run are few and each compiles once."""
    fits = max(4, int(budget // max(bytes_per_row, 1)))
    wanted = next((size for size in (64, 256) if n <= size), 1024)
    return wanted if fits >= wanted else 1 << (fits.bit_length() - 1)


@struct.dataclass
class Codes:
    """Codes of N tokens: `indices` (N, K) int32 and `values` (N, K) float32. A slot whose value is 0 is empty,
    whatever its index. No latent fills two slots of a token. `capacity` K says nothing about sparsity."""

    indices: np.ndarray
    values: np.ndarray
    n_latents: int = struct.field(pytree_node=False)

    def __len__(self) -> int:
        return self.indices.shape[0]

    @property
    def l0(self) -> np.ndarray:
        """Active latents of each token, (N,) int64."""
        return np.count_nonzero(np.asarray(self.values), axis=1)

    def csr(self, dtype: type = np.float32) -> scipy.sparse.csr_array:
        """(N, M) scipy array with sorted, distinct indices."""
        values, indices = np.asarray(self.values), np.asarray(self.indices)
        fires = values != 0
        indptr = np.concatenate([[0], np.cumsum(fires.sum(axis=1))])
        shape = (len(self), self.n_latents)
        out = scipy.sparse.csr_array((values[fires].astype(dtype), indices[fires], indptr), shape=shape)
        out.sort_indices()
        return out

    def dense(self) -> np.ndarray:
        """(N, M) float32."""
        return self.csr().toarray()

    def scaled(self, factor: np.ndarray) -> "Codes":
        """Each latent's value times its `factor` (M,)."""
        values = np.asarray(self.values) * np.asarray(factor, np.float32)[self.indices]
        return Codes(np.asarray(self.indices), values, self.n_latents)

    def rows(self, start: int, stop: int) -> "Codes":
        return Codes(self.indices[start:stop], self.values[start:stop], self.n_latents)

    def widened(self, capacity: int) -> "Codes":
        """The same codes with at least `capacity` slots."""
        extra = capacity - self.indices.shape[1]
        if extra <= 0:
            return self
        pad = ((0, 0), (0, extra))
        return Codes(np.pad(self.indices, pad), np.pad(self.values, pad), self.n_latents)


def from_dense(z: np.ndarray) -> Codes:
    """(N, M) -> Codes with room for the densest token."""
    z = np.asarray(z)
    row, column = np.nonzero(z)
    count = np.bincount(row, minlength=len(z))
    first = np.cumsum(count) - count
    slot = np.arange(len(row)) - first[row]
    capacity = round_up(count.max(initial=0))
    indices, values = np.zeros((len(z), capacity), np.int32), np.zeros((len(z), capacity), np.float32)
    indices[row, slot], values[row, slot] = column, z[row, column]
    return Codes(indices, values, z.shape[1])


def concatenate(parts: list[Codes]) -> Codes:
    capacity = max(part.indices.shape[1] for part in parts)
    parts = [part.widened(capacity) for part in parts]
    indices = np.concatenate([np.asarray(part.indices) for part in parts])
    values = np.concatenate([np.asarray(part.values) for part in parts])
    return Codes(indices, values, parts[0].n_latents)
