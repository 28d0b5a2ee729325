"""Cholesky factors on all threads: A = L L^dagger, right-looking by blocks (Golub & Van Loan, Matrix Computations, 4.2).

LAPACK's own factorisation would run on the single thread that a BLAS has here. A block of columns is factorised on one thread;
the rows below it and the rest of the matrix are updated tile by tile, each one product on one BLAS thread. Tiles have a fixed
size, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from ..engine.jit import njit, prange

BLOCK = 128
PIECES = 64  # in which the tiles are handed to the threads


@njit(parallel=True)
def _scale_panel(a, first, last, inverse, left, right):
    """Rows below the diagonal block times ``inverse``, in place and copied to left; right holds their conjugates."""
    rows = len(a) - last
    tiles = (rows + BLOCK - 1) // BLOCK
    for tile in prange(tiles):
        i0, i1 = tile * BLOCK, min(rows, (tile + 1) * BLOCK)
        block = right[i0:i1]
        for i in range(i0, i1):
            for j in range(last - first):
                right[i, j] = a[last + i, first + j]
        np.dot(block, inverse, left[i0:i1])
        for i in range(i0, i1):
            for j in range(last - first):
                a[last + i, first + j] = left[i, j]
                right[i, j] = np.conj(left[i, j])


@njit(parallel=True)
def _update(a, last, left, right):
    """Lower tiles of the rest: A <- A - left right^T."""
    rows = len(a) - last
    side = (rows + BLOCK - 1) // BLOCK
    pairs = side * (side + 1) // 2
    pieces = min(pairs, PIECES)
    for piece in prange(pieces):
        scratch = np.empty((BLOCK, BLOCK), a.dtype)
        for pair in range(piece * pairs // pieces, (piece + 1) * pairs // pieces):
            i = int((np.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0)
            while i * (i + 1) // 2 > pair:
                i -= 1
            while (i + 1) * (i + 2) // 2 <= pair:
                i += 1
            j = pair - i * (i + 1) // 2
            i0, i1 = i * BLOCK, min(rows, (i + 1) * BLOCK)
            j0, j1 = j * BLOCK, min(rows, (j + 1) * BLOCK)
            product = scratch if i1 - i0 == BLOCK else np.empty((i1 - i0, j1 - j0), a.dtype)
            np.dot(left[i0:i1], right[j0:j1].T, product)
            for r in range(i1 - i0):
                for c in range(j1 - j0):
                    a[last + i0 + r, last + j0 + c] -= product[r, c]


def factorise(a: np.ndarray) -> None:
    """a (n, n) C-contiguous float64 or complex128, its lower triangle <- L. Raises LinAlgError unless positive definite.

    n^3 / 3 FLOPs, four times as many if complex; every block passes over what is left of the matrix once.
    """
    factor, inverse = scipy.linalg.get_lapack_funcs(("potrf", "trtri"), (a,))
    for first in range(0, len(a), BLOCK):
        last = min(first + BLOCK, len(a))
        diagonal, info = factor(a[first:last, first:last], lower=True)
        if info:
            raise scipy.linalg.LinAlgError(f"the leading minor of order {first + info} is not positive")
        a[first:last, first:last] = diagonal
        if last == len(a):
            return
        scale = np.ascontiguousarray(inverse(diagonal, lower=True)[0].conj().T)
        left = np.empty((len(a) - last, last - first), a.dtype)
        right = np.empty_like(left)
        _scale_panel(a, first, last, scale, left, right)
        _update(a, last, left, right)


def solve(factor: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """(L L^dagger)^-1 rhs with L in the lower triangle of ``factor``."""
    # Seen by columns, as LAPACK wants it, L is the upper factor of the conjugate matrix.
    return scipy.linalg.cho_solve((factor.T, False), rhs.conj(), check_finite=False).conj()
