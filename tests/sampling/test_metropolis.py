"""The sampler against |psi|^2: chi-square over all configurations, both magnetisation sectors, drift, errors."""

import numpy as np
import pytest
from scipy import stats

from nqs_sae_service.engine.random import Stream, words
from nqs_sae_service.errors import NumericalError
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.sampling import Metropolis, Moves, drift
from nqs_sae_service.sampling.metropolis import proposals
from nqs_sae_service.states import Rbm, Transformer

SITES = 6


class Ordered:
    """psi = exp(a |m| N / 2 + b m N / 2): two deep sectors of unequal weight, which single flips hardly connect."""

    def log_psi(self, sigma):
        m = sigma.sum(axis=1, dtype=np.float64)
        return 0.7 * np.abs(m) + 0.03 * m


def network_state():
    state = Transformer(patch=2, width=8, heads=2, layers=1).build(Chain(kind="chain", length=SITES).build())
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(1) + noise).astype(np.float32))


def rbm_state(sites=SITES, scale=0.25):
    """A walker: proposals by look-up tables."""
    state = Rbm(alpha=2).build(Chain(kind="chain", length=sites).build())
    return state.bind(scale * np.random.default_rng(0).normal(size=state.n_parameters))


@pytest.mark.parametrize("moves", [Moves(0.1), Moves(0.05, 0.3), Moves(0.2, 0.8)], ids=str)
@pytest.mark.parametrize(
    "psi", [network_state(), Ordered(), rbm_state()], ids=["network", "two sectors", "rbm"]
)
def test_chi_square_against_the_born_distribution(psi, moves):
    metropolis = Metropolis(SITES, moves, seed=4, stream=Stream.SAMPLES)
    chains = metropolis.start(psi, metropolis.random_chains(3000))
    for _ in range(40):
        metropolis.sweep(psi, chains)
    counts = np.bincount(basis_index(chains.sigma), minlength=2**SITES)
    log_p = 2 * psi.log_psi(all_configurations(SITES)).real
    expected = np.exp(log_p - log_p.max())
    expected *= counts.sum() / expected.sum()
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    kept = wanted > 0
    assert stats.chisquare(observed[kept], wanted[kept]).pvalue > 1e-3
    up = (chains.sigma.sum(axis=1) > 0).mean()
    exact = expected[all_configurations(SITES).sum(axis=1) > 0].sum() / counts.sum()
    assert abs(up - exact) < 5 * np.sqrt(exact * (1 - exact) / 3000)


def test_chi_square_of_the_walker_on_twelve_sites():
    psi, chains = rbm_state(12, 0.12), 40_000
    metropolis = Metropolis(12, Moves(0.05, 0.3), seed=4, stream=Stream.SAMPLES)
    state = metropolis.start(psi, metropolis.random_chains(chains))
    for _ in range(15):
        metropolis.sweep(psi, state)
    log_p = 2 * psi.log_psi(all_configurations(12)).real
    expected = np.exp(log_p - log_p.max())
    expected *= chains / expected.sum()
    counts = np.bincount(basis_index(state.sigma), minlength=2**12)
    rare = expected < 5
    assert (~rare).sum() > 200
    observed = np.append(counts[~rare], counts[rare].sum())
    assert stats.chisquare(observed, np.append(expected[~rare], expected[rare].sum())).pvalue > 1e-3


def test_proposals_have_the_wanted_shares_and_lengths():
    random = words(1, Stream.SAMPLES, 0, 1, 200_000)[0]
    first, length = proposals(random, 10, Moves(0.05, 0.3))
    counts = np.bincount(length, minlength=11)
    wanted = np.array([0, 0.65, *[0.3 / 8] * 8, 0.05])
    assert stats.chisquare(counts[1:], 200_000 * wanted[1:]).pvalue > 1e-3
    assert stats.chisquare(np.bincount(first)).pvalue > 1e-3
    assert set(proposals(random, 10, Moves(0.0))[1]) == {1}


def test_without_global_flips_a_sector_is_never_left():
    """The reason for global flips: started all up, chains of single flips stay up."""

    class Deep:
        def log_psi(self, sigma):
            return 4.0 * np.abs(sigma.sum(axis=1, dtype=np.float64))

    up = np.ones((200, SITES), np.int8)
    for share, crossed in ((0.0, False), (0.1, True)):
        metropolis = Metropolis(SITES, Moves(share), seed=1, stream=Stream.SAMPLES)
        chains = metropolis.start(Deep(), up)
        for _ in range(20):
            metropolis.sweep(Deep(), chains)
        assert (chains.sigma.sum(axis=1) < 0).any() == crossed


def test_the_same_seed_takes_the_same_path_and_can_be_resumed():
    psi = network_state()
    metropolis = Metropolis(SITES, Moves(0.05), seed=9, stream=Stream.TRAINING)
    one = metropolis.start(psi, metropolis.random_chains(50))
    for _ in range(6):
        metropolis.sweep(psi, one)
    two = metropolis.start(psi, metropolis.random_chains(50))
    for _ in range(3):
        metropolis.sweep(psi, two)
    two = metropolis.start(psi, two.sigma, two.sweeps)
    for _ in range(3):
        metropolis.sweep(psi, two)
    np.testing.assert_array_equal(one.sigma, two.sigma)
    np.testing.assert_array_equal(one.log_psi, two.log_psi)


def test_drift_sees_a_stale_cache():
    psi = network_state()
    metropolis = Metropolis(SITES, Moves(0.05), seed=9, stream=Stream.TRAINING)
    chains = metropolis.start(psi, metropolis.random_chains(50))
    metropolis.sweep(psi, chains)
    assert drift(psi, psi.reference, chains) < 1e-4
    chains.log_psi = chains.log_psi + 0.1
    assert drift(psi, psi.reference, chains) > 0.09


def test_nan_stops_the_sampler():
    class Broken:
        def log_psi(self, sigma):
            return np.full(len(sigma), np.nan)

    metropolis = Metropolis(SITES, Moves(0.05), seed=9, stream=Stream.TRAINING)
    with pytest.raises(NumericalError, match="NaN"):
        metropolis.sweep(Broken(), metropolis.start(Broken(), metropolis.random_chains(5)))


def test_draws_have_the_shape_of_chains_and_draws():
    psi = network_state()
    metropolis = Metropolis(SITES, Moves(0.05), seed=9, stream=Stream.SAMPLES)
    chains = metropolis.start(psi, metropolis.random_chains(7))
    sigma, log_psi = metropolis.draws(psi, chains, draws=3, sweeps=2)
    assert sigma.shape == (7, 3, SITES)
    assert chains.sweeps == 6
    np.testing.assert_allclose(log_psi.reshape(-1), psi.log_psi(sigma.reshape(-1, SITES)), atol=1e-5)


@pytest.mark.parametrize(
    "psi", [network_state(), Ordered(), rbm_state()], ids=["network", "two sectors", "rbm"]
)
def test_a_chain_takes_its_path_whoever_computes_it(psi):
    """What lets processes share the chains."""
    metropolis = Metropolis(SITES, Moves(0.1, 0.3), seed=4, stream=Stream.SAMPLES)
    everybody = metropolis.random_chains(128)
    chains, last = metropolis.start(psi, everybody), metropolis.start(psi, everybody[64:], number=64)
    for _ in range(5):
        metropolis.sweep(psi, chains)
        metropolis.sweep(psi, last)
    np.testing.assert_array_equal(last.sigma, chains.sigma[64:])
    np.testing.assert_array_equal(last.log_psi, chains.log_psi[64:])
