"""minSR and SPRING against their dense float64 forms, local estimators against matrices, the exact gradient on 6 sites."""

import numpy as np
import pytest

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.errors import NumericalError
from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.operators import SigmaX, basis_index, distinct_connected
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.reconfiguration import natural_step, solve_shifted

SITES = 6
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=0.8).build(LATTICE)


def wave(amplitude="positive", dtype=np.float64, seed=0):
    state = Transformer(patch=2, width=8, heads=2, layers=1, amplitude=amplitude).build(LATTICE)
    noise = 0.3 * np.random.default_rng(seed).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(1) + noise).astype(dtype))


def dense_parts(psi, sigma, energies):
    o = psi.per_sample_gradients(sigma)
    o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
    eps = (energies - energies.mean()) / np.sqrt(len(sigma))
    if np.iscomplexobj(o):
        return np.concatenate([o.real, o.imag]), np.concatenate([eps.real, eps.imag])
    return o, eps.real


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 2e-3)])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_step_equals_the_dense_formula(amplitude, dtype, tolerance, momentum):
    psi = wave(amplitude, dtype)
    generator = np.random.default_rng(2)
    sigma = generator.choice(np.array([-1, 1], np.int8), size=(40, SITES))
    log_psi = psi.log_psi(sigma)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, log_psi)
    previous = 0.1 * generator.normal(size=psi.state.n_parameters)
    o, eps = dense_parts(psi.reference, sigma, energies)
    y = np.linalg.solve(o @ o.T + 0.01 * np.eye(len(o)), eps - momentum * o @ previous)
    expected = o.T @ y + momentum * previous
    update = natural_step(psi, sigma, energies, previous, 0.01, momentum, longest=1e9)
    np.testing.assert_allclose(update.direction, expected, atol=tolerance * np.abs(expected).max())
    assert update.norm == pytest.approx(np.linalg.norm(o @ expected), rel=10 * tolerance)
    assert not update.bounded


def test_a_step_that_is_too_long_is_shortened_and_says_so():
    psi = wave()
    sigma = all_configurations(SITES)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, psi.log_psi(sigma))
    update = natural_step(psi, sigma, energies, np.zeros(psi.state.n_parameters), 1e-3, 0.0, longest=1e-3)
    assert update.bounded
    assert update.norm * update.factor == pytest.approx(1e-3)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_energy_gradient_by_sampling_formula_is_the_derivative_of_the_exact_energy(amplitude):
    """2 Re <O-bar* eps-bar> under full summation against finite differences of <H>."""
    psi = wave(amplitude)
    configurations, matrix = all_configurations(SITES), HAMILTONIAN.to_sparse()
    full = FullSummation.from_log_psi(SITES, psi.log_psi(configurations))
    (energies,) = local_values(psi, [HAMILTONIAN], configurations, psi.log_psi(configurations))
    o, p = psi.per_sample_gradients(configurations), full.probability
    o, eps = o - p @ o, energies - p @ energies
    gradient = 2 * np.real((p * eps) @ o.conj())
    generator = np.random.default_rng(0)
    for _ in range(4):
        push, step = generator.normal(size=psi.state.n_parameters), 1e-5
        up, down = (
            FullSummation.from_log_psi(SITES, psi.state.log_psi(psi.parameters + s * push, configurations))
            for s in (step, -step)
        )
        numeric = (up.operator_expectation(matrix) - down.operator_expectation(matrix)) / (2 * step)
        assert gradient @ push == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_local_values_are_rows_of_the_matrix(amplitude):
    psi = wave(amplitude)
    configurations, sigma_x = all_configurations(SITES), SigmaX(LATTICE)
    log_psi = psi.log_psi(configurations)
    amplitudes = np.exp(log_psi)
    for chunk in (0, 1, 17):
        local = local_values(psi, [HAMILTONIAN, sigma_x], configurations, log_psi, Economy(chunk))
        for operator, values in zip((HAMILTONIAN, sigma_x), local, strict=True):
            np.testing.assert_allclose(values, (operator.to_sparse() @ amplitudes) / amplitudes, rtol=1e-9)


