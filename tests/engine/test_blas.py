"""Products on views and the tiled Cholesky factorisation against NumPy."""

import numba
import numpy as np
import pytest

from nqs_sae_service.engine import blas
from nqs_sae_service.engine.blas import CHOLESKY_TILE, add_product, add_syrk, cholesky_in_place, gemm
from nqs_sae_service.engine.jit import njit


@njit()
def product(a, b, c, trans_a, trans_b):
    gemm(trans_a, trans_b, 2.0, a, b, 0.5, c)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_gemm_on_views(dtype):
    generator = np.random.default_rng(0)
    for trans_a in (False, True):
        for trans_b in (False, True):
            a, b, c = (generator.normal(size=(12, 12)).astype(dtype) for _ in range(3))
            a = a[2:9, 3:8] if trans_a else a[2:7, 3:10]
            b = b[1:5, :7] if trans_b else b[1:8, :4]
            c, before = c[3:8, 2:6], c.copy()
            expected = 2 * (a.T if trans_a else a) @ (b.T if trans_b else b) + c / 2
            product(a, b, c, trans_a, trans_b)
            np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-5)
            before[3:8, 2:6] = c
            np.testing.assert_array_equal(c.base, before)  # nothing outside the view is touched


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_with_a_transpose_on_views(dtype):
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(12, 40)).astype(dtype)
    a, b = whole[:7, 3:33], whole[7:, 3:33]
    c = generator.normal(size=(12, 12)).astype(dtype)
    expected = c.copy()
    expected[:7, :7] = np.tril(a @ a.T + 0.5 * c[:7, :7]) + np.triu(c[:7, :7], 1)
    expected[7:, :7] = b @ a.T + 0.5 * c[7:, :7]
    add_syrk(a, 0.5, c[:7, :7])
    add_product(b, a, 0.5, c[7:, :7])
    np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("n", [1, CHOLESKY_TILE - 1, CHOLESKY_TILE, 2 * CHOLESKY_TILE + 7])
def test_cholesky(n, dtype):
    real, imaginary = np.random.default_rng(0).normal(size=(2, n, n + 3))
    b = real if dtype == np.float64 else real + 1j * imaginary
    a = b @ b.conj().T / n + 1e-3 * np.eye(n)
    factor = a.copy()
    assert cholesky_in_place(factor)
    np.testing.assert_allclose(np.tril(factor), np.linalg.cholesky(a), atol=1e-9)
    np.testing.assert_array_equal(np.triu(factor, 1), np.triu(a, 1))


def test_cholesky_refuses_what_is_not_positive_definite():
    a = np.eye(CHOLESKY_TILE + 5)
    a[-1, -1] = -1e-9
    assert not cholesky_in_place(a.copy())
    a[-1, -1] = np.nan
    assert not cholesky_in_place(a)


def test_the_number_of_threads_does_not_change_the_bits():
    b = np.random.default_rng(0).normal(size=(400, 500))
    a, factors, threads = b @ b.T, [], numba.get_num_threads()
    for count in (1, threads):
        numba.set_num_threads(count)
        factors.append(a.copy())
        assert cholesky_in_place(factors[-1])
    numba.set_num_threads(threads)
    np.testing.assert_array_equal(*factors)


def test_columns_have_the_same_bits_at_every_place():
    shapes = ((8, 24), (8, 8), (32, 128), (128, 32), (32, 4))
    columns = blas.columns_alike(shapes, 64)
    assert columns >= 16
    rng = np.random.default_rng(7)
    for k, n in shapes:
        both = rng.standard_normal((k, n + columns)).astype(np.float32)
        assert blas._alike(both, n, rng.permutation(columns))
