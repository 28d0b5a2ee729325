"""Parallel tempering: every walker its own distribution, far modes, no difference by ranks or interruptions."""

import numpy as np
import pytest
from born import Rugged, TwoModes, p_value

from nqs_sae_service.engine.random import Stream
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.sampling import Metropolis, Moves, Tempering, process_of
from nqs_sae_service.spec.sampling import Sampling

RING = LATTICES["chain"](kind="chain", length=6)
PAIRS = RING.build().edges


class Flattened:
    """|psi|^b, for what walkers behind the first one sample."""

    def __init__(self, psi, exponent):
        self.psi, self.exponent = psi, exponent

    def log_psi(self, sigma):
        return self.exponent * self.psi.log_psi(sigma)


@pytest.mark.parametrize(
    ("moves", "magnetization"),
    [(Moves(0.1, 0.2, 0.3, PAIRS), None), (Moves(0.0, 0.0, 1.0, PAIRS), 2)],
    ids=["free", "fixed magnetization"],
)
def test_every_walker_follows_its_own_power_of_psi(moves, magnetization):
    """The first one |psi|^2 itself: swaps leave all of them as they are."""
    psi = Rugged(6, 1.2)
    process = Tempering(6, moves, 3, Stream.SAMPLES, magnetization=magnetization, replicas=3, hottest=0.1)
    chains = process.start(psi, process.random_chains(3000))
    for _ in range(25):
        process.sweep(psi, chains)
    for r, exponent in enumerate((1.0, np.sqrt(0.1), 0.1)):
        walkers = np.ascontiguousarray(chains.walkers[:, r])
        assert p_value(walkers, Flattened(psi, exponent), magnetization) > 1e-3
    np.testing.assert_array_equal(chains.sigma, chains.walkers[:, 0])
    np.testing.assert_array_equal(chains.log_psi, psi.log_psi(chains.sigma))


def test_swaps_alone_keep_every_distribution():
    """Chains that start in equilibrium and only swap: an error in the rule of swaps has nothing to hide behind."""
    psi, rng = Rugged(6, 1.2), np.random.default_rng(1)
    process = Tempering(6, Moves(0.0), 3, Stream.SAMPLES, replicas=4, hottest=0.2)
    from nqs_sae_service.physics.exact import all_configurations

    everything = all_configurations(6)
    walkers = []
    for exponent in process.exponents:
        p = np.exp(2 * exponent * psi.log_psi(everything))
        walkers.append(everything[rng.choice(64, size=4000, p=p / p.sum())])
    chains = process.start(psi, np.stack(walkers, axis=1))
    before = chains.walkers.copy()
    for _ in range(6):
        chains.everybody.sweeps += 1
        process._swap(chains.everybody)
    assert (chains.walkers != before).any(axis=2).mean() > 0.2
    for r, exponent in enumerate(process.exponents):
        assert p_value(np.ascontiguousarray(chains.walkers[:, r]), Flattened(psi, exponent)) > 1e-3


def test_far_modes_mix_only_with_tempering():
    """Single flips, all chains started up: the plain walk stays there, tempering finds both modes in their proportion."""
    psi, up = TwoModes(), np.ones((1000, 6), np.int8)
    exact = 1 / (1 + np.exp(-2 * 2 * 0.03 * 6))
    plain = Metropolis(6, Moves(0.0), 3, Stream.SAMPLES)
    tempered = Tempering(6, Moves(0.0), 3, Stream.SAMPLES, replicas=5, hottest=0.05)
    shares = []
    for process in (plain, tempered):
        chains = process.start(psi, up)
        for _ in range(60):
            process.sweep(psi, chains)
        shares.append((chains.sigma.sum(axis=1) > 0).sum() / (chains.sigma.sum(axis=1) != 0).sum())
    assert shares[0] > 0.97
    assert abs(shares[1] - exact) < 0.06 < abs(shares[0] - exact)


def test_a_share_of_the_ladders_and_a_restart_take_the_same_path():
    psi = Rugged(6)
    process = Tempering(6, Moves(0.1, 0.2), 3, Stream.TRAINING, replicas=3, hottest=0.3)
    start = process.random_chains(40)
    assert start.shape == (40, 3, 6)
    whole, last = process.start(psi, start), process.start(psi, start[25:], number=25)
    for sweep in range(5):
        process.sweep(psi, whole)
        if sweep == 2:
            last = process.start(psi, last.walkers, last.sweeps, number=25)
        process.sweep(psi, last)
    np.testing.assert_array_equal(last.walkers, whole.walkers[25:])
    np.testing.assert_array_equal(last.sigma, whole.sigma[25:])
    assert whole.proposed == 40 * 3 * 6 * 5


def test_walkers_may_start_at_the_configuration_of_their_chain():
    psi = Rugged(6)
    process = Tempering(6, Moves(0.1), 3, Stream.SAMPLES, replicas=3)
    sigma = process.random_chains(4)[:, 0]
    chains = process.start(psi, sigma)
    np.testing.assert_array_equal(chains.walkers, np.repeat(sigma[:, None], 3, axis=1))
    drawn, log_psi = process.draws(psi, chains, 2, 1)
    assert (drawn.shape, log_psi.shape) == ((4, 2, 6), (4, 2))


def test_the_spec_decides():
    plain, tempered = Sampling(), Sampling(replicas=4, hottest=0.5)
    assert type(process_of(plain, RING.build(), 1, Stream.SAMPLES)) is Metropolis
    process = process_of(tempered, RING.build(), 1, Stream.SAMPLES)
    np.testing.assert_allclose(process.exponents, 0.5 ** (np.arange(4) / 3))
