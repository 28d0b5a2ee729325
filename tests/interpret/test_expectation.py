"""Every estimator of a turned state against the sum over all configurations, on 12 sites."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.engine.random import Stream
from nqs_sae_service.interpret import steering
from nqs_sae_service.interpret.directions import Direction, FeatureDirection, JastrowDial, random_unit_vector
from nqs_sae_service.interpret.expectation import (
    Exact,
    FreshSampling,
    infidelity,
    resampled,
    reweighted,
    weighted_start,
)
from nqs_sae_service.interpret.reconstruction import ablated, reconstructed
from nqs_sae_service.physics.exact import all_configurations, ground_state, susceptibility
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.sae.dictionary import Dictionary
from nqs_sae_service.sampling import Metropolis, Moves
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc.estimators import measure
from nqs_sae_service.vmc.statistics import covariance

SITES = 12
LATTICE = Chain(kind="chain", length=SITES).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
NAMES = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x", "local_energy")
OBSERVABLES = tuple(make_observable(n, LATTICE, HAMILTONIAN) for n in NAMES)
ALL = all_configurations(SITES)
STRENGTHS = np.array([-0.8, -0.3, 0.0, 0.3, 0.8])
BASE = 2


def silent(message: str) -> None:
    """No progress bar in a test."""


def network(amplitude="positive", dtype=np.float32):
    state = Transformer(patch=3, width=8, heads=2, layers=2, amplitude=amplitude).build(LATTICE)
    noise = 0.15 * np.random.default_rng(7).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(2) + noise).astype(dtype))


def dictionary(width=8, features=12, k=3, seed=0):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(2, features, width)).astype(np.float32)
    zero = np.zeros(features, np.float32)
    return Dictionary("topk", k, rows[0], 0.05 * rows[1], zero, np.zeros(width, np.float32))


def direction(psi, kind, layer="residual_1", pooled=False) -> Direction:
    if kind == "jastrow_dial":
        return JastrowDial(psi, OBSERVABLES[1])
    d = dictionary()
    rows = psi.stream_at(ALL, layer)
    rows = rows.mean(axis=1) if pooled else rows.reshape(-1, 8)
    i = int(np.argmax(d.encode(rows.astype(np.float32)).var(axis=0)))
    vector = d.decoder[i] if kind == "feature" else np.linalg.norm(d.decoder[i]) * random_unit_vector(8, (3,))
    return FeatureDirection(psi, layer, d, i, vector.astype(np.float32), pooled)


def born(psi, chains=400, draws=10, seed=5):
    """Independent samples of |psi|^2: (chain, draw, n_sites), log psi (chain, draw)."""
    log_p = 2 * psi.log_psi(ALL).real
    p = np.exp(log_p - log_p.max())
    index = np.random.default_rng(seed).choice(len(p), size=chains * draws, p=p / p.sum())
    return ALL[index].reshape(chains, draws, SITES), psi.log_psi(ALL[index]).reshape(chains, draws)


CASES = [
    ("feature", "positive", "residual_1", False),
    ("feature", "complex", "residual_2", False),
    ("feature", "positive", "mlp_1", False),
    ("feature", "complex", "residual_1", True),
    ("random_direction", "positive", "residual_1", False),
    ("jastrow_dial", "positive", "residual_1", False),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(map(str, case)))
def case(request):
    kind, amplitude, layer, pooled = request.param
    psi = network(amplitude)
    turned = direction(psi, kind, layer, pooled)
    exact = Exact(psi, OBSERVABLES, SITES)
    return psi, turned, exact, exact.curve(turned.family(STRENGTHS))


def test_reweighted_curve_agrees_with_full_summation(case):
    psi, turned, _, exact = case
    sigma, log_psi = born(psi)
    curve = reweighted(turned.family(STRENGTHS), OBSERVABLES, sigma, log_psi, Economy(), silent)
    assert np.ptp(exact.mean[:, 1]) > 1e-3  # the direction does something
    assert np.all(np.abs(curve.mean - exact.mean) < 4.5 * curve.error + 1e-5)
    for p in (0, 1, 3, 4):
        value, error = steering.change(curve, p, BASE)
        assert np.all(np.abs(value - (exact.mean[p] - exact.mean[BASE])) < 4.5 * error + 1e-5)
    np.testing.assert_allclose(curve.infidelity, exact.infidelity, rtol=0.25, atol=1e-9)
    assert curve.ess[BASE] == pytest.approx(1)


def test_effective_sample_size_agrees_with_full_summation(case):
    psi, turned, exact, _ = case
    sigma, log_psi = born(psi)
    curve = reweighted(turned.family(STRENGTHS), OBSERVABLES, sigma, log_psi, Economy(), silent)
    weight = np.exp(2 * (turned.log_psi(ALL, STRENGTHS).real - psi.log_psi(ALL).real[:, None]))
    p = exact.state.probability
    np.testing.assert_allclose(curve.ess, (p @ weight) ** 2 / (p @ weight**2), rtol=0.1)


def test_fresh_samples_agree_with_full_summation(case):
    psi, turned, _, exact = case
    sigma, log_psi = born(psi)
    samples = (sigma.reshape(-1, SITES), log_psi.reshape(-1))
    sampling = FreshSampling(Metropolis(SITES, Moves(0.1), 3, Stream.STEERING), 400, 15, 8, 1, Economy())
    for p in (0, 4):
        curve = resampled(turned.at(STRENGTHS[p]), psi, OBSERVABLES, samples, sampling, p, silent)
        assert np.all(np.abs(curve.mean[0] - exact.mean[p]) < 4.5 * curve.error[0] + 1e-5)
        assert curve.infidelity[0] == pytest.approx(exact.infidelity[p], rel=0.3)
        assert 0 < curve.ess[0] <= 1


def test_complex_local_estimators_enter_the_slope():
    """With a phase, Im t Im O_loc counts: the real parts alone give another number."""
    psi = network("complex", np.float64)
    turned = direction(psi, "feature")
    exact = Exact(psi, OBSERVABLES, SITES)
    tangent, p = turned.tangent(ALL), exact.state.probability
    local = measure(psi, OBSERVABLES, ALL, psi.log_psi(ALL))
    assert np.iscomplexobj(local)
    centred = (tangent - p @ tangent).conj()[:, None]
    np.testing.assert_allclose(exact.slopes(tangent), 2 * np.real(p @ (centred * local)), rtol=1e-9)
    assert np.abs(2 * np.real(p @ (centred * local.real)) - exact.slopes(tangent))[3:].max() > 1e-3


def test_chains_start_where_the_turned_state_is():
    """Chi-square of the starts against the weights; neighbouring states start together."""
    generator = np.random.default_rng(0)
    weight = generator.random(40)
    starts = np.concatenate([weighted_start(weight, 400, (seed,)) for seed in range(20)])
    expected = weight / weight.sum() * len(starts)
    assert stats.chisquare(np.bincount(starts, minlength=40), expected).pvalue > 1e-3
    nearly = weight * (1 + 0.01 * generator.normal(size=40))
    assert (weighted_start(weight, 400, (1,)) == weighted_start(nearly, 400, (1,))).mean() > 0.9


def test_predicted_slope_is_the_derivative(case):
    psi, turned, exact, _ = case
    tangent = turned.tangent(ALL)
    predicted = exact.slopes(tangent)
    near = np.array([-0.04, -0.02, 0.0, 0.02, 0.04])
    measured = steering.derivatives(exact.curve(turned.family(near)), near, 2)
    scale = np.abs(predicted).max()
    np.testing.assert_allclose(measured.slope, predicted, atol=2e-3 * scale)
    sigma, log_psi = born(psi)
    flat = sigma.reshape(-1, SITES)
    values = measure(psi, OBSERVABLES, flat, log_psi.reshape(-1)).reshape(*log_psi.shape, -1)
    slope, error = covariance(turned.tangent(flat).reshape(*log_psi.shape, 1), values)
    assert np.all(np.abs(2 * slope - predicted) < 4.5 * 2 * error + 1e-6 * scale)


def test_controls_are_matched_in_infidelity(case):
    psi, turned, exact, _ = case
    sigma, log_psi = born(psi)
    wanted, signs = np.array([1e-3, 0.0, 1e-3, 1e-2]), np.array([-1.0, 0.0, 1.0, 1.0])
    strengths = steering.matched_strengths(
        turned, sigma.reshape(-1, SITES), log_psi.reshape(-1), wanted, signs
    )
    np.testing.assert_allclose(exact.curve(turned.family(strengths)).infidelity, wanted, rtol=0.2, atol=1e-9)
    assert strengths[1] == 0
    assert np.all(np.sign(strengths) == signs)


@pytest.mark.parametrize("layer", ["embedding", "attention_1", "mlp_1", "residual_1", "residual_2", "head"])
@pytest.mark.parametrize("amplitude", ["positive", "complex"])
@pytest.mark.parametrize("pooled", [False, True])
def test_tangent_matches_finite_differences(layer, amplitude, pooled):
    psi = network(amplitude, np.float64)
    turned, sigma = direction(psi, "feature", layer, pooled), ALL[::97]
    step = 1e-5
    log = turned.log_psi(sigma, np.array([-step, step]))
    np.testing.assert_allclose((log[:, 1] - log[:, 0]) / (2 * step), turned.tangent(sigma), atol=1e-6)


@pytest.mark.parametrize("layer", ["embedding", "mlp_1", "residual_1", "head"])
def test_scale_one_is_psi(layer):
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        psi = network("positive", dtype)
        log = direction(psi, "feature", layer).at(0.0).log_psi(ALL)
        np.testing.assert_allclose(log, psi.log_psi(ALL), atol=tolerance)


@dataclass
class Table:
    """A wave function given on all configurations."""

    values: np.ndarray

    def log_psi(self, sigma):
        return self.values[basis_index(sigma)]


def test_jastrow_dial_has_the_known_efficiency():
    """eta = 0.81-0.85 for |m| on the critical ring of 12-16 sites: slope^2 / (chi curvature) from exact diagonalisation."""
    ground = ground_state(HAMILTONIAN)
    psi = Table(np.log(np.abs(ground.vector)))
    dial = JastrowDial(psi, OBSERVABLES[1])
    exact = Exact(psi, OBSERVABLES, SITES)
    strengths = np.linspace(-0.2, 0.2, 5)
    local = steering.derivatives(exact.curve(dial.family(strengths)), strengths, 2)
    chi = susceptibility(exact.operators[-1], ground, OBSERVABLES[1].values(ALL))
    assert abs(local.slope[-1]) < 1e-6  # an eigenstate: no first-order change of the energy
    assert 0.80 < steering.efficiency(local.slope[1], local.curvature[-1], chi) < 0.86


def test_intervals_cover():
    """The 95 % interval of a reweighted change holds the exact change in about 95 % of 200 replicas."""
    psi = Table(np.log(np.abs(ground_state(HAMILTONIAN).vector)))
    dial = JastrowDial(psi, OBSERVABLES[1])
    diagonal = OBSERVABLES[:3]
    strengths = np.array([0.0, 0.4])
    exact = Exact(psi, diagonal, SITES).curve(dial.family(strengths))
    hits = []
    for replica in range(200):
        sigma, log_psi = born(psi, chains=60, draws=4, seed=replica)
        curve = reweighted(dial.family(strengths), diagonal, sigma, log_psi, Economy(), silent)
        value, error = steering.change(curve, 1, 0)
        hits.append(np.abs(value - (exact.mean[1] - exact.mean[0])) < 1.96 * error)
    covered = np.mean(hits, axis=0)
    assert np.all(covered > 0.90)
    assert np.all(covered[1:] < 0.995)


def test_infidelity_is_accurate_when_tiny():
    psi, other = np.array([0.6, 0.8]), np.array([0.6, 0.8 + 1e-7])
    samples = np.repeat([0, 1], [36, 64])
    exact = 1 - (psi @ other) ** 2 / (other @ other)
    assert infidelity(np.log(other / psi)[samples]) == pytest.approx(2.3e-15, rel=0.05)
    assert exact < 1e-14


@pytest.mark.parametrize("pooled", [False, True])
def test_replaced_layers(pooled):
    """A dictionary that reproduces everything changes nothing; the mean leaves nothing of the configuration."""
    psi = network()
    identity = np.concatenate([np.eye(8), -np.eye(8)]).astype(np.float32)
    perfect = Dictionary("relu-l1", 0, identity, identity, np.zeros(16, np.float32), np.zeros(8, np.float32))
    same = reconstructed(psi, "residual_1", perfect, pooled)
    np.testing.assert_allclose(same.log_psi(ALL), psi.log_psi(ALL), atol=1e-5)
    mean = psi.stream_at(ALL, "residual_1").mean(axis=(0, 1))
    flat = ablated(psi, "residual_1", mean, pooled).log_psi(ALL)
    assert pooled or np.ptp(flat) < 1e-5


def test_full_summation_stays_in_the_sector_that_is_sampled():
    """A network has amplitudes outside of it that no sample sees: they must not count."""
    psi, sector = network("complex"), all_configurations(SITES).sum(axis=1) == 2
    magnet = Heisenberg(kind="heisenberg", J2=0.4).build(LATTICE)
    observables = tuple(
        make_observable(n, LATTICE, magnet) for n in ("magnetization", "spin_correlation_1", "local_energy")
    )
    exact = Exact(psi, observables, SITES, magnetization=2)
    wave = np.where(sector, np.exp(psi.log_psi(ALL)), 0)
    energy = np.vdot(wave, magnet.to_sparse() @ wave).real / np.vdot(wave, wave).real
    found = exact.expectations(exact.state)
    assert found[0] == pytest.approx(2 / SITES)
    assert found[2] == pytest.approx(energy, rel=1e-6)
    dial = JastrowDial(psi, make_observable("nearest_neighbour_correlation", LATTICE, magnet))
    step = 1e-4
    curve = exact.curve(dial.family(np.array([-step, step])))
    slopes = exact.slopes(dial.tangent(exact.on_device))
    np.testing.assert_allclose(slopes, (curve.mean[1] - curve.mean[0]) / (2 * step), atol=1e-6)


def test_ground_state_of_a_sector():
    magnet = Heisenberg(kind="heisenberg", J2=0.4).build(LATTICE)
    inside = ALL.sum(axis=1) == 4
    lowest = np.linalg.eigvalsh(magnet.to_sparse().toarray()[np.ix_(inside, inside)])[:2]
    found = ground_state(magnet, 4)
    assert (found.energy, found.gap) == pytest.approx((lowest[0], lowest[1] - lowest[0]), rel=1e-9, abs=1e-9)
    assert not found.vector[~inside].any()
    assert ground_state(magnet).energy < found.energy - 0.1
