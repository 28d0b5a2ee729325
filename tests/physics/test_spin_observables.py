"""Observables of magnets: operators against Kronecker products, in both frames; order and structure in the plane; phases."""

import itertools
from functools import lru_cache

import numpy as np
import pytest
from scipy.sparse import csr_matrix, identity, kron

from nqs_sae_service.physics.exact import (
    FullSummation,
    all_configurations,
    exact_observables,
    ground_state,
    susceptibility,
)
from nqs_sae_service.physics.exchange import ScalarChirality, SpinExchange
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain, Graph, Honeycomb, Kagome, Rectangular, Square, Triangular
from nqs_sae_service.physics.observables import (
    UnknownObservable,
    check_observable,
    default_names,
    make_observable,
    observable_kind,
    observable_names,
    simple_function_names,
    simple_functions,
    without_global_phase,
)
from nqs_sae_service.physics.observables.spins import elementary_triangles
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.vmc.estimators import local_values, measure

SPIN = {
    "x": csr_matrix([[0, 0.5], [0.5, 0]]),
    "y": csr_matrix([[0, -0.5j], [0.5j, 0]]),
    "z": csr_matrix([[0.5, 0], [0, -0.5]]),
}
LATTICES = {
    "chain8": Chain(kind="chain", length=8),
    "open5": Chain(kind="chain", length=5, periodic=False),
    "square3": Square(kind="square", length=3),
    "strip4x2": Rectangular(kind="rectangular", lengths=(4, 2), periodic=(True, False)),
    "triangular3": Triangular(kind="triangular", lengths=(3, 3)),
    "open_triangular": Triangular(kind="triangular", lengths=(2, 3), periodic=False),
    "kagome": Kagome(kind="kagome", lengths=(2, 2), periodic=(True, False)),
    "honeycomb": Honeycomb(kind="honeycomb", lengths=(2, 2), periodic=False),
    "square_graph": Graph(kind="graph", sites=4, edges=((0, 1), (1, 2), (2, 3), (3, 0))),
}


@lru_cache
def lattice_of(name):
    return LATTICES[name].build()


@lru_cache(maxsize=256)
def spin(axis, site, n_sites):
    """S^axis of one site as a matrix of the whole space."""
    before, after = identity(1 << site), identity(1 << (n_sites - site - 1))
    return kron(kron(before, SPIN[axis]), after).tocsr()


def dot(i, j, n_sites, delta=1.0):
    weights = {"x": 1, "y": 1, "z": delta}
    return sum(w * spin(axis, i, n_sites) @ spin(axis, j, n_sites) for axis, w in weights.items())


def triple(i, j, k, n_sites):
    signs = {"xyz": 1, "yzx": 1, "zxy": 1, "xzy": -1, "zyx": -1, "yxz": -1}
    return sum(
        sign * spin(a, i, n_sites) @ spin(b, j, n_sites) @ spin(c, k, n_sites)
        for (a, b, c), sign in signs.items()
    )


def assert_same(built, expected):
    assert abs(built - expected).max() < 1e-13


def heisenberg(lattice, **couplings):
    return Heisenberg(kind="heisenberg", **couplings).build(lattice)


def matrix_of(name, lattice, hamiltonian):
    return make_observable(name, lattice, hamiltonian).operator.to_sparse()


def local_names(lattice):
    return [name for name in observable_names(lattice) if observable_kind(name, lattice) == "local"]


def pairs_at(lattice, order):
    """Pairs at the order-th smallest distance of a small lattice, from positions and their periodic images."""
    n = lattice.n_sites
    images = list(itertools.product(*((-1, 0, 1) if wraps else (0,) for wraps in lattice.wraps)))
    distance = np.full((n, n), np.inf)
    for image in images:
        shift = (np.array(image) * lattice.extent) @ lattice.vectors
        apart = lattice.positions[:, None] - lattice.positions[None] + shift
        distance = np.minimum(distance, np.linalg.norm(apart, axis=2))
    lengths = np.unique(np.round(distance[np.triu_indices(n, 1)], 6))
    return np.argwhere(np.triu(np.abs(distance - lengths[order - 1]) < 1e-5, 1))


