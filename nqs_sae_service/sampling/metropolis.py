"""Metropolis sampling of |psi|^2 with many chains (Metropolis et al. 1953), all chains moved at once.

A proposal flips one site, or with a small probability all of them: at small transverse field single flips do not cross between
the two magnetised sectors. Both moves are symmetric, so a proposal is accepted with probability min(1, |psi'/psi|^2).
Random numbers are counter-based: proposal, site and threshold are pure functions of (seed, stream, sweep, row, chain).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.random import Stream, below, uniform, words
from ..errors import NumericalError
from ..states import LogPsi

Array = Any


def flip_proposals(random: Array, n_sites: int, global_flip: float) -> tuple[Array, Array]:
    """Moves of one row of random words (chains, 4): (site (chains,), whole (chains,) bool: flip everything)."""
    whole = random[..., 0] < int(global_flip * 2**32)
    return below(random[..., 1], n_sites), whole


@dataclass
class Chains:
    """Markov chains: configurations (chains, n_sites) int8, cached log psi (chains,), number of sweeps done."""

    sigma: Array
    log_psi: Array
    sweeps: int = 0
    accepted: int = 0
    proposed: int = 0

    @property
    def acceptance(self) -> float:
        """Accepted share of the proposals since the counters were last cleared."""
        return self.accepted / max(self.proposed, 1)

    def clear_counters(self) -> None:
        """Start counting acceptance anew."""
        self.accepted = self.proposed = 0


@dataclass(frozen=True)
class Metropolis:
    """The Markov process: single flips and a share ``global_flip`` of global flips, random numbers of (seed, stream)."""

    n_sites: int
    global_flip: float
    seed: int
    stream: Stream

    def random_chains(self, chains: int) -> Array:
        """Independent uniformly random configurations (chains, n_sites) int8."""
        random = words(self.seed, Stream.CHAINS, int(self.stream), self.n_sites, chains)[..., 0]
        return np.where(random.T & 1, 1, -1).astype(np.int8)

    def start(self, psi: LogPsi, sigma: Array, sweeps: int = 0) -> Chains:
        """Chains at given configurations."""
        return Chains(sigma.copy(), psi.log_psi(sigma), sweeps)

    def sweep(self, psi: LogPsi, chains: Chains) -> None:
        """One sweep: as many proposals per chain as there are sites, in place. Raises NumericalError on a NaN log psi."""
        xp = namespace(chains.sigma)
        random = words(self.seed, self.stream, chains.sweeps, self.n_sites, len(chains.sigma), xp)
        rows = xp.arange(len(chains.sigma))
        for row in random:
            site, whole = flip_proposals(row, self.n_sites, self.global_flip)
            proposed = xp.where(whole[:, None], -chains.sigma, chains.sigma)
            proposed[rows, site] = -chains.sigma[rows, site]
            log_psi = psi.log_psi(proposed)
            log_ratio = 2 * (log_psi.real - chains.log_psi.real)
            if xp.isnan(log_ratio).any():
                raise NumericalError(
                    "log psi became NaN while sampling; lower ground_state.learning_rate or raise its shift"
                )
            accept = xp.log(uniform(row[:, 2], row[:, 3])) < log_ratio
            chains.sigma = xp.where(accept[:, None], proposed, chains.sigma)
            chains.log_psi = xp.where(accept, log_psi, chains.log_psi)
            chains.accepted += int(accept.sum())
        chains.proposed += random.shape[0] * random.shape[1]
        chains.sweeps += 1

    def draws(
        self,
        psi: LogPsi,
        chains: Chains,
        draws: int,
        sweeps: int,
        after: Callable[[int], None] = lambda draw: None,
    ) -> tuple[Array, Array]:
        """Record ``draws`` samples per chain, ``sweeps`` apart: configuration (chain, draw, spin), log psi (chain, draw)."""
        sigma, log_psi = [], []
        for draw in range(draws):
            for _ in range(sweeps):
                self.sweep(psi, chains)
            sigma.append(chains.sigma.copy())
            log_psi.append(chains.log_psi.copy())
            after(draw)
        return np.stack(sigma, axis=1), np.stack(log_psi, axis=1)


def drift(psi: LogPsi, reference: LogPsi, chains: Chains, rows: int = 64) -> float:
    """Largest disagreement of a cached |psi|^2 with the double-precision reference on some chains, as a log ratio.

    Guards against a stale cache and against a fast kernel that departs from its reference.
    """
    exact = reference.log_psi(chains.sigma[:rows])
    fresh = psi.log_psi(chains.sigma[:rows])
    cached = chains.log_psi[:rows]
    return float(max(np.abs(cached.real - fresh.real).max(), np.abs(fresh.real - exact.real).max()))
