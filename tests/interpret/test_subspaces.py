"""Principal angles against projectors and known cases; nearest features against all cosines."""

import itertools

import numpy as np
import pytest

from nqs_sae_service.interpret import subspaces


def projector(rows):
    basis = np.linalg.qr(rows.T)[0]
    return basis @ basis.T


def test_angles_are_those_of_the_projectors():
    """The eigenvalues of P_A P_B P_A that are not zero are the cosines squared."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 8))
    found = subspaces.principal_angles(a, b)
    pa, pb = projector(a), projector(b)
    squares = np.linalg.eigvalsh(pa @ pb @ pa)[::-1][:3]
    np.testing.assert_allclose(np.cos(np.radians(found)) ** 2, squares, atol=1e-12)
    assert np.all(np.diff(found) >= 0)


def test_angles_of_known_planes():
    e = np.eye(4)
    turned = np.array([e[0], np.cos(0.3) * e[1] + np.sin(0.3) * e[2]])
    found = subspaces.principal_angles(3.0 * e[:2], turned)
    np.testing.assert_allclose(found, [0.0, np.degrees(0.3)], atol=1e-6)
    mixed = np.array([e[0] + e[1], 2 * e[0] - 5 * e[1]])
    np.testing.assert_allclose(subspaces.principal_angles(e[:2], mixed), 0.0, atol=1e-6)
    np.testing.assert_allclose(subspaces.principal_angles(e[:2], e[2:]), 90.0)


def test_rows_that_others_span_have_no_angle():
    e = np.eye(4)
    found = subspaces.principal_angles(e[:2], e[[0, 0]])
    np.testing.assert_allclose(found, [0.0, np.nan], atol=1e-6)
    assert np.all(np.isnan(subspaces.principal_angles(e[:2], np.zeros((2, 4)))))


def test_random_subspaces_share_a_known_part():
    """The mean of cos^2 over the angles of m isotropic vectors in d dimensions is m / d; with a rank of m all is shared."""
    rng = np.random.default_rng(1)
    drawn = subspaces.of_random(2, np.eye(6), 2000, rng)
    assert np.mean(np.cos(np.radians(drawn)) ** 2) == pytest.approx(1 / 3, abs=0.01)
    plane = np.diag([4.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(subspaces.of_random(2, plane, 5, rng), 0.0, atol=1e-5)
    narrow, round_ = (subspaces.of_random(1, np.diag([v, 1, 1, 1]), 500, rng).mean() for v in (100.0, 1.0))
    assert narrow < 0.6 * round_


def test_p_value_counts_the_random_subspaces_that_are_as_close():
    chance = np.array([[10.0, 40.0], [20.0, 60.0], [0.0, 20.0]])
    assert subspaces.p_value(np.array([5.0, 45.0]), chance) == 3 / 4
    assert subspaces.p_value(np.array([5.0, np.nan]), chance) == 1 / 4


def test_leading_features_contribute_most_variance():
    variance, decoder = np.array([1.0, 4.0, 0.0, 2.0]), np.diag([3.0, 1.0, 9.0, 1.0])
    assert subspaces.leading(variance, decoder, 2).tolist() == [0, 1]
    assert subspaces.leading(variance, decoder, 9).tolist() == [0, 1, 3]


def test_partners_are_the_best_of_all_assignments():
    similarity = np.random.default_rng(2).standard_normal((3, 6))
    found = subspaces.partners(similarity)
    best = max(itertools.permutations(range(6), 3), key=lambda columns: similarity[range(3), columns].sum())
    assert found.tolist() == list(best)


@pytest.mark.parametrize("count", [3, 30])
@pytest.mark.parametrize("block", [2**22, 20])
def test_nearest_features_are_those_of_all_cosines(count, block, monkeypatch):
    monkeypatch.setattr(subspaces, "_BLOCK", block)
    rng = np.random.default_rng(3)
    decoder, live = rng.standard_normal((12, 5)), np.arange(12) % 4 != 1
    features = np.array([7, 0, 2])
    found, cosine = subspaces.nearest(decoder, features, live, count)
    for row, feature in enumerate(features):
        to = {
            j: decoder[feature] @ decoder[j] / np.linalg.norm(decoder[feature]) / np.linalg.norm(decoder[j])
            for j in range(12)
            if live[j] and j != feature
        }
        wanted = sorted(to, key=to.get, reverse=True)[:count]
        assert found[row, : len(wanted)].tolist() == wanted
        np.testing.assert_allclose(cosine[row, : len(wanted)], [to[j] for j in wanted], atol=1e-6)
        assert np.all(found[row, len(wanted) :] == -1)
        assert np.all(np.isnan(cosine[row, len(wanted) :]))
