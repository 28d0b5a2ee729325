"""O-bar and T = O-bar O-bar^T from the tape, against the dense matrices in float64; the kernels they are made of."""

import numba
import numpy as np
import pytest

from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc import gram
from nqs_sae_service.vmc.jacobian import PASS, TapeJacobian

LATTICE = Chain(kind="chain", length=8).build()


def wave(dtype=np.float64, **options):
    state = Transformer(**({"patch": 2, "width": 8, "heads": 2, "layers": 2} | options)).build(LATTICE)
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(1) + noise).astype(dtype))


def configurations(n):
    return np.random.default_rng(5).choice(np.array([-1, 1], np.int8), size=(n, 8))


def dense_o_bar(psi, sigma):
    o = psi.reference.per_sample_gradients(sigma)
    o = (o - o.mean(axis=0)) / np.sqrt(len(sigma))
    return np.concatenate([o.real, o.imag]) if np.iscomplexobj(o) else o


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize("attention", ["full", "positional"])
@pytest.mark.parametrize("invariant", [True, False])
@pytest.mark.parametrize("n", [3, PASS + 37])
def test_products_with_o_bar(amplitude, attention, invariant, n):
    psi = wave(amplitude=amplitude, attention=attention, translation_invariant=invariant)
    sigma = configurations(n)
    o, generator = dense_o_bar(psi, sigma), np.random.default_rng(3)
    jacobian = TapeJacobian(psi, sigma)
    vector, y = generator.normal(size=o.shape[1]), generator.normal(size=o.shape[0])
    t, product = jacobian.gram_and_product(vector)
    np.testing.assert_allclose(t, o @ o.T, atol=1e-12)
    np.testing.assert_array_equal(t, t.T)
    np.testing.assert_allclose(product, o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.product(vector), o @ vector, atol=1e-12)
    np.testing.assert_allclose(jacobian.transposed_product(y), o.T @ y, atol=1e-12)


@pytest.mark.parametrize("amplitude", ["positive", "complex"])
def test_float32_is_as_good_as_its_rounding(amplitude):
    psi, sigma = wave(np.float32, amplitude=amplitude), configurations(300)
    o = dense_o_bar(psi, sigma)
    t, _ = TapeJacobian(psi, sigma).gram_and_product(np.zeros(o.shape[1]))
    np.testing.assert_allclose(t, o @ o.T, atol=2e-5 * np.abs(o @ o.T).max())


def test_maps_below_the_sum_over_tokens_have_rank_one():
    jacobian = TapeJacobian(wave(amplitude="complex"), configurations(4))
    assert set(jacobian.rank_one) == {"mlp_2.down", "head.real", "head.imaginary"}


def test_the_bits_do_not_depend_on_the_number_of_threads():
    psi, sigma, found = wave(np.float32, amplitude="complex"), configurations(3 * PASS), []
    threads = numba.get_num_threads()
    y = np.random.default_rng(0).normal(size=2 * len(sigma))
    for count in (1, threads):
        numba.set_num_threads(count)
        jacobian = TapeJacobian(psi, sigma)
        found.append(
            (*jacobian.gram_and_product(np.ones(psi.state.n_parameters)), jacobian.transposed_product(y))
        )
    numba.set_num_threads(threads)
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(one, many)


def test_symmetric_products_add_up():
    parts = np.random.default_rng(0).normal(size=(3, 130, 130)).astype(np.float32)
    total = np.ones((130, 130))
    gram.add_lower(parts, total)
    gram.mirror(total, 0.5)
    lower = np.tril(0.5 * (1 + parts.astype(np.float64).sum(axis=0)))
    np.testing.assert_allclose(total, lower + np.tril(lower, -1).T)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("n", [2, 150])
def test_rank_one_gram_equals_the_centred_product(groups, n):
    generator = np.random.default_rng(1)
    x, delta = generator.normal(size=(n, 5)), generator.normal(size=(groups * n, 3)) + 2
    o = np.einsum("ri,ro->rio", np.concatenate([x] * groups), delta).reshape(groups, n, -1)
    o = (o - o.mean(axis=1, keepdims=True)).reshape(groups * n, -1)
    total = np.zeros((groups * n, groups * n))
    gram.accumulate_rank_one(x, delta, n, total)
    gram.mirror(total, 1.0)
    np.testing.assert_allclose(total, o @ o.T, atol=1e-12)


def test_columns_and_their_weighted_sums():
    generator = np.random.default_rng(2)
    n, tokens, fan_in, fan_out = 20, 3, 6, 5
    x = generator.normal(size=(n, tokens, fan_in))
    delta = generator.normal(size=(2 * n, tokens, fan_out))
    o = np.einsum("rti,rto->rio", np.concatenate([x, x]), delta)
    first, last = 1, 4
    vector, weight = generator.normal(size=(last - first) * fan_out), generator.normal(size=2 * n)
    columns = o[:, first:last].reshape(2, n, -1)
    block, product = np.empty((2 * n, vector.size)), np.ones(2 * n)
    gram.outer_columns(x, delta, first, last, vector, block, product)
    np.testing.assert_allclose(block.reshape(columns.shape), columns - columns.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(product, 1 + columns.reshape(2 * n, -1) @ vector)
    np.testing.assert_allclose(gram.weighted_outer(x, delta, weight), np.einsum("r,rio->io", weight, o))
