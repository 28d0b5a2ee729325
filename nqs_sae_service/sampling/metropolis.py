"""Metropolis sampling of |psi|^2 with many chains (Metropolis et al. 1953), all chains moved at once.

A proposal flips a stretch of sites that follow each other, one site, a stretch of random length, or all of them, or it
exchanges the spins of two sites near each other, which conserves the magnetization. Single flips alone are slow near a critical
point (domain walls diffuse) and never cross between magnetised sectors; long stretches move whole domains of a chain, global
flips change the sector. Every move is its own inverse and as likely as it, so it is accepted with probability
min(1, |psi'/psi|^2). An exchange of equal spins changes nothing and is not evaluated. Random numbers are counter-based: kind,
site and threshold are pure functions of (seed, stream, sweep, row, chain).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..engine.arrays import beside, namespace, to_host
from ..engine.economy import DEFAULT, Economy
from ..engine.random import Stream, below, uniform, words
from ..states import LogPsi, Wavefunction
from ..states.fused import Walks
from .process import Chains, Process, refuse_nan

Array = Any

_NO_PAIRS = np.zeros((1, 2), np.int32)


@dataclass(frozen=True, eq=False)
class Moves:
    """Shares of the proposals that flip all spins, flip a stretch of random length, and exchange the spins of a pair of sites.

    The rest flips one spin. ``pairs`` (n_pairs, 2) int: what may be exchanged.
    """

    all_spins: float
    stretch: float = 0.0
    exchange: float = 0.0
    pairs: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None:  # as kernels want them
            object.__setattr__(self, "pairs", np.ascontiguousarray(self.pairs, dtype=np.int32))


def proposals(random: Array, n_sites: int, moves: Moves) -> tuple[Array, Array]:
    """First site (...) and length (...) of the proposals, as ``states.fused.Walks`` wants them, from random words (..., 4).

    The length is n_sites with probability ``moves.all_spins``, uniform in 2 ... n_sites - 1 with probability ``moves.stretch``,
    else 1; or, with probability ``moves.exchange``, -1 - the other site of a pair chosen uniformly.
    """
    xp = namespace(random)
    share = random[..., 0].astype(xp.float64) * 2.0**-32
    # Uniform in [0, 1) for a stretch.
    place = xp.clip(share - moves.all_spins, 0, moves.stretch) / (moves.stretch or 1.0)
    stretch = 2 + (place * (n_sites - 2)).astype(xp.int64)
    length = xp.where(share < moves.all_spins + moves.stretch, stretch, 1)
    first, length = below(random[..., 1], n_sites), xp.where(share < moves.all_spins, n_sites, length)
    if moves.pairs is None:
        return first, length
    before = moves.all_spins + moves.stretch
    exchange = (share >= before) & (share < before + moves.exchange)
    pair = beside(moves.pairs, random)[below(random[..., 1], len(moves.pairs))]
    return xp.where(exchange, pair[..., 0], first), xp.where(exchange, -1 - pair[..., 1], length)


@dataclass(frozen=True)
class Metropolis(Process):
    """The Markov process of |psi|^(2 ``exponent``): what is proposed, and whose random numbers (seed, stream) decide."""

    n_sites: int
    moves: Moves
    seed: int
    stream: Stream
    economy: Economy = DEFAULT
    magnetization: int | None = None
    exponent: float = 1.0

    def start(self, psi: LogPsi, sigma: Array, sweeps: int = 0, number: int = 0) -> Chains:
        """Chains at given configurations, the first of which is chain ``number``."""
        return Chains(sigma.copy(), psi.log_psi(sigma), sweeps, number)

    def sweep(self, psi: LogPsi, chains: Chains) -> None:
        """One sweep: as many proposals per chain as there are sites, in place. Raises NumericalError on a NaN log psi."""
        xp = namespace(chains.sigma)
        first, length, threshold = self._proposals(chains, xp)
        twins = isinstance(psi, Wavefunction) and self.economy.increments
        walker = psi.twin(Walks) if twins else None  # type: ignore[attr-defined]
        proposals = (chains.sigma, chains.log_psi, first, length, threshold)
        if walker is not None:
            chains.accepted += walker.walk(*proposals, ahead=self.economy.proposals)
        else:
            chains.accepted += _walk_of(xp)(psi, *proposals)
        refuse_nan(chains.log_psi)
        chains.proposed += threshold.size
        chains.sweeps += 1

    def _proposals(self, chains: Chains, xp: ModuleType) -> tuple[Array, Array, Array]:
        """First site, length and threshold of 2 log|psi'/psi| (n_sites, chains) of the proposals of a sweep."""
        first, length, log_uniform = self._random_proposals(chains, xp)
        return first, length, log_uniform if self.exponent == 1 else log_uniform / self.exponent

    def _random_proposals(self, chains: Chains, xp: ModuleType) -> tuple[Array, Array, Array]:
        step, count = chains.sweeps, len(chains.sigma)
        if xp is not np:
            from .metropolis_gpu import proposals as on_device

            moves, key = self.moves, (self.seed, int(self.stream))
            shares = (moves.all_spins, moves.stretch, 0.0 if moves.pairs is None else moves.exchange)
            pairs = beside(_NO_PAIRS if moves.pairs is None else moves.pairs, chains.sigma)
            return on_device(xp, key, step, self.n_sites, count, self.n_sites, shares, pairs, chains.number)
        random = words(self.seed, self.stream, step, self.n_sites, count, start=chains.number)
        first, length = proposals(random, self.n_sites, self.moves)
        return first, length, np.log(uniform(random[..., 2], random[..., 3]))


