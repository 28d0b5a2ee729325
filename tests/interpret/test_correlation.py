"""Correlations between features and observables: exact values, honest errors, corner cases."""

import numpy as np
import pytest
from scipy import stats

from nqs_sae_service.interpret import correlation


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def autoregressive(rng, chains, draws, columns, persistence):
    """Stationary AR(1) chains (chain, draw, column) with unit variance."""
    x = np.empty((chains, draws, columns))
    x[:, 0] = rng.standard_normal((chains, columns))
    for t in range(1, draws):
        x[:, t] = persistence * x[:, t - 1] + np.sqrt(1 - persistence**2) * rng.standard_normal(
            (chains, columns)
        )
    return x


def planted(rng, chains, draws, r, persistence=0.0):
    """One feature and one observable with correlation r."""
    x = autoregressive(rng, chains, draws, 2, persistence)
    return x[..., :1], r * x[..., :1] + np.sqrt(1 - r**2) * x[..., 1:]


def test_pearson_and_spearman_equal_scipy():
    rng = generator(1)
    f = rng.standard_normal((5, 40, 7)) * 10.0 ** np.arange(-3, 4) + 100
    f[..., 3] = np.maximum(f[..., 3] - 100, 0)  # ties at zero, as a sparse feature has
    o = f[..., :3] + rng.standard_normal((5, 40, 3))
    r, rank = correlation.pearson(f, o), correlation.spearman(f, o)
    for i in range(7):
        for j in range(3):
            a, b = f[..., i].ravel(), o[..., j].ravel()
            assert r[i, j] == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-10)
            assert rank[i, j] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_pearson_is_accurate_far_from_zero():
    x = generator(2).standard_normal((10, 100, 2))
    shifted = correlation.pearson(x[..., :1] + 1e6, x[..., 1:] - 1e7)
    assert shifted == pytest.approx(correlation.pearson(x[..., :1], x[..., 1:]), abs=1e-8)


def test_planted_correlation_is_found_and_covered():
    rng = generator(3)
    f, o = planted(rng, 200, 50, -0.6)
    counts = correlation.chain_counts(200, 500, rng)
    low, high = correlation.bootstrap_interval(f, o, counts, 0.95)
    assert correlation.pearson(f, o)[0, 0] == pytest.approx(-0.6, abs=0.03)
    assert low[0, 0] < -0.6 < high[0, 0]
    assert high[0, 0] - low[0, 0] == pytest.approx(2 * 1.96 * (1 - 0.36) / np.sqrt(200 * 50), rel=0.25)


def test_replica_equals_pearson_of_the_repeated_chains():
    rng = generator(4)
    f, o = rng.standard_normal((6, 9, 3)), rng.standard_normal((6, 9, 2))
    counts = correlation.chain_counts(6, 20, rng)
    assert np.all(counts.sum(axis=1) == 6)
    replicas = correlation.resampled_pearson(f, o, counts)
    for replica, count in zip(replicas, counts, strict=True):
        drawn = np.repeat(np.arange(6), count.astype(int))
        np.testing.assert_allclose(replica, correlation.pearson(f[drawn], o[drawn]), atol=1e-12)


def test_permutation_p_value_equals_the_explicit_count():
    rng = generator(5)
    f, o = planted(rng, 12, 5, 0.3)
    o = np.concatenate([o, rng.standard_normal(o.shape)], axis=-1)
    permutations = correlation.chain_permutations(12, 99, rng)
    p = correlation.permutation_p_values(f, o, permutations)
    measured = np.abs(correlation.pearson(f, o))
    count = sum(np.abs(correlation.pearson(f, o[order])) >= measured - 1e-12 for order in permutations)
    np.testing.assert_allclose(p, (1 + count) / 100)


def test_p_values_of_unrelated_autocorrelated_chains_are_uniform_where_naive_ones_are_tiny():
    rng = generator(6)
    f = autoregressive(rng, 16, 60, 150, 0.98)
    naive, honest = [], []
    for _ in range(4):
        o = autoregressive(rng, 16, 60, 1, 0.98)
        honest.append(
            correlation.permutation_p_values(f, o, correlation.chain_permutations(16, 199, rng))[:, 0]
        )
        naive.append(stats.pearsonr(f.reshape(-1, 150), o.reshape(-1, 1), axis=0).pvalue)
    naive, honest = np.concatenate(naive), np.concatenate(honest)
    assert np.mean(naive < 0.05) > 0.5
    assert np.mean(honest < 0.05) == pytest.approx(0.05, abs=0.03)
    assert stats.kstest(honest, "uniform").statistic < 0.08


