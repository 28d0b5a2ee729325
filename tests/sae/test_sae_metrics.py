"""Metrics against their definitions."""

import numpy as np
import pytest

from nqs_sae_service.sae import metrics
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.sae.inputs import Held


def make(kind="topk", n_features=12, width=5, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((n_features, width), (n_features, width), (n_features,), (width,))
    return Dictionary(
        kind, 3 if kind == "topk" else 0, *(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    )


def permuted(dictionary, order):
    return Dictionary(
        dictionary.kind,
        dictionary.k,
        dictionary.encoder[order],
        dictionary.decoder[order],
        dictionary.encoder_bias[order],
        dictionary.decoder_bias,
    )


@pytest.fixture(params=[2**24, 200], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.sae.metrics.BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("blocks")
def test_explained_variance():
    x = np.random.default_rng(0).standard_normal((100, 5)) + 30
    inputs, mean = Held(x, 7), x.mean(axis=0)
    assert metrics.explained_variance(inputs, lambda rows: rows) == 1
    assert metrics.explained_variance(
        inputs, lambda rows: np.broadcast_to(mean, rows.shape)
    ) == pytest.approx(0, abs=1e-12)
    assert metrics.explained_variance(inputs, lambda rows: (mean + rows) / 2) == pytest.approx(0.75)
    assert np.isnan(metrics.explained_variance(Held(np.ones((4, 5))), lambda rows: rows))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("kind", ["topk", "relu-l1"])
def test_density_and_l0(kind):
    dictionary, x = make(kind), np.random.default_rng(1).standard_normal((100, 5)).astype(np.float32)
    active = dictionary.encode(x) > 0
    np.testing.assert_allclose(metrics.density(dictionary, Held(x, 33)), active.mean(axis=0))
    assert metrics.l0(dictionary, Held(x)) == pytest.approx(active.sum(axis=1).mean())
    assert not metrics.density(dictionary, Held(x[:0])).any()


@pytest.mark.usefixtures("blocks")
def test_participation_ratio():
    rng = np.random.default_rng(2)
    line = rng.standard_normal((50, 1)) * np.ones(4)
    for rows, ratio in ((rng.standard_normal((20000, 4)) + 9, 4), (line, 1)):
        moments = metrics.Moments()
        for part in np.array_split(rows, 7):
            moments.add(part)
        np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), atol=1e-12)
        assert moments.participation_ratio == pytest.approx(ratio, rel=0.01)
    moments = metrics.Moments()
    moments.add(np.ones((5, 4)))
    assert np.isnan(moments.participation_ratio)


@pytest.mark.usefixtures("blocks")
def test_activation_correlation_is_pearson():
    a, b, x = (
        make("relu-l1"),
        make("topk", seed=1),
        np.random.default_rng(3).standard_normal((80, 5)).astype(np.float32),
    )
    fa, fb = a.encode(x), b.encode(x)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.corrcoef(fa.T, fb.T)[:12, 12:])
    assert np.abs(expected).max() > 0.2
    np.testing.assert_allclose(metrics.activation_correlation(a, b, x), expected, atol=1e-5)


def test_a_permuted_dictionary_is_perfectly_stable():
    dictionary, x = make("relu-l1"), np.random.default_rng(4).standard_normal((200, 5)).astype(np.float32)
    others = [permuted(dictionary, np.random.default_rng(seed).permutation(12)) for seed in (1, 2)]
    cosine, activation = metrics.stability([dictionary, *others], x)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
    np.testing.assert_allclose(activation, 1, atol=1e-6)


def test_dictionaries_too_large_to_match_are_not_matched(monkeypatch):
    monkeypatch.setattr(metrics, "MATCHED_FEATURES", 11)
    dictionary, x = make("relu-l1"), np.ones((3, 5), np.float32)
    assert all(np.isnan(score).all() for score in metrics.stability([dictionary, dictionary], x))


def test_matching_is_one_to_one():
    """Two copies of a feature cannot both be matched with its single counterpart."""
    rows = np.eye(5, dtype=np.float32)
    first = Dictionary(
        "relu-l1", 0, rows[[0, 0, 1]], rows[[0, 0, 1]], np.zeros(3, np.float32), np.zeros(5, np.float32)
    )
    other = Dictionary(
        "relu-l1", 0, rows[[0, 1, 2]], rows[[0, 1, 2]], np.zeros(3, np.float32), np.zeros(5, np.float32)
    )
    cosine, _ = metrics.stability([first, other], np.eye(5, dtype=np.float32))
    assert sorted(cosine) == [0, 1, 1]
    assert cosine[2] == 1


def test_dead_features_have_no_correlation_and_alone_there_is_no_stability():
    dictionary, x = make("relu-l1"), np.random.default_rng(5).standard_normal((30, 5)).astype(np.float32)
    dictionary.encoder_bias[0] = -1e3
    assert not metrics.activation_correlation(dictionary, dictionary, x)[0].any()
    assert np.isnan(metrics.stability([dictionary], x)).all()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("kind", ["topk", "relu-l1"])
def test_correlations_of_some_features_and_of_pairs(kind):
    a, b = make(kind), make(kind, seed=4)
    x = np.random.default_rng(1).standard_normal((100, 5)).astype(np.float32)
    chosen = np.array([7, 2, 2])
    np.testing.assert_allclose(
        metrics.activation_correlation(a, b, x, chosen[:2]),
        metrics.activation_correlation(a, b, x)[chosen[:2]],
        atol=1e-6,
    )
    own = metrics.activation_correlation(a, a, x)
    others = np.array([[1, 3, -1], [7, -1, -1], [2, 5, 11]])
    wanted = np.where(others >= 0, own[chosen[:, None], others], np.nan)
    np.testing.assert_allclose(metrics.pair_correlation(a, x, chosen, others), wanted, atol=1e-6)
    np.testing.assert_allclose(
        metrics.activation_variance(a, x), a.encode(x.astype(np.float64)).var(axis=0), rtol=1e-5, atol=1e-7
    )
