"""The gain over the best control: its value, its paired interval, the sentence that reports it."""

import dataclasses

import numpy as np
import pytest

from nqs_sae_service.interpret.correlation import chain_counts, pearson
from nqs_sae_service.interpret.gain import gain_over_controls
from nqs_sae_service.interpret.verdict import Evidence, verdict


def generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def noisy(rng, o, r):
    """A series with correlation r to the unit-variance observable o."""
    return r * o + np.sqrt(1 - r**2) * rng.standard_normal(o.shape)


def test_gain_is_the_distance_to_the_strongest_control_of_either_sign():
    rng = generator(1)
    o = rng.standard_normal((80, 40, 1))
    feature, controls = noisy(rng, o, 0.9), np.stack([noisy(rng, o, 0.2), -noisy(rng, o, 0.7), 0 * o])
    gain = gain_over_controls(feature, controls, o, chain_counts(80, 400, rng), 0.95)
    assert gain.feature[0] == pytest.approx(0.9, abs=0.02)
    assert gain.control[:, 0] == pytest.approx([0.2, -0.7, 0.0], abs=0.05)
    assert gain.value[0] == pytest.approx(gain.feature[0] + gain.control[1, 0])
    assert 0.1 < gain.low[0] < 0.2 < gain.high[0] < 0.3
    assert np.all(gain.control_low <= gain.control)
    assert np.all(gain.control <= gain.control_high)


def test_a_feature_that_is_the_best_neuron_gains_exactly_nothing():
    rng = generator(2)
    o = rng.standard_normal((30, 20, 1))
    neuron = noisy(rng, o, 0.8)
    gain = gain_over_controls(-3 * neuron, neuron[None], o, chain_counts(30, 200, rng), 0.95)
    for end in (gain.value, gain.low, gain.high):
        assert end[0] == pytest.approx(0, abs=1e-12)


def test_the_interval_of_the_difference_is_paired():
    rng = generator(3)
    o = rng.standard_normal((40, 10, 1))
    neuron = noisy(rng, o, 0.6)
    feature = neuron + 0.05 * rng.standard_normal(o.shape)
    gain = gain_over_controls(feature, neuron[None], o, chain_counts(40, 400, rng), 0.95)
    alone = gain.control_high[0, 0] - gain.control_low[0, 0]
    assert gain.high[0] - gain.low[0] < 0.3 * alone
    assert gain.low[0] < 0 < gain.high[0] + 0.01


def test_gain_intervals_cover_the_truth():
    rng = generator(4)
    covered = 0
    for _ in range(200):
        o = rng.standard_normal((40, 8, 1))
        controls = np.stack([noisy(rng, o, 0.6), noisy(rng, o, 0.3)])
        gain = gain_over_controls(noisy(rng, o, 0.5), controls, o, chain_counts(40, 200, rng), 0.95)
        covered += gain.low[0] <= -0.1 <= gain.high[0]
    assert 0.90 <= covered / 200 <= 0.99


def test_observables_do_not_mix_and_constant_ones_are_undefined():
    rng = generator(5)
    o = np.concatenate([rng.standard_normal((20, 10, 1)), np.ones((20, 10, 1))], axis=-1)
    feature, controls = noisy(rng, o, 0.7), noisy(rng, o, 0.3)[None]
    counts = chain_counts(20, 100, rng)
    gain = gain_over_controls(feature, controls, o, counts, 0.95)
    alone = gain_over_controls(feature[..., :1], controls[..., :1], o[..., :1], counts, 0.95)
    for both, one in zip(dataclasses.astuple(gain), dataclasses.astuple(alone), strict=True):
        np.testing.assert_array_equal(both[..., :1], one)
        assert np.all(np.isnan(both[..., 1]))
    assert gain.feature[0] == pytest.approx(pearson(feature[..., :1], o[..., :1])[0, 0])


def test_too_few_chains_give_no_interval_of_the_gain():
    rng = generator(6)
    o = rng.standard_normal((20, 10, 1))
    counts = chain_counts(20, 100, rng)
    often, rarely = noisy(rng, o, 0.7), noisy(rng, o, 0.7) * (np.arange(20) < 1)[:, None, None]
    weak = noisy(rng, o, 0.1)
    for feature, controls, known in ((often, [weak, rarely], True), (rarely, [weak], False)):
        gain = gain_over_controls(feature, np.stack(controls), o, counts, 0.95)
        assert np.isfinite(gain.value[0])
        assert np.isfinite([gain.low[0], gain.high[0]]).all() == (known and abs(gain.control[0, 0]) > 0)
    strongest = gain_over_controls(weak, rarely[None] * 1.0, o, counts, 0.95)
    assert np.isnan(strongest.low[0])


EVIDENCE = Evidence(
    layer="residual_2",
    observable="abs_magnetization",
    feature=17,
    pearson=-0.82,
    p_value=0.001,
    q_value=0.004,
    control="pca",
    control_pearson=-0.7,
    gain=0.12,
    gain_low=0.08,
    gain_high=0.15,
    confidence=0.95,
    permutations=1000,
    participation_ratio=5.0,
    test_chains=64,
)


@pytest.mark.parametrize(
    ("change", "start"),
    [
        ({}, "feature found: feature 17 follows abs_magnetization at residual_2 with r = -0.820"),
        ({"gain_low": -0.01}, "no better than controls: "),
        ({"gain_low": 0.0}, "no better than controls: "),
        ({"q_value": 0.2}, "no better than controls: "),
        ({"participation_ratio": 1.3}, "SAE not informative here (participation ratio 1.30): "),
        (
            {"pearson": np.nan, "gain_low": np.nan, "q_value": np.nan},
            "undefined: abs_magnetization does not vary",
        ),
        ({"feature": -1, "pearson": 0.0}, "undefined: no feature of residual_2 varies"),
    ],
)
def test_verdict_begins_with_the_judgement(change, start):
    sentence = verdict(dataclasses.replace(EVIDENCE, **change))
    assert sentence.startswith(start)
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({}, "gain +0.120 [+0.080, +0.150] (95 %), q = 0.004"),
        ({}, "the best control (pca) with |r| = 0.700"),
        ({"q_value": 0.3, "p_value": 1 / 1001}, "raise features.permutations"),
        ({"test_chains": 4}, "only 4 test chains"),
        ({"gain_low": np.nan, "gain_high": np.nan}, "gain +0.120 (no interval: too few chains carry it)"),
        ({"stability": 0.31}, "other seeds of the dictionary do not find this feature (stability 0.31)"),
        (
            {"simple_function_r2": 0.998},
            "simple functions of the configuration explain 99.8 % of abs_magnetization",
        ),
    ],
)
def test_verdict_carries_the_numbers_and_the_reservations(change, part):
    assert part in verdict(dataclasses.replace(EVIDENCE, **change))
    if change:
        assert part not in verdict(EVIDENCE)
