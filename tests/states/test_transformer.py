"""The transformer: gradients and edits against finite differences, the fused twin against the bricks, symmetries, sizes."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer

KINDS = [
    pytest.param(
        attention, amplitude, periodic, id=f"{attention}-{amplitude}-{'ring' if periodic else 'open'}"
    )
    for attention in ("full", "positional")
    for amplitude in ("positive", "complex")
    for periodic in (True, False)
]


def network(attention, amplitude, periodic, sites=8, **options):
    lattice = Chain(kind="chain", length=sites, periodic=periodic).build()
    sizes = {"patch": 2, "width": 8, "heads": 2, "layers": 2}
    return Transformer(**sizes | options, attention=attention, amplitude=amplitude).build(lattice)


def random_parameters(state, seed=0, dtype=np.float64):
    """Every gain, bias and code away from its special initial value."""
    noise = 0.3 * np.random.default_rng(seed).normal(size=state.n_parameters)
    return (state.initial_parameters(seed) + noise).astype(dtype)


def spins(n, sites, seed=1):
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), size=(n, sites))


@pytest.mark.parametrize(("attention", "amplitude", "periodic"), KINDS)
def test_per_sample_gradients_match_finite_differences(attention, amplitude, periodic):
    state = network(attention, amplitude, periodic)
    p, sigma = random_parameters(state), spins(3, 8)
    exact = state.bind(p).per_sample_gradients(sigma)
    step = 1e-5
    numeric = np.empty_like(exact)
    for k in range(state.n_parameters):
        up, down = p.copy(), p.copy()
        up[k] += step
        down[k] -= step
        numeric[:, k] = (state.log_psi(up, sigma) - state.log_psi(down, sigma)) / (2 * step)
    np.testing.assert_allclose(exact, numeric, atol=1e-6 * max(1, np.abs(exact).max()))


@pytest.mark.parametrize(("attention", "amplitude", "periodic"), KINDS)
def test_layer_gradients_match_edited_forwards(attention, amplitude, periodic):
    state = network(attention, amplitude, periodic)
    psi, sigma = state.bind(random_parameters(state)), spins(4, 8)
    generator = np.random.default_rng(5)
    for layer in state.layers:
        x = psi.stream_at(sigma, layer)
        push = generator.normal(size=x.shape[1:])
        predicted = (psi.layer_gradient(sigma, layer) * push).sum(axis=(1, 2))
        step = 1e-5
        up, down = (
            psi.edited(layer, lambda y, s=s, push=push: y + s * push).log_psi(sigma) for s in (step, -step)
        )
        tolerance = 1e-6 * max(1, np.abs(predicted).max())
        np.testing.assert_allclose((up - down) / (2 * step), predicted, atol=tolerance)


@pytest.mark.parametrize(("attention", "amplitude", "periodic"), KINDS)
@pytest.mark.parametrize("n", [1, 37, 130])
def test_fused_twin_equals_the_bricks(attention, amplitude, periodic, n):
    state = network(attention, amplitude, periodic, sites=12, width=16, heads=4, patch=3)
    psi = state.bind(random_parameters(state, dtype=np.float32))
    sigma = spins(n, 12)
    assert psi.fused is not None
    np.testing.assert_allclose(np.exp(psi.log_psi(sigma) - psi.reference.log_psi(sigma)), 1, atol=2e-4)
    for layer in state.fused_layers:
        stream = psi.stream_at(sigma, layer)
        np.testing.assert_allclose(stream, psi.reference.stream_at(sigma, layer), atol=3e-5)
        np.testing.assert_allclose(np.exp(psi.log_psi_from(layer, stream) - psi.log_psi(sigma)), 1, atol=1e-4)


@pytest.mark.parametrize(("attention", "amplitude", "periodic"), KINDS)
def test_an_edit_that_changes_nothing_is_psi(attention, amplitude, periodic):
    state = network(attention, amplitude, periodic)
    for dtype in (np.float32, np.float64):
        psi, sigma = state.bind(random_parameters(state, dtype=dtype)), spins(9, 8)
        tolerance = 3e-5 if dtype == np.float32 else 1e-12
        for layer in state.layers:
            edited = psi.edited(layer, lambda x: x).log_psi(sigma)
            np.testing.assert_allclose(np.exp(edited - psi.log_psi(sigma)), 1, atol=tolerance)


def test_bits_depend_neither_on_the_neighbours_nor_on_the_threads():
    import numba

    state = network("full", "complex", True, sites=12)
    psi, sigma = state.bind(random_parameters(state, dtype=np.float32)), spins(201, 12)
    whole = psi.log_psi(sigma)
    np.testing.assert_array_equal(psi.log_psi(sigma[64:77]), whole[64:77])
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(psi.log_psi(sigma), whole)
    finally:
        numba.set_num_threads(threads)


@pytest.mark.parametrize("width", [8, 32, 60, 512])
@pytest.mark.parametrize("sites", [4, 40, 400])
def test_blocks_are_powers_of_two_up_to_64(width, sites):
    state = network("full", "positive", True, sites=sites, width=width, layers=1)
    block = state.bind(state.initial_parameters(0)).fused.block
    assert block in (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("attention", ["full", "positional"])
def test_a_ring_is_invariant_under_translations_by_a_patch(attention):
    state = network(attention, "complex", True)
    p, sigma = random_parameters(state), spins(5, 8)
    shifted = np.roll(sigma, 2, axis=1)
    np.testing.assert_allclose(state.log_psi(p, shifted), state.log_psi(p, sigma), atol=1e-10)
    broken = network(attention, "complex", True, translation_invariant=False)
    p = random_parameters(broken)
    assert np.abs(broken.log_psi(p, shifted) - broken.log_psi(p, sigma)).max() > 1e-3


def test_large_pre_activations_stay_finite():
    state = network("full", "complex", True)
    psi = state.bind((50 * random_parameters(state)).astype(np.float32))
    assert np.isfinite(psi.log_psi(spins(20, 8))).all()
    assert np.isfinite(psi.reference.log_psi(spins(20, 8))).all()


def test_nan_parameters_are_seen():
    state = network("positional", "positive", True)
    p = random_parameters(state, dtype=np.float32)
    p[0] = np.nan
    assert np.isnan(state.log_psi(p, spins(3, 8))).all()


def test_no_samples():
    state = network("full", "positive", True)
    assert state.log_psi(random_parameters(state, dtype=np.float32), spins(0, 8)).shape == (0,)


def test_parameter_count_of_the_published_architecture():
    """The 40-site network with full positional matrices and a complex head has 24,448 parameters."""
    lattice = Chain(kind="chain", length=40).build()
    record = Transformer(attention="positional", amplitude="complex", translation_invariant=False)
    assert record.build(lattice).n_parameters == 24_448


def test_unknown_layer_names_the_layers():
    state = network("full", "positive", True)
    with pytest.raises(KeyError, match="residual_2"):
        state.bind(random_parameters(state)).stream_at(spins(1, 8), "residual_9")


def test_initial_parameters_are_reproducible_and_differ_by_seed():
    state = network("full", "positive", True)
    np.testing.assert_array_equal(state.initial_parameters(3), state.initial_parameters(3))
    assert not np.array_equal(state.initial_parameters(3), state.initial_parameters(4))


@pytest.mark.parametrize("attention", ["full", "positional"])
def test_heads_and_hidden_units_are_layers(attention):
    """What the heads read, side by side, is what attention adds; hidden units, what the feed-forward network adds."""
    record = Transformer(patch=3, width=8, heads=2, layers=2, mlp_ratio=3, attention=attention)
    state = record.build(Chain(kind="chain", length=12).build())
    psi = state.bind(state.initial_parameters(1).astype(np.float64))
    sigma = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (7, 12))
    x = psi.activations(sigma, state.layers)
    w = state.unpack(psi.parameters)
    for read, write, name in (
        ("heads_2", "attention_2", "attention_2.out"),
        ("hidden_2", "mlp_2", "mlp_2.down"),
    ):
        assert x[read].shape == (7, 4, state.width_of(read))
        expected = x[read] @ w[f"{name}.weight"] + w[f"{name}.bias"]
        np.testing.assert_allclose(x[write], expected, rtol=1e-10, atol=1e-12)
    assert state.width_of("hidden_1") == 24
    assert state.width_of("heads_1") == state.width_of("residual_2") == 8
    silent = psi.edited("heads_1", lambda h: 0 * h).log_psi(sigma)
    assert np.abs(silent - psi.log_psi(sigma)).max() > 1e-6
