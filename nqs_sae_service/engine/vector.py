"""Elementary functions for float32 loops that the compiler vectorises: no call into the mathematics library, no branch.

exp x = 2^n e^r with n = round(x / log 2): e^r by the polynomial of degree 5 with the smallest relative error on
|r| <= log(2) / 2, 2^n by writing the exponent bits. sin and cos: x = n pi/2 + r in three steps, then the classical minimax
polynomials on |r| <= pi/4 (S. L. Moshier's Cephes library, single precision). Rounding adds and subtracts 1.5 * 2^23, so these
functions must not be compiled with reassociation, which would fold it away.
"""

from __future__ import annotations

import numpy as np

from .jit import EXACT, njit, numba

_f4 = np.float32
_ROUND = _f4(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds a float32 to an integer
_LOG2E = _f4(1.4426950408889634)
_LN2_HIGH = _f4(0.693359375)  # Cody & Waite's splitting of log 2: n * high is exact
_LN2_LOW = _f4(-2.12194440e-4)
_E0, _E1, _E2 = _f4(1.0000000716968989), _f4(0.9999996918035472), _f4(0.4999889441403588)
_E3, _E4, _E5 = _f4(0.16667575104184992), _f4(0.04191543138642626), _f4(0.008297647081650013)
_TWO_OVER_PI = _f4(0.6366197723675814)
_HALF_PI = (_f4(1.5703125), _f4(4.837512969970703e-4), _f4(7.549789948768648e-8))  # pi/2, highest bits first


@numba.extending.intrinsic
def _float_of_bits(typing_context, bits):
    """The float32 with these 32 bits."""
    from llvmlite import ir

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.types.float32(numba.types.int32), generate


@njit(fastmath=EXACT)
def exp32(x):
    """exp(x), relative error 3e-7, for float32 x clipped to [-87, 88]; NaN and infinities give NaN."""
    v = min(max(x, _f4(-87.0)), _f4(88.0))
    n = (v * _LOG2E + _ROUND) - _ROUND
    r = v - n * _LN2_HIGH - n * _LN2_LOW
    p = _E4 + r * _E5
    p = _E3 + r * p
    p = _E2 + r * p
    p = _E1 + r * p
    p = _E0 + r * p
    return p * _float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23)) + (x - x)


@njit(fastmath=EXACT)
def cos_sin32(x):
    """(cos x, sin x), absolute error 2e-7, for float32 |x| up to some thousands."""
    n = (x * _TWO_OVER_PI + _ROUND) - _ROUND
    r = ((x - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    q = np.int32(n)
    s = r * r
    sine = _f4(8.3321608736e-3) + s * _f4(-1.9515295891e-4)
    sine = r + r * s * (_f4(-1.6666654611e-1) + s * sine)
    cosine = _f4(-1.388731625493765e-3) + s * _f4(2.443315711809948e-5)
    cosine = _f4(1) - _f4(0.5) * s + s * s * (_f4(4.166664568298827e-2) + s * cosine)
    swapped = (q & np.int32(1)) != 0
    c, s = (sine, cosine) if swapped else (cosine, sine)
    return -c if ((q + np.int32(1)) & np.int32(2)) != 0 else c, -s if (q & np.int32(2)) != 0 else s


@njit(fastmath=EXACT)
def gelu32(v):
    """v (1 + tanh(sqrt(2/pi) (v + 0.044715 v^3))) / 2 for float32 v, written as v / (1 + exp(-2 ...))."""
    return v / (_f4(1) + exp32(_f4(-1.5957691216057308) * (v + _f4(0.044715) * v * v * v)))
