"""Lattices have the neighbours, shells and symmetries that the textbooks give them."""

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

from nqs_sae_service.physics.lattices import LATTICES, Chain, two_colours


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic).build()


def plane(kind, lengths, periodic=True):
    return LATTICES[kind](kind=kind, lengths=lengths, periodic=periodic).build()


def graph(sites, edges):
    return LATTICES["graph"](kind="graph", sites=sites, edges=edges).build()


def edge_set(edges):
    return {frozenset(edge) for edge in edges.tolist()}


PLANES = ["rectangular", "triangular", "honeycomb", "kagome"]
BOUNDARIES = [True, False, (True, False), (False, True)]
EXAMPLES = [
    *(plane(kind, (4, 3), periodic) for kind in PLANES for periodic in BOUNDARIES),
    *(plane(kind, (2, 2)) for kind in PLANES),
    LATTICES["square"](kind="square", length=3).build(),
    chain(2),
    chain(7),
    chain(6, periodic=False),
    graph(5, ((0, 1), (1, 2), (2, 0), (2, 3))),
]


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


@pytest.mark.parametrize(
    ("kind", "sizes", "distances"),
    [
        # Conway & Sloane, Sphere Packings, Lattices and Groups (1999), theta series; distances squared.
        ("rectangular", [4, 4, 4, 8, 4, 4, 8], [1, 2, 4, 5, 8, 9, 10]),
        ("triangular", [6, 6, 6, 12, 6, 6, 12], [1, 3, 4, 7, 9, 12, 13]),
        ("honeycomb", [3, 6, 3, 6, 6, 6, 6], [1, 3, 4, 7, 9, 12, 13]),
        ("kagome", [4, 4, 6, 8, 4, 6, 8], [1, 3, 4, 7, 9, 12, 13]),
    ],
)
def test_every_site_has_the_shells_of_the_infinite_lattice(kind, sizes, distances):
    """The third shell of kagome, at distance two, holds pairs along the lines and across the hexagons."""
    lattice = plane(kind, (10, 10))
    for order, (size, squared) in enumerate(zip(sizes, distances, strict=True), 1):
        pairs = lattice.shell(order)
        assert np.all(np.bincount(pairs.ravel(), minlength=lattice.n_sites) == size)
        np.testing.assert_allclose(least_squared_distance(lattice, pairs), squared)


def least_squared_distance(lattice, pairs):
    """Squared distance of pairs to the nearest periodic image."""
    difference = lattice.positions[pairs[:, 0]] - lattice.positions[pairs[:, 1]]
    steps = itertools.product(*((-1, 0, 1) if wraps else (0,) for wraps in lattice.wraps))
    shifts = [np.multiply(step, lattice.extent) @ lattice.vectors for step in steps]
    return np.min([np.sum((difference + shift) ** 2, axis=1) for shift in shifts], axis=0)


@pytest.mark.parametrize(
    ("kind", "periodic", "edges"),
    [
        # Counted by hand for L1 x L2 = 4 x 3 cells.
        ("rectangular", True, 24),
        ("rectangular", False, 3 * 3 + 4 * 2),
        ("rectangular", (True, False), 4 * 3 + 4 * 2),
        ("rectangular", (False, True), 3 * 3 + 4 * 3),
        ("triangular", True, 36),
        ("triangular", False, 3 * 3 + 4 * 2 + 3 * 2),
        ("triangular", (True, False), 4 * 3 + 4 * 2 + 4 * 2),
        ("honeycomb", True, 36),
        ("honeycomb", False, 12 + 3 * 3 + 4 * 2),
        ("honeycomb", (False, True), 12 + 3 * 3 + 4 * 3),
        ("kagome", True, 72),
        ("kagome", False, 3 * 12 + 3 * 3 + 4 * 2 + 3 * 2),
    ],
)
def test_number_of_edges_with_every_boundary(kind, periodic, edges):
    assert len(plane(kind, (4, 3), periodic).edges) == edges


