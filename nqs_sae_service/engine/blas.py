"""Matrix products and Cholesky for kernels: the BLAS called in place, on views, from inside parallel loops.

``numpy.dot`` inside a kernel cannot add to its result and wants contiguous arrays. ``gemm`` here is the full BLAS routine on
row-major arrays whose rows may lie apart: a residual is added, a bias kept or a tile of a larger matrix filled without a copy.
It is the library that Numba itself uses (SciPy's), through Numba's own entry point, so kernels stay cacheable.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from .jit import njit, numba, prange

# Columns that one product adds up, two of them before a sum leaves the precision of the network.
COLUMNS = 2048
# Rows and columns in one product: the BLAS needs so many to be at its best.
TILE = 512
CHOLESKY_TILE = 64

_KINDS = {
    numba.types.float32: "s",
    numba.types.float64: "d",
    numba.types.complex64: "c",
    numba.types.complex128: "z",
}


@numba.extending.intrinsic
def _xxgemm(typing_context, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """One call of the Fortran routine; the scalars alpha and beta have the type of the arrays."""
    from llvmlite import ir

    types = numba.types
    scalar = c.dtype
    signature = types.int32(
        types.int8, types.int8, types.intp, types.intp, types.intp,
        scalar, a, types.intp, b, types.intp, scalar, c, types.intp,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = arguments
        char, word, pointer = ir.IntType(8), ir.IntType(64), ir.IntType(8).as_pointer()

        def slot(value):
            place = numba.core.cgutils.alloca_once_value(builder, value)
            return builder.bitcast(place, pointer)

        def data(kind, value):
            return builder.bitcast(context.make_array(kind)(context, builder, value).data, pointer)

        kinds = [
            char,
            char,
            char,
            word,
            word,
            word,
            pointer,
            pointer,
            word,
            pointer,
            word,
            pointer,
            pointer,
            word,
        ]
        routine = numba.core.cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), kinds), "numba_xxgemm"
        )
        own = signature.args
        return builder.call(
            routine,
            (
                ir.Constant(char, ord(_KINDS[scalar])), ta, tb, m, n, k,
                slot(alpha), data(own[6], a), lda, data(own[8], b), ldb, slot(beta), data(own[11], c), ldc,
            ),
        )  # fmt: skip

    return signature, generate


@njit()
def _rows_apart(a):
    """Distance between rows in elements, at least the length of one (a single row has no distance)."""
    return max(a.strides[0] // a.itemsize, a.shape[1], 1)


@njit()
def gemm(trans_a, trans_b, alpha, a, b, beta, c):
    """c <- alpha op(a) op(b) + beta c, in place; op transposes (without conjugation) if its flag is set.

    a, b, c: two-dimensional, of one dtype (float32, float64, complex64, complex128), each row contiguous. 2 m n k FLOPs.
    """
    m, n = c.shape
    k = a.shape[0] if trans_a else a.shape[1]
    if m == 0 or n == 0:
        return
    t, f = np.int8(84), np.int8(78)  # "T", "N"
    # The routine is column-major: it computes the transposed product of the transposed matrices.
    _xxgemm(
        t if trans_b else f, t if trans_a else f, n, m, k,
        alpha, b, _rows_apart(b), a, _rows_apart(a), beta, c, _rows_apart(c),
    )  # fmt: skip


@njit()
def _product(a, b, c):
    gemm(True, False, 1.0, a, b, 0.0, c)


@cache
def columns_alike(shapes: tuple[tuple[int, int], ...], most: int) -> int:
    """How many columns, a power of two up to ``most``, products may have so that a column's bits do not depend on its place.

    ``shapes``: (k, n) of the products a^T b with a (k, n) and b (k, columns), float32. Found by trying: the BLAS chooses its
    kernels by the processor, and those for AVX2 treat the two halves of 32 columns differently.
    """
    rng = np.random.default_rng(0)
    while most > 1:
        order = rng.permutation(most)
        if all(_alike(rng.standard_normal((k, n + most)).astype(np.float32), n, order) for k, n in shapes):
            break
        most //= 2
    return most


def _alike(both: np.ndarray, n: int, order: np.ndarray) -> bool:
    """Whether a^T b has the same bits when the columns of b stand in another order; a and b side by side, a with n columns."""
    a, b = (np.ascontiguousarray(part) for part in np.split(both, [n], axis=1))
    found, moved = np.empty((2, n, len(order)), np.float32)
    _product(a, b, found)
    _product(a, np.ascontiguousarray(b[:, order]), moved)
    return bool((found[:, order] == moved).all())


@njit(
    fastmath=set()
)  # a sum that may be reordered has other bits in freshly compiled callers than in cached ones
def _factorise_tile(a, inverse):
    """a (m, m) <- its lower Cholesky factor L, inverse <- L^-1; False when a is not positive definite. m^3 FLOPs."""
    m = len(a)
    column = np.empty(m, a.dtype)
    for k in range(m):
        pivot = a[k, k].real
        if not pivot > 0:
            return False
        root = np.sqrt(pivot)
        a[k, k] = root
        for i in range(k + 1, m):
            a[i, k] /= root
            column[i] = np.conj(a[i, k])
        for i in range(k + 1, m):
            factor = a[i, k]
            for j in range(k + 1, i + 1):
                a[i, j] -= factor * column[j]
    for i in range(m):
        for j in range(m):
            inverse[i, j] = 0.0
        for k in range(i):
            factor = a[i, k]
            for j in range(k + 1):
                inverse[i, j] -= factor * inverse[k, j]
        inverse[i, i] = 1.0
        for j in range(i + 1):
            inverse[i, j] /= a[i, i]
    return True


@njit(parallel=True)
def _cholesky(a, tile):
    n = len(a)
    inverse = np.empty((tile, tile), a.dtype)
    for j0 in range(0, n, tile):
        j1 = min(n, j0 + tile)
        done = np.conj(a[j0:j1, :j0])
        tiles = (n - j0 + tile - 1) // tile
        for i in prange(tiles):
            rows = slice(j0 + i * tile, min(n, j0 + (i + 1) * tile))
            if j0 > 0 and i > 0:
                gemm(False, True, -1.0, a[rows, :j0], done, 1.0, a[rows, j0:j1])
            if j0 > 0 and i == 0:  # of the tile on the diagonal the lower half only
                product = np.empty((j1 - j0, j1 - j0), a.dtype)
                gemm(False, True, 1.0, a[rows, :j0], done, 0.0, product)
                for r in range(j1 - j0):
                    for c in range(r + 1):
                        a[j0 + r, j0 + c] -= product[r, c]
        own_inverse = inverse[: j1 - j0, : j1 - j0]
        if not _factorise_tile(a[j0:j1, j0:j1], own_inverse):
            return False
        conjugate = np.conj(own_inverse)
        for i in prange(1, tiles):
            rows = slice(j0 + i * tile, min(n, j0 + (i + 1) * tile))
            before = a[rows, j0:j1].copy()
            gemm(False, True, 1.0, before, conjugate, 0.0, a[rows, j0:j1])
    return True


def cholesky_in_place(a: np.ndarray) -> bool:
    """Replace the lower triangle of ``a`` (n, n) by its Cholesky factor, a = L L^dagger; False if it is not positive definite.

    a: float64, or complex128 with four times the FLOPs.
    Only the lower triangle is read; the upper one is left as it is. Tiles of fixed size, column by column, each updated by
    one long product on one thread: the bits do not depend on the number of threads. n^3 / 3 FLOPs.
    """
    return bool(_cholesky(a, CHOLESKY_TILE))


@cache
def _routine(name: str, arguments: int):
    """A Fortran routine of the BLAS as a C function; called through ctypes it lets other Python threads run."""
    address = numba.extending.get_cython_function_address("scipy.linalg.cython_blas", name)
    return ctypes.CFUNCTYPE(None, *(ctypes.c_void_p,) * arguments)(address)


def _matrix(a: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_int]:
    """First element and distance between rows of a matrix whose rows are contiguous."""
    return ctypes.c_void_p(a.ctypes.data), ctypes.c_int(max(a.strides[0] // a.itemsize, a.shape[1], 1))


def add_product(a: np.ndarray, b: np.ndarray, beta: float, c: np.ndarray) -> None:
    """c <- a b^T + beta c, in place, on the calling thread; others may run meanwhile. 2 m n k FLOPs.

    a (m, k), b (n, k), c (m, n), each row contiguous, of one dtype, float32 or float64.
    """
    single = a.dtype == np.float32
    scalar = ctypes.c_float if single else ctypes.c_double
    (m, k), n = a.shape, len(b)
    # Row-major matrices are their transposes to the column-major routine: c^T <- b a^T.
    (of_a, step_a), (of_b, step_b), (of_c, step_c) = _matrix(a), _matrix(b), _matrix(c)
    small = (ctypes.c_char(b"T"), ctypes.c_char(b"N"), *map(ctypes.c_int, (n, m, k)), scalar(1), scalar(beta))
    transposed, plain, n_, m_, k_, one, keep = (ctypes.byref(value) for value in small)
    steps = [ctypes.byref(step) for step in (step_b, step_a, step_c)]
    _routine("sgemm" if single else "dgemm", 13)(
        transposed, plain, n_, m_, k_, one, of_b, steps[0], of_a, steps[1], keep, of_c, steps[2]
    )


def add_syrk(a: np.ndarray, beta: float, c: np.ndarray) -> None:
    """Lower triangle of c <- a a^T + beta c, in place, on the calling thread; others may run meanwhile. m^2 k FLOPs.

    a (m, k), c (m, m), each row contiguous, of one dtype, float32 or float64.
    """
    single = a.dtype == np.float32
    scalar = ctypes.c_float if single else ctypes.c_double
    # Row-major a is a^T to the column-major routine, and the lower triangle of c its upper one.
    (of_a, step_a), (of_c, step_c) = _matrix(a), _matrix(c)
    small = (ctypes.c_char(b"U"), ctypes.c_char(b"T"), *map(ctypes.c_int, a.shape), scalar(1), scalar(beta))
    upper, transposed, m, k, one, keep = (ctypes.byref(value) for value in small)
    _routine("ssyrk" if single else "dsyrk", 10)(
        upper, transposed, m, k, one, of_a, ctypes.byref(step_a), keep, of_c, ctypes.byref(step_c)
    )
