"""Finite differences of every gradient in float64, and the kernels against the float64 twin."""

import numpy as np
import pytest

from nqs_sae_service.engine.ranks import Ranks
from nqs_sae_service.sae import KINDS, Gated, kernels
from nqs_sae_service.sae.batchtopk import best_and_bound, best_of_batch
from nqs_sae_service.sae.dictionary import Dictionary, select_topk
from nqs_sae_service.sae.gated import GatedParameters, gated_gradients
from nqs_sae_service.sae.jumprelu import JumpReluParameters, jumprelu_gradients, scale_of_z
from nqs_sae_service.sae.reference import topk_gradients
from nqs_sae_service.sae.relu_l1 import relu_l1_gradients
from nqs_sae_service.sae.topk import SparseStep, groups_of
from nqs_sae_service.sae.training import BETA1, BETA2, EPSILON, Adam, Parameters

NAMES = ("encoder", "decoder", "encoder_bias", "decoder_bias")
N, D, F, K, K_AUX = 7, 5, 11, 3, 2


def random_parameters(rng, n_features=F, width=D, dtype=np.float64, bias=0.1):
    shapes = ((n_features, width), (n_features, width), (n_features,), (width,))
    scales = (1.0, 0.5, bias, 0.1)
    return Parameters(
        *((s * rng.standard_normal(shape)).astype(dtype) for s, shape in zip(scales, shapes, strict=True))
    )


def finite_differences(function, parameters, step=1e-6):
    """Central differences of ``function(parameters)`` by every entry of every array."""
    result = {}
    for name, array in vars(parameters).items():
        result[name] = np.empty_like(array)
        for place in np.ndindex(array.shape):
            kept = array[place]
            values = []
            for sign in (1, -1):
                array[place] = kept + sign * step
                values.append(function(parameters))
            array[place] = kept
            result[name][place] = (values[0] - values[1]) / (2 * step)
    return result


def detached_topk_loss(start, x, dead, alpha):
    """The TopK loss written out, with selection, error and variance of the auxiliary term fixed at ``start``."""

    def forward(p):
        z = (x - p.decoder_bias) @ p.encoder.T + p.encoder_bias
        return z, select_topk(z, K) & (z > 0)

    z, active = forward(start)
    fixed = x - np.where(active, z, 0) @ start.decoder - start.decoder_bias
    variance = np.mean((fixed - fixed.mean(axis=0)) ** 2)
    chosen = np.zeros_like(active)
    for row, best in enumerate(np.argsort(-np.where(dead, z, -np.inf), axis=1)[:, : min(K_AUX, dead.sum())]):
        chosen[row, best] = True

    def loss(p):
        z = (x - p.decoder_bias) @ p.encoder.T + p.encoder_bias
        error = x - np.where(active, z, 0) @ p.decoder - p.decoder_bias
        if not dead.any():
            return np.mean(error**2)
        return (
            np.mean(error**2) + alpha * np.mean((fixed - np.where(chosen, z, 0) @ p.decoder) ** 2) / variance
        )

    return loss


