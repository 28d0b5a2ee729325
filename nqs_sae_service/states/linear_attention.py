"""Attention at a cost linear in the number of tokens: kernel features and the gated delta rule, and heads of several kinds.

Softmax attention compares every token with every other. Kernel attention (Katharopoulos et al., arXiv:2006.16236) writes the
weight of token j for token i as a product phi(q_i) . phi(k_j), so that the sum over j is taken once for all i. The gated delta
rule (Yang et al., arXiv:2412.06464) carries a matrix S along the tokens that is corrected towards v_t at the key k_t.

Both are made for lattices without an order of sites, and both keep the translations of a periodic grid of tokens exactly:

- kernel attention knows no positions at all. Where softmax attention has a bias b_{i-j} it gets ``LocalMix``, weights of the
  displacement to neighbouring tokens (Han et al., arXiv:2308.00442): 3 tokens along each axis, whatever the lattice. It is a
  function of displacements alone, costs O(tokens), and belongs on a larger lattice unchanged; larger displacements are reached
  by depth, or by heads of another kind beside it.
- the delta rule scans every line of tokens along every axis, both ways, and the results are summed: rows and columns in two
  dimensions. A scan of a ring that begins somewhere would break translations. Here it has no beginning: S before the first
  token is what it is after the last one, the state of a scan that goes around for ever. That is a linear equation for S with
  one solution, as every step shrinks S. On open axes a scan begins with S = 0.

Where a layer has heads of several kinds (HydraHead, arXiv:2606.20097) each is normalised by its root mean square and scaled by
a learned gamma, so that kinds of unlike size can be added up: ``JoinHeads``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..engine.arrays import beside, namespace
from .displacements import embedded
from .primitives import LAYER_NORM_EPSILON, Brick, Heads, Neighbours, contains, over_samples

if TYPE_CHECKING:
    from .state import State

Array = Any

SMALLEST_NORM = 1e-6  # added to phi(q) . sum phi(k), and to squared lengths of queries and keys
LONGEST = 0.999  # largest alpha: S forgets within a thousand tokens, and a ring always has a solution


def neighbourhood(extent: tuple[int, ...], wraps: tuple[bool, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Windows (token, place) int64 of the tokens next to each, itself first, on a grid; the different displacements per axis.

    A place beyond an open boundary is the number of tokens. A ring of two tokens has one neighbour, not two.
    """
    reach = tuple(min(n, 3) if wrap else 3 for n, wrap in zip(extent, wraps, strict=True))
    steps = np.asarray(list(itertools.product(*((0, 1, -1)[:n] for n in reach))))
    tokens = math.prod(extent)
    place = np.indices(extent).reshape(len(extent), -1).T[:, None] + steps
    inside = ((place >= 0) & (place < extent) | np.asarray(wraps)).all(axis=-1)
    number = np.ravel_multi_index(tuple(np.moveaxis(place % np.asarray(extent), -1, 0)), extent)
    return np.where(inside, number, tokens), reach


def by_parts(function: Callable[[Array], tuple[Array, ...]], delta: Array) -> tuple[Array, ...]:
    """A function linear in real cotangents (..., token, channel), of a complex one: real and imaginary part side by side."""
    xp = namespace(delta)
    if not xp.iscomplexobj(delta):
        return function(delta)
    return tuple(g[0] + 1j * g[1] for g in function(xp.stack([delta.real, delta.imag])))


@dataclass(frozen=True, eq=False)
class LocalMix(Neighbours):
    """y_t = sum_k taps[:, k] x_{windows[t, k]}: every channel with its own weight (width, K) for each neighbouring token.

    ``reach``: the number of different displacements along every axis, 0, 1, -1 in this order.
    """

    reach: tuple[int, ...]

    @property
    def fan_out(self) -> int:
        """Channels of y."""
        return self.width

    def shapes(self):
        return {f"{self.name}.taps": (self.width, self.windows.shape[1])}

    def _sum(self, w, x, sources):
        """sum_k taps[:, k] x_{sources[t, k]}, zero where that is outside."""
        padded, taps, sources = self._padded(x), w[f"{self.name}.taps"], beside(sources, x)
        return sum(padded[..., sources[:, k], :] * taps[:, k] for k in range(taps.shape[1]))

    def forward(self, w, x):
        return self._sum(w, x, self.windows)

    def backward(self, w, x, y, delta):
        return (self._sum(w, delta, self._owners),)

    def gradient(self, w, x, delta, total):
        xp, padded, windows = namespace(delta), self._padded(x[0]), beside(self.windows, delta)
        g = [(delta * padded[..., windows[:, k], :]).sum(axis=-2) for k in range(windows.shape[1])]
        return {f"{self.name}.taps": over_samples(xp.stack(g, axis=-1), total)}

    def carried(self, source, w):
        """On a ring of two tokens both neighbours are one: its weight is halved between them."""
        copied, old = super().carried(source, w), getattr(source, "reach", ())
        if old == self.reach or not contains(self.reach, old):
            return copied
        return {name: embedded(array, old, self.reach, nearest=False) for name, array in copied.items()}


