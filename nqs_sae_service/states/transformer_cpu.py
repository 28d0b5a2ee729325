"""The transformer, fused for the CPU: float32, equal to the bricks of ``transformer.py`` to rounding.

A block of configurations stays in the second-level cache from the embedding to log psi: matrix products go to the BLAS (one
thread per block, blocks in parallel), everything between is a vectorised loop. What does not change the result is not computed:

- LayerNorm gains, biases of values and keys, and the biases written to the residual stream are folded into neighbouring maps;
- a patch of b spins has 2^b states, so what positional attention makes of it in the first block is looked up (``Table``);
- after the last block only the sum over tokens is wanted, so its last map acts once on the sum of the hidden units;
- configurations that differ from another one in a few tokens start from the first attention of that one.

Every block has the same number of rows, the last one padded: the bits depend on a configuration's place in its block (the BLAS
treats rows differently), but neither on its neighbours nor on the number of threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.blas import gemm
from ..engine.jit import njit, numba, prange
from ..engine.vector import cos_sin32, exp32, gelu32
from .fused import ALIGNMENT
from .primitives import LAYER_NORM_EPSILON, Attention, Mix, circulant
from .state import State

_CACHE_BYTES = 400 * 1024  # share of a core's second-level cache that a block may fill
# Blocks of configurations are powers of two up to ALIGNMENT, so that aligned calls always cut at block boundaries.
_HIDDEN_ROWS = 64  # of the feed-forward network at a time: hidden units stay in the first-level cache
_TABLE_BYTES = 512 * 1024  # of a table that is looked up: more would leave the second-level cache
_LARGEST_PATCH = 8  # spins of a patch whose states are tabulated
_AHEAD = 8  # proposals of a chain in a block of few chains: more are rarely needed
# Blocks are handed to threads in this many pieces per thread, so that a slow core does not hold up the rest.
_PIECES_PER_THREAD = 16
_CALL_FLOPS = 5e10  # in one call of a kernel, about half a second's: signals and progress wait for it

_f4 = np.float32
_EPSILON = _f4(LAYER_NORM_EPSILON)


class Weights(NamedTuple):
    """Parameters as the kernels want them, float32: width d, hidden h, tokens T, L blocks, LayerNorms folded."""

    patch: np.ndarray  # (patch, d)
    position: np.ndarray  # (T, d): embedding bias, position code
    projection: np.ndarray  # (L, d, d): values; (L, d, 3 d): queries, keys, values side by side
    query_bias: np.ndarray  # (L, d)
    pair: (
        np.ndarray
    )  # (L, T, T, d): positional weights spread over channels; (L, heads, T, T): biases of the scores
    out: np.ndarray  # (L, d, d)
    out_bias: np.ndarray  # (L, T, d), with what the bias of the values turns into
    up: np.ndarray  # (L, d, h)
    up_bias: np.ndarray  # (L, h)
    down: np.ndarray  # (L, h, d)
    down_bias: np.ndarray  # (L, d)
    head: np.ndarray  # (1 or 2, d, d): real, imaginary part
    head_bias: np.ndarray
    head_gain: np.ndarray
    head_shift: np.ndarray  # (1 or 2, d)
    heads: int


class Table(NamedTuple):
    """What token j in state c of its patch adds to the stream of token i after positional attention in the first block."""

    term: np.ndarray  # (pair, 2^b, d), or nothing
    place: np.ndarray  # (T, T) int64: the pair of i and j


class Scratch(NamedTuple):
    """Work space of a block of B configurations. Token t of configuration b is row t B + b."""

    x: np.ndarray  # (rows, d): the residual stream
    h: np.ndarray  # (rows, d)
    v: np.ndarray  # (rows, d): values; (3 d, rows): queries, keys and values, transposed
    mixed: np.ndarray  # (rows, d), or (d, rows) after the transposed values
    u: np.ndarray  # (_HIDDEN_ROWS, h)
    hidden_sum: np.ndarray  # (block, h)
    summed: np.ndarray  # (block, d)
    unit: np.ndarray  # (block, d)
    part: np.ndarray  # (2, block, d)
    score: np.ndarray  # (T + 2, block)
    channel: np.ndarray  # (3, d)


@njit()
def _scratch(w, block):
    tokens, d = w.position.shape
    rows, hidden = block * tokens, w.up.shape[2]
    full = w.projection.shape[2] > d
    return Scratch(
        np.zeros((rows, d), np.float32),
        np.zeros((rows, d), np.float32),
        np.zeros((3 * d, rows) if full else (rows, d), np.float32),
        np.zeros((d, rows) if full else (rows, d), np.float32),
        np.zeros((min(rows, _HIDDEN_ROWS), hidden), np.float32),
        np.zeros((block, hidden), np.float32),
        np.zeros((block, d), np.float32),
        np.zeros((block, d), np.float32),
        np.zeros((2, block, d), np.float32),
        np.zeros((tokens + 2, block), np.float32),
        np.zeros((3, d), np.float32),
    )


@njit()
def _normalise(x, out):
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
def _add_bias(x, bias):
    """x (rows, d) += bias (1, d), or bias (token, d) to as many rows of each token."""
    each = len(x) // len(bias)
    for r in range(len(x)):
        row, own = x[r], bias[r // each]
        for c in range(row.size):
            row[c] += own[c]


@njit()
def _copy(x, y):
    """y <- x, rows of a stream; an assignment of slices would become a parallel loop inside a parallel one."""
    for r in range(len(x)):
        for c in range(x.shape[1]):
            y[r, c] = x[r, c]


@njit()
def _mix(v, weight, out):
    """out_i = sum_j weight_ij v_j with the weights spread over channels: weight (token, token, width)."""
    tokens, d = len(weight), v.shape[1]
    block = len(v) // tokens
    for b in range(block):
        for i in range(tokens):
            row = out[i * block + b]
            for c in range(d):
                row[c] = weight[i, 0, c] * v[b, c]
            for j in range(1, tokens):
                value = v[j * block + b]
                for c in range(d):
                    row[c] += weight[i, j, c] * value[c]


@njit()
def _attend(qkv, query_bias, bias, heads, out, score):
    """out = softmax(q k^T / sqrt(d_head) + bias) v in every head; qkv (3 width, rows): queries above keys above values.

    Every innermost loop runs over the configurations of the block, side by side in a row of qkv. score (token + 2, block) is
    scratch.
    """
    d, tokens = len(out), bias.shape[1]
    block, dh = out.shape[1] // tokens, d // heads
    scale = _f4(1) / math.sqrt(_f4(dh))
    top, total = score[tokens], score[tokens + 1]
    for h in range(heads):
        for i in range(tokens):
            for j in range(tokens):
                row = score[j]
                for b in range(block):
                    row[b] = bias[h, i, j]
            for c in range(h * dh, (h + 1) * dh):
                query, key = qkv[c, i * block : (i + 1) * block], qkv[d + c]
                for b in range(block):
                    total[b] = (query[b] + query_bias[c]) * scale
                for j in range(tokens):
                    row, own = score[j], key[j * block : (j + 1) * block]
                    for b in range(block):
                        row[b] += total[b] * own[b]
            for b in range(block):
                top[b], total[b] = score[0, b], _f4(0)
            for j in range(1, tokens):
                row = score[j]
                for b in range(block):
                    top[b] = max(top[b], row[b])
            for j in range(tokens):
                row = score[j]
                for b in range(block):
                    row[b] = exp32(row[b] - top[b])
                    total[b] += row[b]
            for b in range(block):
                total[b] = _f4(1) / total[b]
            for c in range(h * dh, (h + 1) * dh):
                target, value = out[c, i * block : (i + 1) * block], qkv[2 * d + c]
                for b in range(block):
                    target[b] = _f4(0)
                for j in range(tokens):
                    row, own = score[j], value[j * block : (j + 1) * block]
                    for b in range(block):
                        target[b] += row[b] * own[b]
                for b in range(block):
                    target[b] *= total[b]


@njit()
def _attention(w, l, s):
    """x += attention(x) of block ``l``."""
    _normalise(s.x, s.h)
    full = w.projection.shape[2] > w.position.shape[1]
    if full:
        gemm(True, True, 1.0, w.projection[l], s.h, 0.0, s.v)
        _attend(s.v, w.query_bias[l], w.pair[l], w.heads, s.mixed, s.score)
    else:
        gemm(False, False, 1.0, s.h, w.projection[l], 0.0, s.v)
        _mix(s.v, w.pair[l], s.mixed)
    gemm(full, False, 1.0, s.mixed, w.out[l], 1.0, s.x)
    _add_bias(s.x, w.out_bias[l])


@njit()
def _feed_forward(w, l, s, only_sum):
    """x += mlp(x) of block ``l``; or, if only the sum over tokens is wanted, the hidden units summed over tokens."""
    rows, block = len(s.x), len(s.summed)
    _normalise(s.x, s.h)
    if only_sum:
        for b in range(len(s.hidden_sum)):
            for c in range(s.hidden_sum.shape[1]):
                s.hidden_sum[b, c] = _f4(0)
    bias = w.up_bias[l]
    for start in range(0, rows, len(s.u)):
        stop = min(rows, start + len(s.u))
        u = s.u[: stop - start]
        gemm(False, False, 1.0, s.h[start:stop], w.up[l], 0.0, u)
        for r in range(len(u)):
            row = u[r]
            if only_sum:
                total = s.hidden_sum[(start + r) % block]
                for c in range(row.size):
                    total[c] += gelu32(row[c] + bias[c])
            else:
                for c in range(row.size):
                    row[c] = gelu32(row[c] + bias[c])
        if not only_sum:
            gemm(False, False, 1.0, u, w.down[l], 1.0, s.x[start:stop])
    if not only_sum:
        _add_bias(s.x, w.down_bias[l : l + 1])


@njit()
def _log_modulus(a, phase, row):
    """Sum over channels of log |cosh(a + i phase / 2)|, phase zero for a real argument. One logarithm.

    |cosh z| = e^|a| |1 + e^(-2|a|) e^(i phase)| / 2; the last moduli are collected as one product of squares.
    """
    total = _f4(0)
    for c in range(a.size):
        size = abs(a[c])
        total += size
        e = exp32(_f4(-2) * size)
        cosine, _ = cos_sin32(phase[c])
        row[c] = _f4(1) + e * (_f4(2) * cosine + e)
    logarithm = 0.0
    for start in range(0, a.size, 256):  # stay inside the range of a double
        product = 1.0
        for c in range(start, min(a.size, start + 256)):
            product *= np.float64(row[c])
        logarithm += math.log(product)
    return total - a.size * 0.6931471805599453 + 0.5 * logarithm


@njit()
def _phase(a, b, row):
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
def _head(w, s, complete, count, real, imaginary, phase):
    """log psi of the first ``count`` configurations from x, ``complete`` or with its last part still in ``hidden_sum``."""
    tokens, last = len(w.position), len(w.up) - 1
    for b in range(len(s.summed)):
        row = s.summed[b]
        for c in range(row.size):
            row[c] = _f4(0) if complete else _f4(tokens) * w.down_bias[last, c]
        for t in range(tokens):
            token = s.x[t * len(s.summed) + b]
            for c in range(row.size):
                row[c] += token[c]
    if not complete:
        gemm(False, False, 1.0, s.hidden_sum, w.down[last], 1.0, s.summed)
    _normalise(s.summed, s.unit)
    two_parts = len(w.head) == 2
    for p in range(len(w.head)):
        gemm(False, False, 1.0, s.unit, w.head[p], 0.0, s.summed)
        _add_bias(s.summed, w.head_bias[p : p + 1])
        _normalise(s.summed, s.part[p])
        for b in range(len(s.summed)):
            for c in range(s.part.shape[2]):
                s.part[p, b, c] = s.part[p, b, c] * w.head_gain[p, c] + w.head_shift[p, c]
    for b in range(count):
        a, b_twice = s.part[0, b], s.unit[b]
        for c in range(a.size):
            b_twice[c] = _f4(2) * s.part[1, b, c] if two_parts else _f4(0)
        real[b] = _log_modulus(a, b_twice, s.channel[0])
        if two_parts and phase:
            imaginary[b] = _phase(a, s.part[1, b], s.channel)


@njit()
def _blocks(w, s, first, last, head):
    """Blocks ``first`` .. ``last - 1`` on the stream x, in place; with ``head`` the last map of the network is left to it."""
    for l in range(first, last):
        _attention(w, l, s)
        _feed_forward(w, l, s, head and l == len(w.up) - 1)


@njit()
def _state_of_patch(sigma, token, patch):
    code = 0
    for c in range(patch):
        code = 2 * code + (1 if sigma[token * patch + c] > 0 else 0)
    return code


@njit()
def _codes(sigma, patch, codes):
    for t in range(codes.size):
        codes[t] = _state_of_patch(sigma, t, patch)


@njit()
def _attended(table, codes, x):
    """x (token, d): the stream after the first attention, as a sum of table rows."""
    tokens, d = x.shape
    for i in range(tokens):
        row = x[i]
        for c in range(d):
            row[c] = _f4(0)
        for j in range(tokens):
            term = table.term[table.place[i, j], codes[j]]
            for c in range(d):
                row[c] += term[c]


@njit()
def _change_attended(table, token, before, after, x):
    """Replace the contribution of one token to x (token, d)."""
    for i in range(len(x)):
        row, place = x[i], table.place[i, token]
        old, new = table.term[place, before], table.term[place, after]
        for c in range(row.size):
            row[c] += new[c] - old[c]


@njit()
def _embed(w, sigma, x):
    """x (token, d): the embedding of one configuration."""
    patch = len(w.patch)
    for t in range(len(x)):
        row = x[t]
        for c in range(row.size):
            row[c] = w.position[t, c]
        for p in range(patch):
            spin = _f4(sigma[t * patch + p])
            for c in range(row.size):
                row[c] += spin * w.patch[p, c]


@njit()
def _configuration(s, b, tokens):
    """Rows (token, d) of configuration ``b`` of a block."""
    return s.x.reshape(tokens, len(s.summed), s.x.shape[1])[:, b]


@njit()
def _log_psi_of_block(w, s, attended, count, real, imaginary, phase):
    """log psi of configurations whose stream starts at the embedding, or after the first attention if ``attended``."""
    depth = len(w.up)
    if attended:
        _feed_forward(w, 0, s, depth == 1)
    _blocks(w, s, 1 if attended else 0, depth, True)
    _head(w, s, False, count, real, imaginary, phase)


@njit(parallel=True)
def forward(w, table, sigma, stream, real, imaginary, embed, first, last, head, block, pieces):
    """Blocks ``first`` .. ``last - 1`` of the transformer on every configuration.

    sigma (n, n_sites) int8 is read when ``embed``; otherwise stream (n, token, width) float32 is, and it is written unless
    ``head``, which makes log psi of it: real, imaginary (n,) float64.

    FLOPs per configuration: tokens (2 patch d + L (4 d^2 + 4 d h + 2 tokens d)), with 8 d^2 and twice the attention term for
    full attention; less 4 tokens d^2 in the first block where its attention is tabulated, and 2 (tokens - 1) d h in the last
    when log psi is wanted. Memory traffic: the int8 configuration in, log psi out.
    """
    n = len(sigma) if embed else len(stream)
    tokens = len(w.position)
    blocks = (n + block - 1) // block
    for piece in prange(pieces):
        s = _scratch(w, block)
        codes = np.zeros(tokens, np.int64)
        for ib in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            start = ib * block
            count = min(block, n - start)
            attended = embed and head and table.term.size > 0
            for b in range(count):
                x = _configuration(s, b, tokens)
                if attended:
                    _codes(sigma[start + b], len(w.patch), codes)
                    _attended(table, codes, x)
                elif embed:
                    _embed(w, sigma[start + b], x)
                else:
                    _copy(stream[start + b], x)
            if embed and head:
                _log_psi_of_block(w, s, attended, count, real[start:], imaginary[start:], True)
                continue
            _blocks(w, s, first, last, head)
            if head:
                _head(w, s, first == last, count, real[start:], imaginary[start:], True)
                continue
            for b in range(count):
                _copy(_configuration(s, b, tokens), stream[start + b])


@njit()
def _start_from_base(w, table, sigma, x, base_codes, base, codes):
    """Stream x (token, d) of a configuration; if tabulated, from the attended ``base`` of one in states ``base_codes``."""
    if table.term.size == 0:
        _embed(w, sigma, x)
        return
    _copy(base, x)
    _codes(sigma, len(w.patch), codes)
    for t in range(len(x)):
        if codes[t] != base_codes[t]:
            _change_attended(table, t, base_codes[t], codes[t], x)


@njit()
def _flip_stretch(sigma, first, length):
    for k in range(length):
        i = (first + k) % sigma.size
        sigma[i] = -sigma[i]


@njit()
def _next_proposals(upcoming, rows, ahead, owner, proposal):
    """Fill the slots of a block: the next proposal of every chain, then, if ``ahead``, the ones after it; number of slots."""
    slots, depth = 0, 0
    while slots < owner.size and (depth == 0 or ahead):
        found = False
        for b in range(upcoming.size):
            if upcoming[b] + depth < rows and slots < owner.size:
                owner[slots], proposal[slots] = b, upcoming[b] + depth
                slots, found = slots + 1, True
        if not found:
            break
        depth += 1
    return slots


@njit()
def _accept(table, patch, proposed, sigma, codes, base_codes, base):
    """sigma <- proposed, with the states of its patches and its attended stream."""
    sigma[:] = proposed
    if table.term.size == 0:
        return
    _codes(sigma, patch, codes)
    for t in range(codes.size):
        if codes[t] != base_codes[t]:
            _change_attended(table, t, base_codes[t], codes[t], base)
            base_codes[t] = codes[t]


@njit()
def _walk_block(w, table, s, sigma, real, first, length, threshold, ahead):
    """All proposals of the chains of one block, those of a chain in order; number accepted."""
    chains, rows, accepted = len(sigma), len(first), 0
    block = len(s.summed)
    tokens, d = w.position.shape
    fresh, nothing = np.zeros(block), np.zeros(0)
    proposed = np.empty((block, sigma.shape[1]), np.int8)
    owner, proposal = np.empty(block, np.int64), np.empty(block, np.int64)
    upcoming, moved = np.zeros(chains, np.int64), np.zeros(chains, np.int64)
    codes, base_codes = np.zeros(tokens, np.int64), np.zeros((chains, tokens), np.int64)
    base = np.zeros((chains, tokens, d), np.float32)
    if table.term.size > 0:
        for b in range(chains):
            _codes(sigma[b], len(w.patch), base_codes[b])
            _attended(table, base_codes[b], base[b])
    slots = _next_proposals(upcoming, rows, ahead, owner, proposal)
    turn = 0
    while slots > 0:
        turn += 1
        for q in range(slots):
            b, r = owner[q], proposal[q]
            proposed[q] = sigma[b]
            _flip_stretch(proposed[q], first[r, b], length[r, b])
            _start_from_base(
                w, table, proposed[q], _configuration(s, q, tokens), base_codes[b], base[b], codes
            )
        _log_psi_of_block(w, s, table.term.size > 0, slots, fresh, nothing, False)
        for q in range(slots):
            b, r = owner[q], proposal[q]
            if moved[b] == turn:  # proposals after an accepted one started from where the chain no longer is
                continue
            upcoming[b] = r + 1
            ratio = 2 * (fresh[q] - real[b])
            if threshold[r, b] < ratio:
                accepted += 1
                real[b], moved[b] = fresh[q], turn
                _accept(table, len(w.patch), proposed[q], sigma[b], codes, base_codes[b], base[b])
            elif math.isnan(ratio):
                real[b] = ratio
        slots = _next_proposals(upcoming, rows, ahead, owner, proposal)
    return accepted


@njit(parallel=True)
def walk(w, table, sigma, real, first, length, threshold, each, block, ahead):
    """Metropolis proposals of ``states.fused.Walks.walk`` on log|psi| alone, ``real`` (chains,) float64; accepted per block.

    ``each`` chains share a block of ``block`` configurations that stays in the cache for all proposals. A proposal costs one
    forward pass less the first attention. Where there are fewer chains than places and ``ahead`` is set, later proposals of a
    chain are evaluated with the next one: they count if all before them are rejected.
    """
    chains = len(sigma)
    blocks = (chains + each - 1) // each
    accepted = np.zeros(blocks, np.int64)
    for ib in prange(blocks):
        own = slice(ib * each, min(chains, (ib + 1) * each))
        s = _scratch(w, block)
        accepted[ib] = _walk_block(
            w, table, s, sigma[own], real[own], first[:, own], length[:, own], threshold[:, own], ahead
        )
    return accepted


@njit(parallel=True)
def flipped(w, table, sigma, signs, pairs, real, imaginary, block, pieces):
    """log psi of sigma[pairs[p, 0]] * signs[pairs[p, 1]]: real, imaginary (pairs,) float64.

    sigma (n, n_sites), signs (flips, n_sites) int8, pairs (pairs, 2) int64, those of a sample next to each other: they start
    from its first attention, each for 2 tokens d additions for every token that changes.
    """
    tokens, d = w.position.shape
    blocks = (len(pairs) + block - 1) // block
    for piece in prange(pieces):
        s = _scratch(w, block)
        codes, base_codes = np.zeros(tokens, np.int64), np.zeros(tokens, np.int64)
        base, connected = np.zeros((tokens, d), np.float32), np.zeros(sigma.shape[1], np.int8)
        for ib in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            start = ib * block
            count, present = min(block, len(pairs) - start), -1
            for b in range(count):
                sample, flip = pairs[start + b]
                if sample != present and table.term.size > 0:
                    present = sample
                    _codes(sigma[sample], len(w.patch), base_codes)
                    _attended(table, base_codes, base)
                for i in range(connected.size):
                    connected[i] = sigma[sample, i] * signs[flip, i]
                _start_from_base(w, table, connected, _configuration(s, b, tokens), base_codes, base, codes)
            _log_psi_of_block(w, s, table.term.size > 0, count, real[start:], imaginary[start:], True)


def _folded(gain, bias, weight, weight_bias) -> tuple[np.ndarray, np.ndarray]:
    """Dense(LayerNorm(x)) = unit(x) (gain W) + (bias W + b)."""
    return gain[:, None] * weight, bias @ weight + weight_bias


class _Packing:
    """From the named parameters of a transformer, in float64, to ``Weights`` and ``Table``."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        self.tokens, self.width, self.depth = (
            state.n_tokens,
            state.width,
            sum(name.startswith("residual_") for name in state.layers),
        )
        mix = next(brick for brick in state.bricks if isinstance(brick, (Attention, Mix)))
        self.heads, self.invariant = mix.heads, mix.translation_invariant
        self.full = "attention_1.query.weight" in self.w
        self.parts = ("real", "imaginary") if state.complex_amplitude else ("real",)

    def weights(self) -> Weights:
        """All weights, folded and rounded to float32."""
        w, layers = self.w, [self._layer(i) for i in range(1, self.depth + 1)]
        stacked = [np.stack(group) for group in zip(*layers, strict=True)]
        dense = [
            _folded(w["head.norm.gain"], w["head.norm.bias"], w[f"head.{p}.weight"], w[f"head.{p}.bias"])
            for p in self.parts
        ]
        norms = [(w[f"head.{p}_norm.gain"], w[f"head.{p}_norm.bias"]) for p in self.parts]
        head = [np.stack(group) for group in (*zip(*dense, strict=True), *zip(*norms, strict=True))]
        arrays = (w["embedding.weight"], self._position(), *stacked, *head)
        return Weights(*(np.ascontiguousarray(a, dtype=np.float32) for a in arrays), self.heads)  # type: ignore[call-arg, arg-type]

    def _position(self) -> np.ndarray:
        return self.w.get("position.code", np.zeros((self.tokens, self.width))) + self.w["embedding.bias"]

    def _projection(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights and biases of queries, keys and values side by side, or of values alone."""
        w, a = self.w, f"attention_{i}"
        names = ("query", "key", "value") if self.full else ("value",)
        gain, bias = w[f"{a}.norm.gain"], w[f"{a}.norm.bias"]
        folded = [_folded(gain, bias, w[f"{a}.{n}.weight"], w[f"{a}.{n}.bias"]) for n in names]
        return np.concatenate([f[0] for f in folded], axis=1), np.concatenate([f[1] for f in folded])

    def _pairs(self, i: int) -> np.ndarray:
        """Positional weights or biases of the scores, (heads, token, token)."""
        stored = self.w.get(f"attention_{i}.mix.bias" if self.full else f"attention_{i}.mix.weight")
        if stored is None:
            return np.zeros((self.heads, self.tokens, self.tokens))
        return stored[:, circulant(np, self.tokens)] if self.invariant else stored

    def _layer(self, i: int):
        """One entry of every per-block field of ``Weights``, in their order.

        A bias of the keys shifts all scores of a query alike and drops out. Full attention weights sum to one, positional ones
        to a number per token and head: the bias of the values becomes a bias of the output, per token.
        """
        w, a, m, d = self.w, f"attention_{i}", f"mlp_{i}", self.width
        projection, bias = self._projection(i)
        pairs, of_values = self._pairs(i), bias[-d:].reshape(self.heads, -1)
        share = np.ones((self.heads, self.tokens)) if self.full else pairs.sum(axis=2)
        mixed = (share.T[:, :, None] * of_values).reshape(self.tokens, d)
        spread = pairs if self.full else np.repeat(pairs, d // self.heads, axis=0).transpose(1, 2, 0)
        up = _folded(w[f"{m}.norm.gain"], w[f"{m}.norm.bias"], w[f"{m}.up.weight"], w[f"{m}.up.bias"])
        out, out_bias = w[f"{a}.out.weight"], mixed @ w[f"{a}.out.weight"] + w[f"{a}.out.bias"]
        query_bias = bias[:d] if self.full else np.zeros(d)
        return (
            projection,
            query_bias,
            spread,
            out,
            out_bias,
            *up,
            w[f"{m}.down.weight"],
            w[f"{m}.down.bias"],
        )

    def table(self) -> Table:
        """The first attention as a table, where it is positional, a patch has few states and the table fits into the cache."""
        patch, d = self.w["embedding.weight"].shape
        places = self.tokens if self.invariant else self.tokens**2
        if self.full or patch > _LARGEST_PATCH or 4 * places * d * 2**patch > _TABLE_BYTES:
            return Table(np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.int64))
        bits = np.arange(2**patch)[:, None] >> np.arange(patch)[::-1] & 1
        stream = (2.0 * bits - 1) @ self.w["embedding.weight"] + self._position()[:, None]
        centred = stream - stream.mean(axis=2, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + LAYER_NORM_EPSILON)
        values = (unit @ self._projection(1)[0]).reshape(self.tokens, len(bits), self.heads, -1)
        written = self.w["attention_1.out.weight"].reshape(self.heads, -1, d)
        term = np.einsum("hij,jshd->ijsd", self._pairs(1), np.einsum("jshc,hcd->jshd", values, written))
        own = np.arange(self.tokens)
        term[own, own] += stream + self._layer(1)[4][:, None]  # a token brings its own stream and bias along
        if self.invariant:
            return Table(np.ascontiguousarray(term[:, 0], np.float32), circulant(np, self.tokens))
        term, place = term.reshape(-1, len(bits), d), np.arange(self.tokens**2).reshape(self.tokens, -1)
        return Table(np.ascontiguousarray(term, np.float32), place)


class FusedTransformer:
    """Parameters of a transformer packed for the kernels: the fast twin of the bricks for one set of float32 parameters.

    It has the abilities ``Streams``, ``Walks`` and ``Flips`` of ``states.fused``.
    """

    def __init__(self, state: State, parameters: np.ndarray):
        packing = _Packing(state, parameters)
        self.state, self.complex, self.depth = state, state.complex_amplitude, packing.depth
        self.weights, self.table = packing.weights(), packing.table()
        self.block = self._block_size()

    def _block_size(self) -> int:
        channels = self.weights.projection.shape[2]
        bytes_per_row = 4 * (3 * self.state.width + channels)
        fitting = max(1, min(ALIGNMENT, _CACHE_BYTES // (bytes_per_row * self.state.n_tokens)))
        return 1 << (fitting.bit_length() - 1)

    def _at_once(self, calls: int = 1) -> int:
        """Configurations in one call of a kernel: a multiple of the largest block."""
        flops = 2.0 * self.state.n_parameters * self.state.n_tokens * calls
        return max(1, int(_CALL_FLOPS / flops) // ALIGNMENT) * ALIGNMENT

    def _pieces(self, n: int) -> int:
        return max(1, min(-(-n // self.block), _PIECES_PER_THREAD * numba.get_num_threads()))

    def _run(self, sigma, stream, embed: bool, first: int, last: int, head: bool):
        n, size = len(sigma) if embed else len(stream), self._at_once()
        real, imaginary = np.empty(n if head else 0), np.empty(n if head else 0)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            forward(
                self.weights, self.table, sigma[rows], stream[rows], real[rows], imaginary[rows],
                embed, first, last, head, self.block, self._pieces(min(size, n - start)),
            )  # fmt: skip
        return real + 1j * imaginary if self.complex else real

    def _depth_of(self, layer: str) -> int:
        return 0 if layer == "embedding" else int(layer.removeprefix("residual_"))

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) of configurations (n, n_sites) int8."""
        no_stream = np.empty((0, self.state.n_tokens, self.state.width), np.float32)
        return self._run(np.ascontiguousarray(sigma), no_stream, True, 0, self.depth, True)

    def stream_at(self, sigma: np.ndarray, layer: str) -> np.ndarray:
        """Residual stream (n, token, width) at ``embedding`` or ``residual_i``."""
        stream = np.empty((len(sigma), self.state.n_tokens, self.state.width), np.float32)
        self._run(np.ascontiguousarray(sigma), stream, True, 0, self._depth_of(layer), False)
        return stream

    def log_psi_from(self, layer: str, stream: np.ndarray) -> np.ndarray:
        """log psi (n,) when the residual stream at ``layer`` is ``stream`` (n, token, width)."""
        no_sigma = np.empty((0, self.state.n_sites), np.int8)
        stream = np.ascontiguousarray(stream, dtype=np.float32)
        return self._run(no_sigma, stream, False, self._depth_of(layer), self.depth, True)

    def walk(self, sigma, log_psi, first, length, threshold, ahead=True) -> int:
        """Many Metropolis proposals in one go: see ``states.fused.Walks``."""
        real, accepted = np.ascontiguousarray(log_psi.real), 0
        each = (
            min(self.block, max(1, -(-len(sigma) // 2))) if ahead else self.block
        )  # at least two blocks at work
        places = min(self.block, 1 << (_AHEAD * each - 1).bit_length())
        rows = max(1, self._at_once() // max(1, len(sigma)))
        for start in range(0, len(first), rows):
            now = slice(start, start + rows)
            moves = (first[now], length[now], threshold[now])
            accepted += int(walk(self.weights, self.table, sigma, real, *moves, each, places, ahead).sum())
        log_psi[...] = np.where(np.isnan(real), np.nan, self.log_psi(sigma))
        return accepted

    def log_psi_flipped(self, sigma, signs, pairs) -> np.ndarray:
        """log psi (pairs,) of configurations next to ``sigma``: see ``states.fused.Flips``."""
        real, imaginary, size = np.empty(len(pairs)), np.zeros(len(pairs)), self._at_once()
        for start in range(0, len(pairs), size):
            now = slice(start, start + size)
            flipped(
                self.weights, self.table, np.ascontiguousarray(sigma), signs, pairs[now], real[now], imaginary[now],
                self.block, self._pieces(len(pairs[now])),
            )  # fmt: skip
        return real + 1j * imaginary if self.complex else real