def test_false_discoveries_stay_at_the_nominal_rate():
    rng = generator(7)
    discovered = 0
    for _ in range(60):
        f, o = autoregressive(rng, 20, 10, 30, 0.8), autoregressive(rng, 20, 10, 2, 0.8)
        p = correlation.permutation_p_values(f, o, correlation.chain_permutations(20, 999, rng))
        discovered += bool(np.any(correlation.q_values(p, np.ones(30, bool)) < 0.05))
    assert discovered <= 9  # under the null at most 5 % of 60 families, 3 +- 1.7


def test_strong_correlation_reaches_the_smallest_p_value():
    rng = generator(8)
    f, o = planted(rng, 30, 10, 0.9)
    assert correlation.permutation_p_values(
        f, -o, correlation.chain_permutations(30, 99, rng)
    ) == pytest.approx(0.01)


@pytest.mark.parametrize("persistence", [0.0, 0.9])
def test_intervals_cover_the_truth_on_autocorrelated_chains(persistence):
    rng = generator(9)
    truth, covered = 0.5, 0
    for _ in range(300):
        f, o = planted(rng, 64, 12, truth, persistence)
        counts = correlation.chain_counts(64, 200, rng)
        low, high = correlation.bootstrap_interval(f, o, counts, 0.95)
        covered += low[0, 0] <= truth <= high[0, 0]
    assert 0.90 <= covered / 300 <= 0.99


def test_dead_and_constant_features_have_no_correlation_and_are_no_tests():
    rng = generator(10)
    f, o = planted(rng, 20, 10, 0.9)
    rounding = np.float32(3) * (1 + 1e-7 * rng.standard_normal(f.shape))
    f = np.concatenate([f, 0 * f, 0 * f + 0.1, rounding], axis=-1).astype(np.float32)
    alive = correlation.varies(f)
    assert alive.tolist() == [True, False, False, False]
    counts, orders = correlation.chain_counts(20, 50, rng), correlation.chain_permutations(20, 99, rng)
    p = correlation.permutation_p_values(f, o, orders)
    for r in (correlation.pearson(f, o), correlation.spearman(f, o)):
        assert r[0, 0] > 0.8
        assert np.all(r[1:] == 0)
    assert np.all(np.stack(correlation.bootstrap_interval(f, o, counts, 0.95))[:, 1:] == 0)
    assert p[0, 0] == pytest.approx(0.01)
    assert np.all(p[1:] == 1)
    q = correlation.q_values(p, alive)
    assert q[:, 0] == pytest.approx([0.01, 1, 1, 1])  # one test, not four


def test_a_feature_that_fires_in_one_chain_survives_replicas_without_that_chain():
    rng = generator(11)
    f, o = np.zeros((8, 5, 1)), rng.standard_normal((8, 5, 1))
    f[3] = 1.0 + rng.random((5, 1))
    replicas = correlation.resampled_pearson(f, o, correlation.chain_counts(8, 200, rng))
    assert np.all(np.isfinite(replicas))
    assert np.mean(replicas == 0) == pytest.approx((7 / 8) ** 8, abs=0.15)


@pytest.mark.parametrize("value", [2.5, np.nan, np.inf])
def test_an_observable_that_is_constant_or_not_finite_is_undefined_alone(value):
    rng = generator(12)
    f, o = planted(rng, 20, 10, 0.9)
    broken = np.full_like(o, value) if value == 2.5 else np.where(np.arange(20)[:, None, None] == 4, value, o)
    both = np.concatenate([broken, o], axis=-1)
    counts, orders = correlation.chain_counts(20, 50, rng), correlation.chain_permutations(20, 99, rng)
    p = correlation.permutation_p_values(f, both, orders)
    tables = [correlation.pearson(f, both), correlation.spearman(f, both), p]
    tables += [
        *correlation.bootstrap_interval(f, both, counts, 0.95),
        correlation.q_values(p, np.ones(1, bool)),
    ]
    for table in tables:
        assert np.isnan(table[0, 0])
        assert np.isfinite(table[0, 1])


