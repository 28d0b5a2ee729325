"""The autoregressive transformer, fused for the CPU: float32, equal to the bricks to rounding.

A block of B configurations goes through the network token after token, and keys and values of earlier tokens stay in the cache
of the core. What stands at a token is read from the configurations (log psi) or drawn (direct sampling): one kernel does both.
Everything is laid out as (channel, configuration): matrix products have B columns, all other loops run over configurations and
vectorise without reordering a sum, so a configuration has the same bits in every block and at every place of it; B is such
that the BLAS keeps to that too.

Two configurations that first differ at token t share all before it: keys and values up to token t, and the logits there (the
network has not seen the token yet). ``flipped`` evaluates the configurations next to a sample from the token where they part,
which is half of the work on average.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.blas import columns_alike, gemm
from ..engine.jit import EXACT, njit, numba, prange
from ..engine.vector import exp32, gelu32
from .causal import LogConditionals, outcome_spins
from .fused import ALIGNMENT
from .primitives import LAYER_NORM_EPSILON, Attention
from .state import State

_CACHE_BYTES = 1024 * 1024  # that the keys and values of a block may fill
_SMALLEST_BLOCK = 16
_CALL_FLOPS = 2e10  # in one call of a kernel, about half a second's: signals and progress wait for it
_NO_BOUND = -1

_f4 = np.float32
_EPSILON = _f4(LAYER_NORM_EPSILON)


class Weights(NamedTuple):
    """Parameters as the kernels want them, float32: width d, hidden h, tokens T, L blocks, O outcomes, P = 1 or 2 outputs."""

    start: np.ndarray  # (d,)
    patch: np.ndarray  # (spins, d)
    position: np.ndarray  # (T, d), with the bias of the embedding
    norm: np.ndarray  # (2 L + 1, 2, d): gain and bias of the norms before attention and feed-forward network, and of the last
    projection: np.ndarray  # (L, d, 3 d): queries / sqrt(d / heads), keys, values
    projection_bias: np.ndarray  # (L, 3 d)
    out: np.ndarray  # (L, d, d)
    out_bias: np.ndarray  # (L, d)
    up: np.ndarray  # (L, d, h)
    up_bias: np.ndarray  # (L, h)
    down: np.ndarray  # (L, h, d)
    down_bias: np.ndarray  # (L, d)
    head: np.ndarray  # (d, P O): logits, then phases
    head_bias: np.ndarray  # (P O,)
    heads: int
    bound: int  # spins that are up, _NO_BOUND where that is free
    outcomes: np.ndarray  # (O, spins) int8
    up_spins: np.ndarray  # (O,) int64: spins up in an outcome
    sites: np.ndarray  # (T, spins) int64


def packed(state: State, parameters: np.ndarray) -> Weights:
    """The parameters of an autoregressive state, stacked by block; the scale of the scores goes into the queries."""
    w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
    mixes = [brick for brick in state.bricks if isinstance(brick, Attention)]
    conditionals = next(brick for brick in state.bricks if isinstance(brick, LogConditionals))
    blocks, scale = range(1, len(mixes) + 1), (state.width // mixes[0].heads) ** -0.5
    outputs = ("logits", "phase") if state.complex_amplitude else ("logits",)
    norms = [f"{kind}_{i}.norm" for i in blocks for kind in ("attention", "mlp")] + ["head.norm"]

    def stacked(name: str, role: str) -> np.ndarray:
        return np.stack([w[f"{name.format(i)}.{role}"] for i in blocks])

    def projection(role: str) -> np.ndarray:
        parts = [stacked(f"attention_{{}}.{part}", role) for part in ("query", "key", "value")]
        return np.concatenate([parts[0] * scale, *parts[1:]], axis=-1)

    maps = [
        stacked(name, role)
        for name in ("attention_{}.out", "mlp_{}.up", "mlp_{}.down")
        for role in ("weight", "bias")
    ]
    arrays = (
        w["embedding.weight"][-1],
        w["embedding.weight"][:-1],
        w["position.code"] + w["embedding.bias"],
        np.stack([np.stack([w[f"{norm}.gain"], w[f"{norm}.bias"]]) for norm in norms]),
        projection("weight"),
        projection("bias"),
        *maps,
        np.concatenate([w[f"head.{name}.weight"] for name in outputs], axis=1),
        np.concatenate([w[f"head.{name}.bias"] for name in outputs]),
    )
    outcomes = outcome_spins(state.sites.shape[1])
    return Weights(  # type: ignore[call-arg]
        *(np.ascontiguousarray(a, dtype=np.float32) for a in arrays),  # type: ignore[arg-type]
        mixes[0].heads,
        _NO_BOUND if conditionals.up is None else conditionals.up,
        outcomes,
        (outcomes > 0).sum(axis=1),
        state.sites.astype(np.int64),
    )


class Scratch(NamedTuple):
    """Work space of a block of B configurations, and what is known of them token by token."""

    x: np.ndarray  # (d, B): the residual stream of one token
    h: np.ndarray  # (d, B)
    memory: np.ndarray  # (L, T, 3 d, B): queries, keys and values
    score: np.ndarray  # (T, B)
    u: np.ndarray  # (h, B)
    row: np.ndarray  # (2, B)
    head: np.ndarray  # (T, P O, B): logits and phases
    sigma: np.ndarray  # (B, n_sites) int8
    p: np.ndarray  # (O,) float64
    real: np.ndarray  # (T + 1, B) float64: log |psi| of the tokens before t
    phase: np.ndarray  # (T + 1, B) float64
    missing: np.ndarray  # (T + 1, B) int64: spins that must still be up among the tokens from t on


@njit()
def _scratch(w, block):
    tokens, d = w.position.shape
    f4 = np.float32
    return Scratch(
        np.zeros((d, block), f4),
        np.zeros((d, block), f4),
        np.zeros((len(w.out), tokens, 3 * d, block), f4),
        np.zeros((tokens, block), f4),
        np.zeros((w.up.shape[2], block), f4),
        np.zeros((2, block), f4),
        np.zeros((tokens, len(w.head_bias), block), f4),
        np.ones((block, w.sites.size), np.int8),
        np.zeros(len(w.outcomes)),
        np.zeros((tokens + 1, block)),
        np.zeros((tokens + 1, block)),
        np.full((tokens + 1, block), w.bound),
    )


@njit(fastmath=EXACT)
def _normalise(x, gain, bias, row, out):
    """out <- LayerNorm of the columns of x (channel, B); row (2, B) is scratch."""
    mean, scale = row[0], row[1]
    n = _f4(len(x))
    for b in range(mean.size):
        mean[b], scale[b] = _f4(0), _f4(0)
    for c in range(len(x)):
        own = x[c]
        for b in range(mean.size):
            mean[b] += own[b]
    for b in range(mean.size):
        mean[b] /= n
    for c in range(len(x)):
        own = x[c]
        for b in range(mean.size):
            scale[b] += (own[b] - mean[b]) * (own[b] - mean[b])
    for b in range(mean.size):
        scale[b] = _f4(1) / math.sqrt(scale[b] / n + _EPSILON)
    for c in range(len(x)):
        own, target, g, shift = x[c], out[c], gain[c], bias[c]
        for b in range(mean.size):
            target[b] = (own[b] - mean[b]) * scale[b] * g + shift


@njit(fastmath=EXACT)
def _add_bias(x, bias):
    """x (channel, B) += bias (channel,)."""
    for c in range(len(x)):
        row, own = x[c], bias[c]
        for b in range(row.size):
            row[b] += own


@njit(fastmath=EXACT)
def _attend(memory, t, heads, score, row, out):
    """out (d, B) = softmax_(j <= t)(q_t k_j) v_j in every head; memory (T, 3 d, B), score (T, B). 4 t d FLOPs per column."""
    d, dh = len(out), len(out) // heads
    top, total = row[0], row[1]
    for head in range(heads):
        for j in range(t + 1):
            own = score[j]
            for b in range(own.size):
                own[b] = _f4(0)
            for c in range(head * dh, (head + 1) * dh):
                query, key = memory[t, c], memory[j, d + c]
                for b in range(own.size):
                    own[b] += query[b] * key[b]
        for b in range(top.size):
            top[b], total[b] = score[0, b], _f4(0)
        for j in range(1, t + 1):
            own = score[j]
            for b in range(top.size):
                top[b] = max(top[b], own[b])
        for j in range(t + 1):
            own = score[j]
            for b in range(top.size):
                own[b] = exp32(own[b] - top[b])
                total[b] += own[b]
        for b in range(top.size):
            total[b] = _f4(1) / total[b]
        for c in range(head * dh, (head + 1) * dh):
            target = out[c]
            for b in range(target.size):
                target[b] = _f4(0)
            for j in range(t + 1):
                weight, value = score[j], memory[j, 2 * d + c]
                for b in range(target.size):
                    target[b] += weight[b] * value[b]
            for b in range(target.size):
                target[b] *= total[b]


@njit(fastmath=EXACT)
def _embed(w, s, t):
    """x <- embedding of the token before ``t`` (the start token for t = 0), at position ``t``."""
    for c in range(len(s.x)):
        row, own = s.x[c], w.position[t, c] + (w.start[c] if t == 0 else _f4(0))
        for b in range(row.size):
            row[b] = own
        if t > 0:
            for p in range(w.sites.shape[1]):
                site, weight = w.sites[t - 1, p], w.patch[p, c]
                for b in range(row.size):
                    row[b] += weight * _f4(s.sigma[b, site])


@njit(fastmath=EXACT)
def _network(w, s, t):
    """Logits and phases of token ``t`` from those before it, with their keys and values in ``s.memory``; adds its own."""
    _embed(w, s, t)
    for l in range(len(w.out)):
        first, second = w.norm[2 * l], w.norm[2 * l + 1]
        _normalise(s.x, first[0], first[1], s.row, s.h)
        own = s.memory[l, t]
        gemm(True, False, 1.0, w.projection[l], s.h, 0.0, own)
        _add_bias(own, w.projection_bias[l])
        _attend(s.memory[l], t, w.heads, s.score, s.row, s.h)
        gemm(True, False, 1.0, w.out[l], s.h, 1.0, s.x)
        _add_bias(s.x, w.out_bias[l])
        _normalise(s.x, second[0], second[1], s.row, s.h)
        gemm(True, False, 1.0, w.up[l], s.h, 0.0, s.u)
        for c in range(len(s.u)):
            row, bias = s.u[c], w.up_bias[l, c]
            for b in range(row.size):
                row[b] = gelu32(row[b] + bias)
        gemm(True, False, 1.0, w.down[l], s.u, 1.0, s.x)
        _add_bias(s.x, w.down_bias[l])
    last = w.norm[2 * len(w.out)]
    _normalise(s.x, last[0], last[1], s.row, s.h)
    gemm(True, False, 1.0, w.head, s.h, 0.0, s.head[t])
    _add_bias(s.head[t], w.head_bias)


@njit(fastmath=EXACT)
def _exponentials(w, s, t, b):
    """s.p <- exp(a - max a) of the outcomes that are possible at token ``t`` of configuration ``b``, else 0; max a, sum."""
    left = (len(w.sites) - 1 - t) * w.sites.shape[1]
    bounded, possible = w.bound != _NO_BOUND, False
    if bounded:
        for o in range(s.p.size):
            after = s.missing[t, b] - w.up_spins[o]
            possible = possible or (after >= 0 and after <= left)
    top = -math.inf
    for o in range(s.p.size):
        after = s.missing[t, b] - w.up_spins[o]
        a = np.float64(s.head[t, o, b])
        s.p[o] = a if not possible or (after >= 0 and after <= left) else -math.inf
        if s.p[o] > top or math.isnan(a):
            top = s.p[o]
    total = 0.0
    for o in range(s.p.size):
        s.p[o] = math.exp(s.p[o] - top)
        total += s.p[o]
    return top, total


@njit(fastmath=EXACT)
def _drawn(p, total, uniform):
    """The first outcome at which the sum of p reaches ``uniform`` of the total."""
    cumulative = 0.0
    for o in range(p.size):
        cumulative += p[o]
        if cumulative >= uniform * total:
            return o
    return p.size - 1


@njit(fastmath=EXACT)
def _conditionals(w, s, t, uniforms):
    """Token ``t`` is drawn if there are numbers (B,) for it, else read; its probability and phase are added."""
    spins, outcomes = w.sites.shape[1], s.p.size
    for b in range(len(s.sigma)):
        top, total = _exponentials(w, s, t, b)
        if uniforms.size > 0:
            own = _drawn(s.p, total, uniforms[b])
            for p in range(spins):
                s.sigma[b, w.sites[t, p]] = w.outcomes[own, p]
        else:
            own = 0
            for p in range(spins):
                own += (1 if s.sigma[b, w.sites[t, p]] > 0 else 0) << p
        log_p = -math.inf
        if s.p[own] != 0 or math.isnan(total):
            log_p = np.float64(s.head[t, own, b]) - top - math.log(total)
        s.real[t + 1, b] = s.real[t, b] + 0.5 * log_p
        s.missing[t + 1, b] = s.missing[t, b] - w.up_spins[own]
        if len(w.head_bias) > outcomes:
            s.phase[t + 1, b] = s.phase[t, b] + np.float64(s.head[t, outcomes + own, b])


@njit()
def _tokens(w, s, uniforms):
    """All tokens of a block, one after the other; ``uniforms`` (T, B) draws them, (T, 0) reads them."""
    for t in range(len(w.sites)):
        _network(w, s, t)
        _conditionals(w, s, t, uniforms[t])


@njit(parallel=True)
def forward(w, sigma, uniforms, real, phase, block, pieces):
    """log psi, real and phase (n,) float64, of configurations sigma (n, n_sites) int8: read, or drawn with ``uniforms`` (T, n).

    Per configuration 24 T d^2 FLOPs of products (hidden width 4 d) and 2 T^2 d of attention in each of the L blocks. Memory
    traffic: the configuration and log psi; 12 L T d bytes of keys and values per configuration stay in the cache.
    """
    n, tokens = len(sigma), len(w.sites)
    blocks, drawing = (n + block - 1) // block, uniforms.shape[1] > 0
    for piece in prange(pieces):
        s = _scratch(w, block)
        own = np.ones((tokens, block if drawing else 0))
        for ib in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            start = ib * block
            count = min(block, n - start)
            for b in range(count):
                if drawing:
                    for t in range(tokens):
                        own[t, b] = uniforms[t, start + b]
                else:
                    _copy(sigma[start + b], s.sigma[b])
            _tokens(w, s, own)
            for b in range(count):
                if drawing:
                    _copy(s.sigma[b], sigma[start + b])
                real[start + b], phase[start + b] = s.real[tokens, b], s.phase[tokens, b]


@njit()
def _copy(x, y):
    """y <- x; an assignment of slices would become a parallel loop inside a parallel one."""
    for i in range(x.size):
        y[i] = x[i]


@njit(fastmath=EXACT)
def _part(w, base, s, origin, t):
    """Everything of configuration ``b`` before it parts, at token ``t``, is that of configuration ``origin[b]`` of ``base``."""
    d = len(s.x)
    for l in range(len(w.out)):
        for j in range(t + 1):
            for c in range(d, 3 * d):
                row, source = s.memory[l, j, c], base.memory[l, j, c]
                for b in range(origin.size):
                    row[b] = source[origin[b]]
    for o in range(s.head.shape[1]):
        for b in range(origin.size):
            s.head[t, o, b] = base.head[t, o, origin[b]]
    for b in range(origin.size):
        s.real[t, b], s.phase[t, b] = base.real[t, origin[b]], base.phase[t, origin[b]]
        s.missing[t, b] = base.missing[t, origin[b]]


@njit()
def _flipped_of_group(w, base, s, signs, flips, origin, first, real, phase):
    """The pairs of one group of samples, read in ``base``: see ``flipped``; flips, origin, first, real, phase (pairs,)."""
    tokens, block = len(w.sites), len(s.sigma)
    nothing = np.empty(0)
    own = np.zeros(block, np.int64)
    for start in range(0, flips.size, block):
        count, parted = min(block, flips.size - start), first[start]
        for b in range(count):
            own[b] = origin[start + b]
            spins, sign = base.sigma[own[b]], signs[flips[start + b]]
            for i in range(spins.size):
                s.sigma[b, i] = spins[i] * sign[i]
        _part(w, base, s, own, parted)
        _conditionals(w, s, parted, nothing)
        for t in range(parted + 1, tokens):
            _network(w, s, t)
            _conditionals(w, s, t, nothing)
        for b in range(count):
            real[start + b], phase[start + b] = s.real[tokens, b], s.phase[tokens, b]


@njit(parallel=True)
def flipped(w, sigma, signs, flips, origin, first, group, real, phase, block):
    """log psi, real and phase (pairs,) float64, of the configurations next to samples sigma (groups B, n_sites) int8.

    Pair p is sample origin[p] of its group with signs[flips[p]] applied; it parts from the sample at token first[p], which
    rises within a group. The pairs of group g are group[g] ... group[g + 1] - 1. A block of pairs costs the tokens behind the
    place where its first pair parts, and 16 d bytes copied per pair and network block for every token before.
    """
    for g in prange(len(group) - 1):
        base, s = _scratch(w, block), _scratch(w, block)
        for b in range(block):
            _copy(sigma[g * block + b], base.sigma[b])
        _tokens(w, base, np.empty((len(w.sites), 0)))
        own = slice(group[g], group[g + 1])
        _flipped_of_group(w, base, s, signs, flips[own], origin[own], first[own], real[own], phase[own])


class FusedAutoregressive:
    """The fast twin of the bricks for one set of float32 parameters, with the abilities ``Draws`` and ``Flips``."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.state, self.weights = state, packed(state, parameters)
        memory = 12 * len(self.weights.out) * state.n_tokens * state.width  # bytes per configuration
        fitting = max(_SMALLEST_BLOCK, min(ALIGNMENT, _CACHE_BYTES // memory))
        w = self.weights
        shapes = tuple(x.shape[-2:] for x in (w.projection, w.out, w.up, w.down, w.head))
        self.block = columns_alike(shapes, 1 << (fitting.bit_length() - 1))

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) of configurations (n, n_sites) int8."""
        return self._run(np.ascontiguousarray(sigma), np.empty((self.state.n_tokens, 0)))

    def draw(self, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``states.fused.Draws``."""
        sigma = np.empty((uniforms.shape[1], self.state.n_sites), np.int8)
        return sigma, self._run(sigma, np.ascontiguousarray(uniforms))

    def log_psi_flipped(self, sigma: np.ndarray, signs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """log psi (pairs,) of configurations next to ``sigma``: see ``states.fused.Flips``."""
        result, size = [], self._at_once()
        for start in range(0, len(pairs), size):
            result.append(self._flipped(np.ascontiguousarray(sigma), signs, pairs[start : start + size]))
        return np.concatenate(result) if result else self._joined(np.empty(0), np.empty(0))

    def _flipped(self, sigma: np.ndarray, signs: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        samples, number = np.unique(pairs[:, 0], return_inverse=True)
        group, slot = np.divmod(number.reshape(-1), self.block)
        changed: np.ndarray = np.any(signs[:, self.weights.sites] < 0, axis=2)  # (flip, token)
        parted = np.where(changed.any(axis=1), changed.argmax(axis=1), self.state.n_tokens - 1)
        first = parted[pairs[:, 1]]
        order = np.lexsort((first, group))
        groups = -(-len(samples) // self.block)
        ends = np.searchsorted(group[order], np.arange(groups + 1))
        padded = np.ones((groups * self.block, sigma.shape[1]), np.int8)
        padded[: len(samples)] = sigma[samples]
        real, phase = np.empty(len(pairs)), np.zeros(len(pairs))
        flipped(
            self.weights, padded, np.ascontiguousarray(signs), pairs[order, 1], slot[order], first[order], ends,
            real, phase, self.block,
        )  # fmt: skip
        values = np.empty(len(pairs), np.complex128 if self.state.complex_amplitude else np.float64)
        values[order] = self._joined(real, phase)
        return values

    def _joined(self, real: np.ndarray, phase: np.ndarray) -> np.ndarray:
        return real + 1j * phase if self.state.complex_amplitude else real

    def _at_once(self) -> int:
        """Configurations in one call of a kernel: a multiple of the block."""
        flops = 2.0 * self.state.n_parameters * self.state.n_tokens
        return max(1, int(_CALL_FLOPS / flops) // ALIGNMENT) * ALIGNMENT

    def _run(self, sigma: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        n, size = len(sigma), self._at_once()
        real, phase = np.empty(n), np.zeros(n)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            blocks = -(-len(sigma[rows]) // self.block)
            forward(
                self.weights, sigma[rows], np.ascontiguousarray(uniforms[:, rows]), real[rows], phase[rows],
                self.block, min(blocks, 4 * numba.get_num_threads()),
            )  # fmt: skip
        return self._joined(real, phase)
