"""A dictionary: dense against sparse, ties, shapes, files."""

import numpy as np
import pytest

from nqs_sae_service.datasets.schema import labelled
from nqs_sae_service.sae.dictionary import Dictionary, select_topk


def make(kind="topk", n_features=40, width=6, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((n_features, width), (n_features, width), (n_features,), (width,))
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    if kind == "jumprelu":
        arrays.append(rng.uniform(0, 1, n_features).astype(np.float32))
    return Dictionary(kind, 4 if kind == "topk" else 0, *arrays)


def dense(values, indices, n_features):
    f = np.zeros((len(values), n_features + 1), np.float32)
    np.add.at(f, (np.arange(len(values))[:, None], np.where(indices < 0, n_features, indices)), values)
    return f[:, :-1]


def test_select_topk_is_a_stable_sort():
    z = np.random.default_rng(0).integers(-3, 4, (200, 30)).astype(float)
    for k in (1, 5, 30, 40):
        expected = np.zeros(z.shape, bool)
        np.put_along_axis(expected, np.argsort(-z, axis=1, kind="stable")[:, :k], True, axis=1)
        assert (select_topk(z, k) == expected).all()


@pytest.mark.parametrize("n_features", [1, 3, 63, 64, 65, 257, 1000])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_kernel_and_reference_choose_alike_with_many_ties(n_features, k):
    """Small integers are exact in any order of summation, and tie all the time."""
    rng = np.random.default_rng(k)
    shapes = ((n_features, 5), (n_features, 5), (n_features,), (5,))
    arrays = [rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes]
    dictionary = Dictionary("topk", k, *arrays)
    x = rng.integers(-2, 3, (150, 5)).astype(np.float32)
    values, indices = dictionary.encode_sparse(x)
    assert ((values > 0) == (indices >= 0)).all()
    np.testing.assert_array_equal(dense(values, indices, n_features), dictionary.encode(x))


@pytest.mark.parametrize("stride", [1, 2, 32, 64, 96, 128, 500])
@pytest.mark.parametrize("k", [1, 3, 8, 40])
def test_kernel_finds_the_largest_wherever_they_are(stride, k):
    """Large entries a regular distance apart all fall into one chunk of the search."""
    rng = np.random.default_rng(stride)
    z = rng.standard_normal(1000).astype(np.float32)
    z[::stride] += 10
    for row in (z, -z, np.abs(z), np.where(rng.random(1000) < 0.9, -1, z).astype(np.float32)):
        zero = np.zeros(1000, np.float32)
        dictionary = Dictionary("topk", k, row[:, None], row[:, None], zero, np.zeros(1, np.float32))
        values, indices = dictionary.encode_sparse(np.ones((3, 1), np.float32))
        expected = np.sort(np.argsort(-row, kind="stable")[:k])
        expected = expected[row[expected] > 0]
        for i in range(3):
            np.testing.assert_array_equal(indices[i][indices[i] >= 0], expected)
            np.testing.assert_array_equal(values[i][indices[i] >= 0], row[expected])


@pytest.mark.parametrize("kind", ["topk", "relu-l1", "jumprelu"])
def test_every_way_to_encode_agrees(kind, monkeypatch):
    dictionary = make(kind)
    x = np.random.default_rng(1).standard_normal((33, 3, 6))
    f = dictionary.encode(x)
    assert f.shape == (33, 3, 40)
    assert f.dtype == np.float64
    if kind == "jumprelu":
        z = (x - dictionary.decoder_bias) @ dictionary.encoder.T + dictionary.encoder_bias
        np.testing.assert_array_equal(f, np.where(z > dictionary.threshold, z, 0))
        assert (f > 0).any()
    if kind == "topk":
        assert ((f > 0).sum(axis=-1) <= 4).all()
    x_hat = f @ dictionary.decoder + dictionary.decoder_bias
    for precision, tolerance in ((np.float64, 1e-12), (np.float32, 1e-4)):
        for block in (2**24, 100):
            monkeypatch.setattr("nqs_sae_service.sae.dictionary.BLOCK_ELEMENTS", block)
            y = x.astype(precision)
            np.testing.assert_allclose(dictionary.decode(dictionary.encode(y)), x_hat, atol=tolerance)
            np.testing.assert_allclose(dictionary.reconstruct(y), x_hat, atol=tolerance)
            np.testing.assert_allclose(dictionary.feature(y, 7), f[..., 7], atol=tolerance)
            np.testing.assert_allclose(dictionary.token_mean(y), f.mean(axis=1), atol=tolerance)
            for result in (dictionary.reconstruct(y), dictionary.feature(y, 7), dictionary.token_mean(y)):
                assert result.dtype == precision


@pytest.mark.parametrize("kind", ["topk", "relu-l1", "jumprelu"])
def test_no_inputs_no_features(kind):
    dictionary = make(kind)
    for precision in (np.float32, np.float64):
        x = np.empty((0, 6), precision)
        assert dictionary.encode(x).shape == (0, 40)
        assert dictionary.reconstruct(x).shape == (0, 6)
        assert dictionary.feature(x, 0).shape == (0,)
        assert dictionary.token_mean(np.empty((0, 3, 6), precision)).shape == (0, 40)


def test_sparse_encoding_is_for_topk_only():
    with pytest.raises(ValueError, match="use encode"):
        make("relu-l1").encode_sparse(np.zeros((1, 6), np.float32))


def test_the_same_row_encodes_to_the_same_bits_in_any_company():
    dictionary, x = make(), np.random.default_rng(2).standard_normal((100, 6)).astype(np.float32)
    whole = dictionary.encode_sparse(x)
    for rows in (slice(0, 1), slice(64, 71), slice(3, 99)):
        part = dictionary.encode_sparse(x[rows])
        assert (part[0] == whole[0][rows]).all()
        assert (part[1] == whole[1][rows]).all()


def test_reads_itself_from_a_dataset():
    pairs = {
        (layer, seed): make(seed=10 * seed + len(layer))
        for layer in ("residual_1", "mlp_1")
        for seed in (1, 2)
    }
    names = ("encoder", "decoder", "encoder_bias", "decoder_bias")

    def stacked(name):
        return [[getattr(pairs[layer, seed], name) for seed in (1, 2)] for layer in ("residual_1", "mlp_1")]

    variables = {prefix + name: stacked(name) for prefix in ("", "untrained_") for name in names}
    labels = {"layer": ["residual_1", "mlp_1"], "sae_seed": [1, 2], "initialisation": [1, 2]}
    ds = labelled("sae", variables, labels, {"kind": "topk", "k": 4, "input": "token"})
    for (layer, seed), expected in pairs.items():
        for read in (
            Dictionary.from_dataset(ds, layer, seed),
            Dictionary.untrained_from_dataset(ds, layer, seed),
        ):
            assert (read.kind, read.k) == ("topk", 4)
            for name in names:
                np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))


