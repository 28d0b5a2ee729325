"""T = O-bar O-bar^T over several ranks: each holds some panels of columns of its lower triangle; together they factorise it.

Panel j is the columns a ... b - 1 of T from row a on. There are 2 P k panels of at most 128 columns, dealt to the P ranks to
and fro (0, 1, ..., P-1, P-1, ..., 0, ...), so that all have the same share of the triangle: 8 m^2 / 2P bytes of an m x m
matrix. The rows are in the order of the ranks.

The solve is the right-looking block Cholesky factorisation (Golub & Van Loan, section 4.2), distributed in one dimension: the
owner of a panel finishes it, all get it, and each takes its contribution off its own later panels. m^3 / 3P FLOPs and 4 m^2
bytes received per rank: the operations shrink with P, the bytes do not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.linalg

from .arrays import namespace, to_host
from .blas import COLUMNS, TILE
from .jit import numba
from .ranks import Ranks

Array = Any
Tile = Callable[[slice, slice], Array]

_WIDTH = 128


@dataclass(frozen=True)
class Panels:
    """How T (rows, rows) is spread over the ranks."""

    ranks: Ranks
    rows: int

    @property
    def columns(self) -> list[slice]:
        """The columns of every panel."""
        turn = 2 * self.ranks.size
        count = turn * -(-self.rows // (turn * _WIDTH))
        cuts = [panel * self.rows // count for panel in range(count + 1)]
        return [slice(a, b) for a, b in pairwise(cuts)]

    def owner(self, panel: int) -> int:
        """The rank that holds a panel."""
        place = panel % (2 * self.ranks.size)
        return min(place, 2 * self.ranks.size - 1 - place)

    @property
    def own(self) -> dict[int, slice]:
        """The panels of this rank, and their columns."""
        return {j: c for j, c in enumerate(self.columns) if self.owner(j) == self.ranks.rank}

    def zeros(self, like: Array, dtype: type) -> dict[int, Array]:
        """The panels of this rank of a matrix of zeros, each (rows - first column, width), where ``like`` is."""
        shapes = {j: (self.rows - c.start, c.stop - c.start) for j, c in self.own.items()}
        return {j: namespace(like).zeros(shape, dtype) for j, shape in shapes.items()}

    def add(self, panels: dict[int, Array], tile: Tile, first: int = 0) -> None:
        """Add ``tile(rows, columns)`` to all tiles of this rank's panels from number ``first`` on."""
        tasks = [
            (j, here, columns)
            for j, columns in self.own.items()
            if j >= first
            for here in self._strips(columns.start, panels[j])
        ]

        def add(task: tuple[int, slice, slice]) -> None:
            j, here, columns = task
            panels[j][here.start - columns.start : here.stop - columns.start] += tile(here, columns)

        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(
                pool.map(add, tasks) if all(namespace(p) is np for p in panels.values()) else map(add, tasks)
            )

    def _strips(self, first: int, panel: Array) -> list[slice]:
        """Rows that are worked on at a time: few on the host, for its caches and threads, all on a device."""
        step = TILE if namespace(panel) is np else self.rows
        return [slice(start, min(start + step, self.rows)) for start in range(first, self.rows, step)]

    def add_products(self, panels: dict[int, Array], block: Array) -> None:
        """Add B B^T, of which this rank has the columns ``block`` (rows, some) and the others have others, all rows of them.

        Every rank makes its part of every panel, P panels at a time, and gives it to the owner: rows^2 some FLOPs, and 4 rows^2
        bytes received. Sums longer than ``COLUMNS`` are float64.
        """
        xp, size = namespace(block), self.ranks.size
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            side_by_side = pool.map if xp is np else map
            for turn in range(0, len(self.columns), size):  # one panel of every rank
                parts = {
                    self.owner(j): self._part(block, self.columns[j], side_by_side)
                    for j in range(turn, turn + size)
                }
                (own,) = (j for j in range(turn, turn + size) if j in panels)
                for part in self.ranks.exchange([parts[rank] for rank in range(size)]):
                    panels[own] += xp.asarray(part)

    def _part(self, block: Array, columns: slice, side_by_side: Callable[..., Any]) -> np.ndarray:
        """What the columns ``block`` of B contribute to one panel, float64, on the host."""
        total = namespace(block).zeros((self.rows - columns.start, columns.stop - columns.start))

        def add(here: slice) -> None:
            target = total[here.start - columns.start : here.stop - columns.start]
            for start in range(0, block.shape[1], COLUMNS):
                some = slice(start, start + COLUMNS)
                target += block[here, some] @ block[columns, some].T

        list(side_by_side(add, self._strips(columns.start, total)))
        return to_host(total)

    def whole(self, panels: dict[int, Array]) -> Array:
        """The matrix (rows, rows), on every rank."""
        some = next(iter(panels.values()))
        total = namespace(some).empty((self.rows, self.rows), some.dtype)
        for j, columns in enumerate(self.columns):
            panel = self._spread(panels, j, some)
            total[columns, columns.start :] = panel.conj().T
            total[columns.start :, columns] = panel
        return total

    def _spread(self, panels: dict[int, Array], j: int, like: Array) -> Array:
        columns = self.columns[j]
        if j not in panels:
            empty = namespace(like).empty(
                (self.rows - columns.start, columns.stop - columns.start), like.dtype
            )
            return self.ranks.spread(empty, self.owner(j))
        return self.ranks.spread(panels[j], self.owner(j))

    def solve(self, panels: dict[int, Array], shift: float, rhs: Array) -> Array | None:
        """(T + shift I)^-1 rhs (rows,), on every rank, rhs on every rank; ``panels`` are overwritten by those of L.

        T is real and symmetric or complex and Hermitian. None, on every rank, where T + shift I is not positive definite.
        The block on the diagonal is replaced by its inverse factor, all that is ever needed of it.
        """
        rest = rhs.copy()
        for j, columns in enumerate(self.columns):
            first, last, width = columns.start, columns.stop, columns.stop - columns.start
            if j in panels:
                _finish(panels[j], shift)
            panel = self._spread(panels, j, rhs)
            if not width:
                continue
            if not bool(namespace(panel).isfinite(panel[0, 0])):
                return None
            rest[first:last] = panel[:width] @ rest[first:last]
            rest[last:] -= panel[width:] @ rest[first:last]

            def contribution(rows: slice, others: slice, panel: Array = panel, first: int = first) -> Array:
                left, right = (
                    panel[rows.start - first : rows.stop - first],
                    panel[others.start - first : others.stop - first],
                )
                return -(left @ right.conj().T)

            self.add(panels, contribution, j + 1)
        for j, columns in reversed(list(enumerate(self.columns))):
            part = rest[columns]
            if j in panels:
                width = columns.stop - columns.start
                below = panels[j][width:].conj().T @ rest[columns.stop :]
                part = panels[j][:width].conj().T @ (part - below)
            rest[columns] = self.ranks.spread(part, self.owner(j))
        return rest


def all_rows(block: np.ndarray, ranks: Ranks) -> np.ndarray:
    """From this rank's rows of all columns to all rows of its share of the columns: 4 rows columns / P bytes in float32."""
    parts = [block[:, ranks.share(block.shape[1], rank)] for rank in range(ranks.size)]
    return np.concatenate(ranks.exchange(parts))


def _finish(panel: Array, shift: float) -> None:
    """A panel (height, width) of L, in place, when all earlier ones have been taken off; NaN where that is impossible."""
    width = panel.shape[1]
    block = to_host(panel[:width]) + shift * np.eye(width)
    try:
        lower = np.linalg.cholesky(block)
        inverse = scipy.linalg.solve_triangular(lower, np.eye(width, dtype=block.dtype), lower=True)
    except np.linalg.LinAlgError:
        inverse = np.full_like(block, np.nan)
    panel[:width] = namespace(panel).asarray(inverse)
    panel[width:] = panel[width:] @ panel[:width].conj().T
