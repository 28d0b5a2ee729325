"""Lattices: which sites there are, which are neighbours, and which permutations leave the lattice as it is.

A crystal of ``basis`` sites in each of n_1 x n_2 ... unit cells: site ``basis * cell + b``, cells counted row by row (the
last axis fastest). An axis that is periodic closes on itself, and translations along it are symmetries. The k-th *shell*
holds the pairs of sites at the k-th smallest distance of the infinite lattice, each pair once and in the first shell that
has it: a ring of two sites has one edge, not two. On an arbitrary graph distance counts edges.

Everything else in the project sees a lattice only through the ``Lattice`` record, so a new lattice is one more spec record with
a ``build`` method, entered into ``LATTICES``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from ..spec.section import Section

MAX_SITES = 4096
_CLOSE = 1e-6  # positions and distances nearer than this are equal

Length = Annotated[int, Field(ge=2, le=MAX_SITES)]
Periodic = bool | tuple[bool, bool]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Sites and edges.

    ``edges`` (n_edges, 2) int32 lists every pair of nearest neighbours once; ``positions`` (n_sites, d) in lattice
    constants. ``extent`` unit cells along each axis with their ``vectors`` (d, d), ``basis`` sites in each; ``wraps`` says
    which axes are periodic. A graph without geometry has no axes. ``sublattice`` (n_sites,) int8 in {0, 1} colours
    neighbours differently where ``bipartite``; on an odd ring two neighbours share a colour, on other lattices that are
    not bipartite it is zero.
    """

    n_sites: int
    edges: np.ndarray
    positions: np.ndarray
    sublattice: np.ndarray
    bipartite: bool
    extent: tuple[int, ...] = ()
    basis: int = 1
    wraps: tuple[bool, ...] = ()
    vectors: np.ndarray | None = None

    @property
    def periodic(self) -> bool:
        """Whether every axis closes on itself."""
        return bool(self.wraps) and all(self.wraps)

    @cached_property
    def connected(self) -> bool:
        """Whether edges lead from every site to every other one."""
        return len(self.edges_from([0])) == self.n_sites

    def edges_from(self, sites: Iterable[int]) -> dict[int, int]:
        """The least number of edges from any of ``sites`` to every site that they lead to."""
        neighbours: list[list[int]] = [[] for _ in range(self.n_sites)]
        for i, j in self.edges.tolist():
            neighbours[i].append(j)
            neighbours[j].append(i)
        number = {int(site): 0 for site in sites}
        ring = list(number)
        while ring:
            fresh = {j for i in ring for j in neighbours[i]} - number.keys()
            number |= dict.fromkeys(fresh, number[ring[0]] + 1)
            ring = list(fresh)
        return number

    @property
    def dimensions(self) -> int:
        """Number of axes, 0 for a graph without geometry."""
        return len(self.extent)

    def shell(self, order: int) -> np.ndarray:
        """Pairs (n_pairs, 2) int32, i < j, at the ``order``-th smallest distance, 1 for the edges. Empty beyond the largest."""
        known, rest = self._shells
        known.extend(itertools.islice(rest, max(0, order - len(known))))
        return known[order - 1] if order <= len(known) else np.empty((0, 2), np.int32)

    @cached_property
    def n_shells(self) -> int:
        """Number of different distances between sites."""
        known, rest = self._shells
        known.extend(rest)
        return len(known)

    @cached_property
    def _shells(self) -> tuple[list[np.ndarray], Iterator[np.ndarray]]:
        """The shells found so far, and the rest of them."""
        return [], iter(_graph_shells(self)) if self.vectors is None else _crystal_shells(self)

    @cached_property
    def cells(self) -> np.ndarray:
        """Unit cell of every site, (n_sites, d) int64."""
        counts = np.indices(self.extent).reshape(len(self.extent), -1).T
        return np.repeat(counts, self.basis, axis=0)

    def translations(self) -> np.ndarray:
        """Permutations (n_t, n_sites) int32, identity first: ``sigma[:, translations()[t]]`` is T_t."""
        shifts = itertools.product(
            *(range(n if w else 1) for n, w in zip(self.extent, self.wraps, strict=True))
        )
        return np.stack([self._translated(np.asarray(shift, dtype=np.int64)) for shift in shifts])

    def _translated(self, shift: np.ndarray) -> np.ndarray:
        sites = np.arange(self.n_sites, dtype=np.int32)
        if not self.extent:
            return sites
        moved = np.ravel_multi_index(((self.cells + shift) % self.extent).T, self.extent)
        return (moved * self.basis + sites % self.basis).astype(np.int32)

    def point_group(self) -> np.ndarray:
        """Permutations (n_g, n_sites) int32 of the rotations and reflections about one centre, identity first.

        The centre is the one with most of them: a site where that is as good as any other place.
        """
        return self._point_group[0]

    def point_group_matrices(self) -> np.ndarray:
        """Orthogonal matrices (n_g, d, d) of the elements of ``point_group``: of equal permutations the first."""
        return self._point_group[1]

    @cached_property
    def _point_group(self) -> tuple[np.ndarray, np.ndarray]:
        if self.vectors is None:
            return np.arange(self.n_sites, dtype=np.int32)[None], np.eye(1)[None]
        groups = [self._about(centre) for centre in self._centres()]
        return max(groups, key=lambda group: len(group[0]))

    def _centres(self) -> Iterator[np.ndarray]:
        yield from self.positions[: self.basis]
        assert self.vectors is not None
        for steps in itertools.product(range(6), repeat=self.dimensions):
            yield np.asarray(steps) / 6 @ self.vectors
        yield self.positions.mean(axis=0)

    def _about(self, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edges = _edge_keys(self.edges, self.n_sites)
        found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        for turn in _orthogonal(self.dimensions):
            sites = self.sites_at((self.positions - centre) @ turn.T + centre)
            if sites is not None and np.array_equal(_edge_keys(sites[self.edges], self.n_sites), edges):
                found.setdefault(sites.tobytes(), (sites, turn))
        permutations, matrices = zip(*found.values(), strict=True)
        return np.stack(permutations), np.stack(matrices)

    def sites_at(self, positions: np.ndarray) -> np.ndarray | None:
        """Sites (n,) int32 at positions (n, d), periodic axes wrapped; None unless there is a different one at each."""
        assert self.vectors is not None
        inverse, wraps, extent = np.linalg.inv(self.vectors), np.asarray(self.wraps), np.asarray(self.extent)
        sites = np.full(len(positions), -1, np.int64)
        for b in range(self.basis):
            cell = (positions - self.positions[b]) @ inverse
            nearest = np.rint(cell).astype(np.int64)
            nearest = np.where(wraps, nearest % extent, nearest)
            here = (np.abs(cell - np.rint(cell)) < _CLOSE).all(axis=1)
            here &= ((nearest >= 0) & (nearest < extent)).all(axis=1)
            sites[here] = np.ravel_multi_index(nearest[here].T, self.extent) * self.basis + b
        if sites.min() < 0 or len(np.unique(sites)) < len(sites):
            return None
        return sites.astype(np.int32)

    def pairs(self, distance: int) -> np.ndarray:
        """Pairs (n_pairs, 2) int32 of sites (i, i + distance) in the order of sites: N, or N - distance on an open chain."""
        first = np.arange(self.n_sites if self.periodic else self.n_sites - distance, dtype=np.int32)
        return np.stack([first, (first + np.int32(distance)) % np.int32(self.n_sites)], axis=1)


def crystal(
    vectors: np.ndarray, offsets: np.ndarray, extent: tuple[int, ...], wraps: tuple[bool, ...]
) -> Lattice:
    """The lattice with primitive ``vectors`` (d, d), one per row, and sites at ``offsets`` (basis, d) in every unit cell."""
    vectors, offsets = np.asarray(vectors, np.float64), np.asarray(offsets, np.float64)
    corners = np.indices(extent).reshape(len(extent), -1).T @ vectors
    positions = (corners[:, None] + offsets).reshape(-1, len(extent))
    n_sites = len(positions)
    bare = Lattice(
        n_sites, np.empty((0, 2), np.int32), positions, np.zeros(n_sites, np.int8), False, extent, len(offsets), wraps, vectors
    )  # fmt: skip
    edges = next(_crystal_shells(bare))
    return _coloured(bare, edges)


def _coloured(bare: Lattice, edges: np.ndarray) -> Lattice:
    sublattice = two_colours(bare.n_sites, edges)
    bipartite = sublattice is not None
    if sublattice is None:
        sites = np.arange(bare.n_sites)
        sublattice = (sites % 2 if bare.dimensions == 1 else 0 * sites).astype(np.int8)
    return Lattice(
        bare.n_sites, edges, bare.positions, sublattice, bipartite, bare.extent, bare.basis, bare.wraps, bare.vectors
    )  # fmt: skip


def two_colours(n_sites: int, edges: np.ndarray) -> np.ndarray | None:
    """Colours (n_sites,) int8 in {0, 1} that differ across every edge, None if impossible; the first site of a part has 0."""
    neighbours: list[list[int]] = [[] for _ in range(n_sites)]
    for i, j in edges.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    colour = [-1] * n_sites
    for first in range(n_sites):
        waiting = [first] if colour[first] < 0 else []
        colour[first] = max(colour[first], 0)
        while waiting:
            site = waiting.pop()
            for other in neighbours[site]:
                if colour[other] < 0:
                    colour[other] = 1 - colour[site]
                    waiting.append(other)
                elif colour[other] == colour[site]:
                    return None
    return np.asarray(colour, np.int8)


def _edge_keys(edges: np.ndarray, n_sites: int) -> np.ndarray:
    """One number per undirected edge, sorted."""
    low, high = np.sort(edges.astype(np.int64), axis=1).T
    return np.sort(low * n_sites + high)


def _orthogonal(dimensions: int) -> list[np.ndarray]:
    """Orthogonal matrices that may map a lattice onto itself, identity first: in two dimensions those of the dodecagon."""
    if dimensions == 1:
        return [np.eye(1), -np.eye(1)]
    angles = np.pi / 6 * np.arange(12)
    turns = [np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in angles]
    return turns + [turn @ np.diag([1.0, -1.0]) for turn in turns]


def _crystal_shells(lattice: Lattice) -> Iterator[np.ndarray]:
    """Shells in the order of distance until no pair is left."""
    n, seen = lattice.n_sites, np.empty(0, np.int64)
    left = n * (n - 1) // 2
    reach, distance = 2, 0.0
    while left:
        offsets, separation = _separations(lattice, reach)
        assert lattice.vectors is not None
        # Offsets of up to ``reach`` cells are complete out to the width of a layer of cells times reach.
        width = 1 / np.linalg.norm(np.linalg.inv(lattice.vectors), axis=0).max()
        complete = separation < width * reach - width
        for length in np.unique(np.round(separation[complete], 6)):
            if length <= distance + _CLOSE:
                continue
            distance = length
            pairs = _pairs_at(lattice, offsets[np.abs(separation - length) < 2 * _CLOSE])
            keys = pairs[:, 0] * n + pairs[:, 1]
            fresh = ~np.isin(keys, seen)
            if fresh.any():
                seen = np.concatenate([seen, keys[fresh]])
                left -= int(fresh.sum())
                yield pairs[fresh].astype(np.int32)
        reach *= 2


def _separations(lattice: Lattice, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (cells ..., from, to) (m, d + 2) int64 of up to ``reach`` cells, and their lengths (m,), zero left out."""
    ranges = [range(-min(reach, n), min(reach, n) + 1) for n in lattice.extent]
    rows = itertools.product(*ranges, range(lattice.basis), range(lattice.basis))
    offsets = np.asarray(list(rows), np.int64)
    d, places = lattice.dimensions, lattice.positions[: lattice.basis]
    assert lattice.vectors is not None
    vectors = offsets[:, :d] @ lattice.vectors + places[offsets[:, d + 1]] - places[offsets[:, d]]
    length = np.linalg.norm(vectors, axis=1)
    kept = length > _CLOSE
    return offsets[kept], length[kept]


def _pairs_at(lattice: Lattice, offsets: np.ndarray) -> np.ndarray:
    """Distinct pairs i < j of sites that one of the offsets (m, d + 2) connects."""
    d, keys = lattice.dimensions, []
    cells = lattice.cells[:: lattice.basis]
    extent, wraps = np.asarray(lattice.extent), np.asarray(lattice.wraps)
    for row in offsets:
        target = cells + row[:d]
        inside = ((target >= 0) & (target < extent) | wraps).all(axis=1)
        first = np.flatnonzero(inside) * lattice.basis + row[d]
        other = np.ravel_multi_index((target[inside] % extent).T, lattice.extent) * lattice.basis + row[d + 1]
        low, high = np.minimum(first, other), np.maximum(first, other)
        keys.append((low * lattice.n_sites + high)[low < high])
    distinct = np.unique(np.concatenate(keys)) if keys else np.empty(0, np.int64)
    return np.stack(np.divmod(distinct, lattice.n_sites), axis=1)


def _graph_shells(lattice: Lattice) -> list[np.ndarray]:
    """Pairs by the least number of edges between them; pairs in different parts are in none."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import shortest_path

    n, edges = lattice.n_sites, lattice.edges
    graph = csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(n, n))
    distance = shortest_path(graph, directed=False, unweighted=True)
    low, high = np.triu_indices(n, 1)
    apart = distance[low, high]
    largest = int(apart[np.isfinite(apart)].max(initial=0))
    return [np.stack([low, high], axis=1)[apart == k].astype(np.int32) for k in range(1, largest + 1)]


class Geometry(Section):
    """Base of the records of ``[lattice]``: a ``kind``, and the lattice it makes."""

    def build(self) -> Lattice:
        """The lattice of this record: the same one, with the shells found so far, to all who ask."""
        return _built(self)

    def make(self) -> Lattice:
        """The lattice of this record, anew."""
        raise NotImplementedError


@lru_cache(maxsize=16)
def _built(geometry: Geometry) -> Lattice:
    return geometry.make()


class Chain(Geometry):
    """A line of sites, closed to a ring when periodic."""

    kind: Literal["chain"]
    length: int = Field(ge=2, le=MAX_SITES, description="number of sites")
    periodic: bool = Field(default=True, description="whether the last site is a neighbour of the first")

    def make(self) -> Lattice:
        """The lattice of this record, anew."""
        sites = np.arange(self.length, dtype=np.int32)
        edges = np.stack([sites[:-1], sites[1:]], axis=1)
        if self.periodic and self.length > 2:
            edges = np.concatenate([edges, np.array([[self.length - 1, 0]], dtype=np.int32)])
        return Lattice(
            n_sites=self.length,
            edges=edges,
            positions=sites[:, None].astype(np.float64),
            sublattice=(sites % 2).astype(np.int8),
            bipartite=not (self.periodic and self.length % 2 and self.length > 2),
            extent=(self.length,),
            wraps=(self.periodic,),
            vectors=np.eye(1),
        )


_PERIODIC = Field(
    default=True, description="whether the lattice closes on itself: for both axes, or one value for each"
)


class _Plane(Geometry):
    """A two-dimensional lattice of ``lengths`` unit cells."""

    lengths: tuple[Length, Length] = Field(description="unit cells along both axes")
    periodic: Periodic = _PERIODIC

    @field_validator("lengths")
    @classmethod
    def _fits(cls, lengths: tuple[int, int]) -> tuple[int, int]:
        n_sites = math.prod(lengths) * len(_CRYSTALS[cls][1])
        if n_sites > MAX_SITES:
            raise ValueError(f"these are {n_sites} sites, at most {MAX_SITES} are possible")
        return lengths

    def make(self) -> Lattice:
        """The lattice of this record, anew."""
        return crystal(*_CRYSTALS[type(self)], self.lengths, _both(self.periodic))


class Rectangular(_Plane):
    """Square lattice of any extent: four neighbours, at distance one along both axes."""

    kind: Literal["rectangular"]


class Triangular(_Plane):
    """Triangular lattice: six neighbours; the axes enclose 60 degrees."""

    kind: Literal["triangular"]


class Honeycomb(_Plane):
    """Honeycomb lattice: three neighbours, two sites in each unit cell."""

    kind: Literal["honeycomb"]


class Kagome(_Plane):
    """Kagome lattice: four neighbours, three sites in each unit cell."""

    kind: Literal["kagome"]


_HEXAGONAL = np.array([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
_CRYSTALS: dict[type[_Plane], tuple[np.ndarray, np.ndarray]] = {
    Rectangular: (np.eye(2), np.zeros((1, 2))),
    Triangular: (_HEXAGONAL, np.zeros((1, 2))),
    # Neighbours at distance one.
    Honeycomb: (math.sqrt(3) * _HEXAGONAL, np.array([[0.0, 0.0], [math.sqrt(3) / 2, 0.5]])),
    Kagome: (2 * _HEXAGONAL, np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])),
}


class Square(Geometry):
    """Square lattice of length x length sites."""

    kind: Literal["square"]
    length: int = Field(ge=2, le=64, description="sites along each axis")
    periodic: Periodic = _PERIODIC

    def make(self) -> Lattice:
        """The lattice of this record, anew."""
        return crystal(*_CRYSTALS[Rectangular], (self.length, self.length), _both(self.periodic))


def _edge(edge: tuple[int, int], info: ValidationInfo) -> tuple[int, int]:
    sites = info.data.get("sites", MAX_SITES)
    if min(edge) < 0 or max(edge) >= sites:
        raise ValueError(f"[{edge[0]}, {edge[1]}] is outside 0 ... {sites - 1}")
    if edge[0] == edge[1]:
        raise ValueError(f"[{edge[0]}, {edge[1]}] joins a site with itself")
    return edge


Edge = Annotated[tuple[int, int], AfterValidator(_edge)]


class Graph(Geometry):
    """Any graph, edge by edge: no axes, no translations; distance counts edges."""

    kind: Literal["graph"]
    sites: int = Field(ge=2, le=MAX_SITES, description="number of sites, called 0 ... sites - 1")
    edges: tuple[Edge, ...] = Field(
        min_length=1, max_length=100_000, description="pairs of neighbours, [[0, 1], [1, 2], ...], each once"
    )

    @field_validator("edges")
    @classmethod
    def _each_once(cls, edges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        first: dict[tuple[int, int], int] = {}
        for index, (i, j) in enumerate(edges):
            before = first.setdefault((min(i, j), max(i, j)), index)
            if before < index:
                raise ValueError(
                    f"[{index}] = [{i}, {j}] is the edge of [{before}] once more: list each once"
                )
        return edges

    def make(self) -> Lattice:
        """The lattice of this record, anew."""
        edges = np.asarray([sorted(edge) for edge in self.edges], np.int32)
        colours = two_colours(self.sites, edges)
        bipartite = colours is not None
        return Lattice(
            n_sites=self.sites,
            edges=edges,
            positions=np.arange(self.sites, dtype=np.float64)[:, None],
            sublattice=np.zeros(self.sites, np.int8) if colours is None else colours,
            bipartite=bipartite,
        )


def _both(periodic: Periodic) -> tuple[bool, bool]:
    return (periodic, periodic) if isinstance(periodic, bool) else periodic


LATTICES: dict[str, type[Geometry]] = {
    "chain": Chain,
    "square": Square,
    "rectangular": Rectangular,
    "triangular": Triangular,
    "honeycomb": Honeycomb,
    "kagome": Kagome,
    "graph": Graph,
}
