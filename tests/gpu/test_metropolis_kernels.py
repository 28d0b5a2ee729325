"""Proposals and decisions against their definition, and a sweep of any wave function against the CPU's, emulated."""

import numpy as np
import pytest

from nqs_sae_service.engine.random import Stream, uniform, words
from nqs_sae_service.sampling import Exact, Metropolis, Moves, Tempering
from nqs_sae_service.sampling.metropolis import proposals as proposals_on_host
from nqs_sae_service.sampling.metropolis_gpu import decide, proposals, propose

CHAINS, SITES, ROWS = 9, 7, 3
PAIRS = np.array([[0, 1], [1, 2], [2, 5], [3, 6], [4, 0]])


@pytest.fixture
def sigma():
    return np.random.default_rng(0).choice([-1, 1], size=(CHAINS, SITES)).astype(np.int8)


@pytest.mark.parametrize(
    "moves", [Moves(0.05, 0.3), Moves(0.0, 0.0), Moves(0.2, 0.8), Moves(0.1, 0.2, 0.5, PAIRS)], ids=str
)
@pytest.mark.parametrize("step", [0, 7, 2**40 + 3])
def test_proposals_are_those_of_the_cpu(device, moves, step):
    random = words(2**33 + 5, Stream.SAMPLES, step, ROWS, 200)[:, 50:]
    first, length = proposals_on_host(random, SITES, moves)
    threshold = np.log(uniform(random[..., 2], random[..., 3]))
    key, shares = (2**33 + 5, int(Stream.SAMPLES)), (moves.all_spins, moves.stretch, moves.exchange)
    pairs = device.put(PAIRS.astype(np.int32))
    found = proposals(device.xp, key, step, ROWS, 150, SITES, shares, pairs, start=50)
    np.testing.assert_array_equal(found[0].get(), first)
    np.testing.assert_array_equal(found[1].get(), length)
    np.testing.assert_allclose(found[2].get(), threshold, rtol=1e-15)


def test_a_proposal_flips_its_stretch(device, sigma):
    rng = np.random.default_rng(1)
    first = rng.integers(SITES, size=(ROWS, CHAINS))
    length = rng.integers(1, SITES + 1, size=(ROWS, CHAINS))
    for row in range(ROWS):
        expected = sigma.copy()
        for chain in range(CHAINS):
            flipped = [(first[row, chain] + i) % SITES for i in range(length[row, chain])]
            expected[chain, flipped] *= -1
        proposed = propose(device.put(sigma), device.put(first), device.put(length), row)
        np.testing.assert_array_equal(proposed.get(), expected)


def test_a_proposal_exchanges_its_pair(device, sigma):
    pair = PAIRS[np.random.default_rng(1).integers(len(PAIRS), size=(ROWS, CHAINS))]
    first, length = np.ascontiguousarray(pair[..., 0]), -1 - pair[..., 1]
    for row in range(ROWS):
        expected = sigma.copy()
        for chain in range(CHAINS):
            expected[chain, pair[row, chain]] = sigma[chain, pair[row, chain, ::-1]]
        proposed = propose(device.put(sigma), device.put(first), device.put(length), row)
        np.testing.assert_array_equal(proposed.get(), expected)


def test_an_exchange_of_equal_spins_is_no_decision(device, sigma):
    """Neither accepted nor counted, whatever was computed for it, NaN or a better log psi."""
    sigma[:, :2], sigma[:4, 1] = 1, -1
    first, length = np.zeros((1, CHAINS), np.int64), np.full((1, CHAINS), -2)
    log_new = np.where(np.arange(CHAINS) % 2, 5.0, np.nan)
    state, log_state = device.put(sigma), device.put(np.zeros(CHAINS))
    proposed = propose(state, device.put(first), device.put(length), 0)
    counts, threshold = device.put(np.zeros(CHAINS, np.int32)), device.put(np.full((1, CHAINS), -1.0))
    decide(
        state, log_state, proposed, device.put(log_new), device.put(first), device.put(length), threshold, counts, 0
    )  # fmt: skip
    np.testing.assert_array_equal(counts.get(), [0, 1, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(log_state.get(), [np.nan, 5, np.nan, 5, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(state.get()[4:], sigma[4:])


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_a_decision_takes_the_proposal_where_the_threshold_says_so(device, sigma, dtype):
    rng = np.random.default_rng(2)
    log_psi, log_new = (rng.normal(size=CHAINS).astype(dtype) for _ in range(2))
    if dtype is np.complex128:
        log_psi, log_new = log_psi + 1j, log_new - 1j
    log_new[0] = np.nan
    threshold = 0.5 + np.log(rng.random((ROWS, CHAINS)))
    accept = threshold[1] < 2 * (log_new - log_psi).real
    assert 0 < accept.sum() < CHAINS
    log_psi[1] = log_new[1] = -np.inf  # where psi = 0 anything is taken
    accept[1] = True
    state, log_state = device.put(sigma), device.put(log_psi)
    counts = device.put(np.full(CHAINS, 5, np.int32))
    everything = device.put(np.zeros((ROWS, CHAINS), np.int64)), device.put(np.full((ROWS, CHAINS), SITES))
    decide(
        state,
        log_state,
        device.put(-sigma),
        device.put(log_new),
        *everything,
        device.put(threshold),
        counts,
        1,
    )
    np.testing.assert_array_equal(state.get(), np.where(accept[:, None], -sigma, sigma))
    np.testing.assert_array_equal(counts.get(), 5 + accept)
    expected = np.where(accept, log_new, log_psi)
    expected[0] = log_state.get()[0]
    assert np.isnan(log_state.get()[0].real)
    np.testing.assert_array_equal(log_state.get(), expected)


@pytest.mark.parametrize(
    "process",
    [
        Metropolis(SITES, Moves(0.05, 0.3), 4, Stream.SAMPLES),
        Metropolis(SITES, Moves(0.1, 0.2, 0.5, PAIRS), 4, Stream.SAMPLES),
        Metropolis(SITES, Moves(0.0, 0.0, 1.0, PAIRS), 4, Stream.SAMPLES, magnetization=1),
        Tempering(SITES, Moves(0.05, 0.3), 4, Stream.SAMPLES, replicas=3),
        Exact(SITES, 4, Stream.SAMPLES),
    ],
    ids=["flips", "mixture", "exchange", "tempering", "exact"],
)
def test_sweeps_of_any_wave_function_take_the_path_of_the_cpu(one_device, process):
    """The same random words, the same double-precision log psi: the same bits."""

    class Ordered:
        def log_psi(self, sigma):
            m = sigma.sum(axis=1).astype(np.float64)
            return 0.3 * abs(m) + 0.03j * m

    start = process.random_chains(20)
    host = process.start(Ordered(), start)
    chains = process.start(Ordered(), one_device.put(start))
    for _ in range(3):
        process.sweep(Ordered(), host)
        process.sweep(Ordered(), chains)
    np.testing.assert_array_equal(chains.sigma.get(), host.sigma)
    np.testing.assert_array_equal(chains.log_psi.get(), host.log_psi)
    assert (chains.accepted, chains.proposed) == (host.accepted, host.proposed)
