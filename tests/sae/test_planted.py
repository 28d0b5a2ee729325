"""Planted dictionaries: the data are what they say, the scores what they mean, and dictionaries find the features."""

from dataclasses import replace

import numpy as np
import pytest

from nqs_sae_service.sae import KINDS
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.sae.planted import REGIMES, Planted, Regime, planted, score

EASY = Regime(features=24, width=32, active=2.0)


def silent(done, total, message):
    pass


def perfect(truth):
    """What reads the features of data without noise whose directions are independent."""
    inverse = np.linalg.pinv(truth.directions.astype(np.float64)).T
    zero, none = np.full(len(truth.directions), -0.1, np.float32), np.zeros(truth.x.shape[1], np.float32)
    return Dictionary("relu-l1", 0, inverse.astype(np.float32), truth.directions, zero, none)


@pytest.mark.parametrize("name", REGIMES)
def test_data_are_what_they_say(name):
    regime = replace(REGIMES[name], noise=0.0)
    truth = planted(regime, 20_000, 1)
    assert truth.x.dtype == np.float32
    np.testing.assert_allclose(truth.x, truth.features @ truth.directions, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(truth.directions, axis=1), 1, atol=1e-6)
    fires = truth.features > 0
    assert ((truth.features[fires] >= 0.5) & (truth.features[fires] <= 1.5)).all()
    np.testing.assert_array_equal(truth.x, planted(regime, 20_000, 1).x)
    rates = fires.mean(axis=0)
    if not regime.children:
        assert rates.sum() == pytest.approx(regime.active, rel=0.05)
    if regime.zipf:
        assert rates[0] > 5 * rates[20] > 0
    correlation = np.corrcoef(fires[:, :8].T)
    assert (correlation[0, 1] > 0.2) == bool(regime.correlation or regime.children)
    assert abs(correlation[0, 5]) < 0.05
    if regime.children:
        assert not (fires[:, 1:4] & ~fires[:, :1]).any()
        assert fires[:, 1].any()


def test_scores_of_what_is_known():
    truth = planted(replace(EASY, noise=0.0), 3000, 2)
    good = perfect(truth)
    assert score(good, truth) == pytest.approx((1, 1), abs=1e-5)
    order = np.random.default_rng(0).permutation(EASY.features)
    arrays = (good.encoder[order], 3 * good.decoder[order], good.encoder_bias[order], good.decoder_bias)
    assert score(Dictionary("relu-l1", 0, *arrays), truth) == pytest.approx((1, 1), abs=1e-5)
    half = EASY.features // 2
    arrays = (good.encoder[:half], good.decoder[:half], good.encoder_bias[:half], good.decoder_bias)
    assert score(Dictionary("relu-l1", 0, *arrays), truth) == pytest.approx((0.5, 0.5), abs=1e-5)
    always = replace(good, encoder=0 * good.encoder, encoder_bias=np.ones(EASY.features, np.float32))
    rates = (truth.features > 0).mean(axis=0)
    assert score(always, truth) == pytest.approx((1, np.mean(2 * rates / (rates + 1))), abs=1e-5)
    silence = replace(good, encoder_bias=np.full(EASY.features, -9, np.float32))
    assert score(silence, Planted(truth.x, truth.directions, 0 * truth.features)).f1 == 0


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka"])
def test_features_of_the_easy_regime_are_found(kind):
    truth = planted(EASY, 8192, 0)
    record = KINDS[kind](kind=kind, features=48, k=2, steps=600, batch=512, dead_after=5000)
    found = score(record.train(truth.x, 1, silent)[0], truth)
    assert found.mcc >= 0.95
    assert found.f1 >= (0.7 if kind == "topk" else 0.9)  # not every input has two active features


def test_a_random_decoder_does_not_find_them():
    truth = planted(EASY, 4096, 0)
    record = KINDS["frozen-decoder"](kind="frozen-decoder", features=24, k=2, steps=20, batch=512)
    assert score(record.train(truth.x, 1, silent)[0], truth).mcc < 0.5
