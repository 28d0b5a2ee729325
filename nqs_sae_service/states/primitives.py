"""The building bricks of every network: small maps between named edges, with their exact derivatives.

A brick reads one or more edges of shape (sample, token, channel) and writes one. Samples never mix. Hence ONE backward pass
with cotangent 1 gives every sample its own delta = d log psi / d edge, and each brick turns (input, delta) into per-sample
parameter gradients O_k(sigma) = d log psi(sigma) / d theta_k, or into their weighted sum. Parameters are real; the cotangent
may be complex (a complex log psi is linear in it), or come as its real and imaginary parts along a leading axis. Everything
runs on NumPy or CuPy arrays, in any precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..engine.arrays import beside, namespace
from .displacements import embedded

Array = Any
Weights = Mapping[str, Array]

LAYER_NORM_EPSILON = 1e-6  # as in flax
_GELU_SLOPE = math.sqrt(2 / math.pi)
_GELU_CUBIC = 0.044715


@dataclass(frozen=True)
class Brick:
    """A map from the edges ``inputs`` to the edge ``output``; parameters are called ``<name>.<role>``.

    ``tokenwise``: the same map on every token, whose gradients are sums over tokens, however many there are.
    """

    name: str
    inputs: tuple[str, ...]
    output: str
    tokenwise: ClassVar[bool] = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by full name."""
        return {}

    def forward(self, w: Weights, *x: Array) -> Array:
        """Value of the output edge."""
        raise NotImplementedError

    def backward(self, w: Weights, x: tuple[Array, ...], y: Array, delta: Array) -> tuple[Array, ...]:
        """Cotangent of every input edge, given the cotangent ``delta`` of the output edge."""
        raise NotImplementedError

    def gradient(self, w: Weights, x: tuple[Array, ...], delta: Array, total: bool) -> dict[str, Array]:
        """Parameter gradients: per sample (n, *shape), or summed over samples (*shape) when ``total``."""
        return {}

    def workspace(self, tokens: int) -> int:
        """Numbers that a configuration takes on the way to the output or its derivatives, besides the edges."""
        return 0

    def carried(self, source: Brick, w: Weights) -> Weights:
        """Parameters from those ``w`` of the brick of this name in another network: copied, but for those of a larger lattice.

        What does not fit in shape is left as it is, and refused later.
        """
        return {name: w[name] for name in self.shapes() if name in w}


def real_times(a: Array, b: Array) -> Array:
    """Matrix product a @ b of a real ``a`` with a possibly complex ``b``, at the cost of two real products, not four."""
    xp = namespace(b)
    if not xp.iscomplexobj(b):
        return a @ b
    b = xp.ascontiguousarray(b)
    return (a @ b.view(b.real.dtype)).view(b.dtype)


def times_real(a: Array, b: Array) -> Array:
    """Matrix product a @ b of a possibly complex ``a`` with a real ``b``."""
    xp = namespace(a)
    return a.real @ b + 1j * (a.imag @ b) if xp.iscomplexobj(a) else a @ b


def _rows(x: Array, function: Callable[[Array], Array]) -> Array:
    """``function`` on x (n, token, channel) seen as one matrix of rows: one large product instead of many small ones."""
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def over_samples(a: Array, total: bool) -> Array:
    """``a``, or its sum over the leading axis when ``total``."""
    return a.sum(axis=0) if total else a


def _outer(x: Array, delta: Array, total: bool) -> Array:
    """Sum over tokens of x (outer) delta: (n, i, o), or summed over samples too: (i, o)."""
    if total:
        return real_times(x.reshape(-1, x.shape[-1]).T, delta.reshape(-1, delta.shape[-1]))
    return real_times(x.swapaxes(-1, -2), delta)


@dataclass(frozen=True)
class Dense(Brick):
    """y = x W + b, with W (fan_in, fan_out)."""

    fan_in: int
    fan_out: int
    tokenwise = True

    def shapes(self):
        return {f"{self.name}.weight": (self.fan_in, self.fan_out), f"{self.name}.bias": (self.fan_out,)}

    def forward(self, w, x):
        y = _rows(x, lambda rows: rows @ w[f"{self.name}.weight"])
        y += w[f"{self.name}.bias"]
        return y

    def backward(self, w, x, y, delta):
        return (_rows(delta, lambda rows: times_real(rows, w[f"{self.name}.weight"].T)),)

    def gradient(self, w, x, delta, total):
        return {
            f"{self.name}.weight": _outer(x[0], delta, total),
            f"{self.name}.bias": over_samples(delta.sum(axis=-2), total),
        }


