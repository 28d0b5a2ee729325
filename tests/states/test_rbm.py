"""The RBM: derivatives against finite differences, the formula, the fast twin against the bricks."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.states import Rbm

SITES = 8


def network(alpha=2, sites=SITES, **options):
    return Rbm(alpha=alpha, **options).build(Chain(kind="chain", length=sites).build())


def wave(scale=0.3, seed=0, dtype=np.float64, **options):
    state = network(**options)
    return state.bind((scale * np.random.default_rng(seed).normal(size=state.n_parameters)).astype(dtype))


def spins(n, sites=SITES, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, sites))


def complex_parameters(psi):
    """a (N,), b (M,), W (N, M)."""
    w = {name: array.astype(np.float64) for name, array in psi.weights.items()}
    hidden = w["hidden.bias"].size // 2
    a = w["visible.real"] + 1j * w["visible.imaginary"]
    b, weight = (
        w[f"hidden.{role}"][..., :hidden] + 1j * w[f"hidden.{role}"][..., hidden:]
        for role in ("bias", "weight")
    )
    return a, b, weight


def test_the_bricks_are_the_formula():
    psi, sigma = wave().reference, spins(20)
    a, b, weight = complex_parameters(psi)
    amplitude = np.exp(sigma @ a) * np.cosh(b + sigma @ weight).prod(axis=1)
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma)), amplitude, rtol=1e-12)
    assert psi.state.n_parameters == 2 * (SITES + 2 * SITES + 2 * SITES * SITES)


def test_per_sample_gradients_match_finite_differences():
    psi, sigma, step = wave().reference, spins(3), 1e-5
    exact = psi.per_sample_gradients(sigma)
    numeric = np.empty_like(exact)
    for k in range(psi.state.n_parameters):
        shifts = np.zeros(psi.state.n_parameters)
        shifts[k] = step
        up, down = (psi.state.log_psi(psi.parameters + s * shifts, sigma) for s in (1, -1))
        numeric[:, k] = (up - down) / (2 * step)
    np.testing.assert_allclose(exact, numeric, atol=1e-8)


def test_layer_gradients_match_edited_forwards():
    psi, sigma, step = wave(), spins(4), 1e-5
    push = np.random.default_rng(5).normal(size=(1, psi.state.width))
    predicted = (psi.layer_gradient(sigma, "hidden") * push).sum(axis=(1, 2))
    up, down = (psi.edited("hidden", lambda y, s=s: y + s * push).log_psi(sigma) for s in (step, -step))
    np.testing.assert_allclose((up - down) / (2 * step), predicted, atol=1e-8)


def test_the_weighted_sum_of_gradients_is_the_sum():
    psi, sigma = wave().reference, spins(7)
    tape = psi.tape(sigma)
    deltas = tape.backward()
    summed = np.concatenate([g for _, g in tape.gradients(deltas, total=True)])
    np.testing.assert_allclose(summed, psi.per_sample_gradients(sigma).sum(axis=0), atol=1e-12)


def test_the_hidden_layer_is_theta():
    psi, sigma = wave(), spins(5)
    _, b, weight = complex_parameters(psi)
    theta = b + sigma @ weight
    np.testing.assert_allclose(
        psi.stream_at(sigma, "hidden")[:, 0], np.concatenate([theta.real, theta.imag], axis=1), atol=1e-12
    )


def everything(sigma, signs):
    return np.ones((len(sigma), len(signs)), bool)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_initial_parameters_are_reproducible_and_have_the_wanted_precision(precision):
    state = network(precision=precision)
    assert state.initial_parameters(3).dtype == precision
    np.testing.assert_array_equal(state.initial_parameters(3), state.initial_parameters(3))
    assert not np.array_equal(state.initial_parameters(3), state.initial_parameters(4))


def agree(log_psi, exact, tolerance=1e-12):
    """Equal logarithms of psi, the phase modulo 2 pi."""
    np.testing.assert_allclose(log_psi.real, exact.real, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(np.exp(1j * (log_psi - exact).imag), 1, atol=10 * tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [1, 2, 5, 40])
@pytest.mark.parametrize("scale", [0.0, 0.01, 0.3, 3.0, 100.0])
def test_the_fast_twin_equals_the_bricks(scale, alpha, dtype):
    """From psi = 1 to |theta| in the hundreds, one to two groups of factors."""
    psi, sigma = wave(scale, alpha=alpha, dtype=dtype), spins(33)
    assert psi.fused is not None
    assert psi.reference.fused is None
    agree(psi.log_psi(sigma), psi.reference.log_psi(sigma), 1e-11)


@pytest.mark.parametrize("alpha", [1, 5, 40])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0, 100.0])
def test_ratios_equal_differences_of_log_psi(scale, alpha):
    psi, sigma = wave(scale, alpha=alpha), spins(12)
    generator = np.random.default_rng(3)
    signs = np.concatenate(
        [
            1 - 2 * np.eye(SITES),
            np.ones((1, SITES)),
            -np.ones((1, SITES)),
            generator.choice([-1, 1], (9, SITES)),
        ]
    ).astype(np.int8)
    ratio = psi.fused.ratios(sigma, psi.log_psi(sigma), signs, everything(sigma, signs))
    bricks = psi.reference
    flipped = bricks.log_psi((sigma[:, None] * signs).reshape(-1, SITES)).reshape(ratio.shape)
    with np.errstate(over="ignore"):
        exact = np.exp(flipped - bricks.log_psi(sigma)[:, None])
    kept = np.isfinite(exact) & (np.abs(exact) > 1e-290)
    assert kept.mean() > (0.95 if scale < 100 else 0.05)
    np.testing.assert_allclose(ratio[kept], exact[kept], rtol=1e-9)
    np.testing.assert_allclose(ratio[:, SITES], 1, rtol=1e-12)


def proposals(chains, rows, seed=4):
    generator = np.random.default_rng(seed)
    first = generator.integers(SITES, size=(rows, chains))
    length = np.where(
        generator.random((rows, chains)) < 0.5, 1, generator.integers(1, SITES + 1, size=(rows, chains))
    )
    return first, length, np.log(generator.random((rows, chains)))


@pytest.mark.parametrize("alpha", [1, 5, 40])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0, 100.0])
def test_walks_make_the_decisions_of_the_plain_loop(scale, alpha):
    """Singles, stretches around the ring and flips of all sites, 200 of them, with the same random numbers."""
    psi = wave(scale, alpha=alpha)
    fast, plain = spins(40), spins(40)
    log_fast, log_plain = psi.log_psi(fast), psi.reference.log_psi(plain)
    moves = proposals(40, 200)
    accepted = psi.fused.walk(fast, log_fast, *moves)
    assert accepted == _walk(psi.reference, plain, log_plain, *moves)
    np.testing.assert_array_equal(fast, plain)
    agree(log_fast, psi.reference.log_psi(fast), 1e-10)


def test_nothing_depends_on_the_number_of_threads():
    import numba

    psi, sigma = wave(), spins(100)
    moves, threads = proposals(100, 50), numba.get_num_threads()
    signs = (1 - 2 * np.eye(SITES)).astype(np.int8)
    results = []
    for count in (1, threads):
        numba.set_num_threads(count)
        walked, log_psi = sigma.copy(), psi.log_psi(sigma)
        psi.fused.walk(walked, log_psi, *moves)
        results.append(
            (
                walked,
                log_psi,
                psi.fused.ratios(sigma, log_psi, signs, everything(sigma, signs)),
                psi.log_psi(sigma),
            )
        )
    numba.set_num_threads(threads)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["hidden.weight", "hidden.bias", "visible.real"])
def test_nan_parameters_are_seen(name):
    psi = wave()
    parameters = psi.parameters.copy()
    parameters[psi.state.layout[name][0].start] = np.nan
    broken, sigma = psi.state.bind(parameters), spins(5)
    log_psi = broken.log_psi(sigma)
    assert np.isnan(log_psi).all()
    assert np.isnan(
        broken.fused.ratios(sigma, log_psi, -np.ones((1, SITES), np.int8), np.ones((len(sigma), 1), bool))
    ).all()
    before = sigma.copy()
    log_psi[:] = 0
    assert broken.fused.walk(sigma, log_psi, *proposals(5, 20)) == 0
    assert np.isnan(log_psi).all()
    np.testing.assert_array_equal(sigma, before)


def test_no_samples():
    psi = wave()
    assert psi.log_psi(spins(0)).shape == (0,)
    assert psi.fused.ratios(
        spins(0), np.zeros(0), np.ones((3, SITES), np.int8), np.ones((0, 3), bool)
    ).shape == (0, 3)
