"""The convolutional network: a plain formula, derivatives, edits, symmetries, the fused twin, its Jacobian, a training."""

import numpy as np
import pytest

from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Cnn
from nqs_sae_service.vmc.jacobian import TapeJacobian
from nqs_sae_service.vmc.training import Trainer


def lattice_of(kind, **options):
    return LATTICES[kind](kind=kind, **options).build()


LATTICE = {
    "ring": lattice_of("chain", length=6),
    "line": lattice_of("chain", length=5, periodic=False),
    "torus": lattice_of("rectangular", lengths=(3, 4)),
    "cylinder": lattice_of("rectangular", lengths=(3, 4), periodic=(True, False)),
    "triangular": lattice_of("triangular", lengths=(3, 3)),
    "honeycomb": lattice_of("honeycomb", lengths=(3, 3)),
    "kagome": lattice_of("kagome", lengths=(3, 3), periodic=False),
}
EVERYWHERE = pytest.mark.parametrize("name", LATTICE)
BOTH = pytest.mark.parametrize("amplitude", ["positive", "complex"])
HEADS = pytest.mark.parametrize("head", ["pooled", "local"])


def network(name, amplitude="complex", **options):
    return Cnn(**{"channels": 4, "blocks": 2, "amplitude": amplitude} | options).build(LATTICE[name])


def random_parameters(state, dtype=np.float64):
    """Every gain and bias away from its special initial value."""
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    return (state.initial_parameters(1) + noise).astype(dtype)


def spins(n, name, seed=1):
    sites = LATTICE[name].n_sites
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, sites))


def normalised(x, gain, bias):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * gain + bias


def formula(lattice, w, sigma, complex_amplitude):
    """log psi of one configuration, cell by cell and neighbour by neighbour."""
    d, basis = lattice.dimensions, lattice.basis
    steps = [np.array(s) - 1 for s in np.ndindex(*(3,) * d)]

    def convolve(x, weight, bias):
        y = {}
        for cell in x:
            y[cell] = bias.copy()
            for k, step in enumerate(steps):
                target = np.array(cell) + step
                beyond = (target < 0) | (target >= lattice.extent)
                if (beyond & ~np.array(lattice.wraps)).any():
                    continue
                own = x[tuple(target % lattice.extent)]
                y[cell] = y[cell] + own @ weight[k * len(own) : (k + 1) * len(own)]
        return y

    cells = list(np.ndindex(*lattice.extent))
    x = {cell: sigma[i * basis : (i + 1) * basis].astype(float) for i, cell in enumerate(cells)}
    x = convolve(x, w["embedding.weight"], w["embedding.bias"])
    for i in (1, 2):
        c = f"conv_{i}"
        u = {cell: normalised(v, w[f"{c}.norm.gain"], w[f"{c}.norm.bias"]) for cell, v in x.items()}
        u = convolve(u, w[f"{c}.first.weight"], w[f"{c}.first.bias"])
        u = {cell: v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3))) / 2 for cell, v in u.items()}
        u = convolve(u, w[f"{c}.second.weight"], w[f"{c}.second.bias"])
        x = {cell: x[cell] + u[cell] for cell in cells}
    parts = ["real", "imaginary"] if complex_amplitude else ["real"]
    if "head.norm.gain" not in w:  # a local head
        mapped = [{c: v @ w[f"head.{p}.weight"] + w[f"head.{p}.bias"] for c, v in x.items()} for p in parts]
        return np.prod(
            [np.cosh(mapped[0][c] + (1j * mapped[1][c] if complex_amplitude else 0)) for c in cells]
        )
    z = normalised(sum(x.values()), w["head.norm.gain"], w["head.norm.bias"])
    parts = [
        normalised(
            z @ w[f"head.{p}.weight"] + w[f"head.{p}.bias"],
            w[f"head.{p}_norm.gain"],
            w[f"head.{p}_norm.bias"],
        )
        for p in parts
    ]
    return np.prod(np.cosh(parts[0] + (1j * parts[1] if complex_amplitude else 0)))


@EVERYWHERE
@BOTH
@HEADS
def test_the_bricks_are_the_formula(name, amplitude, head):
    state, sigma = network(name, amplitude, head=head), spins(4, name)
    psi = state.bind(random_parameters(state))
    exact = [formula(LATTICE[name], psi.weights, s, state.complex_amplitude) for s in sigma]
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma)), exact, rtol=1e-10)


