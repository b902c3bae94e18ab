"""The logarithm, sine and cosine inside PyTorch's normal numbers on x86, to the last bit.

PyTorch makes blocks of normal numbers with the single-precision approximations of the Cephes library (S. Moshier),
eight at a time with fused multiply-adds (AVX2 and AVX-512 machines). On other processors the last bits differ.
"""

import numpy as np

_F = np.float32
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LN2_LOW, _LN2_HIGH = -2.12194440e-4, 0.693359375  # parts of ln 2
_EIGHTH = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # parts of -pi / 4
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)


def _fma(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """a * b + c of float32, rounded once."""
    return (a.astype(np.float64) * np.float64(_F(b)) + np.float64(_F(c))).astype(_F)


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = _fma(y, x, coefficient)
    return y


def log(x: np.ndarray) -> np.ndarray:
    """Of x (...,) float32 above 0."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _F(0.707106781186547524)
    e = exponent.astype(_F) - small
    x = (mantissa - _F(1)) + np.where(small, mantissa, _F(0))
    z = x * x
    y = _fma(_polynomial(_LOG, x) * x, z, e * _F(_LN2_LOW))
    y = _fma(z, -0.5, y)
    return _fma(e, _LN2_HIGH, x + y)


def sin_cos(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of angles x (...,) float32 from 0 on."""
    eighth = (x * _F(4 / np.pi)).astype(np.int32)
    eighth = (eighth + 1) & ~1
    for part in _EIGHTH:
        x = _fma(eighth.astype(_F), part, x)
    z = x * x
    cosine = _fma(_polynomial(_COS, z) * z, z, -(z * _F(0.5))) + _F(1)
    sine = _fma(_polynomial(_SIN, z) * z, x, x)
    swapped = (eighth & 2) != 0
    sign_sin = np.where(eighth & 4, _F(-1), _F(1))
    sign_cos = np.where((eighth - 2) & 4, _F(1), _F(-1))
    return sign_sin * np.where(swapped, cosine, sine), sign_cos * np.where(swapped, sine, cosine)
