"""The projected Schroedinger equation against dense algebra, finite differences and exact evolution on 6 sites."""

import numpy as np
import pytest
import scipy.linalg

from nqs_sae_service.errors import NumericalError
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Rbm, Transformer
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.evolution import adaptive_step, heun, projected_velocity

SITES = 6
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
MATRIX = HAMILTONIAN.to_sparse().toarray()
EVERYTHING = all_configurations(SITES)
NETWORKS = {
    "rbm": Rbm(alpha=2),
    "transformer": Transformer(patch=2, width=8, heads=2, layers=1, amplitude="complex", precision="float64"),
}


def built(kind, noise=0.2, seed=0):
    state = NETWORKS[kind].build(LATTICE)
    theta = state.initial_parameters(1).astype(np.float64)
    return state, theta + noise * np.random.default_rng(seed).normal(size=theta.shape)


def velocity_of(o, energies, weights, **options):
    return projected_velocity(np.stack([o.real, o.imag]), energies, weights, **options)


def vector(state, theta):
    psi = np.exp(state.bind(theta).log_psi(EVERYTHING))
    return psi / np.linalg.norm(psi)


def measured(state, theta, sigma=EVERYTHING):
    psi = state.bind(theta).reference
    log_psi = psi.log_psi(sigma)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, log_psi)
    born = np.exp(2 * (log_psi.real - log_psi.real.max()))
    return psi.per_sample_gradients(sigma), energies, born / born.sum()


def full_summation(state, **options):
    return lambda theta: velocity_of(*measured(state, theta), **options)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_velocity_solves_the_projected_equation(kind):
    """Re(S) theta_dot = Im F for real parameters."""
    state, theta = built(kind)
    o, energies, p = measured(state, theta)
    o = o - p @ o
    metric = (o.conj().T @ (p[:, None] * o)).real
    force = o.conj().T @ (p * (energies - p @ energies))
    found = full_summation(state, cutoff=1e-10)(theta)
    np.testing.assert_allclose(metric @ found.direction, force.imag, atol=1e-6 * np.abs(force).max())
    imaginary = full_summation(state, cutoff=1e-10, imaginary=True)(theta)
    np.testing.assert_allclose(metric @ imaginary.direction, -force.real, atol=1e-6 * np.abs(force).max())


@pytest.mark.parametrize("kind", list(NETWORKS))
@pytest.mark.parametrize("imaginary", [False, True])
def test_error_is_the_part_of_the_schroedinger_equation_that_is_missed(kind, imaginary):
    """By finite differences of the normalised state, without its component along itself."""
    state, theta = built(kind, noise=0.4)
    found = full_summation(state, cutoff=1e-10, imaginary=imaginary)(theta)
    psi, tiny = vector(state, theta), 1e-4 / np.abs(found.direction).max()
    moved = [vector(state, theta + sign * tiny * found.direction) for sign in (1, -1)]
    velocity = (moved[0] - moved[1]) / (2 * tiny)
    target = (-1 if imaginary else -1j) * (MATRIX @ psi)
    velocity, target = (v - psi * np.vdot(psi, v) for v in (velocity, target))
    missed = np.linalg.norm(velocity - target) ** 2 / np.linalg.norm(target) ** 2
    assert found.error == pytest.approx(missed, rel=1e-4, abs=1e-5)
    assert found.length(found.direction) == pytest.approx(np.linalg.norm(velocity), rel=1e-5)


def test_either_form_gives_the_same_velocity():
    """Fewer rows than columns, and the other way round."""
    state, theta = built("rbm")
    o, energies, p = measured(state, theta)
    rows = np.random.default_rng(0).choice(len(p), 40, replace=False)
    weights = np.full(len(rows), 1 / len(rows))
    few = velocity_of(o[rows], energies[rows], weights, cutoff=1e-8)
    padded = np.concatenate([o[rows], np.zeros((40, 500))], axis=1)
    many = velocity_of(padded, energies[rows], weights, cutoff=1e-8)
    size = np.abs(few.direction).max()
    np.testing.assert_allclose(many.direction[: o.shape[1]], few.direction, atol=1e-6 * size)
    assert many.error == pytest.approx(few.error, abs=1e-8)


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_heun_is_of_second_order(kind):
    state, theta = built(kind, noise=0.1)
    velocity = full_summation(state, cutoff=1e-3)

    def end(steps):
        there = theta
        for _ in range(steps):
            there = heun(there, 0.1 / steps, velocity(there).direction, velocity)
        return vector(state, there)

    best = end(64)
    errors = np.asarray([np.linalg.norm(end(steps) - best) for steps in (4, 8, 16)])
    orders = np.log2(errors[:-1] / errors[1:])
    assert (orders > 1.8).all()
    assert (orders < 2.4).all()


def test_a_quench_follows_exact_evolution():
    """From nearly all spins along x to t = 1: observables, and the energy is conserved."""
    state, theta = built("rbm", noise=0.0)
    theta = theta + 0.02 * np.random.default_rng(3).normal(size=theta.shape)
    velocity = full_summation(state, cutoff=1e-9)
    start, time, length = vector(state, theta), 0.0, 0.02
    sigma_x = Tfim(kind="tfim", h=1.0, J=0.0).build(LATTICE).to_sparse().toarray() / -SITES
    energies = []
    for target in (0.25, 0.5, 0.75, 1.0):
        while time < target - 1e-12:
            step = adaptive_step(theta, min(length, target - time), velocity, 1e-5)
            theta, time, length = step.theta, time + step.length, step.next_length
        psi = vector(state, theta)
        exact = scipy.linalg.expm(-1j * MATRIX * time) @ start
        energies.append(np.vdot(psi, MATRIX @ psi).real)
        found, expected = (np.vdot(v, sigma_x @ v).real for v in (psi, exact))
        assert abs(found - expected) < 1e-3
    first = np.vdot(start, MATRIX @ start).real
    assert np.abs(np.asarray(energies) / first - 1).max() < 1e-3


def test_noise_is_filtered():
    """From samples: a high bar for the signal leaves fewer directions and a larger error, and none is NaN."""
    state, theta = built("rbm", noise=0.1)
    _, _, p = measured(state, theta)
    sigma = EVERYTHING[np.random.default_rng(0).choice(len(p), 400, p=p)]
    o, energies, _ = measured(state, theta, sigma)
    weights = np.full(len(sigma), 1 / len(sigma))
    found = [velocity_of(o, energies, weights, snr=bar) for bar in (0.0, 2.0, 1e6)]
    ranks, errors = [v.rank for v in found], [v.error for v in found]
    assert ranks[0] > ranks[1] > ranks[2]
    assert errors[0] < errors[1] < errors[2] <= 1
    assert np.isfinite(found[1].direction).all()


def test_a_step_that_collapses_says_so():
    state, theta = built("rbm")
    with pytest.raises(NumericalError, match=r"the time step collapsed below 0\.001: .* raise the cutoff"):
        adaptive_step(theta, 0.1, full_summation(state), tolerance=1e-14, shortest=1e-3)


def test_a_zero_of_psi_is_refused():
    with pytest.raises(NumericalError, match="psi vanishes"):
        velocity_of(np.full((2, 3), np.nan + 0j), np.ones(2, complex), np.full(2, 0.5))
