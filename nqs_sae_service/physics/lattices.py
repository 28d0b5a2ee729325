"""Lattices: which sites there are, which are neighbours, and which permutations leave the lattice as it is.

A chain of N sites has the edges (i, i + 1); a periodic chain (a ring) also has (N - 1, 0), so that
translations T_t: i -> i + t (mod N) are symmetries. A ring of two sites has one edge, not two. Everything
else in the project sees a lattice only through the ``Lattice`` record, so a new lattice is one more spec
record with a ``build`` method, entered into ``LATTICES``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from ..spec.section import Section


@dataclass(frozen=True, eq=False)
class Lattice:
    """Sites and edges.

    ``edges`` (n_edges, 2) int32 lists every pair of neighbours once; ``sublattice`` (n_sites,) int8 in {0, 1}
    is the checkerboard colour (on an odd ring two neighbours share a colour); ``positions`` (n_sites, d) in
    lattice constants.
    """

    n_sites: int
    edges: np.ndarray
    periodic: bool
    sublattice: np.ndarray
    positions: np.ndarray

    def translations(self) -> np.ndarray:
        """Permutations (n_t, n_sites) int32, identity first: ``sigma[:, translations()[t]]`` is T_t."""
        sites = np.arange(self.n_sites, dtype=np.int32)
        if not self.periodic:
            return sites[None, :]
        return (sites[:, None] + sites[None, :]) % np.int32(self.n_sites)

    def pairs(self, distance: int) -> np.ndarray:
        """Pairs (n_pairs, 2) int32 of sites (i, i + distance): N on a ring, N - distance on an open chain."""
        first = np.arange(self.n_sites if self.periodic else self.n_sites - distance, dtype=np.int32)
        return np.stack([first, (first + np.int32(distance)) % np.int32(self.n_sites)], axis=1)


class Chain(Section):
    """A line of sites, closed to a ring when periodic."""

    kind: Literal["chain"]
    length: int = Field(ge=2, le=4096, description="number of sites")
    periodic: bool = Field(default=True, description="whether the last site is a neighbour of the first")

    def build(self) -> Lattice:
        """The lattice of this record."""
        sites = np.arange(self.length, dtype=np.int32)
        edges = np.stack([sites[:-1], sites[1:]], axis=1)
        if self.periodic and self.length > 2:
            edges = np.concatenate([edges, np.array([[self.length - 1, 0]], dtype=np.int32)])
        return Lattice(
            n_sites=self.length,
            edges=edges,
            periodic=self.periodic,
            sublattice=(sites % 2).astype(np.int8),
            positions=sites[:, None].astype(np.float64),
        )


LATTICES: dict[str, type[Chain]] = {"chain": Chain}
