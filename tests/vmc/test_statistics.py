"""Error bars are held to what they claim: coverage over replicas of processes whose mean and tau are known."""

import numpy as np
import pytest

from nqs_sae_service.vmc.statistics import (
    autocorrelation_time,
    covariance,
    effective_sample_size,
    mean_and_error,
    split_r_hat,
    v_score,
    weighted_mean,
)


def autoregressive(rng, shape, rho):
    """AR(1) of unit variance along axis 1, mean 0, tau = (1 + rho) / (1 - rho)."""
    noise = rng.normal(size=shape)
    x = np.empty(shape)
    x[:, 0] = noise[:, 0]
    for t in range(1, shape[1]):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * noise[:, t]
    return x


def coverage(mean, error, truth=0.0):
    """Share of the replicas whose 95 % interval holds the truth."""
    return np.mean(np.abs(mean - truth) < 1.96 * error)


@pytest.mark.parametrize(("chains", "draws"), [(64, 32), (256, 1), (16, 64), (4, 512), (1, 2048)])
def test_intervals_of_a_mean_cover(chains, draws):
    replicas = autoregressive(np.random.default_rng(1), (chains, draws, 400), rho=0.8)
    mean, error = mean_and_error(replicas)
    assert mean.shape == error.shape == (400,)
    assert 0.90 <= coverage(mean, error) <= 0.99


def test_naive_error_would_not_cover():
    replicas = autoregressive(np.random.default_rng(1), (64, 32, 400), rho=0.8)
    naive = replicas.std(axis=(0, 1)) / np.sqrt(64 * 32)
    assert coverage(replicas.mean(axis=(0, 1)), naive) < 0.75


def test_one_draw_per_chain_is_the_textbook_error():
    values = np.random.default_rng(2).normal(size=(100, 1))
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / 10)
    assert np.isnan(mean_and_error(values[:1])[1])


def test_weighted_mean_without_weights_is_the_mean():
    values = autoregressive(np.random.default_rng(3), (32, 20, 3), rho=0.5)
    for plain, weighted in zip(
        mean_and_error(values), weighted_mean(values, np.full((32, 20), 7.0)), strict=True
    ):
        np.testing.assert_allclose(weighted, plain, rtol=1e-12)


def test_intervals_of_a_reweighted_mean_cover():
    """x ~ N(0, 1) reweighted by exp(a x) has mean a."""
    rng, shift = np.random.default_rng(4), 0.5
    results = []
    for _ in range(300):
        x = autoregressive(rng, (64, 16), rho=0.7)
        results.append(weighted_mean(x, np.exp(shift * x)))
    mean, error = np.array(results).T
    assert 0.90 <= coverage(mean, error, shift) <= 0.99
    assert mean.mean() == pytest.approx(shift, abs=0.01)


def test_reweighted_error_is_the_jackknife_error():
    rng = np.random.default_rng(5)
    x = autoregressive(rng, (200, 8), rho=0.6)
    weights = np.exp(0.4 * x)
    leave_one_out = np.array(
        [weighted_mean(np.delete(x, c, axis=0), np.delete(weights, c, axis=0))[0] for c in range(200)]
    )
    jackknife = np.sqrt(199 / 200 * np.sum((leave_one_out - leave_one_out.mean()) ** 2))
    assert weighted_mean(x, weights)[1] == pytest.approx(jackknife, rel=0.02)


def test_weights_that_vanish_are_refused():
    with pytest.raises(ValueError, match="weights vanish"):
        weighted_mean(np.ones((4, 4)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="not finite"):
        weighted_mean(np.ones((4, 4)), np.full((4, 4), np.nan))


def test_intervals_of_a_covariance_cover():
    rng, results = np.random.default_rng(6), []
    for _ in range(300):
        x, z = autoregressive(rng, (64, 16), 0.6), autoregressive(rng, (64, 16), 0.6)
        results.append(covariance(x + 3.0, 0.5 * x + z - 2.0))
    estimate, error = np.array(results).T
    assert 0.90 <= coverage(estimate, error, 0.5) <= 0.99


def test_complex_covariance_conjugates_one_factor():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(50, 4)) + 1j * rng.normal(size=(50, 4))
    y = np.stack([x * 1j, x], axis=-1)
    estimate, _ = covariance(x[..., None], y)
    assert estimate[0] == pytest.approx(0, abs=1e-12)  # Re(conj(x) i x) = 0
    assert estimate[1] == pytest.approx(np.mean(np.abs(x - x.mean()) ** 2), rel=1e-12)


