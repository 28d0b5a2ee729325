"""Training on weighted samples of |psi|^(2 b): their weights, their averages, and the locks that they open."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc.training import Trainer
from nqs_sae_service.vmc.weighting import born_weights

RING = Chain(kind="chain", length=6).build()


def wave(seed=0):
    state = Transformer(patch=2, width=8, heads=2, layers=1, amplitude="complex").build(RING)
    noise = 0.5 * np.random.default_rng(seed).normal(size=state.n_parameters)
    return state.bind(state.initial_parameters(1) + noise)


@pytest.mark.parametrize("exponent", [0.5, 0.25])
def test_weights_times_frequencies_are_born_probabilities(exponent):
    log_psi = wave().log_psi(all_configurations(6))
    frequency = np.exp(2 * exponent * (log_psi.real - log_psi.real.max()))
    found = frequency * born_weights(log_psi, exponent)
    expected = np.exp(2 * (log_psi.real - log_psi.real.max()))
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), rtol=1e-12)


def test_weights_sum_to_one_over_ranks_and_do_not_overflow(in_ranks):
    log_psi = np.random.default_rng(0).normal(scale=300.0, size=12)
    whole = born_weights(log_psi, 0.3)
    shares = in_ranks(3, lambda ranks: born_weights(log_psi[ranks.share(12)], 0.3, ranks))
    assert whole.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.concatenate(shares), whole, rtol=1e-12)


def trainer(state, lattice, hamiltonian, method, **options):
    sampling = Sampling(chains=1024, burn_in=30, method=method)
    return Trainer(
        state, lattice, hamiltonian, sampling, GroundState(samples=sampling.chains, seed=2, **options)
    )


@pytest.mark.parametrize("method", ["metropolis", "exact"])
@pytest.mark.parametrize("exponent", [0.7, 0.4])
def test_energy_and_variance_of_a_step_are_those_of_full_summation(method, exponent):
    hamiltonian, psi = Tfim(kind="tfim", h=0.8).build(RING), wave(1)
    training = trainer(psi.state, RING, hamiltonian, method, exponent=exponent)
    begun = training.start(psi.parameters)
    training.advance(begun)
    everything, matrix = all_configurations(6), hamiltonian.to_sparse()
    vector = np.exp(psi.log_psi(everything))
    vector /= np.linalg.norm(vector)
    energy = np.vdot(vector, matrix @ vector).real
    variance = np.linalg.norm(matrix @ vector) ** 2 - energy**2
    history = {name: values[0] for name, values in begun.history.items()}
    assert abs(history["energy"] - energy) < 4 * history["energy_error"] < 0.5
    assert history["energy_variance"] == pytest.approx(variance, rel=0.2)


def test_a_lock_at_a_zero_of_psi_opens():
    """A frustrated ring from the Marshall state: some signs are wrong at first and have to pass through zero.

    Samples of |psi|^2 stop seeing these configurations, those of |psi| go on to the ground state.
    """
    lattice = Chain(kind="chain", length=8).build()
    record = Heisenberg(kind="heisenberg", J2=0.4, marshall=True)
    network = Transformer(patch=1, width=8, heads=2, layers=1, attention="positional", amplitude="complex")
    shares = {"global_flip": 0.05, "stretch_flip": 0.0, "exchange": 0.95}
    sampling = Sampling(chains=128, burn_in=10, magnetization=0, **shares)
    exact, errors = record.exact_energy(lattice, 0), {}
    for exponent in (1.0, 0.5):
        options = GroundState(samples=128, steps=100, learning_rate=0.05, exponent=exponent, seed=1)
        training = Trainer(network.build(lattice), lattice, record.build(lattice), sampling, options)
        begun = training.start()
        while begun.step < options.steps:
            training.advance(begun)
        errors[exponent] = 1 - np.mean(begun.history["energy"][-10:]) / exact
    assert abs(errors[0.5]) < 2e-4
    assert errors[1.0] > 3 * abs(errors[0.5])