@dataclass(frozen=True)
class Filters(Dense):
    """A ``Dense`` map whose inputs are the ``basis`` spins of every cell of a periodic ``grid``, seen from one of the cells.

    On a larger lattice the filters see as much as before, and nothing beyond.
    """

    grid: tuple[int, ...]
    basis: int

    def carried(self, source, w):
        copied = dict(super().carried(source, w))
        old, name = getattr(source, "grid", ()), f"{self.name}.weight"
        if old != self.grid and contains(self.grid, old) and self.basis == source.basis:
            cells = copied[name].reshape(math.prod(old), -1)
            copied[name] = embedded(cells.T, old, self.grid, nearest=False).T.reshape(self.fan_in, -1)
        return copied


@dataclass(frozen=True)
class ComplexLinear(Brick):
    """y = sum over tokens and channels of x (u + i v), with u, v (width,): a term of log psi, (n, token, width) -> (n,)."""

    width: int

    def shapes(self):
        return {f"{self.name}.real": (self.width,), f"{self.name}.imaginary": (self.width,)}

    def _weight(self, w):
        return w[f"{self.name}.real"] + 1j * w[f"{self.name}.imaginary"]

    def forward(self, w, x):
        return x.sum(axis=1) @ self._weight(w)

    def backward(self, w, x, y, delta):
        along = delta.reshape(-1, 1, 1) * self._weight(w)
        return (namespace(along).broadcast_to(along, x[0].shape),)

    def gradient(self, w, x, delta, total):
        g = x[0].sum(axis=1) * delta[:, None]
        g = over_samples(g, total)
        return {f"{self.name}.real": g, f"{self.name}.imaginary": 1j * g}


@dataclass(frozen=True)
class Channels(Brick):
    """y = x[..., first:last]: some of the channels."""

    first: int
    last: int

    def forward(self, w, x):
        return x[..., self.first : self.last]

    def backward(self, w, x, y, delta):
        whole = namespace(delta).zeros((*delta.shape[:-1], x[0].shape[-1]), delta.dtype)
        whole[..., self.first : self.last] = delta
        return (whole,)


@dataclass(frozen=True, eq=False)
class Neighbours(Brick):
    """y_t = the channels of the tokens around t side by side: (n, token, width) -> (n, token, K width).

    ``windows`` (token, K) int64: token windows[t, k] stands at place k around t; the number of tokens stands for a
    place outside, where y is zero. No token is at the same place of two windows. With a ``Dense`` map behind it this is a
    convolution.
    """

    windows: np.ndarray
    width: int

    @property
    def fan_out(self) -> int:
        """Channels of y."""
        return self.windows.shape[1] * self.width

    @cached_property
    def outside(self) -> bool:
        """Whether some window reaches beyond the lattice."""
        return bool((self.windows == len(self.windows)).any())

    @cached_property
    def _owners(self) -> np.ndarray:
        """The token t with windows[t, k] = s, or the number of tokens if there is none: (s, K)."""
        tokens, places = self.windows.shape
        owners = np.full((tokens + 1, places), tokens)
        np.put_along_axis(owners, self.windows, np.arange(tokens)[:, None], axis=0)
        return owners[:tokens]

    def _padded(self, x):
        """x (..., token, channel) with a zero token behind the last one, if a window needs it."""
        if not self.outside:
            return x
        xp = namespace(x)
        return xp.concatenate([x, xp.zeros_like(x[..., :1, :])], axis=-2)

    def forward(self, w, x):
        y = self._padded(x)[..., beside(self.windows, x), :]
        return y.reshape(*x.shape[:-1], self.fan_out)

    def backward(self, w, x, y, delta):
        parts = self._padded(delta).reshape(*delta.shape[:-2], -1, self.windows.shape[1], self.width)
        owners = beside(self._owners, delta)
        return (sum(parts[..., owners[:, k], k, :] for k in range(self.windows.shape[1])),)


@dataclass(frozen=True)
class PositionCode(Brick):
    """y = x + p, one learned vector p (token, width) for each token: breaks translation symmetry on purpose."""

    tokens: int
    width: int

    def shapes(self):
        return {f"{self.name}.code": (self.tokens, self.width)}

    def forward(self, w, x):
        return x + w[f"{self.name}.code"]

    def backward(self, w, x, y, delta):
        return (delta,)

    def gradient(self, w, x, delta, total):
        return {f"{self.name}.code": over_samples(delta, total)}


