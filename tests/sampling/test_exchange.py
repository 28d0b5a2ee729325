"""Exchange moves: |psi|^2 of the sector by chi-square, alone and mixed with flips; null moves cost nothing."""

import itertools

import numba
import numpy as np
import pytest
from born import Rugged, p_value, sector
from scipy import stats

from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.engine.random import Stream, uniform, words
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.sampling import Metropolis, Moves
from nqs_sae_service.sampling.metropolis import _walk, flipped_sites, proposals
from nqs_sae_service.sampling.process import random_configurations
from nqs_sae_service.states import Rbm, Transformer
from nqs_sae_service.states.fused import Walks

RING = LATTICES["chain"](kind="chain", length=8).build()
SQUARE = LATTICES["square"](kind="square", length=4).build()


def pairs(lattice):
    return np.concatenate([lattice.shell(1), lattice.shell(2)])


def bound(state, size=0.3):
    noise = size * np.random.default_rng(0).normal(size=state.n_parameters)
    return state.bind((state.initial_parameters(1) + noise).astype(state.dtype))


def transformer(lattice=RING, attention="full"):
    return bound(Transformer(patch=2, width=8, heads=2, layers=1, attention=attention).build(lattice))


def rbm(lattice=RING):
    return bound(Rbm(alpha=2).build(lattice), 0.2)


WAYS = [  # psi, proposals ahead
    pytest.param(lambda: Rugged(8), True, id="plain"),
    pytest.param(transformer, True, id="transformer"),
    pytest.param(transformer, False, id="transformer, one proposal at a time"),
    pytest.param(rbm, True, id="rbm"),
]
MIXTURES = [
    pytest.param(Moves(0.0, 0.0, 1.0, pairs(RING)), 2, id="exchange, magnetization 2"),
    pytest.param(Moves(0.1, 0.0, 0.9, pairs(RING)), 0, id="exchange and global"),
    pytest.param(Moves(0.1, 0.2, 0.4, pairs(RING)), None, id="single, stretch, exchange and global"),
]


@pytest.mark.parametrize(("moves", "magnetization"), MIXTURES)
@pytest.mark.parametrize(("make", "ahead"), WAYS)
def test_chi_square_in_the_sector(make, ahead, moves, magnetization):
    psi = make()
    process = Metropolis(8, moves, 4, Stream.SAMPLES, Economy(proposals=ahead), magnetization)
    chains = process.start(psi, process.random_chains(4000))
    for _ in range(25):
        process.sweep(psi, chains)
    assert p_value(chains.sigma, psi, magnetization) > 1e-3
    np.testing.assert_allclose(chains.log_psi.real, psi.log_psi(chains.sigma).real, atol=1e-4)
    assert 0.1 < chains.acceptance < 1


@pytest.mark.parametrize("magnetization", [0, 4, -2])
def test_starting_configurations_are_uniform_in_the_sector(magnetization):
    random = words(3, Stream.CHAINS, 1, 8, 20_000)[..., 0]
    counts = np.bincount(basis_index(random_configurations(random, magnetization)), minlength=256)
    inside = basis_index(sector(8, magnetization))
    assert counts[inside].sum() == 20_000
    assert stats.chisquare(counts[inside]).pvalue > 1e-3


def test_pairs_are_proposed_equally_often():
    random, chosen = words(1, Stream.SAMPLES, 0, 1, 100_000)[0], pairs(RING)
    first, length = proposals(random, 8, Moves(0.1, 0.2, 0.4, chosen))
    exchanged = length < 0
    assert abs(exchanged.mean() - 0.4) < 5 * np.sqrt(0.24 / 100_000)
    number = {tuple(pair): k for k, pair in enumerate(chosen.tolist())}
    counts = np.bincount(
        [
            number[pair]
            for pair in zip(first[exchanged].tolist(), (-1 - length[exchanged]).tolist(), strict=True)
        ]
    )
    assert stats.chisquare(counts).pvalue > 1e-3