def test_a_square_is_a_rectangle():
    square = LATTICES["square"](kind="square", length=4, periodic=(True, False)).build()
    rectangle = plane("rectangular", (4, 4), (True, False))
    assert np.array_equal(square.edges, rectangle.edges)
    assert square.dimensions == 2


def test_a_rectangle_of_width_two_has_each_edge_once():
    assert len(plane("rectangular", (2, 2)).edges) == 4
    assert len(plane("rectangular", (2, 5)).edges) == 5 + 10


@pytest.mark.parametrize("lattice", EXAMPLES)
def test_shells_partition_the_pairs(lattice):
    shells = [lattice.shell(order) for order in range(1, lattice.n_shells + 1)]
    assert edge_set(shells[0]) == edge_set(lattice.edges)
    assert all(len(shell) for shell in shells)
    pairs = np.concatenate(shells)
    assert np.all(pairs[:, 0] < pairs[:, 1])
    assert pairs.dtype == np.int32
    assert len(edge_set(pairs)) == len(pairs)
    n = lattice.n_sites - (lattice.dimensions == 0)  # a site that no edge reaches is in no shell
    assert len(pairs) == (n * (n - 1) // 2 if lattice.dimensions else 6)
    assert lattice.shell(lattice.n_shells + 1).shape == (0, 2)


@pytest.mark.parametrize("lattice", [example for example in EXAMPLES if example.dimensions])
def test_shells_are_in_the_order_of_distance(lattice):
    means = [
        np.sqrt(least_squared_distance(lattice, lattice.shell(k))) for k in range(1, lattice.n_shells + 1)
    ]
    assert all(np.ptp(shell) < 1e-6 for shell in means)
    assert np.all(np.diff([shell[0] for shell in means]) > 0)


@pytest.mark.parametrize("lattice", EXAMPLES)
@pytest.mark.parametrize("symmetries", ["translations", "point_group"])
def test_symmetries_are_a_group_of_permutations_that_keep_the_edges(lattice, symmetries):
    group = getattr(lattice, symmetries)()
    members = {tuple(permutation) for permutation in group.tolist()}
    assert group.dtype == np.int32
    assert np.array_equal(group[0], np.arange(lattice.n_sites))
    assert len(members) == len(group)
    for permutation in group:
        assert np.array_equal(np.sort(permutation), np.arange(lattice.n_sites))
        assert edge_set(permutation[lattice.edges]) == edge_set(lattice.edges)
        assert {tuple(row) for row in permutation[group].tolist()} == members


@pytest.mark.parametrize(
    ("lattice", "translations", "point_group"),
    [
        (chain(6), 6, 2),
        (chain(6, periodic=False), 1, 2),
        (plane("rectangular", (4, 4)), 16, 8),
        (plane("rectangular", (4, 6)), 24, 4),
        (plane("rectangular", (5, 5), False), 1, 8),
        (plane("rectangular", (4, 4), (True, False)), 4, 4),
        (plane("triangular", (6, 6)), 36, 12),
        (plane("triangular", (4, 4), False), 1, 4),
        (plane("honeycomb", (6, 6)), 36, 12),
        (plane("kagome", (4, 4)), 16, 12),
        (graph(3, ((0, 1), (1, 2))), 1, 1),
    ],
)
def test_number_of_symmetries(lattice, translations, point_group):
    assert len(lattice.translations()) == translations
    assert len(lattice.point_group()) == point_group


@pytest.mark.parametrize("lattice", EXAMPLES)
def test_sublattices_differ_across_every_edge_of_a_bipartite_lattice(lattice):
    first, second = lattice.sublattice[lattice.edges.T]
    assert lattice.bipartite == bool(np.all(first != second))
    assert lattice.bipartite == (two_colours(lattice.n_sites, lattice.edges) is not None)


@pytest.mark.parametrize(
    ("lattice", "bipartite"),
    [
        (plane("rectangular", (4, 4)), True),
        (plane("rectangular", (4, 3)), False),
        (plane("rectangular", (4, 3), (True, False)), True),
        (plane("triangular", (4, 4)), False),
        (plane("honeycomb", (3, 3)), True),
        (plane("kagome", (2, 2), False), False),
        (chain(7), False),
        (chain(7, periodic=False), True),
        (graph(4, ((0, 1), (2, 3))), True),
        (graph(3, ((0, 1), (1, 2), (0, 2))), False),
    ],
)
def test_which_lattices_are_bipartite(lattice, bipartite):
    assert lattice.bipartite is bipartite
    if bipartite and lattice.dimensions == 2:
        assert 2 * int(lattice.sublattice.sum()) == lattice.n_sites


def test_a_graph_measures_distance_in_edges():
    star = graph(5, ((0, 1), (2, 0), (0, 3), (3, 4)))
    assert edge_set(star.shell(2)) == {frozenset(pair) for pair in [(1, 2), (1, 3), (2, 3), (0, 4)]}
    assert edge_set(star.shell(3)) == {frozenset(pair) for pair in [(1, 4), (2, 4)]}
    assert star.n_shells == 3
    assert (star.dimensions, star.periodic) == (0, False)


def test_a_ring_written_as_a_graph_is_the_ring():
    ring, written = chain(8), graph(8, tuple((i, (i + 1) % 8) for i in range(8)))
    for order in range(1, 5):
        assert edge_set(written.shell(order)) == edge_set(ring.shell(order))
    assert np.array_equal(written.sublattice, ring.sublattice)


@pytest.mark.parametrize("edges", [((0, 1), (1, 0)), ((0, 0),), ((0, 3),), ((-1, 0),), ((0, 1, 2),), ()])
def test_impossible_graphs_are_refused(edges):
    with pytest.raises(ValidationError):
        graph(3, edges)


@pytest.mark.parametrize("kind", PLANES)
def test_neighbours_are_at_distance_one_and_cells_follow_each_other(kind):
    lattice = plane(kind, (3, 4), False)
    ends = lattice.positions[lattice.edges]
    np.testing.assert_allclose(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1), 1.0)
    assert np.array_equal(lattice.cells[:: lattice.basis], np.argwhere(np.ones((3, 4))))
    step = lattice.translations()
    assert len(step) == 1
    assert np.array_equal(lattice.sites_at(lattice.positions), np.arange(lattice.n_sites))
    assert lattice.sites_at(lattice.positions + 0.1) is None


