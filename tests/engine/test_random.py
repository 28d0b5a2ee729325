"""Philox4x32-10 against the published known answers, and the distributions drawn from it."""

import numpy as np
import pytest
from scipy import stats

from nqs_sae_service.engine.random import Stream, below, philox, uniform, words

# Known-answer vectors of the Random123 distribution (Salmon et al., SC11): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(counter, key, result):
    (drawn,) = philox(np.asarray([counter], np.uint32), key)
    np.testing.assert_array_equal(drawn, np.asarray(result, np.uint32))


def test_words_depend_on_every_coordinate():
    a = words(1, Stream.SAMPLES, 5, 3, 4)
    assert len(np.unique(a.reshape(-1, 4), axis=0)) == 12
    for other in (
        words(2, Stream.SAMPLES, 5, 3, 4),
        words(1, Stream.TRAINING, 5, 3, 4),
        words(1, Stream.SAMPLES, 5 + 2**32, 3, 4),
    ):
        assert not np.array_equal(a, other)


def test_a_chain_does_not_depend_on_the_number_of_chains():
    np.testing.assert_array_equal(words(1, Stream.SAMPLES, 7, 5, 9)[:, :4], words(1, Stream.SAMPLES, 7, 5, 4))


def test_uniform_and_below_are_uniform():
    w = words(3, Stream.CHAINS, 0, 200, 200).reshape(-1, 4)
    u = uniform(w[:, 0], w[:, 1])
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    counts = np.bincount(below(w[:, 2], 7), minlength=7)
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3


def test_uniform_never_returns_zero():
    zero = np.zeros(1, np.uint32)
    assert np.isfinite(np.log(uniform(zero, zero)))[0]


def test_some_chains_have_the_words_they_have_among_all():
    all_chains = words(1, Stream.SAMPLES, 7, 5, 9)
    np.testing.assert_array_equal(words(1, Stream.SAMPLES, 7, 5, 3, start=4), all_chains[:, 4:7])
