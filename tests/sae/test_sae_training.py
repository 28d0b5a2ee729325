"""Training: folding, recovery of a planted dictionary, dead features, determinism, and what it refuses."""

import numpy as np
import pytest

from nqs_sae_service.errors import NumericalError
from nqs_sae_service.sae import KINDS, ReluL1, TopK
from nqs_sae_service.sae.dictionary import select_topk
from nqs_sae_service.sae.inputs import Held
from nqs_sae_service.sae.metrics import explained_variance
from nqs_sae_service.sae.topk import TopKLearner, best_length
from nqs_sae_service.sae.training import Adam, Parameters, Thresholded, fold, normalisation, unit_rows


def silent(done, total, message):
    pass


def planted(n_features=32, width=32, active=2, n=6000, seed=0):
    """Sparse mixtures of random directions around a large mean: inputs (n, width) float32, directions (F, width)."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0][:n_features]
    f = np.where(
        rng.random((n, n_features)).argsort(axis=1) < active, rng.uniform(0.5, 1.5, (n, n_features)), 0
    )
    return (0.3 * f @ directions + 5.0).astype(np.float32), directions


def topk(**fields):
    return TopK(**{"kind": "topk", "features": 64, "k": 2, "steps": 400, "batch": 512} | fields)


def relu_l1(**fields):
    return ReluL1(**{"kind": "relu-l1", "features": 64, "l1": 1.0, "steps": 600, "batch": 512} | fields)


@pytest.mark.parametrize("record", [topk(), relu_l1()], ids=lambda record: record.kind)
def test_planted_dictionary_is_recovered(record):
    x, directions = planted()
    dictionary, history = record.train(x, 1, silent)
    decoder = dictionary.decoder / np.linalg.norm(dictionary.decoder, axis=1, keepdims=True)
    assert (directions @ decoder.T).max(axis=1).mean() >= 0.95
    assert explained_variance(Held(x), dictionary.reconstruct) > 0.85
    assert history.loss.shape == history.l0.shape == history.dead_fraction.shape == (record.steps,)
    assert history.loss[-1] < 0.5 * history.loss[0]


@pytest.mark.parametrize("kind", ["topk", "relu-l1", "jumprelu"])
def test_folding_is_exact(kind):
    """The folded dictionary on raw inputs does what the trained one does on centred, scaled inputs."""
    rng = np.random.default_rng(3)
    shapes = ((20, 6), (20, 6), (20,), (6,))
    trained = Parameters(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))
    raw = rng.standard_normal((50, 6)) * 0.1 + 0.7
    mean, scale = normalisation(Held(raw.astype(np.float32)))
    scaled = scale * (raw - mean)
    assert np.mean(np.sum(scaled**2, axis=1)) == pytest.approx(6, rel=1e-5)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    z = (scaled - trained.decoder_bias) @ trained.encoder.T + trained.encoder_bias
    f = np.maximum(np.where(select_topk(z, 4), z, 0) if kind == "topk" else z, 0)
    if kind == "jumprelu":
        trained = Thresholded(**vars(trained), threshold=rng.uniform(0, 1, 20).astype(np.float32))
        f = np.where(z > trained.threshold, z, 0)
    x_hat = f @ trained.decoder + trained.decoder_bias
    folded = fold(trained, kind, 4 if kind == "topk" else 0, mean, scale)
    np.testing.assert_allclose(scale * folded.encode(raw), f, atol=2e-4)
    np.testing.assert_allclose(folded.reconstruct(raw), mean + x_hat / scale, atol=2e-6)


def test_relu_l1_ends_in_the_shared_convention():
    rng = np.random.default_rng(4)
    learner = relu_l1(features=9).learner(rng, np.zeros((1, 5), np.float32))
    p = learner.parameters
    for array in vars(p).values():
        array[...] = rng.standard_normal(array.shape)
    x, end = rng.standard_normal((10, 5)), learner.finished()
    np.testing.assert_allclose(
        (x - end.decoder_bias) @ end.encoder.T + end.encoder_bias, x @ p.encoder.T + p.encoder_bias, atol=1e-5
    )


def test_decoder_rows_stay_unit():
    x, _ = planted(n=1000)
    dictionary, _ = topk(steps=30).train(x, 1, silent)
    np.testing.assert_allclose(np.linalg.norm(dictionary.decoder, axis=1), 1, atol=1e-6)


def test_first_lengths_are_the_best_common_factor():
    rng = np.random.default_rng(5)
    decoder, x = unit_rows(rng, 40, 8), rng.standard_normal((300, 8)).astype(np.float32)
    best = best_length(decoder, 3, x)

    def loss(factor):
        z = x.astype(np.float64) @ decoder.T * factor
        return np.mean((x - np.where(select_topk(z, 3), np.maximum(z, 0), 0) @ decoder) ** 2)

    assert loss(best) < min(loss(0.98 * best), loss(1.02 * best))


@pytest.mark.parametrize(("coefficient", "revived"), [(1 / 32, True), (0.0, False)])
def test_auxiliary_loss_revives_dead_features(coefficient, revived):
    """Features pushed below zero everywhere fire again with AuxK, and never without."""
    x, _ = planted(n=2000)
    mean, scale = normalisation(Held(x))
    x = ((x - mean) * scale).astype(np.float32)
    learner = TopKLearner(topk(aux_coefficient=coefficient), np.random.default_rng(0), x)
    pushed = np.arange(64) < 40
    learner.parameters.encoder_bias[pushed] = -8.0
    adam, fired = Adam(learner.parameters), np.zeros(64, bool)
    for _ in range(400):
        _, counts = learner.step(x[:500], 0.0, pushed & ~fired, adam, 0.01)
        fired |= counts > 0
    assert fired[pushed].mean() > 0.5 if revived else not fired[pushed].any()


@pytest.mark.parametrize(
    "record", [topk(steps=12, dead_after=2000), relu_l1(steps=12)], ids=lambda record: record.kind
)
def test_same_seed_same_bits_other_seed_others(record):
    x, _ = planted(n=1300)
    (first, one), (second, two), (other, _) = (record.train(x, seed, silent) for seed in (1, 1, 2))
    for name in ("encoder", "decoder", "encoder_bias", "decoder_bias"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in ("loss", "l0", "dead_fraction"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(first.encoder, other.encoder)


def test_topk_bits_do_not_depend_on_the_number_of_threads():
    from nqs_sae_service.engine.threads import configure_threads

    x, _ = planted(n=1300)
    try:
        results = []
        for threads in (1, 0):
            configure_threads(threads)
            results.append(topk(steps=12, dead_after=1000).train(x, 1, silent)[0])
    finally:
        configure_threads()
    for name in ("encoder", "decoder", "encoder_bias", "decoder_bias"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_progress_is_reported_and_can_stop_the_training():
    x, _ = planted(n=300)
    seen = []
    topk(steps=7).train(x, 1, lambda done, total, message: seen.append((done, total)))
    assert seen == [(step, 7) for step in range(1, 8)]

    def stop(done, total, message):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        topk(steps=7).train(x, 1, stop)


def test_dead_fraction_counts_features_that_stopped_firing():
    x, _ = planted(n=1000)
    _, history = topk(features=500, k=1, steps=6, batch=100, dead_after=300, aux_coefficient=0.0).train(
        x, 1, silent
    )
    assert (history.dead_fraction[:2] == 0).all()
    assert history.dead_fraction[2] > 0.1
    assert (history.l0 <= 1).all()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("n", [1, 5])
def test_few_inputs_make_small_batches(kind, n):
    x = np.random.default_rng(n).standard_normal((n + 1, 4)).astype(np.float32)
    dictionary, history = KINDS[kind](
        kind=kind, features=8, steps=3, batch=4096, **({"k": 8} if kind == "topk" else {})
    ).train(x, 1, silent)
    assert np.isfinite(history.loss).all()
    assert np.isfinite(dictionary.reconstruct(x)).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.empty((0, 4), np.float32), "no activations"),
        (np.full((10, 4), 3.3, np.float32), "the same for every input"),
        (np.full((10, 4), 1e-30, np.float32), "the same for every input"),
        (np.full((10, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_inputs_without_anything_to_learn_are_refused(x, message):
    with pytest.raises(NumericalError, match=message):
        topk(steps=3).train(x, 1, silent)


@pytest.mark.parametrize(
    "kind", sorted(KINDS.keys() - {"pca", "ica"})
)  # these have nothing that could diverge
def test_divergence_is_an_error_with_a_remedy(kind, monkeypatch):
    x, _ = planted(n=300)
    record = KINDS[kind](kind=kind, steps=4, features=16)
    monkeypatch.setattr(type(record), "learner", _exploding(type(record).learner))
    with pytest.raises(NumericalError, match=r"lower sae\.learning_rate"):
        record.train(x, 1, silent)


def _exploding(learner):
    """Initial parameters so large that the first squares overflow."""

    def start(self, generator, sample, ranks):
        result = learner(self, generator, sample, ranks)
        result.parameters.encoder *= np.float32(1e30)
        return result

    return start