@pytest.mark.parametrize("kind", PLANES)
def test_translations_move_every_site_by_the_same_vector(kind):
    lattice = plane(kind, (3, 4))
    steps = [(i, j) for i in range(3) for j in range(4)]
    for permutation, step in zip(lattice.translations(), steps, strict=True):
        moved = lattice.positions + np.asarray(step) @ lattice.vectors
        assert np.array_equal(lattice.sites_at(moved), permutation)


def test_the_largest_lattice_is_built_and_shared():
    record = LATTICES["square"](kind="square", length=64)
    assert record.build() is LATTICES["square"](kind="square", length=64).build()
    assert math.isclose(len(record.build().edges), 2 * 4096)


def test_parts_of_a_graph():
    apart, joined = ((0, 1), (2, 3)), ((0, 1), (2, 3), (1, 3))
    build = LATTICES["graph"]
    assert not build(kind="graph", sites=4, edges=apart).build().connected
    assert build(kind="graph", sites=4, edges=joined).build().connected
    assert LATTICES["kagome"](kind="kagome", lengths=(2, 3), periodic=False).build().connected
    assert build(kind="graph", sites=4, edges=apart).build().edges_from([0]) == {0: 0, 1: 1}
    assert build(kind="graph", sites=4, edges=joined).build().edges_from([0, 3]) == {0: 0, 3: 0, 1: 1, 2: 1}
