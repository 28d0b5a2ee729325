"""The minSR matrix T = O-bar O-bar^T, accumulated from blocks of columns so that O is never held whole.

Tiles of fixed size, each one product on one BLAS thread, only on and below the diagonal: the bits do not depend on the
number of threads. Blocks are float32 (or float64); the sum over blocks is float64.
"""

from __future__ import annotations

import numpy as np

from ..engine.arrays import namespace
from ..engine.jit import njit, prange

TILE = 128
COLUMNS = 2048


@njit(parallel=True)
def _accumulate(block, tile, total):
    """total (m, m) float64 += block (m, p) block^T, lower tiles only. m p (m + tile) FLOPs."""
    m = block.shape[0]
    side = (m + tile - 1) // tile
    for pair in prange(side * (side + 1) // 2):
        i = int((np.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0)
        while i * (i + 1) // 2 > pair:
            i -= 1
        while (i + 1) * (i + 2) // 2 <= pair:
            i += 1
        j = pair - i * (i + 1) // 2
        i0, i1 = i * tile, min(m, (i + 1) * tile)
        j0, j1 = j * tile, min(m, (j + 1) * tile)
        product = np.dot(block[i0:i1], block[j0:j1].T)
        for r in range(i1 - i0):
            for c in range(j1 - j0):
                total[i0 + r, j0 + c] += product[r, c]


def accumulate_gram(block: np.ndarray, total: np.ndarray) -> None:
    """Add block block^T to the lower triangle (by tiles) of ``total``; block (m, p), total (m, m) float64."""
    if namespace(block) is not np:
        _accumulate_on_device(block, total)
        return
    for start in range(0, block.shape[1], COLUMNS):
        _accumulate(np.ascontiguousarray(block[:, start : start + COLUMNS]), TILE, total)


def _accumulate_on_device(block, total) -> None:
    """The same with the upper triangle too: 2 m^2 p FLOPs by cuBLAS in float32, 24 m^2 bytes for each sum in float64."""
    for start in range(0, block.shape[1], COLUMNS):
        part = block[:, start : start + COLUMNS]
        total += part @ part.T


def mirror(total: np.ndarray) -> np.ndarray:
    """The full symmetric matrix from its lower triangle."""
    xp = namespace(total)
    lower = xp.tril(total, -1)
    return lower + lower.T + xp.diag(xp.diag(total))
