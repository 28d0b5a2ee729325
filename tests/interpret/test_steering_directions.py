"""Every direction that edits a layer, and the natural gradient among them, against full summation on 12 sites."""

import numpy as np
import pytest

from nqs_sae_service.interpret import steering
from nqs_sae_service.interpret.atlas import DecodedLayer, atlas, tangents
from nqs_sae_service.interpret.directions import (
    ClampDirection,
    FeatureDirection,
    FeaturesDirection,
    ShiftDirection,
    difference_of_means,
    linear_probe,
    principal_component,
    random_unit_vector,
)
from nqs_sae_service.interpret.expectation import Exact
from nqs_sae_service.interpret.natural_gradient import metric, steepest
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.states import Transformer, Wavefunction
from nqs_sae_service.states.projection import Symmetry

SITES, WIDTH, FEATURES = 12, 8, 10
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
NAMES = ("abs_magnetization", "half_chain_correlation", "sigma_x", "local_energy")
OBSERVABLES = tuple(make_observable(n, LATTICE, HAMILTONIAN) for n in NAMES)
ALL = all_configurations(SITES)
KINDS = ("shift", "features", "pooled_features")
STRENGTHS = np.array([-0.7, 0.0, 0.4])


def network(amplitude="complex", dtype=np.float64, **options) -> Wavefunction:
    options = {"patch": 3, "width": WIDTH, "heads": 2, "layers": 2, "amplitude": amplitude, **options}
    state = Transformer(**options).build(LATTICE)
    noise = 0.15 * np.random.default_rng(7).normal(size=state.n_parameters)
    return Wavefunction(state, (state.initial_parameters(2) + noise).astype(dtype))


def dictionary(k=3):
    generator = np.random.default_rng(3)
    encoder, decoder = generator.normal(size=(2, FEATURES, WIDTH)).astype(np.float32)
    bias = 0.01 * generator.normal(size=WIDTH).astype(np.float32)
    return Dictionary(
        "topk" if k else "relu-l1", k, encoder, 0.1 * decoder, np.zeros(FEATURES, np.float32), bias
    )


def weights():
    return np.random.default_rng(5).normal(size=FEATURES).astype(np.float32)


def direction(psi, kind, layer="residual_1"):
    if kind == "shift":
        return ShiftDirection(psi, layer, 0.2 * random_unit_vector(WIDTH, (1,)).astype(np.float32))
    return FeaturesDirection(psi, layer, dictionary(), weights(), kind.startswith("pooled"))


def pushed(kind, x):
    """What is added to x (n, token, width) at strength 1, written out."""
    if kind == "shift":
        return np.zeros_like(x) + direction(None, kind).vector
    d = dictionary()
    rows = x.mean(axis=1, keepdims=True) if kind.startswith("pooled") else x
    z = (rows - d.decoder_bias) @ d.encoder.T
    f = np.where(z >= np.sort(z, axis=-1)[..., -3, None], np.maximum(z, 0), 0)
    return np.zeros_like(x) + (f * weights()) @ d.decoder


