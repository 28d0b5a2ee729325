"""Rows of exponentials in double precision, in loops that the compiler vectorises (a call of libm does not).

Both functions reduce the argument with a multiple of log 2 or pi / 2 split into parts whose products are exact (Cody & Waite,
Software Manual for the Elementary Functions, 1980) and finish with the Taylor series. They must not be compiled with
reassociation, which would fold the rounding to an integer away.
"""

from __future__ import annotations

import math

import numpy as np

from .jit import EXACT, njit

_ROUND = 6755399441055744.0  # 1.5 * 2^52: adding and subtracting it rounds a double to an integer
_LOG2E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_TWO_OVER_PI = 0.6366197723675814
# pi / 2 in three parts, the first two of 33 bits.
_HALF_PI_1, _HALF_PI_2, _HALF_PI_3 = 1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21
_LARGEST_ANGLE = 1e6  # the multiples of pi / 2 below it keep the products exact


@njit(fastmath=EXACT)
def exp_negative(x, bits):
    """x <- exp(x) for x <= 0, relative error 4e-16, 0 below -700; ``bits``: int64 row of the same size. NaN stays NaN."""
    for j in range(x.size):
        v = x[j]
        v = -700.0 if v < -700.0 else v
        n = (v * _LOG2E + _ROUND) - _ROUND
        r = v - n * _LN2_HIGH - n * _LN2_LOW
        p = 1 / 479001600 + r * (1 / 6227020800)
        p = 1 / 39916800 + r * p
        p = 1 / 3628800 + r * p
        p = 1 / 362880 + r * p
        p = 1 / 40320 + r * p
        p = 1 / 5040 + r * p
        p = 1 / 720 + r * p
        p = 1 / 120 + r * p
        p = 1 / 24 + r * p
        p = 1 / 6 + r * p
        p = 0.5 + r * p
        p = 1.0 + r * p
        p = 1.0 + r * p
        bits[j] = (np.int64(n) + np.int64(1023)) << np.int64(52)
        x[j] = 0.0 if x[j] < -700.0 else p
    power = bits.view(np.float64)
    for j in range(x.size):
        x[j] *= power[j]


@njit(fastmath=EXACT)
def cosine_and_sine(angle, cosine, sine):
    """cos and sin of a row, absolute error 2e-16 beside that of rounding the angle. NaN gives NaN."""
    largest = 0.0
    for j in range(angle.size):
        largest = max(largest, abs(angle[j]))
    if largest > _LARGEST_ANGLE:
        for j in range(angle.size):
            cosine[j], sine[j] = math.cos(angle[j]), math.sin(angle[j])
        return
    for j in range(angle.size):
        v = angle[j]
        k = (v * _TWO_OVER_PI + _ROUND) - _ROUND
        r = ((v - k * _HALF_PI_1) - k * _HALF_PI_2) - k * _HALF_PI_3
        q = r * r
        s = 1 / 6227020800 - q * (1 / 1307674368000)
        s = 1 / 39916800 - q * s
        s = 1 / 362880 - q * s
        s = 1 / 5040 - q * s
        s = 1 / 120 - q * s
        s = 1 / 6 - q * s
        s = r - r * q * s
        c = 1 / 87178291200 - q * (1 / 20922789888000)
        c = 1 / 479001600 - q * c
        c = 1 / 3628800 - q * c
        c = 1 / 40320 - q * c
        c = 1 / 720 - q * c
        c = 1 / 24 - q * c
        c = 0.5 - q * c
        c = 1.0 - q * c
        quadrant = np.int64(k)
        odd = (quadrant & 1) != 0
        first = s if odd else c
        second = c if odd else s
        cosine[j] = -first if ((quadrant + 1) & 2) != 0 else first
        sine[j] = -second if (quadrant & 2) != 0 else second
