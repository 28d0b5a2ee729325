"""Fast twins of some bricks for arrays in main memory: LayerNorm, GELU and softmax of float32 arrays, with derivatives, and the
sum of log cosh of complex arguments in any precision.

The plain formula of ``primitives.py`` reads and writes an array for every operation in it. A twin keeps a row of channels
in the first-level cache from its first to its last operation, and what real and imaginary deltas share is computed once. All
runs on the calling thread, without the interpreter, so that passes over samples run side by side.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np

from ..engine.exponentials import cosine_and_sine, exp_negative
from ..engine.jit import EXACT, njit
from ..engine.vector import exp32
from .primitives import LAYER_NORM_EPSILON, Attention, Brick, Gelu, LayerNorm, LogCosh
from .state import State, Wavefunction

_f4 = np.float32
_EPSILON = _f4(LAYER_NORM_EPSILON)
_SLOPE, _CUBIC = _f4(math.sqrt(2 / math.pi)), _f4(0.044715)


@njit(inline="always")
def _normalise(x, unit):
    """unit <- (x - mean) / sqrt(var + 1e-6) of a row; the inverse standard deviation."""
    total, squares = _f4(0), _f4(0)
    for c in range(x.size):
        total += x[c]
    mean = total / _f4(x.size)
    for c in range(x.size):
        squares += (x[c] - mean) * (x[c] - mean)
    inverse = _f4(1) / math.sqrt(squares / _f4(x.size) + _EPSILON)
    for c in range(x.size):
        unit[c] = (x[c] - mean) * inverse
    return inverse


@njit()
def layer_norm(x, gain, bias, out):
    """out <- gain (x - mean) / sqrt(var + 1e-6) + bias, x (m, channel)."""
    for r in range(len(x)):
        row = out[r]
        _normalise(x[r], row)
        for c in range(row.size):
            row[c] = row[c] * gain[c] + bias[c]


@njit()
def layer_norm_backward(x, gain, delta, out):
    """out[g] <- (h - mean h - unit mean(h unit)) / std with h = gain delta[g]: x (m, channel), delta (group, m, channel)."""
    unit = np.empty(x.shape[1], np.float32)
    for r in range(len(x)):
        inverse = _normalise(x[r], unit)
        for g in range(len(delta)):
            row, own = out[g, r], delta[g, r]
            mean, along = _f4(0), _f4(0)
            for c in range(row.size):
                mean += own[c] * gain[c]
                along += own[c] * gain[c] * unit[c]
            mean /= _f4(row.size)
            along /= _f4(row.size)
            for c in range(row.size):
                row[c] = (own[c] * gain[c] - mean - unit[c] * along) * inverse


@njit()
def layer_norm_gradient(x, delta, of_gain, of_bias):
    """Sums over tokens of unit delta and of delta, (group, n, channel); x (n, token, channel), delta (group, *x.shape)."""
    unit = np.empty(x.shape[2], np.float32)
    of_gain[:] = 0
    of_bias[:] = 0
    for s in range(len(x)):
        for t in range(x.shape[1]):
            _normalise(x[s, t], unit)
            for g in range(len(delta)):
                own, first, second = delta[g, s, t], of_gain[g, s], of_bias[g, s]
                for c in range(own.size):
                    first[c] += own[c] * unit[c]
                    second[c] += own[c]


@njit(fastmath=EXACT)
def _gate(v):
    """(1 + tanh u) / 2 = 1 / (1 + exp(-2 u)), u = sqrt(2/pi) (v + 0.044715 v^3)."""
    return _f4(1) / (_f4(1) + exp32(_f4(-2) * _SLOPE * (v + _CUBIC * v * v * v)))


@njit(fastmath=EXACT)
def gelu(x, out):
    """out <- gelu(x), rows of any shape laid out flat."""
    for c in range(x.size):
        out[c] = x[c] * _gate(x[c])


@njit(fastmath=EXACT)
def gelu_backward(x, delta, out):
    """out[g] <- delta[g] gelu'(x): x (m,), delta (group, m). With s the gate: gelu' = s + 2 x s (1 - s) u'."""
    slope = np.empty(min(512, x.size), np.float32)
    for start in range(0, x.size, 512):
        own = x[start : start + 512]
        for c in range(own.size):
            v = own[c]
            s = _gate(v)
            inner = _SLOPE * (_f4(1) + _f4(3) * _CUBIC * v * v)
            slope[c] = s + _f4(2) * v * s * (_f4(1) - s) * inner
        for g in range(len(delta)):
            row, target = delta[g, start : start + 512], out[g, start : start + 512]
            for c in range(own.size):
                target[c] = row[c] * slope[c]


@njit(fastmath=EXACT)
def softmax(x, out):
    """out <- softmax of every row of x (m, token)."""
    for r in range(len(x)):
        row, target = x[r], out[r]
        top = row[0]
        for c in range(1, row.size):
            top = max(top, row[c])
        for c in range(row.size):
            target[c] = row[c] - top
    flat = out.reshape(-1)
    for c in range(flat.size):
        flat[c] = exp32(flat[c])
    for r in range(len(x)):
        target, total = out[r], _f4(0)
        for c in range(target.size):
            total += target[c]
        inverse = _f4(1) / total
        for c in range(target.size):
            target[c] *= inverse


@njit(fastmath=EXACT)
def softmax_backward(a, delta, out):
    """out[g] <- a (delta[g] - sum(a delta[g])) row by row: a (m, token) the softmax, delta (group, m, token)."""
    for g in range(len(delta)):
        for r in range(len(a)):
            row, own, target = a[r], delta[g, r], out[g, r]
            along = _f4(0)
            for c in range(row.size):
                along += row[c] * own[c]
            for c in range(row.size):
                target[c] = row[c] * (own[c] - along)


