"""Reach, monotone range, derivatives and errors on curves whose answer is known."""

import numpy as np
import pytest

from nqs_sae_service.interpret import steering
from nqs_sae_service.interpret.expectation import Curve

SCALES = np.linspace(0, 2, 11)
BASE = 5


def exact_curve(observable, energy, scales=SCALES):
    mean = np.stack([observable(scales - 1), energy(scales - 1)], axis=-1)
    return Curve(mean, None, True, np.zeros(len(scales)), np.ones(len(scales)))


def test_derivatives_of_a_polynomial_are_exact():
    curve = exact_curve(lambda a: 3 + 2 * a - a**3, lambda a: -10 + 0.1 * a + 4 * a**2)
    local = steering.derivatives(curve, SCALES - 1, BASE)
    np.testing.assert_allclose(local.slope, [2, 0.1], atol=1e-10)
    np.testing.assert_allclose(local.curvature, [0, 8], atol=1e-9)


def test_derivatives_use_the_strength_of_each_point_and_skip_unknown_ones():
    strengths = 3 * (SCALES - 1)
    strengths[[3, 7]] = np.nan
    mean = np.stack([5 * np.nan_to_num(strengths), -1 + np.nan_to_num(strengths) ** 2], axis=-1)
    mean[[3, 7]] = np.nan
    curve = Curve(mean, None, True, np.zeros(11), np.ones(11))
    local = steering.derivatives(curve, strengths, BASE)
    np.testing.assert_allclose(local.slope, [5, 0], atol=1e-9)
    np.testing.assert_allclose(local.curvature[1], 2, atol=1e-9)


def test_a_single_point_has_no_derivative():
    curve = exact_curve(lambda a: a, lambda a: a, np.array([1.0]))
    assert np.isnan(steering.derivatives(curve, np.zeros(1), 0).slope).all()


def test_reach_interpolates_to_the_budget():
    """O = a, E = -1 + a^2: the budget 2e-2 is met at a = sqrt(0.02) on both sides."""
    curve = exact_curve(lambda a: a, lambda a: -1 + a**2)
    assert steering.reach(curve.mean, BASE, 0, 0.02) == pytest.approx(np.sqrt(0.02), rel=1e-6)


def test_reach_takes_the_better_side_and_the_end_of_the_curve():
    curve = exact_curve(lambda a: np.where(a > 0, 3 * a, a), lambda a: -1 + 1e-9 * a**2)
    assert steering.reach(curve.mean, BASE, 0, 0.02) == pytest.approx(3)


def test_reach_follows_the_curve_outwards_and_does_not_jump_back_into_the_budget():
    """The deviation leaves the budget and returns: only the first stretch counts."""
    deviation = np.array([0, 0.03, 0, 0, 0, 0, 0, 0, 0.05, 0, 0])
    mean = np.stack([SCALES - 1, -1 + deviation], axis=-1)
    curve = Curve(mean, None, True, np.zeros(11), np.ones(11))
    value = steering.reach(curve.mean, BASE, 0, 0.02)
    assert 0.6 < value < 0.8


def test_the_error_of_the_reach_holds_the_noise_of_the_energy():
    """A flat target: all scatter of the reach comes from where the noisy energy leaves the budget."""
    generator = np.random.default_rng(3)
    truth = np.stack([SCALES - 1, -1 + (SCALES - 1) ** 2], axis=-1)
    reaches, errors = [], []
    for _ in range(60):
        noise = generator.normal(size=(11, 100, 1, 2)) * [0.0, 0.05]
        influence = noise - noise.mean(axis=1, keepdims=True)
        curve = Curve(truth + noise.mean(axis=(1, 2)), influence, False, np.zeros(11), np.ones(11))
        reaches.append(steering.reach(curve.mean, BASE, 0, 0.1))
        errors.append(steering.reach_error(curve, BASE, 0, 0.1, generator))
    assert 0.6 < np.mean(errors) / np.std(reaches) < 1.6
    exact = exact_curve(lambda a: a, lambda a: -1 + a**2)
    assert steering.reach_error(exact, BASE, 0, 0.1, generator) == 0


def test_an_unknown_neighbour_leaves_the_monotone_range_at_the_base():
    mean = np.array([[0.0, -1], [np.nan, -1], [0, -1], [1, -1], [-1, -1], [5, -1]])
    curve = Curve(mean, None, True, np.zeros(6), np.ones(6))
    assert steering.monotone_range(curve, 2, 0) == (2, 2)
    flat = Curve(
        np.array([[3.0, -1], [0, -1], [0, -1], [0, -1], [-4, -1]]), None, True, np.zeros(5), np.ones(5)
    )
    assert steering.monotone_range(flat, 2, 0) == (2, 2)


def test_monotone_range():
    curve = exact_curve(lambda a: np.sin(2.2 * a), lambda a: -1 + 0 * a)
    low, high = steering.monotone_range(curve, BASE, 0)
    assert (low, high) == (1, 9)


def test_noise_within_two_errors_does_not_end_the_monotone_range():
    generator = np.random.default_rng(0)
    truth = 1e-3 * (SCALES - 1)
    influence = 0.05 * generator.normal(size=(11, 200, 2, 2))
    influence -= influence.mean(axis=(1, 2), keepdims=True)
    mean = np.stack([truth + 0.05 / 20 * generator.normal(size=11), -1 + 0 * truth], axis=-1)
    low, high = steering.monotone_range(Curve(mean, influence, False, np.zeros(11), np.ones(11)), BASE, 0)
    assert high - low >= 8


def test_paired_errors_cancel_and_independent_ones_add():
    generator = np.random.default_rng(1)
    shared = generator.normal(size=(300, 3, 1))
    influence = np.stack([shared, shared + 0.01 * generator.normal(size=shared.shape)])
    mean = np.zeros((2, 1))
    nothing = np.zeros(2)
    paired = steering.change(Curve(mean, influence, True, nothing, nothing), 1, 0)[1]
    independent = steering.change(Curve(mean, influence, False, nothing, nothing), 1, 0)[1]
    assert paired < 0.02 * independent
    single = Curve(mean, influence, False, nothing, nothing).error[0]
    assert independent[0] == pytest.approx(np.sqrt(2) * single[0], rel=0.05)


def test_relative_deviation():
    curve = exact_curve(lambda a: a, lambda a: -20 + a)
    deviation, error = steering.relative_deviation(curve, BASE)
    np.testing.assert_allclose(deviation, (SCALES - 1) / 20)
    assert np.all(error == 0)


@pytest.mark.parametrize(
    ("slope", "curvature", "chi"),
    [(1, 0, 1), (1, -1, 1), (1, 1, np.nan), (np.nan, 1, 1), (1, 1, -2), (1, 1, np.inf)],
)
def test_efficiency_is_undefined_without_a_positive_curvature_and_response(slope, curvature, chi):
    assert np.isnan(steering.efficiency(slope, curvature, chi))


def test_efficiency_of_the_best_state_is_one():
    """dO = chi lambda and dE = chi lambda^2 / 2 along the true response: slope chi, curvature chi."""
    assert steering.efficiency(0.7, 0.7, 0.7) == pytest.approx(1)
