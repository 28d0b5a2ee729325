"""The kernels of minSR: columns of O from a tape, their centring, and the matrix T = O-bar O-bar^T they add up to.

O (rows, parameters) has one row per sample, or two (Re O above Im O) with a phase. It is made in blocks of columns, each
used and thrown away. Tiles, strips and groups have fixed sizes and one thread each: the bits do not depend on the number
of threads. Blocks are float32 (or float64); the sum over blocks is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..engine.blas import TILE, add_product, add_syrk, gemm
from ..engine.jit import EXACT, njit, prange
from ..engine.ranks import Ranks

_LANES_ROWS = 4096
_STRIP = 16  # samples that a thread makes columns of at a time
_PARTS = 16
_FINAL_TILE = 128
_HANDS = 16
_GROUP = 64


def lanes(rows: int) -> int:
    """Stretches of columns that are multiplied side by side: few rows make too few tiles for many threads."""
    return max(1, min(8, _LANES_ROWS // max(1, rows)))


@njit(parallel=True)
def _column_sums(x, delta, first, last, parts, sums):
    n, groups = len(x), len(delta) // len(x)
    for task in prange(groups * parts):
        g, p = task // parts, task % parts
        start, stop = p * n // parts, (p + 1) * n // parts
        left = x[start:stop].reshape(-1, x.shape[2])[:, first:last]
        right = delta[g * n + start : g * n + stop].reshape(-1, delta.shape[2])
        gemm(True, False, 1.0, left, right, 0.0, sums[p, g])


@njit(parallel=True)
def _outer_columns(x, delta, first, last, mean, block, place):
    n, n_out = len(x), delta.shape[2]
    for strip in prange((n + _STRIP - 1) // _STRIP):
        for s in range(strip * _STRIP, min(n, (strip + 1) * _STRIP)):
            for g in range(len(mean)):
                row, means = block[g * n + s, place : place + mean.shape[1]], mean[g]
                for c in range(row.size):
                    row[c] = -means[c]
                columns = row.reshape(last - first, n_out)
                gemm(True, False, 1.0, x[s][:, first:last], delta[g * n + s], 1.0, columns)


def column_sums(x: np.ndarray, delta: np.ndarray, first: int, last: int) -> np.ndarray:
    """Sums of the columns of ``outer_columns`` over each group of n rows: (group, last - first, fan_out) float64.

    Sixteen parts in the precision of x, added in float64. 2 rows token columns FLOPs.
    """
    sums = np.empty((_PARTS, len(delta) // len(x), last - first, delta.shape[2]), x.dtype)
    _column_sums(x, delta, first, last, _PARTS, sums)
    return sums.sum(axis=0, dtype=np.float64)


def outer_columns(
    x: np.ndarray,
    delta: np.ndarray,
    first: int,
    last: int,
    mean: np.ndarray,
    block: np.ndarray,
    place: int,
) -> None:
    """Centred columns of O of a dense map: block[r, place:...] = sum_t x[r, t, first:last] (outer) delta[r, t] - mean.

    x (n, token, fan_in); delta (rows, token, fan_out), rows a multiple of n, row r belonging to sample r mod n; mean
    (group, last - first, fan_out), one for each group of n rows. The (last - first) fan_out columns of block (rows, columns)
    are written once. 2 rows token columns FLOPs.
    """
    means = mean.astype(x.dtype).reshape(len(mean), -1)
    _outer_columns(x, delta, first, last, means, block, place)


@njit()
def _token_sums(delta, sums):
    for g in range(len(delta)):
        for s in range(delta.shape[1]):
            total = sums[g, s]
            for c in range(total.size):
                total[c] = delta[g, s, 0, c]
            for t in range(1, delta.shape[2]):
                row = delta[g, s, t]
                for c in range(total.size):
                    total[c] += row[c]


def token_sums(delta: np.ndarray) -> np.ndarray:
    """Sums over tokens (group, n, channel) of delta (group, n, token, channel): the columns of a bias."""
    sums = np.empty((*delta.shape[:2], delta.shape[3]), delta.dtype)
    _token_sums(np.ascontiguousarray(delta), sums)
    return sums


def centre_columns(block: np.ndarray, n: int, samples: int, ranks: Ranks) -> None:
    """Subtract from every column its mean over the samples of all ranks, in place, for each group of ``n`` rows on its own."""
    groups = block.reshape(-1, n, block.shape[1])
    sums = ranks.sum(groups.sum(axis=1, keepdims=True, dtype=np.float64))
    groups -= (sums / samples).astype(block.dtype)


def add_tiles(
    block: np.ndarray, sums: np.ndarray, beta: float, side_by_side: Callable[[Callable, Iterable], Any]
) -> None:
    """Lower triangles of sums[l] <- B_l B_l^T + beta sums[l], with B_l (rows, .) the l-th part of the columns of ``block``.

    block (rows, columns), sums (lanes, rows, rows), one dtype. ``side_by_side`` maps a function over tasks, as the ``map``
    of an executor does: tiles of T are independent. rows^2 columns FLOPs.
    """
    rows, count = len(block), len(sums)
    cuts = [part * block.shape[1] // count for part in range(count + 1)]
    starts = range(0, rows, TILE)
    tiles = [(i, j) for i in starts for j in starts if j < i] + [
        (i, i) for i in starts
    ]  # the longest tasks first

    def multiply(task):
        (i, j), lane = task
        columns = slice(cuts[lane], cuts[lane + 1])
        left, right = block[i : i + TILE, columns], block[j : j + TILE, columns]
        target = sums[lane, i : i + TILE, j : j + TILE]
        add_syrk(left, beta, target) if i == j else add_product(left, right, beta, target)

    list(side_by_side(multiply, [(tile, lane) for tile in tiles for lane in range(count)]))


@njit()
def _from_both_ends(k, count):
    """0, count - 1, 1, count - 2, ...: neighbours in this order share the work on a triangle evenly."""
    return k // 2 if k % 2 == 0 else count - 1 - k // 2


@njit(parallel=True)
def _add_lower(parts, total):
    m = len(total)
    strips = (m + _GROUP - 1) // _GROUP
    for k in prange(strips):
        s = _from_both_ends(k, strips)
        for r in range(s * _GROUP, min(m, (s + 1) * _GROUP)):
            for part in parts:
                for c in range(r + 1):
                    total[r, c] += part[r, c]


def add_lower(parts: np.ndarray, total: np.ndarray) -> None:
    """Add the lower triangles of all ``parts`` (part, m, m) to that of ``total`` (m, m) float64, part by part."""
    _add_lower(parts, total)


@njit(parallel=True)
def _mirror(total, scale):
    n = len(total)
    strips = (n + _GROUP - 1) // _GROUP
    for k in prange(strips):
        tile = _from_both_ends(k, strips)
        for other in range(tile + 1):
            for i in range(tile * _GROUP, min(n, (tile + 1) * _GROUP)):
                for j in range(other * _GROUP, min(i + 1, (other + 1) * _GROUP)):
                    total[i, j] *= scale
                    total[j, i] = total[i, j]


def mirror(total: np.ndarray, scale: float) -> None:
    """Make a symmetric matrix, times ``scale``, from its lower triangle, in place."""
    _mirror(total, scale)


@njit(inline="always")  # its order of additions is then part of the kernel on disk
def _add_rank_one(tile, g, h, n, of_x, of_delta, row_mean, mean, total):
    """One tile of samples (i, j), of the rows of group g and the columns of group h."""
    i, j, last_i, last_j = tile
    for a in range(i, last_i):
        r = g * n + a
        row, along, across = total[r], of_x[a - i], of_delta[a - i]
        constant = mean[g, h] - row_mean[h, r]
        last = min(last_j, a + 1) if g == h else last_j
        target, means = row[h * n + j : h * n + last], row_mean[g, h * n + j : h * n + last]
        for b in range(target.size):
            target[b] += along[b] * across[b] + (constant - means[b])


@njit(parallel=True, fastmath=EXACT)
def _accumulate_rank_one(x, delta, row_mean, mean, n, tiles, total):
    groups = len(mean)
    for t in prange(len(tiles)):
        tile = tiles[t]
        i, j, last_i, last_j = tile
        of_x, of_delta = np.empty((last_i - i, last_j - j)), np.empty((last_i - i, last_j - j))
        gemm(False, True, 1.0, x[i:last_i], x[j:last_j], 0.0, of_x)
        for g in range(groups):
            for h in range(g + 1):
                if i < j and g == h:
                    continue
                left, right = delta[g * n + i : g * n + last_i], delta[h * n + j : h * n + last_j]
                gemm(False, True, 1.0, left, right, 0.0, of_delta)
                _add_rank_one(tile, g, h, n, of_x, of_delta, row_mean, mean, total)


def accumulate_rank_one(x: np.ndarray, delta: np.ndarray, n: int, total: np.ndarray) -> None:
    """Add the centred product of O[r] = x[r mod n] (outer) delta[r] with its transpose to the lower triangle of ``total``.

    (x x^T) * (delta delta^T), elementwise, so O is not even made by columns: rows^2 (fan_in + fan_out) FLOPs instead of
    rows^2 fan_in fan_out, less where two groups share x x^T. x (n, fan_in), delta (rows, fan_out) and total (rows, rows)
    float64; centring as in ``centre_columns``: its terms are x[r]^T M_g delta[r] and M_g . M_h with M_g the mean of O over a
    group.
    """
    groups = delta.reshape(-1, n, delta.shape[1])
    mean = np.stack([x.T @ group for group in groups]) / n
    row_mean = np.stack([((x @ m) * groups).sum(axis=2).ravel() for m in mean])
    overlap = np.einsum("gio,hio->gh", mean, mean)
    starts = [(i, min(n, i + _FINAL_TILE)) for i in range(0, n, _FINAL_TILE)]
    tiles = [(i, j, a, b) for i, a in starts for j, b in starts if j <= i]
    if len(groups) > 1:  # the block of two different groups is not a triangle
        tiles += [(i, j, a, b) for i, a in starts for j, b in starts if j > i]
    tiles = [
        tile for hand in range(_HANDS) for tile in tiles[hand::_HANDS]
    ]  # dealt, for threads take stretches
    _accumulate_rank_one(x, delta, row_mean, overlap, n, np.asarray(tiles), total)


def rank_one_tiles(
    x: np.ndarray, delta: np.ndarray, samples: int, ranks: Ranks
) -> Callable[[slice, slice], np.ndarray]:
    """Tiles, by rows and columns, of the matrix of ``accumulate_rank_one`` over the samples of all ranks, in their order.

    x (n, fan_in) and delta (rows, fan_out) are those of this rank. The factors are small: every rank gets all.
    """
    groups = delta.reshape(-1, len(x), delta.shape[1])
    mean = np.stack([ranks.sum(x.T @ group) for group in groups]) / samples
    row_mean = ranks.gather(np.stack([((x @ m) * groups).sum(axis=2).ravel() for m in mean], axis=1))
    overlap = np.einsum("gio,hio->gh", mean, mean)
    group = ranks.gather(np.repeat(np.arange(len(groups)), len(x)))
    x, delta = ranks.gather(np.tile(x, (len(groups), 1))), ranks.gather(delta)

    def tile(rows: slice, columns: slice) -> np.ndarray:
        of_rows, of_columns = group[rows], group[columns]
        product = (x[rows] @ x[columns].T) * (delta[rows] @ delta[columns].T)
        product += overlap[of_rows][:, of_columns]
        product -= row_mean[rows][:, of_columns]
        product -= row_mean[columns][:, of_rows].T
        return product

    return tile


@njit(parallel=True, fastmath=EXACT)
def _outer_product(x, delta, vector, product):
    n, groups = len(x), len(delta) // len(x)
    n_tokens, n_out = delta.shape[1], delta.shape[2]
    for strip in prange((n + _STRIP - 1) // _STRIP):
        first, last = strip * _STRIP, min(n, (strip + 1) * _STRIP)
        along = np.empty(((last - first) * n_tokens, n_out), x.dtype)
        gemm(False, False, 1.0, x[first:last].reshape(-1, x.shape[2]), vector, 0.0, along)
        channel = np.empty(n_out)
        for s in range(first, last):
            for g in range(groups):
                for c in range(n_out):
                    channel[c] = 0.0
                for t in range(n_tokens):
                    row, other = delta[g * n + s, t], along[(s - first) * n_tokens + t]
                    for c in range(n_out):
                        channel[c] += row[c] * other[c]
                total = 0.0
                for c in range(n_out):
                    total += channel[c]
                product[g * n + s] += total


def outer_product(x: np.ndarray, delta: np.ndarray, vector: np.ndarray, product: np.ndarray) -> None:
    """product[r] += sum_t x[r mod n, t] . vector delta[r, t]: O vector of a dense map, without a column of O.

    vector (fan_in, fan_out) and product (rows,) float64; x and delta as in ``outer_columns``. The groups of rows share
    x vector: 2 n token fan_in fan_out FLOPs.
    """
    _outer_product(x, delta, vector.astype(x.dtype), product)


@njit(parallel=True)
def _times_vector(columns, vector, product):
    for strip in prange((len(columns) + _STRIP - 1) // _STRIP):
        for r in range(strip * _STRIP, min(len(columns), (strip + 1) * _STRIP)):
            row, along = columns[r], 0.0
            for c in range(row.size):
                along += row[c] * vector[c]
            product[r] = along


def times_vector(columns: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """columns vector (rows,), float64, of columns (rows, size) in the precision of the network: no copy in double precision."""
    product = np.empty(len(columns))
    _times_vector(columns, vector, product)
    return product


@njit(parallel=True)
def _weighted_rows(columns, weight, parts):
    for p in prange(len(parts)):
        total = parts[p]
        for c in range(total.size):
            total[c] = 0.0
        for r in range(p * len(columns) // len(parts), (p + 1) * len(columns) // len(parts)):
            row, w = columns[r], weight[r]
            for c in range(total.size):
                total[c] += w * row[c]


def weighted_rows(columns: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """columns^T weight (size,), float64, of columns (rows, size) in the precision of the network: no copy either."""
    parts = np.empty((_PARTS, columns.shape[1]))
    _weighted_rows(columns, weight, parts)
    return parts.sum(axis=0)


@njit(parallel=True)
def _weighted_outer(x, delta, weight, parts, result):
    n, n_tokens, n_out = len(x), x.shape[1], delta.shape[2]
    groups = len(delta) // n
    for p in prange(parts):
        start, stop = p * n // parts, (p + 1) * n // parts
        weighted = np.zeros(((stop - start) * n_tokens, n_out), delta.dtype)
        for s in range(start, stop):
            for t in range(n_tokens):
                row = weighted[(s - start) * n_tokens + t]
                for g in range(groups):
                    w = delta.dtype.type(weight[g * n + s])
                    for c in range(n_out):
                        row[c] += w * delta[g * n + s, t, c]
        gemm(True, False, 1.0, x[start:stop].reshape(-1, x.shape[2]), weighted, 0.0, result[p])


def weighted_outer(x: np.ndarray, delta: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum_r weight[r] sum_t x[r mod n, t] (outer) delta[r, t], float64 (fan_in, fan_out): a row of O^T y for a dense map.

    The groups of rows share x, so their deltas are added first: 2 n token fan_in fan_out FLOPs. Sixteen parts of the samples,
    each summed in the precision of x, are added in float64.
    """
    parts = np.empty((_PARTS, x.shape[2], delta.shape[2]), x.dtype)
    _weighted_outer(x, delta, weight, _PARTS, parts)
    return parts.sum(axis=0, dtype=np.float64)