@EVERYWHERE
@HEADS
def test_per_sample_gradients_match_finite_differences(name, head):
    state, step = network(name, channels=3, blocks=1 if name == "kagome" else 2, head=head), 1e-5
    p, sigma = random_parameters(state), spins(2, name)
    exact = state.bind(p).per_sample_gradients(sigma)
    numeric = np.empty_like(exact)
    for k in range(state.n_parameters):
        up, down = p.copy(), p.copy()
        up[k] += step
        down[k] -= step
        numeric[:, k] = (state.log_psi(up, sigma) - state.log_psi(down, sigma)) / (2 * step)
    np.testing.assert_allclose(exact, numeric, atol=1e-6 * max(1, np.abs(exact).max()))


@EVERYWHERE
@BOTH
def test_layer_gradients_match_edited_forwards(name, amplitude):
    state, step = network(name, amplitude), 1e-5
    psi, sigma, generator = state.bind(random_parameters(state)), spins(3, name), np.random.default_rng(5)
    for layer in state.layers:
        push = generator.normal(size=psi.stream_at(sigma, layer).shape[1:])
        predicted = (psi.layer_gradient(sigma, layer) * push).sum(axis=(1, 2))
        up, down = (
            psi.edited(layer, lambda y, s=s, push=push: y + s * push).log_psi(sigma) for s in (step, -step)
        )
        tolerance = 1e-6 * max(1, np.abs(predicted).max())
        np.testing.assert_allclose((up - down) / (2 * step), predicted, atol=tolerance)


@EVERYWHERE
def test_translations_move_the_tokens_and_leave_psi(name):
    state, sigma, lattice = network(name), spins(3, name), LATTICE[name]
    psi = state.bind(random_parameters(state))
    for moved in lattice.translations():
        np.testing.assert_allclose(psi.log_psi(sigma[:, moved]), psi.log_psi(sigma), atol=1e-10)
        tokens = moved[:: lattice.basis] // lattice.basis
        np.testing.assert_allclose(
            psi.stream_at(sigma[:, moved], "residual_2"),
            psi.stream_at(sigma, "residual_2")[:, tokens],
            atol=1e-10,
        )


def test_an_open_lattice_has_no_translations_to_be_invariant_under():
    state, sigma = network("line"), spins(3, "line")
    psi = state.bind(random_parameters(state))
    assert np.abs(psi.log_psi(np.roll(sigma, 1, axis=1)) - psi.log_psi(sigma)).max() > 1e-3


@EVERYWHERE
@BOTH
@HEADS
def test_the_fused_twin_equals_the_bricks(name, amplitude, head):
    """With a table of windows (ring, torus, triangular) and without, with places outside and without."""
    state, sigma = network(name, amplitude, channels=8, head=head), spins(37, name)
    psi = state.bind(random_parameters(state, np.float32))
    assert (len(psi.fused.weights.stream) > 0) == (name in ("ring", "torus", "triangular"))
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - psi.reference.log_psi(sigma)), 1, atol=3e-4)
    for layer in state.fused_layers:
        stream = psi.stream_at(sigma, layer)
        np.testing.assert_allclose(stream, psi.reference.stream_at(sigma, layer), atol=5e-5)
        np.testing.assert_allclose(np.exp(psi.log_psi_from(layer, stream) - psi.log_psi(sigma)), 1, atol=2e-4)


def test_more_tokens_than_a_strip():
    lattice = lattice_of("square", length=9)
    state = Cnn(channels=4, blocks=1, kernel=(5, 3)).build(lattice)
    psi = state.bind(random_parameters(state, np.float32))
    sigma = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), size=(5, 81))
    np.testing.assert_allclose(psi.log_psi(sigma), psi.reference.log_psi(sigma), atol=3e-4)


def test_bits_depend_neither_on_the_neighbours_nor_on_the_threads():
    import numba

    state, sigma = network("torus"), spins(101, "torus")
    psi, threads = state.bind(random_parameters(state, np.float32)), numba.get_num_threads()
    whole = psi.log_psi(sigma)
    np.testing.assert_array_equal(psi.log_psi(sigma[64:77]), whole[64:77])
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(psi.log_psi(sigma), whole)
    finally:
        numba.set_num_threads(threads)


