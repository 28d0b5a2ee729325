"""Correlations with many strings against plain ones, the choice on one part, and the sigmoid."""

import numpy as np
import pytest

from nqs_sae_service.interpret.completeness import Moments, best, rarer_share, sigmoid


def test_correlations_from_blocks_are_the_plain_ones():
    rng = np.random.default_rng(0)
    f = np.maximum(rng.standard_normal((3000, 5)), 0).astype(np.float32)
    f[:, 3] = 0.7  # does not vary
    chi = rng.choice(np.float32([-1, 1]), (3000, 7))
    chi[:, 2] = 1
    chi[:, 0] = np.sign(f[:, 0] - 0.5)
    found = Moments.of([(f[:1000], chi[:1000]), (f[1000:1100], chi[1000:1100]), (f[1100:], chi[1100:])])
    for i in range(5):
        for s in range(7):
            constant = i == 3 or s == 2
            expected = 0 if constant else np.corrcoef(f[:, i].astype(float), chi[:, s])[0, 1]
            assert found.correlation[i, s] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(
        rarer_share(chi.mean(axis=0)), np.minimum((chi > 0).mean(0), (chi < 0).mean(0)), atol=1e-12
    )


def test_the_candidate_is_chosen_on_one_part_and_measured_on_the_other():
    select = np.array([[0.1, -0.9], [0.5, 0.3]])
    test = np.array([[0.8, -0.2], [0.4, 0.7]])
    chosen, r = best(select, test)
    np.testing.assert_array_equal(chosen, [1, 0])
    np.testing.assert_array_equal(r, [0.4, -0.2])


def test_the_sigmoid_is_found_again():
    rng = np.random.default_rng(1)
    x = np.exp(rng.uniform(-6, 0, 4000))
    p = 1 / (1 + (x / 0.05) ** -1.7)
    slopes = []
    for _ in range(20):
        found = sigmoid(x, rng.random(4000) < p)
        assert found.half == pytest.approx(0.05, rel=0.15)
        slopes.append((found.slope - 1.7) / found.slope_error)
    assert np.std(slopes) == pytest.approx(1, abs=0.4)
    assert abs(np.mean(slopes)) < 0.7


def test_where_a_sigmoid_says_nothing():
    x = np.array([0.1, 0.2, 0.3, 0.4])
    assert np.isnan(sigmoid(x, np.ones(4, bool)).slope)
    assert np.isnan(sigmoid(np.full(4, 0.5), np.array([True, False, True, False])).slope)
    apart = sigmoid(x, x > 0.25)
    assert apart.slope > 5
    assert 0.2 < apart.half < 0.3
    assert sigmoid(np.array([0.0, np.nan, *x]), np.array([True, True, *(x > 0.25)])) == apart