@pytest.mark.parametrize("n_dead", [0, 1, 4, F])
def test_topk_gradients_are_finite_differences(n_dead):
    rng = np.random.default_rng(n_dead)
    parameters, x = random_parameters(rng), rng.standard_normal((N, D))
    dead = np.arange(F) < n_dead
    function = detached_topk_loss(parameters, x, dead, 0.5)
    loss, gradients, counts = topk_gradients(parameters, x, K, dead, K_AUX, 0.5)
    assert loss == pytest.approx(function(parameters), rel=1e-12)
    assert counts.sum() <= N * K
    for name, expected in finite_differences(function, parameters).items():
        np.testing.assert_allclose(getattr(gradients, name), expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_topk_selected_but_negative_has_no_gradient():
    rng = np.random.default_rng(5)
    parameters, x = random_parameters(rng, bias=0.0), rng.standard_normal((N, D))
    parameters.encoder_bias[:] = -100.0
    _, gradients, counts = topk_gradients(parameters, x, K, np.zeros(F, bool), K_AUX, 0.5)
    assert counts.sum() == 0
    assert not gradients.encoder.any()
    assert not gradients.decoder.any()
    np.testing.assert_allclose(
        gradients.decoder_bias, -2 * (x - parameters.decoder_bias).sum(axis=0) / x.size
    )


def test_dead_features_below_zero_everywhere_get_a_gradient():
    rng = np.random.default_rng(6)
    parameters, x = random_parameters(rng), rng.standard_normal((N, D))
    dead = np.arange(F) < 2
    parameters.encoder_bias[dead] = -50.0
    _, gradients, counts = topk_gradients(parameters, x, K, dead, K_AUX, 1 / 32)
    assert not counts[dead].any()
    assert (np.abs(gradients.encoder_bias[dead]) > 0).all()


@pytest.mark.parametrize("l1", [0.0, 0.7])
def test_relu_l1_gradients_are_finite_differences(l1):
    rng = np.random.default_rng(11)
    parameters, x = random_parameters(rng), rng.standard_normal((N, D))
    parameters.encoder_bias[0] = -100.0  # never active

    def function(p):
        f = np.maximum(x @ p.encoder.T + p.encoder_bias, 0)
        error = x - f @ p.decoder - p.decoder_bias
        return np.mean(np.sum(error**2, axis=1) + l1 * f @ np.linalg.norm(p.decoder, axis=1))

    loss, gradients, counts = relu_l1_gradients(parameters, x, l1)
    assert loss == pytest.approx(function(parameters), rel=1e-12)
    assert counts[0] == 0
    for name, expected in finite_differences(function, parameters).items():
        np.testing.assert_allclose(getattr(gradients, name), expected, rtol=1e-6, atol=1e-8, err_msg=name)


def test_relu_l1_blocks_add_up(monkeypatch):
    rng = np.random.default_rng(12)
    parameters, x = random_parameters(rng), rng.standard_normal((150, D))
    loss, whole, counts = relu_l1_gradients(parameters, x, 0.7)
    monkeypatch.setattr("nqs_sae_service.sae.dense.BLOCK_ELEMENTS", 1)
    block_loss, blocks, block_counts = relu_l1_gradients(parameters, x, 0.7)
    assert block_loss == pytest.approx(loss)
    assert (block_counts == counts).all()
    for name in NAMES:
        np.testing.assert_allclose(getattr(blocks, name), getattr(whole, name), rtol=1e-12, atol=1e-14)


def test_relu_l1_without_any_activation_or_decoder():
    rng = np.random.default_rng(13)
    parameters, x = random_parameters(rng), rng.standard_normal((N, D))
    parameters.encoder_bias[:] = -100.0
    parameters.decoder[:] = 0
    loss, gradients, counts = relu_l1_gradients(parameters, x, 5.0)
    assert counts.sum() == 0
    assert loss == pytest.approx(np.mean(np.sum((x - parameters.decoder_bias) ** 2, axis=1)))
    for name in ("encoder", "decoder", "encoder_bias"):
        assert not getattr(gradients, name).any()


def stepped(parameters, x, k, dead, k_aux, alpha):
    """Loss, gradients and counts of one sparse step: the first moments of Adam are (1 - beta1) times the gradients."""
    adam = Adam(parameters)
    loss, counts = SparseStep(parameters, k, k_aux, alpha)(x, 0.0, dead, adam, 1e-3)
    return loss, Parameters(*(first / (1 - BETA1) for first, _ in adam.moments.values())), counts


def on_the_sphere(gradient, rows):
    """The gradient without its part along each row."""
    return gradient - np.sum(gradient * rows, axis=1, keepdims=True) * rows


@pytest.mark.parametrize(
    ("n", "width", "n_features", "k", "n_dead"),
    [
        (200, 32, 256, 8, 0),
        (200, 32, 256, 8, 40),
        (130, 7, 50, 50, 3),
        (1, 3, 1, 1, 0),
        (65, 5, 300, 1, 299),
        (70, 72, 331, 32, 331),
        (333, 9, 130, 3, 70),
    ],
)
def test_a_sparse_step_has_the_gradients_of_the_dense_twin(n, width, n_features, k, n_dead):
    rng = np.random.default_rng(n + k)
    single = random_parameters(rng, n_features, width, np.float32)
    double = Parameters(*(array.astype(np.float64) for array in vars(single).values()))
    x = rng.standard_normal((n, width)).astype(np.float32)
    dead = rng.permutation(n_features) < n_dead
    loss, gradients, counts = stepped(single, x, k, dead, 4, 1 / 32)
    expected_loss, expected, expected_counts = topk_gradients(
        double, x.astype(np.float64), k, dead, 4, 1 / 32
    )
    expected.decoder = on_the_sphere(expected.decoder, double.decoder)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (counts == expected_counts).all()
    for name in NAMES:
        reference = getattr(expected, name)
        assert np.abs(getattr(gradients, name) - reference).max() <= 2e-5 * np.abs(reference).max(), name


def test_a_dictionary_without_any_activation_learns_its_bias_alone():
    rng = np.random.default_rng(7)
    parameters, x = random_parameters(rng, dtype=np.float32), rng.standard_normal((N, D)).astype(np.float32)
    parameters.encoder_bias[:] = -100.0
    loss, gradients, counts = stepped(parameters, x, K, np.zeros(F, bool), K_AUX, 0.5)
    assert counts.sum() == 0
    assert loss > 0
    assert not gradients.encoder.any()
    assert not gradients.decoder.any()
    assert gradients.decoder_bias.all()


def test_sparse_steps_are_adam_on_the_sphere():
    """Three steps against the textbook in float64: gradients of the twin, projection, Adam, unit rows."""
    rng = np.random.default_rng(8)
    single = random_parameters(rng, 90, 20, np.float32)
    single.decoder /= np.linalg.norm(single.decoder, axis=1, keepdims=True)
    double = Parameters(*(array.astype(np.float64) for array in vars(single).values()))
    dead = np.arange(90) < 30
    step, adam = SparseStep(single, 4, 6, 0.5), Adam(single)
    moments = {name: [np.zeros_like(array), np.zeros_like(array)] for name, array in vars(double).items()}
    for t in range(1, 4):
        x = rng.standard_normal((64, 20)).astype(np.float32)
        loss, _ = step(x, 0.0, dead, adam, 0.01)
        expected, gradients, _ = topk_gradients(double, x.astype(np.float64), 4, dead, 6, 0.5)
        assert loss == pytest.approx(expected, rel=1e-4)
        gradients.decoder = on_the_sphere(gradients.decoder, double.decoder)
        for name, (m, v) in moments.items():
            g, parameter = getattr(gradients, name), getattr(double, name)
            m += (1 - BETA1) * (g - m)
            v += (1 - BETA2) * (g**2 - v)
            parameter -= 0.01 * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPSILON)
        double.decoder /= np.linalg.norm(double.decoder, axis=1, keepdims=True)
    for name in NAMES:
        np.testing.assert_allclose(getattr(single, name), getattr(double, name), atol=3e-4, err_msg=name)


