"""Operators seen row by row equal their matrices, built here from Kronecker products of Pauli matrices."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.operators import SigmaX, basis_index, configurations

PAULI_X = np.array([[0.0, 1.0], [1.0, 0.0]])
PAULI_Z = np.diag([1.0, -1.0])


def site_matrix(pauli, site, n_sites):
    matrix = np.eye(1)
    for i in range(n_sites):
        matrix = np.kron(matrix, pauli if i == site else np.eye(2))
    return matrix


def tfim_matrix(lattice, J, h):
    n = lattice.n_sites
    z = [site_matrix(PAULI_Z, i, n) for i in range(n)]
    return -J * sum(z[i] @ z[j] for i, j in lattice.edges) - h * sum(
        site_matrix(PAULI_X, i, n) for i in range(n)
    )


@pytest.fixture(params=[(2, True), (6, True), (7, False)], ids=["ring2", "ring6", "open7"])
def lattice(request):
    length, periodic = request.param
    return Chain(kind="chain", length=length, periodic=periodic).build()


def operators(lattice):
    return {
        "tfim": HAMILTONIANS["tfim"](kind="tfim", J=0.8, h=1.3).build(lattice),
        "sigma_x": SigmaX(lattice),
    }


def test_matrices_are_those_of_the_formulas(lattice):
    n = lattice.n_sites
    built = {name: operator.to_sparse().toarray() for name, operator in operators(lattice).items()}
    mean_x = sum(site_matrix(PAULI_X, i, n) for i in range(n)) / n
    np.testing.assert_allclose(built["tfim"], tfim_matrix(lattice, 0.8, 1.3), atol=1e-14)
    np.testing.assert_allclose(built["sigma_x"], mean_x, atol=1e-14)


@pytest.mark.parametrize("name", ["tfim", "sigma_x"])
def test_matrices_are_hermitian(lattice, name):
    matrix = operators(lattice)[name].to_sparse()
    assert abs(matrix - matrix.T).max() == 0


@pytest.mark.parametrize("name", ["tfim", "sigma_x"])
def test_local_estimators_are_rows_of_the_matrix(lattice, name):
    """sum_c <s|O|s'_c> psi(s'_c) + <s|O|s> psi(s) = (O psi)(s) for a random complex psi."""
    operator, rng = operators(lattice)[name], np.random.default_rng(2)
    sigma = all_configurations(lattice.n_sites)
    psi = rng.normal(size=len(sigma)) + 1j * rng.normal(size=len(sigma))
    neighbours, element = operator.connected(sigma)
    applied = operator.diagonal(sigma) * psi + np.sum(element * psi[basis_index(neighbours)], axis=1)
    np.testing.assert_allclose(applied, operator.to_sparse() @ psi, atol=1e-13)


def test_connected_configurations_differ_by_the_flips(lattice):
    operator = operators(lattice)["tfim"]
    sigma = configurations(np.array([0, 1]), lattice.n_sites)
    before = sigma.copy()
    neighbours, element = operator.connected(sigma)
    assert neighbours.shape == (2, operator.n_connected, lattice.n_sites)
    assert element.shape == (2, operator.n_connected)
    assert neighbours.dtype == np.int8
    assert np.array_equal(sigma, before)
    for c, sites in enumerate(operator.flips):
        changed = np.flatnonzero(neighbours[0, c] != sigma[0])
        assert np.array_equal(changed, np.sort(sites))


def test_translations_and_global_flip_commute_with_the_ring_hamiltonian():
    lattice = Chain(kind="chain", length=6).build()
    operator = HAMILTONIANS["tfim"](kind="tfim", h=0.7).build(lattice)
    matrix, sigma = operator.to_sparse(), all_configurations(6)
    images = [basis_index(sigma[:, permutation]) for permutation in lattice.translations()] + [
        basis_index(-sigma)
    ]
    for image in images:
        assert abs(matrix[image][:, image] - matrix).max() == 0


def test_basis_order_is_that_of_kronecker_products():
    sigma = all_configurations(3)
    assert sigma.dtype == np.int8
    assert sigma[0].tolist() == [1, 1, 1]
    assert sigma[1].tolist() == [1, 1, -1]
    assert sigma[4].tolist() == [-1, 1, 1]
    assert np.array_equal(basis_index(sigma), np.arange(8))


def test_empty_batches_pass_through(lattice):
    operator, empty = operators(lattice)["tfim"], np.empty((0, lattice.n_sites), np.int8)
    assert operator.diagonal(empty).shape == (0,)
    assert operator.connected(empty)[0].shape == (0, operator.n_connected, lattice.n_sites)


def test_full_matrices_beyond_twenty_sites_are_refused():
    with pytest.raises(ValueError, match="at most 20"):
        SigmaX(Chain(kind="chain", length=21).build()).to_sparse()
