"""Numbers for each displacement on a periodic grid, carried over to a larger one.

On a grid of n_1 x n_2 ... a displacement r stands for its nearest image, -n/2 <= r <= n/2 along each axis, which the larger
grid has too. At exactly n/2 there are two nearest images: weights of a sum are halved between them, so that the sum over all
displacements stays what it was. Displacements that the smaller grid did not have get zero weight or, where numbers enter a
softmax and zero would mean something, the number of the nearest one that it had.
"""

from __future__ import annotations

import numpy as np


def embedded(array: np.ndarray, old: tuple[int, ...], new: tuple[int, ...], nearest: bool) -> np.ndarray:
    """Numbers (h, displacements on ``old``) as (h, displacements on ``new``), both row by row; old <= new along every axis.

    ``nearest``: unknown displacements get the number of the nearest known one, else zero.
    """
    on_grid = array.reshape(-1, *old)
    for axis, (n, m) in enumerate(zip(old, new, strict=True), start=1):
        matrix = _nearest(n, m) if nearest else _weights(n, m)
        on_grid = np.moveaxis(np.tensordot(matrix, on_grid, axes=(1, axis)), 0, axis)
    return on_grid.reshape(len(array), -1).astype(array.dtype)


def _weights(n: int, m: int) -> np.ndarray:
    """Matrix (m, n) from numbers on a ring of n to those on a ring of m."""
    if n == m:
        return np.eye(n)
    matrix = np.zeros((m, n))
    for r in range(n):
        for image in (r, r - n):
            if 2 * abs(image) <= n:
                matrix[image % m, r] += 0.5 if 2 * r == n else 1.0
    return matrix


def _nearest(n: int, m: int) -> np.ndarray:
    """The same, every displacement of the larger ring looked up at the nearest one of the smaller."""
    matrix = np.zeros((m, n))
    for r in range(m):
        image = r if n == m or 2 * r <= m else r - m
        farthest = n // 2 if image >= 0 else (n - 1) // 2
        source = image if n == m else np.sign(image) * min(abs(image), farthest)
        matrix[r, source % n] = 1.0
    return matrix
