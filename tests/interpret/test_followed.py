"""Features followed through time: choices and verdicts held against loops over small arrays."""

import numpy as np
import pytest

from nqs_sae_service.interpret.controls import of_chosen, strongest
from nqs_sae_service.interpret.followed import FOLLOWED, Candidates, Evidence, choose, verdict
from nqs_sae_service.interpret.series import RowMoments, pooled_moments

TIMES, CANDIDATES, OBSERVABLES = 5, 7, 3
TRAINING = np.array([True, False, True, False, True])


@pytest.fixture
def r():
    return np.random.default_rng(0).uniform(-1, 1, (2, TIMES, CANDIDATES, OBSERVABLES))


def test_the_strongest_on_average_over_the_training_times_is_chosen(r):
    select = r[0]
    select[2, :, 1] = np.nan  # the observable does not vary at a time
    for o in range(OBSERVABLES):
        sizes = [
            sum(abs(select[t, c, o]) for t in (0, 2, 4) if not np.isnan(select[t, c, o]))
            for c in range(CANDIDATES)
        ]
        assert choose(select, TRAINING)[o] == np.argmax(sizes)
    elsewhere = np.where(TRAINING[:, None, None], select, 1 - select)
    np.testing.assert_array_equal(choose(elsewhere, TRAINING), choose(select, TRAINING))
    np.testing.assert_array_equal(choose(select[:1], TRAINING[:1]), strongest(select[0]))


def test_each_kind_chooses_among_its_like(r):
    labels = np.array(["feature", "neuron", "feature", "neuron", "pca", "feature", "neuron"])
    chosen, pearson = Candidates(labels, *r).followed("neuron", TRAINING)
    for o in range(OBSERVABLES):
        among = [1, 3, 6]
        best = max(among, key=lambda c: np.abs(r[0][TRAINING, c, o]).sum())
        assert among[chosen[o]] == best
        np.testing.assert_array_equal(pearson[:, o], r[1][:, best, o])


def test_nothing_is_chosen_where_nothing_varies(r):
    dead = np.zeros_like(r[0])
    dead[..., 0] = np.nan
    np.testing.assert_array_equal(choose(dead, TRAINING), [-1, -1, -1])
    np.testing.assert_array_equal(of_chosen(dead, np.full(3, -1))[0], [np.nan, 0, 0])


def sentence(pearson, controls, feature=4):
    times = 0.1 + 0.2 * np.arange(len(pearson))
    names = ("neuron", "pca")
    return verdict(
        Evidence("layer", "m", feature, times, np.asarray(pearson, float), names, np.asarray(controls, float))
    )


def test_the_weakest_held_out_time_decides():
    found = sentence([0.99, -0.95], [[0.5, 0.99], [0.7, 0.6]])
    assert found == (
        "followed: feature 4 follows m at layer through the held-out times with |r| of at least 0.950 (t = 0.3), "
        "the best control (pca) with at least 0.600; r changes its sign."
    )
    assert sentence([-0.99, -0.95], [[0.5, 0.99], [0.7, 0.6]]).endswith("at least 0.600.")


def test_a_feature_that_a_control_equals_is_no_better():
    assert sentence([0.99, 0.95], [[0.95, 0.99], [0.7, 0.6]]).startswith("no better than controls: feature 4")


def test_a_feature_that_fades_is_not_followed():
    found = sentence([0.99, FOLLOWED - 0.02, 0.3], np.zeros((2, 3)))
    assert found.startswith("not followed throughout: ")
    assert "at least 0.300 (t = 0.5)" in found
    assert found.endswith("; |r| < 0.92 at 2 of 3 held-out times.")
    assert "; |r| < 0.92" in sentence([0.5, 0.5], np.ones((2, 2)))


def test_times_without_a_variance_do_not_count():
    found = sentence([np.nan, 0.95], [[np.nan, 0.2], [np.nan, 0.1]])
    assert "at least 0.950 (t = 0.3), the best control (neuron) with at least 0.200" in found
    assert found.endswith("; m does not vary at 1 more.")
    assert sentence([np.nan], [[np.nan], [np.nan]]) == "undefined: m does not vary at the held-out times."


def test_what_cannot_be_said():
    assert sentence([], np.zeros((2, 0))) == "undefined: no time is held out."
    assert sentence([0.0], np.zeros((2, 1)), -1).startswith("undefined: no feature of layer varies with m")


def test_moments_of_parts_are_those_of_all_rows():
    rng = np.random.default_rng(1)
    parts = [rng.normal(offset, 1 + offset, (n, 4)) for offset, n in ((0, 5), (3, 20), (-1, 11))]
    pooled = pooled_moments([RowMoments(len(x), x.mean(0), np.cov(x.T, bias=True)) for x in parts])
    everything = np.concatenate(parts)
    assert pooled.count == 36
    np.testing.assert_allclose(pooled.mean, everything.mean(0), atol=1e-12)
    np.testing.assert_allclose(pooled.covariance, np.cov(everything.T, bias=True), atol=1e-12)
