"""The factorised derivatives of the RBM against the dense ones, conjugate gradients against Cholesky, a training."""

import numpy as np
import pytest

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.operators import SigmaX
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Rbm, Transformer
from nqs_sae_service.vmc import reconfiguration
from nqs_sae_service.vmc.conjugate_gradients import conjugate_gradients
from nqs_sae_service.vmc.estimators import local_values
from nqs_sae_service.vmc.jacobian import TapeJacobian
from nqs_sae_service.vmc.reconfiguration import affordable_iterations, natural_step
from nqs_sae_service.vmc.training import Trainer

SITES = 10
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=0.8).build(LATTICE)


def wave(alpha=2, scale=0.2, dtype=np.float64, seed=0):
    state = Rbm(alpha=alpha).build(LATTICE)
    return state.bind((scale * np.random.default_rng(seed).normal(size=state.n_parameters)).astype(dtype))


def spins(n, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, SITES))


def dense(psi, sigma):
    """O-bar (n, parameters) of the real parts alone: the holomorphic derivative."""
    o = psi.reference.per_sample_gradients(sigma)
    return (o - o.mean(axis=0)) / np.sqrt(len(sigma))


@pytest.mark.parametrize("n", [5, 128, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_equal_the_dense_ones(n, dtype):
    """Rows of real O-bar come in pairs; the complex row stands for both."""
    psi, sigma = wave(dtype=dtype), spins(n)
    o, jacobian = dense(psi, sigma), psi.fused.jacobian(sigma)
    generator = np.random.default_rng(2)
    vector = generator.normal(size=o.shape[1])
    y = generator.normal(size=n) + 1j * generator.normal(size=n)
    gram, product = jacobian.gram_and_product(vector)
    np.testing.assert_allclose(product, o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.product(vector), o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.transposed_product(y), (o.conj().T @ y).real, atol=1e-12)
    real = np.concatenate([o.real, o.imag])
    np.testing.assert_allclose(gram, gram.conj().T, atol=1e-14)
    stacked = np.block([[gram.real, -gram.imag], [gram.imag, gram.real]])
    np.testing.assert_allclose(stacked, real @ real.T, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_step_equals_the_stacked_real_one(momentum, solver):
    psi, sigma = wave(), spins(200)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, psi.log_psi(sigma))
    previous = 0.1 * np.random.default_rng(3).normal(size=psi.state.n_parameters)
    fast, plain = (
        natural_step(wave, sigma, energies, previous, 1e-3, momentum, 0.01, kind)
        for wave, kind in ((psi, solver), (psi.reference, "cholesky"))
    )
    tolerance = (1e-8 if solver == "cholesky" else 1e-6) * np.abs(plain.direction).max()
    np.testing.assert_allclose(fast.direction, plain.direction, atol=tolerance)
    assert fast.norm == pytest.approx(plain.norm, rel=1e-6)
    assert fast.bounded
    assert fast.factor == pytest.approx(plain.factor, rel=1e-6)


def test_conjugate_gradients_reach_the_residual_they_promise():
    psi, sigma = wave(), spins(150)
    jacobian = psi.fused.jacobian(sigma)
    rhs = np.random.default_rng(0).normal(size=150) + 0j
    rhs -= rhs.mean()
    y, iterations = conjugate_gradients(jacobian, 1e-2, rhs, 1e-8, 1000)
    residual = rhs - jacobian.product(jacobian.transposed_product(y)) - 1e-2 * y
    assert 5 < iterations < 1000
    assert np.linalg.norm(residual) < 2e-8 * np.linalg.norm(rhs)
    assert conjugate_gradients(jacobian, 1e-2, rhs, 1e-8, iterations - 2) is None
    assert conjugate_gradients(jacobian, 1e-2, 0 * rhs, 1e-8, 10)[1] == 0


def test_without_convergence_the_step_is_that_of_cholesky(monkeypatch):
    psi, sigma = wave(), spins(60)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, psi.log_psi(sigma))
    arguments = (psi, sigma, energies, np.ones(psi.state.n_parameters), 1e-3, 0.5, 1.0)
    expected = natural_step(*arguments, "cholesky")
    monkeypatch.setattr(reconfiguration, "_MOST_ITERATIONS", 3)
    np.testing.assert_array_equal(natural_step(*arguments, "cg").direction, expected.direction)


def test_conjugate_gradients_serve_any_network():
    state = Transformer(patch=2, width=8, heads=2, layers=1, amplitude="complex", precision="float64")
    psi, sigma = (built := state.build(LATTICE)).bind(built.initial_parameters(1)), spins(50)
    (energies,) = local_values(psi, [HAMILTONIAN], sigma, psi.log_psi(sigma))
    steps = [
        natural_step(psi, sigma, energies, np.zeros(built.n_parameters), 1e-2, 0.0, 1.0, solver)
        for solver in ("cg", "cholesky")
    ]
    np.testing.assert_allclose(steps[0].direction, steps[1].direction, atol=1e-6)


def test_auto_counts_operations():
    sites = Chain(kind="chain", length=40).build()
    psi = (state := Rbm(alpha=4).build(sites)).bind(state.initial_parameters(0))
    many = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), size=(4096, 40))
    allowed = [affordable_iterations(psi.fused.jacobian(many[:n]), "auto") for n in (1024, 2048, 4096)]
    assert allowed[0] < allowed[1] < 200 < allowed[2]
    assert affordable_iterations(psi.fused.jacobian(many), "cholesky") == 0
    assert affordable_iterations(TapeJacobian(psi, many[:2]), "auto") == 0
    assert affordable_iterations(TapeJacobian(psi, many[:2]), "cg") > 1000


