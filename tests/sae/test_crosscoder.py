"""Crosscoders: planted features are found and classified; folding and every estimator against plain sums in float64."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from nqs_sae_service.errors import NumericalError
from nqs_sae_service.sae import KINDS
from nqs_sae_service.sae.classes import COMMON, NEITHER
from nqs_sae_service.sae.crosscoder import (
    OneView,
    Scaled,
    Scales,
    by_view,
    classified,
    counted,
    decoder_cosines,
    decoder_norms,
    explained_by_view,
    norm_share,
)
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.training import Training, unit_rows

VIEWS, WIDTH = 3, 5


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def record(kind, **fields):
    values = {"kind": kind, "features": 12, "steps": 25, "batch": 64, "seeds": [1]} | fields
    known = KINDS[kind].model_fields
    return KINDS[kind].model_validate({name: value for name, value in values.items() if name in known})


def views(rng, n=1000):
    """Correlated rows of views side by side, of different sizes and away from zero."""
    common = rng.normal(size=(n, 4))
    parts = [
        size * (common @ rng.normal(size=(4, WIDTH)) + 0.3 * rng.normal(size=(n, WIDTH))) + offset
        for size, offset in ((1.0, 0.0), (30.0, 100.0), (0.02, -1.0))
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def trained(kind, x, n_views=VIEWS, **fields):
    """The dictionary on scaled rows, and the scales."""
    inputs = Held(x, 128)
    scales = Scales.of(inputs, n_views)
    of = record(kind, **fields)
    training = Training(of, Scaled(inputs, scales), [1])
    while training.step < of.steps:
        training.advance()
    return training.finished()[0][0], scales


def test_every_view_counts_the_same(rng):
    x = views(rng)
    scales = Scales.of(Held(x, 128), VIEWS)
    parts = x.astype(np.float64).reshape(-1, VIEWS, WIDTH)
    np.testing.assert_allclose(scales.mean, parts.mean(axis=0), rtol=1e-9)
    variance = ((parts - parts.mean(axis=0)) ** 2).sum(axis=2).mean(axis=0)
    np.testing.assert_allclose(scales.factor, np.sqrt(WIDTH / variance), rtol=1e-9)
    scaled = Scaled(Held(x, 128), scales)
    rows = np.concatenate([scaled.read(i) for i in range(8)]).astype(np.float64).reshape(-1, VIEWS, WIDTH)
    np.testing.assert_allclose((rows**2).sum(axis=2).mean(axis=0), WIDTH, rtol=1e-4)
    alone = OneView(Held(x, 128), 1, VIEWS)
    np.testing.assert_array_equal(alone.read(2), x[256:384, WIDTH : 2 * WIDTH])
    assert (alone.n_rows, alone.width, alone.block_rows) == (1000, WIDTH, 128)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_view_that_says_nothing_is_refused(rng, value):
    x = views(rng)
    x[:, WIDTH : 2 * WIDTH] = value
    with pytest.raises(NumericalError, match="view 2 of the crosscoder"):
        Scales.of(Held(x), VIEWS)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_it_does_on_raw_rows_what_it_did_on_scaled_ones(rng, kind):
    """The same features, and x_hat_v = m_v + X_hat_v / s_v: of dictionaries of every kind."""
    x = views(rng)
    scaled, scales = trained(kind, x)
    folded = scales.unscaled(scaled)
    raw, inner = x.astype(np.float64), scales.apply(x.astype(np.float64))
    f = scaled.encode(inner)
    assert (f > 0).any()
    near = np.isclose(folded.encode(raw), f, rtol=1e-3, atol=1e-3)
    assert near.mean() > 0.995  # float32 of the folded arrays may decide a near tie otherwise
    size = np.repeat(1 / scales.factor, WIDTH)
    expected = scales.mean.reshape(-1) + scaled.decode(f) * size
    assert np.abs((folded.decode(f) - expected) / size).max() < 1e-4


def test_folding_is_exact(rng):
    """With whole numbers and scales that are powers of two nothing is rounded: equal bits."""

    def whole(*shape):
        return rng.integers(-8, 9, size=shape).astype(np.float32)

    arrays = whole(6, VIEWS * WIDTH), whole(6, VIEWS * WIDTH), whole(6), whole(VIEWS * WIDTH)
    scales = Scales(whole(VIEWS, WIDTH).astype(np.float64), np.array([0.5, 1.0, 4.0]))
    x = rng.integers(-50, 50, size=(200, VIEWS * WIDTH)).astype(np.float64)
    for k, threshold in ((2, None), (0, np.abs(whole(6))), (0, None)):
        scaled = Dictionary("topk", k, *arrays, threshold)
        folded = scales.unscaled(scaled)
        f = scaled.encode(scales.apply(x))
        np.testing.assert_array_equal(folded.encode(x), f)
        expected = scales.mean.reshape(-1) + scaled.decode(f) / np.repeat(scales.factor, WIDTH)
        np.testing.assert_array_equal(folded.decode(f), expected)


def test_estimators_against_plain_sums(rng):
    x = views(rng)
    scaled, scales = trained("topk", x, k=3)
    folded = scales.unscaled(scaled)
    decoder = by_view(folded.decoder, VIEWS)
    norms, cosines = decoder_norms(decoder, scales.factor), decoder_cosines(decoder)
    plain = folded.decoder.astype(np.float64)
    for v in range(VIEWS):
        of_v = plain[:, v * WIDTH : (v + 1) * WIDTH]
        np.testing.assert_array_equal(decoder[v], folded.decoder[:, v * WIDTH : (v + 1) * WIDTH])
        np.testing.assert_allclose(norms[v], scales.factor[v] * np.sqrt((of_v**2).sum(axis=1)), rtol=1e-12)
        for w in range(VIEWS):
            of_w = plain[:, w * WIDTH : (w + 1) * WIDTH]
            for i in range(len(plain)):
                cosine = of_v[i] @ of_w[i] / np.linalg.norm(of_v[i]) / np.linalg.norm(of_w[i])
                np.testing.assert_allclose(cosines[v, w, i], cosine, rtol=1e-9)
    np.testing.assert_allclose(norm_share(norms).sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose((norms**2).sum(axis=0), 1, rtol=1e-4)  # rows of length 1 in scaled units
    found = explained_by_view(Held(x, 128), folded.reconstruct, VIEWS)
    x64, x_hat = x.astype(np.float64), folded.reconstruct(x).astype(np.float64)
    for v in range(VIEWS):
        columns = slice(v * WIDTH, (v + 1) * WIDTH)
        error = ((x64 - x_hat)[:, columns] ** 2).sum()
        total = ((x64 - x64.mean(axis=0))[:, columns] ** 2).sum()
        np.testing.assert_allclose(found[v], 1 - error / total, rtol=1e-9)


def test_classes():
    norms = np.array(
        [[1.0, 1.0, 0.1, 1.0, 0.0, 1.0], [0.5, 0.2, 1.0, 0.3, 0.0, 0.49], [0.7, 0.0, 0.2, 0.1, 0.0, 0.9]]
    )
    assert classified(norms).tolist() == [COMMON, 0, 1, NEITHER, NEITHER, NEITHER]
    shared, specific = counted(classified(norms), 3)
    assert shared == 1
    assert specific.tolist() == [1, 1, 0]
    assert classified(norms[:2]).tolist() == [COMMON, 0, 1, NEITHER, NEITHER, NEITHER]
    share = norm_share(norms)
    assert np.isnan(share[:, 4]).all()
    np.testing.assert_allclose(share[:, 0], np.array([1.0, 0.5, 0.7]) / 2.2)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_planted_features_are_found_and_classified(kind):
    """Twelve features live in both views, five in one of them each; the views have different sizes and offsets."""
    rng, width, common, own, n = np.random.default_rng(0), 24, 12, 5, 20_000
    total = common + 2 * own
    lives = np.ones((2, total))
    lives[0, common + own :] = lives[1, common : common + own] = 0
    directions = np.stack([unit_rows(rng, total, width) for _ in range(2)]) * lives[..., None]
    f = np.where(rng.random((n, total)) < 2.5 / total, rng.uniform(0.5, 1.5, (n, total)), 0)
    x = np.concatenate([f @ directions[0], 20 * (f @ directions[1]) + 3], axis=1)
    x += 0.01 * rng.normal(size=x.shape) * np.repeat([1, 20], width)
    fields = {"features": 32, "k": 3, "steps": 1500, "batch": 512, "dead_after": 20_000}
    scaled, scales = trained(kind, x.astype(np.float32), 2, **fields)
    folded = scales.unscaled(scaled)
    decoder = by_view(folded.decoder, 2)
    units = np.concatenate(directions, axis=1)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    balanced = np.concatenate(decoder * np.array([1, 1 / 20])[:, None, None], axis=1)
    cosine = units @ (balanced / np.linalg.norm(balanced, axis=1, keepdims=True)).T
    true, found = linear_sum_assignment(cosine, maximize=True)
    assert cosine[true, found].mean() > 0.95
    classes = classified(decoder_norms(decoder, scales.factor))[found]
    expected = np.repeat([COMMON, 0, 1], [common, own, own])
    assert (classes == expected).mean() > 0.9
    explained = explained_by_view(Held(x.astype(np.float32)), folded.reconstruct, 2)
    assert explained.min() > 0.9