@dataclass(frozen=True)
class KernelAttention(Heads):
    """y_i = M^T phi(q_i) / (phi(q_i) . z), M = sum_j phi(k_j) v_j^T, z = sum_j phi(k_j) in each head, phi(x) = elu(x) + 1.

    A term 1e-6 is added to the denominator. O(tokens width^2 / heads). Katharopoulos et al., arXiv:2006.16236.
    """

    def workspace(self, tokens):
        return 4 * tokens * self.width

    def _features(self, x):
        xp = namespace(x)
        x = self.split(x)
        return xp.exp(xp.minimum(x, 0)) + xp.maximum(x, 0)

    def _sums(self, k, v):
        return k.swapaxes(-1, -2) @ v, k.sum(axis=-2)[..., None]

    def forward(self, w, q, k, v):
        q, k, v = self._features(q), self._features(k), self.split(v)
        of_values, z = self._sums(k, v)
        return self.join(q @ of_values / (q @ z + q.dtype.type(SMALLEST_NORM)))

    def backward(self, w, x, y, delta):
        xp = namespace(delta)
        q, k, v = self._features(x[0]), self._features(x[1]), self.split(x[2])
        of_values, z = self._sums(k, v)
        norm, y = q @ z + q.dtype.type(SMALLEST_NORM), self.split(y)

        def real(delta):
            numerator = self.split(delta) / norm
            denominator = -(numerator * y).sum(axis=-1, keepdims=True)
            d_q = numerator @ of_values.swapaxes(-1, -2) + denominator * z.swapaxes(-1, -2)
            d_sum = q.swapaxes(-1, -2) @ numerator
            d_z = (denominator * q).sum(axis=-2, keepdims=True)
            d_k = v @ d_sum.swapaxes(-1, -2) + d_z
            # phi'(x) = 1 for x > 0, else exp(x): the smaller one of 1 and phi
            return (
                self.join(d_q * xp.minimum(q, 1)),
                self.join(d_k * xp.minimum(k, 1)),
                self.join(k @ d_sum),
            )

        return by_parts(real, delta)


def _unit(x: Array) -> tuple[Array, Array]:
    """x / sqrt(|x|^2 + 1e-6) over the last axis, and one over that length."""
    inverse = 1 / namespace(x).sqrt((x * x).sum(axis=-1, keepdims=True) + x.dtype.type(SMALLEST_NORM))
    return x * inverse, inverse


def _unit_backward(unit: Array, inverse: Array, delta: Array) -> Array:
    return (delta - unit * (unit * delta).sum(axis=-1, keepdims=True)) * inverse


