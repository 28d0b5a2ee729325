"""The residual convolutional network, fused for the CPU: float32, equal to the bricks of ``cnn.py`` to rounding.

One configuration at a time goes from its spins to log psi without leaving the first- or second-level cache. A convolution
gathers the windows of up to 64 tokens into rows, neighbours in memory in one stretch, and is one product of the BLAS then. What
does not change the result is not computed:

- LayerNorm gains and shifts are folded into the convolutions behind them;
- a window of up to 10 spins has few states, so what the first convolution of the first block makes of it is looked up: a sum of
  K rows for each token in place of 2 K d^2 FLOPs (on periodic lattices; else the spins are embedded one by one);
- after the last block only the sum over tokens is wanted, and a convolution summed over a periodic lattice is one small map.

The bits of a configuration depend neither on its neighbours nor on the number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..engine.blas import gemm
from ..engine.copies import copy_rows, copy_stretch
from ..engine.jit import njit, prange
from ..engine.vector import gelu32
from .primitives import Neighbours
from .shared_cpu import log_modulus_of_cosh, normalise, phase_of_cosh, propose
from .state import State

_STRIP = 64  # tokens whose windows are gathered at a time
_TABLE_SPINS = 10  # in a window, at most, for a table: 1024 states
_CONFIGURATIONS = 16  # a thread takes at a time
_CALL_FLOPS = 5e10  # in one call of a kernel, about half a second's: signals and progress wait for it

_f4 = np.float32


class Weights(NamedTuple):
    """Parameters as the kernels read them. T tokens, K places in a window, P spins in it, d channels, L blocks."""

    windows: np.ndarray  # (T, K) int64, T for a place outside
    sites: np.ndarray  # (T, P) int64, N for a place outside
    runs: np.ndarray  # (many, 3) int64: numbers to copy from a stream, from, to and how many
    run_starts: np.ndarray  # (strips + 1,) int64
    embed: np.ndarray  # (P, d)
    embed_bias: np.ndarray  # (d,)
    first: np.ndarray  # (L, K d, d), gain of the LayerNorm before included
    first_bias: np.ndarray  # (L, T, d), its shift included where there are neighbours
    second: np.ndarray  # (L, K d, d)
    second_bias: np.ndarray  # (L, d)
    last: (
        np.ndarray
    )  # (d, d): the last convolution summed over its places; (K d, d) as it is where windows reach outside
    stream: np.ndarray  # (2^P, d): embedding of a window; empty without a table
    term: np.ndarray  # (K, 2^P, d): what a window at a place adds to the first convolution
    head: np.ndarray  # (1 or 2, d, d), gain of the LayerNorm before included
    head_bias: np.ndarray  # (1 or 2, d)
    head_gain: np.ndarray  # (1 or 2, d); empty for a local head
    head_shift: np.ndarray  # (1 or 2, d)


class Scratch(NamedTuple):
    """Work space of one configuration."""

    x: np.ndarray  # (T, d): the residual stream
    h: np.ndarray  # (T + 1, d), the last row zero: what a convolution reads
    g: np.ndarray  # (T + 1, d), the same
    rows: np.ndarray  # (strip, K d)
    spins: np.ndarray  # (N + 1,) float32, the last one zero
    code: np.ndarray  # (T,) int64
    summed: np.ndarray  # (1, d)
    unit: np.ndarray  # (1, d)
    part: np.ndarray  # (3, 1, d)
    channel: np.ndarray  # (3, d)
    places: np.ndarray  # (fan_in of ``last``,)


@njit()
def _scratch(w, n_sites):
    tokens, d = w.first_bias.shape[1:]
    return Scratch(
        np.zeros((tokens, d), np.float32),
        np.zeros((tokens + 1, d), np.float32),
        np.zeros((tokens + 1, d), np.float32),
        np.zeros((min(tokens, _STRIP), w.first.shape[1]), np.float32),
        np.zeros(n_sites + 1, np.float32),
        np.zeros(tokens, np.int64),
        np.zeros((1, d), np.float32),
        np.zeros((1, d), np.float32),
        np.zeros((3, 1, d), np.float32),
        np.zeros((3, d), np.float32),
        np.zeros(len(w.last), np.float32),
    )


@njit()
def _convolve(w, x, weight, rows, keep, out):
    """out (T, d) <- convolution of x (T + 1, d) with weight (K d, d) + keep out, in strips of tokens. 2 T K d^2 FLOPs."""
    source, target = x.reshape(-1), rows.reshape(-1)
    for strip in range(len(w.run_starts) - 1):
        for r in range(w.run_starts[strip], w.run_starts[strip + 1]):
            copy_stretch(source, w.runs[r, 0], target, w.runs[r, 1], w.runs[r, 2])
        first = strip * _STRIP
        last = min(len(out), first + _STRIP)
        gemm(False, False, 1.0, rows[: last - first], weight, keep, out[first:last])


@njit()
def _embed(w, sigma, s):
    """x <- embedding of sigma (N,)."""
    for i in range(sigma.size):
        s.spins[i] = _f4(sigma[i])
    for t in range(len(s.x)):
        row, sites = s.x[t], w.sites[t]
        for c in range(row.size):
            row[c] = w.embed_bias[c]
        for p in range(sites.size):
            spin, weight = s.spins[sites[p]], w.embed[p]
            for c in range(row.size):
                row[c] += spin * weight[c]


@njit()
def _look_up(w, sigma, s):
    """x <- embedding of sigma (N,), g <- first convolution of its LayerNorm without bias, from the table. T K d additions."""
    tokens, d = s.x.shape
    for t in range(tokens):
        code, sites = 0, w.sites[t]
        for p in range(sites.size):
            code = 2 * code + (1 if sigma[sites[p]] > 0 else 0)
        s.code[t] = code
        row, own = s.x[t], w.stream[code]
        for c in range(d):
            row[c] = own[c]
    for t in range(tokens):
        row, window = s.g[t], w.windows[t]
        for c in range(d):
            row[c] = _f4(0)
        for k in range(window.size):
            term = w.term[k, s.code[window[k]]]
            for c in range(d):
                row[c] += term[c]


@njit()
def _block(w, l, s, known, only_sum):
    """x <- x + block ``l`` of x, its first convolution ``known`` in g; with ``only_sum`` summed over tokens, in ``summed``."""
    tokens, d = s.x.shape
    if not known:
        normalise(s.x, s.h[:tokens])
        _convolve(w, s.h, w.first[l], s.rows, 0.0, s.g[:tokens])
    g, bias = s.g[:tokens].reshape(-1), w.first_bias[l].reshape(-1)
    for c in range(g.size):
        g[c] = gelu32(g[c] + bias[c])
    if only_sum:
        _sum_tokens(s.x, s.summed[0])
        _add_last(w, l, s)
        return
    _convolve(w, s.g, w.second[l], s.rows, 1.0, s.x)
    for t in range(tokens):
        row = s.x[t]
        for c in range(d):
            row[c] += w.second_bias[l, c]


@njit()
def _sum_tokens(x, total):
    for c in range(total.size):
        total[c] = _f4(0)
    for t in range(len(x)):
        row = x[t]
        for c in range(total.size):
            total[c] += row[c]


@njit()
def _add_last(w, l, s):
    """summed += the second convolution of the last block, summed over tokens."""
    tokens, d = s.x.shape
    if s.places.size == d:
        _sum_tokens(s.g[:tokens], s.places)
    else:
        for c in range(s.places.size):
            s.places[c] = _f4(0)
        for t in range(tokens):
            for k in range(w.windows.shape[1]):
                row, total = s.g[w.windows[t, k]], s.places[k * d : (k + 1) * d]
                for c in range(d):
                    total[c] += row[c]
    total = s.summed[0]
    for c in range(d):
        total[c] += _f4(tokens) * w.second_bias[l, c]
    for i in range(s.places.size):
        row = w.last[i]
        for c in range(d):
            total[c] += s.places[i] * row[c]


@njit()
def _head(w, s, phase):
    """(log|psi|, phase of psi) from ``summed``, or from x by a local head; the phase only if it is wanted."""
    if not len(w.head_gain):
        return _local_head(w, s, phase)
    d = s.unit.shape[1]
    normalise(s.summed, s.unit)
    for p in range(len(w.head)):
        row = s.summed[0]
        for c in range(d):
            row[c] = w.head_bias[p, c]
        for i in range(d):
            for c in range(d):
                row[c] += s.unit[0, i] * w.head[p, i, c]
        normalise(s.summed, s.part[p])
        for c in range(d):
            s.part[p, 0, c] = s.part[p, 0, c] * w.head_gain[p, c] + w.head_shift[p, c]
    a, b, twice = s.part[0, 0], s.part[1, 0], s.part[2, 0]
    for c in range(d):
        twice[c] = _f4(2) * b[c]
    real = log_modulus_of_cosh(a, twice, s.channel[0])
    return real, phase_of_cosh(a, b, s.channel) if phase and len(w.head) == 2 else 0.0


@njit()
def _local_head(w, s, phase):
    """The same, a term for every token: 4 T d^2 FLOPs with a phase. Overwrites h and g."""
    tokens, d = s.x.shape
    gemm(False, False, 1.0, s.x, w.head[0], 0.0, s.h[:tokens])
    if len(w.head) == 2:
        gemm(False, False, 1.0, s.x, w.head[1], 0.0, s.g[:tokens])
    real, imaginary, twice = 0.0, 0.0, s.part[2, 0]
    for t in range(tokens):
        a, b = s.h[t], s.part[1, 0]
        for c in range(d):
            a[c] += w.head_bias[0, c]
        if len(w.head) == 2:
            for c in range(d):
                b[c] = s.g[t, c] + w.head_bias[1, c]
                twice[c] = _f4(2) * b[c]
        real += log_modulus_of_cosh(a, twice, s.channel[0])
        if phase and len(w.head) == 2:
            imaginary += phase_of_cosh(a, b, s.channel)
    return real, imaginary


@njit()
def _log_psi(w, sigma, s, phase):
    """(log|psi|, phase) of one configuration sigma (N,)."""
    known = len(w.stream) > 0
    if known:
        _look_up(w, sigma, s)
    else:
        _embed(w, sigma, s)
    depth = len(w.first)
    for l in range(depth):
        _block(w, l, s, known and l == 0, l == depth - 1 and len(w.head_gain) > 0)
    return _head(w, s, phase)


@njit(parallel=True)
def amplitudes(w, sigma, real, imaginary):
    """log psi of configurations sigma (n, N) int8: real, imaginary (n,) float64.

    T K (4 L - 2) d^2 FLOPs each, 2 T K d^2 fewer with a table and 2 T K d^2 more where windows reach outside; T K d numbers are
    gathered for every product. Memory traffic: the spins in, log psi out.
    """
    n = len(sigma)
    for piece in prange((n + _CONFIGURATIONS - 1) // _CONFIGURATIONS):
        s = _scratch(w, sigma.shape[1])
        for b in range(piece * _CONFIGURATIONS, min(n, (piece + 1) * _CONFIGURATIONS)):
            real[b], imaginary[b] = _log_psi(w, sigma[b], s, True)


@njit(parallel=True)
def streams(w, sigma, depth, stream):
    """Residual stream (n, T, d) after ``depth`` blocks of configurations sigma (n, N)."""
    n = len(sigma)
    for piece in prange((n + _CONFIGURATIONS - 1) // _CONFIGURATIONS):
        s = _scratch(w, sigma.shape[1])
        for b in range(piece * _CONFIGURATIONS, min(n, (piece + 1) * _CONFIGURATIONS)):
            _embed(w, sigma[b], s)
            for l in range(depth):
                _block(w, l, s, False, False)
            copy_rows(s.x, stream[b])


@njit(parallel=True)
def amplitudes_from(w, stream, depth, real, imaginary):
    """log psi when the stream after ``depth`` blocks is ``stream`` (n, T, d): real, imaginary (n,) float64."""
    n = len(stream)
    for piece in prange((n + _CONFIGURATIONS - 1) // _CONFIGURATIONS):
        s = _scratch(w, 0)
        for b in range(piece * _CONFIGURATIONS, min(n, (piece + 1) * _CONFIGURATIONS)):
            copy_rows(stream[b], s.x)
            _sum_tokens(s.x, s.summed[0])
            for l in range(depth, len(w.first)):
                _block(w, l, s, False, l == len(w.first) - 1 and len(w.head_gain) > 0)
            real[b], imaginary[b] = _head(w, s, True)


@njit(parallel=True)
def walk(w, sigma, real, first, length, threshold, accepted):
    """Metropolis proposals of ``states.fused.Walks.walk`` on log|psi| alone; first, length, threshold (chains, rows)."""
    for chain in prange(len(sigma)):
        s, spins, proposed = _scratch(w, sigma.shape[1]), sigma[chain], np.empty(sigma.shape[1], np.int8)
        accepted[chain] = 0
        for r in range(first.shape[1]):
            start, extent = first[chain, r], length[chain, r]
            if extent < 0 and spins[start] == spins[-extent - 1]:
                continue
            for i in range(spins.size):
                proposed[i] = spins[i]
            propose(proposed, start, extent)
            fresh = _log_psi(w, proposed, s, False)[0]
            ratio = 2 * (fresh - real[chain])
            if threshold[chain, r] < ratio:
                accepted[chain] += 1
                real[chain] = fresh
                for i in range(spins.size):
                    spins[i] = proposed[i]
            elif np.isnan(ratio):
                real[chain] = ratio


def _runs(windows: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """``Weights.runs`` and ``run_starts``: tokens that are neighbours in memory and in a window are copied in one stretch."""
    runs: list[list[int]] = []
    starts = [0]
    for first in range(0, len(windows), _STRIP):
        for r, window in enumerate(windows[first : first + _STRIP].tolist()):
            before = -2
            for k, token in enumerate(window):
                if token == before + 1:
                    runs[-1][2] += d
                else:
                    runs.append([token * d, (r * len(window) + k) * d, d])
                before = token
        starts.append(len(runs))
    return np.asarray(runs, np.int64), np.asarray(starts, np.int64)


def pack(state: State, parameters: np.ndarray) -> Weights:
    """Parameters of the bricks as the kernels read them, folded in double precision."""
    w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
    (embedding,) = (brick for brick in state.bricks if brick.name == "window")
    assert isinstance(embedding, Neighbours)
    windows, d = embedding.windows, state.width
    (tokens, places), basis = windows.shape, state.sites.shape[1]
    blocks = range(1, sum(name.endswith(".first.weight") for name in w) + 1)
    padded = np.concatenate([state.sites, np.full((1, basis), state.n_sites)])
    inside = (windows < tokens).astype(np.float64)
    gain = [
        w[f"conv_{i}.norm.gain"][:, None] * w[f"conv_{i}.first.weight"].reshape(places, d, d) for i in blocks
    ]
    shift = [
        inside
        @ np.einsum("c,kco->ko", w[f"conv_{i}.norm.bias"], w[f"conv_{i}.first.weight"].reshape(places, d, d))
        for i in blocks
    ]
    last = w[f"conv_{len(blocks)}.second.weight"]
    stream, term = np.zeros((0, d)), np.zeros((places, 0, d))
    if not embedding.outside:
        last = last.reshape(places, d, d).sum(axis=0)
        if places * basis <= _TABLE_SPINS:
            stream, term = _table(w["embedding.weight"], w["embedding.bias"], gain[0])
    parts = ["real", "imaginary"] if state.complex_amplitude else ["real"]
    arrays: dict[str, Any] = {
        "embed": w["embedding.weight"],
        "embed_bias": w["embedding.bias"],
        "first": np.stack(gain).reshape(len(blocks), places * d, d),
        "first_bias": np.stack([w[f"conv_{i}.first.bias"] + s for i, s in zip(blocks, shift, strict=True)]),
        "second": np.stack([w[f"conv_{i}.second.weight"] for i in blocks]),
        "second_bias": np.stack([w[f"conv_{i}.second.bias"] for i in blocks]),
        "last": last,
        "stream": stream,
        "term": term,
        **_head_arrays(w, parts, d),
    }
    single = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in arrays.items()}
    runs, run_starts = _runs(windows, d)
    sites = padded[windows].reshape(tokens, -1)
    return Weights(windows=windows, sites=sites, runs=runs, run_starts=run_starts, **single)


def _head_arrays(w: dict[str, np.ndarray], parts: list[str], d: int) -> dict[str, np.ndarray]:
    weight, bias = (np.stack([w[f"head.{part}.{role}"] for part in parts]) for role in ("weight", "bias"))
    if "head.norm.gain" not in w:
        none = np.zeros((0, d))
        return {"head": weight, "head_bias": bias, "head_gain": none, "head_shift": none}
    return {
        "head": w["head.norm.gain"][:, None] * weight,
        "head_bias": w["head.norm.bias"] @ weight + bias,
        "head_gain": np.stack([w[f"head.{part}_norm.gain"] for part in parts]),
        "head_shift": np.stack([w[f"head.{part}_norm.bias"] for part in parts]),
    }


def _table(weight: np.ndarray, bias: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embedding (2^P, d) of every window, and what it adds to the first convolution at every place (K, 2^P, d)."""
    spins = len(weight)
    states = 2.0 * (np.arange(2**spins)[:, None] >> np.arange(spins)[::-1] & 1) - 1
    stream = states @ weight + bias
    unit = np.empty(stream.shape, np.float32)
    normalise(stream.astype(np.float32), unit)
    return stream, unit.astype(np.float64) @ first


