"""Attention heads of a block on the CPU, fused, all of one kind or each of its own: softmax, positional, kernel, delta rule.

Between its projections attention works on (channel, token, configuration), configurations side by side: positional weights are
matrices then, softmax is a loop over neighbours, and the sums M = sum_j phi(k_j) v_j^T of a kernel head are sums of vectors.
"""

from __future__ import annotations

import math

import numpy as np

from ..engine.blas import gemm
from ..engine.jit import EXACT, njit
from ..engine.lanes import LANES, add_products
from ..engine.vector import exp32
from .delta_cpu import delta_head
from .linear_attention import SMALLEST_NORM
from .primitives import LAYER_NORM_EPSILON
from .transformer_packing import DELTA, FULL, POSITIONAL

_f4 = np.float32
_EPSILON, _SMALLEST = _f4(LAYER_NORM_EPSILON), _f4(SMALLEST_NORM)


@njit()
def _mix(v, weight, out):
    """out_i = sum_j weight[h, i, j] v_j in every head h; v, out (d, T B), weight (heads, T, T). One product per channel."""
    heads, tokens, _ = weight.shape
    d, block = len(v), v.shape[1] // tokens
    for c in range(d):
        value, target = v[c].reshape(tokens, block), out[c].reshape(tokens, block)
        gemm(False, False, 1.0, weight[c * heads // d], value, 0.0, target)


@njit(fastmath=EXACT)
def _exponentials(score, top):
    """score_j <- exp(score_j - max_j score_j); score (T, B), top (B,) is scratch."""
    tokens, block = score.shape
    for b in range(block):
        top[b] = score[0, b]
    for j in range(1, tokens):
        row = score[j]
        for b in range(block):
            top[b] = max(top[b], row[b])
    for j in range(tokens):
        row = score[j]
        for b in range(block):
            row[b] = exp32(row[b] - top[b])


@njit(fastmath=EXACT)
def divide_by_sum(weight, total):
    """weight_j <- weight_j / sum_j weight_j; weight (T, B), total (B,) is scratch."""
    tokens, block = weight.shape
    for b in range(block):
        total[b] = _f4(0)
    for j in range(tokens):
        row = weight[j]
        for b in range(block):
            total[b] += row[b]
    for b in range(block):
        total[b] = _f4(1) / total[b]
    for j in range(tokens):
        row = weight[j]
        for b in range(block):
            row[b] *= total[b]


@njit()
def _scores(qk, query, key, bias, dh, i0, i1, score):
    """score[x, j] = q_i k_j + bias[i, j] for the queries i0, i1 of a head.

    qk (channel, T, B): dh queries from channel ``query`` on, keys from ``key`` on; bias (T, T); score (2, T, B). qk and score
    are flat.
    """
    tokens, rows = len(bias), score.size // 2
    block = rows // tokens
    q, k = query * rows, key * rows
    for j0 in range(0, tokens, 2):
        j1 = min(j0 + 1, tokens - 1)
        start = bias[i0, j0], bias[i0, j1], bias[i1, j0], bias[i1, j1]
        for b in range(0, block, LANES):
            queries, keys = (q + i0 * block + b, q + i1 * block + b), (k + j0 * block + b, k + j1 * block + b)
            first, second = j0 * block + b, j1 * block + b
            places = first, second, rows + first, rows + second
            add_products(qk, queries, rows, qk, keys, rows, dh, start, score, places)


@njit()
def weighted_values(weight, tokens, v, value, channel, dh, i0, i1, out):
    """out_i = sum_j weight[x, j] v_j for the queries i0, i1 of a head.

    weight (2, T, B); v and out (channel, T, B), the head's dh channels from ``value`` and from ``channel`` on; all flat.
    """
    rows, zero = weight.size // 2, _f4(0)
    block = rows // tokens
    for c0 in range(0, dh, 2):
        c1 = min(c0 + 1, dh - 1)
        for b in range(0, block, LANES):
            values = (value + c0) * rows + b, (value + c1) * rows + b
            first, second = (channel + c0) * rows + b, (channel + c1) * rows + b
            places = first + i0 * block, second + i0 * block, first + i1 * block, second + i1 * block
            add_products(
                weight, (b, rows + b), block, v, values, block, tokens, (zero, zero, zero, zero), out, places
            )


@njit()
def _softmax_head(qkv, query, key, value, bias, dh, channel, out, score, total):
    """out = softmax(q k^T + bias) v of a head, the scale of the scores in q.

    qkv (channels, T B): dh queries, keys and values from the channels ``query``, ``key`` and ``value`` on; bias (T, T); out (d,
    T B) from ``channel`` on. Two queries at a time: where their number is odd the last one comes twice. 4 T dh FLOPs and T
    exponentials per row.
    """
    tokens = len(bias)
    flat, weights, target = qkv.reshape(-1), score.reshape(-1), out.reshape(-1)
    for i0 in range(0, tokens, 2):
        i1 = min(i0 + 1, tokens - 1)
        _scores(flat, query, key, bias, dh, i0, i1, weights)
        for x in range(2):
            _exponentials(score[x], total)
            divide_by_sum(score[x], total)
        weighted_values(weights, tokens, flat, value, channel, dh, i0, i1, target)


@njit()
def _attend(qkv, bias, heads, out, score, total):
    """out (d, T B) = softmax heads of qkv (3 d, T B): queries above keys above values; bias (heads, T, T)."""
    d, dh = len(out), len(out) // heads
    for h in range(heads):
        c = h * dh
        _softmax_head(qkv, c, d + c, 2 * d + c, bias[h], dh, c, out, score, total)


@njit()
def _add_to_rows(x, bias):
    """x (channel, columns) += bias (channel,)."""
    for c in range(len(bias)):
        row, own = x[c], bias[c]
        for r in range(row.size):
            row[r] += own


@njit(fastmath=EXACT)
def _features(x):
    """x <- phi(x) = elu(x) + 1, x (channel, columns)."""
    for c in range(len(x)):
        row = x[c]
        for r in range(row.size):
            row[r] = exp32(min(row[r], _f4(0))) + max(row[r], _f4(0)) + (row[r] - row[r])  # NaN stays NaN


@njit()
def _sum_over_tokens(k, z):
    """z = sum_j k_j; k (dh, T B), z (dh, B)."""
    block = z.shape[1]
    for c in range(len(k)):
        row, total = k[c], z[c]
        for b in range(block):
            total[b] = row[b]
        for start in range(block, row.size, block):
            for b in range(block):
                total[b] += row[start + b]


@njit()
def _inverse_norms(q, z, norm):
    """norm_i = 1 / (q_i z + 1e-6); q (dh, T B), z (dh, B), norm (T B,)."""
    block = z.shape[1]
    for r in range(norm.size):
        norm[r] = _SMALLEST
    for c in range(len(q)):
        row, own = q[c], z[c]
        for start in range(0, row.size, block):
            for b in range(block):
                norm[start + b] += row[start + b] * own[b]
    for r in range(norm.size):
        norm[r] = _f4(1) / norm[r]


@njit()
def _sums_of_products(flat, key, value, dh, tokens, block, moments):
    """M[a, c] = sum_j k_j[a] v_j[c]; flat (channel, T, B), moments (dh, dh, B) flat. 2 dh FLOPs per row and channel."""
    rows, zero = tokens * block, _f4(0)
    for a0 in range(0, dh, 2):
        a1 = min(a0 + 1, dh - 1)
        for c0 in range(0, dh, 2):
            c1 = min(c0 + 1, dh - 1)
            for b in range(0, block, LANES):
                keys = (key + a0) * rows + b, (key + a1) * rows + b
                values = (value + c0) * rows + b, (value + c1) * rows + b
                first, second = a0 * dh * block + b, a1 * dh * block + b
                places = first + c0 * block, first + c1 * block, second + c0 * block, second + c1 * block
                add_products(
                    flat, keys, block, flat, values, block, tokens, (zero, zero, zero, zero), moments, places
                )


@njit()
def _queries_of_sums(flat, query, moments, dh, tokens, block, channel, out):
    """out_i[c] = sum_a q_i[a] M[a, c]; flat and out (channel, T, B), moments (dh, dh, B), all flat. 2 dh FLOPs per number."""
    rows, zero = tokens * block, _f4(0)
    for i0 in range(0, tokens, 2):
        i1 = min(i0 + 1, tokens - 1)
        for c0 in range(0, dh, 2):
            c1 = min(c0 + 1, dh - 1)
            for b in range(0, block, LANES):
                first, second = i0 * block + b, i1 * block + b
                queries, sums = (
                    (query * rows + first, query * rows + second),
                    (c0 * block + b, c1 * block + b),
                )
                one, two = (channel + c0) * rows, (channel + c1) * rows
                places = one + first, two + first, one + second, two + second
                add_products(
                    flat, queries, rows, moments, sums, dh * block, dh, (zero, zero, zero, zero), out, places
                )


@njit()
def _near(v, taps, runs, block, norm, out):
    """out = norm out + sum_k taps[:, k] v of the token at displacement k; v, out (dh, T B), taps (dh, K), norm (T B,)."""
    for c in range(len(out)):
        row, values = out[c], v[c]
        for r in range(row.size):
            row[r] *= norm[r]
        for run in range(len(runs)):
            first, source, length, k = runs[run]
            tap = taps[c, k]
            target, other = row[first * block :], values[source * block :]
            for r in range(length * block):
                target[r] += tap * other[r]


@njit()
def _kernel_head(qkv, query, key, value, dh, taps, runs, channel, out, moments, norm):
    """out = q M / (q z + 1e-6) + what the neighbouring tokens bring, of a head whose queries and keys become phi of them.

    qkv (channels, T B) as in ``_softmax_head``, values with their bias; moments (dh + 1, dh, B) and norm (T B,) are scratch.
    4 dh^2 + 2 dh (K + 1) FLOPs and 2 dh exponentials per row.
    """
    block = moments.shape[2]
    tokens = norm.size // block
    q, k = qkv[query : query + dh], qkv[key : key + dh]
    _features(q)
    _features(k)
    flat, sums, z = qkv.reshape(-1), moments.reshape(-1), moments[dh]
    _sum_over_tokens(k, z)
    _inverse_norms(q, z, norm)
    _sums_of_products(flat, key, value, dh, tokens, block, sums)
    _queries_of_sums(flat, query, sums, dh, tokens, block, channel, out.reshape(-1))
    _near(qkv[value : value + dh], taps, runs, block, norm, out[channel : channel + dh])


@njit()
def _to_size(x, size, smallest, scale):
    """x <- x / sqrt(sum_c x_c^2 / size + smallest); x (dh, columns), scale (columns,) is scratch."""
    for r in range(scale.size):
        scale[r] = _f4(0)
    for c in range(len(x)):
        row = x[c]
        for r in range(scale.size):
            scale[r] += row[r] * row[r]
    for r in range(scale.size):
        scale[r] = _f4(1) / math.sqrt(scale[r] / size + smallest)
    for c in range(len(x)):
        row = x[c]
        for r in range(scale.size):
            row[r] *= scale[r]


@njit()
def _heads_by_kind(w, l, s):
    """mixed = the heads of block ``l``, each of its own kind, but for their gammas."""
    dh, channels = len(s.mixed) // w.heads, w.channels[l]
    qkv, norm = s.v[:channels], s.score[0].reshape(-1)
    gemm(True, True, 1.0, w.projection[l][:, :channels], s.h, 0.0, qkv)
    _add_to_rows(qkv, w.query_bias[l, :channels])
    for h in range(w.heads):
        kind, query, value = w.kinds[l, h], w.query[l, h], h * dh
        out = s.mixed[value : value + dh]
        if kind == FULL:
            pair = w.pair[l, w.own_pair[l, h]]
            _softmax_head(qkv, query, query + dh, value, pair, dh, value, s.mixed, s.score, s.total)
        elif kind == POSITIONAL:
            pair = w.pair[l, w.own_pair[l, h] : w.own_pair[l, h] + 1]
            _mix(qkv[value : value + dh], pair, out)
        elif kind == DELTA:
            _to_size(qkv[query : query + dh], _f4(1), _SMALLEST, norm)
            _to_size(qkv[query + dh : query + 2 * dh], _f4(1), _SMALLEST, norm)
            gates = w.gates[l, h]
            delta_head(qkv, query, query + dh, value, dh, gates, w.order, w.scans, value, s.mixed, s.lines)
        else:
            taps = w.taps[l, value : value + dh]
            _kernel_head(qkv, query, query + dh, value, dh, taps, w.runs, value, s.mixed, s.moments, norm)
        if w.joined[l]:
            _to_size(out, _f4(dh), _EPSILON, norm)


@njit()
def attend(kinds, w, l, s):
    """mixed = the heads of block ``l`` on the normalised stream h."""
    if kinds.ndim == 2:
        _heads_by_kind(w, l, s)
    else:
        gemm(True, True, 1.0, w.projection[l], s.h, 0.0, s.v)
        if len(s.v) > len(s.mixed):
            _add_to_rows(s.v, w.query_bias[l])
            _attend(s.v, w.pair[l], w.heads, s.mixed, s.score, s.total)
        else:
            _mix(s.v, w.pair[l], s.mixed)
