"""The kernels of minSR: columns of O from a tape, their centring, and the matrix T = O-bar O-bar^T they add up to.

O (rows, parameters) has one row per sample, or two (Re O above Im O) with a phase. It is made in blocks of columns, each
used and thrown away. Tiles, strips and groups have fixed sizes and one thread each: the bits do not depend on the number
of threads. Blocks are float32 (or float64); means and the sum over blocks are float64.
"""

from __future__ import annotations

import numpy as np

from ..engine.blas import gemm
from ..engine.jit import njit, prange

COLUMNS = 1024  # of a block: long enough for an efficient product, short enough to be handed out evenly
_TILE = 256
_GROUP = 64


@njit()
def _outer_columns(x, delta, first, last, vector, block, product, mean):
    n, n_out = len(x), delta.shape[2]
    for r in range(len(delta)):
        row, sums = block[r], mean[r // n]
        gemm(True, False, 1.0, x[r % n][:, first:last], delta[r], 0.0, row.reshape(last - first, n_out))
        along = 0.0
        for c in range(row.size):
            along += row[c] * vector[c]
        product[r] += along
        for c in range(row.size):
            sums[c] += row[c]


@njit()
def _centre(block, mean, n):
    for r in range(len(block)):
        row, means = block[r], mean[r // n]
        for c in range(row.size):
            row[c] -= means[c]


def outer_columns(x, delta, first, last, vector, block, product) -> None:
    """Centred columns of O of a dense map: block[r] = sum_t x[r, t, first:last] (outer) delta[r, t], minus the mean.

    x (n, token, fan_in); delta (rows, token, fan_out), rows a multiple of n, row r belonging to sample r mod n; means are over
    each group of n rows, in float64. block (rows, (last - first) fan_out) is overwritten; vector of that length and product
    (rows,) are float64, and product += block vector before centring. On the calling thread, without the interpreter.
    2 rows token columns FLOPs; writes the block twice.
    """
    n = len(x)
    mean = np.zeros((len(delta) // n, block.shape[1]))
    _outer_columns(x, delta, first, last, vector, block, product, mean)
    _centre(block, (mean / n).astype(block.dtype), n)


def centre_columns(block: np.ndarray, n: int) -> None:
    """Subtract from every column its mean over samples, in place, for each group of ``n`` rows on its own."""
    groups = block.reshape(-1, n, block.shape[1])
    groups -= groups.mean(axis=1, keepdims=True, dtype=np.float64).astype(block.dtype)


@njit(parallel=True)
def _add_lower(parts, total):
    m = len(total)
    for s in prange((m + _GROUP - 1) // _GROUP):
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
        i, j = tiles[t]
        last_i, last_j = min(m, i + _TILE), min(m, j + _TILE)
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
    starts = range(0, len(delta), _TILE)
    tiles = np.asarray([(i, j) for i in starts for j in starts if j <= i])
    _accumulate_rank_one(expanded, delta, row_mean, overlap, n, tiles, total)


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
