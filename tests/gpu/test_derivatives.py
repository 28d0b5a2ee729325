"""O-bar on a device against the plain tape in double precision: from the kernel or the tape, kept whole or in slabs."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import LATTICES, Chain
from nqs_sae_service.states import Transformer, Wavefunction
from nqs_sae_service.vmc import jacobian_gpu
from nqs_sae_service.vmc.jacobian import TapeJacobian


def network(amplitude, attention="positional", invariant=True, layers=2):
    record = Transformer(
        patch=2, width=6, heads=2, layers=layers, attention=attention, amplitude=amplitude,
        translation_invariant=invariant, mlp_ratio=3,
    )  # fmt: skip
    state = record.build(Chain(kind="chain", length=10).build())
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    sigma = np.random.default_rng(1).choice([-1, 1], size=(12, 10)).astype(np.int8)
    return state, (state.initial_parameters(1) + noise).astype(np.float32), sigma


def assert_equals_the_plain_tape(device, state, parameters, sigma, plain=False):
    """T, both products and the layout of the rows; errors relative to the largest entry."""
    expected = TapeJacobian(state.bind(parameters).reference, sigma)
    found = jacobian_gpu.DeviceJacobian(Wavefunction(state, device.put(parameters), plain), device.put(sigma))
    rng = np.random.default_rng(2)
    vector, y = rng.normal(size=state.n_parameters), rng.normal(size=12 * found.groups)
    gram, product = found.gram_and_product(device.put(vector))
    wanted_gram, wanted = expected.gram_and_product(vector)
    for got, exact in (
        (gram, wanted_gram),
        (product, wanted),
        (found.product(device.put(vector)), wanted),
        (found.transposed_product(device.put(y)), expected.transposed_product(y)),
    ):
        np.testing.assert_allclose(got.get(), exact, atol=1e-5 * np.abs(exact).max())
    values = rng.normal(size=12) + (1j * rng.normal(size=12) if state.complex_amplitude else 0)
    np.testing.assert_array_equal(found.rows(device.put(values)).get(), expected.rows(values))
    return found


@pytest.mark.parametrize("invariant", [True, False], ids=["ring", "open"])
@pytest.mark.parametrize("attention", ["positional", "full"])
@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_from_the_kernel(device, amplitude, attention, invariant):
    found = assert_equals_the_plain_tape(device, *network(amplitude, attention, invariant))
    assert found.kept is not None


@pytest.mark.parametrize("invariant", [True, False], ids=["periodic", "open"])
@pytest.mark.parametrize("attention", ["positional", "full"])
def test_from_the_kernel_with_two_dimensional_patches(one_device, attention, invariant):
    """A grid of 2 x 3 tokens: displacements wrap around both axes."""
    record = Transformer(
        patch=(2, 1), width=6, heads=2, layers=1, attention=attention, amplitude="complex", translation_invariant=invariant,
        mlp_ratio=3,
    )  # fmt: skip
    state = record.build(LATTICES["rectangular"](kind="rectangular", lengths=(4, 3)).build())
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    sigma = np.random.default_rng(1).choice([-1, 1], size=(12, 12)).astype(np.int8)
    found = assert_equals_the_plain_tape(
        one_device, state, (state.initial_parameters(1) + noise).astype(np.float32), sigma
    )
    assert found.kept is not None


def test_more_samples_than_blocks(one_device, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.states.transformer_jacobian_gpu._BLOCKS", 5)
    assert_equals_the_plain_tape(one_device, *network("complex", layers=1))


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_from_the_tape(one_device, amplitude):
    assert_equals_the_plain_tape(one_device, *network(amplitude), plain=True)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_in_slabs_and_passes_when_the_device_is_full(pretended, monkeypatch, amplitude):
    monkeypatch.setattr("nqs_sae_service.engine.devices.SMALL", 0)
    monkeypatch.setattr(pretended.xp.cuda.runtime, "memGetInfo", lambda: (20_000, 2**33))
    found = assert_equals_the_plain_tape(pretended, *network(amplitude))
    assert found.kept is None
    assert len(found.slabs) > 2
    assert len(found.passes) > 1


def test_where_doubles_are_slow_short_float_sums_are_added_up(pretended, monkeypatch):
    monkeypatch.setattr(jacobian_gpu, "COLUMNS", 30)
    monkeypatch.setattr(pretended.xp.cuda.runtime, "deviceGetAttribute", lambda attribute, device: 64)
    assert_equals_the_plain_tape(pretended, *network("complex"))
