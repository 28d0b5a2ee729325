"""Exact dynamics after a quench against reference values, dense exponentials, and conservation laws."""

import numpy as np
import pytest
from scipy.linalg import expm

from nqs_sae_service.errors import UserError
from nqs_sae_service.physics.exact import exact_observables, ground_state
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain, Kagome, Square
from nqs_sae_service.physics.quench import Quench, product_configuration, product_state

TIMES = np.arange(9) / 4
# Ring of 12 sites, J = h = 1, by another code.
RING_12 = {
    ("x", "sigma_x"): [1, 0.788362403878, 0.483489167994, 0.453886023636, 0.529329539254, 0.50434689083,
                       0.481366046251, 0.509299386022, 0.503433009519],
    ("x", "nearest_neighbour_correlation"): [0, 0.211637596122, 0.516510832006, 0.546113976364, 0.470670460746,
                                             0.49565310917, 0.518633953749, 0.490700613978, 0.496566990481],
    ("z", "sigma_x"): [0, 0.211637596122, 0.516510832006, 0.546113976355, 0.470670456643, 0.495652725383,
                       0.518620592041, 0.490473203236, 0.494350176521],
    ("z", "magnetization"): [1, 0.887095635851, 0.657499769863, 0.467652080976, 0.343345463922, 0.25111623557,
                             0.181255508391, 0.132172907922, 0.09649542968],
}  # fmt: skip
NAMES = [
    "sigma_x",
    "nearest_neighbour_correlation",
    "half_chain_correlation",
    "magnetization_squared",
    "domain_walls",
    "correlation_1_4",
    "correlation_r_3",
    "structure_factor_2",
]


def chain(length, periodic=True):
    return Chain(kind="chain", length=length, periodic=periodic).build()


def tfim(h, J=1.0, **more):
    return Tfim(kind="tfim", h=h, J=J, **more)


def heisenberg(**keys):
    return Heisenberg(kind="heisenberg", **keys)


@pytest.mark.parametrize(("start", "name"), list(RING_12))
def test_ring_of_twelve_sites(start, name):
    quench = Quench(chain(12), start, None, tfim(1.0))
    values = [quench.observables(t, [name])[name] for t in TIMES]
    np.testing.assert_allclose(values, RING_12[start, name], atol=1e-10)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(
    ("before", "after"),
    [(None, tfim(0.8)), (tfim(0.3), tfim(1.2, disorder="uniform", disorder_width=0.5))],
)
def test_free_fermions_and_all_amplitudes_give_the_same_observables(periodic, before, after):
    """A weak longitudinal field leaves the solution in closed form."""
    start, lattice = "x" if before is None else "ground_state", chain(8, periodic)
    closed = Quench(lattice, start, before, after)
    summed = Quench(lattice, start, before, after.model_copy(update={"hz": 1e-12}))
    assert closed._fermions is not None
    assert summed._fermions is None
    for t in (0.0, 0.7, 2.5):
        expected = summed.observables(t, ["magnetization", "local_energy", *NAMES])
        assert closed.observables(t, list(expected)) == pytest.approx(expected, abs=1e-10)
    assert closed._last is None


@pytest.mark.parametrize("imaginary", [False, True])
@pytest.mark.parametrize("start", ["x", "z", "neel"])
def test_state_is_the_exponential_on_any_grid_of_times(start, imaginary):
    lattice, after = chain(6), tfim(0.9, hz=0.3)
    quench = Quench(lattice, start, None, after, imaginary=imaginary)
    matrix = after.build(lattice).to_sparse().toarray()
    for t in (0.0, 0.4, 1.5, 0.2, 0.2, 30.0):
        expected = expm((-1 if imaginary else -1j) * t * matrix) @ product_state(lattice, start)
        psi = quench.state(t).psi
        np.testing.assert_allclose(psi, expected / np.linalg.norm(expected), atol=1e-11)
        assert np.linalg.norm(psi) == pytest.approx(1, abs=1e-13)
        assert np.iscomplexobj(psi) == (not imaginary and quench._last[0] > 0)


def test_imaginary_time_ends_in_the_ground_state():
    """Also where the exponential itself would overflow."""
    lattice, record = Square(kind="square", length=3).build(), tfim(2.0, hz=0.4)
    quench = Quench(lattice, "x", None, record, imaginary=True)
    energies = [quench.observables(t, ["local_energy"])["local_energy"] for t in (0.0, 0.1, 0.5, 2.0, 100.0)]
    ground = ground_state(record.build(lattice))
    assert np.all(np.diff(energies) < 0)
    assert energies[0] == pytest.approx(quench.energy)
    assert energies[-1] == pytest.approx(ground.energy, rel=1e-12)
    assert abs(quench.state(100.0).psi @ ground.vector) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("start", ["ground_state", "x", "z", "neel"])
