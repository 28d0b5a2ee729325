"""Walsh strings chi_S(sigma) = prod_{i in S} sigma_i around every token: all functions of a configuration are sums of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .lattices import Lattice

String = tuple[int, ...]


def frames(lattice: Lattice, sites: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The lattice as every token sees it, (token, n_sites): where the translation that takes token 0 there takes each site.

    ``sites`` (token, spins per token). None where some token is no translate of the first one.
    """
    moves = lattice.translations()
    found = []
    for own in sites:
        fitting = np.flatnonzero((moves[:, sites[0]] == own).all(axis=1))
        if not len(fitting):
            return None
        found.append(moves[fitting[0]])
    return np.stack(found).astype(np.int64)


def nearest_sites(lattice: Lattice, token: NDArray[np.int64], count: int) -> list[int]:
    """So many sites in order of their distance, in edges, to a token's spins (its own first; ties by number)."""
    distance = lattice.edges_from(token)
    return sorted(distance, key=lambda site: (distance[site], site))[:count]


def strings_of(sites: Sequence[int], order: int) -> list[String]:
    """All products of 1 to ``order`` different spins, as ascending sites; low orders first."""
    ordered = sorted(sites)
    return [string for n in range(1, order + 1) for string in itertools.combinations(ordered, n)]


def values_of(
    strings: Sequence[String], sigma: NDArray[np.int8], frame: NDArray[np.int64]
) -> NDArray[np.float32]:
    """chi_S (sample, token, string) of configurations (sample, n_sites) as each token of ``frames`` sees them."""
    seen = sigma[:, frame]  # (sample, token, site)
    values = np.ones((*seen.shape[:2], len(strings)), np.float32)
    for n in range(max(map(len, strings))):
        places, sites = zip(
            *((s, string[n]) for s, string in enumerate(strings) if len(string) > n), strict=True
        )
        values[..., list(places)] *= seen[..., list(sites)]
    return values


def count_of(n_sites: int, order: int) -> int:
    """How many ``strings_of`` so many sites there are."""
    return sum(math.comb(n_sites, n) for n in range(1, order + 1))