def test_the_chunk_does_not_change_the_bits():
    psi = wave("complex", np.float32)
    sigma = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), size=(300, SITES))
    log_psi = psi.log_psi(sigma)
    first, *others = (
        local_values(psi, [HAMILTONIAN], sigma, log_psi, Economy(chunk))[0] for chunk in (0, 1, 700, 10**6)
    )
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("duplicates", [True, False])
def test_operators_share_network_calls_and_samples_share_configurations(duplicates):
    seen = []

    class Counting:
        def log_psi(self, sigma):
            seen.append(sigma)
            return np.zeros(len(sigma))

    sigma = all_configurations(SITES)[:5]
    connected = HAMILTONIAN.connected(sigma)[0].reshape(-1, SITES)
    economy = Economy(duplicates=duplicates)
    local_values(Counting(), [HAMILTONIAN, SigmaX(LATTICE)], sigma, np.zeros(5), economy)
    expected = np.unique(connected, axis=0) if duplicates else connected
    assert len(expected) == (23 if duplicates else 30)
    order = np.lexsort(np.concatenate(seen).T[::-1])
    np.testing.assert_array_equal(np.concatenate(seen)[order], expected[np.lexsort(expected.T[::-1])])


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_savings_do_not_change_local_values(amplitude, dtype):
    psi = wave(amplitude, dtype)
    sigma = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), size=(90, SITES))
    log_psi = psi.log_psi(sigma)
    local = [
        local_values(psi, [HAMILTONIAN, SigmaX(LATTICE)], sigma, log_psi, Economy(0, duplicates, increments))
        for duplicates in (True, False)
        for increments in (True, False)
    ]
    for other in local[1:]:
        np.testing.assert_allclose(local[0], other, rtol=1e-4 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("sites", [6, 64, 65, 200])
def test_distinct_connected_configurations(sites):
    generator = np.random.default_rng(0)
    sigma = generator.choice(np.array([-1, 1], np.int8), size=(7, sites))
    sigma[3] = sigma[0]
    sigma[4] = sigma[0] * np.where(np.arange(sites) == 2, -1, 1).astype(np.int8)
    signs = 1 - 2 * np.eye(sites, dtype=np.int8)[:5]
    pairs, place = distinct_connected(sigma, signs, np.ones((len(sigma), len(signs)), bool))
    connected = (sigma[:, None] * signs).reshape(-1, sites)
    distinct = sigma[pairs[:, 0]] * signs[pairs[:, 1]]
    np.testing.assert_array_equal(distinct[place], connected)
    assert len(distinct) == len(np.unique(connected, axis=0)) < len(connected)
    assert (np.diff(pairs[:, 0]) >= 0).all()


def test_a_family_of_states_is_measured_at_once():
    psi, other = wave(seed=0), wave(seed=1)

    class Family:
        def log_psi(self, sigma):
            return np.stack([psi.log_psi(sigma), other.log_psi(sigma)], axis=-1)

    sigma = all_configurations(SITES)[:9]
    (both,) = local_values(Family(), [HAMILTONIAN], sigma, Family().log_psi(sigma))
    for column, member in zip(both.T, (psi, other), strict=True):
        (alone,) = local_values(member, [HAMILTONIAN], sigma, member.log_psi(sigma))
        np.testing.assert_allclose(column, alone)


def test_solver_survives_an_indefinite_matrix_and_refuses_nan():
    gram = np.diag([1.0, -1e-3])
    x = solve_shifted(gram, 1e-6, np.array([1.0, 1.0]))
    assert np.isfinite(x).all()
    with pytest.raises(NumericalError, match="shift"):
        solve_shifted(np.full((2, 2), np.nan), 1e-3, np.ones(2))


def test_basis_index_matches_the_matrix_rows():
    np.testing.assert_array_equal(basis_index(all_configurations(SITES)), np.arange(2**SITES))


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_step_with_weights_equals_the_dense_formula(amplitude, solver):
    psi = wave(amplitude)
    generator = np.random.default_rng(5)
    sigma = generator.choice(np.array([-1, 1], np.int8), size=(40, SITES))
    weights = generator.exponential(size=len(sigma))
    weights /= weights.sum()
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, psi.log_psi(sigma))
    previous = 0.1 * generator.normal(size=psi.state.n_parameters)
    o = psi.per_sample_gradients(sigma)
    o = np.sqrt(weights)[:, None] * (o - weights @ o)
    eps = np.sqrt(weights) * (energies - weights @ energies)
    if amplitude == "complex":
        o, eps = np.concatenate([o.real, o.imag]), np.concatenate([eps.real, eps.imag])
    else:
        o, eps = o.real, eps.real
    y = np.linalg.solve(o @ o.T + 0.01 * np.eye(len(o)), eps - 0.8 * o @ previous)
    expected = o.T @ y + 0.8 * previous
    update = natural_step(psi, sigma, energies, previous, 0.01, 0.8, 1e9, solver, weights=weights)
    np.testing.assert_allclose(update.direction, expected, atol=1e-7 * np.abs(expected).max())
    assert update.norm == pytest.approx(np.linalg.norm(o @ expected), rel=1e-6)


def test_equal_weights_are_none():
    psi = wave("complex")
    sigma = all_configurations(SITES)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, psi.log_psi(sigma))
    arguments = psi, sigma, energies, np.zeros(psi.state.n_parameters), 0.01, 0.0, 1e9
    plain = natural_step(*arguments)
    weighted = natural_step(*arguments, weights=np.full(len(sigma), 1 / len(sigma)))
    np.testing.assert_allclose(weighted.direction, plain.direction, atol=1e-9 * np.abs(plain.direction).max())