_FACTORS = 16  # 1 + e^(-2z) of a product: each is 0 or above 1e-17 and at most 2 in modulus, so that it stays in range


@njit(fastmath=EXACT)
def log_cosh_sum(re, im, out):
    """Sums (n,) of log cosh(re + i im) over the columns of (n, m), float64; the imaginary part modulo 2 pi.

    With z or -z, so that Re z >= 0: log cosh z = z - log 2 + log(1 + e^(-2z)), and one logarithm for a product of factors.
    """
    n, m = re.shape
    e, angle, bits = np.empty(m), np.empty(m), np.empty(m, np.int64)
    cosine, sine = np.empty(m), np.empty(m)
    for i in range(n):
        real, imaginary = 0.0, 0.0
        for j in range(m):
            sign = -1.0 if re[i, j] < 0 else 1.0
            e[j], angle[j] = -2.0 * sign * re[i, j], -2.0 * sign * im[i, j]
            real -= 0.5 * e[j]
            imaginary -= 0.5 * angle[j]
        exp_negative(e, bits)
        cosine_and_sine(angle, cosine, sine)
        for start in range(0, m, _FACTORS):
            a, b = 1.0, 0.0
            for j in range(start, min(start + _FACTORS, m)):
                c, d = 1.0 + e[j] * cosine[j], e[j] * sine[j]
                a, b = a * c - b * d, a * d + b * c
            real += math.log(math.hypot(a, b))
            imaginary += math.atan2(b, a)
        out[i] = complex(real - m * math.log(2.0), imaginary)


def _groups(delta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """delta as (group, *shape of x): two groups where it comes by real and imaginary parts."""
    return np.ascontiguousarray(delta).reshape(-1, *x.shape)


class FastLayerNorm(LayerNorm):
    """LayerNorm of float32 arrays."""

    def forward(self, w, x):
        """Value of the output edge."""
        flat, out = x.reshape(-1, self.width), np.empty(x.shape, np.float32)
        layer_norm(flat, w[f"{self.name}.gain"], w[f"{self.name}.bias"], out.reshape(flat.shape))
        return out

    def backward(self, w, x, y, delta):
        """Cotangent of the input."""
        flat, out = x[0].reshape(-1, self.width), np.empty(delta.shape, np.float32)
        groups = _groups(delta, flat)
        layer_norm_backward(flat, w[f"{self.name}.gain"], groups, out.reshape(groups.shape))
        return (out,)

    def gradient(self, w, x, delta, total):
        """Per-sample gradients of gain and bias, (..., n, width)."""
        if total:
            return super().gradient(w, x, delta, total)
        groups = _groups(delta, x[0])
        sums = np.empty((2, len(groups), len(x[0]), self.width), np.float32)
        layer_norm_gradient(np.ascontiguousarray(x[0]), groups, *sums)
        of_gain, of_bias = sums.reshape(2, *delta.shape[:-2], self.width)
        return {f"{self.name}.gain": of_gain, f"{self.name}.bias": of_bias}


class FastGelu(Gelu):
    """GELU of float32 arrays."""

    def forward(self, w, x):
        """Value of the output edge."""
        out = np.empty(x.shape, np.float32)
        gelu(x.reshape(-1), out.reshape(-1))
        return out

    def backward(self, w, x, y, delta):
        """Cotangent of the input."""
        flat, out = x[0].reshape(-1), np.empty(delta.shape, np.float32)
        groups = _groups(delta, flat)
        gelu_backward(flat, groups, out.reshape(groups.shape))
        return (out,)


class FastAttention(Attention):
    """Full attention of float32 arrays; the products are left to the BLAS."""

    def _softmax(self, scores):
        flat, out = scores.reshape(-1, self.tokens), np.empty(scores.shape, np.float32)
        softmax(flat, out.reshape(flat.shape))
        return out

    def _softmax_backward(self, a, delta):
        flat, out = a.reshape(-1, self.tokens), np.empty(delta.shape, np.float32)
        groups = _groups(delta, flat)
        softmax_backward(flat, groups, out.reshape(groups.shape))
        return out


class FastLogCosh(LogCosh):
    """Sum of log cosh of complex arguments by real and imaginary parts; of real ones the plain formula."""

    def forward(self, w, *x):
        """log psi (n,), its phase modulo 2 pi."""
        if len(x) != 2:
            return super().forward(w, *x)
        out = np.empty(len(x[0]), np.complex128)
        log_cosh_sum(*(part.reshape(len(part), -1).astype(np.float64, copy=False) for part in x), out)
        return out


_ANY_PRECISION: dict[type[Brick], type[Brick]] = {LogCosh: FastLogCosh}
_TWINS: dict[type[Brick], type[Brick]] = {
    **_ANY_PRECISION,
    LayerNorm: FastLayerNorm,
    Gelu: FastGelu,
    Attention: FastAttention,
}


def _twin(brick: Brick, twins: dict[type[Brick], type[Brick]]) -> Brick:
    twin = twins.get(type(brick))
    return twin(*(getattr(brick, field.name) for field in fields(brick))) if twin else brick


def with_fast_bricks(psi: Wavefunction) -> Wavefunction:
    """The same wave function with faster bricks, where its parameters are in main memory: for real deltas only."""
    if not isinstance(psi.parameters, np.ndarray):
        return psi
    twins = _TWINS if psi.parameters.dtype == np.float32 else _ANY_PRECISION
    state: State = replace(psi.state, bricks=tuple(_twin(brick, twins) for brick in psi.state.bricks))
    return replace(psi, state=state)
