"""What is particular to a kind: thresholds that move and are calibrated, parts that stay, components, and every kind's file."""

import numpy as np
import pytest

from nqs_sae_service.datasets.schema import labelled
from nqs_sae_service.sae import KINDS
from nqs_sae_service.sae.components import halves, nearest_rotation, power
from nqs_sae_service.sae.dictionary import ARRAYS, Dictionary
from nqs_sae_service.sae.frozen import hold_within
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.metrics import explained_variance, l0
from nqs_sae_service.sae.planted import Regime, planted
from nqs_sae_service.sae.training import Training, unit_rows

DATA = planted(Regime(features=24, width=12, active=2.0), 3000, 3).x + np.float32(0.7)


def silent(done, total, message):
    pass


def record(kind, **fields):
    sized = {"k": 3} if "k" in KINDS[kind].model_fields else {}
    sized |= {"l1": 1.0} if kind == "relu-l1" else {}
    return KINDS[kind](**{"kind": kind, "features": 30, "steps": 60, "batch": 256} | sized | fields)


@pytest.fixture(scope="module")
def trained():
    """A dictionary of every kind, and its history."""
    return {kind: record(kind).train(DATA, 1, silent) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_dictionary_survives_its_file(kind, trained, tmp_path):
    dictionary, _ = trained[kind]
    assert (dictionary.threshold is not None) == KINDS[kind].thresholds
    arrays = {name: getattr(dictionary, name) for name in ARRAYS if getattr(dictionary, name) is not None}
    variables = {p + name: array[None, None] for p in ("", "untrained_") for name, array in arrays.items()}
    labels = {"layer": ["head"], "sae_seed": [1], "initialisation": [1]}
    ds = labelled("sae", variables, labels, {"kind": kind, "k": dictionary.k, "input": "token"})
    for read in (
        Dictionary.from_dataset(ds, "head", 1),
        Dictionary.untrained_from_dataset(ds, "head", 1),
    ):
        assert (read.kind, read.k) == (kind, dictionary.k)
        for name, array in arrays.items():
            np.testing.assert_array_equal(getattr(read, name), array, err_msg=name)
        np.testing.assert_array_equal(read.encode(DATA), dictionary.encode(DATA))


@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_the_loss_and_repeats_to_the_bit(kind, trained):
    dictionary, history = trained[kind]
    if kind == "pca":  # exact from the first batch on
        assert history.loss == pytest.approx(np.full(60, history.loss[0]), rel=0.25)
    else:  # penalties grow over the first steps
        assert history.loss[-5:].mean() < 0.95 * history.loss[5:10].mean()
    again, _ = record(kind).train(DATA, 1, silent)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(again, name), getattr(dictionary, name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_changes_nothing(kind, trained):
    """Interrupted in the middle: also what a learner keeps beside its parameters is as it was."""
    begun = Training(record(kind), Held(DATA), [1])
    for _ in range(33):
        begun.advance()
    state = {name: array.copy() for name, array in begun.state().items()}
    other = Training(record(kind), Held(DATA), [1])
    other.restore(state)
    while other.step < 60:
        other.advance()
    [(dictionary, history)] = other.finished()
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(dictionary, name), getattr(trained[kind][0], name))
    np.testing.assert_array_equal(history.loss, trained[kind][1].loss)


@pytest.mark.parametrize("kind", KINDS)
def test_history_and_dictionary_agree_on_what_is_active(kind, trained):
    dictionary, history = trained[kind]
    if dictionary.k:
        assert dictionary.k == 3
        assert ((dictionary.encode(DATA) > 0).sum(axis=1) <= 3).all()
    assert history.l0[-5:].mean() == pytest.approx(l0(dictionary, Held(DATA)), rel=0.15)


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_a_threshold_is_calibrated_to_the_wanted_number(kind, trained):
    dictionary, _ = trained[kind]
    assert len(set(dictionary.threshold)) == 1
    assert dictionary.threshold[0] > 0
    assert l0(dictionary, Held(DATA)) == pytest.approx(3, rel=0.03)
    assert len(set((dictionary.encode(DATA) > 0).sum(axis=1))) > 2


def test_thresholds_of_jumprelu_move_and_part():
    def log_thresholds(l0):
        training = Training(record("jumprelu", l0=l0, steps=80), Held(DATA), [1])
        first = training.state()["0.log_threshold"].copy()
        while training.step < 80:
            training.advance()
        return training.state()["0.log_threshold"] - first

    free, penalised = log_thresholds(0.0), log_thresholds(3.0)
    assert (penalised != 0).all()
    assert np.std(penalised) > 1e-3
    assert penalised.mean() > free.mean() + 0.02


def test_what_is_frozen_stays_and_the_rest_learns():
    starts, ends = {}, {}
    for kind in ("frozen-decoder", "soft-frozen-decoder", "frozen-encoder"):
        training = Training(record(kind, learning_rate=0.05), Held(DATA), [1])
        starts[kind] = {name: array.copy() for name, array in training.state().items()}
        while training.step < 60:
            training.advance()
        ends[kind] = training.state()

    def cosines(kind):
        rows = ends[kind]["0.decoder"]
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        return (rows * starts[kind]["0.decoder"]).sum(axis=1)

    for kind, part, others in (
        ("frozen-decoder", "decoder", ("encoder", "encoder_bias", "decoder_bias")),
        ("frozen-encoder", "encoder", ("decoder", "encoder_bias", "decoder_bias")),
    ):
        np.testing.assert_array_equal(ends[kind][f"0.{part}"], starts[kind][f"0.{part}"])
        assert all((ends[kind][f"0.{name}"] != starts[kind][f"0.{name}"]).any() for name in others)
    soft = cosines("soft-frozen-decoder")
    assert (soft >= 0.8 - 1e-5).all()
    assert (soft < 0.801).any()
    assert cosines("frozen-encoder").min() < 0.5


def test_rows_are_turned_no_further_than_needed():
    rng = np.random.default_rng(1)
    start, rows = unit_rows(rng, 50, 4), unit_rows(rng, 50, 4)
    before = rows.copy()
    hold_within(rows, start, 0.3)
    cosine = (before * start).sum(axis=1)
    inside = cosine >= 0.3
    assert inside.any()
    np.testing.assert_array_equal(rows[inside], before[inside])
    np.testing.assert_allclose((rows * start).sum(axis=1)[~inside], 0.3, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    turned = np.arccos(0.3) + np.arccos((rows * before).sum(axis=1)[~inside])
    np.testing.assert_allclose(turned, np.arccos(cosine[~inside]), atol=2e-3)  # along the great circle


def test_principal_components_are_those_of_the_covariance():
    """All of them together explain everything; the first ones are the eigenvectors, in both signs."""
    dictionary, _ = record("pca", features=24, k=12, steps=60).train(DATA, 1, silent)
    assert explained_variance(Held(DATA), dictionary.reconstruct) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(dictionary.decoder[::2], -dictionary.decoder[1::2])
    centred = DATA - DATA.mean(axis=0, dtype=np.float64)
    eigenvectors = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    found = np.abs((dictionary.decoder[::2] * eigenvectors.T).sum(axis=1))
    assert found[0] > 0.99
    few, _ = record("pca", features=7, k=3).train(DATA, 1, silent)
    assert few.decoder[:6].all()
    np.testing.assert_array_equal(few.decoder[0], -few.decoder[1])
    many, _ = record("pca", features=40).train(DATA, 1, silent)
    assert not many.decoder[24:].any()
    assert not (many.encode(DATA)[:, 24:]).any()


def test_independent_components_are_separated():
    rng = np.random.default_rng(4)
    mixing = rng.standard_normal((6, 6))
    x = (rng.laplace(size=(8000, 6)) @ mixing + 2).astype(np.float32)
    dictionary, _ = KINDS["ica"](kind="ica", features=12, k=6, steps=60, batch=2000).train(x, 1, silent)
    rows = mixing / np.linalg.norm(mixing, axis=1, keepdims=True)
    assert (dictionary.decoder @ rows.T).max(axis=0).min() > 0.99
    assert explained_variance(Held(x), dictionary.reconstruct) > 0.9999


def test_algebra_of_components():
    rng = np.random.default_rng(5)
    half = rng.standard_normal((5, 3))
    covariance = half @ half.T  # of rank 3
    np.testing.assert_allclose(power(covariance, 0.5) @ power(covariance, 0.5), covariance, atol=1e-10)
    root = power(covariance, -0.5)
    projector = root @ covariance @ root
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-8)
    assert np.trace(projector) == pytest.approx(3)
    turned = nearest_rotation(half @ rng.standard_normal((3, 5)))
    np.testing.assert_allclose(turned @ turned.T, np.eye(5), atol=1e-12)
    encoder, decoder = halves(covariance, turned, 10)
    x = (half @ rng.standard_normal((3, 40))).T
    x_hat = np.maximum(x @ encoder.T, 0) @ decoder
    np.testing.assert_allclose(x_hat, x, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [("batchtopk", {"k": 31}, "k"), ("matryoshka", {"k_aux": 31}, "k_aux"), ("ica", {"k": 31}, "k")],
)
def test_findings_of_kinds(kind, fields, key):
    assert [finding.key for finding in record(kind, **fields).findings({})] == [key]


def test_sizes_of_nested_dictionaries():
    assert record("matryoshka", features=100, levels=4).sizes == [12, 25, 50, 100]
    assert record("matryoshka", features=2, levels=5, k=1).sizes == [1, 2]
    assert record("matryoshka", levels=1).sizes == [30]
