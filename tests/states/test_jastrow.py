"""The Jastrow state: the formula, classes of pairs, derivatives, the twin, its Jacobian, a training."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import ground_state
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Jastrow
from nqs_sae_service.states.jastrow import pair_classes
from nqs_sae_service.vmc.jacobian import TapeJacobian
from nqs_sae_service.vmc.reconfiguration import natural_step
from nqs_sae_service.vmc.training import Trainer


def lattice_of(kind, **options):
    return LATTICES[kind](kind=kind, **options).build()


LATTICE = {
    "ring": lattice_of("chain", length=7),
    "line": lattice_of("chain", length=6, periodic=False),
    "torus": lattice_of("rectangular", lengths=(3, 4)),
    "honeycomb": lattice_of("honeycomb", lengths=(2, 3)),
    "graph": lattice_of("graph", sites=5, edges=((0, 1), (1, 2), (2, 3), (3, 4), (0, 2))),
}
EVERYWHERE = pytest.mark.parametrize("name", LATTICE)
BOTH = pytest.mark.parametrize("amplitude", ["positive", "complex"])


def wave(name, amplitude="complex", scale=0.3, dtype=np.float64, **options):
    state = Jastrow(amplitude=amplitude, **options).build(LATTICE[name])
    return state.bind((scale * np.random.default_rng(0).normal(size=state.n_parameters)).astype(dtype))


def spins(n, name, seed=1):
    sites = LATTICE[name].n_sites
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, sites))


def formula(psi, lattice, sigma):
    """log psi by a double loop over sites."""
    v, a = psi.weights["pair.coupling"], psi.weights["site.bias"]
    v, a = (x[0] + 1j * x[1] if len(x) == 2 else x[0] for x in (v, a))
    classes = pair_classes(lattice, lattice.periodic)
    total = 0
    for i in range(lattice.n_sites):
        total = total + a[i % lattice.basis if lattice.periodic else i] * sigma[:, i]
        for j in range(i):
            total = total + v[classes[i, j]] * sigma[:, i] * sigma[:, j]
    return total


@EVERYWHERE
@BOTH
def test_bricks_and_twin_are_the_formula(name, amplitude):
    psi, sigma = wave(name, amplitude), spins(20, name)
    exact = formula(psi, LATTICE[name], sigma)
    np.testing.assert_allclose(psi.reference.log_psi(sigma), exact, atol=1e-12)
    np.testing.assert_allclose(psi.log_psi(sigma), exact, atol=1e-12)


@EVERYWHERE
def test_pairs_share_a_coupling_if_a_translation_maps_them_on_each_other(name):
    lattice = LATTICE[name]
    classes, n = pair_classes(lattice, lattice.periodic), lattice.n_sites
    moves = lattice.translations() if lattice.periodic else np.arange(n)[None]
    orbits = {frozenset(frozenset((int(m[i]), int(m[j]))) for m in moves) for i in range(n) for j in range(i)}
    assert classes.max() + 1 == len(orbits)
    for orbit in orbits:
        assert len({int(classes[tuple(pair)]) for pair in orbit}) == 1
    np.testing.assert_array_equal(classes, classes.T)
    np.testing.assert_array_equal(np.diag(classes), -1)


@pytest.mark.parametrize("name", ["ring", "torus", "honeycomb"])
def test_psi_is_invariant_under_translations_unless_told_otherwise(name):
    sigma, lattice = spins(5, name), LATTICE[name]
    psi, broken = wave(name), wave(name, translation_invariant=False)
    for moved in lattice.translations():
        np.testing.assert_allclose(psi.log_psi(sigma[:, moved]), psi.log_psi(sigma), atol=1e-12)
    moved = lattice.translations()[1]
    assert np.abs(broken.log_psi(sigma[:, moved]) - broken.log_psi(sigma)).max() > 1e-3


@EVERYWHERE
@BOTH
def test_per_sample_gradients_match_finite_differences(name, amplitude):
    psi, sigma, step = wave(name, amplitude).reference, spins(3, name), 1e-5
    exact = psi.per_sample_gradients(sigma)
    for k in range(psi.state.n_parameters):
        shift = np.zeros(psi.state.n_parameters)
        shift[k] = step
        up, down = (psi.state.log_psi(psi.parameters + s * shift, sigma) for s in (1, -1))
        np.testing.assert_allclose(exact[:, k], (up - down) / (2 * step), atol=1e-8)
    tape = psi.tape(sigma)
    summed = np.concatenate([g for _, g in tape.gradients(tape.backward(), total=True)])
    np.testing.assert_allclose(summed, exact.sum(axis=0), atol=1e-12)


@EVERYWHERE
@BOTH
def test_fields_can_be_edited(name, amplitude):
    """Edited forwards against the layer's gradient; the field is what a flip feels."""
    psi, sigma, step = wave(name, amplitude), spins(4, name), 1e-5
    field = psi.stream_at(sigma, "field")
    assert field.shape == (4, LATTICE[name].n_sites, psi.state.width)
    push = np.random.default_rng(5).normal(size=field.shape[1:])
    predicted = (psi.layer_gradient(sigma, "field") * push).sum(axis=(1, 2))
    up, down = (psi.edited("field", lambda y, s=s: y + s * push).log_psi(sigma) for s in (step, -step))
    np.testing.assert_allclose((up - down) / (2 * step), predicted, atol=1e-8)
    flipped = sigma.copy()
    flipped[:, 2] *= -1
    a = psi.weights["site.bias"][:, 2 % LATTICE[name].basis if LATTICE[name].periodic else 2]
    local = field[:, 2] + a
    local = local[:, 0] + 1j * local[:, 1] if psi.state.width == 2 else local[:, 0]
    np.testing.assert_allclose(
        psi.log_psi(flipped) - psi.log_psi(sigma), -2 * sigma[:, 2] * local, atol=1e-12
    )


