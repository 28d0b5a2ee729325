"""What every way of drawing configurations from |psi|^2 has in common: chains, and the process that moves them on.

A *chain* gives one sample whenever it is looked at. Whether the samples of a chain are correlated (Metropolis), and whether
there are more walkers behind it (tempering), is the business of the process; who trains, measures or steers sees ``Chains``
and the five operations of ``Process``. All random numbers are counter-based: a chain takes its path whoever computes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.random import Stream, words
from ..errors import NumericalError
from ..states import LogPsi

Array = Any


@dataclass
class Chains:
    """Chains: configurations (chains, n_sites) int8, their log psi (chains,), number of sweeps done.

    They are the chains ``number``, ``number`` + 1, ... of all, which decides about their random numbers.
    """

    sigma: Array
    log_psi: Array
    sweeps: int = 0
    number: int = 0
    accepted: int = 0
    proposed: int = 0

    @property
    def walkers(self) -> Array:
        """What a process has to know of the configurations to go on later, one row per chain: ``Process.start`` takes it."""
        return self.sigma

    @property
    def acceptance(self) -> float:
        """Accepted share of the proposals since the counters were last cleared."""
        return self.accepted / max(self.proposed, 1)

    def clear_counters(self) -> None:
        """Start counting acceptance anew."""
        self.accepted = self.proposed = 0


class Process(ABC):
    """Draws from |psi|^2, or from its part of one magnetization; the random numbers are those of (seed, stream)."""

    n_sites: int
    seed: int
    stream: Stream
    magnetization: int | None

    def random_chains(self, chains: int) -> Array:
        """Independent uniformly random walkers, one row per chain, of the conserved magnetization if there is one."""
        random = words(self.seed, Stream.CHAINS, int(self.stream), self.n_sites, chains)[..., 0]
        return random_configurations(random, self.magnetization)

    @abstractmethod
    def start(self, psi: LogPsi, sigma: Array, sweeps: int = 0, number: int = 0) -> Chains:
        """Chains of psi that continue from ``Chains.walkers`` or start at configurations (chains, n_sites).

        The first of them is chain ``number``. They belong to this psi: another one needs a start of its own.
        """

    @abstractmethod
    def sweep(self, psi: LogPsi, chains: Chains) -> None:
        """Move all chains on, in place. Raises NumericalError on a NaN log psi."""

    def draws(self, psi: LogPsi, chains: Chains, draws: int, sweeps: int) -> tuple[Array, Array]:
        """Record ``draws`` samples per chain, ``sweeps`` apart: configuration (chain, draw, spin), log psi (chain, draw)."""
        sigma, log_psi = [], []
        for _ in range(draws):
            for _ in range(sweeps):
                self.sweep(psi, chains)
            sigma.append(chains.sigma.copy())
            log_psi.append(chains.log_psi.copy())
        xp = namespace(chains.sigma)
        return xp.stack(sigma, axis=1), xp.stack(log_psi, axis=1)


def random_configurations(random: Array, magnetization: int | None) -> np.ndarray:
    """Uniformly random configurations (chains, n_sites) int8, of a given sum if any, from random words (n_sites, chains)."""
    if magnetization is None:
        return np.where(random.T & 1, 1, -1).astype(np.int8)
    up = (len(random) + magnetization) // 2
    rank = np.argsort(np.argsort(random, axis=0, kind="stable"), axis=0)
    return np.where(up > rank.T, 1, -1).astype(np.int8)


def refuse_nan(log_psi: Array) -> None:
    """Raise NumericalError, saying what to change, if a log psi is NaN."""
    if namespace(log_psi).isnan(log_psi).any():
        raise NumericalError(
            "log psi became NaN while sampling; lower ground_state.learning_rate or raise ground_state.shift"
        )
