"""Exact draws: |psi|^2 by chi-square from the first sweep on, independent, in the sector, whoever computes them."""

import numpy as np
import pytest
from born import Rugged, p_value

from nqs_sae_service.engine.random import Stream
from nqs_sae_service.errors import NumericalError
from nqs_sae_service.sampling import Exact


@pytest.mark.parametrize("magnetization", [None, 0, 4])
def test_draws_follow_psi_squared_at_once(magnetization):
    psi = Rugged(8, 1.5)
    process = Exact(8, 3, Stream.SAMPLES, magnetization)
    chains = process.start(psi, process.random_chains(3000))
    sigma, log_psi = process.draws(psi, chains, 4, 1)
    assert chains.acceptance == 1
    assert p_value(sigma.reshape(-1, 8), psi, magnetization) > 1e-3
    np.testing.assert_array_equal(log_psi.ravel(), psi.log_psi(sigma.reshape(-1, 8)))


def test_sweeps_are_independent():
    psi = Rugged(8)
    process = Exact(8, 3, Stream.SAMPLES)
    sigma, _ = process.draws(psi, process.start(psi, process.random_chains(4000)), 2, 1)
    value = psi.log_psi(sigma.reshape(-1, 8)).reshape(4000, 2)
    assert abs(np.corrcoef(value.T)[0, 1]) < 4 / np.sqrt(4000)


def test_what_has_no_weight_is_never_drawn():
    class Half:
        def log_psi(self, sigma):
            return np.where(sigma[:, 0] > 0, 0.0, -np.inf)

    process = Exact(4, 3, Stream.SAMPLES)
    chains = process.start(Half(), np.ones((5000, 4), np.int8))
    process.sweep(Half(), chains)
    assert (chains.sigma[:, 0] == 1).all()


def test_a_share_of_the_chains_and_a_restart_take_the_same_path():
    psi = Rugged(6)
    process = Exact(6, 3, Stream.TRAINING)
    start = process.random_chains(30)
    whole, last = process.start(psi, start), process.start(psi, start[20:], number=20)
    for _ in range(3):
        process.sweep(psi, whole)
        process.sweep(psi, last)
        last = process.start(psi, last.walkers, last.sweeps, number=20)
        np.testing.assert_array_equal(last.sigma, whole.sigma[20:])


def test_nan_is_refused():
    class Broken:
        def log_psi(self, sigma):
            return np.full(len(sigma), np.nan)

    process = Exact(4, 3, Stream.SAMPLES)
    with pytest.raises(NumericalError, match="NaN"):
        process.start(Broken(), process.random_chains(3))