@dataclass(frozen=True)
class DeltaRule(Heads):
    """y_t = S_t q_t with S_t = alpha_t S_{t-1} (1 - beta_t k_t k_t^T) + beta_t v_t k_t^T, summed over scans of lines of tokens.

    q and k have length one in each head. Inputs q, k, v (n, token, width) and ``gates`` (n, token, scans 2 heads): for every
    scan the logits of alpha = 0.999 sigmoid and beta = sigmoid of every head. There are two scans for each axis of
    ``extent``, forwards and backwards, every line of tokens by itself, closed to a ring where the axis ``wraps``: then S
    before the first token equals S after the last one. O(tokens width^2 / heads). Yang et al., arXiv:2412.06464.
    """

    extent: tuple[int, ...]
    wraps: tuple[bool, ...]

    @property
    def scans(self) -> int:
        """Number of scans, each with gates of its own."""
        return 2 * len(self.extent)

    def workspace(self, tokens):
        return 6 * tokens * self.width * (self.width // self.heads + 2)

    def _lines(self, x, scan, channels):
        """(..., token, head channel) as (place in the scan, ..., other axes, head, channel)."""
        x = x.reshape(*x.shape[:-2], *self.extent, self.heads, channels)
        x = namespace(x).moveaxis(x, scan // 2 - 2 - len(self.extent), 0)
        return x[::-1] if scan % 2 else x

    def _tokens(self, x, scan):
        """Inverse of ``_lines``."""
        x = x[::-1] if scan % 2 else x
        x = namespace(x).moveaxis(x, 0, scan // 2 - 2 - len(self.extent))
        lead = x.shape[: x.ndim - 2 - len(self.extent)]
        return x.reshape(*lead, self.tokens, self.heads * x.shape[-1])

    def _gates(self, gates, scan):
        """alpha and beta (place, ..., head, 1) of a scan."""
        xp, h = namespace(gates), self.heads
        both = 0.5 + 0.5 * xp.tanh(0.5 * gates[..., 2 * h * scan : 2 * h * (scan + 1)])
        alpha, beta = both[..., :h] * gates.dtype.type(LONGEST), both[..., h:]
        return self._lines(alpha, scan, 1), self._lines(beta, scan, 1)

    def _operands(self, x, scan):
        """k (place, ..., head, channel), v likewise, alpha, beta (place, ..., head, 1) of a scan, from q, k, v, gates."""
        _, k, v, gates = x
        c = self.width // self.heads
        k = _unit(k.reshape(*k.shape[:-1], self.heads, c))[0].reshape(k.shape)
        return (self._lines(k, scan, c), self._lines(v, scan, c), *self._gates(gates, scan))

    def forward(self, w, q, k, v, gates):
        c = self.width // self.heads
        q = _unit(q.reshape(*q.shape[:-1], self.heads, c))[0].reshape(q.shape)
        y = 0
        for scan in range(self.scans):
            states, _ = self._states(self._operands((q, k, v, gates), scan), scan)
            y = y + self._tokens(_times(states[1:], self._lines(q, scan, c)), scan)
        return y

    def _states(self, operands, scan):
        """S (place + 1, ..., head, c, c) before and after every token; the product of all steps on a ring, else None."""
        k, v, alpha, beta = operands
        xp, c = namespace(k), k.shape[-1]
        start, product = xp.zeros((*k.shape[1:], c), k.dtype), None
        if self.wraps[scan // 2]:
            above = xp.broadcast_to(xp.eye(c, dtype=k.dtype), start.shape)
            both = xp.concatenate([start, above], axis=-2)
            both = _scan(both, k, xp.concatenate([v, xp.zeros_like(v)], axis=-1), alpha, beta)[-1]
            product = both[..., c:, :]
            start = _closed(both[..., :c, :], product)
        return _scan(start, k, v, alpha, beta), product

    def backward(self, w, x, y, delta):
        return by_parts(lambda real: self._backward(x, real), delta)

    def _backward(self, x, delta):
        c, heads = self.width // self.heads, self.heads
        (q, q_inverse), (k, k_inverse) = (_unit(a.reshape(*a.shape[:-1], heads, c)) for a in x[:2])
        d_q = d_k = d_v = namespace(delta).zeros_like(delta)
        d_gates = []
        for scan in range(self.scans):
            operands = self._operands(x, scan)
            parts = self._scan_backward(
                operands,
                self._lines(q.reshape(x[0].shape), scan, c),
                self._lines(delta, scan, c),
                scan,
            )
            of_q, of_k, of_v, of_alpha, of_beta = (self._tokens(part, scan) for part in parts)
            d_q, d_k, d_v = d_q + of_q, d_k + of_k, d_v + of_v
            alpha, beta = (self._tokens(gate, scan) for gate in operands[2:])
            d_gates += [
                of_alpha * alpha * (1 - alpha * alpha.dtype.type(1 / LONGEST)),
                of_beta * beta * (1 - beta),
            ]
        by_head = (*delta.shape[:-1], heads, c)
        d_q = _unit_backward(q, q_inverse, d_q.reshape(by_head)).reshape(delta.shape)
        d_k = _unit_backward(k, k_inverse, d_k.reshape(by_head)).reshape(delta.shape)
        return d_q, d_k, d_v, namespace(delta).concatenate(d_gates, axis=-1)

    def _scan_backward(self, operands, q, delta, scan):
        """Cotangents of q, k, v, alpha, beta of one scan, laid out as it is.

        G_t = d log psi / d S_t obeys the same equation backwards, G_t = delta_t q_t^T + alpha G_{t+1} (1 - beta k k^T) with
        alpha, beta and k of t + 1, closed on a ring like the scan itself.
        """
        k, v, alpha, beta = operands
        xp, length = namespace(k), len(k)
        states, product = self._states(operands, scan)
        start = xp.zeros((*delta.shape[1:], k.shape[-1]), k.dtype)
        if product is not None:
            carry = start
            for t in reversed(range(length)):
                carry = _step(carry + _outer(delta[t], q[t]), k[t], alpha[t], beta[t])
            start = _closed(carry, product.swapaxes(-1, -2))
        found, carry = [], start
        for t in reversed(range(length)):
            g, s = carry + _outer(delta[t], q[t]), states[t]
            known, along = _times(s, k[t]), _times(g, k[t])
            missing = v[t] - alpha[t] * known  # S_t = alpha S + beta (v - alpha S k) k^T
            d_missing = beta[t] * along
            found.append(
                (
                    _times(states[t + 1].swapaxes(-1, -2), delta[t]),
                    beta[t] * _times(g.swapaxes(-1, -2), missing)
                    - alpha[t] * _times(s.swapaxes(-1, -2), d_missing),
                    d_missing,
                    (g * s).sum(axis=(-1, -2))[..., None] - (d_missing * known).sum(axis=-1, keepdims=True),
                    (along * missing).sum(axis=-1, keepdims=True),
                )
            )
            carry = alpha[t][..., None] * (g - _outer(d_missing, k[t]))
        return tuple(xp.stack(part[::-1]) for part in zip(*found, strict=True))


def _times(matrix: Array, vector: Array) -> Array:
    """Matrices (..., i, j) times vectors (..., j)."""
    return (matrix @ vector[..., None])[..., 0]


def _outer(a: Array, b: Array) -> Array:
    return a[..., :, None] * b[..., None, :]


def _step(s: Array, k: Array, alpha: Array, beta: Array) -> Array:
    """alpha S (1 - beta k k^T), with S (..., i, c), k (..., c), alpha, beta (..., 1)."""
    return alpha[..., None] * (s - _outer(beta * _times(s, k), k))


def _scan(s: Array, k: Array, v: Array, alpha: Array, beta: Array) -> Array:
    """S (place + 1, ..., i, c) before and after every place: S_t = alpha S_{t-1} (1 - beta k k^T) + beta v k^T."""
    states = [s]
    for t in range(len(k)):
        missing = v[t] - alpha[t] * _times(s, k[t])
        s = alpha[t][..., None] * s + _outer(beta[t] * missing, k[t])
        states.append(s)
    return namespace(s).stack(states)


def _closed(once: Array, product: Array) -> Array:
    """The S of S = S product + once: what a ring holds, from one turn that began with zero."""
    xp = namespace(once)
    system = (xp.eye(product.shape[-1], dtype=product.dtype) - product).swapaxes(-1, -2)
    system = xp.broadcast_to(system, (*once.shape[:-2], *system.shape[-2:]))
    return xp.linalg.solve(system, once.swapaxes(-1, -2)).swapaxes(-1, -2)


@dataclass(frozen=True)
class JoinHeads(Brick):
    """Heads of several kinds in their order, each y_h = gamma_h x_h / sqrt(mean_c x_hc^2 + 1e-6) over its channels.

    Each input holds the heads of one kind side by side; ``places`` says which they are. HydraHead, arXiv:2606.20097.
    """

    places: tuple[tuple[int, ...], ...]
    channels: int

    @cached_property
    def _order(self) -> np.ndarray:
        """Where in the inputs side by side every head is."""
        return np.argsort(np.concatenate(self.places))

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.concatenate(self.places)

    def shapes(self):
        return {f"{self.name}.gamma": (len(self._order),)}

    def _split(self, x):
        return x.reshape(*x.shape[:-1], len(self._order), self.channels)

    def _normalised(self, x):
        """Heads in order (n, token, head, channel) of root mean square one, and one over what it was."""
        xp = namespace(x[0])
        x = self._split(xp.concatenate(list(x), axis=-1))[..., beside(self._order, x[0]), :]
        inverse = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(LAYER_NORM_EPSILON))
        return x * inverse, inverse

    def forward(self, w, *x):
        y = self._normalised(x)[0] * w[f"{self.name}.gamma"][:, None]
        return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])

    def backward(self, w, x, y, delta):
        unit, inverse = self._normalised(x)
        g = self._split(delta) * w[f"{self.name}.gamma"][:, None]
        g = (g - unit * (g * unit).mean(axis=-1, keepdims=True)) * inverse
        g = g[..., beside(self._inverse, delta), :].reshape(delta.shape)
        ends = np.cumsum([len(heads) for heads in self.places]) * self.channels
        starts = [0, *ends[:-1]]
        return tuple(g[..., int(a) : int(b)] for a, b in zip(starts, ends, strict=True))

    def gradient(self, w, x, delta, total):
        g = (self._split(delta) * self._normalised(x)[0]).sum(axis=(-1, -3))
        return {f"{self.name}.gamma": over_samples(g, total)}


class HeadGroup(NamedTuple):
    """Heads of one kind in a block: what their bricks' names begin with, their brick ``mix``, their ``places`` in the block."""

    name: str
    mix: Heads
    places: tuple[int, ...]


def head_groups(state: State, block: int) -> list[HeadGroup]:
    """The heads of a block (counted from 1), kind by kind; more than one group where they are joined."""
    bricks: dict[str, Any] = {brick.name: brick for brick in state.bricks}
    name = f"attention_{block}"
    join = bricks.get(f"{name}.join")
    if join is None:
        mix = bricks[f"{name}.mix"]
        return [HeadGroup(name, mix, tuple(range(mix.heads)))]
    names = [edge.removesuffix(".heads") for edge in join.inputs]
    return [HeadGroup(n, bricks[f"{n}.mix"], places) for n, places in zip(names, join.places, strict=True)]
