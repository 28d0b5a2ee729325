"""Vectorised elementary functions of float32 against NumPy in double precision."""

import numpy as np

from nqs_sae_service.engine.jit import njit
from nqs_sae_service.engine.vector import cos_sin32, exp32, gelu32


@njit()
def _exp(x, y):
    for i in range(x.size):
        y[i] = exp32(x[i])


@njit()
def _cos_sin(x, c, s):
    for i in range(x.size):
        c[i], s[i] = cos_sin32(x[i])


@njit()
def _gelu(x, y):
    for i in range(x.size):
        y[i] = gelu32(x[i])


def test_exponential():
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    y = np.empty_like(x)
    _exp(x, y)
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=3e-7)
    outside = np.array([-1000, 1000, np.nan, np.inf, -np.inf], np.float32)
    y = np.empty_like(outside)
    _exp(outside, y)
    np.testing.assert_allclose(y[:2], np.exp([-87.0, 88.0]), rtol=3e-7)
    assert np.isnan(y[2:]).all()


def test_cosine_and_sine():
    for largest in (10, 3000):
        x = np.linspace(-largest, largest, 200_001, dtype=np.float32)
        c, s = np.empty_like(x), np.empty_like(x)
        _cos_sin(x, c, s)
        np.testing.assert_allclose(c, np.cos(x.astype(np.float64)), atol=2e-7)
        np.testing.assert_allclose(s, np.sin(x.astype(np.float64)), atol=2e-7)


def test_gelu():
    x = np.linspace(-12, 12, 100_001, dtype=np.float32)
    y = np.empty_like(x)
    _gelu(x, y)
    v = x.astype(np.float64)
    exact = 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    np.testing.assert_allclose(y, exact, atol=6e-7)
