"""The fast bricks against the plain ones in float64, with real deltas and with real and imaginary parts of them."""

import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer
from nqs_sae_service.states.primitives import Attention, Gelu, LayerNorm, LogCosh
from nqs_sae_service.states.primitives_cpu import (
    FastAttention,
    FastGelu,
    FastLayerNorm,
    FastLogCosh,
    with_fast_bricks,
)


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize(("tokens", "width"), [(1, 32), (5, 7), (3, 200)])
@pytest.mark.parametrize("kind", ["LayerNorm", "Gelu"])
def test_values_and_derivatives(kind, groups, tokens, width):
    generator = np.random.default_rng(0)
    x = (2 * generator.normal(size=(6, tokens, width)) + 1).astype(np.float32)
    x[0] = 0
    delta = generator.normal(size=(*groups, *x.shape)).astype(np.float32)
    weights = {name: generator.normal(size=width).astype(np.float32) for name in ("n.gain", "n.bias")}
    doubles = {name: array.astype(np.float64) for name, array in weights.items()}
    arguments = ("n", ("a",), "b", width) if kind == "LayerNorm" else ("n", ("a",), "b")
    plain, fast = (LayerNorm, FastLayerNorm) if kind == "LayerNorm" else (Gelu, FastGelu)
    plain, fast = plain(*arguments), fast(*arguments)
    x64, delta64 = x.astype(np.float64), delta.astype(np.float64)

    def close(found, expected):
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())

    close(fast.forward(weights, x), plain.forward(doubles, x64))
    close(
        fast.backward(weights, (x,), None, delta)[0][..., 1:, :, :],
        plain.backward(doubles, (x64,), None, delta64)[0][..., 1:, :, :],
    )
    close(
        fast.backward(weights, (x,), None, delta)[0][..., :1, :, :],
        plain.backward(doubles, (x64,), None, delta64)[0][..., :1, :, :],
    )
    for total in (False, True):
        found = fast.gradient(weights, (x,), delta, total)
        expected = plain.gradient(doubles, (x64,), delta64, total)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            close(found[name], gradient)


@pytest.mark.parametrize("groups", [(), (2,)])
@pytest.mark.parametrize("grid", [(5,), ()])
def test_attention(groups, grid):
    generator = np.random.default_rng(2)
    q, k, v = (3 * generator.normal(size=(3, 4, 5, 12))).astype(np.float32)
    delta = generator.normal(size=(*groups, 4, 5, 12)).astype(np.float32)
    weights = {"n.bias": generator.normal(size=(3, 5)).astype(np.float32)}
    doubles = {name: array.astype(np.float64) for name, array in weights.items()}
    arguments = ("n", ("q", "k", "v"), "y", 5, 12, 3, grid)
    plain, fast = Attention(*arguments), FastAttention(*arguments)
    x, x64, delta64 = (q, k, v), tuple(a.astype(np.float64) for a in (q, k, v)), delta.astype(np.float64)
    pairs = [(fast.forward(weights, *x), plain.forward(doubles, *x64))]
    pairs += zip(
        fast.backward(weights, x, None, delta), plain.backward(doubles, x64, None, delta64), strict=True
    )
    pairs += zip(
        fast.gradient(weights, x, delta, False).values(),
        plain.gradient(doubles, x64, delta64, False).values(),
        strict=True,
    )
    assert len(pairs) == (5 if grid else 4)
    for found, expected in pairs:
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


def test_deltas_that_are_the_same_for_all_tokens():
    generator = np.random.default_rng(1)
    x, delta = generator.normal(size=(4, 5, 8)).astype(np.float32), generator.normal(size=(2, 4, 1, 8))
    delta = np.broadcast_to(delta.astype(np.float32), (2, 4, 5, 8))
    weights = {"n.gain": np.ones(8, np.float32), "n.bias": np.zeros(8, np.float32)}
    plain, fast = LayerNorm("n", ("a",), "b", 8), FastLayerNorm("n", ("a",), "b", 8)
    for one, other in zip(
        (*plain.backward(weights, (x,), None, delta), *plain.gradient(weights, (x,), delta, False).values()),
        (*fast.backward(weights, (x,), None, delta), *fast.gradient(weights, (x,), delta, False).values()),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_only_float32_networks_get_them():
    state = Transformer(width=8, heads=2, layers=1).build(Chain(kind="chain", length=8).build())
    psi = state.bind(state.initial_parameters(0))
    assert any(isinstance(brick, FastGelu) for brick in with_fast_bricks(psi).state.bricks)
    assert with_fast_bricks(psi).state.layout == state.layout
    assert not any(isinstance(brick, FastGelu) for brick in with_fast_bricks(psi.reference).state.bricks)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 16, 37])
def test_log_cosh_is_that_of_the_formula_up_to_turns_of_the_phase(kind, width):
    rng = np.random.default_rng(5)
    a, b = 3 * rng.standard_normal((2, 20, 4, width)).astype(kind)
    a[0] = 0.0  # on the imaginary axis, where cosh has its zeros
    b[1, 0, 0] = np.pi / 2
    a[2] *= 300  # far out
    a[3, 0, 0] = np.nan
    plain, fast = (brick("c", (".a", ".b"), "y") for brick in (LogCosh, FastLogCosh))
    with np.errstate(invalid="ignore"):
        expected, found = (
            brick.forward({}, a.astype(x), b.astype(x)) for brick, x in ((plain, np.float64), (fast, kind))
        )
    assert np.isnan(found[3])
    known = np.arange(20) != 3
    expected, found = expected[known], found[known]
    np.testing.assert_allclose(found.real, expected.real, rtol=1e-13, atol=1e-12)
    turned = np.exp(1j * (found.imag - expected.imag))
    np.testing.assert_allclose(turned, 1, atol=1e-9)
    real = [brick("c", (".a",), "y").forward({}, a[4:]) for brick in (LogCosh, FastLogCosh)]
    np.testing.assert_array_equal(*real)
