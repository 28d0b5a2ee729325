"""Features under a symmetry: invariant ones, pairs of partners, and neither, built by hand."""

import numpy as np
import pytest

from nqs_sae_service.interpret import behaviour


@pytest.fixture(scope="module")
def m():
    return np.random.default_rng(0).choice([-1, 1], (20, 50, 12)).mean(axis=2)


def features(m):
    """Of the magnetization, for the spin flip: even, positive part, negative part, a bit of everything, dead."""
    return np.stack([m**2, np.maximum(m, 0), np.maximum(-m, 0), np.maximum(m + 0.2, 0), 0 * m], axis=-1)


def test_words_for_known_features(m):
    f, chosen = features(m), np.array([0, 1, 3, -1])
    there = features(-m)[..., chosen]
    here = f[..., chosen]
    image = behaviour.image_pearson(here, there)
    partner = behaviour.partner(f, there, chosen)
    assert partner[1] == 2
    assert partner[3] == -1
    of_partner = behaviour.image_pearson(f[..., partner], there)
    words = [behaviour.behaviour(*pair) for pair in zip(image, of_partner, strict=True)]
    assert words[:3] == ["invariant", "partner", "neither"]
    assert image[0] == pytest.approx(1)
    assert of_partner[1] == pytest.approx(1)


def test_numbers_against_their_definitions(m):
    rng = np.random.default_rng(1)
    here = rng.standard_normal((20, 50, 2)) + m[..., None]
    there = rng.standard_normal((20, 50, 2)) + 2 * m[..., None] + 0.3
    for k in range(2):
        a, b = here[..., k].ravel(), there[..., k].ravel()
        assert behaviour.image_pearson(here, there)[k] == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert behaviour.shift(here, there)[k] == pytest.approx((b.mean() - a.mean()) / a.std())
    f = np.concatenate([here, there], axis=-1)
    r = np.corrcoef(f.reshape(-1, 4).T, there.reshape(-1, 2).T)[:4, 4:]
    r[[3, 0], [0, 1]] = -1  # the features themselves
    assert behaviour.partner(f, there, np.array([3, 0])).tolist() == r.argmax(axis=0).tolist()


def test_what_does_not_vary_is_nobodys_partner():
    still = np.ones((3, 4, 1))
    assert behaviour.image_pearson(still, still) == 0
    assert behaviour.shift(still, still + 1) == 0
    assert behaviour.partner(still, still, np.array([-1])) == -1
    assert behaviour.behaviour(np.nan, np.nan) == "neither"
