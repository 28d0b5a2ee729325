"""The atlas against full summation and finite differences on 12 sites: slopes, energy force and metric of all features."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.engine.random import Stream
from nqs_sae_service.interpret.atlas import DecodedLayer, atlas, local_tangents, tangents
from nqs_sae_service.interpret.directions import FeatureDirection
from nqs_sae_service.interpret.expectation import Exact, reweighted
from nqs_sae_service.interpret.steering import derivatives
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.sampling import Metropolis, Moves
from nqs_sae_service.states import Rbm, Transformer, Wavefunction
from nqs_sae_service.states.projection import Symmetry
from nqs_sae_service.vmc.estimators import measure

SITES = 12
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
NAMES = ("abs_magnetization", "half_chain_correlation", "sigma_x", "local_energy")
OBSERVABLES = tuple(make_observable(n, LATTICE, HAMILTONIAN) for n in NAMES)
ALL = all_configurations(SITES)
STEP = 1e-4


def transformer(amplitude="complex", **options):
    return Transformer(patch=3, width=8, heads=2, layers=2, amplitude=amplitude, **options).build(LATTICE)


def bound(state) -> Wavefunction:
    noise = 0.15 * np.random.default_rng(7).normal(size=state.n_parameters)
    return Wavefunction(state, (state.initial_parameters(2) + noise).astype(np.float64), plain=True)


def dictionary(width, kind="topk", features=10, k=3):
    generator = np.random.default_rng(3)
    encoder, decoder = generator.normal(size=(2, features, width))
    zero = np.zeros(features)
    return Dictionary(
        kind, k if kind == "topk" else 0, encoder, 0.05 * decoder, zero, 0.01 * generator.normal(size=width)
    )


@dataclass(frozen=True)
class Case:
    """One state and layer, all configurations with their Born weights."""

    psi: Wavefunction
    at: DecodedLayer

    @cached_property
    def exact(self):
        return Exact(self.psi, OBSERVABLES, SITES)

    @cached_property
    def weights(self):
        return self.exact.state.probability[:, None]

    @cached_property
    def g(self):
        return tangents(self.psi, self.at, ALL)[1]

    @cached_property
    def values(self):
        psi = self.exact.state.psi
        columns = [o if isinstance(o, np.ndarray) else (o @ psi) / psi for o in self.exact.operators]
        return np.stack(columns, axis=-1)[:, None]

    @cached_property
    def atlas(self):
        return atlas(self.g[:, None], self.values, self.weights)

    def direction(self, i):
        at = self.at
        return FeatureDirection(self.psi, at.layer, at.dictionary, i, at.dictionary.decoder[i], at.pooled)

    @cached_property
    def live(self):
        """Some features that do something."""
        return np.argsort(-self.atlas.metric)[:3]


CASES = {
    "transformer, complex": lambda: (transformer(), "residual_1", "topk", False),
    "transformer, positive, pooled": lambda: (transformer("positive"), "residual_1", "topk", True),
    "transformer, complex, mlp, relu": lambda: (transformer(), "mlp_1", "relu-l1", False),
    "rbm": lambda: (Rbm().build(LATTICE), "hidden", "topk", False),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    state, layer, kind, pooled = CASES[request.param]()
    psi = bound(state)
    width = psi.tape(ALL[:2]).edges[layer].shape[-1]
    return Case(psi, DecodedLayer(layer, dictionary(width, kind), pooled))


def five_points(f, step=STEP):
    """Derivative at 0, to fourth order in the step."""
    return (f(-2 * step) - 8 * f(-step) + 8 * f(step) - f(2 * step)) / (12 * step)


def test_g_is_the_derivative_of_log_psi_by_the_scale(case):
    for i in case.live:
        log_psi = case.direction(i).log_psi
        expected = five_points(lambda s, log_psi=log_psi: log_psi(ALL, np.array([s]))[:, 0])
        np.testing.assert_allclose(case.g[:, i], expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_some_features_are_those_of_all(case):
    log_psi, some = tangents(case.psi, case.at, ALL[:700], chosen=case.live)
    np.testing.assert_allclose(some, case.g[:700, case.live], rtol=0, atol=1e-13)
    np.testing.assert_allclose(log_psi, case.psi.log_psi(ALL[:700]), rtol=1e-13)


def test_slopes_and_energy_force_are_derivatives_of_the_exact_sums(case):
    """Diagonal and off-diagonal observables; the energy is the last."""
    for i in case.live:
        curve = case.direction(i)

        def mean(s, curve=curve):
            return case.exact.curve(curve.family(np.array([s]))).mean[0]

        slopes = five_points(mean)
        np.testing.assert_allclose(case.atlas.slope[i], slopes, rtol=1e-6, atol=1e-8 * np.abs(slopes).max())
    assert np.abs(case.atlas.slope[case.live]).max(axis=0).min() > 1e-5


def test_the_metric_is_half_the_curvature_of_the_infidelity(case):
    for i in case.live:
        curve = case.exact.curve(case.direction(i).family(np.array([-2, -1, 1, 2]) * 5e-3))
        far_low, low, high, far_high = curve.infidelity / 5e-3**2
        even = 4 / 3 * (low + high) / 2 - (far_low + far_high) / 8 / 3
        assert case.atlas.metric[i] == pytest.approx(even, rel=1e-5)


def test_leverage_does_not_change_with_the_length_of_the_decoder(case):
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = case.atlas.slope / np.sqrt(case.atlas.metric)[:, None]
    alive = case.atlas.metric > 0
    np.testing.assert_allclose(case.atlas.leverage[alive], expected[alive])
    assert np.isnan(case.atlas.leverage[~alive]).all()
    d = case.at.dictionary
    doubled = Dictionary(d.kind, d.k, d.encoder, 2 * d.decoder, d.encoder_bias, d.decoder_bias)
    g = tangents(case.psi, DecodedLayer(case.at.layer, doubled, case.at.pooled), ALL)[1]
    np.testing.assert_allclose(
        atlas(g[:, None], case.values, case.weights).leverage[alive], case.atlas.leverage[alive], rtol=1e-10
    )


def test_sampled_atlas_agrees_with_full_summation(case):
    p = case.exact.state.probability
    index = np.random.default_rng(5).choice(len(p), size=(200, 10), p=p)
    sampled = atlas(case.g[index], case.values[index, 0])
    for name in ("slope", "metric"):
        value, error = getattr(sampled, name), getattr(sampled, f"{name}_error")
        assert np.all(np.abs(value - getattr(case.atlas, name)) < 5 * error + 1e-12)
    assert np.all(sampled.slope_error[case.live] > 0)


def test_local_estimators_have_their_derivatives(case):
    energy = OBSERVABLES[-1].operator
    sigma = ALL[::97]
    found = local_tangents(energy, sigma, lambda rows: tangents(case.psi, case.at, rows))
    matrix = energy.to_sparse()

    def local(i, s):
        log_psi = case.direction(i).log_psi(ALL, np.array([s]))[:, 0]
        psi = np.exp(log_psi - log_psi.real.max())
        return ((matrix @ psi) / psi)[::97]

    for i in case.live:
        expected = five_points(lambda s, i=i: local(i, s))
        np.testing.assert_allclose(found[:, i], expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_a_projected_state_sums_over_its_copies():
    psi = bound(transformer(symmetry=Symmetry(translations=True)))
    assert psi.state.n_copies > 1
    at = DecodedLayer("residual_1", dictionary(8), False)
    g = tangents(psi, at, ALL[::31])[1]
    for i in np.argsort(-np.abs(g).max(axis=0))[:3]:
        direction = FeatureDirection(psi, at.layer, at.dictionary, i, at.dictionary.decoder[i], False)
        np.testing.assert_allclose(g[:, i], direction.tangent(ALL[::31]), rtol=0, atol=1e-12)


def test_slopes_are_those_of_reweighted_curves_on_forty_sites():
    """Predicted from one backward pass, measured by turning each feature: diagonal, off-diagonal, and the energy."""
    lattice = Chain(kind="chain", length=40).build()
    hamiltonian = Tfim(kind="tfim", h=1.0).build(lattice)
    observables = tuple(make_observable(n, lattice, hamiltonian) for n in NAMES)
    state = Transformer(patch=4, width=8, heads=2, layers=2).build(lattice)
    noise = 0.4 * np.random.default_rng(7).normal(size=state.n_parameters)
    psi = state.bind((state.initial_parameters(2) + noise).astype(np.float32))
    sampler = Metropolis(40, Moves(0.1), 3, Stream.STEERING)
    chains = sampler.start(psi, np.random.default_rng(2).choice(np.array([-1, 1], np.int8), (64, 40)))
    drawn = []
    for draw in range(20 + 16 * 3):
        sampler.sweep(psi, chains)
        if draw >= 20 and draw % 3 == 0:
            drawn.append((chains.sigma.copy(), chains.log_psi.copy()))
    sigma, log_psi = (np.ascontiguousarray(np.stack(part, axis=1)) for part in zip(*drawn, strict=True))
    flat = sigma.reshape(-1, 40)
    at = DecodedLayer("residual_1", dictionary(8), False)
    g = tangents(psi, at, flat)[1].reshape(*log_psi.shape, -1)
    values = measure(psi, observables, flat, log_psi.reshape(-1)).reshape(*log_psi.shape, -1)
    found = atlas(g, values)
    strengths = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    for i in np.argsort(-found.metric)[:2]:
        push = at.dictionary.decoder[i].astype(np.float32)
        turned = FeatureDirection(psi, at.layer, at.dictionary, i, push, False)
        curve = reweighted(turned.family(strengths), observables, sigma, log_psi, Economy(), lambda _: None)
        measured = derivatives(curve, strengths, 2)
        difference = np.abs(measured.slope - found.slope[i])
        assert np.all(difference < 4.5 * np.hypot(measured.slope_error, found.slope_error[i]))
        diagonal = slice(0, 2)  # there both estimators are one sum over the same samples
        near = 0.1 * np.abs(found.slope[i, diagonal]).max()
        np.testing.assert_allclose(measured.slope[diagonal], found.slope[i, diagonal], rtol=0, atol=near)
        assert np.any(np.abs(found.slope[i]) > 3 * found.slope_error[i])