def test_conjugate_gradients_that_cannot_make_it_give_up_early():
    psi, sigma = wave(scale=0.4), spins(500)
    rhs = np.random.default_rng(0).normal(size=500) + 0j
    jacobian, products = psi.fused.jacobian(sigma), []

    class Counting:
        def product(self, vector):
            products.append(1)
            return jacobian.product(vector)

        transposed_product = staticmethod(jacobian.transposed_product)

    rhs -= rhs.mean()
    needed = conjugate_gradients(jacobian, 1e-5, rhs, 1e-8, 5000)[1]
    assert needed > 150
    assert conjugate_gradients(Counting(), 1e-5, rhs, 1e-8, needed // 2, foresee=True) is None
    assert len(products) < needed // 2
    easy = conjugate_gradients(jacobian, 1.0, rhs, 1e-8, 200, foresee=True)
    assert easy[1] < 200


def test_nothing_depends_on_the_number_of_threads():
    import numba

    psi, sigma = wave(), spins(700)
    threads, results = numba.get_num_threads(), []
    for count in (1, threads):
        numba.set_num_threads(count)
        jacobian = psi.fused.jacobian(sigma)
        y = jacobian.product(psi.parameters)
        gram = jacobian.gram_and_product(psi.parameters)[0]
        results.append((y, jacobian.transposed_product(y), gram))
    numba.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_local_energies_are_rows_of_the_matrix():
    psi, configurations = wave(scale=0.4), all_configurations(SITES)
    log_psi = psi.log_psi(configurations)
    amplitudes = np.exp(log_psi)
    sigma_x = SigmaX(LATTICE)
    for chunk in (0, 700):
        local = local_values(psi, [HAMILTONIAN, sigma_x], configurations, log_psi, Economy(chunk))
        for operator, values in zip((HAMILTONIAN, sigma_x), local, strict=True):
            np.testing.assert_allclose(values, (operator.to_sparse() @ amplitudes) / amplitudes, rtol=1e-9)


def test_the_energy_gradient_is_the_derivative_of_the_exact_energy():
    psi, configurations, matrix = wave(), all_configurations(SITES), HAMILTONIAN.to_sparse()

    def energy(parameters):
        log_psi = psi.state.log_psi(parameters, configurations)
        return FullSummation.from_log_psi(SITES, log_psi).operator_expectation(matrix)

    log_psi = psi.log_psi(configurations)
    (energies,) = local_values(psi, [HAMILTONIAN], configurations, log_psi)
    p = FullSummation.from_log_psi(SITES, log_psi).probability
    o = psi.reference.per_sample_gradients(configurations)
    gradient = 2 * np.real((p * (energies - p @ energies)) @ (o - p @ o).conj())
    generator, step = np.random.default_rng(0), 1e-5
    for _ in range(4):
        push = generator.normal(size=psi.state.n_parameters)
        numeric = (energy(psi.parameters + step * push) - energy(psi.parameters - step * push)) / (2 * step)
        assert gradient @ push == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_a_training_finds_the_ground_state(solver):
    model = Tfim(kind="tfim", h=1.0)
    options = GroundState(steps=80, samples=512, learning_rate=0.1, shift_steps=20, solver=solver)
    trainer = Trainer(
        Rbm(alpha=1).build(LATTICE), LATTICE, model.build(LATTICE), Sampling(chains=512, sweeps=2), options
    )
    training = trainer.start()
    for _ in range(options.steps):
        trainer.advance(training)
    configurations = all_configurations(SITES)
    log_psi = trainer.state.log_psi(training.parameters, configurations)
    energy = FullSummation.from_log_psi(SITES, log_psi).operator_expectation(trainer.hamiltonian.to_sparse())
    assert 0 < energy / model.exact_energy(LATTICE) <= 1 + 1e-12
    assert energy == pytest.approx(model.exact_energy(LATTICE), rel=1e-3)
