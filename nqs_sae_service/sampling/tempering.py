"""Parallel tempering (Swendsen and Wang 1986; Geyer 1991): walkers on flattened distributions help others over barriers.

Behind every chain stands a *ladder* of walkers. Walker r samples |psi|^(2 b_r) with b_0 = 1 > b_1 > ... > b_(R-1), a geometric
ladder. A proposal of walker r is accepted with probability min(1, |psi'/psi|^(2 b_r)), which is the rule of the plain walk
with its log threshold divided by b_r: no kernel needs to know. After every sweep the walkers r and r + 1 swap configurations
with probability

    min(1, exp((b_r - b_(r+1)) 2 (log|psi(sigma_(r+1))| - log|psi(sigma_r)|))),

for even and for odd r in turn. Each step leaves the product of all |psi|^(2 b_r) as it is, so walker 0 samples |psi|^2; it
alone is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from ..engine.arrays import beside, namespace
from ..engine.random import uniform, words
from ..states import LogPsi
from .metropolis import Metropolis
from .process import Chains

Array = Any


@dataclass
class Ladders(Chains):
    """Chains, and ``everybody``: all walkers, ladder by ladder, b = 1 first. The counters are of the proposals of all."""

    everybody: Chains = field(kw_only=True)

    @property
    def walkers(self) -> Array:
        """Configurations of all walkers (chains, replicas, n_sites) int8."""
        chains, n_sites = self.sigma.shape
        return self.everybody.sigma.reshape(chains, -1, n_sites)


@dataclass(frozen=True)
class Tempering(Metropolis):
    """The Metropolis process on ladders of ``replicas`` walkers, the last of which samples |psi|^(2 ``hottest``)."""

    replicas: int = 4
    hottest: float = 0.2

    @cached_property
    def exponents(self) -> np.ndarray:
        """b of the walkers of a ladder (replicas,), from 1 down to ``hottest``."""
        return self.hottest ** (np.arange(self.replicas) / max(self.replicas - 1, 1))

    def random_chains(self, chains: int) -> Array:
        """Independent uniformly random walkers (chains, replicas, n_sites) int8."""
        return super().random_chains(chains * self.replicas).reshape(chains, self.replicas, self.n_sites)

    def start(self, psi: LogPsi, sigma: Array, sweeps: int = 0, number: int = 0) -> Ladders:
        """Ladders that continue from ``Ladders.walkers``, or whose walkers all start at the configuration of their chain."""
        xp = namespace(sigma)
        if sigma.ndim == 2:
            sigma = xp.repeat(sigma[:, None], self.replicas, axis=1)
        walkers = sigma.reshape(-1, self.n_sites)
        everybody = super().start(psi, walkers, sweeps, number * self.replicas)
        return Ladders(*self._recorded(everybody), sweeps, number, everybody=everybody)

    def _recorded(self, everybody: Chains) -> tuple[Array, Array]:
        return everybody.sigma[:: self.replicas].copy(), everybody.log_psi[:: self.replicas].copy()

    def sweep(self, psi: LogPsi, chains: Chains) -> None:
        """One sweep of every walker, and swaps between neighbours, in place. Raises NumericalError on a NaN log psi."""
        assert isinstance(chains, Ladders)
        everybody = chains.everybody
        super().sweep(psi, everybody)
        self._swap(everybody)
        chains.sigma, chains.log_psi = self._recorded(everybody)
        chains.sweeps = everybody.sweeps
        chains.accepted += everybody.accepted
        chains.proposed += everybody.proposed
        everybody.clear_counters()

    def _proposals(self, chains: Chains, xp: ModuleType) -> tuple[Array, Array, Array]:
        first, length, threshold = super()._proposals(chains, xp)
        ladders = threshold.reshape(len(threshold), -1, self.replicas) / beside(self.exponents, threshold)
        return first, length, ladders.reshape(threshold.shape)

    def _swap(self, everybody: Chains) -> None:
        """Neighbours swap configurations: pairs (0, 1), (2, 3), ... after an even number of sweeps before, else (1, 2), ..."""
        xp, step = namespace(everybody.sigma), everybody.sweeps - 1
        sigma = everybody.sigma.reshape(-1, self.replicas, self.n_sites)
        log_psi = everybody.log_psi.reshape(-1, self.replicas)
        upper, lower = slice(step % 2, self.replicas - 1, 2), slice(step % 2 + 1, self.replicas, 2)
        difference = self.exponents[upper] - self.exponents[lower]
        ladder = everybody.number // self.replicas
        # Rows after those of the proposals: other random numbers than theirs.
        random = words(
            self.seed,
            self.stream,
            step,
            len(difference),
            len(sigma),
            xp,
            start=ladder,
            first_row=self.n_sites,
        )
        bound = xp.log(uniform(random[..., 0], random[..., 1])).T
        gain = xp.asarray(self.exponent * difference) * 2 * (log_psi.real[:, lower] - log_psi.real[:, upper])
        swapped = bound < gain
        origin = xp.repeat(xp.arange(self.replicas)[None], len(sigma), axis=0)
        origin[:, upper] += swapped
        origin[:, lower] -= swapped
        log_psi[...] = xp.take_along_axis(log_psi, origin, axis=1)
        sigma[...] = xp.take_along_axis(sigma, origin[:, :, None], axis=1)
