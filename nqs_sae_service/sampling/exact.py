"""Exact sampling: independent draws from |psi|^2 summed over all configurations, on systems small enough to list them.

    p(sigma) = |psi(sigma)|^2 / sum |psi|^2,      sigma = the first one whose cumulative sum of p reaches u, u uniform in (0, 1]

A start evaluates psi on all configurations (of one magnetization, where that is fixed): 2^N network calls, 10^6 for 20 sites.
After that a draw is a binary search; there is no burn-in, no correlation, and nothing is ever rejected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..engine.arrays import beside, namespace
from ..engine.random import Stream, uniform, words
from ..physics.operators import configurations
from ..states import LogPsi
from .process import Chains, Process, refuse_nan

Array = Any

MAX_SITES_LISTED = 20  # 10^6 configurations
_CALL = 2**14  # configurations per network call: fixed, so that log psi has the same bits everywhere


@dataclass
class Table(Chains):
    """Chains with log psi (n,) of all configurations and the cumulative sums (n,) of |psi|^2, on some scale."""

    all_log_psi: Array = field(kw_only=True)
    cumulative: Array = field(kw_only=True)


@dataclass(frozen=True)
class Exact(Process):
    """Independent draws from |psi|^(2 ``exponent``), by the random numbers of (seed, stream)."""

    n_sites: int
    seed: int
    stream: Stream
    magnetization: int | None = None
    exponent: float = 1.0

    @cached_property
    def configurations(self) -> np.ndarray:
        """All configurations (n, n_sites) int8 that can be drawn."""
        everything = configurations(np.arange(1 << self.n_sites), self.n_sites)
        if self.magnetization is None:
            return everything
        return everything[everything.sum(axis=1) == self.magnetization]

    def start(self, psi: LogPsi, sigma: Array, sweeps: int = 0, number: int = 0) -> Table:
        """Chains at given configurations (chains, n_sites); raises NumericalError on a NaN log psi."""
        xp, everything = namespace(sigma), beside(self.configurations, sigma)
        parts = [psi.log_psi(everything[i : i + _CALL]) for i in range(0, len(everything), _CALL)]
        log_psi = xp.concatenate(parts)
        refuse_nan(log_psi)
        weight = xp.exp(2 * self.exponent * (log_psi.real - log_psi.real.max()))
        return Table(
            sigma.copy(),
            psi.log_psi(sigma),
            sweeps,
            number,
            all_log_psi=log_psi,
            cumulative=xp.cumsum(weight),
        )

    def sweep(self, psi: LogPsi, chains: Chains) -> None:
        """A fresh draw for every chain, in place."""
        assert isinstance(chains, Table)
        xp, count = namespace(chains.sigma), len(chains.sigma)
        random = words(self.seed, self.stream, chains.sweeps, 1, count, xp, start=chains.number)[0]
        reached = uniform(random[..., 0], random[..., 1]) * chains.cumulative[-1]
        drawn = xp.searchsorted(chains.cumulative, reached)
        chains.sigma = beside(self.configurations, chains.sigma)[drawn]
        chains.log_psi = chains.all_log_psi[drawn]
        chains.accepted += count
        chains.proposed += count
        chains.sweeps += 1
