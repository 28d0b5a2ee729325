"""Projected t-VMC on 6 sites: the infidelity and its descent, steps of time, product states, and ensembles."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from nqs_sae_service.engine.random import Stream
from nqs_sae_service.errors import NumericalError
from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.sampling import process_of
from nqs_sae_service.spec.dynamics import Dynamics
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.states import Cnn, Rbm, Transformer
from nqs_sae_service.vmc.ensembles import (
    Sampled,
    Summed,
    derivatives,
    orbit_names,
    orbits,
    symmetries_of,
)
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.infidelity import Factor, ProductState, bring_onto, coefficients, path_to
from nqs_sae_service.vmc.steps import Motion, Ptvmc, Tdvp

SITES = 6
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
MATRIX = HAMILTONIAN.to_sparse().toarray()
EVERYTHING = all_configurations(SITES)
NETWORKS = {
    "cnn": Cnn(channels=6, kernel=5, blocks=1, amplitude="complex", precision="float64"),
    "cnn32": Cnn(channels=6, kernel=5, blocks=1, amplitude="complex"),
    "projected": Cnn(
        channels=6,
        kernel=5,
        blocks=1,
        amplitude="complex",
        precision="float64",
        symmetry={"point_group": True, "spin_flip": 1},
    ),
    "rbm": Rbm(alpha=2),
    "transformer": Transformer(patch=2, width=8, heads=2, layers=1, amplitude="complex"),
    "positive": Transformer(patch=2, width=8, heads=2, layers=1),
}


def built(kind, seed=1):
    state = NETWORKS[kind].build(LATTICE)
    return state, state.initial_parameters(seed).astype(np.float64)


def summed(psi):
    return FullSummation.from_log_psi(SITES, psi.log_psi(EVERYTHING))


def onto(target, state, theta, infidelity=1e-8, iterations=200, ensembles=None):
    ensembles = ensembles or Summed(state, HAMILTONIAN)
    return bring_onto(target, state, theta, ensembles, infidelity, iterations, np.asarray)


def sampled(state, draws=16, sweeps=3, chains=256, exponent=1.0, symmetries=None):
    process = process_of(Sampling(chains=chains), LATTICE, 1, Stream.DYNAMICS, exponent=exponent)
    walkers = process.random_chains(chains)
    return Sampled(process, walkers, draws, sweeps, exponent=exponent, symmetries=symmetries)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_derivatives_are_those_of_the_bricks(kind):
    state, theta = built(kind)
    psi = state.bind(theta.astype(state.dtype))
    parts = derivatives(psi, EVERYTHING)
    o = psi.reference.per_sample_gradients(EVERYTHING)
    assert len(parts) == (2 if state.complex_amplitude else 1)
    tolerance = 2e-4 if state.dtype == np.float32 else 1e-11
    np.testing.assert_allclose(parts[0], o.real, atol=tolerance)
    if len(parts) == 2:
        np.testing.assert_allclose(parts[1], o.imag, atol=tolerance)


@pytest.mark.parametrize("kind", ["cnn", "projected", "rbm"])
def test_one_configuration_of_every_orbit_is_enough(kind):
    """Weights of orbits against the sum over everything, and the orbits against brute force."""
    state, theta = built(kind)
    group = symmetries_of(state)
    first, counts = orbits(EVERYTHING, group)
    sigma = EVERYTHING[first]
    brute = {
        min(
            (s[p] * f).astype(np.int8).tobytes() for p, f in zip(group.permutations, group.flips, strict=True)
        )
        for s in EVERYTHING
    }
    assert len(sigma) == len(brute)
    assert counts.sum() == len(EVERYTHING)
    psi, ensemble = state.bind(theta), Summed(state, HAMILTONIAN).of(state.bind(theta))
    assert len(ensemble.sigma) == len(sigma)
    everything = summed(psi)
    values = EVERYTHING[:, 0] * EVERYTHING[:, 1]
    mean = (ensemble.sigma * np.roll(ensemble.sigma, -1, axis=1)).mean(axis=1)
    if kind != "rbm":
        assert ensemble.weights @ mean == pytest.approx(everything.expectation(values), abs=1e-12)
    assert ensemble.weights.sum() == pytest.approx(1.0)


def test_a_hamiltonian_without_the_symmetry_gets_all_configurations():
    state, theta = built("cnn")
    line = Tfim(kind="tfim", h=1.0).build(Chain(kind="chain", length=SITES, periodic=False).build())
    ensemble = Summed(state, line).of(state.bind(theta))
    assert len(ensemble.sigma) == len(EVERYTHING)


@pytest.mark.parametrize("kind", ["cnn", "rbm", "cnn32"])
def test_the_infidelity_is_that_of_the_states(kind):
    state, theta = built(kind)
    other = state.bind((theta + 0.05 * np.random.default_rng(0).normal(size=theta.shape)).astype(state.dtype))
    here = onto(other, state, theta, iterations=0)
    expected = summed(state.bind(theta.astype(state.dtype))).infidelity(summed(other))
    assert here.infidelity == pytest.approx(expected, rel=1e-5)
    found = onto(other, state, theta)
    reached = summed(state.bind(found.theta.astype(state.dtype))).infidelity(summed(other))
    assert reached < 1e-7
    assert reached == pytest.approx(found.infidelity, rel=0.1, abs=1e-11)


def test_from_samples_it_comes_as_near():
    """The fit has no noise where the network can follow: the true infidelity is that of the samples."""
    state, theta = built("cnn")
    other = state.bind(theta + 0.05 * np.random.default_rng(0).normal(size=theta.shape))
    found = onto(other, state, theta, ensembles=sampled(state))
    assert found.infidelity < 1e-7
    assert summed(state.bind(found.theta)).infidelity(summed(other)) < 1e-6


@pytest.mark.parametrize("order", [2, 3, 4])
def test_factors_are_the_exponential_to_their_order(order):
    """The product of the factors, in full, against the exponential: an error of the order + 1 in the length."""
    state, theta = built("rbm")
    psi = summed(state.bind(theta)).psi
    energy = np.vdot(psi, MATRIX @ psi).real
    shifted = MATRIX - energy * np.eye(len(MATRIX))
    errors = []
    for length in (0.04, 0.02):
        moved = psi.astype(complex)
        for coefficient in coefficients(length, order):
            moved = moved + coefficient * (shifted @ moved)
        errors.append(np.linalg.norm(moved - scipy.linalg.expm(-1j * length * shifted) @ psi))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.15)


def test_a_factor_acts_as_its_matrix():
    state, theta = built("rbm")
    psi = state.bind(theta)
    factor = Factor(psi, HAMILTONIAN, 0.1 - 0.2j, -3.0)
    shifted = MATRIX + 3.0 * np.eye(len(MATRIX))
    full = np.exp(psi.log_psi(EVERYTHING))
    np.testing.assert_allclose(
        np.exp(factor.log_psi(EVERYTHING)), full + (0.1 - 0.2j) * (shifted @ full), rtol=1e-8
    )


def evolved(method, state, theta, ensembles, duration, **options):
    """Parameters after the duration."""
    options = Dynamics(duration=duration, cutoff=1e-9, snr=0.0, **options)
    stepper = method(Motion(state, HAMILTONIAN), options)
    time, length = 0.0, options.step
    while time < duration - 1e-9:
        advance = stepper.step(theta, min(length, duration - time), ensembles)
        theta, time, length = advance.theta, time + advance.length, advance.next_length
    return theta


def test_both_methods_agree_with_exact_evolution():
    """From a state where both work."""
    state, theta = built("cnn")
    theta = onto(ProductState(np.full(SITES, 1.2)), state, theta, 1e-5).theta
    start, ensembles = summed(state.bind(theta)).psi, Summed(state, HAMILTONIAN)
    exact = scipy.linalg.expm(-0.4j * MATRIX) @ start
    ends = {
        method: evolved(method, state, theta, ensembles, 0.4, step=0.05, tolerance=1e-5, infidelity=1e-9)
        for method in (Tdvp, Ptvmc)
    }
    states = {method: summed(state.bind(end)) for method, end in ends.items()}
    for found in states.values():
        assert 1 - abs(np.vdot(found.psi, exact)) ** 2 < 1e-5
    assert states[Tdvp].infidelity(states[Ptvmc]) < 1e-5


def test_from_spins_along_z():
    """Where the equation of motion is singular, projections go on."""
    state, theta = built("cnn")
    ensembles = Summed(state, HAMILTONIAN)
    for product, infidelity in path_to(np.ones(SITES), SITES, 1e-6):
        theta = onto(product, state, theta, infidelity, 300, ensembles).theta
    start = np.zeros(len(EVERYTHING))
    start[EVERYTHING.sum(axis=1).argmax()] = 1.0
    assert 1 - abs(np.vdot(start, summed(state.bind(theta)).psi)) ** 2 < 1e-5
    theta = evolved(Ptvmc, state, theta, ensembles, 0.2, step=0.05)
    exact = scipy.linalg.expm(-0.2j * MATRIX) @ start
    assert 1 - abs(np.vdot(summed(state.bind(theta)).psi, exact)) ** 2 < 1e-4


@pytest.mark.parametrize("up", [None, np.ones(SITES), np.where(np.arange(SITES) % 2, -1, 1)])
def test_the_path_ends_at_the_product_state(up):
    path = list(path_to(up, SITES, 1e-4))
    states = [FullSummation.from_log_psi(SITES, product.log_psi(EVERYTHING)) for product, _ in path]
    for a, b in itertools.pairwise(states):
        assert a.infidelity(b) < 0.1
    if up is None:
        np.testing.assert_allclose(states[-1].psi, len(EVERYTHING) ** -0.5)
    else:
        there = (up == EVERYTHING).all(axis=1)
        assert 1 - states[-1].probability[there][0] == pytest.approx(1e-4, rel=0.01)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_samples_are_reweighted_until_they_no_longer_stand_for_psi(exponent):
    state, theta = built("cnn")
    ensembles = sampled(state, exponent=exponent)
    first = ensembles.of(state.bind(theta))
    near = ensembles.of(state.bind(theta * 1.01))
    assert near.sigma is first.sigma
    assert not np.allclose(near.weights, first.weights)
    ensembles.of(state.bind(-3 * theta[::-1].copy()))
    walkers = ensembles.walkers.copy()
    ensembles.move_on(state.bind(theta))
    assert not np.array_equal(walkers, ensembles.walkers)
    assert ensembles.of(state.bind(theta)).sigma is not first.sigma


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_weighted_samples_give_the_means_of_the_new_state(exponent):
    state, theta = built("cnn")
    theta = theta + 0.3 * np.random.default_rng(2).normal(size=theta.shape)  # far from |psi| = const
    ensembles = sampled(state, draws=64, exponent=exponent)
    here = state.bind(theta)
    other = state.bind(theta + 0.02 * np.random.default_rng(1).normal(size=theta.shape))
    for psi in (here, other):
        ensemble = ensembles.of(psi)
        values = ensemble.sigma[:, 0] * ensemble.sigma[:, 1]
        exact = summed(psi).expectation(EVERYTHING[:, 0] * EVERYTHING[:, 1])
        assert abs(ensemble.weights @ values - exact) < 4 / np.sqrt(len(values) / 3)
    weights = ensembles.of(here).weights
    assert (np.ptp(weights) > 0) == (exponent < 1)
    spread = summed(here).probability
    assert spread.max() > 2 * spread.min()


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_merged_samples_are_the_same_samples(exponent):
    """Means of what the symmetries leave unchanged do not move, and no two samples are left of one orbit."""
    state, theta = built("cnn")
    psi, group = state.bind(theta), symmetries_of(state)
    one_by_one = sampled(state, exponent=exponent).of(psi)
    together = sampled(state, exponent=exponent, symmetries=group).of(psi)
    assert len(together.sigma) < len(one_by_one.sigma) / 100
    assert len(np.unique(orbit_names(together.sigma, group))) == len(together.sigma)
    assert together.weights.sum() == pytest.approx(1)
    means = [
        ensemble.weights @ local_values(psi, [HAMILTONIAN], ensemble.sigma, ensemble.log_psi)[0]
        for ensemble in (one_by_one, together)
    ]
    assert means[0] == pytest.approx(means[1], rel=1e-5)
    np.testing.assert_allclose(together.log_psi.real, psi.log_psi(together.sigma).real, atol=1e-6)


def test_a_psi_that_is_nan_everywhere_is_refused():
    state, theta = built("cnn")
    with pytest.raises(NumericalError, match="not finite on any configuration"):
        Summed(state, HAMILTONIAN).of(state.bind(np.nan * theta))
    found = onto(state.bind(theta), state, theta)
    assert found.infidelity < 1e-12