@EVERYWHERE
@BOTH
def test_spins_have_a_gradient_too(name, amplitude):
    """d log psi / d s at the first edge, with s continuous."""
    psi, sigma, step = wave(name, amplitude).reference, spins(2, name), 1e-5
    found = psi.tape(sigma).backward()["tokens"][..., 0]
    x = sigma.astype(np.float64)
    for i in range(LATTICE[name].n_sites):
        shift = np.zeros(x.shape[1])
        shift[i] = step
        up, down = (formula(psi, LATTICE[name], x + s * shift) for s in (1, -1))
        np.testing.assert_allclose(found[:, i], (up - down) / (2 * step), atol=1e-8)


@EVERYWHERE
@BOTH
def test_ratios_and_walks_are_those_of_the_bricks(name, amplitude):
    psi, sigma, generator = wave(name, amplitude), spins(20, name), np.random.default_rng(3)
    n = LATTICE[name].n_sites
    signs = generator.choice(np.array([-1, 1], np.int8), size=(9, n))
    wanted = generator.random((20, 9)) < 0.8
    exact = psi.reference.log_psi((sigma[:, None] * signs).reshape(-1, n)).reshape(20, 9)
    exact = np.exp(exact - psi.reference.log_psi(sigma)[:, None]) * wanted
    np.testing.assert_allclose(psi.fused.ratios(sigma, psi.log_psi(sigma), signs, wanted), exact, rtol=1e-10)
    fast, plain = sigma.copy(), sigma.copy()
    log_fast, log_plain = psi.log_psi(fast), psi.reference.log_psi(plain)
    first, length = generator.integers(n, size=(80, 20)), generator.integers(1, n + 1, size=(80, 20))
    length = np.where(generator.random((80, 20)) < 0.5, length, -1 - (first + 1) % n)
    moves = first, length, np.log(generator.random((80, 20)))
    assert psi.fused.walk(fast, log_fast, *moves) == _walk(psi.reference, plain, log_plain, *moves)
    np.testing.assert_array_equal(fast, plain)
    np.testing.assert_allclose(log_fast, psi.reference.log_psi(fast), atol=1e-10)


def test_nan_parameters_are_seen():
    psi, sigma = wave("torus"), spins(4, "torus")
    p = psi.parameters.copy()
    p[0] = np.nan
    broken, log_psi = psi.state.bind(p), np.zeros(4, complex)
    moves = np.zeros((3, 4), np.int64), np.ones((3, 4), np.int64), np.full((3, 4), -1.0)
    assert broken.fused.walk(sigma, log_psi, *moves) == 0
    assert np.isnan(log_psi).all()
    assert np.isnan(broken.log_psi(sigma)).all()


@EVERYWHERE
@BOTH
def test_the_jacobian_equals_the_dense_one_and_that_of_the_tape(name, amplitude):
    psi, sigma = wave(name, amplitude), spins(40, name)
    o = psi.reference.per_sample_gradients(sigma)
    o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
    generator, jacobian = np.random.default_rng(2), psi.fused.jacobian(sigma)
    vector, y = generator.normal(size=o.shape[1]), generator.normal(size=40) + 1j * generator.normal(size=40)
    y = y if amplitude == "complex" else y.real
    gram, product = jacobian.gram_and_product(vector)
    np.testing.assert_allclose(product, o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.transposed_product(y), (o.conj().T @ y).real, atol=1e-12)
    tape, _ = TapeJacobian(psi.reference, sigma).gram_and_product(vector)
    stacked = np.block([[gram.real, -gram.imag], [gram.imag, gram.real]])
    np.testing.assert_allclose(stacked if amplitude == "complex" else gram, tape, atol=1e-12)


@BOTH
@pytest.mark.parametrize("n", [8, 100])
def test_the_step_equals_that_of_the_bricks_by_cholesky(amplitude, n):
    """More columns than samples, and fewer."""
    psi, sigma, generator = wave("line", amplitude), spins(n, "line"), np.random.default_rng(3)
    energies = generator.normal(size=n) + (1j * generator.normal(size=n) if amplitude == "complex" else 0)
    previous = 0.1 * generator.normal(size=psi.state.n_parameters)
    fast, plain = (
        natural_step(wave, sigma, energies, previous, 1e-3, 0.8, 0.01, solver)
        for wave, solver in ((psi, "auto"), (psi.reference, "cholesky"))
    )
    np.testing.assert_allclose(fast.direction, plain.direction, atol=1e-8 * np.abs(plain.direction).max())


def test_a_ring_is_trained_to_its_energy():
    """A ring of 10 spins in a field twice the critical one: a Jastrow state is within a per mille there."""
    lattice = lattice_of("chain", length=10)
    hamiltonian = HAMILTONIANS["tfim"](kind="tfim", h=2.0).build(lattice)
    exact = ground_state(hamiltonian).energy
    options = GroundState(steps=60, samples=512, learning_rate=0.2)
    trainer = Trainer(Jastrow().build(lattice), lattice, hamiltonian, Sampling(chains=256), options)
    training = trainer.start()
    for _ in range(options.steps):
        trainer.advance(training)
    energy = np.mean(training.history["energy"][-20:])
    error = np.mean(training.history["energy_error"][-20:]) / np.sqrt(20)
    assert energy == pytest.approx(exact, rel=1e-3)
    assert energy > exact - 3 * error