def test_one_feature_is_its_column_also_where_entries_tie():
    """Integers are exact in float32, so ties are real: the lower index must win in every path."""
    generator = np.random.default_rng(4)
    encoder = generator.integers(-2, 3, size=(12, 5)).astype(np.float32)
    encoder[7] = encoder[2]
    zero = np.zeros(12, np.float32)
    dictionary = Dictionary("topk", 3, encoder, encoder, zero, np.zeros(5, np.float32))
    x = generator.integers(-2, 3, size=(400, 5)).astype(np.float32)
    f = dictionary.encode(x)
    assert (f > 0).any(axis=0).sum() > 6
    for i in range(12):
        np.testing.assert_array_equal(dictionary.feature(x, i), f[:, i])


@pytest.mark.parametrize("k", [1, 8, 40])
def test_the_order_of_the_features_does_not_matter_to_the_choice(k):
    """A running bound is worst off when every feature beats those before it, its ties when all are equal."""
    from nqs_sae_service.engine.threads import configure_threads

    rng, n_features = np.random.default_rng(k), 3000
    rising = np.arange(1, n_features + 1, dtype=np.float32)
    steps, equal = np.floor(rising / 7), np.ones(n_features, np.float32)
    zero = np.zeros(n_features, np.float32)
    rows = [rising, rising[::-1], steps, steps[::-1], equal, -equal, zero, rng.permutation(steps)]
    encoder = np.stack(rows, axis=1).astype(np.float32)
    dictionary = Dictionary("topk", k, encoder, encoder, zero, np.zeros(len(rows), np.float32))
    x = np.tile(np.eye(len(rows), dtype=np.float32), (9, 1))
    results = []
    try:
        for threads in (1, 0):
            configure_threads(threads)
            results.append(dictionary.encode_sparse(x))
    finally:
        configure_threads()
    for values, indices in results:
        np.testing.assert_array_equal(dense(values, indices, n_features), dictionary.encode(x))
        np.testing.assert_array_equal(indices, results[0][1])
