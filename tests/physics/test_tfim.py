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
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable

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


def tfim(h, J=1.0):
    return Tfim(kind="tfim", h=h, J=J)


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
    frustrated = J < 0 and periodic and length == 7
    sigma_x = ground.vector @ (
        make_observable("sigma_x", lattice, operator).operator.to_sparse() @ ground.vector
    )
    values = {"sigma_x": sigma_x}
    if length > 4:
        observables = [make_observable(name, lattice, operator) for name in TWO_POINT]
        values |= {observable.name: probability @ observable.values(sigma) for observable in observables}
    for name, value in values.items():
        closed = record.exact_value(name, lattice)
        assert closed is None if frustrated else closed == pytest.approx(value, abs=1e-9)


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
