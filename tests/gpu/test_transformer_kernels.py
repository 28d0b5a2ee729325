"""The transformer's kernels against the bricks in double precision, emulated."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import LATTICES, Chain
from nqs_sae_service.sampling.metropolis import _walk
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.transformer_gpu import GpuTransformer, WalkingTransformer, fused_on_device

KINDS = [
    pytest.param(
        attention, amplitude, invariant, id=f"{attention}-{amplitude}-{'ring' if invariant else 'open'}"
    )
    for attention in ("positional", "full")
    for amplitude in ("positive", "complex")
    for invariant in (True, False)
]


def network(attention, amplitude, invariant, sites=15, patch=3, width=10, heads=2, layers=2):
    record = Transformer(
        patch=patch, width=width, heads=heads, layers=layers, attention=attention, amplitude=amplitude,
        translation_invariant=invariant, mlp_ratio=3,
    )  # fmt: skip
    return record.build(Chain(kind="chain", length=sites).build())


def parameters(state, size=0.3):
    noise = size * np.random.default_rng(0).normal(size=state.n_parameters)
    return (state.initial_parameters(1) + noise).astype(np.float32)


def spins(n, sites=15, seed=1):
    return np.random.default_rng(seed).choice([-1, 1], size=(n, sites)).astype(np.int8)


def principal(phase):
    return np.exp(1j * phase)


def assert_same_psi(log_psi, expected, atol=2e-5):
    np.testing.assert_allclose(log_psi.real, expected.real, atol=atol)
    if np.iscomplexobj(expected):
        np.testing.assert_allclose(principal(log_psi.imag), principal(expected.imag), atol=atol)


@pytest.mark.parametrize(("attention", "amplitude", "invariant"), KINDS)
def test_log_psi_streams_and_restarts_equal_the_bricks(device, attention, amplitude, invariant):
    state = network(attention, amplitude, invariant)
    p, sigma = parameters(state), spins(5)
    psi, reference = state.bind(device.put(p)), state.bind(p).reference
    assert isinstance(psi.fused, WalkingTransformer)
    on_device = device.put(sigma)
    assert_same_psi(psi.log_psi(on_device).get(), reference.log_psi(sigma))
    assert psi.log_psi(on_device).dtype == reference.log_psi(sigma).dtype
    for layer in state.fused_layers:
        stream = psi.stream_at(on_device, layer)
        np.testing.assert_allclose(stream.get(), reference.stream_at(sigma, layer), atol=1e-5)
        before = stream.get()
        assert_same_psi(psi.log_psi_from(layer, stream).get(), reference.log_psi(sigma))
        np.testing.assert_array_equal(stream.get(), before)


@pytest.mark.parametrize(("attention", "amplitude", "invariant"), KINDS)
def test_a_walk_decides_as_the_plain_loop_in_double_precision(device, attention, amplitude, invariant):
    """Thresholds that are not close to a ratio: every decision must agree, hence every configuration."""
    state = network(attention, amplitude, invariant)
    p, sigma, rows = parameters(state), spins(7), 6
    psi, reference = state.bind(device.put(p)), state.bind(p).reference
    rng = np.random.default_rng(2)
    first, length = rng.integers(15, size=(rows, 7)), rng.integers(1, 16, size=(rows, 7))
    threshold = np.log(rng.random((rows, 7)))
    walked, log_psi = device.put(sigma), device.put(reference.log_psi(sigma))
    accepted = psi.fused.walk(walked, log_psi, *(device.put(a) for a in (first, length, threshold)))
    plain, plain_log_psi = sigma.copy(), reference.log_psi(sigma)
    assert accepted == _walk(reference, plain, plain_log_psi, first, length, threshold)
    assert 0 < accepted < rows * 7
    np.testing.assert_array_equal(walked.get(), plain)
    assert_same_psi(log_psi.get(), plain_log_psi)


def patches(attention, invariant, lengths=(4, 6)):
    """2 x 3 patches of a rectangle: tokens on a grid, with sites that do not follow each other."""
    record = Transformer(
        patch=(2, 3), width=8, heads=2, layers=1, attention=attention, amplitude="complex", translation_invariant=invariant
    )  # fmt: skip
    return record.build(LATTICES["rectangular"](kind="rectangular", lengths=lengths).build())


@pytest.mark.parametrize("invariant", [True, False], ids=["periodic", "open"])
@pytest.mark.parametrize("attention", ["positional", "full"])
def test_two_dimensional_patches_and_exchange_moves(one_device, attention, invariant):
    """log psi in one launch and in many, and a walk of flips, stretches and exchanges, null moves among them."""
    state = patches(attention, invariant)
    p, sigma, rows = parameters(state), spins(7, 24), 12
    psi, reference = state.bind(one_device.put(p)), state.bind(p).reference
    assert isinstance(psi.fused, WalkingTransformer)
    on_device = one_device.put(sigma)
    assert_same_psi(psi.log_psi(on_device).get(), reference.log_psi(sigma))
    assert_same_psi(GpuTransformer(state, psi.parameters).log_psi(on_device).get(), reference.log_psi(sigma))
    rng = np.random.default_rng(2)
    first, length = rng.integers(24, size=(rows, 7)), rng.integers(-24, 25, size=(rows, 7))
    length[length == 0] = 1
    threshold = np.log(rng.random((rows, 7)))
    walked, log_psi = one_device.put(sigma), one_device.put(reference.log_psi(sigma))
    accepted = psi.fused.walk(walked, log_psi, *(one_device.put(a) for a in (first, length, threshold)))
    plain, plain_log_psi = sigma.copy(), reference.log_psi(sigma)
    assert accepted == _walk(reference, plain, plain_log_psi, first, length, threshold)
    np.testing.assert_array_equal(walked.get(), plain)
    assert_same_psi(log_psi.get(), plain_log_psi)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_a_chain_that_meets_nan_stays_and_says_so(device, amplitude):
    state = network("positional", amplitude, True)
    p = parameters(state)
    p[0] = np.nan
    psi, sigma = state.bind(device.put(p)), spins(3)
    walked, log_psi = device.put(sigma), device.put(np.zeros(3, complex if amplitude == "complex" else float))
    ones = np.ones((2, 3), np.int64)
    assert (
        psi.fused.walk(
            walked, log_psi, device.put(ones), device.put(ones), device.put(-1e9 * ones.astype(float))
        )
        == 0
    )
    np.testing.assert_array_equal(walked.get(), sigma)
    assert np.isnan(log_psi.get().real).all()


def test_no_configurations(one_device):
    state = network("full", "complex", True)
    psi = state.bind(one_device.put(parameters(state)))
    assert psi.log_psi(one_device.put(spins(0))).shape == (0,)


def test_several_passes_join(one_device, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.states.transformer_gpu._PASS", 2)
    state = network("full", "complex", True)
    p, sigma = parameters(state), spins(5)
    psi = state.bind(one_device.put(p))
    assert_same_psi(psi.log_psi(one_device.put(sigma)).get(), state.bind(p).reference.log_psi(sigma))
    assert psi.stream_at(one_device.put(sigma), "residual_1").shape == (5, 5, 10)


def test_what_does_not_fit_a_block_falls_back(one_device):
    """A network with many weights or tokens has no walk; softmax over many tokens goes to the bricks."""
    wide = network("positional", "positive", True, sites=12, width=512, heads=2, layers=1)
    assert type(wide.bind(one_device.put(parameters(wide, 0.01))).fused) is GpuTransformer
    many = network("positional", "positive", True, sites=200, patch=1, width=16, heads=2, layers=1)
    assert type(many.bind(one_device.put(parameters(many))).fused) is GpuTransformer
    long = network("full", "positive", True, sites=240, patch=2, width=4, layers=1)
    p, sigma = parameters(long), spins(2, 240)
    psi = long.bind(one_device.put(p))
    assert fused_on_device(long, psi.parameters) is None
    assert_same_psi(psi.log_psi(one_device.put(sigma)).get(), long.bind(p).reference.log_psi(sigma), 1e-4)


def test_large_pre_activations_stay_finite(one_device):
    state = network("full", "complex", True)
    psi = state.bind(one_device.put(50 * parameters(state)))
    assert np.isfinite(psi.log_psi(one_device.put(spins(10))).get()).all()
