"""What the fused kernels of several networks have in common: LayerNorm, the log cosh of the head, a proposal of a walk."""

from __future__ import annotations

import math

import numpy as np

from ..engine.jit import njit
from ..engine.vector import cos_sin32, exp32
from .primitives import LAYER_NORM_EPSILON

_f4 = np.float32
_EPSILON = _f4(LAYER_NORM_EPSILON)
_TINY = _f4(1e-30)  # keeps the logarithm of a zero finite


@njit()
def normalise(x, out):
    """LayerNorm without gain and bias, which are folded into the next dense map."""
    d = x.shape[1]
    for r in range(len(x)):
        row, unit = x[r], out[r]
        mean = _f4(0)
        for c in range(d):
            mean += row[c]
        mean /= _f4(d)
        variance = _f4(0)
        for c in range(d):
            variance += (row[c] - mean) * (row[c] - mean)
        scale = _f4(1) / math.sqrt(variance / _f4(d) + _EPSILON)
        for c in range(d):
            unit[c] = (row[c] - mean) * scale


@njit()
def log_modulus_of_cosh(a, phase, row):
    """Sum over channels of log |cosh(a + i phase / 2)|, phase zero for a real argument. One logarithm.

    |cosh z| = e^|a| |1 + e e^(i phase)| / 2 with e = e^(-2|a|). The last moduli are collected as one product of squares,
    (1 - e)^2 + 2 e (1 + cos phase): near a zero of cosh rounding must not make one negative.
    """
    total = _f4(0)
    for c in range(a.size):
        size = abs(a[c])
        total += size
        e = exp32(_f4(-2) * size)
        cosine, _ = cos_sin32(phase[c])
        row[c] = (_f4(1) - e) * (_f4(1) - e) + _f4(2) * e * max(_f4(1) + cosine, _f4(0)) + _TINY
    logarithm = 0.0
    for start in range(0, a.size, 256):  # stay inside the range of a double
        product = 1.0
        for c in range(start, min(a.size, start + 256)):
            product *= np.float64(row[c])
        logarithm += math.log(product)
    return total - a.size * 0.6931471805599453 + 0.5 * logarithm


@njit()
def phase_of_cosh(a, b, row):
    """Sum over channels of the phase of cosh(a + i b), modulo 2 pi."""
    total, product_re, product_im = 0.0, 1.0, 0.0
    for c in range(a.size):
        sign = _f4(-1) if a[c] < 0 else _f4(1)
        e = exp32(_f4(-2) * abs(a[c]))
        cosine, sine = cos_sin32(_f4(2) * b[c] * sign)
        row[0, c], row[1, c], row[2, c] = _f4(1) + e * cosine, -e * sine, sign * b[c]
    for c in range(a.size):
        total += row[2, c]
        product_re, product_im = (
            product_re * row[0, c] - product_im * row[1, c],
            product_re * row[1, c] + product_im * row[0, c],
        )
        if c % 256 == 255:  # stay inside the range of a double
            size = math.hypot(product_re, product_im)
            product_re, product_im = product_re / size, product_im / size
    return total + math.atan2(product_im, product_re)


@njit()
def propose(sigma, first, length):
    """Make a proposal of ``Walks.walk`` on sigma (n_sites,)."""
    if length < 0:
        sigma[first], sigma[-length - 1] = sigma[-length - 1], sigma[first]
    for k in range(length):
        i = (first + k) % sigma.size
        sigma[i] = -sigma[i]
