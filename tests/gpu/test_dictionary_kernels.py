"""The kernels of sparse dictionaries against dense formulas in double precision, emulated."""

import numpy as np
import pytest

from nqs_sae_service.engine.devices import HOST
from nqs_sae_service.sae import KINDS, kernels, kernels_gpu
from nqs_sae_service.sae.batchtopk import best_of_batch
from nqs_sae_service.sae.dictionary import ARRAYS, Dictionary, select_topk
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.planted import Regime, planted
from nqs_sae_service.sae.reference import topk_gradients
from nqs_sae_service.sae.topk import groups_of
from nqs_sae_service.sae.topk_gpu import sparse_gradients
from nqs_sae_service.sae.training import Parameters, Training, unit_rows

N, WIDTH, FEATURES = 11, 5, 37


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def arrays(rng):
    """x, encoder, encoder_bias, decoder_bias; numbers with few bits, so that pre-activations are exact and often tie."""
    shapes = ((N, WIDTH), (FEATURES, WIDTH), (FEATURES,), (WIDTH,))
    return [rng.integers(-2, 3, shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("k", [1, 4, FEATURES])
def test_selection_with_ties(device, arrays, k, positive):
    x, encoder, encoder_bias, decoder_bias = arrays
    z = (x - decoder_bias) @ encoder.T + encoder_bias
    chosen = select_topk(z, k) & ((z > 0) | (not positive))
    values, indices = kernels_gpu.encode_topk(*map(device.put, arrays), k, positive)
    values, indices = values.get(), indices.get()
    for row in range(N):
        expected = np.flatnonzero(chosen[row])
        np.testing.assert_array_equal(
            indices[row], np.pad(expected, (0, k - len(expected)), constant_values=-1)
        )
        np.testing.assert_array_equal(values[row, : len(expected)], z[row, expected])
        assert not values[row, len(expected) :].any()


@pytest.mark.parametrize("k", [1, 300, 2000])
@pytest.mark.parametrize("steps", [2, 10**6], ids=["ties", "no ties"])
def test_selection_from_many_features(device, rng, k, steps):
    """Digits of the keys decide: one where values differ, all of them and the places of equal ones where many tie."""
    bias = (np.round(rng.normal(size=3000) * steps) / steps).astype(np.float32)
    nothing = np.zeros((2, 1), np.float32), np.zeros((3000, 1), np.float32), bias, np.zeros(1, np.float32)
    values, indices = (array.get()[1] for array in kernels_gpu.encode_topk(*map(device.put, nothing), k))
    expected = np.flatnonzero(select_topk(bias[None], k)[0] & (bias > 0))
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    np.testing.assert_array_equal(values[: len(expected)], bias[expected])
    assert (indices[len(expected) :] == -1).all()


def test_selection_equals_the_cpu_kernel_and_sees_nan(device, rng):
    x = rng.normal(size=(N, WIDTH)).astype(np.float32)
    encoder, bias = rng.normal(size=(FEATURES, WIDTH)).astype(np.float32), np.zeros(FEATURES, np.float32)
    arguments = (x, encoder, bias, np.zeros(WIDTH, np.float32))
    values, indices = kernels_gpu.encode_topk(*map(device.put, arguments), 6)
    expected, places = kernels.encode_topk(*arguments, 6)
    np.testing.assert_array_equal(indices.get(), places)
    np.testing.assert_allclose(values.get(), expected, rtol=1e-5)
    x[2] = np.nan
    values, _ = kernels_gpu.encode_topk(*map(device.put, arguments), 6)
    assert np.isnan(values.get()[2]).all()
    assert np.isfinite(np.delete(values.get(), 2, axis=0)).all()


def test_large_dictionaries_are_encoded_in_blocks(one_device, arrays, monkeypatch):
    whole = kernels_gpu.encode_topk(*map(one_device.put, arrays), 3)
    monkeypatch.setattr(kernels_gpu, "_CACHED_ELEMENTS", 2 * FEATURES)
    for block, all_at_once in zip(
        kernels_gpu.encode_topk(*map(one_device.put, arrays), 3), whole, strict=True
    ):
        np.testing.assert_array_equal(block.get(), all_at_once.get())


def parameters(rng, dtype=np.float32):
    decoder = unit_rows(rng, FEATURES, WIDTH)
    encoder = decoder + rng.normal(size=decoder.shape, scale=0.1)
    biases = rng.normal(size=FEATURES, scale=0.1), rng.normal(size=WIDTH, scale=0.1)
    return Parameters(*(np.ascontiguousarray(a, dtype=dtype) for a in (encoder, decoder, *biases)))


def on(device, p):
    return Parameters(*(device.put(array) for array in vars(p).values()))


@pytest.mark.parametrize("dead", [0, 15], ids=["all alive", "some dead"])
def test_a_training_step_has_the_gradients_of_the_dense_formula(device, rng, dead):
    p, x = parameters(rng), rng.normal(size=(N, WIDTH)).astype(np.float32)
    mask = np.arange(FEATURES) < dead
    arguments = (4, mask, 3, 1 / 32)
    twin = Parameters(*(array.astype(np.float64) for array in vars(p).values()))
    loss, gradients, counts = topk_gradients(twin, x.astype(np.float64), *arguments)
    found, of_device, fired = sparse_gradients(on(device, p), device.put(x), 4, device.put(mask), 3, 1 / 32)
    assert found == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(fired.get(), counts)
    for name, expected in vars(gradients).items():
        np.testing.assert_allclose(getattr(of_device, name).get(), expected, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("dead", [0, 15], ids=["all alive", "some dead"])
@pytest.mark.parametrize("sizes", [(), (5, 20, FEATURES)], ids=["one", "nested"])
def test_a_step_on_a_batch_has_the_gradients_of_the_dense_formula(one_device, rng, sizes, dead, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.sae.batchtopk.LONGER", 1)
    p, x = parameters(rng), rng.normal(size=(N, WIDTH)).astype(np.float32)
    mask, groups = np.arange(FEATURES) < dead, groups_of(sizes or (FEATURES,), slice(0, FEATURES))
    twin = Parameters(*(array.astype(np.float64) for array in vars(p).values()))
    arguments = (x.astype(np.float64), 4, mask, 3, 1 / 32, True, sizes)
    loss, gradients, counts = topk_gradients(twin, *arguments)
    there = (one_device.put(x), 4, one_device.put(mask), 3, 1 / 32)
    found, of_device, fired = sparse_gradients(on(one_device, p), *there, choose=best_of_batch, groups=groups)
    assert found == pytest.approx(loss, rel=1e-5)
    np.testing.assert_array_equal(fired.get(), counts)
    for name, expected in vars(gradients).items():
        np.testing.assert_allclose(getattr(of_device, name).get(), expected, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_on_the_device_as_on_the_host(one_device, rng, kind):
    x = planted(Regime(features=20, width=WIDTH, active=2.0), 300, 1).x
    sized = {"k": 3} if "k" in KINDS[kind].model_fields else {}
    record = KINDS[kind](kind=kind, features=FEATURES, steps=6, batch=100, dead_after=150, **sized)
    ends = []
    for device in (one_device, HOST):
        training = Training(record, Held(x), [1], device)
        while training.step < 6:
            training.advance()
        ends.append(training.finished()[0])
    (there, history), (host, expected) = ends
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-3)
    for name in ARRAYS:
        array = getattr(host, name)
        if array is not None:
            np.testing.assert_allclose(getattr(there, name), array, rtol=1e-2, atol=2e-3, err_msg=name)


def test_decoding_error_of_sparse_features(device, rng):
    p, x = parameters(rng), rng.normal(size=(N, WIDTH)).astype(np.float32)
    values, indices = kernels.encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, 4)
    indices[0] = -1
    dense = np.zeros((N, FEATURES))
    for row in range(1, N):
        dense[row, indices[row][indices[row] >= 0]] = values[row][indices[row] >= 0]
    expected = x - (dense @ p.decoder + p.decoder_bias)
    error, squared = kernels_gpu.decode_error(
        *map(device.put, (x, p.decoder, p.decoder_bias, values, indices))
    )
    np.testing.assert_allclose(error.get(), expected, atol=1e-5)
    np.testing.assert_allclose(squared.get(), (expected**2).sum(axis=1), rtol=1e-5)


def test_a_feature_that_never_fires_has_no_gradient(device, rng):
    p, x = parameters(rng), rng.normal(size=(N, WIDTH)).astype(np.float32)
    p.encoder_bias[3] = -100
    _, gradients, counts = sparse_gradients(
        on(device, p), device.put(x), 4, device.put(np.zeros(FEATURES, bool)), 3, 0.0
    )
    assert counts.get()[3] == 0
    assert not any(
        array.get()[3].any() for array in (gradients.encoder, gradients.decoder, gradients.encoder_bias)
    )


@pytest.mark.parametrize("unit", [True, False])
def test_adam(device, rng, unit):
    shape, constants = (FEATURES, WIDTH), np.array([0.01, 1e-8, 0.9, 0.1, 0.999, 0.001], np.float32)
    p = unit_rows(rng, *shape)
    gradient, mean, square = rng.normal(size=(3, *shape)).astype(np.float32)
    square = np.abs(square)
    moved = [device.put(a) for a in (p, mean, square, gradient)]
    kernels_gpu.adam_rows(*moved, constants, unit)
    wide = [a.astype(np.float64) for a in (p, gradient, mean, square)]
    g = wide[1] - (wide[1] * wide[0]).sum(axis=1, keepdims=True) * wide[0] if unit else wide[1]
    m, v = 0.9 * wide[2] + 0.1 * g, 0.999 * wide[3] + 0.001 * g**2
    after = wide[0] - 0.01 * m / (np.sqrt(v) + 1e-8)
    if unit:
        after /= np.linalg.norm(after, axis=1, keepdims=True)
    for array, expected in zip(moved[:3], (after, m, v), strict=True):
        np.testing.assert_allclose(array.get(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["topk", "relu-l1", "jumprelu"])
def test_a_dictionary_on_the_device_does_what_it_does_on_the_host(one_device, rng, kind):
    p = parameters(rng)
    thresholds = [rng.uniform(0, 1, FEATURES).astype(np.float32)] if kind == "jumprelu" else []
    host = Dictionary(kind, 4 if kind == "topk" else 0, *vars(p).values(), *thresholds)
    there = host.on(one_device)
    x = rng.normal(size=(N, 3, WIDTH)).astype(np.float32)
    moved = one_device.put(x)
    np.testing.assert_allclose(there.reconstruct(moved).get(), host.reconstruct(x), atol=1e-5)
    np.testing.assert_allclose(there.encode(moved).get(), host.encode(x), atol=1e-5)
    for i in (0, 7):
        np.testing.assert_allclose(there.feature(moved, i).get(), host.feature(x, i), atol=1e-5)
    wide = one_device.put(x.astype(np.float64))
    np.testing.assert_allclose(
        there.reconstruct(wide).get(), host.reconstruct(x.astype(np.float64)), atol=1e-12
    )