@pytest.mark.parametrize("layer", ["embedding", "attention_1", "mlp_1", "residual_1", "residual_2"])
@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize("kind", KINDS)
def test_tangents_match_finite_differences(kind, amplitude, layer):
    psi, sigma, step = network(amplitude), ALL[::97], 1e-5
    turned = direction(psi, kind, layer)
    log = turned.log_psi(sigma, np.array([-step, step]))
    expected = (log[:, 1] - log[:, 0]) / (2 * step)
    assert np.abs(expected - expected.mean()).max() > 1e-3
    np.testing.assert_allclose(turned.tangent(sigma), expected, rtol=1e-6, atol=1e-7)
    known = turned.tangent(sigma, psi.layer_gradient(sigma, layer))
    np.testing.assert_allclose(known, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_projected_states_are_pushed_in_every_copy(kind):
    psi, sigma, step = network(symmetry=Symmetry(translations=True, spin_flip=1)), ALL[::397], 1e-5
    turned = direction(psi, kind)
    log = turned.log_psi(sigma, np.array([-step, 0.0, step]))
    np.testing.assert_allclose(log[:, 1], psi.log_psi(sigma), atol=1e-12)
    np.testing.assert_allclose((log[:, 2] - log[:, 0]) / (2 * step), turned.tangent(sigma), atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layer", ["mlp_1", "residual_1", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_psi(kind, layer, dtype):
    psi = network("positive", dtype)
    log = direction(psi, kind, layer).log_psi(ALL, np.array([0.0, 0.5]))
    np.testing.assert_allclose(log[:, 0], psi.log_psi(ALL), atol=1e-5 if dtype == np.float32 else 1e-12)
    assert np.abs(log[:, 1] - log[:, 0]).max() > 1e-2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_curves_are_direct_sums(kind, dtype):
    """psi_s from the push written out, normalised and summed here."""
    psi = network(dtype=dtype)
    curve = Exact(psi, OBSERVABLES, SITES).curve(direction(psi, kind).family(STRENGTHS))
    hamiltonian = OBSERVABLES[-1].operator.to_sparse()
    for strength, mean in zip(STRENGTHS, curve.mean, strict=True):
        edited = psi.edited("residual_1", lambda x, s=strength: (x + s * pushed(kind, x)).astype(x.dtype))
        wave = np.exp(edited.log_psi(ALL))
        wave /= np.linalg.norm(wave)
        tolerance = 1e-4 if dtype == np.float32 else 1e-7  # weights and decoder rows are in single precision
        assert mean[0] == pytest.approx(np.abs(wave) ** 2 @ OBSERVABLES[0].values(ALL), abs=tolerance)
        assert mean[-1] == pytest.approx(np.vdot(wave, hamiltonian @ wave).real, abs=10 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_are_matched_in_infidelity(kind):
    psi = network("positive", np.float32)
    turned, exact = direction(psi, kind), Exact(psi, OBSERVABLES, SITES)
    index = np.random.default_rng(1).choice(len(ALL), size=4000, p=exact.state.probability)
    wanted, signs = np.array([1e-3, 0.0, 1e-3, 1e-2]), np.array([-1.0, 0.0, 1.0, 1.0])
    strengths = steering.matched_strengths(turned, ALL[index], psi.log_psi(ALL[index]), wanted, signs)
    np.testing.assert_allclose(exact.curve(turned.family(strengths)).infidelity, wanted, rtol=0.2, atol=1e-9)


def test_one_feature_is_a_combination_with_one_weight():
    psi, d = network(), dictionary()
    one = np.eye(FEATURES, dtype=np.float32)[4]
    alone = FeatureDirection(psi, "residual_1", d, 4, d.decoder[4], False)
    together = FeaturesDirection(psi, "residual_1", d, one, False)
    np.testing.assert_allclose(together.log_psi(ALL, STRENGTHS), alone.log_psi(ALL, STRENGTHS), atol=1e-10)


class Fit:
    """Slopes (feature, observable) and metric of all features, with exact Born weights."""

    def __init__(self, psi, pooled, k):
        self.psi, self.at = psi, DecodedLayer("residual_1", dictionary(k), pooled)
        self.exact = Exact(psi, OBSERVABLES, SITES)
        wave, born = self.exact.state.psi, self.exact.state.probability[:, None]
        columns = [o if isinstance(o, np.ndarray) else (o @ wave) / wave for o in self.exact.operators]
        g = tangents(psi, self.at, ALL)[1][:, None]
        self.slope = atlas(g, np.stack(columns, axis=-1)[:, None], born).slope
        self.metric = metric(g, born)

    def leverage(self, weights, column=0):
        """|slope| / sqrt(metric) of combinations (..., feature)."""
        size = np.einsum("...i,ij,...j->...", weights, self.metric, weights)
        return np.abs(weights @ self.slope[:, column]) / np.sqrt(size)

    def direction(self, weights):
        return FeaturesDirection(self.psi, self.at.layer, self.at.dictionary, weights, self.at.pooled)


@pytest.fixture(scope="module", params=[("positive", False, 3), ("complex", False, 0), ("complex", True, 3)])
def fit(request):
    amplitude, pooled, k = request.param
    return Fit(network(amplitude), pooled, k)


@pytest.mark.parametrize("column", range(3))
def test_no_combination_of_features_has_more_leverage(fit, column):
    best = steepest(fit.slope[:, column], fit.metric, cutoff=1e-12)
    reached = fit.leverage(best, column)
    generator = np.random.default_rng(0)
    others = [generator.normal(size=(2000, FEATURES)), np.eye(FEATURES)[np.diag(fit.metric) > 0]]
    near = best * (1 + 0.05 * generator.normal(size=(2000, FEATURES)))
    for combinations in (*others, near):
        assert fit.leverage(combinations, column).max() <= reached * (1 + 1e-9)
    assert fit.leverage(near, column).max() > 0.9 * reached  # and the bound is attained
    assert best @ fit.metric @ best == pytest.approx(1)
    local = fit.exact.operators[column]
    if isinstance(local, np.ndarray):  # nothing moves faster than 2 std O
        p = fit.exact.state.probability
        assert reached <= 2 * np.sqrt(p @ local**2 - (p @ local) ** 2)


def test_the_natural_gradient_does_what_it_predicts(fit):
    """Slope, metric and tangent of the combined direction, from its own exact curve."""
    best = steepest(fit.slope[:, 0], fit.metric)
    turned, near = fit.direction(best), np.array([-2e-3, -1e-3, 0.0, 1e-3, 2e-3])
    curve = fit.exact.curve(turned.family(near))
    slopes = steering.derivatives(curve, near, 2).slope
    np.testing.assert_allclose(slopes, best @ fit.slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes, fit.exact.slopes(turned.tangent(ALL)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(curve.infidelity[[1, 3]], near[[1, 3]] ** 2, rtol=0.05)


def test_held_observables_stay_to_first_order_and_nothing_does_better(fit):
    held = fit.slope[:, [1, 3]]
    best = steepest(fit.slope[:, 0], fit.metric, held, cutoff=1e-12)
    np.testing.assert_allclose(best @ held, 0, atol=1e-8)
    reached = fit.leverage(best)
    assert 0 < reached < fit.leverage(steepest(fit.slope[:, 0], fit.metric, cutoff=1e-12))
    some = np.random.default_rng(0).normal(size=(2000, FEATURES))
    q, _ = np.linalg.qr(held)
    some -= some @ q @ q.T
    assert fit.leverage(some).max() <= reached * (1 + 1e-9)


def test_directions_that_are_hardly_seen_are_left_out():
    slope, metric_ = np.array([1.0, 1.0, 1e-4]), np.diag([1.0, 0.25, 1e-9])
    best = steepest(slope, metric_)
    np.testing.assert_allclose(best, np.array([1, 4, 0]) / np.sqrt(5))
    np.testing.assert_allclose(steepest(slope, metric_, at_most=1), [1, 0, 0])


def test_what_is_held_cannot_be_moved():
    slope = np.array([0.3, -0.2])
    assert not steepest(slope, np.eye(2), np.stack([slope, 0 * slope], axis=1)).any()
    assert not steepest(slope, np.zeros((2, 2))).any()
    assert not steepest(0 * slope, np.eye(2)).any()


def test_difference_of_means():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(6, 2, 3))
    values = np.array([5.0, 1.0, 2.0, 7.0, 0.0, 9.0])
    high = x[values > 3.5].mean(axis=(0, 1))
    np.testing.assert_allclose(difference_of_means(x, values), high - x[values < 3.5].mean(axis=(0, 1)))
    tied = np.array([1.0, 1, 1, 1, 0, 1])  # more than half at the largest value
    expected = x[tied == 1].mean(axis=(0, 1)) - x[4].mean(axis=0)
    np.testing.assert_allclose(difference_of_means(x, tied), expected)
    assert not difference_of_means(x, np.ones(6)).any()


def planted(n=4000):
    """Activations (n, 2, 4) whose token mean reads a value along one vector and varies more along another."""
    generator = np.random.default_rng(3)
    value = generator.normal(size=n)
    mean = generator.normal(size=(n, 4)) * [3.0, 1.0, 1e-5, 0.5]
    mean[:, 1] = 0.5 * value + 0.1 * mean[:, 1]
    mean[:, 3] += value
    apart = generator.normal(size=(n, 4))
    return np.stack([mean + apart, mean - apart], axis=1) + 7.0, value


def test_the_probe_is_the_regression_along_its_spread():
    x, value = planted()
    x = x[..., [0, 1, 3]]  # the ridge keeps a channel that hardly varies out, plain least squares does not
    vector, rows = linear_probe(x, value), x.mean(axis=1)
    weights = np.linalg.lstsq(rows - rows.mean(0), value, rcond=None)[0]
    assert vector @ weights / np.linalg.norm(vector) / np.linalg.norm(weights) > 0.999
    unit = vector / np.linalg.norm(vector)
    assert np.linalg.norm(vector) == pytest.approx((rows @ unit).std())
    assert not linear_probe(x, np.ones(len(x))).any()


def test_the_principal_component_is_the_one_that_follows_the_target():
    x, value = planted()
    vector, rows = principal_component(x, value), x.mean(axis=1)
    components = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
    r = [abs(np.corrcoef(rows @ c, value)[0, 1]) for c in components]
    best = components[int(np.argmax(r[:3]))]  # the last one hardly varies
    unit = vector / np.linalg.norm(vector)
    assert abs(unit @ best) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(vector) == pytest.approx((rows @ unit).std())
    assert np.corrcoef(rows @ vector, value)[0, 1] > 0  # more of it is more of the target
    assert not principal_component(x, np.ones(len(x))).any()
    assert not principal_component(np.ones_like(x), value).any()


def test_a_clamped_feature_has_the_level_everywhere():
    """On a dictionary whose decoder row reads back through the encoder: f_i of the edited layer is the level."""
    psi = network()
    rng = np.random.default_rng(5)
    encoder = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    zero = np.zeros(WIDTH, np.float32)
    dictionary = Dictionary("relu-l1", 0, encoder, encoder, zero + 5, zero)
    row, sigma = encoder[2].astype(np.float64), ALL[:50]
    clamp = ClampDirection(psi, "residual_1", dictionary, 2, row, False, 0.7)
    x = psi.stream_at(sigma, "residual_1")
    np.testing.assert_allclose(dictionary.feature(x + clamp.push(x), 2), 0.7, atol=1e-5)
    half = dictionary.feature(x + 0.5 * clamp.push(x), 2)
    np.testing.assert_allclose(half, 0.5 * (dictionary.feature(x, 2) + 0.7), atol=1e-5)
    feature = FeatureDirection(psi, "residual_1", dictionary, 2, row, False)
    assert feature.largest(sigma) == pytest.approx(float(dictionary.feature(x, 2).max()))
    step = 1e-5
    up, down = (psi.edited("residual_1", clamp._edit(s)).log_psi(sigma) for s in (step, -step))
    np.testing.assert_allclose(clamp.tangent(sigma), (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
