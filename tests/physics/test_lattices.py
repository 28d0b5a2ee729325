"""A chain has the edges of a line or ring, and its translations leave them in place."""

import numpy as np
import pytest
from pydantic import ValidationError

from nqs_sae_service.physics.lattices import LATTICES, Chain


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic).build()


def edge_set(edges):
    return {frozenset(edge) for edge in edges.tolist()}


@pytest.mark.parametrize(
    ("length", "periodic", "edges"),
    [
        (2, False, {(0, 1)}),
        (2, True, {(0, 1)}),
        (3, True, {(0, 1), (1, 2), (2, 0)}),
        (4, False, {(0, 1), (1, 2), (2, 3)}),
    ],
)
def test_edges(length, periodic, edges):
    lattice = chain(length, periodic)
    assert edge_set(lattice.edges) == {frozenset(edge) for edge in edges}
    assert len(lattice.edges) == len(edges)  # each once, also on the ring of two
    assert lattice.edges.dtype == np.int32


@pytest.mark.parametrize("length", [2, 5, 12])
def test_translations_of_a_ring_are_all_shifts_and_symmetries(length):
    lattice = chain(length)
    translations = lattice.translations()
    assert translations.shape == (length, length)
    assert np.array_equal(translations[0], np.arange(length))
    assert len({tuple(permutation) for permutation in translations}) == length
    for permutation in translations:
        assert edge_set(permutation[lattice.edges]) == edge_set(lattice.edges)


def test_open_chain_has_only_the_identity():
    assert np.array_equal(chain(5, periodic=False).translations(), np.arange(5)[None])


def test_neighbours_differ_in_sublattice_on_an_even_ring():
    lattice = chain(8)
    first, second = lattice.sublattice[lattice.edges.T]
    assert np.all(first != second)
    assert set(lattice.sublattice) == {0, 1}
    assert np.array_equal(lattice.positions, np.arange(8.0)[:, None])


def test_pairs_at_a_distance():
    assert np.array_equal(chain(6).pairs(2)[-1], [5, 1])
    assert len(chain(6).pairs(2)) == 6
    assert np.array_equal(chain(4, periodic=False).pairs(2), [[0, 2], [1, 3]])


@pytest.mark.parametrize("length", [1, 0, -4, 4097, 8.0, True])
def test_impossible_lengths_are_refused(length):
    with pytest.raises(ValidationError):
        Chain(kind="chain", length=length)


def test_registry_maps_kinds_to_records():
    for kind, record in LATTICES.items():
        assert record(kind=kind, length=4).build().n_sites == 4