def _normalised(x: Array) -> tuple[Array, Array]:
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse_std = 1 / namespace(x).sqrt((centred * centred).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
    return centred * inverse_std, inverse_std


@dataclass(frozen=True)
class LayerNorm(Brick):
    """y = gain (x - mean) / sqrt(var + 1e-6) + bias, over the channels of each token (Ba et al., arXiv:1607.06450)."""

    width: int
    tokenwise = True

    def shapes(self):
        return {f"{self.name}.gain": (self.width,), f"{self.name}.bias": (self.width,)}

    def forward(self, w, x):
        return _normalised(x)[0] * w[f"{self.name}.gain"] + w[f"{self.name}.bias"]

    def backward(self, w, x, y, delta):
        unit, inverse_std = _normalised(x[0])
        g = delta * w[f"{self.name}.gain"]
        along = (g * unit).mean(axis=-1, keepdims=True)
        return ((g - g.mean(axis=-1, keepdims=True) - unit * along) * inverse_std,)

    def gradient(self, w, x, delta, total):
        unit, _ = _normalised(x[0])
        return {
            f"{self.name}.gain": over_samples((delta * unit).sum(axis=-2), total),
            f"{self.name}.bias": over_samples(delta.sum(axis=-2), total),
        }


@dataclass(frozen=True)
class Gelu(Brick):
    """y = x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, the tanh form (Hendrycks & Gimpel, arXiv:1606.08415)."""

    def forward(self, w, x):
        return 0.5 * x * (1 + namespace(x).tanh(_GELU_SLOPE * (x + _GELU_CUBIC * x * x * x)))

    def backward(self, w, x, y, delta):
        (x,) = x
        t = namespace(x).tanh(_GELU_SLOPE * (x + _GELU_CUBIC * x * x * x))
        inner = _GELU_SLOPE * (1 + 3 * _GELU_CUBIC * x * x)
        return (delta * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner),)


@dataclass(frozen=True)
class Add(Brick):
    """y = a + b: the residual connection."""

    def forward(self, w, a, b):
        return a + b

    def backward(self, w, x, y, delta):
        return delta, delta


