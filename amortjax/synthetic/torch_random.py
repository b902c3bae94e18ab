"""PyTorch's CPU random numbers without PyTorch: what `torch.manual_seed(seed)` and the calls after it would give.

    stream = TorchStream(20240625)
    stream.randn(16, 8)              # torch.randn(16, 8)
    stream.linear(8, 16)             # weight and bias of nn.Linear(8, 16)

One Mersenne twister (MT19937) feeds everything. Bit for bit what PyTorch gives on x86 processors; on others its normal
numbers differ in the last bits (`torch_normal`).
"""

import numpy as np

from amortjax.synthetic import torch_normal

_MASK, _UNIT = 2**24 - 1, np.float32(2.0**-24)
_BLOCK = 16  # from so many numbers on, normal numbers are made in blocks of eight pairs


class TorchStream:
    """The default CPU generator after `torch.manual_seed(seed)`; each call takes numbers from the stream."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None  # the sine of the last pair, where pairs are made one by one

    def _words(self, n: int) -> np.ndarray:
        """(n,) uint32."""
        return self._state.randint(0, 2**32, n, np.uint32)

    def _unit(self, n: int) -> np.ndarray:
        """(n,) float32 in [0, 1): the low 24 bits of a word."""
        return (self._words(n) & _MASK).astype(np.float32) * _UNIT

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        """torch.empty(shape).uniform_(low, high), float32."""
        # One rounding after the multiplication and the addition, as a fused multiply-add has.
        wide = self._unit(int(np.prod(shape))).astype(np.float64) * np.float32(high - low)
        return (wide + np.float32(low)).astype(np.float32).reshape(shape)

    def randn(self, *shape: int) -> np.ndarray:
        """torch.randn(shape), float32."""
        n = int(np.prod(shape))
        if n < _BLOCK:
            return np.array([self._one() for _ in range(n)], np.float32).reshape(shape)
        out = self._unit(n)
        whole = n - n % _BLOCK
        out[:whole] = _pairs(out[:whole])
        if whole < n:  # the last block is drawn anew and overlaps the one before
            out[n - _BLOCK :] = _pairs(self._unit(_BLOCK))
        return out.reshape(shape)

    def _one(self) -> float:
        """One normal number; every second is the sine of the pair before."""
        if self._kept is not None:
            value, self._kept = self._kept, None
            return value
        words = self._words(4).astype(np.uint64)
        angle, length = ((words[::2] << np.uint64(32) | words[1::2]) & np.uint64(2**53 - 1)) * 2.0**-53
        radius = np.sqrt(-2 * np.log1p(-length))
        self._kept = float(radius * np.sin(2 * np.pi * angle))
        return float(radius * np.cos(2 * np.pi * angle))

    def linear(self, n_in: int, n_out: int, bias: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight (n_out, n_in) and bias (n_out,) or None of nn.Linear(n_in, n_out, bias), as it is initialised:
        uniform in +-1 / sqrt(n_in)."""
        bound = 1 / np.sqrt(n_in)
        weight = self.uniform(-bound, bound, n_out, n_in)
        return weight, self.uniform(-bound, bound, n_out) if bias else None


def _pairs(unit: np.ndarray) -> np.ndarray:
    """Box and Muller's transform of uniform numbers (n,), n a multiple of 16: in each block of 16 the first eight
    make radii and the last eight angles; cosines come first."""
    length, angle = unit.reshape(-1, 2, _BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2) * torch_normal.log(np.float32(1) - length))
    sine, cosine = torch_normal.sin_cos(np.float32(2 * np.pi) * angle)
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)
