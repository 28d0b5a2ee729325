"""The transformer, fused for the CPU: float32, equal to the bricks of ``transformer.py`` to rounding.

A block of configurations stays in the second-level cache from the embedding to log psi: matrix products go to the BLAS (one
thread per block, blocks in parallel), everything between is a vectorised loop. What does not change the result is not computed:

- LayerNorm gains, biases of values and keys, and the biases written to the residual stream are folded into neighbouring maps;
- a patch of b spins has 2^b states, so what the first block makes of it is looked up (``Table``): positional attention up to
  the hidden units, which are sums over tokens, or the weights and values of softmax attention;
- after the last block only the sum over tokens is wanted, so its last map acts once on the sum of the hidden units;
- configurations that differ from another one in a few tokens start from the sums over tokens of that one.

Streams are rows of channels, token by token; between its projections attention works on the transposed, configurations side by
side: positional weights are matrices then, and softmax a loop over neighbours.

Every block has the same number of rows, the last one padded: the bits depend on a configuration's place in its block (the BLAS
treats rows differently), but neither on its neighbours nor on the number of threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.blas import gemm
from ..engine.copies import copy_rows
from ..engine.jit import njit, numba, prange
from ..engine.lanes import LANES
from ..engine.vector import gelu32
from .attention_cpu import attend, divide_by_sum, weighted_values
from .delta_cpu import delta_scratch
from .fused import ALIGNMENT
from .hybrid_packing import packing_of
from .primitives import LAYER_NORM_EPSILON
from .shared_cpu import log_modulus_of_cosh, normalise, phase_of_cosh, propose
from .state import State
from .transformer_packing import NO_TABLE, Table

_CACHE_BYTES = 400 * 1024  # share of a core's second-level cache that a block may fill
# Blocks of configurations are powers of two up to ALIGNMENT, so that aligned calls always cut at block boundaries.
_HIDDEN_ROWS = 64  # of the feed-forward network at a time: hidden units stay in the first-level cache
_ADDITION = 6.5  # FLOPs of a product in the time of adding one channel of a term, measured
_AHEAD = 8  # proposals of a chain in a block of few chains: more are rarely needed
# Blocks are handed to threads in this many pieces per thread, so that a slow core does not hold up the rest.
_PIECES_PER_THREAD = 16
_CALL_FLOPS = 5e10  # in one call of a kernel, about half a second's: signals and progress wait for it

_f4 = np.float32
_EPSILON = _f4(LAYER_NORM_EPSILON)


class Scratch(NamedTuple):
    """Work space of a block of B configurations. Token t of configuration b is row t B + b, or column where transposed."""

    x: np.ndarray  # (rows, d): the residual stream
    h: np.ndarray  # (rows, d)
    v: np.ndarray  # (channels of the projection, rows): values, or queries, keys and values
    mixed: np.ndarray  # (d, rows)
    u: np.ndarray  # (_HIDDEN_ROWS, h)
    hidden_sum: np.ndarray  # (B, h)
    summed: np.ndarray  # (B, d)
    unit: np.ndarray  # (B, d)
    part: np.ndarray  # (2, B, d)
    score: np.ndarray  # (2, T, B): of two queries
    total: np.ndarray  # (B,)
    channel: np.ndarray  # (3, d)
    group: np.ndarray  # (a few, T, d + h): streams and hidden units of the first block, where tabulated
    written: np.ndarray  # (a few T, d): what its feed-forward network adds to the stream
    code: np.ndarray  # (T, B) int64: states of the patches, where the first block is tabulated
    # Of a kernel head (d / heads + 1, d / heads, B): sums over tokens; of the delta rule see ``delta_scratch``. Else empty.
    moments: np.ndarray
    lines: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@njit()
def _scratch(w, table, block):
    tokens, d = w.position.shape
    rows, hidden = block * tokens, w.up.shape[2]
    group, dh = 0, d // w.heads if w.kinds.size > 0 else 0
    if table.term.size > 0:
        group = 1
        while 2 * group <= block and 2 * group * tokens <= _HIDDEN_ROWS:
            group *= 2
    return Scratch(
        np.zeros((rows, d), np.float32),
        np.zeros((rows, d), np.float32),
        np.zeros((w.projection.shape[2], rows), np.float32),
        np.zeros((d, rows), np.float32),
        np.zeros((min(rows, _HIDDEN_ROWS), hidden), np.float32),
        np.zeros((block, hidden), np.float32),
        np.zeros((block, d), np.float32),
        np.zeros((block, d), np.float32),
        np.zeros((2, block, d), np.float32),
        np.zeros((2, tokens, block), np.float32),
        np.zeros(block, np.float32),
        np.zeros((3, d), np.float32),
        np.zeros((group, tokens, d + hidden), np.float32),
        np.zeros((group * tokens, d), np.float32),
        np.zeros((tokens, block), np.int64),
        np.zeros((dh + 1, dh, block), np.float32),
        delta_scratch(w.scans, dh, block),
    )


@njit()
def _add_bias(x, bias):
    """x (rows, d) += bias (d,)."""
    for r in range(len(x)):
        row = x[r]
        for c in range(row.size):
            row[c] += bias[c]


@njit()
def _add_and_normalise(x, bias, out):
    """x (rows, d) += bias (token, d), the same for as many rows of each token; out = LayerNorm of it, as ``normalise``."""
    each = len(x) // len(bias)
    for t in range(len(bias)):
        own = slice(t * each, (t + 1) * each)
        _add_bias(x[own], bias[t])
        normalise(x[own], out[own])


@njit()
def _look_up_weights(table, h, i, code, weight):
    """weight_j, not normalised, of query i in head h for configurations in states ``code`` (T, B) of their patches."""
    states, (tokens, block) = table.stream.shape[1], code.shape
    own = code[i]
    for j in range(tokens):
        row, other, entry = weight[j], code[j], table.weight[table.place[j, i], h]
        for b in range(block):
            row[b] = entry[own[b] * states + other[b]]


@njit()
def _first_softmax(w, table, s):
    """x after the first attention, but for its bias: embedding, weights and values of the patches' states are looked up.

    T d (2 + 2 T) + 2 T d^2 FLOPs and T^2 heads look-ups, but no queries and keys, and no exponential.
    """
    tokens, d = w.position.shape
    block = len(s.summed)
    for t in range(tokens):
        for b in range(block):
            row, own = s.x[t * block + b], table.stream[t, s.code[t, b]]
            for c in range(d):
                row[c] = own[c]
    for j in range(tokens):
        for c in range(d):
            entry, row = table.value[j, c], s.v[c]
            for b in range(block):
                row[j * block + b] = entry[s.code[j, b]]
    values, weights, target = s.v.reshape(-1), s.score.reshape(-1), s.mixed.reshape(-1)
    for h in range(w.heads):
        for i0 in range(0, tokens, 2):
            i1 = min(i0 + 1, tokens - 1)
            for x in range(2):
                _look_up_weights(table, h, i1 if x == 1 else i0, s.code, s.score[x])
                divide_by_sum(s.score[x], s.total)
            weighted_values(
                weights, tokens, values, h * d // w.heads, h * d // w.heads, d // w.heads, i0, i1, target
            )
    gemm(True, False, 1.0, s.mixed, w.out[0], 1.0, s.x)


@njit()
def _attention(w, l, s):
    """x += attention(x) of block ``l``, but for its bias, which ``_feed_forward`` adds."""
    normalise(s.x, s.h)
    attend(w.kinds, w, l, s)
    gemm(True, False, 1.0, s.mixed, w.out[l], 1.0, s.x)


@njit()
def _feed_forward(w, l, s, only_sum):
    """x += bias of the attention, then mlp(x), of block ``l``; if ``only_sum``, the hidden units summed over tokens instead."""
    rows, block = len(s.x), len(s.summed)
    _add_and_normalise(s.x, w.out_bias[l], s.h)
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
        _add_bias(s.x, w.down_bias[l])


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
    normalise(s.summed, s.unit)
    two_parts = len(w.head) == 2
    for p in range(len(w.head)):
        gemm(False, False, 1.0, s.unit, w.head[p], 0.0, s.summed)
        _add_bias(s.summed, w.head_bias[p])
        normalise(s.summed, s.part[p])
        for b in range(len(s.summed)):
            for c in range(s.part.shape[2]):
                s.part[p, b, c] = s.part[p, b, c] * w.head_gain[p, c] + w.head_shift[p, c]
    for b in range(count):
        a, b_twice = s.part[0, b], s.unit[b]
        for c in range(a.size):
            b_twice[c] = _f4(2) * s.part[1, b, c] if two_parts else _f4(0)
        real[b] = log_modulus_of_cosh(a, b_twice, s.channel[0])
        if two_parts and phase:
            imaginary[b] = phase_of_cosh(a, s.part[1, b], s.channel)


@njit()
def _blocks(w, s, first, last, head):
    """Blocks ``first`` .. ``last - 1`` on the stream x, in place; with ``head`` the last map of the network is left to it."""
    for l in range(first, last):
        _attention(w, l, s)
        _feed_forward(w, l, s, head and l == len(w.up) - 1)


@njit()
def _state_of_patch(sigma, sites):
    """The state of a patch as a number: its spins, at ``sites`` (patch,), are the digits."""
    code = 0
    for c in range(sites.size):
        code = 2 * code + (1 if sigma[sites[c]] > 0 else 0)
    return code


@njit()
def _codes(sigma, sites, codes):
    for t in range(codes.size):
        codes[t] = _state_of_patch(sigma, sites[t])


@njit()
def _sum_terms(table, codes, x):
    """x (token, d + h): the stream after the first attention and what goes to the hidden units, as sums of terms."""
    for i in range(len(x)):
        row = x[i]
        for c in range(row.size):
            row[c] = _f4(0)
    for j in range(0, codes.size - 1, 2):
        own, other = table.term[table.source[j], codes[j]], table.term[table.source[j + 1], codes[j + 1]]
        for i in range(len(x)):
            row, one, two = x[i], own[table.place[j, i]], other[table.place[j + 1, i]]
            for c in range(row.size):
                row[c] += one[c] + two[c]
    if codes.size % 2 == 1:
        last = codes.size - 1
        own = table.term[table.source[last], codes[last]]
        for i in range(len(x)):
            row, one = x[i], own[table.place[last, i]]
            for c in range(row.size):
                row[c] += one[c]


@njit()
def _change_terms(table, codes, before, x):
    """x (token, d + h) of states ``before`` becomes that of ``codes``, in place: 2 T (d + h) additions per changed token."""
    for t in range(codes.size):
        if codes[t] == before[t]:
            continue
        old, new = table.term[table.source[t], before[t]], table.term[table.source[t], codes[t]]
        for i in range(len(x)):
            row, less, more = x[i], old[table.place[t, i]], new[table.place[t, i]]
            for c in range(row.size):
                row[c] += more[c] - less[c]


@njit()
def _embed(w, s, sigma):
    """x: the embedding of configurations (count, n_sites)."""
    patch, block = len(w.patch), len(s.summed)
    for b in range(len(sigma)):
        for t in range(len(w.position)):
            row, position = s.x[t * block + b], w.position[t]
            for c in range(row.size):
                row[c] = position[c]
            for p in range(patch):
                spin, own = _f4(sigma[b, w.sites[t, p]]), w.patch[p]
                for c in range(row.size):
                    row[c] += spin * own[c]


@njit()
def _configuration(s, b, tokens):
    """Rows (token, d) of configuration ``b`` of a block."""
    return s.x.reshape(tokens, len(s.summed), s.x.shape[1])[:, b]


@njit()
def _enter(w, table, s, sigma):
    """Put configurations (count, n_sites) in their places: their embedding or, where tabulated, the states of their patches."""
    if table.place.size == 0:
        _embed(w, s, sigma)
        return
    for b in range(len(sigma)):
        for t in range(len(w.position)):
            s.code[t, b] = _state_of_patch(sigma[b], w.sites[t])


@njit()
def _activate(group, bias):
    """group (configuration, token, d + h): the terms of the hidden units become the hidden units."""
    d = group.shape[2] - bias.size
    for q in range(len(group)):
        for i in range(group.shape[1]):
            x, u = group[q, i, :d], group[q, i, d:]
            square = _f4(0)
            for c in range(d):
                square += x[c] * x[c]
            scale = _f4(1) / math.sqrt(square / _f4(d) + _EPSILON)
            for c in range(bias.size):
                u[c] = gelu32(u[c] * scale + bias[c])


@njit()
def _leave_group(group, written, bias, x):
    """x[token, configuration] = what is in ``group``, plus what its feed-forward network has ``written``, plus ``bias``."""
    for q in range(len(group)):
        for i in range(group.shape[1]):
            row, own, other = x[i, q], group[q, i], written[q * group.shape[1] + i]
            for c in range(bias.size):
                row[c] = own[c] + other[c] + bias[c]


@njit()
def _sum_hidden(group, x, hidden_sum):
    """x[token, configuration] = what is in ``group``, and the sums of its hidden units over tokens."""
    d = x.shape[2]
    for q in range(len(group)):
        total = hidden_sum[q]
        for c in range(total.size):
            total[c] = _f4(0)
        for i in range(group.shape[1]):
            row, own, hidden = x[i, q], group[q, i], group[q, i, d:]
            for c in range(d):
                row[c] = own[c]
            for c in range(total.size):
                total[c] += hidden[c]


@njit()
def _first_positional(w, table, s, count, sums, states, origin):
    """The first block for configurations in states ``s.code``: x after it, or all that ``_head`` wants if it is the only one.

    Configuration b starts from the sums of terms ``sums[origin[b]]`` (token, d + h) of another one in ``states[origin[b]]``
    (token,), or from nothing if origin[b] < 0. A few at a time stay in the first-level cache; the product has as many rows
    where there are fewer, so that bits depend on places alone.
    """
    tokens, d = w.position.shape
    size, block = len(s.group), len(s.summed)
    x, rows = s.x.reshape(tokens, block, d), s.group.reshape(size * tokens, -1)
    for first in range(0, count, size):
        last = min(first + size, count)
        group = s.group[: last - first]
        for b in range(first, last):
            codes, target = s.code[:, b], group[b - first]
            if origin[b] < 0:
                _sum_terms(table, codes, target)
            else:
                copy_rows(sums[origin[b]], target)
                _change_terms(table, codes, states[origin[b]], target)
        _activate(group, w.up_bias[0])
        if len(w.up) == 1:
            _sum_hidden(group, x[:, first:last], s.hidden_sum[first:last])
            continue
        gemm(False, False, 1.0, rows[:, d:], w.down[0], 0.0, s.written)
        _leave_group(group, s.written, w.down_bias[0], x[:, first:last])


@njit()
def _first_block(kinds, w, table, s, count, sums, states, origin):
    """The first block where it is tabulated, see ``_first_positional``; number of blocks done."""
    if kinds.ndim == 2:
        return 0
    if table.term.size > 0:
        _first_positional(w, table, s, count, sums, states, origin)
    elif table.place.size > 0:
        _first_softmax(w, table, s)
        _feed_forward(w, 0, s, len(w.up) == 1)
    return min(1, table.place.size)


@njit()
def _log_psi_of_block(w, table, s, count, sums, states, origin, real, imaginary, phase):
    """log psi of the first ``count`` configurations, which have been put in their places; see ``_first_positional``."""
    depth = len(w.up)
    done = _first_block(w.kinds, w, table, s, count, sums, states, origin)
    _blocks(w, s, done, depth, True)
    _head(w, s, False, count, real, imaginary, phase)


@njit(parallel=True)
def forward(w, table, sigma, stream, real, imaginary, embed, first, last, head, block, pieces):
    """Blocks ``first`` .. ``last - 1`` of the transformer on every configuration.

    sigma (n, n_sites) int8 is read when ``embed``; otherwise stream (n, token, width) float32 is, and it is written unless
    ``head``, which makes log psi of it: real, imaginary (n,) float64.

    FLOPs per configuration: tokens (2 patch d + L (4 d^2 + 4 d h + 2 tokens d)), with 8 d^2 and twice the attention term for
    full attention; 2 (tokens - 1) d h less in the last block when log psi is wanted. Where the first block is tabulated it
    costs tokens^2 (d + h) additions in place of the tokens (4 d^2 + 2 d h + 2 tokens d) FLOPs up to the hidden units of
    positional attention, or 6 tokens d^2, the scores and the exponentials of full attention less. Memory traffic: the int8
    configuration in, log psi out; the table stays in the second- or third-level cache.
    """
    n = len(sigma) if embed else len(stream)
    tokens, channels = len(w.position), table.term.shape[3]
    blocks = (n + block - 1) // block
    for piece in prange(pieces):
        s = _scratch(w, table, block)
        sums, states = np.zeros((0, tokens, channels), np.float32), np.zeros((0, tokens), np.int64)
        origin = np.full(block, -1)
        for ib in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            start = ib * block
            count = min(block, n - start)
            if embed and head:
                _enter(w, table, s, sigma[start : start + count])
                _log_psi_of_block(
                    w, table, s, count, sums, states, origin, real[start:], imaginary[start:], True
                )
                continue
            if embed:
                _embed(w, s, sigma[start : start + count])
            else:
                for b in range(count):
                    copy_rows(stream[start + b], _configuration(s, b, tokens))
            _blocks(w, s, first, last, head)
            if head:
                _head(w, s, first == last, count, real[start:], imaginary[start:], True)
                continue
            for b in range(count):
                copy_rows(_configuration(s, b, tokens), stream[start + b])


@njit()
def _next_moves(sigma, first, length, start):
    """The proposals from ``start`` on that change sigma: the first of them, or their number if there is none."""
    r = start
    while r < first.size and length[r] < 0 and sigma[first[r]] == sigma[-length[r] - 1]:
        r += 1
    return r


@njit()
def _next_proposals(sigma, first, length, upcoming, ahead, owner, proposal, following):
    """Fill the slots of a block: the next proposal of every chain, then, if ``ahead``, the ones after it; number of slots.

    Null moves are passed over. ``following`` (chains,) is scratch.
    """
    slots, depth, rows = 0, 0, len(first)
    for b in range(upcoming.size):
        following[b] = upcoming[b]
    while slots < owner.size and (depth == 0 or ahead):
        found = False
        for b in range(upcoming.size):
            following[b] = _next_moves(sigma[b], first[:, b], length[:, b], following[b])
            if following[b] < rows and slots < owner.size:
                owner[slots], proposal[slots] = b, following[b]
                following[b] += 1
                slots, found = slots + 1, True
        if not found:
            break
        depth += 1
    return slots


@njit()
def _accept(table, sites, proposed, sigma, codes, states, sums):
    """sigma <- proposed, with the states of its patches and its sums of terms."""
    sigma[:] = proposed
    if table.term.size > 0:
        _codes(sigma, sites, codes)
        _change_terms(table, codes, states, sums)
        states[:] = codes


@njit()
def _walk_block(w, table, s, sigma, real, first, length, threshold, ahead):
    """All proposals of the chains of one block, those of a chain in order; number accepted."""
    chains, accepted = len(sigma), 0
    block = len(s.summed)
    tokens, channels = len(w.position), table.term.shape[3]
    fresh, nothing = np.zeros(block), np.zeros(0)
    proposed = np.empty((block, sigma.shape[1]), np.int8)
    owner, proposal = np.empty(block, np.int64), np.empty(block, np.int64)
    upcoming, moved, following = (
        np.zeros(chains, np.int64),
        np.zeros(chains, np.int64),
        np.zeros(chains, np.int64),
    )
    codes, states = np.zeros(tokens, np.int64), np.zeros((chains, tokens), np.int64)
    sums = np.zeros((chains, tokens, channels), np.float32)
    if table.term.size > 0:
        for b in range(chains):
            _codes(sigma[b], w.sites, states[b])
            _sum_terms(table, states[b], sums[b])
    slots = _next_proposals(sigma, first, length, upcoming, ahead, owner, proposal, following)
    turn = 0
    while slots > 0:
        turn += 1
        for q in range(slots):
            b, r = owner[q], proposal[q]
            proposed[q] = sigma[b]
            propose(proposed[q], first[r, b], length[r, b])
        _enter(w, table, s, proposed[:slots])
        _log_psi_of_block(w, table, s, slots, sums, states, owner, fresh, nothing, False)
        for q in range(slots):
            b, r = owner[q], proposal[q]
            if moved[b] == turn:  # proposals after an accepted one started from where the chain no longer is
                continue
            upcoming[b] = r + 1
            ratio = 2 * (fresh[q] - real[b])
            if threshold[r, b] < ratio:
                accepted += 1
                real[b], moved[b] = fresh[q], turn
                _accept(table, w.sites, proposed[q], sigma[b], codes, states[b], sums[b])
            elif math.isnan(ratio):
                real[b] = ratio
        slots = _next_proposals(sigma, first, length, upcoming, ahead, owner, proposal, following)
    return accepted


@njit(parallel=True)
def walk(w, table, sigma, real, first, length, threshold, each, block, ahead):
    """Metropolis proposals of ``states.fused.Walks.walk`` on log|psi| alone, ``real`` (chains,) float64; accepted per block.

    ``each`` chains share a block of ``block`` configurations that stays in the cache for all proposals. A proposal costs as
    much as in ``flipped``. Where there are fewer chains than places and ``ahead`` is set, later proposals of a chain are
    evaluated with the next one: they count if all before them are rejected. Sums of terms follow the chains: n accepted moves
    leave them off by at most n + T roundings.
    """
    chains = len(sigma)
    blocks = (chains + each - 1) // each
    accepted = np.zeros(blocks, np.int64)
    for ib in prange(blocks):
        own = slice(ib * each, min(chains, (ib + 1) * each))
        s = _scratch(w, table, block)
        accepted[ib] = _walk_block(
            w, table, s, sigma[own], real[own], first[:, own], length[:, own], threshold[:, own], ahead
        )
    return accepted


@njit(parallel=True)
def flipped(w, table, sigma, signs, pairs, real, imaginary, block, pieces):
    """log psi of sigma[pairs[p, 0]] * signs[pairs[p, 1]]: real, imaginary (pairs,) float64.

    sigma (n, n_sites), signs (flips, n_sites) int8, pairs (pairs, 2) int64, those of a sample next to each other: they start
    from its sums of terms, each for 2 tokens (d + h) additions and 12 tokens (d + h) bytes for every token that changes.
    """
    tokens, channels = len(w.position), table.term.shape[3]
    blocks = (len(pairs) + block - 1) // block
    for piece in prange(pieces):
        s = _scratch(w, table, block)
        states, origin = np.zeros((block, tokens), np.int64), np.zeros(block, np.int64)
        sums = np.zeros((block, tokens, channels), np.float32)
        connected = np.zeros((block, sigma.shape[1]), np.int8)
        for ib in range(piece * blocks // pieces, (piece + 1) * blocks // pieces):
            start = ib * block
            count, samples = min(block, len(pairs) - start), 0
            for b in range(count):
                sample, flip = pairs[start + b]
                if b == 0 or sample != pairs[start + b - 1, 0]:
                    samples += 1
                    if table.term.size > 0:
                        _codes(sigma[sample], w.sites, states[samples - 1])
                        _sum_terms(table, states[samples - 1], sums[samples - 1])
                origin[b] = samples - 1
                for i in range(connected.shape[1]):
                    connected[b, i] = sigma[sample, i] * signs[flip, i]
            _enter(w, table, s, connected[:count])
            _log_psi_of_block(w, table, s, count, sums, states, origin, real[start:], imaginary[start:], True)


class FusedTransformer:
    """Parameters of a transformer packed for the kernels: the fast twin of the bricks for one set of float32 parameters.

    It has the abilities ``Streams``, ``Walks`` and ``Flips`` of ``states.fused``.
    """

    def __init__(self, state: State, parameters: np.ndarray):
        packing = packing_of(state, parameters)
        self.state, self.complex, self.depth = state, state.complex_amplitude, packing.depth
        self.weights, self.table = packing.weights(), packing.table()
        self.table_of_sums = self._table_of_sums()
        self.smallest_block = LANES if packing.side_by_side else 1
        self.block = self._block_size()

    def _table_of_sums(self) -> Table:
        """The table for configurations that start from no other one: summing T (d + h) terms per token must be worth it."""
        tokens, d, hidden = self.state.n_tokens, self.state.width, self.weights.up.shape[2]
        worth = tokens * (d + hidden) * _ADDITION < 2 * d * hidden + 4 * d * d
        return self.table if worth or self.table.term.size == 0 else NO_TABLE

    def _block_size(self) -> int:
        channels = self.weights.projection.shape[2]
        bytes_per_row = 4 * (3 * self.state.width + channels)
        fitting = max(
            self.smallest_block, min(ALIGNMENT, _CACHE_BYTES // (bytes_per_row * self.state.n_tokens))
        )
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
                self.weights, self.table_of_sums, sigma[rows], stream[rows], real[rows], imaginary[rows],
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
        places = max(self.smallest_block, min(self.block, 1 << (_AHEAD * each - 1).bit_length()))
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
