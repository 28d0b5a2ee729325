"""The bricks that make |psi|^2 a product of conditionals: token t sees what stands before it, and predicts what stands there.

    |psi(s)|^2 = prod_t p(o_t | o_1 ... o_(t-1)),      log psi = 1/2 sum_t log p(o_t | o_<t) + i sum_t phi_t(o_t | o_<t)

An *outcome* o_t is the state of the b spins of a token, one of 2^b. A shift by one token, attention that looks back only, and a
softmax over outcomes are enough: whatever the weights, sum_s |psi(s)|^2 = 1 (Sharir et al., PRL 124, 020503 (2020); Hibat-Allah
et al., Phys. Rev. Research 2, 023358 (2020)). At fixed magnetization an outcome after which the sum of the spins can no longer
be reached has probability zero: the product is then normalised over the configurations with that sum, and psi = 0 (log psi =
-inf) elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from .primitives import Attention, Brick

Array = Any


def outcome_spins(spins: int) -> np.ndarray:
    """The spins (2^spins, spins) int8 of every outcome: spin j of number k is up where bit j of k is set."""
    return np.where(np.arange(2**spins)[:, None] >> np.arange(spins) & 1, 1, -1).astype(np.int8)


def outcome_numbers(tokens: Array) -> Array:
    """Number (n, token) int64 of what stands at every token; tokens (n, token, spins)."""
    xp = namespace(tokens)
    return ((tokens > 0) << xp.arange(tokens.shape[-1])).sum(axis=-1)


@dataclass(frozen=True)
class ShiftTokens(Brick):
    """y_t = (x_(t-1), 0), y_0 = (0, ..., 0, 1): one token later, with a channel that marks the start.

    The dense map behind it learns the start token in the weights of that channel.
    """

    def forward(self, w, x):
        xp = namespace(x)
        y = xp.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
        y[:, 1:, :-1] = x[:, :-1]
        y[:, 0, -1] = 1
        return y

    def backward(self, w, x, y, delta):
        d = namespace(delta).zeros((*delta.shape[:-1], x[0].shape[-1]), delta.dtype)
        d[..., :-1, :] = delta[..., 1:, :-1]
        return (d,)


@dataclass(frozen=True)
class CausalAttention(Attention):
    """y_i = sum_(j <= i) softmax_(j <= i)(q_i . k_j / sqrt(d_head)) v_j in each head: nothing is seen of later tokens."""

    def _softmax(self, scores):
        xp = namespace(scores)
        later = xp.arange(self.tokens) > xp.arange(self.tokens)[:, None]
        return super()._softmax(xp.where(later, -math.inf, scores))


@dataclass(frozen=True)
class LogConditionals(Brick):
    """log psi (n,) = 1/2 sum_t log softmax(a_t)[o_t] (+ i sum_t phi_t[o_t]) from a, phi (n, token, outcome) and the tokens.

    The edge ``tokens`` comes last. ``up``: the number of spins that are up in all configurations, None where it is free. The
    logarithms and the sums are taken in double precision. Where psi = 0 the derivatives are those without the bound on ``up``.
    """

    up: int | None

    def allowed(self, tokens: Array) -> Array | None:
        """Whether ``up`` spins can still be up after an outcome, given the tokens before it: (n, token, outcome)."""
        if self.up is None:
            return None
        xp = namespace(tokens)
        count, spins = tokens.shape[1:]
        here = (tokens > 0).sum(axis=-1)
        missing = self.up - (xp.cumsum(here, axis=1) - here)
        return reachable(xp, missing[..., None], (count - 1 - xp.arange(count)[:, None]) * spins, spins)

    def forward(self, w, *x):
        xp, own, allowed = namespace(x[0]), self._own(x), self.allowed(x[-1])
        value = _chosen(log_softmax(x[0], allowed), own)
        if allowed is not None:
            value = xp.where(_chosen(allowed, own), value, -math.inf)
        log_modulus = 0.5 * value.sum(axis=1)
        if len(x) == 2:
            return log_modulus
        return log_modulus + 1j * _chosen(x[1], own).sum(axis=1, dtype=xp.float64)

    def backward(self, w, x, y, delta):
        xp = namespace(x[0])
        delta = delta.reshape(-1, 1, 1)
        one = self._own(x)[..., None] == xp.arange(x[0].shape[-1])
        p = xp.exp(log_softmax(x[0], self.allowed(x[-1])))
        slope = (0.5 * (one - p)).astype(x[0].dtype) * delta
        nothing = xp.zeros(x[-1].shape, x[-1].dtype)
        return (slope, nothing) if len(x) == 2 else (slope, 1j * delta * one, nothing)

    def _own(self, x: tuple[Array, ...]) -> Array:
        return outcome_numbers(x[-1])


def reachable(xp, missing: Array, left: Array, spins: int) -> Array:
    """Whether the sum can still be reached after each of the 2^spins outcomes of a token: (..., outcome).

    missing (..., 1): spins that have still to be up, this token's among them; left: spins of the tokens behind it. Where the
    sum is out of reach already all outcomes count: psi is zero anyway, and the softmax stays finite.
    """
    after = missing - xp.asarray((outcome_spins(spins) > 0).sum(axis=1))
    possible = (after >= 0) & (after <= left)
    return possible | ~possible.any(axis=-1, keepdims=True)


def log_softmax(a: Array, allowed: Array | None) -> Array:
    """log p (..., outcome) float64 of logits a: log softmax over the outcomes that are ``allowed``, -inf for the others."""
    xp = namespace(a)
    a = a.astype(xp.float64)
    if allowed is not None:
        a = xp.where(allowed, a, -math.inf)
    a = a - a.max(axis=-1, keepdims=True)
    return a - xp.log(xp.exp(a).sum(axis=-1, keepdims=True))


def _chosen(values: Array, own: Array) -> Array:
    """values[..., own] along the last axis: (n, token)."""
    return namespace(values).take_along_axis(values, own[..., None], axis=-1)[..., 0]
