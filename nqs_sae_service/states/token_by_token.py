"""Drawing from an autoregressive network with its bricks, token after token, in any precision, where the parameters are.

Keys and values of earlier tokens are kept, so that a token costs one row of every map and one row of attention: O(T d^2 +
T^2 d) for a configuration, not T forward passes. Every brick but three acts on a token by itself and is called with that token
alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import beside, namespace
from .causal import CausalAttention, LogConditionals, ShiftTokens, log_softmax, outcome_spins, reachable
from .fused import ALIGNMENT
from .primitives import PositionCode, Weights
from .state import State, Wavefunction

Array = Any


class TokenByToken:
    """The plain twin of an autoregressive state: it has the ability ``Draws`` of ``states.fused``."""

    def __init__(self, state: State, parameters: Array):
        self.psi = Wavefunction(state, parameters, plain=True)
        self.conditionals = next(brick for brick in state.bricks if isinstance(brick, LogConditionals))
        self.outcomes = outcome_spins(state.sites.shape[1])

    def log_psi(self, sigma: Array) -> Array:
        """log psi (n,) of configurations (n, n_sites) int8, by the bricks."""
        return self.psi.log_psi(sigma)

    def draw(self, uniforms: Array) -> tuple[Array, Array]:
        """See ``states.fused.Draws``. On the CPU in blocks of a fixed size, so that a column decides by itself."""
        n = uniforms.shape[1]
        if namespace(uniforms) is not np:
            return self._draw(uniforms)
        whole = max(1, -(-n // ALIGNMENT)) * ALIGNMENT
        padded = np.pad(uniforms, ((0, 0), (0, whole - n)), constant_values=1.0)
        blocks = [self._draw(padded[:, i : i + ALIGNMENT]) for i in range(0, whole, ALIGNMENT)]
        sigma, log_psi = (np.concatenate(parts)[:n] for parts in zip(*blocks, strict=True))
        return sigma, log_psi

    def _draw(self, uniforms: Array) -> tuple[Array, Array]:
        xp, state, w = namespace(uniforms), self.psi.state, self.psi.weights
        n, (count, spins) = uniforms.shape[1], state.sites.shape
        outcomes, up = beside(self.outcomes, uniforms), self.conditionals.up
        tokens = xp.zeros((n, count, spins), np.int8)
        log_psi = xp.zeros(n, np.complex128 if state.complex_amplitude else np.float64)
        memory: dict[str, list[tuple[Array, Array]]] = {}
        for t in range(count):
            edges = self._token(w, tokens, t, memory)
            logits, *phase = (edges[name][:, 0] for name in self.conditionals.inputs[:-1])
            allowed = None
            if up is not None:
                missing = up - (tokens[:, :t] > 0).sum(axis=(1, 2))
                allowed = reachable(xp, missing[:, None], (count - 1 - t) * spins, spins)
            log_p = log_softmax(logits, allowed)
            own = choose(xp.exp(log_p), uniforms[t])[:, None]
            tokens[:, t] = outcomes[own[:, 0]]
            log_psi += 0.5 * xp.take_along_axis(log_p, own, axis=1)[:, 0]
            if phase:
                log_psi += 1j * xp.take_along_axis(phase[0], own, axis=1)[:, 0]
        sigma = xp.empty((n, state.n_sites), np.int8)
        sigma[:, beside(state.sites, uniforms)] = tokens
        return sigma, log_psi

    def _token(
        self, w: Weights, tokens: Array, t: int, memory: dict[str, list[tuple[Array, Array]]]
    ) -> dict[str, Array]:
        """All edges at token ``t`` alone, (n, 1, channel), given the tokens before it; ``memory``: keys and values by brick."""
        dtype = next(iter(w.values())).dtype
        edges = {"tokens": tokens}
        for brick in self.psi.state.bricks:
            if isinstance(brick, LogConditionals):
                break
            x = tuple(edges[name] for name in brick.inputs)
            if isinstance(brick, ShiftTokens):
                before = tokens[:, max(0, t - 1) : t + 1]  # the token before, shifted to the last place
                y = brick.forward(w, before.astype(dtype))[:, -1:]
            elif isinstance(brick, PositionCode):
                y = x[0] + w[f"{brick.name}.code"][t]
            elif isinstance(brick, CausalAttention):
                y = _attend(brick, x, memory.setdefault(brick.name, []))
            else:
                y = brick.forward(w, *x)
            edges[brick.output] = y
        return edges


def _attend(brick: CausalAttention, x: tuple[Array, ...], memory: list[tuple[Array, Array]]) -> Array:
    """Attention of the newest token, x = q, k, v (n, 1, width), to itself and all in ``memory``, where it is put."""
    q, k, v = x
    xp = namespace(q)
    memory.append((brick.split(k), brick.split(v)))
    keys, values = (xp.concatenate(parts, axis=-2) for parts in zip(*memory, strict=True))
    scores = brick.split(q) @ keys.swapaxes(-1, -2) * q.dtype.type((brick.width // brick.heads) ** -0.5)
    weights = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (weights / weights.sum(axis=-1, keepdims=True)) @ values
    return mixed.swapaxes(-2, -3).reshape(q.shape)


def choose(p: Array, uniform: Array) -> Array:
    """Outcomes (n,), by p (n, outcome), from numbers (n,) in (0, 1]: the first at which the sum of p reaches them."""
    cumulative = p.cumsum(axis=1)
    return (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(axis=1)
