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


@pytest.mark.parametrize("rows", [3, gram.TILE, 2 * gram.TILE + 5])
def test_tiles_make_the_lower_triangle(rows):
    block = np.random.default_rng(0).normal(size=(rows, 11))
    sums = np.zeros((3, rows, rows))
    for beta in (0.0, 2.0):
        gram.add_tiles(block, sums, beta, map)
    np.testing.assert_allclose(np.tril(sums.sum(axis=0)), 3 * np.tril(block @ block.T), atol=1e-12)


def test_inputs_of_low_rank_are_distilled():
    """Embedded patches of two spins span two dimensions and a constant; LayerNorm scales them and adds its own constant."""
    psi, sigma = (
        wave(np.float32, width=16, attention="positional", translation_invariant=True),
        configurations(300),
    )
    jacobian = TapeJacobian(psi, sigma)
    o = dense_o_bar(psi, sigma)
    t, _ = jacobian.gram_and_product(np.zeros(o.shape[1]))
    assert jacobian.distilled["attention_1.x"].shape[2] == 4
    assert jacobian.distilled["mlp_2.x"].shape[2] == 16
    np.testing.assert_allclose(t, o @ o.T, atol=2e-5 * np.abs(o @ o.T).max())


def test_columns_are_cut_into_even_blocks():
    jacobian = TapeJacobian(wave(amplitude="complex"), configurations(4))
    widths = [width for _, width in jacobian._blocks(100)]
    assert max(widths) <= 125
    assert min(widths) >= 75
    assert sum(widths) == jacobian.narrow.shape[1] + sum(
        jacobian.distilled[brick.inputs[0]].shape[2] * brick.fan_out
        for brick in jacobian._dense()
        if brick.name not in jacobian.rank_one
    )


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
    vector, weight = generator.normal(size=(fan_in, fan_out)), generator.normal(size=2 * n)
    columns = o[:, first:last].reshape(2, n, -1)
    block, product = np.zeros((2 * n, 30)), np.ones(2 * n)
    mean = gram.column_sums(x, delta, first, last) / n
    gram.outer_columns(x, delta, first, last, mean, block, 5)
    found = block[:, 5:20].reshape(columns.shape)
    np.testing.assert_allclose(found, columns - columns.mean(axis=1, keepdims=True), atol=1e-13)
    np.testing.assert_array_equal(np.delete(block, np.s_[5:20], axis=1), 0)  # nothing beside them is touched
    gram.outer_product(x, delta, vector, product)
    np.testing.assert_allclose(product, 1 + np.einsum("rio,io->r", o, vector))
    np.testing.assert_allclose(gram.weighted_outer(x, delta, weight), np.einsum("r,rio->io", weight, o))


@pytest.mark.parametrize("rows", [1, 50])
def test_products_with_narrow_columns(rows):
    generator = np.random.default_rng(4)
    columns = generator.normal(size=(rows, 7)).astype(np.float32)
    vector, weight = generator.normal(size=7), generator.normal(size=rows)
    np.testing.assert_allclose(gram.times_vector(columns, vector), columns.astype(np.float64) @ vector)
    np.testing.assert_allclose(
        gram.weighted_rows(columns, weight), weight @ columns.astype(np.float64), atol=1e-14
    )
