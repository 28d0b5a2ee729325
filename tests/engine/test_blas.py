"""Products on views against NumPy."""

import numpy as np
import pytest

from nqs_sae_service.engine.blas import add_syrk, gemm
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
def test_syrk_adds_to_the_lower_triangle(dtype):
    generator = np.random.default_rng(0)
    a, c = generator.normal(size=(7, 30)).astype(dtype), generator.normal(size=(7, 7)).astype(dtype)
    expected = np.tril(a @ a.T + 0.5 * c) + np.triu(c, 1)
    add_syrk(a, 0.5, c)
    np.testing.assert_allclose(c, expected, rtol=1e-5)