def test_kernels_accept_an_empty_batch():
    p, x = random_parameters(np.random.default_rng(0), dtype=np.float32), np.empty((0, D), np.float32)
    values, indices = kernels.encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, K)
    assert values.shape == indices.shape == (0, K)
    error, squared = kernels.decode_error(x, p.decoder, p.decoder_bias, values, indices)
    assert (error.shape, squared.shape) == ((0, D), (0,))
    loss, gradients, counts = stepped(p, x, K, np.ones(F, bool), K_AUX, 0.5)
    assert loss == 0
    assert not any(array.any() for array in (*vars(gradients).values(), counts))


def test_chosen_features_compete_among_themselves():
    """The best of some features, positive or not, and the lower index where they tie."""
    rng = np.random.default_rng(9)
    encoder = rng.integers(-1, 2, (300, 4)).astype(np.float32)
    x = rng.integers(-2, 3, (100, 4)).astype(np.float32)
    bias, no_bias = rng.integers(-3, 1, 300).astype(np.float32), np.zeros(4, np.float32)
    for n_chosen in (1, 5, 64, 190):
        chosen = np.sort(rng.permutation(300)[:n_chosen])
        k = min(5, n_chosen)
        values, indices = kernels.encode_topk(x, encoder, bias, no_bias, k, positive=False, chosen=chosen)
        z = (x @ encoder.T + bias)[:, chosen]
        best = np.sort(np.argsort(-z, axis=1, kind="stable")[:, :k], axis=1)
        np.testing.assert_array_equal(indices, chosen[best])
        np.testing.assert_array_equal(values, np.take_along_axis(z, best, axis=1))