def test_covariance_under_weights_is_that_of_the_weighted_ensemble():
    x = np.random.default_rng(8).normal(size=(2000, 20))
    estimate, error = covariance(x, x**2, np.exp(0.5 * x))  # N(a, 1): Cov(x, x^2) = 2 a
    assert abs(estimate - 1.0) < 5 * error


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.4])
def test_autocorrelation_time_of_a_known_process(rho):
    x = autoregressive(np.random.default_rng(9), (64, 2000), rho)
    assert autocorrelation_time(x) == pytest.approx((1 + rho) / (1 - rho), rel=0.1)


def test_autocorrelation_time_of_many_short_chains():
    x = autoregressive(np.random.default_rng(10), (4096, 32, 2), rho=0.5)
    np.testing.assert_allclose(autocorrelation_time(x), 3.0, rtol=0.1)


def test_constant_values_have_no_correlation_and_agree():
    constant = np.full((8, 10), 0.1)
    assert autocorrelation_time(constant) == 1.0
    assert split_r_hat(constant) == 1.0
    assert mean_and_error(constant)[1] == pytest.approx(0, abs=1e-15)


def test_r_hat_of_agreeing_and_of_stuck_chains():
    rng = np.random.default_rng(11)
    agreeing = rng.normal(size=(64, 200, 2))
    assert np.all(np.abs(split_r_hat(agreeing) - 1) < 0.01)
    sectors = agreeing + np.where(np.arange(64) % 2, 3.0, -3.0)[:, None, None]
    assert np.all(split_r_hat(sectors) > 2)
    frozen = np.repeat(np.array([[1.0], [-1.0]]), 10, axis=1)
    assert split_r_hat(frozen) == np.inf


def test_r_hat_sees_a_drift_that_all_chains_share():
    drifting = np.random.default_rng(12).normal(size=(64, 200)) + np.linspace(-3, 3, 200)
    assert split_r_hat(drifting) > 1.5


def test_r_hat_by_hand():
    halves = np.array([[0.0, 2.0], [1.0, 5.0], [4.0, 4.0], [2.0, 0.0]])
    chains = halves.reshape(2, 4)
    within, between = halves.var(axis=1, ddof=1).mean(), 2 * halves.mean(axis=1).var(ddof=1)
    assert split_r_hat(chains) == pytest.approx(np.sqrt((0.5 * within + between / 2) / within))
    assert split_r_hat(np.concatenate([[[99.0], [99.0]], chains], axis=1)) == split_r_hat(chains)


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_r_hat_needs_four_draws(draws):
    assert np.isnan(split_r_hat(np.zeros((10, draws))))


def test_effective_sample_size():
    assert effective_sample_size(np.full((5, 4), 1e-300)) == pytest.approx(20)
    one_hot = np.zeros((5, 4))
    one_hot[2, 1] = 3.0
    assert effective_sample_size(one_hot) == 1.0
    x = np.random.default_rng(13).normal(size=(1000, 200))
    assert effective_sample_size(np.exp(0.5 * x)) / x.size == pytest.approx(np.exp(-0.25), rel=0.02)


def test_v_score():
    assert v_score(-20.0, 0.5, 16) == pytest.approx(16 * 0.5 / 400)
    assert v_score(-20.0, 0.5, 16, energy_at_infinity=-10.0) == pytest.approx(16 * 0.5 / 100)
    assert v_score(-20.0, 0.0, 16) == 0