def test_small_blocks_change_nothing(monkeypatch):
    rng = generator(13)
    f, o = rng.standard_normal((6, 8, 11)).astype(np.float32), rng.standard_normal((6, 8, 3))
    counts, orders = correlation.chain_counts(6, 40, rng), correlation.chain_permutations(6, 30, rng)

    def everything():
        low, high = correlation.bootstrap_interval(f, o, counts, 0.9)
        p = correlation.permutation_p_values(f, o, orders)
        return correlation.pearson(f, o), correlation.spearman(f, o), low, high, p

    whole = everything()
    monkeypatch.setattr(correlation, "BLOCK", 100)
    for a, b in zip(whole, everything(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_random_numbers_follow_the_seed():
    for make in (correlation.chain_counts, correlation.chain_permutations):
        np.testing.assert_array_equal(make(9, 5, generator(1)), make(9, 5, generator(1)))
        assert np.any(make(9, 5, generator(1)) != make(9, 5, generator(2)))
    assert np.all(np.sort(correlation.chain_permutations(9, 5, generator(1)), axis=1) == np.arange(9))


def test_partial_correlation_is_that_of_the_regressions_rests():
    rng = np.random.default_rng(5)
    design = np.stack([np.ones((6, 40)), *(rng.normal(size=(2, 6, 40)))], axis=-1)
    design[..., 2] *= 1e-4  # scales do not matter
    hidden = rng.normal(size=(6, 40, 1))
    f = design @ rng.normal(size=(3, 4)) + hidden + 0.5 * rng.normal(size=(6, 40, 4))
    o = design @ rng.normal(size=(3, 2)) - hidden
    found = correlation.pearson(correlation.beyond(f, design), correlation.beyond(o, design))
    d, f, o = design.reshape(-1, 3), f.reshape(-1, 4), o.reshape(-1, 2)
    rest_f, rest_o = (x - d @ np.linalg.lstsq(d, x, rcond=None)[0] for x in (f, o))
    np.testing.assert_allclose(found, np.corrcoef(rest_f.T, rest_o.T)[:4, 4:], atol=1e-10)
    assert np.all(found < -0.8)


def test_nothing_lies_beyond_the_functions_themselves():
    """What is left of them is rounding, and must not correlate with anything."""
    rng = np.random.default_rng(6)
    design = np.stack([np.ones((6, 40)), *(1e3 * rng.normal(size=(2, 6, 40)))], axis=-1)
    explained = (design @ rng.normal(size=(3, 3))).astype(np.float32)
    rest = correlation.beyond(explained, design)
    assert not rest.any()
    assert np.isnan(correlation.pearson(rng.normal(size=(6, 40, 2)), rest)).all()


def test_intervals_are_t_times_the_bootstrap_error_of_fishers_z():
    """Everything once more in loops, for a feature that fires in few chains and one that always does."""
    rng = generator(20)
    f, o = planted(rng, 12, 10, 0.4)
    rare = np.maximum(f, 0) * (np.arange(12) % 2 == 0)[:, None, None]
    f = np.concatenate([f, rare], axis=-1)
    counts = correlation.chain_counts(12, 60, rng)
    low, high = correlation.bootstrap_interval(f, o, counts, 0.9)
    for k in range(2):

        def z(chains, k=k):
            a, b = f[chains][..., k].ravel(), o[chains].ravel()
            return np.arctanh(np.corrcoef(a, b)[0, 1])

        every = np.arange(12)
        replicas = [z(np.repeat(every, count.astype(int))) for count in counts]
        u = np.array([z(np.delete(every, c)) for c in every])
        u -= u.mean()
        freedom = min(2 * 12 / (np.mean(u**4) / np.mean(u**2) ** 2 - 1), 11)
        reach = stats.t.ppf(0.95, freedom) * np.std(replicas, ddof=1) * np.sqrt(12 / 11)
        assert np.arctanh(low[k, 0]) == pytest.approx(z(every) - reach)
        assert np.arctanh(high[k, 0]) == pytest.approx(z(every) + reach)


def test_what_too_few_chains_carry_has_no_interval():
    rng = generator(21)
    f, o = planted(rng, 20, 10, 0.5)
    one, two, four = (f * (np.arange(20) < n)[:, None, None] for n in (1, 2, 4))
    x = np.concatenate([f, one, two, four, 0 * f], axis=-1)
    carry = correlation.effective_chains(x)
    assert 10 < carry[0] <= 20
    assert carry[1] < 1.2
    assert carry[2] < 2.5
    assert 3 < carry[3] < 5
    assert carry[4] == np.inf
    counts = correlation.chain_counts(20, 50, rng)
    low, high = correlation.bootstrap_interval(x, np.concatenate([o, one], axis=-1), counts, 0.95)
    known = np.isfinite(low) & np.isfinite(high)
    assert known[:, 0].tolist() == [True, False, False, True, True]
    assert not known[:, 1].any()
    assert np.all(low[[0, 3, 4], 0] <= high[[0, 3, 4], 0])


def test_intervals_of_rarely_firing_features_cover():
    """A feature that fires in one chain of eight, with an observable that it is a part of."""
    rng = generator(22)
    fires = 1 / 8
    covered = []
    for _ in range(300):
        strength = (rng.random((80, 1, 1)) < fires) * (0.5 + rng.random((80, 1, 1)))
        f = strength * rng.random((80, 6, 1))
        o = f + rng.standard_normal(f.shape)
        variance = fires * (13 / 12) / 3 - (fires / 2) ** 2
        truth = np.sqrt(variance / (1 + variance))
        low, high = correlation.bootstrap_interval(f, o, correlation.chain_counts(80, 200, rng), 0.95)
        covered.append(low[0, 0] <= truth <= high[0, 0])
    assert 0.92 < np.mean(covered) < 0.98
