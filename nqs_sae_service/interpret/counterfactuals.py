"""Counterfactual inputs of a wave function: maps F from every configuration to another one that could have stood there.

    sector   a Born sample of the other sector: one of two held samples, the one whose order parameter has the other sign
    region   the spins of a region flipped; where the magnetization is held fixed, moved on by one place within the region
    distant  of some held Born samples the one with the smallest overlap

A network some of whose parts see F(sigma) instead of sigma is again a function of sigma: a wave function, with an energy above
that of the ground state. Therefore F is drawn once and then fixed, and never depends on which samples are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..engine.arrays import beside, namespace

Array = Any

SECTOR, REGION, DISTANT = KINDS = ("sector", "region", "distant")
_HELD = 16  # samples that a distant one is chosen among


class Counterfactual(Protocol):
    """A map of configurations."""

    def of(self, sigma: Array) -> Array:
        """F of configurations (n, n_sites) int8, where they are."""


@dataclass(frozen=True, eq=False)
class Sector:
    """``low`` (n_sites,) where the order parameter ``weights`` . sigma is above ``border``, else ``high``."""

    weights: np.ndarray
    border: float
    low: np.ndarray
    high: np.ndarray

    def of(self, sigma: Array) -> Array:
        """The sample held for the other sector."""
        above = sigma.astype(np.float32) @ beside(self.weights, sigma) > self.border
        return namespace(sigma).where(above[:, None], beside(self.low, sigma), beside(self.high, sigma))


@dataclass(frozen=True, eq=False)
class Region:
    """Spin i becomes ``signs[i]`` times the spin at ``source[i]``, both (n_sites,)."""

    source: np.ndarray
    signs: np.ndarray

    def of(self, sigma: Array) -> Array:
        """With the region changed."""
        return sigma.take(beside(self.source, sigma), axis=1) * beside(self.signs, sigma)


@dataclass(frozen=True, eq=False)
class Distant:
    """That of the ``held`` samples (m, n_sites) which differs at most sites."""

    held: np.ndarray

    def of(self, sigma: Array) -> Array:
        """The held sample with the smallest overlap, the first of several."""
        held = beside(self.held, sigma)
        overlap = sigma.astype(np.float32) @ held.T.astype(np.float32)
        return held.take(overlap.argmin(axis=1), axis=0)


def sector(weights: np.ndarray, samples: np.ndarray, generator: np.random.Generator) -> Sector:
    """Two Born samples drawn from ``samples`` (n, n_sites), one of each sign of ``weights`` . sigma.

    Where one sign is missing the border lies at the median instead.
    """
    order = samples.astype(np.float64) @ weights
    border = 0.0
    if not ((order > 0).any() and (order < 0).any()):
        border = float(np.median(order))
    low = order < border if (order < border).any() else order <= border
    high = order > border if (order > border).any() else order >= border
    drawn = [samples[generator.choice(np.flatnonzero(side))] for side in (low, high)]
    return Sector(weights.astype(np.float32), border, *drawn)


def region(sites: np.ndarray, n_sites: int, conserving: bool) -> Region:
    """The spins at ``sites`` flipped or, ``conserving`` the magnetization, moved on from each of them to the next."""
    source, signs = np.arange(n_sites), np.ones(n_sites, np.int8)
    ordered = np.sort(sites)
    if conserving:
        source[ordered] = np.roll(ordered, 1)
    else:
        signs[ordered] = -1
    return Region(source, signs)


def distant(samples: np.ndarray, generator: np.random.Generator) -> Distant:
    """Some of ``samples`` (n, n_sites), drawn without replacement."""
    chosen = generator.choice(len(samples), size=min(_HELD, len(samples)), replace=False)
    return Distant(np.ascontiguousarray(samples[np.sort(chosen)]))