@pytest.mark.parametrize("name", ["chain8", "open5", "square3", "strip4x2", "triangular3", "honeycomb"])
@pytest.mark.parametrize("order", [1, 2])
def test_correlations_by_distance(name, order):
    lattice = lattice_of(name)
    n, pairs = lattice.n_sites, pairs_at(lattice, order)
    sigma, plain = all_configurations(n), heisenberg(lattice)
    expected = np.mean([sigma[:, i] * sigma[:, j] for i, j in pairs], axis=0)
    values = make_observable(f"shell_correlation_{order}", lattice, plain).values(sigma)
    np.testing.assert_allclose(values, expected, atol=1e-14)
    matrix = sum(dot(i, j, n) for i, j in pairs) / len(pairs)
    assert_same(matrix_of(f"spin_correlation_{order}", lattice, plain), matrix)


def test_bond_energies_are_those_of_the_hamiltonian():
    lattice = lattice_of("strip4x2")
    record = Heisenberg(kind="heisenberg", J=1.3, J2=-0.7, delta=0.4, hz=0.2)
    hamiltonian = record.build(lattice)
    (i, j), (a, b) = lattice.shell(1)[0], lattice.shell(2)[0]
    assert_same(matrix_of(f"bond_energy_{i}_{j}", lattice, hamiltonian), 1.3 * dot(i, j, 8, 0.4))
    assert_same(matrix_of(f"bond_energy_{b}_{a}", lattice, hamiltonian), -0.7 * dot(a, b, 8, 0.4))
    total = hamiltonian.to_sparse() + 0.2 * sum(spin("z", site, 8) for site in range(8))
    shells = [len(lattice.shell(k)) * matrix_of(f"bond_energy_{k}", lattice, hamiltonian) for k in (1, 2)]
    assert_same(sum(shells), total)
    for name in ("bond_energy_3", "bond_energy_0_4"):
        with pytest.raises(UnknownObservable, match="has no exchange"):
            make_observable(name, lattice, hamiltonian)
        check_observable(name, lattice)
        with pytest.raises(UnknownObservable, match="has no exchange"):
            check_observable(name, lattice, lambda: hamiltonian)
    with pytest.raises(UnknownObservable, match="has no exchange"):
        make_observable("bond_energy_0_1", lattice, Tfim(kind="tfim", h=1.0).build(lattice))


def test_dimers():
    lattice = Rectangular(kind="rectangular", lengths=(4, 3), periodic=(True, False)).build()
    sigma, plain = (
        np.random.default_rng(0).choice([-1, 1], size=(20, 12)).astype(np.int8),
        heisenberg(lattice),
    )
    site = np.arange(12).reshape(4, 3)
    bonds_x = [(site[x, y], site[(x + 1) % 4, y], (-1) ** x) for x in range(4) for y in range(3)]
    bonds_y = [(site[x, y], site[x, y + 1], (-1) ** y) for x in range(4) for y in range(2)]
    for axis, bonds in (("x", bonds_x), ("y", bonds_y)):
        expected = sum(sign * sigma[:, i].astype(float) * sigma[:, j] for i, j, sign in bonds) / 12
        values = make_observable(f"dimer_zz_{axis}", lattice, plain).values(sigma)
        np.testing.assert_allclose(values, expected, atol=1e-14)
        matrix = sum(sign * dot(i, j, 12) for i, j, sign in bonds) / 12
        assert_same(matrix_of(f"dimer_{axis}", lattice, plain), matrix)
    x, y = (make_observable(f"dimer_zz_{axis}", lattice, plain).values(sigma) for axis in "xy")
    squared = make_observable("dimer_zz_squared", lattice, plain).values(sigma)
    np.testing.assert_allclose(squared, x**2 + y**2, atol=1e-14)
    chain = lattice_of("chain8")
    staggered = sum((-1) ** i * dot(i, (i + 1) % 8, 8) for i in range(8)) / 8
    assert_same(matrix_of("dimer_x", chain, heisenberg(chain)), staggered)


