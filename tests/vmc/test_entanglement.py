"""The Renyi entropy by swaps: exact where all pairs are summed, within its error from samples, and known for simple states."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import FullSummation, all_configurations, ground_state
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.lattices import Chain, Graph, Rectangular
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.vmc.entanglement import halves, renyi2


class Table:
    def __init__(self, log_psi):
        self.table = log_psi

    def log_psi(self, sigma):
        return self.table[basis_index(sigma)]


def test_all_pairs_of_a_state_of_equal_weights():
    """Where every configuration is as likely as any other, all pairs once give tr rho_A^2 itself."""
    rng = np.random.default_rng(0)
    log_psi, sigma = 1j * rng.uniform(0, 2 * np.pi, 64), all_configurations(6)
    one, two = (index.ravel() for index in np.indices((64, 64)))
    pairs = np.stack([sigma[one], sigma[two]])
    for sites in (np.array([0, 1, 2]), np.array([4]), np.array([1, 3, 4, 5])):
        value, _ = renyi2(Table(log_psi), sites, pairs, np.stack([log_psi[one], log_psi[two]]), False)
        rho = FullSummation.from_log_psi(6, log_psi)
        assert value == pytest.approx(rho.renyi2(sites), rel=1e-12)


def test_known_entropies():
    """A product state has none; every singlet across the cut has log 2; both halves agree."""
    up = np.array([0.6, 0.8j])
    product = FullSummation(all_configurations(4), np.einsum("a,b,c,d->abcd", up, up, up, up).ravel())
    assert product.renyi2(np.array([0, 2])) == pytest.approx(0, abs=1e-12)
    singlet = np.array([[0, 1], [-1, 0]]) / np.sqrt(2)
    pairs = FullSummation(all_configurations(4), np.einsum("ac,bd->abcd", singlet, singlet).ravel())
    assert pairs.renyi2(np.array([0, 1])) == pytest.approx(2 * np.log(2))
    assert pairs.renyi2(np.array([0])) == pytest.approx(np.log(2))
    assert pairs.renyi2(np.array([0, 2])) == pytest.approx(0, abs=1e-12)
    psi = np.random.default_rng(1).normal(size=(64, 2)) @ [1, 1j]
    state = FullSummation(all_configurations(6), psi / np.linalg.norm(psi))
    assert state.renyi2(np.array([0, 4])) == pytest.approx(state.renyi2(np.array([1, 2, 3, 5])))


@pytest.mark.parametrize("sector", [False, True])
def test_samples_agree_with_the_exact_entropy(sector):
    """Ground state of a 10-site ring; in a sector the network may say anything outside it."""
    lattice = Chain(kind="chain", length=10).build()
    psi = ground_state(Heisenberg(kind="heisenberg", J2=0.3).build(lattice)).vector
    state, rng = FullSummation(all_configurations(10), psi), np.random.default_rng(2)
    magnetization = state.configurations.sum(axis=1)
    psi = np.where(magnetization == 0, psi, 3.0 if sector else 0.0)
    with np.errstate(divide="ignore"):
        log_psi = np.log(psi.astype(complex))
    drawn = rng.choice(1024, size=(32, 400), p=state.probability / state.probability.sum())
    (sites,) = halves(lattice).values()
    value, error = renyi2(Table(log_psi), sites, state.configurations[drawn], log_psi[drawn], sector)
    assert error < 0.05
    assert abs(value - state.renyi2(sites)) < 4 * error
    assert state.renyi2(sites) > 0.3


def test_the_error_is_that_of_repeated_experiments():
    rng, log_psi = np.random.default_rng(3), np.random.default_rng(4).normal(size=(64, 2)) @ [0.5, 1j]
    state, sites = FullSummation.from_log_psi(6, log_psi), np.arange(3)
    found = []
    for _ in range(200):
        drawn = rng.choice(64, size=(32, 20), p=state.probability)
        found.append(renyi2(Table(log_psi), sites, state.configurations[drawn], log_psi[drawn], False))
    values, errors = np.asarray(found).T
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)
    assert abs(np.mean(values) - state.renyi2(sites)) < 0.3 * np.std(
        values
    )  # log of a mean is biased a little


def test_a_swap_that_is_not_positive_on_average_gives_nothing():
    sigma = np.array([[[1, 1]], [[-1, -1]]], np.int8)
    log_psi = np.where(all_configurations(2).prod(axis=1) > 0, 0.0, [0, 0.5j * np.pi, 0.5j * np.pi, 0])
    value, error = renyi2(Table(log_psi), np.array([0]), sigma, np.zeros((2, 1)), False)
    assert np.isnan([value, error]).all()


def test_halves():
    assert halves(Chain(kind="chain", length=5).build())["half"].tolist() == [0, 1]
    assert halves(Graph(kind="graph", sites=2, edges=((0, 1),)).build())["half"].tolist() == [0]
    plane = halves(Rectangular(kind="rectangular", lengths=(2, 3)).build())
    assert {name: sites.tolist() for name, sites in plane.items()} == {"half_x": [0, 1, 2], "half_y": [0, 3]}
