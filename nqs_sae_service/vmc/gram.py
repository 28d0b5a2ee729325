"""The kernels of minSR: columns of O from a tape, their centring, and the matrix T = O-bar O-bar^T they add up to.

O (rows, parameters) has one row per sample, or two (Re O above Im O) with a phase. It is made in blocks of columns, each
used and thrown away. Tiles, strips and groups have fixed sizes and one thread each: the bits do not depend on the number
of threads. Blocks are float32 (or float64); means and the sum over blocks are float64.
"""

from __future__ import annotations

import numpy as np

from ..engine.blas import gemm
from ..engine.jit import njit, prange

COLUMNS = 2048  # of a block: a product this long hides the addition of its float64 sum
_LARGEST_TILE = 512
_STRIP = 128  # rows of a strip of a tile on the diagonal, where only the lower half is wanted
_GROUP = 64  # columns that are centred together: they stay in the second-level cache between the two passes


def _tiles(rows: int) -> np.ndarray:
    """Tiles of the lower triangle as (first row, first column, size), in an order that gives two threads equal work."""
    tile = min(_LARGEST_TILE, max(64, 1 << max(0, (rows // 4).bit_length() - 1)))
    starts = range(0, rows, tile)
    off = [(i, j, tile) for i in starts for j in starts if j < i]
    diagonal = [(i, i, tile) for i in starts]
    half, half_diagonal = len(off) // 2, len(diagonal) // 2
    order = off[:half] + diagonal[:half_diagonal] + off[half:] + diagonal[half_diagonal:]
    return np.asarray(order, np.int64).reshape(-1, 3)


@njit()
def _add_product(a, b, place):
    product = np.empty((len(a), len(b)), a.dtype)
    gemm(False, True, 1.0, a, b, 0.0, product)
    for r in range(product.shape[0]):
        for c in range(product.shape[1]):
            place[r, c] += product[r, c]


@njit(parallel=True)
def _accumulate(block, tiles, total):
    m = len(block)
    for t in prange(len(tiles)):
        i, j, size = tiles[t]
        last = min(m, i + size)
        if i > j:
            _add_product(block[i:last], block[j : j + size], total[i:last, j : j + size])
            continue
        for s in range(i, last, _STRIP):
            end = min(last, s + _STRIP)
            _add_product(block[s:end], block[j:end], total[s:end, j:end])


def accumulate_gram(block: np.ndarray, total: np.ndarray) -> None:
    """Add block block^T to the lower triangle of ``total``; block (m, p) with p up to some thousands, total (m, m) float64.

    m^2 p FLOPs and a little more on the diagonal; reads the block from the shared cache m / 512 times, ``total`` once.
    """
    _accumulate(block, _tiles(len(block)), total)


@njit(parallel=True)
def _outer(x, delta, first, last, vector, block, product):
    n, n_out = len(x), delta.shape[2]
    for r in prange(len(delta)):
        row = block[r]
        gemm(True, False, 1.0, x[r % n][:, first:last], delta[r], 0.0, row.reshape(last - first, n_out))
        for c in range(row.size):
            product[r] += row[c] * vector[c]


def outer_columns(x, delta, first, last, vector, block, product) -> None:
    """Columns of O of a dense map's weights: block[r] = sum_t x[r, t, first:last] (outer) delta[r, t]; product += block vector.

    x (n, token, fan_in); delta (rows, token, fan_out), rows a multiple of n, row r belonging to sample r mod n; block
    (rows, (last - first) fan_out) is overwritten; vector of that length and product (rows,) are float64. 2 rows token columns
    FLOPs; writes the block once.
    """
    _outer(x, delta, first, last, vector, block, product)


@njit(parallel=True)
def _centre(block, n):
    rows, columns = block.shape
    for g in prange((columns + _GROUP - 1) // _GROUP):
        part = block[:, g * _GROUP : (g + 1) * _GROUP]
        for start in range(0, rows, n):
            mean = np.zeros(part.shape[1])
            for r in range(start, start + n):
                for c in range(mean.size):
                    mean[c] += part[r, c]
            for c in range(mean.size):
                mean[c] /= n
            for r in range(start, start + n):
                for c in range(mean.size):
                    part[r, c] -= block.dtype.type(mean[c])


def centre_columns(block: np.ndarray, n: int) -> None:
    """Subtract from every column its mean over samples, in place, for each group of ``n`` rows on its own."""
    _centre(block, n)


@njit(parallel=True)
def _mirror(total, scale):
    n = len(total)
    for tile in prange((n + _GROUP - 1) // _GROUP):
        for other in range(tile + 1):
            for i in range(tile * _GROUP, min(n, (tile + 1) * _GROUP)):
                for j in range(other * _GROUP, min(i + 1, (other + 1) * _GROUP)):
                    total[i, j] *= scale
                    total[j, i] = total[i, j]


def mirror(total: np.ndarray, scale: float) -> None:
    """Make a symmetric matrix, times ``scale``, from its lower triangle, in place."""
    _mirror(total, scale)


@njit(parallel=True)
def _accumulate_rank_one(x, delta, row_mean, mean, n, tiles, total):
    m = len(delta)
    for t in prange(len(tiles)):
        i, j, size = tiles[t]
        last_i, last_j = min(m, i + size), min(m, j + size)
        of_x = np.empty((last_i - i, last_j - j))
        of_delta = np.empty((last_i - i, last_j - j))
        gemm(False, True, 1.0, x[i:last_i], x[j:last_j], 0.0, of_x)
        gemm(False, True, 1.0, delta[i:last_i], delta[j:last_j], 0.0, of_delta)
        for r in range(i, last_i):
            for c in range(j, min(last_j, r + 1)):
                a, b = r // n, c // n
                total[r, c] += (
                    of_x[r - i, c - j] * of_delta[r - i, c - j] - row_mean[r, b] - row_mean[c, a] + mean[a, b]
                )


def accumulate_rank_one(x: np.ndarray, delta: np.ndarray, n: int, total: np.ndarray) -> None:
    """Add the centred product of O[r] = x[r mod n] (outer) delta[r] with its transpose to the lower triangle of ``total``.

    (x x^T) * (delta delta^T), elementwise, so O is not even made by columns: rows^2 (fan_in + fan_out) FLOPs instead of
    rows^2 fan_in fan_out. x (n, fan_in), delta (rows, fan_out) and total (rows, rows) float64; centring as in
    ``centre_columns``: its terms are x[r]^T M_g delta[r] and M_g . M_h with M_g the mean of O over a group.
    """
    groups = delta.reshape(-1, n, delta.shape[1])
    mean = np.stack([x.T @ group for group in groups]) / n
    row_mean = np.stack([((x @ m) * groups).sum(axis=2).ravel() for m in mean], axis=1)
    overlap = np.einsum("gio,hio->gh", mean, mean)
    expanded = np.concatenate([x] * len(groups))
    _accumulate_rank_one(expanded, delta, row_mean, overlap, n, _tiles(len(delta)), total)


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


_PARTS = 16


def weighted_outer(x: np.ndarray, delta: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """sum_r weight[r] sum_t x[r mod n, t] (outer) delta[r, t], float64 (fan_in, fan_out): a row of O^T y for a dense map.

    The groups of rows share x, so their deltas are added first: 2 n token fan_in fan_out FLOPs. Sixteen parts of the samples,
    each summed in the precision of x, are added in float64.
    """
    parts = np.empty((_PARTS, x.shape[2], delta.shape[2]), x.dtype)
    _weighted_outer(x, delta, weight, _PARTS, parts)
    return parts.sum(axis=0, dtype=np.float64)