def clockwise_area(lattice, triangle):
    """Twice the area of a triangle of neighbouring sites, its sides brought home over the periodic boundaries."""
    span = np.array(lattice.extent)[:, None] * lattice.vectors
    sides = []
    for other in triangle[1:]:
        apart = lattice.positions[other] - lattice.positions[triangle[0]]
        wraps = [(-1, 0, 1) if w else (0,) for w in lattice.wraps]
        images = [apart + np.array(shift) @ span for shift in itertools.product(*wraps)]
        sides.append(min(images, key=np.linalg.norm))
    return np.linalg.det(sides)


@pytest.mark.parametrize(
    ("name", "count"),
    [("square3", 4 * 9), ("strip4x2", 4 * 4), ("triangular3", 18), ("open_triangular", 4), ("kagome", 4 + 2)],
)
def test_scalar_chirality(name, count):
    lattice = lattice_of(name)
    n, triangles = lattice.n_sites, elementary_triangles(lattice)
    assert len(triangles) == count
    assert all(
        clockwise_area(lattice, t) == pytest.approx(clockwise_area(lattice, triangles[0])) for t in triangles
    )
    assert clockwise_area(lattice, triangles[0]) > 0
    if n > 9:
        triangles = triangles[:2]  # Kronecker products of 12 sites are slow
        built = ScalarChirality(n, triangles).to_sparse()
    else:
        built = matrix_of("scalar_chirality", lattice, heisenberg(lattice))
    assert built.dtype == np.complex128
    assert_same(built, sum(triple(*t, n) for t in triangles) / len(triangles))


@pytest.mark.parametrize(
    "record",
    [
        LATTICES["chain8"],
        LATTICES["honeycomb"],
        LATTICES["square_graph"],
        Square(kind="square", length=2),
    ],
)
def test_chirality_is_refused_where_there_are_no_triangles(record):
    with pytest.raises(UnknownObservable, match="triangles or square plaquettes"):
        check_observable("scalar_chirality", record.build())


@pytest.mark.parametrize("name", ["chain8", "strip4x2", "honeycomb", "square_graph"])
def test_the_marshall_rotation_applies_to_every_operator(name):
    """U O U with U = (-1)^(up spins on the rotated sublattice), for the Hamiltonian and all that is measured with it."""
    lattice = lattice_of(name)
    plain, rotated = (heisenberg(lattice, J2=0.3, delta=0.8, marshall=marshall) for marshall in (False, True))
    up = (all_configurations(lattice.n_sites)[:, lattice.sublattice == 1] > 0).sum(axis=1)
    sign = (-1.0) ** up
    turn = csr_matrix((sign, (np.arange(len(sign)),) * 2))
    names = [n for n in local_names(lattice) if not n.startswith("bond_energy")] + ["bond_energy_1"]
    assert {"sigma_x", "local_energy", "spin_correlation_1"} <= set(names)
    for observable in names:
        built = matrix_of(observable, lattice, rotated)
        assert_same(built, turn @ matrix_of(observable, lattice, plain) @ turn)


class Table:
    """A wave function given on every configuration."""

    def __init__(self, log_psi):
        self.table = log_psi

    def log_psi(self, sigma):
        return self.table[basis_index(sigma)]


@pytest.mark.parametrize("real", [True, False])
def test_local_estimators_sum_to_expectation_values(real):
    """With a real psi too, where the local chirality is imaginary and its mean zero."""
    lattice, rng = lattice_of("open_triangular"), np.random.default_rng(3)
    sigma, hamiltonian = all_configurations(6), heisenberg(lattice)
    log_psi = rng.normal(size=64) + (0 if real else 1j * rng.uniform(0, 6, 64))
    names = ["spin_correlation_1", "scalar_chirality", "local_energy", "shell_correlation_2"]
    observables = [make_observable(name, lattice, hamiltonian) for name in names]
    values = measure(Table(log_psi), observables, sigma, log_psi)
    state = FullSummation.from_log_psi(6, log_psi)
    for observable, column in zip(observables[:3], values.T[:3], strict=True):
        matrix = observable.operator.to_sparse()
        np.testing.assert_allclose(column, (matrix @ state.psi) / state.psi, atol=1e-12)
        assert state.expectation(column).real == pytest.approx(state.operator_expectation(matrix), abs=1e-13)
    chirality = state.expectation(values[:, 1]).real
    assert (abs(chirality) < 1e-14) == real