@HEADS
def test_walks_make_the_decisions_of_the_plain_loop(head):
    """Singles, stretches and exchanges; the same random numbers, the plain loop with the twin's log psi."""
    state, generator = network("torus", head=head), np.random.default_rng(4)
    psi = state.bind(random_parameters(state, np.float32))
    fast, plain = spins(20, "torus"), spins(20, "torus")
    log_fast, log_plain = psi.log_psi(fast), psi.log_psi(plain)
    first = generator.integers(12, size=(60, 20))
    length = generator.choice([1, 1, 3, 12], size=(60, 20))
    length = np.where(generator.random((60, 20)) < 0.5, length, -1 - (first + 1) % 12)
    moves = first, length, np.log(generator.random((60, 20)))
    assert psi.fused.walk(fast, log_fast, *moves) == _walk(psi, plain, log_plain, *moves)
    np.testing.assert_array_equal(fast, plain)
    np.testing.assert_allclose(np.exp(log_fast - log_plain), 1, atol=1e-5)


def test_nan_parameters_are_seen():
    state, sigma = network("torus"), spins(5, "torus")
    p = random_parameters(state, np.float32)
    p[0] = np.nan
    psi, log_psi = state.bind(p), np.zeros(5, complex)
    assert np.isnan(psi.log_psi(sigma)).all()
    moves = np.zeros((3, 5), np.int64), np.ones((3, 5), np.int64), np.full((3, 5), -1.0)
    assert psi.fused.walk(sigma, log_psi, *moves) == 0
    assert np.isnan(log_psi).all()


def test_no_samples():
    state = network("ring")
    assert state.log_psi(random_parameters(state, np.float32), spins(0, "ring")).shape == (0,)


@BOTH
@HEADS
@pytest.mark.parametrize("name", ["torus", "cylinder"])
def test_the_jacobian_sums_over_shared_weights(name, amplitude, head):
    state, sigma = network(name, amplitude, head=head), spins(40, name)
    psi = state.bind(random_parameters(state))
    o = psi.per_sample_gradients(sigma)
    o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
    o = np.concatenate([o.real, o.imag]) if state.complex_amplitude else o
    generator, jacobian = np.random.default_rng(3), TapeJacobian(psi, sigma)
    vector, y = generator.normal(size=o.shape[1]), generator.normal(size=o.shape[0])
    gram, product = jacobian.gram_and_product(vector)
    np.testing.assert_allclose(gram, o @ o.T, atol=1e-11)
    np.testing.assert_allclose(product, o @ vector, atol=1e-11)
    np.testing.assert_allclose(jacobian.transposed_product(y), o.T @ y, atol=1e-11)
    assert ("conv_2.second" in jacobian.rank_one) == (head == "pooled")


def test_float32_jacobians_are_as_good_as_their_rounding():
    state, sigma = network("torus"), spins(150, "torus")
    psi = state.bind(random_parameters(state, np.float32))
    exact, _ = TapeJacobian(psi.reference, sigma).gram_and_product(np.zeros(state.n_parameters))
    found, _ = TapeJacobian(psi, sigma).gram_and_product(np.zeros(state.n_parameters))
    rng, moved = np.random.default_rng(1), []
    for _ in range(4):  # what parameters rounded to float32 do: psi is near a zero on some configurations
        noise = 2.0**-24 * rng.uniform(-1, 1, state.n_parameters)
        rounded = state.bind(psi.reference.parameters * (1 + noise))
        gram, _ = TapeJacobian(rounded, sigma).gram_and_product(np.zeros(state.n_parameters))
        moved.append(np.abs(gram - exact).max())
    assert np.abs(found - exact).max() < 10 * np.max(moved)
    assert np.median(np.abs(found - exact)) < 1e-6 * np.abs(exact).max()


def test_a_square_of_spins_is_trained_to_its_energy():
    """4 x 4 Heisenberg with Marshall's rotation: -0.701780 per site."""
    lattice = lattice_of("square", length=4)
    record = HAMILTONIANS["heisenberg"](kind="heisenberg", J=1.0, marshall=True)
    sampling = Sampling(chains=256, magnetization=0, exchange=0.95, global_flip=0.05, stretch_flip=0.0)
    options = GroundState(steps=80, samples=512, learning_rate=0.1)
    trainer = Trainer(Cnn(channels=8).build(lattice), lattice, record.build(lattice), sampling, options)
    training = trainer.start()
    for _ in range(options.steps):
        trainer.advance(training)
    energies = np.asarray(training.history["energy"][-20:]) / 16
    error = np.mean(training.history["energy_error"][-20:]) / 16 / np.sqrt(20)
    assert energies.mean() == pytest.approx(-0.701780, abs=2e-3)
    assert energies.mean() > -0.701780 - 3 * error
