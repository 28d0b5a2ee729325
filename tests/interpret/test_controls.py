"""Controls: candidates chosen on select chains, measured on test chains."""

import numpy as np
import pytest

from nqs_sae_service.interpret import controls, series
from nqs_sae_service.interpret.correlation import pearson


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def rows_of(x, **options):
    """Rows over an array x (chain, draw, token, width)."""
    everything = np.arange(len(x))
    return series.Rows(
        lambda chains, draws: x[chains][:, draws], everything, x.shape[1], x.shape[2], **options
    )


def test_the_best_candidate_is_chosen_by_size_and_measured_elsewhere():
    rng = generator(1)
    o = rng.standard_normal((2, 30, 10, 2))  # select and test
    f = rng.standard_normal((2, 30, 10, 5))
    f[..., 3] -= 2 * o[..., 0]
    f[..., 1] += 2 * o[..., 1]
    best = controls.best_candidate(f[0], o[0])
    assert best.tolist() == [3, 1]
    chosen = controls.chosen(f[1], best)
    np.testing.assert_array_equal(chosen[..., 0], f[1, ..., 3])
    np.testing.assert_array_equal(chosen[..., 1], f[1, ..., 1])
    assert pearson(chosen, o[1])[0, 0] == pytest.approx(-0.9, abs=0.05)


def test_nothing_is_chosen_for_a_constant_observable_or_among_dead_features():
    rng = generator(2)
    o = np.stack([rng.standard_normal((4, 5)), np.full((4, 5), 7.0)], axis=-1)
    assert controls.best_candidate(rng.standard_normal((4, 5, 3)), o)[1] == -1
    best = controls.best_candidate(np.zeros((4, 5, 3)), o)
    assert best.tolist() == [-1, -1]
    assert not controls.chosen(np.ones((4, 5, 3)), best).any()


def test_principal_directions_are_those_of_the_rows():
    rng = generator(3)
    axes = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    x = rng.standard_normal((20, 30, 6, 4)) * [5.0, 2.0, 1.0, 0.3] @ axes.T + 3.0
    moments = series.row_moments(rows_of(x), 4)
    directions = controls.principal_directions(moments)
    np.testing.assert_allclose(np.abs(directions @ axes), np.eye(4), atol=0.1)
    f = series.per_sample(controls.linear_average(directions, moments.mean), rows_of(x), 4)
    np.testing.assert_allclose(f, (x.mean(axis=2) - x.mean(axis=(0, 1, 2))) @ directions.T, atol=1e-5)


def test_moments_do_not_cancel_and_do_not_depend_on_blocks(monkeypatch):
    x = generator(4).standard_normal((7, 9, 2, 3)) + 1e6
    whole = series.row_moments(rows_of(x), 3)
    flat = x.reshape(-1, 3)
    assert whole.count == len(flat)
    np.testing.assert_allclose(whole.covariance, np.cov(flat.T, bias=True), atol=1e-8)
    monkeypatch.setattr(series, "BLOCK", 24)  # four samples, less than a chain
    parts = series.row_moments(rows_of(x), 3)
    np.testing.assert_allclose(parts.mean, flat.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(parts.covariance, whole.covariance, atol=1e-8)


@pytest.mark.parametrize("block", [1, 50, 10**6])
@pytest.mark.parametrize("pooled", [False, True])
def test_samples_are_token_means_whatever_the_blocks(monkeypatch, block, pooled):
    monkeypatch.setattr(series, "BLOCK", block)
    x = generator(5).standard_normal((5, 7, 3, 4))
    ticks = []
    rows = rows_of(x, pooled=pooled, tick=lambda: ticks.append(1))
    f = series.per_sample(lambda x: np.maximum(x, 0).mean(axis=1), rows, 4)
    seen = x.mean(axis=2, keepdims=True) if pooled else x
    np.testing.assert_allclose(f, np.maximum(seen, 0).mean(axis=2), rtol=1e-6)
    assert ticks


def test_random_directions_are_rectified_unit_vectors():
    x = generator(6).standard_normal((50, 20, 1, 3)).astype(np.float32) + 5
    average = controls.random_average(3, 40, np.full(3, 5.0), generator(7))
    f = series.per_sample(average, rows_of(x), 40)
    assert f.min() == 0
    np.testing.assert_allclose(np.mean(f, axis=(0, 1)), 1 / np.sqrt(2 * np.pi), rtol=0.2)  # E max(N(0, 1), 0)
    again = series.per_sample(controls.random_average(3, 40, np.full(3, 5.0), generator(7)), rows_of(x), 40)
    np.testing.assert_array_equal(f, again)


def test_spin_regression_finds_linear_observables_and_no_others():
    rng = generator(8)
    sigma = rng.choice(np.array([-1, 1], np.int8), (2, 40, 50, 6))
    weights = np.array([1.0, -2.0, 0.0, 0.5, 0.0, 3.0])
    o = np.stack([sigma @ weights + 4.0, sigma[..., 0] * sigma[..., 1]], axis=-1)
    joint = np.concatenate([sigma[0], o[0]], axis=-1)[:, :, None]
    predict = controls.spin_regression(series.row_moments(rows_of(joint), 8), 6)
    r = pearson(series.per_sample(predict, rows_of(sigma[1][:, :, None]), 2), o[1])
    assert r[0, 0] == pytest.approx(1.0, abs=1e-6)
    assert abs(r[1, 1]) < 0.1


def test_spin_regression_survives_frozen_spins_and_fewer_samples_than_sites():
    rng = generator(9)
    sigma = np.ones((1, 3, 1, 10), np.int8)
    sigma[0, :, 0, 0] = [1, -1, 1]
    joint = np.concatenate([sigma, rng.standard_normal((1, 3, 1, 1))], axis=-1)
    predict = controls.spin_regression(series.row_moments(rows_of(joint), 11), 10)
    assert np.all(np.isfinite(predict(sigma[0])))


def test_no_chain_is_its_own_partner():
    for n_chains in (2, 3, 50):
        partner = controls.other_chain(n_chains, generator(n_chains))
        assert sorted(partner) == list(range(n_chains))
        assert np.all(partner != np.arange(n_chains))