def test_counting_sort_keeps_the_order_of_the_inputs():
    rng = np.random.default_rng(10)
    indices = rng.integers(-1, 7, (50, 3)).astype(np.int32)
    values = rng.standard_normal((50, 3)).astype(np.float32)
    result = kernels.sort_by_feature(values, indices, 9)
    for j in range(9):
        own, (rows, places) = slice(result.start[j], result.start[j + 1]), np.nonzero(indices == j)
        np.testing.assert_array_equal(result.rows[own], rows)
        np.testing.assert_array_equal(result.values[own], values[rows, places])


def test_relu_l1_of_an_empty_batch_is_zero():
    loss, gradients, counts = relu_l1_gradients(
        random_parameters(np.random.default_rng(0)), np.empty((0, D)), 5.0
    )
    assert loss == 0
    assert not any(array.any() for array in (*vars(gradients).values(), counts))


@pytest.mark.parametrize("shape", [(13, 5), (3000, 32), (7,)])
def test_adam_is_the_textbook_one(shape):
    rng = np.random.default_rng(1)
    double = rng.standard_normal(shape)
    single = double.astype(np.float32)
    first, second = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    adam, m, v = Adam(Parameters(*[np.zeros(1, np.float32)] * 4)), np.zeros(shape), np.zeros(shape)
    for step in range(1, 4):
        g = rng.standard_normal(shape)
        kernels.adam_rows(single, first, second, g.astype(np.float32), adam.next(0.01))
        m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
        double -= 0.01 * (m / (1 - BETA1**step)) / (np.sqrt(v / (1 - BETA2**step)) + EPSILON)
    np.testing.assert_allclose(single, double, atol=2e-6)


