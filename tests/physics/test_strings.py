"""Walsh strings around tokens."""

import itertools

import numpy as np

from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.physics.strings import count_of, frames, nearest_sites, strings_of, values_of

RING = LATTICES["chain"](kind="chain", length=12).build()
SQUARE = LATTICES["square"](kind="square", length=4).build()


def patches(n_tokens: int) -> np.ndarray:
    return np.arange(12).reshape(n_tokens, -1)


def test_every_token_sees_the_ring_from_its_place():
    frame = frames(RING, patches(4))
    np.testing.assert_array_equal(frame[2], (np.arange(12) + 6) % 12)
    np.testing.assert_array_equal(frame[0], np.arange(12))


def test_every_token_sees_the_square_by_a_translation():
    """Two by two patches."""
    sites = np.array([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    frame = frames(SQUARE, sites)
    np.testing.assert_array_equal(frame[:, sites[0]], sites)
    edges = {frozenset(edge) for edge in SQUARE.edges.tolist()}
    for moved in frame:
        assert {frozenset(moved[list(edge)].tolist()) for edge in edges} == edges


def test_tokens_that_are_no_translates_have_no_frame():
    assert frames(RING, np.array([[0, 1, 2], [3, 5, 4], [6, 7, 8], [9, 10, 11]])) is None
    open_chain = LATTICES["chain"](kind="chain", length=12, periodic=False).build()
    assert frames(open_chain, patches(4)) is None
    assert frames(open_chain, patches(1)) is not None


def test_the_nearest_sites_come_in_the_order_of_their_distance():
    assert nearest_sites(RING, np.array([4, 5]), 6) == [4, 5, 3, 6, 2, 7]
    assert nearest_sites(RING, np.array([0]), 99) == [0, 1, 11, 2, 10, 3, 9, 4, 8, 5, 7, 6]


def test_strings_and_their_values():
    strings = strings_of([3, 0, 1], 2)
    assert strings == [(0,), (1,), (3,), (0, 1), (0, 3), (1, 3)]
    assert len(strings_of(range(12), 4)) == count_of(12, 4) == 12 + 66 + 220 + 495
    rng = np.random.default_rng(0)
    sigma = rng.choice(np.array([-1, 1], np.int8), (20, 12))
    frame = frames(RING, patches(4))
    strings = strings_of(range(12), 3)
    values = values_of(strings, sigma, frame)
    for n, t, s in itertools.product((0, 7), (0, 3), (0, 20, len(strings) - 1)):
        expected = np.prod([sigma[n, frame[t, site]] for site in strings[s]])
        assert values[n, t, s] == expected
