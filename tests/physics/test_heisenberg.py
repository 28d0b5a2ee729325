"""Heisenberg magnets against Kronecker products, published energies, and Marshall's theorem."""

import json
from pathlib import Path

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations, ground_state
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.lattices import LATTICES, Chain

REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "heisenberg_reference.json").read_text())
SPIN = {
    "x": np.array([[0, 0.5], [0.5, 0]], complex),
    "y": np.array([[0, -0.5j], [0.5j, 0]]),
    "z": np.diag([0.5 + 0j, -0.5]),
}


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic)


def square(length, periodic=True):
    return LATTICES["square"](kind="square", length=length, periodic=periodic)


def heisenberg(**keys):
    return Heisenberg(kind="heisenberg", **keys)


def spin(axis, site, n_sites):
    before, after = np.eye(2**site), np.eye(2 ** (n_sites - site - 1))
    return np.kron(np.kron(before, SPIN[axis]), after)


def kronecker(lattice, couplings, delta, fields):
    n = lattice.n_sites
    matrix = -sum(field * spin("z", i, n) for i, field in enumerate(fields))
    for order, J in enumerate(couplings, 1):
        for i, j in lattice.shell(order):
            for axis, weight in (("x", 1), ("y", 1), ("z", delta)):
                matrix = matrix + J * weight * spin(axis, i, n) @ spin(axis, j, n)
    return matrix


@pytest.mark.parametrize(
    "geometry",
    [chain(7), chain(6, False), LATTICES["rectangular"](kind="rectangular", lengths=(2, 4))],
    ids=["ring", "line", "ladder"],
)
def test_matrix_is_that_of_the_formula(geometry):
    lattice = geometry.build()
    record = heisenberg(
        J=1.2, J2=0.5, J3=-0.3, delta=0.7, hz=0.4, disorder="uniform", disorder_width=0.6, disorder_seed=4
    )
    fields = 0.4 + record.random_fields(lattice.n_sites)
    assert np.ptp(fields) > 0.1
    expected = kronecker(lattice, (1.2, 0.5, -0.3), 0.7, fields)
    np.testing.assert_allclose(record.build(lattice).to_sparse().toarray(), expected, atol=1e-13)


@pytest.mark.parametrize("marshall", [False, True])
@pytest.mark.parametrize("length", [10, 12, 16])
def test_ring_energy(length, marshall):
    energy = heisenberg(marshall=marshall).exact_energy(chain(length).build())
    assert energy == pytest.approx(REFERENCE["ring_energy"][str(length)], rel=1e-11)


@pytest.mark.parametrize(("name", "J2"), [("heisenberg", 0.0), ("j1j2", 0.5)])
def test_energy_of_the_four_by_four_square(name, J2):
    energy = heisenberg(J2=J2).exact_energy(square(4).build())
    assert energy / 16 == pytest.approx(REFERENCE["square_4x4_energy_per_site"][name], rel=1e-11)


def test_marshall_rotation_is_unitary_and_makes_the_ground_state_positive():
    for geometry, J2 in [(chain(8), 0.0), (chain(8), 0.4), (square(3, False), 0.3)]:
        lattice = geometry.build()
        plain, turned = (
            heisenberg(J2=J2, delta=0.8, marshall=marshall).build(lattice).to_sparse().toarray()
            for marshall in (False, True)
        )
        sign = np.prod(np.where(lattice.sublattice == 1, all_configurations(lattice.n_sites), 1), axis=1)
        np.testing.assert_allclose(sign[:, None] * plain * sign, turned, atol=1e-13)
    for geometry in (chain(8), square(4), LATTICES["honeycomb"](kind="honeycomb", lengths=(2, 2))):
        lattice = geometry.build()
        vector = ground_state(heisenberg(marshall=True).build(lattice)).vector
        neutral = all_configurations(lattice.n_sites).sum(axis=1) == 0
        assert vector[neutral].min() > 1e-6
        assert abs(vector[~neutral]).max() < 1e-6


@pytest.mark.parametrize(
    "geometry", [chain(7), square(3), LATTICES["triangular"](kind="triangular", lengths=(4, 4))]
)
def test_marshall_rotation_is_refused_without_two_sublattices(geometry):
    (finding,) = heisenberg(marshall=True).findings({"lattice": geometry})
    assert finding.key == "marshall"
    assert "sublattices" in finding.what


def test_magnetization_is_conserved():
    record = heisenberg(J2=0.3, hz=0.2, disorder="normal", disorder_width=1.0)
    matrix = record.build(chain(8).build()).to_sparse().tocoo()
    moment = all_configurations(8).sum(axis=1)
    assert np.array_equal(moment[matrix.row], moment[matrix.col])
    assert record.conserves_magnetization


def test_a_shell_that_is_not_there_is_found():
    findings = heisenberg(J2=0.5, J3=0.5).findings({"lattice": chain(4)})
    assert [finding.key for finding in findings] == ["J3"]
    assert [finding.key for finding in heisenberg(J=0.0).findings({})] == ["J"]


@pytest.mark.parametrize(
    ("length", "keys", "per_site"),
    [(6, {}, -0.678872), (6, {"J": 2.0, "J2": 1.0}, -2 * 0.503810)],
)
def test_published_energies_beyond_diagonalisation(length, keys, per_site):
    assert heisenberg(**keys).exact_energy(square(length).build()) == pytest.approx(per_site * length**2)


def test_published_energies_are_not_used_for_another_hamiltonian_or_lattice():
    disorder = {"disorder": "uniform", "disorder_width": 0.1}
    for keys in ({"delta": 0.9}, {"hz": 0.1}, {"J3": 0.1}, {"J2": 0.4}, {"J": -1.0}, disorder):
        assert heisenberg(**keys).exact_energy(square(6).build()) is None
    for geometry in (
        square(6, False),
        square(6, (True, False)),
        LATTICES["triangular"](kind="triangular", lengths=(6, 6)),
        chain(36),
    ):
        assert heisenberg().exact_energy(geometry.build()) is None
