"""Heads of the gated delta rule on the CPU, fused: scans of lines of tokens, the matrices S of all configurations side by side.

On a ring S before the first token is S after the last one. One turn is enough: S_t = O_t + S_0 P_t with O_t from a scan that
begins with zero and P_t the product of all steps so far. Both go along the line as the rows of one matrix, and
S_0 (1 - P) = O after the last token.
"""

from __future__ import annotations

import numpy as np

from ..engine.jit import EXACT, njit
from ..engine.lanes import LANES, add_products
from ..engine.vector import exp32
from .linear_attention import LONGEST

_f4 = np.float32
_LONGEST = _f4(LONGEST)


@njit(fastmath=EXACT)
def _sigmoid(x, largest):
    """x <- largest / (1 + exp(-x)); x (channel, columns)."""
    for c in range(len(x)):
        row = x[c]
        for r in range(row.size):
            row[r] = largest / (_f4(1) + exp32(-row[r]))


@njit()
def _dot(k, q, out):
    """out = sum_c k_c q_c; k, q (dh, B), out (B,)."""
    for b in range(out.size):
        out[b] = _f4(0)
    for c in range(len(k)):
        one, other = k[c], q[c]
        for b in range(out.size):
            out[b] += one[b] * other[b]


@njit()
def _read(state, flat, key, query, at, rows, products):
    """products[i] = (S k)_i, (S q)_i; S (R, dh, B), products (R, 2, B), k and q at column ``at`` of ``flat`` (channel, T B)."""
    size, dh, block = state.shape
    zero = _f4(0)
    s, out = state.reshape(-1), products.reshape(-1)
    for i0 in range(0, size, 2):
        i1 = min(i0 + 1, size - 1)
        for b in range(0, block, LANES):
            matrices = i0 * dh * block + b, i1 * dh * block + b
            vectors = key * rows + at + b, query * rows + at + b
            one, two = 2 * i0 * block + b, 2 * i1 * block + b
            places = one, one + block, two, two + block
            add_products(s, matrices, block, flat, vectors, rows, dh, (zero, zero, zero, zero), out, places)


@njit()
def _write(state, k, alpha, missing):
    """S <- alpha S + missing k^T, of one row of S; state and k (dh, B), alpha and missing (B,)."""
    for c in range(len(k)):
        row, own = state[c], k[c]
        for b in range(missing.size):
            row[b] = alpha[b] * row[b] + missing[b] * own[b]


@njit()
def _correction(value, alpha, beta, known, missing):
    """missing = beta (v - alpha S k); all (B,)."""
    for b in range(missing.size):
        missing[b] = beta[b] * (value[b] - alpha[b] * known[b])


@njit()
def _result(alpha, asked, missing, overlap, out):
    """out = S_t q = alpha S_{t-1} q + missing (k . q); all (B,)."""
    for b in range(out.size):
        out[b] = alpha[b] * asked[b] + missing[b] * overlap[b]


@njit()
def _add_scaled(target, factor, other):
    """target += factor other; all (B,)."""
    for b in range(target.size):
        target[b] += factor[b] * other[b]


@njit()
def _closed(once, product, factor):
    """once <- the S of S (1 - product) = once, by eliminating columns; once, product (dh, dh, B), factor (B,) is scratch.

    Every step shrinks S, so the symmetric part of 1 - product is positive definite: no pivot is zero.
    """
    dh, _, block = once.shape
    for i in range(dh):
        for c in range(dh):
            row, one = product[i, c], _f4(1) if i == c else _f4(0)
            for b in range(block):
                row[b] = one - row[b]
    for p in range(dh):
        pivot = product[p, p]
        for c in range(dh):
            if c != p:
                above = product[p, c]
                for b in range(block):
                    factor[b] = -above[b] / pivot[b]
                for i in range(p + 1, dh):
                    _add_scaled(product[i, c], factor, product[i, p])
                for i in range(dh):
                    _add_scaled(once[i, c], factor, once[i, p])
    for p in range(dh):
        pivot = product[p, p]
        for i in range(dh):
            row = once[i, p]
            for b in range(block):
                row[b] /= pivot[b]


@njit()
def _scan_line(qkv, query, key, value, alpha, beta, tokens, ring, channel, out, s):
    """out += S_t q_t along one line, ``tokens`` in the order of the scan; arguments as in ``delta_head``."""
    state, products, results, small = s
    dh, block = state.shape[1:]
    size = 2 * dh if ring else dh
    overlap, missing, nothing = small[0], small[1], small[2]
    flat, rows = qkv.reshape(-1), qkv.shape[1]
    state[:size] = _f4(0)
    nothing[:] = _f4(0)
    if ring:
        for i in range(dh):
            state[dh + i, i] = _f4(1)
    for place in range(tokens.size):
        at = tokens[place] * block
        here = slice(at, at + block)
        k, a, g = qkv[key : key + dh, here], qkv[alpha, here], qkv[beta, here]
        _read(state[:size], flat, key, query, at, rows, products)
        _dot(k, qkv[query : query + dh, here], overlap)
        for i in range(size):
            v = qkv[value + i, here] if i < dh else nothing
            _correction(v, a, g, products[i, 0], missing)
            _result(a, products[i, 1], missing, overlap, results[place, i])
            _write(state[i], k, a, missing)
    if ring:
        _closed(state[:dh], state[dh:], missing)
    for place in range(tokens.size):
        at = tokens[place] * block
        for i in range(dh):
            target = out[channel + i, at : at + block]
            _add_to(target, results[place, i])
            if ring:
                for j in range(dh):
                    _add_scaled(target, state[i, j], results[place, dh + j])


@njit()
def _add_to(target, other):
    for b in range(target.size):
        target[b] += other[b]


@njit()
def delta_head(qkv, query, key, value, dh, gates, order, scans, channel, out, s):
    """out = sum over scans of S_t q_t, S_t = alpha S_{t-1} (1 - beta k k^T) + beta v k^T, of a head with q and k of length one.

    qkv (channels, T B): dh queries, keys and values from the channels ``query``, ``key`` and ``value`` on; from ``gates`` on
    the logits of alpha of every scan, then of beta. order (scan, T) int64: the tokens line after line; scans (scan, 2) int64:
    tokens in a line, whether it is a ring. out (d, T B) from ``channel`` on; s: scratch, see ``delta_scratch``. 7 dh^2 FLOPs
    per scan and row on open lines, 16 dh^2 on rings.
    """
    number = len(scans)
    _sigmoid(qkv[gates : gates + number], _LONGEST)
    _sigmoid(qkv[gates + number : gates + 2 * number], _f4(1))
    for c in range(channel, channel + dh):
        row = out[c]
        for r in range(row.size):
            row[r] = _f4(0)
    for scan in range(number):
        length, ring = scans[scan, 0], scans[scan, 1] == 1
        for start in range(0, order.shape[1], length):
            tokens = order[scan, start : start + length]
            _scan_line(
                qkv, query, key, value, gates + scan, gates + number + scan, tokens, ring, channel, out, s
            )


@njit()
def delta_scratch(scans, dh, block):
    """Work space of ``delta_head``: S and P (2 dh, dh, B), their products with k and q, results along a line, three vectors."""
    longest = 0
    for scan in range(len(scans)):
        longest = max(longest, scans[scan, 0])
    if longest == 0:
        dh = 0
    return (
        np.zeros((2 * dh, dh, block), np.float32),
        np.zeros((2 * dh, 2, block), np.float32),
        np.zeros((longest, 2 * dh, block), np.float32),
        np.zeros((3, block), np.float32),
    )