def test_complex_ground_states():
    """Of one triangle with H = S_1 . (S_2 x S_3): energy -sqrt(3)/4, complex amplitudes; the response to a chiral field."""
    triangle = ScalarChirality(3, np.array([[0, 1, 2]]))
    ground = ground_state(triangle)
    assert ground.energy == pytest.approx(-np.sqrt(3) / 4)
    assert np.iscomplexobj(ground.vector)
    state = FullSummation(all_configurations(3), ground.vector)
    assert state.operator_variance(triangle.to_sparse()) < 1e-24
    lattice = lattice_of("open_triangular")
    energy, chirality = (
        heisenberg(lattice, J2=0.2).to_sparse(),
        matrix_of("scalar_chirality", lattice, heisenberg(lattice)),
    )
    field = energy + 0.3 * matrix_of("spin_correlation_1_2", lattice, heisenberg(lattice))

    def lowest(matrix):
        return np.linalg.eigh(matrix.toarray())[1][:, 0]

    def mean(strength):
        vector = lowest(field - strength * chirality)
        return np.vdot(vector, chirality @ vector).real

    energies, vectors = np.linalg.eigh(field.toarray())
    known = type(ground)(energies[0], vectors[:, 0], energies[1] - energies[0], None)
    assert energies[1] - energies[0] > 0.1
    expected = (mean(1e-4) - mean(-1e-4)) / 2e-4
    assert expected > 1e-3
    assert susceptibility(field, known, chirality) == pytest.approx(expected, rel=1e-5)


def test_exact_values_are_the_same_in_both_frames():
    lattice = LATTICES["strip4x2"].build()
    names = [
        "spin_correlation_1",
        "dimer_x",
        "staggered_magnetization_squared",
        "marshall_sign",
        "scalar_chirality",
    ]
    plain, rotated = (
        exact_observables(Heisenberg(kind="heisenberg", J2=0.3, marshall=marshall), lattice, names)
        for marshall in (False, True)
    )
    assert plain == pytest.approx(rotated, abs=1e-9)
    unfrustrated = exact_observables(
        Heisenberg(kind="heisenberg", marshall=True), lattice, [*names, "cos_phase"]
    )
    assert unfrustrated["marshall_sign"] == pytest.approx(1, abs=1e-12)
    assert unfrustrated["cos_phase"] == pytest.approx(1, abs=1e-12)
    energy = Heisenberg(kind="heisenberg").exact_energy(lattice)
    assert unfrustrated["spin_correlation_1"] * len(lattice.edges) == pytest.approx(energy)


# Order parameters and structure factors.


def ordered(lattice, signs):
    return np.asarray(signs, np.int8).reshape(1, lattice.n_sites)


def test_stripes_of_ordered_configurations():
    lattice = Rectangular(kind="rectangular", lengths=(4, 6)).build()
    x, y = np.indices((4, 6))
    plain = heisenberg(lattice)

    def value(name, signs):
        return make_observable(name, lattice, plain).values(ordered(lattice, signs))[0]

    along_x, along_y, neel = (-1) ** x, (-1) ** y, (-1) ** (x + y)
    assert value("stripe_magnetization_x", along_x) == 1
    assert value("stripe_magnetization_x", -along_x) == -1
    assert value("abs_stripe_magnetization_x", -along_x) == 1
    assert value("stripe_magnetization_x_squared", along_y) == 0
    assert value("stripe_magnetization_y", along_y) == 1
    assert value("stripe_magnetization_squared", along_x) == 1
    assert value("stripe_magnetization_squared", -along_y) == 1
    assert value("stripe_magnetization_squared", neel) == 0
    assert abs(value("staggered_magnetization", neel)) == 1
    assert value("staggered_magnetization", along_x) == 0
    assert value("structure_factor_2_0", along_x) == pytest.approx(24)
    assert value("structure_factor_0_3", along_y) == pytest.approx(24)
    assert value("structure_factor_2_3", neel) == pytest.approx(24)
    assert value("dimer_zz_x", np.broadcast_to(np.array([1, 1, -1, -1])[:, None], (4, 6))) == pytest.approx(1)