@pytest.mark.parametrize(
    ("before", "after"), [(tfim(0.5), tfim(1.2, hz=0.3)), (heisenberg(hz=0.2), heisenberg(J2=0.3, delta=0.6))]
)
def test_energy_is_conserved(start, before, after):
    quench = Quench(chain(8), start, before, after)
    matrix = after.build(quench.lattice).to_sparse()
    for t in (0.0, 1.3, 6.0):
        assert quench.state(t).operator_expectation(matrix) == pytest.approx(quench.energy, abs=1e-10)
        assert quench.observables(t, ["local_energy"])["local_energy"] == quench.energy


@pytest.mark.parametrize("start", ["ground_state", "x", "z", "neel"])
@pytest.mark.parametrize("marshall", [(False, True), (True, False), (True, True)])
def test_observables_do_not_depend_on_the_rotation_of_the_spins(start, marshall):
    names = ["sigma_x", "spin_correlation_1", "staggered_magnetization_squared", "local_energy"]
    plain, turned = (
        Quench(chain(6), start, heisenberg(delta=2.0, marshall=a), heisenberg(delta=0.5, hz=1.0, marshall=b))
        for a, b in ((False, False), marshall)
    )
    for t in (0.0, 0.8):
        assert turned.observables(t, names) == pytest.approx(plain.observables(t, names), abs=1e-11)


def test_ground_state_of_a_sector_stays_there():
    before, after = heisenberg(delta=0.5), heisenberg(delta=1.5)
    quench = Quench(chain(8), "ground_state", before, after, magnetization=2)
    names = ["magnetization", "nearest_neighbour_correlation"]
    start = exact_observables(before, chain(8), names, magnetization=2)
    assert quench.observables(0.0, names) == pytest.approx(start, abs=1e-12)
    later = quench.observables(2.0, names)
    assert later["magnetization"] == pytest.approx(0.25, abs=1e-12)
    assert abs(later[names[1]] - start[names[1]]) > 1e-3


def test_what_is_known_beyond_sixteen_sites():
    """Free fermions as long as they are cheap; energies of product states; else NaN."""
    names = ["sigma_x", "nearest_neighbour_correlation", "magnetization", "abs_magnetization", "local_energy"]
    known = Quench(chain(200), "ground_state", tfim(0.5), tfim(1.0)).observables(1.0, names)
    assert [name for name, value in known.items() if np.isnan(value)] == ["abs_magnetization"]
    assert known["local_energy"] == pytest.approx(
        -200 * (known["sigma_x"] + known["nearest_neighbour_correlation"]), rel=1e-12
    )
    long = Quench(chain(400, False), "x", None, tfim(1.0)).observables(
        1.0, ["magnetization_squared", "sigma_x"]
    )
    assert np.isnan(long["magnetization_squared"])
    assert 0 < long["sigma_x"] < 1
    plane = Square(kind="square", length=6).build()
    energies = {"x": -0.7 * 36, "z": -72 - 0.2 * 36, "neel": 72.0}
    for start, energy in energies.items():
        quench = Quench(plane, start, None, tfim(0.7, hz=0.2))
        assert quench.state(1.0) is None
        assert quench.energy == pytest.approx(energy)
        assert np.isnan(quench.observables(1.0, ["sigma_x"])["sigma_x"])
    assert Quench(plane, "ground_state", tfim(1.0), tfim(2.0)).energy is None
    assert Quench(chain(40), "x", None, tfim(1.0), imaginary=True).state(1.0) is None


def test_what_is_no_mean_over_configurations_is_unknown():
    quench = Quench(chain(6), "z", None, tfim(1.0))
    values = quench.observables(0.5, ["log_abs_psi", "renyi2", "cos_phase"])
    assert [np.isnan(value) for value in values.values()] == [True, True, False]


def test_product_states():
    lattice = Square(kind="square", length=2, periodic=False).build()
    neel = product_configuration(lattice, "neel")
    assert np.array_equal(neel, [1, -1, -1, 1])
    assert list(np.flatnonzero(product_state(lattice, "neel"))) == [0b0110]
    assert list(np.flatnonzero(product_state(lattice, "z"))) == [0]
    np.testing.assert_allclose(product_state(lattice, "x"), 0.25)
    with pytest.raises(UserError, match="two sublattices"):
        product_state(Kagome(kind="kagome", lengths=(2, 2)).build(), "neel")
    with pytest.raises(UserError, match="two sublattices"):
        product_state(chain(5), "neel")
    with pytest.raises(ValueError, match="no configuration"):
        product_state(lattice, "ground_state")
    with pytest.raises(UserError, match="of which Hamiltonian"):
        Quench(lattice, "ground_state", None, tfim(1.0))
