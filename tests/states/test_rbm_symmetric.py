"""The translation-symmetric RBM: the formula, invariance, derivatives, the twin, its Jacobian, a training."""

import numpy as np
import pytest

from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Rbm
from nqs_sae_service.vmc.jacobian import TapeJacobian
from nqs_sae_service.vmc.reconfiguration import natural_step
from nqs_sae_service.vmc.training import Trainer

SQUARE = LATTICES["rectangular"](kind="rectangular", lengths=(3, 4)).build()
HONEYCOMB = LATTICES["honeycomb"](kind="honeycomb", lengths=(2, 3)).build()
BOTH = pytest.mark.parametrize("lattice", [SQUARE, HONEYCOMB], ids=["square", "honeycomb"])


def wave(lattice, scale=0.2, alpha=2, seed=0):
    state = Rbm(symmetric=True, alpha=alpha).build(lattice)
    return state.bind(scale * np.random.default_rng(seed).normal(size=state.n_parameters))


def spins(n, lattice, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, lattice.n_sites))


def formula(psi, lattice, sigma):
    """psi from a loop over translations."""
    w, filters = psi.weights, 2 * lattice.basis
    weight = w["hidden.weight"][:, :filters] + 1j * w["hidden.weight"][:, filters:]
    bias = w["hidden.bias"][:filters] + 1j * w["hidden.bias"][filters:]
    visible = w["visible.real"] + 1j * w["visible.imaginary"]
    value = np.exp(sigma @ visible[np.arange(lattice.n_sites) % lattice.basis])
    for moved in lattice.translations():
        value = value * np.cosh(bias + sigma[:, moved] @ weight).prod(axis=1)
    return value


@BOTH
def test_bricks_and_twin_are_the_formula(lattice):
    psi, sigma = wave(lattice), spins(20, lattice)
    exact = formula(psi, lattice, sigma)
    np.testing.assert_allclose(np.exp(psi.reference.log_psi(sigma)), exact, rtol=1e-11)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma)), exact, rtol=1e-11)
    assert psi.stream_at(sigma, "hidden").shape == (20, len(lattice.translations()), 4 * lattice.basis)


@BOTH
def test_psi_is_invariant_under_translations(lattice):
    psi, sigma = wave(lattice, scale=0.5), spins(10, lattice)
    for moved in lattice.translations():
        np.testing.assert_allclose(
            np.exp(psi.log_psi(sigma[:, moved])), np.exp(psi.log_psi(sigma)), rtol=1e-11
        )


@BOTH
def test_gradients_match_finite_differences(lattice):
    psi, sigma, step = wave(lattice).reference, spins(3, lattice), 1e-5
    exact = psi.per_sample_gradients(sigma)
    for k in range(psi.state.n_parameters):
        shifts = np.zeros(psi.state.n_parameters)
        shifts[k] = step
        up, down = (psi.state.log_psi(psi.parameters + s * shifts, sigma) for s in (1, -1))
        difference = (up - down).real + 1j * np.angle(np.exp(1j * (up - down).imag))
        np.testing.assert_allclose(exact[:, k], difference / (2 * step), atol=1e-7)


@BOTH
def test_layer_gradients_match_edited_forwards(lattice):
    psi, sigma, step = wave(lattice), spins(4, lattice), 1e-5
    push = np.random.default_rng(5).normal(size=(psi.state.n_tokens, psi.state.width))
    predicted = (psi.layer_gradient(sigma, "hidden") * push).sum(axis=(1, 2))
    up, down = (psi.edited("hidden", lambda y, s=s: y + s * push).log_psi(sigma) for s in (step, -step))
    np.testing.assert_allclose((up - down) / (2 * step), predicted, atol=1e-7)


@BOTH
def test_the_jacobian_equals_the_dense_one_and_that_of_the_tape(lattice):
    psi, sigma = wave(lattice), spins(50, lattice)
    o = psi.reference.per_sample_gradients(sigma)
    o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
    generator = np.random.default_rng(2)
    vector = generator.normal(size=o.shape[1])
    y = generator.normal(size=50) + 1j * generator.normal(size=50)
    jacobian, tape = psi.fused.jacobian(sigma), TapeJacobian(psi.reference, sigma)
    gram, product = jacobian.gram_and_product(vector)
    np.testing.assert_allclose(product, o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.product(vector), o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.transposed_product(y), (o.conj().T @ y).real, atol=1e-12)
    stacked = np.block([[gram.real, -gram.imag], [gram.imag, gram.real]])
    np.testing.assert_allclose(stacked, tape.gram_and_product(vector)[0], atol=1e-12)


@pytest.mark.parametrize("n", [20, 400])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_step_equals_that_of_the_bricks_by_cholesky(n, momentum):
    """More columns than samples, and fewer."""
    psi, sigma = wave(SQUARE), spins(n, SQUARE)
    generator = np.random.default_rng(3)
    energies = generator.normal(size=n) + 1j * generator.normal(size=n)
    previous = 0.1 * generator.normal(size=psi.state.n_parameters)
    fast, plain = (
        natural_step(wave, sigma, energies, previous, 1e-3, momentum, 0.01, solver)
        for wave, solver in ((psi, "auto"), (psi.reference, "cholesky"))
    )
    np.testing.assert_allclose(fast.direction, plain.direction, atol=1e-8 * np.abs(plain.direction).max())
    assert fast.norm == pytest.approx(plain.norm, rel=1e-8)


def test_walks_make_the_decisions_of_the_plain_loop():
    psi, generator = wave(HONEYCOMB, scale=0.4), np.random.default_rng(4)
    fast, plain = spins(20, HONEYCOMB), spins(20, HONEYCOMB)
    log_fast, log_plain = psi.log_psi(fast), psi.reference.log_psi(plain)
    first, length = generator.integers(12, size=(2, 60, 20))
    moves = (
        first,
        np.where(generator.random((60, 20)) < 0.5, 1, length + 1),
        np.log(generator.random((60, 20))),
    )
    assert psi.fused.walk(fast, log_fast, *moves) == _walk(psi.reference, plain, log_plain, *moves)
    np.testing.assert_array_equal(fast, plain)


def test_a_square_of_spins_is_trained_to_its_energy():
    """4 x 4 Heisenberg with Marshall's rotation: exact -0.701780 per site; 35 complex parameters reach a few per mille."""
    lattice = LATTICES["square"](kind="square", length=4).build()
    record = HAMILTONIANS["heisenberg"](kind="heisenberg", J=1.0, marshall=True)
    sampling = Sampling(
        chains=256, magnetization=0, exchange=0.95, global_flip=0.05, stretch_flip=0.0, sweeps=2
    )
    options = GroundState(steps=150, samples=512, learning_rate=0.1, shift=1e-3)
    state = Rbm(symmetric=True, alpha=2).build(lattice)
    trainer = Trainer(state, lattice, record.build(lattice), sampling, options)
    training = trainer.start()
    for _ in range(options.steps):
        trainer.advance(training)
    energies = np.asarray(training.history["energy"][-20:]) / 16
    errors = np.asarray(training.history["energy_error"][-20:]) / 16
    mean, error = energies.mean(), errors.mean() / np.sqrt(20)
    assert mean == pytest.approx(-0.701780, abs=5e-3)
    assert mean > -0.701780 - 3 * error