@pytest.mark.parametrize("sizes", [(), (2, 5, F)])
@pytest.mark.parametrize("n_dead", [0, 4])
def test_gradients_of_nested_batches_are_finite_differences(sizes, n_dead):
    """The loss of BatchTopK and of Matryoshka written out, with selection, error and variance of its second term fixed."""
    rng = np.random.default_rng(n_dead)
    start, x = random_parameters(rng), rng.standard_normal((N, D))
    dead, prefixes = np.arange(F) < n_dead, sizes or (F,)
    z = (x - start.decoder_bias) @ start.encoder.T + start.encoder_bias
    active = (z >= np.sort(z, axis=None)[-N * K]) & (z > 0)
    assert len(set(active.sum(axis=1))) > 1
    chosen = select_topk(np.where(dead, z, -np.inf), K_AUX) & dead
    fixed = x - np.where(active, z, 0) @ start.decoder - start.decoder_bias
    variance = np.mean((fixed - fixed.mean(axis=0)) ** 2)

    def function(p):
        z = (x - p.decoder_bias) @ p.encoder.T + p.encoder_bias
        f, a = np.where(active, z, 0), np.where(chosen, z, 0)
        errors = [x - f[:, :m] @ p.decoder[:m] - p.decoder_bias for m in prefixes]
        auxiliary = 0.5 * np.mean((fixed - a @ p.decoder) ** 2) / variance if n_dead else 0
        return np.mean([np.mean(error**2) for error in errors]) + auxiliary

    start = Parameters(*(array.copy() for array in vars(start).values()))
    loss, gradients, counts = topk_gradients(start, x, K, dead, K_AUX, 0.5, True, sizes)
    assert loss == pytest.approx(function(start), rel=1e-12)
    assert counts.sum() == active.sum()
    for name, expected in finite_differences(function, start).items():
        np.testing.assert_allclose(getattr(gradients, name), expected, rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("share", [1, 4])
@pytest.mark.parametrize(
    ("n", "width", "n_features", "k", "n_dead", "sizes"),
    [
        (200, 32, 256, 8, 0, ()),
        (200, 32, 256, 8, 40, (16, 64, 256)),
        (130, 7, 50, 50, 3, (1, 2, 50)),
        (1, 3, 1, 1, 0, ()),
        (65, 5, 300, 1, 299, (100, 300)),
        (70, 72, 331, 32, 331, (5, 77, 331)),
    ],
)
def test_a_step_on_a_batch_has_the_gradients_of_the_dense_twin(
    n, width, n_features, k, n_dead, sizes, share, monkeypatch
):
    """Also where a few inputs take most of the active features, so that lists of candidates have to get longer."""
    monkeypatch.setattr("nqs_sae_service.sae.batchtopk.LONGER", 1)
    rng = np.random.default_rng(n + k)
    single = random_parameters(rng, n_features, width, np.float32)
    double = Parameters(*(array.astype(np.float64) for array in vars(single).values()))
    x = rng.standard_normal((n, width)).astype(np.float32)
    x[: n // share] *= 3
    dead, adam = rng.permutation(n_features) < n_dead, Adam(single)
    groups = groups_of(sizes or (n_features,), slice(0, n_features))
    step = SparseStep(single, k, 4, 1 / 32, choose=best_of_batch, groups=groups)
    loss, counts = step(x, 0.0, dead, adam, 1e-3)
    expected_loss, expected, expected_counts = topk_gradients(
        double, x.astype(np.float64), k, dead, 4, 1 / 32, True, sizes
    )
    expected.decoder = on_the_sphere(expected.decoder, double.decoder)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert (counts == expected_counts).all()
    for name, (first, _) in adam.moments.items():
        reference = getattr(expected, name)
        error = np.abs(first / (1 - BETA1) - reference).max()
        assert error <= 2e-5 * np.abs(reference).max(), name


def test_groups_are_what_each_nested_dictionary_adds():
    assert groups_of((2, 5, 11), slice(0, 11)) == [slice(0, 2), slice(2, 5), slice(5, 11)]
    assert groups_of((2, 5, 11), slice(3, 7)) == [slice(0, 0), slice(0, 2), slice(2, 4)]


def test_where_a_batch_ties_all_equal_entries_are_active():
    values = np.array([[3, 1, 1, 0], [2, 1, 0, 0]], np.float32)
    indices = np.array([[0, 2, 5, -1], [1, 4, -1, -1]], np.int32)
    found, places, bound = best_and_bound(
        lambda k: (values[:, :k].copy(), indices[:, :k].copy()), 2, 4, Ranks()
    )
    assert bound == 1
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(places, indices)
    found, places, bound = best_and_bound(
        lambda k: (values[:, :k].copy(), indices[:, :k].copy()), 1, 4, Ranks()
    )
    assert bound == 2
    np.testing.assert_array_equal(places.max(axis=1), [0, 1])


def check(gradients, expected, without=()):
    for name in expected.keys() - set(without):
        np.testing.assert_allclose(
            getattr(gradients, name), expected[name], rtol=1e-6, atol=1e-8, err_msg=name
        )


def gated_parameters(rng):
    extra = (0.3 * rng.standard_normal(F), 0.2 * rng.standard_normal(F))
    return GatedParameters(*vars(random_parameters(rng)).values(), *extra)


@pytest.mark.parametrize("l1", [0.0, 0.7])
def test_gated_gradients_are_finite_differences(l1, monkeypatch):
    rng = np.random.default_rng(21)
    parameters, x = gated_parameters(rng), rng.standard_normal((150, D))
    parameters.gate_bias[0], parameters.encoder_bias[1] = -100.0, -100.0  # a closed gate, no magnitude
    decoder, decoder_bias = parameters.decoder.copy(), parameters.decoder_bias.copy()  # detached

    def function(p):
        y = x @ p.encoder.T
        gate = np.maximum(y + p.gate_bias, 0)
        f = np.where(gate > 0, np.maximum(np.exp(p.log_scale) * y + p.encoder_bias, 0), 0)
        error, of_gate = x - f @ p.decoder - p.decoder_bias, x - gate @ decoder - decoder_bias
        return np.mean(np.sum(error**2 + of_gate**2, axis=1) + l1 * gate.sum(axis=1))

    losses, gradients, counts = gated_gradients(parameters, x, l1)
    assert sum(losses.values()) == pytest.approx(function(parameters), rel=1e-12)
    assert not counts[:2].any()
    assert counts[2:].all()
    assert not any(array[0].any() for name, array in vars(gradients).items() if name != "decoder_bias")
    check(gradients, finite_differences(function, parameters))
    monkeypatch.setattr("nqs_sae_service.sae.dense.BLOCK_ELEMENTS", 1)
    check(gated_gradients(parameters, x, l1)[1], vars(gradients))


def test_a_gate_is_a_threshold():
    """The dictionary that is kept does what the two paths did."""
    rng = np.random.default_rng(22)
    learner = Gated(kind="gated", features=F).learner(rng, rng.standard_normal((20, D)).astype(np.float32))
    learner.parameters = p = gated_parameters(rng)
    x, end = rng.standard_normal((500, D)), learner.finished()
    y = x @ p.encoder.T
    f = np.where(y + p.gate_bias > 0, np.maximum(np.exp(p.log_scale) * y + p.encoder_bias, 0), 0)
    kept = Dictionary("gated", 0, *vars(end).values())
    assert (f > 0).any(axis=0).all()
    np.testing.assert_allclose(kept.encode(x), f, atol=1e-12)


def jumprelu_parameters(rng, dtype=np.float64):
    p = random_parameters(rng, dtype=dtype)
    return JumpReluParameters(*vars(p).values(), rng.uniform(-2, 0, F).astype(dtype))


@pytest.mark.parametrize("l0", [0.0, 0.7])
def test_jumprelu_gradients_are_finite_differences_beside_the_step(l0, monkeypatch):
    """The step held fixed: of encoder, decoder and biases; of the thresholds the formula, entry by entry."""
    rng = np.random.default_rng(31)
    parameters, x, eps = jumprelu_parameters(rng), rng.standard_normal((150, D)), 0.6
    parameters.encoder_bias[0] = -100.0
    theta = np.exp(parameters.log_threshold)
    active = x @ parameters.encoder.T + parameters.encoder_bias > theta

    def function(p):
        f = np.where(active, x @ p.encoder.T + p.encoder_bias, 0)
        error = x - f @ p.decoder - p.decoder_bias
        return np.mean(np.sum(error**2, axis=1) + l0 * active.sum(axis=1))

    losses, gradients, counts = jumprelu_gradients(parameters, x, l0, eps)
    assert sum(losses.values()) == pytest.approx(function(parameters), rel=1e-12)
    assert (counts == active.sum(axis=0)).all()
    check(gradients, finite_differences(function, parameters), without=["log_threshold"])
    z = x @ parameters.encoder.T + parameters.encoder_bias
    error = x - np.where(active, z, 0) @ parameters.decoder - parameters.decoder_bias
    expected = np.zeros(F)
    for n, i in np.ndindex(z.shape):
        if abs(z[n, i] - theta[i]) < eps / 2:
            by_f = -2 * error[n] @ parameters.decoder[i]
            expected[i] += -theta[i] / eps * (l0 + theta[i] * by_f) / len(x)
    assert (expected[1:] != 0).all()
    np.testing.assert_allclose(gradients.log_threshold, expected, rtol=1e-12)
    monkeypatch.setattr("nqs_sae_service.sae.dense.BLOCK_ELEMENTS", 1)
    check(jumprelu_gradients(parameters, x, l0, eps)[1], vars(gradients))


def test_the_gradient_of_a_threshold_is_that_of_the_mean_loss():
    """Over many inputs the loss is smooth in theta, and the straight-through estimate is its derivative for a narrow window.

    One feature in one dimension, so that moving theta changes nothing else.
    """
    x, one = np.random.default_rng(32).normal(size=(400_000, 1)), np.ones((1, 1))
    zero, l0, step = np.zeros(1), 0.4, 0.05

    def loss(t):
        p = JumpReluParameters(one, 0.8 * one, zero, zero, np.array([t]))
        losses, gradients, _ = jumprelu_gradients(p, x, l0, 0.1)
        return sum(losses.values()), gradients.log_threshold[0]

    for t in (-1.5, -0.5, 0.3):
        slope = (loss(t + step)[0] - loss(t - step)[0]) / (2 * step)
        assert loss(t)[1] == pytest.approx(slope, abs=0.01)


def test_the_scale_of_pre_activations():
    rng = np.random.default_rng(33)
    p, x = random_parameters(rng), rng.standard_normal((50, D)) + 1
    z = x @ p.encoder.T + p.encoder_bias
    assert scale_of_z(p.encoder, p.encoder_bias, x) == pytest.approx(np.sqrt(np.mean(z**2)), rel=1e-12)
    assert scale_of_z(0 * p.encoder, 0 * p.encoder_bias, x) == 1


@pytest.mark.parametrize(
    ("gradients", "parameters"),
    [
        (lambda p, x: gated_gradients(p, x, 1.0), gated_parameters(np.random.default_rng(0))),
        (lambda p, x: jumprelu_gradients(p, x, 1.0, 0.1), jumprelu_parameters(np.random.default_rng(0))),
    ],
)
def test_without_inputs_or_activations_nothing_but_the_bias_learns(gradients, parameters):
    losses, found, counts = gradients(parameters, np.empty((0, D)))
    assert not any([*losses.values(), *(array.any() for array in (*vars(found).values(), counts))])
    for name in {"encoder_bias", "gate_bias"} & vars(parameters).keys():
        getattr(parameters, name)[:] = -100.0
    _, found, counts = gradients(parameters, np.random.default_rng(1).standard_normal((N, D)))
    assert not counts.any()
    assert [name for name, array in vars(found).items() if array.any()] == ["decoder_bias"]


@pytest.mark.parametrize("kind", ["gated", "jumprelu"])
def test_a_dense_step_keeps_decoder_rows_on_the_sphere(kind):
    rng = np.random.default_rng(41)
    x = rng.standard_normal((200, D)).astype(np.float32)
    learner = KINDS[kind](kind=kind, features=F).learner(rng, x)
    adam = Adam(learner.parameters)
    losses = [learner.step(x, 1.0, np.zeros(F, bool), adam, 0.01)[0] for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(np.linalg.norm(learner.parameters.decoder, axis=1), 1, atol=1e-6)
