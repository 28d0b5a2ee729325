"""[sampling] of a spec: what is resolved, what is refused, and that old specs keep their keys."""

import math

import pytest

from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.spec.keys import stage_key
from nqs_sae_service.spec.sampling import Sampling

RING = LATTICES["chain"](kind="chain", length=8)
ISING = HAMILTONIANS["tfim"](kind="tfim", h=1.0)
HEISENBERG = HAMILTONIANS["heisenberg"](kind="heisenberg")
APART = LATTICES["graph"](kind="graph", sites=4, edges=((0, 1), (2, 3)))


def resolved(hamiltonian=ISING, lattice=RING, **options):
    sections = {"lattice": lattice, "hamiltonian": hamiltonian}
    sections["sampling"] = Sampling(**options).resolved(sections)
    return sections


def refused(**options):
    sections = resolved(**options)
    return [finding.key for finding in sections["sampling"].findings(sections)]


def test_a_conserved_magnetization_is_fixed_and_exchanges_do_all():
    sampling = resolved(HEISENBERG)["sampling"]
    assert (sampling.magnetization, sampling.global_flip, sampling.stretch_flip) == (0, 0.05, 0.0)
    assert sampling.exchange == pytest.approx(0.95)
    odd = resolved(HEISENBERG, LATTICES["chain"](kind="chain", length=7))["sampling"]
    assert (odd.magnetization, odd.global_flip, odd.exchange) == (1, 0.0, 1.0)


def test_else_spins_are_flipped():
    sampling = resolved(ISING)["sampling"]
    assert (sampling.fixed_magnetization, sampling.global_flip, sampling.stretch_flip) == (None, 0.05, 0.2)
    assert not sampling.exchange
    free = resolved(HEISENBERG, magnetization="free")["sampling"]
    assert (free.fixed_magnetization, free.stretch_flip) == (None, 0.2)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, []),
        ({"hamiltonian": HEISENBERG}, []),
        ({"hamiltonian": HEISENBERG, "magnetization": "free"}, []),
        ({"hamiltonian": HEISENBERG, "magnetization": 4}, []),
        ({"hamiltonian": HEISENBERG, "replicas": 4}, []),
        ({"hamiltonian": HEISENBERG, "method": "exact"}, []),
        ({"exchange": 0.3}, []),
        ({"magnetization": 0}, ["magnetization"]),
        ({"hamiltonian": HEISENBERG, "magnetization": 3}, ["magnetization"]),
        ({"hamiltonian": HEISENBERG, "magnetization": 8}, ["magnetization"]),
        ({"hamiltonian": HEISENBERG, "magnetization": 2, "global_flip": 0.1}, ["global_flip"]),
        ({"hamiltonian": HEISENBERG, "stretch_flip": 0.1, "exchange": 0.85}, ["stretch_flip"]),
        ({"hamiltonian": HEISENBERG, "exchange": 0.5}, ["exchange"]),
        ({"exchange": 0.8, "stretch_flip": 0.5}, ["exchange"]),
        ({"hamiltonian": HEISENBERG, "lattice": APART}, ["magnetization"]),
        ({"hamiltonian": HEISENBERG, "lattice": APART, "method": "exact"}, []),
        ({"hamiltonian": HEISENBERG, "lattice": APART, "magnetization": "free"}, []),
        ({"exchange": 0.95, "stretch_flip": 0.0}, ["exchange"]),
        ({"method": "exact", "replicas": 2}, ["replicas"]),
        ({"method": "exact", "lattice": LATTICES["chain"](kind="chain", length=21)}, ["method"]),
    ],
    ids=str,
)
def test_what_cannot_sample_is_refused(options, keys):
    assert refused(**options) == keys


def test_new_fields_at_their_defaults_do_not_change_keys():
    values = Sampling()
    key = stage_key("samples", 1, {"sampling": values}, {})
    assert key == stage_key("samples", 1, {"sampling": Sampling(method=None, replicas=1, hottest=0.2)}, {})
    for changed in ({"replicas": 2}, {"method": "exact"}, {"hottest": 0.5}):
        assert stage_key("samples", 1, {"sampling": Sampling(**changed)}, {}) != key


def test_forecasts_count_what_is_evaluated():
    assert Sampling().evaluations(8) == 8
    assert Sampling(replicas=3).evaluations(8) == 24
    exact = resolved(HEISENBERG, method="exact")["sampling"]
    assert (exact.evaluations(8), exact.listed(8)) == (0, math.comb(8, 4))
    assert Sampling(method="exact").listed(8) == 256
