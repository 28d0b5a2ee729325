"""The transverse-field Ising chain against published and independently computed exact values."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from nqs_sae_service.physics import hamiltonians
from nqs_sae_service.physics.exact import all_configurations, exact_observables, ground_state
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import LATTICES, Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.states.transformer import Transformer

REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "tfim_reference.json").read_text())
TWO_POINT = [
    "nearest_neighbour_correlation",
    "half_chain_correlation",
    "magnetization_squared",
    "staggered_magnetization_squared",
    "domain_walls",
    "correlation_1_4",
    "correlation_r_3",
    "structure_factor_2",
]


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic).build()


def tfim(h, J=1.0, **more):
    return Tfim(kind="tfim", h=h, J=J, **more)


UNIFORM = {"disorder": "uniform", "disorder_width": 0.5}
NORMAL = {"disorder": "normal", "disorder_width": 0.8, "disorder_seed": 3}


@pytest.mark.parametrize(
    ("length", "h", "energy"),
    [(int(n), float(h), energy) for n, row in REFERENCE["energy"].items() for h, energy in row.items()],
)
def test_ring_energy(length, h, energy):
    assert tfim(h).exact_energy(chain(length)) == pytest.approx(energy, rel=1e-14)


def test_critical_ring_energy_in_closed_form():
    for length in (3, 10, 41, 4096):
        assert tfim(1.0).exact_energy(chain(length)) == pytest.approx(
            -2 / np.sin(np.pi / (2 * length)), rel=1e-12
        )


@pytest.mark.parametrize("h", ["0.5", "1.0", "1.5"])
def test_ring_of_forty_sites(h):
    expected, lattice = REFERENCE["ring_40"][h], chain(40)
    names = {
        "sigma_x": "sigma_x",
        "nearest_neighbour_correlation": "zz_nn",
        "correlation_r_10": "c_quarter",
        "half_chain_correlation": "c_half",
        "correlation_7_27": "c_half",
        "magnetization_squared": "m2",
    }
    for name, key in names.items():
        assert tfim(float(h)).exact_value(name, lattice) == pytest.approx(expected[key], rel=1e-10, abs=1e-13)


@pytest.mark.parametrize(("length", "periodic"), [(2, True), (7, True), (8, True), (2, False), (9, False)])
@pytest.mark.parametrize(("J", "h"), [(1.0, 0.4), (1.0, 1.0), (0.7, 1.2), (-1.0, 0.6), (0.0, 1.0)])
def test_free_fermions_equal_diagonalisation(length, periodic, J, h):
    lattice, record = chain(length, periodic), tfim(h, J)
    operator = record.build(lattice)
    ground = ground_state(operator)
    probability, sigma = ground.vector**2, all_configurations(length)
    assert record.exact_energy(lattice) == pytest.approx(ground.energy, rel=1e-12)
    sigma_x = ground.vector @ (
        make_observable("sigma_x", lattice, operator).operator.to_sparse() @ ground.vector
    )
    values = {"sigma_x": sigma_x}
    if length > 4:
        observables = [make_observable(name, lattice, operator) for name in TWO_POINT]
        values |= {observable.name: probability @ observable.values(sigma) for observable in observables}
    for name, value in values.items():
        closed = record.exact_value(name, lattice)
        assert closed == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(("length", "periodic"), [(7, True), (10, True), (9, False)])
@pytest.mark.parametrize(("J", "h"), [(1.0, 0.9), (-1.0, 0.5), (-0.8, 1.4)])
@pytest.mark.parametrize("disorder", [UNIFORM, NORMAL], ids=["uniform", "normal"])
def test_free_fermions_in_random_fields_equal_diagonalisation(length, periodic, J, h, disorder):
    """Also on frustrated rings, and where some of the fields are negative."""
    lattice, record = chain(length, periodic), tfim(h, J, **disorder)
    exact = ground_state(record.build(lattice))
    probability, sigma = exact.vector**2, all_configurations(length)
    assert record.exact_energy(lattice) == pytest.approx(exact.energy, rel=1e-12)
    for name in ["sigma_x", "magnetization", *TWO_POINT]:
        o = make_observable(name, lattice, record.build(lattice))
        value = (
            exact.vector @ (o.operator.to_sparse() @ exact.vector)
            if o.operator is not None
            else probability @ o.values(sigma)
        )
        assert record.exact_value(name, lattice) == pytest.approx(value, abs=1e-8)


def test_a_frustrated_ring_in_a_weak_field_has_a_hole_in_the_vacuum():
    """The vacuum of the even sector has odd parity below h = |J|: its energy would be too low."""
    lattice = chain(9)
    for h in (0.3, 0.99, 1.01, 2.0):
        assert tfim(h, -1.0).exact_energy(lattice) == pytest.approx(
            ground_state(tfim(h, -1.0).build(lattice)).energy, rel=1e-12
        )


def test_forty_spins_in_random_fields_have_an_exact_energy():
    """The energy is the sum of its parts, and grows continuously from that of equal fields."""
    for periodic in (True, False):
        lattice, record = chain(40, periodic), tfim(1.0, **UNIFORM)
        h, _ = record.fields(lattice)
        fermions = record.free_fermions(lattice)
        c = fermions.correlation_matrix
        zz = sum(c[i, j] for i, j in lattice.edges)
        assert record.exact_energy(lattice) == pytest.approx(-zz - h @ fermions.sigma_x, rel=1e-12)
        assert record.exact_value("half_chain_correlation", lattice) is not None
        weak = tfim(1.0, disorder="uniform", disorder_width=1e-7)
        assert weak.exact_energy(lattice) == pytest.approx(tfim(1.0).exact_energy(lattice), rel=1e-7)


def test_random_fields_depend_on_the_seed_and_the_site():
    for kind in ("uniform", "normal"):
        disorder = {"disorder": kind, "disorder_width": 0.2}
        short, long = (tfim(1.0, **disorder).fields(chain(n))[0] for n in (8, 4096))
        assert np.array_equal(short, long[:8])
        assert not np.array_equal(short, tfim(1.0, **disorder, disorder_seed=2).fields(chain(8))[0])
        assert abs(long.mean() - 1) < 4 * 0.2 / 64
        assert long.std() == pytest.approx(0.2 / np.sqrt(3) if kind == "uniform" else 0.2, rel=0.05)
    assert abs(tfim(1.0, **UNIFORM).fields(chain(4096))[0] - 1).max() <= 0.5
    h, hz = tfim(1.0, **UNIFORM, disorder_of="hz", hz=0.3).fields(chain(8))
    assert np.all(h == 1)
    assert np.ptp(hz) > 0


def test_only_a_chain_without_longitudinal_field_has_the_energy_of_free_fermions():
    square = LATTICES["square"](kind="square", length=3).build()
    for lattice, record in [
        (square, tfim(1.0)),
        (chain(9), tfim(1.0, hz=0.2)),
        (chain(9), tfim(1.0, **UNIFORM, disorder_of="hz")),
    ]:
        assert record.exact_energy(lattice) == pytest.approx(
            ground_state(record.build(lattice)).energy, rel=1e-13
        )
        assert record.exact_value("sigma_x", lattice) is None
    large = LATTICES["square"](kind="square", length=6).build()
    assert tfim(1.0).exact_energy(large) is None
    assert tfim(1.0, hz=0.1).exact_energy(chain(40)) is None
    assert list(exact_observables(tfim(1.0, hz=0.1), chain(40), ["magnetization"]).values()) == [
        pytest.approx(np.nan, nan_ok=True)
    ]


def test_the_square_lattice_in_a_field_without_coupling_and_without_field():
    square = LATTICES["square"](kind="square", length=4).build()
    assert tfim(0.7, J=0.0).exact_energy(square) == pytest.approx(-0.7 * 16, rel=1e-12)
    assert tfim(0.0, hz=0.1).exact_energy(square) == pytest.approx(-32 - 1.6, rel=1e-12)


def test_impossible_disorder_is_refused():
    keys = [
        [finding.key for finding in tfim(1.0, **disorder).findings({})]
        for disorder in ({"disorder": "normal"}, {"disorder_width": 0.3}, NORMAL)
    ]
    assert keys == [["disorder_width"], ["disorder"], []]
    sections = {
        "lattice": Chain(kind="chain", length=20),
        "state": Transformer(kind="transformer", amplitude="positive"),
    }
    assert [finding.key for finding in tfim(0.5, **NORMAL).findings(sections)] == ["disorder_width"]
    sections["state"] = Transformer(kind="transformer", amplitude="complex")
    assert not list(tfim(0.5, **NORMAL).findings(sections))


def test_no_field_is_the_limit_of_a_small_field():
    lattice = chain(8)
    exact = exact_observables(
        tfim(0.0), lattice, ["local_energy", "sigma_x", "half_chain_correlation", "abs_magnetization"]
    )
    assert list(exact.values()) == pytest.approx([-8.0, 0.0, 1.0, 1.0], abs=1e-12)


def test_energy_is_the_sum_of_its_parts():
    lattice, record = chain(100, periodic=False), tfim(0.9, J=1.1)
    zz, x = (record.exact_value(name, lattice) for name in ("nearest_neighbour_correlation", "sigma_x"))
    assert record.exact_energy(lattice) == pytest.approx(-1.1 * 99 * zz - 0.9 * 100 * x, rel=1e-11)


def test_gapped_open_chain_is_a_ring_plus_two_edges():
    """E_open(N) = E_ring(N) + edges up to exp(-N / xi), where edges = 2 E_open(N / 2) - E_open(N)."""
    ring, whole, half = (
        tfim(1.5).exact_energy(chain(*shape)) for shape in ((400,), (400, False), (200, False))
    )
    assert ring + (2 * half - whole) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("length", ["10", "16"])
def test_mean_absolute_magnetization(length):
    for h, expected in REFERENCE["abs_m"][length].items():
        exact = exact_observables(tfim(float(h)), chain(int(length)), ["abs_magnetization", "log_abs_psi"])
        assert exact["abs_magnetization"] == pytest.approx(expected, rel=1e-11)
        assert np.isnan(exact["log_abs_psi"])


def test_unknown_values_are_nan_on_large_lattices():
    exact = exact_observables(tfim(1.0), chain(40), ["abs_magnetization", "magnetization", "local_energy"])
    assert np.isnan(exact["abs_magnetization"])
    assert exact["magnetization"] == 0.0
    assert exact["local_energy"] == pytest.approx(REFERENCE["energy"]["40"]["1.0"], rel=1e-14)


def test_record_refuses_what_makes_no_sense():
    with pytest.raises(ValidationError):
        tfim(-1.0)
    with pytest.raises(ValidationError):
        tfim(float("nan"))
    assert [finding.key for finding in tfim(0.0, J=0.0).findings({})] == ["h"]
    assert not list(tfim(0.5).findings({}))


def test_a_new_hamiltonian_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "classical.py").write_text(
        "from typing import Literal\n"
        "from nqs_sae_service.physics.hamiltonians import Hamiltonian\n"
        "class Classical(Hamiltonian):\n"
        "    kind: Literal['classical']\n"
    )
    monkeypatch.setattr(hamiltonians, "__path__", [*hamiltonians.__path__, str(tmp_path)])
    try:
        assert set(hamiltonians._discover()) == {*HAMILTONIANS, "classical"}
    finally:
        sys.modules.pop("nqs_sae_service.physics.hamiltonians.classical", None)
