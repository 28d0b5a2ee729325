"""The most active configurations against a search through all samples, and percentiles against counting."""

import numpy as np
import pytest
from scipy.stats import percentileofscore

from nqs_sae_service.interpret import examples


@pytest.mark.parametrize("count", [1, 4, 40])
def test_most_active_configurations_come_once_each(count):
    rng = np.random.default_rng(0)
    sigma = rng.choice(np.array([-1, 1], np.int8), (60, 4))
    f = np.maximum(rng.integers(-3, 6, 60), 0) / 2.0
    found = examples.most_active(f, sigma, count)
    best = {}
    for sample in range(60):
        name = tuple(sigma[sample])
        if f[sample] > 0 and f[sample] > f[best.get(name, sample)] - (name not in best):
            best[name] = sample
    wanted = sorted(best.values(), key=lambda sample: (-f[sample], sample))[:count]
    assert found[: len(wanted)].tolist() == wanted
    assert np.all(found[len(wanted) :] == -1)


def test_a_feature_that_never_fires_has_no_examples():
    assert np.all(examples.most_active(np.zeros(5), np.ones((5, 3), np.int8), 2) == -1)


def test_percentiles_count_half_of_what_is_equal():
    among = np.array([1.0, 2.0, 2.0, 3.0])
    found = examples.percentile([0.0, 2.0, 3.0, 9.0], among)
    assert found.tolist() == [percentileofscore(among, v, "mean") for v in (0.0, 2.0, 3.0, 9.0)]