def contains(grid: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one periodic grid has at least the extent of another along every axis."""
    return 0 < len(grid) == len(other) and all(n <= m for n, m in zip(other, grid, strict=True))


def circulant(xp, grid: tuple[int, ...]) -> Array:
    """Number of the token at i - j on a periodic grid, (tokens, tokens): how translation-invariant weights are laid out.

    Tokens are counted row by row, the last axis fastest: on a ring this is (i - j) mod tokens.
    """
    tokens = math.prod(grid)
    number, stride = xp.zeros((tokens, tokens), dtype=xp.int64), tokens
    for extent in grid:
        stride //= extent
        place = xp.arange(tokens) // stride % extent
        number += (place[:, None] - place[None, :]) % extent * stride
    return number


@dataclass(frozen=True)
class Heads(Brick):
    """Shared by all kinds of attention: ``heads`` of ``width // heads`` channels over ``tokens``.

    Where there are learned numbers, one per pair or displacement.

    ``grid``: the extents of the periodic grid of tokens where translation-invariant, else ().
    """

    tokens: int
    width: int
    heads: int
    grid: tuple[int, ...]

    @property
    def translation_invariant(self) -> bool:
        """Whether there is one number for each displacement."""
        return bool(self.grid)

    def carried(self, source, w):
        copied = super().carried(source, w)
        old = getattr(source, "grid", ())
        if old == self.grid or not contains(self.grid, old):
            return copied
        softmax = isinstance(self, Attention)
        return {name: embedded(array, old, self.grid, nearest=softmax) for name, array in copied.items()}

    def workspace(self, tokens):
        return self.heads * tokens**2

    def split(self, x: Array) -> Array:
        """(..., token, width) -> (..., head, token, width / heads)."""
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).swapaxes(-2, -3)

    def join(self, x: Array) -> Array:
        """Inverse of ``split``."""
        return x.swapaxes(-2, -3).reshape(*x.shape[:-3], self.tokens, self.width)

    def pair_shape(self) -> tuple[int, ...]:
        """Shape of a learned number per (head, i, j), or per (head, i - j) when translation-invariant."""
        return (
            (self.heads, self.tokens)
            if self.translation_invariant
            else (self.heads, self.tokens, self.tokens)
        )

    def pairs(self, xp, stored: Array) -> Array:
        """Stored numbers laid out as (head, i, j)."""
        return stored[:, circulant(xp, self.grid)] if self.grid else stored

    def pairs_gradient(self, d_pairs: Array, total: bool) -> Array:
        """Gradient of the stored numbers from that of the laid-out ones (n, head, i, j)."""
        xp = namespace(d_pairs)
        d_pairs = over_samples(d_pairs, total)
        if not self.translation_invariant:
            return d_pairs
        i, number = xp.arange(self.tokens), circulant(xp, self.grid)  # the token at i - r: column r
        return xp.stack([d_pairs[..., i, number[:, r]].sum(axis=-1) for r in range(self.tokens)], axis=-1)


@dataclass(frozen=True)
class Mix(Heads):
    """Positional attention: y_i = sum_j a_ij v_j in each head, with weights independent of the input.

    Rende et al., arXiv:2405.18874.
    """

    def shapes(self):
        return {f"{self.name}.weight": self.pair_shape()}

    def forward(self, w, v):
        a = self.pairs(namespace(v), w[f"{self.name}.weight"])
        return self.join(a @ self.split(v))

    def backward(self, w, x, y, delta):
        a = self.pairs(namespace(x[0]), w[f"{self.name}.weight"])
        return (self.join(real_times(a.swapaxes(-1, -2), self.split(delta))),)

    def gradient(self, w, x, delta, total):
        v, d = self.split(x[0]), self.split(delta)
        return {f"{self.name}.weight": self.pairs_gradient(times_real(d, v.swapaxes(-1, -2)), total)}


@dataclass(frozen=True)
class Attention(Heads):
    """Full attention: y_i = sum_j softmax_j(q_i . k_j / sqrt(d_head) + b_ij) v_j in each head.

    The learned bias b depends on i - j when translation-invariant; otherwise there is none and a ``PositionCode`` tells tokens
    apart. Vaswani et al., arXiv:1706.03762.
    """

    def shapes(self):
        return {f"{self.name}.bias": self.pair_shape()} if self.translation_invariant else {}

    def _weights(self, w, q, k):
        xp = namespace(q)
        scores = (
            self.split(q) @ self.split(k).swapaxes(-1, -2) * q.dtype.type((self.width // self.heads) ** -0.5)
        )
        if self.translation_invariant:
            scores = scores + self.pairs(xp, w[f"{self.name}.bias"])
        return self._softmax(scores)

    def _softmax(self, scores):
        scores = namespace(scores).exp(scores - scores.max(axis=-1, keepdims=True))
        return scores / scores.sum(axis=-1, keepdims=True)

    def _softmax_backward(self, a, delta):
        return a * (delta - (a * delta).sum(axis=-1, keepdims=True))

    def _score_delta(self, a, v, delta):
        return self._softmax_backward(a, times_real(self.split(delta), self.split(v).swapaxes(-1, -2)))

    def forward(self, w, q, k, v):
        return self.join(self._weights(w, q, k) @ self.split(v))

    def backward(self, w, x, y, delta):
        q, k, v = x
        a = self._weights(w, q, k)
        d_scores = self._score_delta(a, v, delta) * q.dtype.type((self.width // self.heads) ** -0.5)
        return (
            self.join(times_real(d_scores, self.split(k))),
            self.join(times_real(d_scores.swapaxes(-1, -2), self.split(q))),
            self.join(real_times(a.swapaxes(-1, -2), self.split(delta))),
        )

    def gradient(self, w, x, delta, total):
        if not self.translation_invariant:
            return {}
        q, k, v = x
        d_scores = self._score_delta(self._weights(w, q, k), v, delta)
        return {f"{self.name}.bias": self.pairs_gradient(d_scores, total)}


@dataclass(frozen=True)
class SumTokens(Brick):
    """y = sum over tokens, kept as a single token: (n, token, width) -> (n, 1, width)."""

    def forward(self, w, x):
        return x.sum(axis=1, keepdims=True)

    def backward(self, w, x, y, delta):
        return (namespace(delta).broadcast_to(delta, (*delta.shape[:-2], *x[0].shape[-2:])),)


@dataclass(frozen=True)
class LogCosh(Brick):
    """log psi = sum over channels (and tokens) of log cosh(a), or of log cosh(a + i b) with a second input.

    (n, token, width) -> (n,). The sum is taken in double precision. No overflow: log cosh z = z + log(1 + e^(-2z)) - log 2
    for Re z >= 0.
    """

    def _argument(self, x):
        return x[0] + 1j * x[1] if len(x) == 2 else x[0]

    def forward(self, w, *x):
        xp = namespace(x[0])
        z = self._argument(x)
        z = xp.where(z.real < 0, -z, z)
        log_cosh = z + xp.log1p(xp.exp(-2 * z)) - math.log(2)
        return log_cosh.astype(xp.complex128 if len(x) == 2 else xp.float64).sum(axis=(1, 2))

    def backward(self, w, x, y, delta):
        xp = namespace(x[0])
        slope = xp.tanh(self._argument(x)) * delta.reshape(-1, 1, 1)
        return (slope, 1j * slope) if len(x) == 2 else (slope,)
