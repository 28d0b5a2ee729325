"""The RBM: derivatives against finite differences, the formula, the fast twin against the bricks."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
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


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_initial_parameters_are_reproducible_and_have_the_wanted_precision(precision):
    state = network(precision=precision)
    assert state.initial_parameters(3).dtype == precision
    np.testing.assert_array_equal(state.initial_parameters(3), state.initial_parameters(3))
    assert not np.array_equal(state.initial_parameters(3), state.initial_parameters(4))