def _walk_of(xp: ModuleType) -> Callable[..., int]:
    if xp is np:
        return _walk
    from .metropolis_gpu import walk

    return walk


def _walk(psi: LogPsi, sigma: Array, log_psi: Array, first: Array, length: Array, threshold: Array) -> int:
    """Metropolis proposals one after the other, for any wave function: the plain form of ``Walks.walk``."""
    accepted = 0
    for start, extent, bound in zip(first, length, threshold, strict=True):
        flipped = flipped_sites(sigma, start, extent)
        moving = flipped.any(axis=1)
        if not moving.any():
            continue
        proposed = np.where(flipped, -sigma, sigma)[moving]
        log_proposed = psi.log_psi(proposed)
        before = log_psi[moving]
        nowhere = np.isneginf(
            before.real
        )  # psi = 0, where a symmetry forbids the first configuration: any other is as good
        with np.errstate(invalid="ignore"):
            log_ratio = np.where(nowhere, np.inf, 2 * (log_proposed.real - before.real))
        accept = bound[moving] < log_ratio
        sigma[moving] = np.where(accept[:, None], proposed, sigma[moving])
        log_psi[moving] = np.where(accept | np.isnan(log_ratio), log_proposed, before)
        accepted += int(accept.sum())
    return accepted


def flipped_sites(sigma: Array, first: Array, length: Array) -> Array:
    """Which sites (chains, n_sites) bool one proposal for every chain flips: none in a null move."""
    xp = namespace(sigma)
    sites, n = xp.arange(sigma.shape[1]), sigma.shape[1]
    stretch = (sites - first[:, None]) % n < length[:, None]
    other = xp.where(length < 0, -1 - length, 0)
    chain = xp.arange(len(sigma))
    differ = (length < 0) & (sigma[chain, first] != sigma[chain, other])
    exchange = ((sites == first[:, None]) | (sites == other[:, None])) & differ[:, None]
    return stretch | exchange


def drift(psi: LogPsi, reference: LogPsi, chains: Chains, rows: int = 64) -> float:
    """Largest relative disagreement of psi on some chains: cached against recomputed, recomputed against double precision.

    Guards against a stale cache and against a fast kernel that departs from its reference; compares the phase too.
    """
    sigma = chains.sigma[:rows]
    fresh = psi.log_psi(sigma)
    departures = (chains.log_psi[:rows] - fresh, fresh - reference.log_psi(sigma))
    return float(max(np.abs(np.expm1(to_host(departure))).max() for departure in departures))
