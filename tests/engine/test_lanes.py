"""Sums of products of neighbours against the plain sums in double precision."""

import numpy as np
import pytest

from nqs_sae_service.engine.jit import njit
from nqs_sae_service.engine.lanes import LANES, add_products


@njit()
def _sums(a, a_at, a_step, b, b_at, b_step, terms, start, c, c_at):
    add_products(a, a_at, a_step, b, b_at, b_step, terms, start, c, c_at)


@pytest.mark.parametrize("terms", [1, 2, 7, 32])
@pytest.mark.parametrize(("a_at", "b_at"), [((0, 300), (5, 9)), ((3, 3), (40, 41))])
def test_four_sums_of_two_times_two_factors(terms, a_at, b_at):
    generator, lanes = np.random.default_rng(terms), np.arange(LANES)
    a, b, start = (generator.normal(size=n).astype(np.float32) for n in (2000, 2000, 4))
    c, c_at = np.full(200, 7, np.float32), (100, 20, 50, 181)
    _sums(a, a_at, 11, b, b_at, LANES, terms, tuple(start), c, c_at)
    k = np.arange(terms)[:, None]
    expected = np.full(200, 7.0)
    for q in range(4):
        x = a[a_at[q // 2] + 11 * k + lanes].astype(np.float64)
        y = b[b_at[q % 2] + LANES * k + lanes].astype(np.float64)
        expected[c_at[q] + lanes] = start[q] + (x * y).sum(axis=0)
    np.testing.assert_allclose(c, expected, atol=2e-5)
