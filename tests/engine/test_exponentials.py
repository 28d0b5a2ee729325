"""Vectorised exponentials against NumPy."""

import numpy as np

from nqs_sae_service.engine.exponentials import cosine_and_sine, exp_negative


def test_exponentials_of_negative_numbers():
    x = -np.concatenate([np.linspace(0, 699, 5001), np.logspace(-20, 0, 501), [0.0, 1e5, np.inf]])
    y = x.copy()
    exp_negative(y, np.empty(y.size, np.int64))
    exact = np.where(x < -700, 0, np.exp(x))
    np.testing.assert_allclose(y, exact, rtol=5e-16)


def test_cosine_and_sine():
    for scale in (1e-3, 1, 10, 1e3, 9e5, 1e8):
        angle = scale * np.random.default_rng(0).uniform(-1, 1, size=1001)
        cosine, sine = np.empty_like(angle), np.empty_like(angle)
        cosine_and_sine(angle, cosine, sine)
        np.testing.assert_allclose(cosine, np.cos(angle), rtol=0, atol=3e-16)
        np.testing.assert_allclose(sine, np.sin(angle), rtol=0, atol=3e-16)


def test_angles_at_the_borders_of_the_quadrants():
    angle = np.arange(-9, 10) * np.pi / 4
    cosine, sine = np.empty_like(angle), np.empty_like(angle)
    cosine_and_sine(angle, cosine, sine)
    np.testing.assert_allclose(cosine, np.cos(angle), rtol=0, atol=3e-16)
    np.testing.assert_allclose(sine, np.sin(angle), rtol=0, atol=3e-16)


def test_nan_is_seen():
    x = np.array([-1.0, np.nan, -2.0])
    cosine, sine = np.empty(3), np.empty(3)
    cosine_and_sine(x, cosine, sine)
    exp_negative(x, np.empty(3, np.int64))
    for row in (x, cosine, sine):
        np.testing.assert_array_equal(np.isnan(row), [False, True, False])