class FusedCnn:
    """The fast twin of the bricks for one set of float32 parameters, with the abilities ``Streams`` and ``Walks``."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.state, self.weights = state, pack(state, parameters)

    def _at_once(self) -> int:
        """Configurations in one call of a kernel."""
        flops = 2.0 * self.state.n_parameters * self.state.n_tokens
        return max(1, int(_CALL_FLOPS / flops) // _CONFIGURATIONS) * _CONFIGURATIONS

    def _amplitudes(self, n: int, kernel: Any) -> np.ndarray:
        real, imaginary = np.empty(n), np.empty(n)
        for start in range(0, n, self._at_once()):
            rows = slice(start, start + self._at_once())
            kernel(rows, real[rows], imaginary[rows])
        return real + 1j * imaginary if self.state.complex_amplitude else real

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) of configurations (n, n_sites) int8."""
        sigma = np.ascontiguousarray(sigma)
        return self._amplitudes(len(sigma), lambda rows, *out: amplitudes(self.weights, sigma[rows], *out))

    def _depth_of(self, layer: str) -> int:
        return 0 if layer == "embedding" else int(layer.removeprefix("residual_"))

    def stream_at(self, sigma: np.ndarray, layer: str) -> np.ndarray:
        """Residual stream (n, token, width) at ``embedding`` or ``residual_i``."""
        stream = np.empty((len(sigma), self.state.n_tokens, self.state.width), np.float32)
        sigma, size = np.ascontiguousarray(sigma), self._at_once()
        for start in range(0, len(sigma), size):
            rows = slice(start, start + size)
            streams(self.weights, sigma[rows], self._depth_of(layer), stream[rows])
        return stream

    def log_psi_from(self, layer: str, stream: np.ndarray) -> np.ndarray:
        """log psi (n,) when the residual stream at ``layer`` is ``stream`` (n, token, width)."""
        stream, depth = np.ascontiguousarray(stream, dtype=np.float32), self._depth_of(layer)
        return self._amplitudes(
            len(stream), lambda rows, *out: amplitudes_from(self.weights, stream[rows], depth, *out)
        )

    def walk(self, sigma, log_psi, first, length, threshold, ahead=True) -> int:
        """Metropolis proposals, see ``states.fused.Walks``. A chain works alone, so none is evaluated ``ahead``."""
        real, accepted = np.ascontiguousarray(log_psi.real), 0
        rows = max(1, self._at_once() // max(1, len(sigma)))
        each = np.empty(len(sigma), np.int64)
        for start in range(0, len(first), rows):
            moves = (np.ascontiguousarray(a[start : start + rows].T) for a in (first, length, threshold))
            walk(self.weights, sigma, real, *moves, each)
            accepted += int(each.sum())
        log_psi[...] = np.where(np.isnan(real), np.nan, self.log_psi(sigma))
        return accepted
