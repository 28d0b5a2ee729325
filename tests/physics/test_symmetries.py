"""Groups and characters: they multiply, they are orthogonal, they commute with what is symmetric, and count states."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain, Graph, Kagome, Rectangular, Square, Triangular
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.physics.symmetries import IRREPS, NoRepresentation, commutes, generators, symmetries

SQUARE = Square(kind="square", length=4).build()
RING = Chain(kind="chain", length=6).build()
LATTICES = {
    "ring": (RING, 24, ("A1", "A2")),
    "square": (SQUARE, 256, IRREPS),
    "rectangular": (Rectangular(kind="rectangular", lengths=(3, 4)).build(), 96, IRREPS),
    "triangular": (Triangular(kind="triangular", lengths=(3, 3)).build(), 216, IRREPS),
    "kagome": (Kagome(kind="kagome", lengths=(3, 3)).build(), 216, IRREPS),
    "cylinder": (Square(kind="square", length=4, periodic=(True, False)).build(), 32, IRREPS),
}


@pytest.mark.parametrize("name", LATTICES)
def test_characters_multiply_and_are_orthogonal(name):
    lattice, size, irreps = LATTICES[name]
    groups = [symmetries(lattice, True, None, True, irrep, parity) for irrep in irreps for parity in (1, -1)]
    for group in groups:
        assert len(group) == size
        np.testing.assert_array_equal(group.permutations[0], np.arange(lattice.n_sites))
        assert (group.flips[0], group.characters[0]) == (1, 1)
        known = dict(zip(group.keys(), group.characters, strict=True))
        assert len(known) == size
        for h in np.random.default_rng(0).integers(size, size=12):
            p = group.permutations[:, group.permutations[h]]
            f = group.flips * group.flips[h]
            products = [known[a.tobytes() + b.tobytes()] for a, b in zip(p, f, strict=True)]
            np.testing.assert_allclose(products, group.characters * group.characters[h])
    chi = np.stack([group.characters for group in groups])
    np.testing.assert_allclose(chi @ chi.T.conj() / size, np.eye(len(groups)), atol=1e-12)


def test_names_of_representations():
    """B1 is x^2 - y^2, B2 is x y, A2 is x y (x^2 - y^2), about the site in the origin."""
    positions = SQUARE.positions.astype(int)
    x, y = ((positions[:, axis] + 1) % 4 - 1 for axis in (0, 1))
    functions = {"A1": x * x + y * y, "A2": x * y * (x * x - y * y), "B1": x * x - y * y, "B2": x * y}
    inside = np.flatnonzero((np.abs(x) < 2) & (np.abs(y) < 2))
    for irrep in ("A1", "B1", "B2"):
        group = symmetries(SQUARE, point_group=True, irrep=irrep)
        if group.permutations[:, 0].any():
            pytest.skip("the centre is no site")
        for permutation, chi in zip(group.permutations, group.characters, strict=True):
            np.testing.assert_allclose(
                functions[irrep][permutation][inside], chi * functions[irrep][inside], atol=0
            )


def test_momenta_are_phases_of_translations():
    group = symmetries(RING, True, (2,))
    np.testing.assert_allclose(group.characters, np.exp(2j * np.pi * 2 * np.arange(6) / 6), atol=1e-12)
    np.testing.assert_array_equal(symmetries(RING, True, (3,)).characters, [1, -1, 1, -1, 1, -1])


def test_only_the_little_group_of_a_momentum_is_used():
    assert len(symmetries(SQUARE, True, (1, 0), True)) == 16 * 2
    assert len(symmetries(SQUARE, True, (2, 0), True)) == 16 * 4
    assert len(symmetries(SQUARE, True, (2, 2), True)) == 16 * 8


def test_representations_split_the_space():
    """The dimensions of all momenta and parities of a ring, traces of the projectors, add up to 2^N."""
    states = all_configurations(6)
    index = np.arange(len(states))

    def dimension(group):
        fixed = [
            (basis_index(states[:, p] * f) == index).sum()
            for p, f in zip(group.permutations, group.flips, strict=True)
        ]
        return (group.characters.conj() @ fixed).real / len(group)

    found = [dimension(symmetries(RING, True, (k,), spin_flip=f)) for k in range(6) for f in (1, -1)]
    np.testing.assert_allclose(sum(found), 64)
    np.testing.assert_allclose(found, np.round(found), atol=1e-12)


def test_representatives_stand_for_the_whole_group():
    group = symmetries(SQUARE, True, None, True, "B1", -1)
    shifts = SQUARE.translations()
    few = group.representatives(shifts)
    assert len(few) == 16
    np.testing.assert_array_equal(few.permutations[0], np.arange(16))
    invariant = lambda s: np.cos(s[:, shifts] @ np.random.default_rng(0).normal(size=16)).sum(axis=1)  # noqa: E731
    sigma = np.random.default_rng(1).choice([-1, 1], size=(5, 16))

    def mean(some):
        terms = [
            c * invariant(sigma[:, p] * f)
            for p, f, c in zip(some.permutations, some.flips, some.characters, strict=True)
        ]
        return np.mean(terms, axis=0)

    np.testing.assert_allclose(mean(few), mean(group), atol=1e-12)
    with pytest.raises(NoRepresentation, match="the projection is zero"):
        symmetries(SQUARE, True, (2, 2)).representatives(shifts)


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        ({"translations": True, "momentum": (1,)}, "2 axes"),
        ({"translations": True, "momentum": (4, 0)}, "0 ... 3"),
        ({"point_group": True, "irrep": "B1", "translations": True, "momentum": (1, 0)}, 'no "B1"'),
    ],
)
def test_what_there_is_not(request_, what):
    with pytest.raises(NoRepresentation) as caught:
        symmetries(SQUARE, **request_)
    assert what in caught.value.what


def test_a_graph_has_no_symmetries():
    graph = Graph(kind="graph", sites=3, edges=((0, 1), (1, 2))).build()
    for request_ in ({"translations": True}, {"point_group": True}):
        with pytest.raises(NoRepresentation, match="this lattice has no"):
            symmetries(graph, **request_)
    assert len(symmetries(graph, spin_flip=1)) == 2


def test_who_commutes():
    heisenberg, tfim = HAMILTONIANS["heisenberg"], HAMILTONIANS["tfim"]
    whole = symmetries(SQUARE, True, None, True, "A1", 1)
    space = symmetries(SQUARE, True, None, True)
    assert commutes(heisenberg(kind="heisenberg", J2=0.5).build(SQUARE), whole)
    assert commutes(heisenberg(kind="heisenberg", marshall=True).build(SQUARE), whole)
    assert commutes(tfim(kind="tfim", h=1.0).build(SQUARE), whole)
    field = heisenberg(kind="heisenberg", hz=0.3).build(SQUARE)
    assert commutes(field, space)
    assert not commutes(field, whole)
    stripe = Rectangular(kind="rectangular", lengths=(2, 8)).build()
    assert not commutes(heisenberg(kind="heisenberg").build(stripe), space)


def test_the_marshall_rotation_moves_momentum_and_parity():
    """On a ring of 6 sites, 3 up spins: momentum pi and odd parity before the rotation are 0 and even after it."""
    heisenberg, states = HAMILTONIANS["heisenberg"], all_configurations(6)
    zero = states.sum(axis=1) == 0
    for marshall, momentum, parity in ((False, 3, -1), (True, 0, 1)):
        matrix = heisenberg(kind="heisenberg", marshall=marshall).build(RING).to_sparse().toarray()
        ground = np.zeros(64)
        ground[zero] = np.linalg.eigh(matrix[np.ix_(zero, zero)])[1][:, 0]
        group = symmetries(RING, True, (momentum,), spin_flip=parity)
        for p, f, chi in zip(group.permutations, group.flips, group.characters, strict=True):
            np.testing.assert_allclose(ground[basis_index(states[:, p] * f)], chi * ground, atol=1e-10)


def moved_hamiltonian(operator, element):
    """Its matrix elements between the images of all configurations."""
    sigma = all_configurations(operator.n_sites)
    to = basis_index(sigma[:, element.permutations[0]] * element.flips[0])
    return operator.to_sparse().toarray()[np.ix_(to, to)]


@pytest.mark.parametrize(
    "lattice",
    [
        RING,
        Square(kind="square", length=2).build(),
        Graph(kind="graph", sites=3, edges=((0, 1), (1, 2))).build(),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"hz": 0.3}, {"disorder": "uniform", "disorder_width": 0.5}])
def test_generators_are_what_leaves_the_matrix_alone(lattice, fields):
    operator = HAMILTONIANS["tfim"](kind="tfim", h=1.0, **fields).build(lattice)
    found = generators(lattice, operator)
    for element in found.values():
        np.testing.assert_allclose(moved_hamiltonian(operator, element), operator.to_sparse().toarray())
    assert ("spin_flip" in found) == ("hz" not in fields)
    if "disorder_width" in fields:
        assert set(found) == {"spin_flip"}


def test_names_of_generators():
    field = HAMILTONIANS["tfim"](kind="tfim", h=1.0)
    assert list(generators(RING, field.build(RING))) == ["translation", "reflection", "spin_flip"]
    names = list(generators(SQUARE, field.build(SQUARE), 2))
    assert names == ["translation_1", "translation_2", "rotation", "reflection"]
    turn = generators(SQUARE, field.build(SQUARE))["rotation"].permutations[0]
    np.testing.assert_array_equal(turn[turn[turn[turn]]], np.arange(16))
    assert np.any(turn[turn] != np.arange(16))
    cylinder, _, _ = LATTICES["cylinder"]
    assert "translation_2" not in generators(cylinder, field.build(cylinder))