def test_an_exchange_is_its_own_inverse_and_keeps_the_magnetization():
    """With one probability for each pair: as likely as its inverse, which is detailed balance."""
    sigma = sector(6)
    for i, j in itertools.combinations(range(6), 2):
        first, length = np.full(len(sigma), i), np.full(len(sigma), -1 - j)
        moved = np.where(flipped_sites(sigma, first, length), -sigma, sigma)
        expected = sigma.copy()
        expected[:, [i, j]] = sigma[:, [j, i]]
        np.testing.assert_array_equal(moved, expected)
        back = np.where(flipped_sites(moved, first, length), -moved, moved)
        np.testing.assert_array_equal(back, sigma)


def test_null_moves_are_not_evaluated():
    """Where everything is accepted, there are as many evaluations as exchanges of unequal spins."""

    class Flat:
        evaluated = 0

        def log_psi(self, sigma):
            self.evaluated += len(sigma)
            return np.zeros(len(sigma))

    process = Metropolis(8, Moves(0.0, 0.0, 1.0, pairs(RING)), 4, Stream.SAMPLES, magnetization=4)
    psi, start = Flat(), process.random_chains(50)
    chains = process.start(psi, start)
    psi.evaluated = 0
    process.sweep(psi, chains)
    first, length, _ = process._proposals(process.start(Flat(), start), np)
    sigma, unequal = start.copy(), 0
    for r, c in np.ndindex(first.shape):
        pair = [first[r, c], -1 - length[r, c]]
        unequal += sigma[c, pair[0]] != sigma[c, pair[1]]
        sigma[c, pair] = sigma[c, pair[::-1]]
    np.testing.assert_array_equal(chains.sigma, sigma)
    assert psi.evaluated == chains.accepted == unequal < chains.proposed == 400


def test_nothing_is_evaluated_where_all_spins_are_equal():
    psi = Rugged(8)
    process = Metropolis(8, Moves(0.0, 0.0, 1.0, pairs(RING)), 4, Stream.SAMPLES)
    chains = process.start(psi, np.ones((5, 8), np.int8))
    before = psi.evaluated
    process.sweep(psi, chains)
    assert psi.evaluated == before
    assert chains.accepted == 0


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(
    "make",
    [lambda: transformer(SQUARE), lambda: transformer(SQUARE, "positional"), lambda: rbm(SQUARE)],
    ids=["transformer", "positional transformer", "rbm"],
)
def test_a_walk_in_two_dimensions_decides_as_the_plain_loop(make, ahead):
    """Flips, stretches and exchanges on 2 x 2 patches, whose sites do not follow each other."""
    psi, moves, rows, chains = make(), Moves(0.1, 0.2, 0.5, pairs(SQUARE)), 16, 40
    random = words(7, Stream.SAMPLES, 0, rows, chains)
    first, length = proposals(random, 16, moves)
    threshold = np.log(uniform(random[..., 2], random[..., 3]))
    sigma = np.random.default_rng(1).choice([-1, 1], size=(chains, 16)).astype(np.int8)
    walked, log_psi = sigma.copy(), psi.log_psi(sigma)
    accepted = psi.twin(Walks).walk(walked, log_psi, first, length, threshold, ahead=ahead)
    plain, plain_log_psi = sigma.copy(), psi.reference.log_psi(sigma)
    assert accepted == _walk(psi.reference, plain, plain_log_psi, first, length, threshold)
    assert 0 < accepted < rows * chains
    np.testing.assert_array_equal(walked, plain)
    np.testing.assert_allclose(log_psi.real, plain_log_psi.real, atol=1e-4)


@pytest.mark.parametrize(("make", "ahead"), WAYS)
def test_a_chain_takes_its_path_whoever_computes_it(make, ahead):
    """Ranks share the chains, threads the work."""
    psi = make()
    moves = Moves(0.1, 0.2, 0.4, pairs(RING))
    process = Metropolis(8, moves, 4, Stream.SAMPLES, Economy(proposals=ahead))
    everybody = process.random_chains(128)
    chains, last = process.start(psi, everybody), process.start(psi, everybody[64:], number=64)
    threads = numba.get_num_threads()
    for _ in range(4):
        process.sweep(psi, chains)
        numba.set_num_threads(1)
        process.sweep(psi, last)
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(last.sigma, chains.sigma[64:])
    np.testing.assert_array_equal(last.log_psi, chains.log_psi[64:])