@pytest.mark.parametrize(
    "record",
    [
        Rectangular(kind="rectangular", lengths=(3, 4)),
        Triangular(kind="triangular", lengths=(3, 3)),
        Honeycomb(kind="honeycomb", lengths=(2, 3)),
        Kagome(kind="kagome", lengths=(2, 2)),
    ],
    ids=lambda record: record.kind,
)
def test_structure_factor_over_the_zone(record):
    """Its mean over the zone is one, it repeats itself there, and it is |sum_j e^(i q r_j) s_j|^2 / N."""
    lattice = record.build()
    plain, rng = heisenberg(lattice), np.random.default_rng(5)
    sigma = rng.choice(np.array([-1, 1], np.int8), size=(4, lattice.n_sites))
    with pytest.raises(UnknownObservable, match=r"outside 0 \.\.\.") as error:
        check_observable("structure_factor_999_0", lattice)
    last = int(str(error.value).split()[-1]) + 1
    with pytest.raises(UnknownObservable) as error:
        check_observable("structure_factor_0_999", lattice)
    zone = itertools.product(range(last), range(int(str(error.value).split()[-1]) + 1))
    reciprocal = 2 * np.pi * np.linalg.inv(lattice.vectors).T / np.array(lattice.extent)[:, None]
    total = []
    for kx, ky in zone:
        values = make_observable(f"structure_factor_{kx}_{ky}", lattice, plain).values(sigma)
        phase = lattice.positions @ (kx * reciprocal[0] + ky * reciprocal[1])
        np.testing.assert_allclose(values, abs(sigma @ np.exp(1j * phase)) ** 2 / lattice.n_sites, atol=1e-12)
        total.append(values)
    np.testing.assert_allclose(np.mean(total, axis=0), 1, atol=1e-12)


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
def test_every_listed_name_exists(lattice):
    lattice = lattice_of(lattice)
    names = observable_names(lattice)
    assert len(set(names)) == len(names)
    hamiltonian = heisenberg(lattice)
    for name in names:
        if not name.startswith("bond_energy"):
            make_observable(name, lattice, hamiltonian)


@pytest.mark.parametrize(
    ("name", "record", "what"),
    [
        ("staggered_magnetization", LATTICES["triangular3"], "no two sublattices"),
        ("marshall_sign", Chain(kind="chain", length=5), "no two sublattices"),
        ("stripe_magnetization_x", LATTICES["chain8"], "need a square or rectangular lattice"),
        ("stripe_magnetization_x", LATTICES["triangular3"], "need a square or rectangular lattice"),
        (
            "stripe_magnetization_squared",
            LATTICES["square3"],
            "along x need an even length, it is 3 and periodic",
        ),
        ("half_chain_correlation", LATTICES["square3"], "only a chain has it"),
        ("correlation_r_2", LATTICES["honeycomb"], "only a chain has it"),
        ("structure_factor_1", LATTICES["square3"], "a plane has structure_factor_<kx>_<ky>"),
        ("structure_factor_1_1", LATTICES["chain8"], "only a plane has it"),
        ("structure_factor_0_3", LATTICES["square3"], "ky = 3 is outside 0 ... 2"),
        ("shell_correlation_0", LATTICES["square3"], "k = 0 is outside 1 ... 64"),
        ("shell_correlation_3", LATTICES["square3"], "no shell 3 of neighbours, its last one is 2"),
        ("spin_correlation_4_4", LATTICES["square3"], "i and j must differ"),
        ("spin_correlation_4_9", LATTICES["square3"], "j = 9 is outside 0 ... 8"),
        ("dimer_y", LATTICES["chain8"], "need a square or rectangular lattice"),
        ("dimer_x", LATTICES["triangular3"], "need a chain or a square or rectangular lattice"),
        ("dimer_zz_x", Square(kind="square", length=2), "even length of 4 or more, it is 2 and periodic"),
    ],
)
def test_what_a_lattice_does_not_have_is_refused_with_the_reason(name, record, what):
    with pytest.raises(UnknownObservable) as error:
        check_observable(name, record.build())
    assert what in str(error.value)


# Phases.


def phases_of(name, lattice, hamiltonian, psi):
    observable = make_observable(name, lattice, hamiltonian)
    log_psi = np.log(psi.astype(complex))
    return getattr(
        without_global_phase(observable.values(all_configurations(lattice.n_sites), log_psi)), observable.part
    )


