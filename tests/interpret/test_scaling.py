"""Laws of dictionaries against losses with known ones, and splitting of planted features."""

import numpy as np
import pytest

from nqs_sae_service.interpret import scaling as module
from nqs_sae_service.interpret.scaling import (
    BUDGETS,
    budgets,
    descent,
    law,
    lowest,
    operations,
    scaling,
)

SIZES = 2.0 ** np.arange(4, 13)
STEPS = 2.0 ** np.arange(3, 15)
RATES = np.array([1e-3, 3e-3, 1e-2])
COMPUTE = 10.0 * SIZES[:, None] * STEPS
A, B = 0.4, 0.6  # of loss = F^-A + steps^-B


def losses(noise: float, seeds: int, seed: int = 0) -> np.ndarray:
    """Loss (size, steps, rate, seed), lowest at the learning rate 3e-3 x (C / 1e6)^-0.1."""
    log_best = np.log(3e-3 * (COMPUTE / 1e6) ** -0.1)
    ideal = SIZES[:, None] ** -A + STEPS**-B
    off = 1 + 0.1 * (np.log(RATES) - log_best[..., None]) ** 2
    scatter = np.random.default_rng(seed).standard_normal((*off.shape, seeds))
    return (ideal[..., None] * off)[..., None] * np.exp(noise * scatter)


def test_the_minimum_of_a_parabola_is_found_between_its_points():
    x = np.array([0.0, 1.0, 3.0, 4.0])
    assert lowest(x, 2 + 3 * (x - 1.4) ** 2) == pytest.approx((1.4, 2.0, True))
    assert lowest(x, x) == (0.0, 0.0, False)
    assert lowest(x, np.array([np.nan, 2.0, 1.0, 2.0]))[2]
    assert np.isnan(lowest(x, np.full(4, np.nan))[0])
    assert lowest(x, np.ones(4)) == (0.0, 1.0, False)


def test_budgets_are_reached_by_three_sizes():
    at = budgets(COMPUTE)
    assert len(at) == BUDGETS
    for budget in at[[0, -1]]:
        reached = (COMPUTE.min(axis=1) <= budget * (1 + 1e-12)) & (
            COMPUTE.max(axis=1) >= budget * (1 - 1e-12)
        )
        assert reached.sum() >= 3
    assert not len(budgets(COMPUTE[:2]))
    assert not len(budgets(COMPUTE[:, :1]))


def test_the_laws_of_a_known_loss():
    """Minimising F^-A + (C / 10 F)^-B: F ~ C^(B / (A + B)), loss ~ C^(-A B / (A + B))."""
    found = scaling(SIZES, STEPS, RATES, COMPUTE, losses(0.0, 1))
    assert found is not None
    inside = found.frontier.inside
    assert inside.sum() >= 5
    assert found.laws["features"].exponent == pytest.approx(B / (A + B), abs=0.02)
    assert found.laws["steps"].exponent == pytest.approx(A / (A + B), abs=0.02)
    assert found.laws["loss"].exponent == pytest.approx(-A * B / (A + B), abs=0.01)
    assert found.laws["learning_rate"].exponent == pytest.approx(-0.1, abs=0.01)
    best = (A / B * (found.frontier.compute / 10) ** B) ** (1 / (A + B))
    np.testing.assert_allclose(found.frontier.features[inside], best[inside], rtol=0.1)
    np.testing.assert_allclose(
        10 * found.frontier.features * found.frontier.steps, found.frontier.compute, rtol=0.05
    )
    assert np.isnan(found.exponents["loss"]).all()  # one seed: no scatter, no interval
    assert np.isnan(found.low.loss).all()


def test_intervals_contain_the_exact_exponents(monkeypatch):
    monkeypatch.setattr(module, "REDRAWN", 100)
    inside = {"loss": 0, "features": 0}
    noiseless = scaling(SIZES, STEPS, RATES, COMPUTE, losses(0.0, 1))
    for seed in range(20):
        found = scaling(SIZES, STEPS, RATES, COMPUTE, losses(0.03, 3, seed))
        for name in inside:
            low, high = found.exponents[name]
            assert low < high
            inside[name] += low - 0.005 <= noiseless.laws[name].exponent <= high + 0.005
        assert (found.low.loss <= found.high.loss).all()
    assert min(inside.values()) >= 16, inside


def test_points_that_are_missing_and_optima_at_an_end():
    loss = losses(0.0, 2)
    loss[3, 4] = np.nan
    loss[:, :, 0] = np.nan
    assert scaling(SIZES, STEPS, RATES, COMPUTE, loss).frontier.inside.any()
    growing = np.broadcast_to(SIZES[:, None, None, None] ** -0.5, (*COMPUTE.shape, 1, 1))
    ended = scaling(SIZES, STEPS, RATES[:1], COMPUTE, growing)
    assert not ended.frontier.inside.any()
    assert np.isnan(ended.laws["features"].exponent)
    assert scaling(SIZES[:2], STEPS, RATES, COMPUTE[:2], losses(0.0, 1)[:2]) is None


def test_a_law_needs_three_points():
    c = np.array([1.0, 10.0, 100.0])
    found = law(c, 3 * c**-0.25)
    assert (found.prefactor, found.exponent) == pytest.approx((3.0, -0.25))
    assert np.isnan(law(c, np.array([1.0, np.nan, 2.0])).exponent)


def test_operations_of_an_input():
    assert operations(8, 1000, 32) == 2 * 1000 * 32 + 8 * 8 * 32
    assert operations(0, 1000, 32) == 10 * 1000 * 32


def test_planted_features_are_kept_split_lost_and_new():
    rng = np.random.default_rng(3)
    width = 64
    small = np.linalg.qr(rng.standard_normal((width, 30)))[0].T
    near = lambda i: small[i] + 0.05 * rng.standard_normal(width)  # noqa: E731
    kept, split = range(10), range(10, 20)  # 20 ... 29 are lost
    fresh = np.linalg.qr(np.concatenate([small, rng.standard_normal((15, width))]).T)[0].T[30:]
    large = np.stack([*(near(i) for i in kept), *(near(i) for i in split for _ in range(3)), *fresh])
    live = np.ones(len(large), bool)
    live[-5:] = False
    found = descent(3 * small, 0.5 * large, np.ones(30, bool), live)
    assert found.shares == pytest.approx({"lost": 1 / 3, "kept": 1 / 3, "split": 1 / 3, "new": 10 / 50})
    np.testing.assert_array_equal(found.parent[:10], kept)
    np.testing.assert_array_equal(found.parent[10:40], np.repeat(split, 3))
    assert (found.parent[-5:] == -1).all()
    assert np.isnan(found.cosine[-5:]).all()
    assert (found.cosine[:40] > 0.8).all()


def test_unrelated_dictionaries_hardly_descend_from_each_other():
    rng = np.random.default_rng(4)
    small, large = rng.standard_normal((200, 8)), rng.standard_normal((3000, 8))
    found = descent(small, large, np.ones(200, bool), np.ones(3000, bool))
    assert found.shares["new"] == pytest.approx(0.99, abs=0.01)
    assert descent(small, large, np.zeros(200, bool), np.ones(3000, bool)) is None
