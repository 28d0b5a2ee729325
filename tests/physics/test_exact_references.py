"""Full summation, diagonalisation and linear response against each other."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import (
    FullSummation,
    all_configurations,
    exact_observables,
    ground_state,
    susceptibility,
)
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.physics.operators import SigmaX, basis_index


def tfim(length, h, periodic=True):
    lattice = Chain(kind="chain", length=length, periodic=periodic).build()
    return lattice, Tfim(kind="tfim", h=h).build(lattice)


def random_state(n_sites, seed=0):
    rng = np.random.default_rng(seed)
    log_psi = rng.normal(size=2**n_sites) + 1j * rng.uniform(0, 2 * np.pi, 2**n_sites)
    return FullSummation.from_log_psi(n_sites, log_psi), log_psi


def test_mean_of_local_estimators_is_the_expectation_value():
    """sum_s p(s) O_loc(s) = psi^dagger O psi for a random complex psi, energies and sigma_x alike."""
    lattice, hamiltonian = tfim(8, 0.9)
    state, log_psi = random_state(8)
    for operator in (hamiltonian, SigmaX(lattice)):
        neighbours, element = operator.connected(state.configurations)
        ratio = np.exp(log_psi[basis_index(neighbours)] - log_psi[:, None])
        local = operator.diagonal(state.configurations) + np.sum(element * ratio, axis=1)
        matrix = operator.to_sparse()
        assert state.expectation(local).real == pytest.approx(state.operator_expectation(matrix), rel=1e-12)
        variance = state.expectation(np.abs(local - state.expectation(local)) ** 2)
        assert variance == pytest.approx(state.operator_variance(matrix), rel=1e-12)


def test_norm_and_huge_log_psi_do_not_matter():
    state, log_psi = random_state(6)
    shifted = FullSummation.from_log_psi(6, log_psi + 5000.0)
    np.testing.assert_allclose(shifted.psi, state.psi, rtol=1e-10)
    assert state.probability.sum() == pytest.approx(1, abs=1e-14)


def test_a_state_may_vanish_somewhere():
    log_psi = np.full(8, -np.inf)
    log_psi[[0, 7]] = 1.0
    state = FullSummation.from_log_psi(3, log_psi)
    magnetization = state.configurations.mean(axis=1)
    assert state.expectation(magnetization) == pytest.approx(0)
    assert state.expectation(magnetization**2) == pytest.approx(1)


def test_infidelity():
    state, log_psi = random_state(6)
    other, _ = random_state(6, seed=1)
    assert state.infidelity(other) == pytest.approx(1 - abs(np.vdot(state.psi, other.psi)) ** 2, abs=1e-12)
    phase = FullSummation.from_log_psi(6, log_psi + 0.3j)
    assert state.infidelity(phase) < 1e-28


@pytest.mark.parametrize("length", [6, 11])
def test_ground_state_is_an_eigenvector_with_its_symmetries(length):
    lattice, operator = tfim(length, 0.8)
    ground, matrix, sigma = ground_state(operator), operator.to_sparse(), all_configurations(length)
    np.testing.assert_allclose(matrix @ ground.vector, ground.energy * ground.vector, atol=1e-11)
    assert np.linalg.norm(ground.vector) == pytest.approx(1)
    assert np.all(ground.vector > 0)  # Perron-Frobenius
    np.testing.assert_allclose(ground.vector[basis_index(-sigma)], ground.vector, atol=1e-9)
    shift = lattice.translations()[1]
    np.testing.assert_allclose(ground.vector[basis_index(sigma[:, shift])], ground.vector, atol=1e-9)
    assert ground.partner is None


@pytest.mark.parametrize("length", [6, 10])
def test_degenerate_ordered_ring_gives_the_even_cat_state(length):
    _, operator = tfim(length, 0.0)
    ground = ground_state(operator)
    assert ground.partner is not None
    assert ground.gap == pytest.approx(0, abs=1e-9)
    expected = np.zeros(2**length)
    expected[[0, -1]] = np.sqrt(0.5)
    np.testing.assert_allclose(ground.vector, expected, atol=1e-7)


@pytest.mark.parametrize("h", [0.7, 1.3])
@pytest.mark.parametrize("name", ["abs_magnetization", "half_chain_correlation", "sigma_x", "magnetization"])
def test_susceptibility_is_the_response_to_a_field(h, name):
    lattice, operator = tfim(10, h)
    matrix, ground = operator.to_sparse(), ground_state(operator)
    observable = make_observable(name, lattice, operator)
    if observable.operator is not None:
        seen = field = observable.operator.to_sparse()
    else:
        from scipy.sparse import diags

        seen = observable.values(all_configurations(10))
        field = diags(seen).tocsr()
    chi = susceptibility(matrix, ground, seen)

    def response(strength):
        energies_and_vectors = np.linalg.eigh((matrix - strength * field).toarray())
        vector = energies_and_vectors[1][:, 0]
        return vector @ (field @ vector)

    step = 1e-3 / (1 + chi)
    assert chi == pytest.approx((response(step) - response(-step)) / (2 * step), rel=1e-4)
    assert chi > 0


def test_susceptibility_of_the_energy_itself_vanishes():
    _, operator = tfim(9, 1.0)
    matrix = operator.to_sparse()
    assert susceptibility(matrix, ground_state(operator), matrix) == pytest.approx(0, abs=1e-8)


def test_susceptibility_without_a_gap():
    """At h = 0 both sectors are degenerate: infinite for an odd observable, finite for an even one."""
    lattice, operator = tfim(10, 0.0)
    sigma, ground, matrix = all_configurations(10), ground_state(operator), operator.to_sparse()
    assert susceptibility(matrix, ground, sigma.mean(axis=1)) == np.inf
    # Second order in the field: every flip costs 4 J, <0|X (H - E)^-1 X|0> = N / 4, X = N sigma_x.
    assert susceptibility(matrix, ground, SigmaX(lattice).to_sparse()) == pytest.approx(
        2 / (4 * 10), rel=1e-6
    )


def test_exact_observables_of_a_small_open_chain():
    lattice, operator = tfim(6, 0.5, periodic=False)
    names = ["abs_magnetization", "abs_staggered_magnetization", "sigma_x", "local_energy"]
    exact = exact_observables(Tfim(kind="tfim", h=0.5), lattice, names)
    ground = ground_state(operator)
    m = all_configurations(6).mean(axis=1)
    assert list(exact) == names
    assert exact["abs_magnetization"] == pytest.approx(ground.vector**2 @ np.abs(m), rel=1e-12)
    assert exact["local_energy"] == pytest.approx(ground.energy, rel=1e-12)
    assert 0 < exact["abs_staggered_magnetization"] < 1


def test_listing_too_many_configurations_is_refused():
    with pytest.raises(ValueError, match="at most 24"):
        all_configurations(25)