@pytest.mark.parametrize("marshall", [False, True])
def test_departures_from_the_marshall_sign(marshall):
    """One amplitude of the wrong sign is found, whatever the global phase."""
    lattice = lattice_of("strip4x2")
    hamiltonian = heisenberg(lattice, marshall=marshall)
    up = (all_configurations(8)[:, lattice.sublattice == 1] > 0).sum(axis=1)
    psi = np.random.default_rng(0).uniform(0.1, 1, 256) * (1.0 if marshall else (-1.0) ** up)
    psi[37] *= -1
    expected = np.ones(256)
    expected[37] = -1
    for phase in (1, -1, np.exp(0.7j)):
        sign = phases_of("marshall_sign", lattice, hamiltonian, phase * psi)
        np.testing.assert_allclose(sign, expected, atol=1e-12)


def test_phases_have_no_global_phase():
    lattice, rng = lattice_of("open5"), np.random.default_rng(1)
    plain, psi = heisenberg(lattice), np.exp(1j * rng.normal(0.5, 0.8, 32))
    cos, sin = (phases_of(name, lattice, plain, psi) for name in ("cos_phase", "sin_phase"))
    np.testing.assert_allclose(cos**2 + sin**2, 1, atol=1e-12)
    assert abs(np.mean(cos * sin)) < 1e-12  # the axis along which the phases scatter most
    assert np.var(sin) + np.mean(sin) ** 2 <= np.mean(cos**2)
    turned = np.exp(2j) * psi
    np.testing.assert_allclose(phases_of("cos_phase", lattice, plain, turned), cos, atol=1e-12)
    np.testing.assert_allclose(phases_of("sin_phase", lattice, plain, turned), sin, atol=1e-12)
    both_signs = np.resize([1.0, -1.0], 32)
    np.testing.assert_allclose(abs(phases_of("cos_phase", lattice, plain, 1j * both_signs)), 1, atol=1e-12)


# Simple functions and defaults.


def test_simple_functions_follow_the_lattice_and_the_symmetry():
    chain, square, triangular = (
        lattice_of("chain8"),
        Square(kind="square", length=4).build(),
        lattice_of("triangular3"),
    )
    assert simple_function_names(chain) == ("1", "m", "|m|", "m^2", "zz", "C_half")
    assert simple_function_names(chain, True) == ("1", "m_s", "|m_s|", "m_s^2", "zz", "zz_2", "C_half")
    assert simple_function_names(square, True) == ("1", "m_s", "|m_s|", "m_s^2", "zz", "zz_2", "stripe^2")
    assert simple_function_names(triangular, True) == ("1", "zz", "zz_2")
    assert simple_function_names(square)[:7] == ("1", "m", "|m|", "m^2", "m_s", "|m_s|", "m_s^2")
    sigma = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), size=(50, 16))
    names = (
        "staggered_magnetization", "abs_staggered_magnetization", "staggered_magnetization_squared",
        "nearest_neighbour_correlation", "shell_correlation_2", "stripe_magnetization_squared",
    )  # fmt: skip
    plain = heisenberg(square)
    expected = [np.ones(50), *(make_observable(name, square, plain).values(sigma) for name in names)]
    np.testing.assert_array_equal(simple_functions(square, sigma, True), np.stack(expected, axis=1))


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
@pytest.mark.parametrize("conserved", [False, True])
def test_defaults_exist(lattice, conserved):
    lattice = lattice_of(lattice)
    names = default_names(lattice, conserved)
    for name in names:
        check_observable(name, lattice)
        assert observable_kind(name, lattice) in ("diagonal", "local")
    assert ("sigma_x" in names) != conserved
    assert any("staggered" in name for name in names) == (conserved and lattice.bipartite)


def test_an_operator_that_lists_a_pair_twice_is_no_silent_half():
    twice = SpinExchange(4, np.array([[0, 1], [1, 0]]), np.ones(2))
    with pytest.raises(ValueError, match="two columns"):
        local_values(lambda sigma: np.zeros(len(sigma)), [twice], all_configurations(4), np.zeros(16))
