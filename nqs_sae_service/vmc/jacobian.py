"""O-bar of one set of samples, for any network made of bricks: the plain form of ``states.fused.Jacobian``.

One forward and one backward pass leave every sample its own inputs x and deltas at every brick. A dense map's share of O
is sum_t x_t (outer) delta_t, with t the tokens: it is made in blocks of columns that are used and thrown away, so that O
is never held. Where delta is the same for all tokens (below the sum over tokens) or there is one token (the head), it has
rank one, and its part of T = O-bar O-bar^T is an elementwise product of two small Gram matrices. Everything else (biases,
gains, attention weights) is narrow and kept as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from ..engine.blas import COLUMNS
from ..engine.jit import numba
from ..engine.panels import Panels, all_rows
from ..engine.ranks import ALONE, Ranks
from ..states import Wavefunction
from ..states.primitives import Brick, Dense
from .gram import (
    accumulate_rank_one,
    add_lower,
    add_tiles,
    centre_columns,
    column_sums,
    lanes,
    mirror,
    outer_columns,
    outer_product,
    rank_one_tiles,
    times_vector,
    token_sums,
    weighted_outer,
    weighted_rows,
)

PASS = 128  # samples on one tape: their edges stay in the shared cache
_ROUNDS = 2  # products of COLUMNS columns that are summed in the precision of the network, before they go into float64
_STRETCH = 28 * 2**20  # bytes
_NEGLIGIBLE = 8  # singular values of the inputs of a map, in units of rounding, that count as zero

Piece = tuple[
    Dense | None, int, int
]  # a dense map, or None for the narrow columns; first and last (row of its weights)


class _Store:
    """Arrays cut from long stretches: the system hands out memory by large pages then, far faster than by small ones.

    A stretch is a little shorter than the 32 MB up to which glibc's allocator learns from what is freed: after the first step
    it keeps as much for later ones, and the many temporary arrays of a pass are no longer fetched from the system each time.
    """

    def __init__(self, dtype: np.dtype):
        self.stretch = np.empty(0, dtype)

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of this shape, its elements undefined."""
        size = math.prod(shape)
        if size > self.stretch.size:
            self.stretch = np.empty(max(size, _STRETCH // self.stretch.itemsize), self.stretch.dtype)
        array, self.stretch = self.stretch[:size], self.stretch[-(-size // 16) * 16 :]
        return array.reshape(shape)


def _width(ranks: Ranks, columns: int) -> int:
    share = ranks.share(columns)
    return share.stop - share.start


def _basis(x: np.ndarray, ranks: Ranks) -> np.ndarray | None:
    """Orthonormal basis (channel, rank) of the rows of x (m, channel) of all ranks, up to rounding; None where that is full."""
    floor = (_NEGLIGIBLE * np.finfo(x.dtype).eps) ** 2

    def gram(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        return ranks.sum(rows.T @ rows)

    few, full = gram(x[: 4 * x.shape[1]]), False
    with suppress(np.linalg.LinAlgError):  # the cheap test: no eigenvalue below the floor
        np.linalg.cholesky(few - 2 * floor * np.trace(few) * np.eye(len(few)))
        full = True
    if ranks.agree(full):
        return None
    values, vectors = ranks.agree(np.linalg.eigh(gram(x)))
    kept = values > floor * values.sum()
    return None if kept.all() else vectors[:, kept].astype(x.dtype)


class TapeJacobian:
    """O-bar of configurations ``sigma`` (n, n_sites): rows of Re O-bar above those of Im O-bar when psi has a phase.

    Of a projected state every column is kept, summed over the copies: rows n_parameters numbers, fewer than the inputs and
    deltas of all copies.

    Memory: n token (fan_in + 2 fan_out) numbers per dense map; for T rows x 2048 x lanes (1 to 8, about 4096 / rows) for
    columns at work, as much for sums, T itself. Of several ranks each holds its own n samples and rows, and its share of T.
    """

    def __init__(self, psi: Wavefunction, sigma: np.ndarray, ranks: Ranks = ALONE):
        self.psi, self.n, self.ranks = psi.fast_bricks, len(sigma), ranks
        self.samples = int(ranks.sum(np.asarray([self.n]))[0])
        self.groups, self.copies = 2 if psi.state.complex_amplitude else 1, psi.state.n_copies
        self.dtype = psi.parameters.dtype
        self.inputs: dict[str, np.ndarray] = {}  # edge -> (n, token, fan_in)
        self.deltas: dict[str, np.ndarray] = {}  # edge -> (rows, token, fan_out)
        self.distilled: dict[str, np.ndarray] = {}  # edge -> (n, token, rank)
        self.rank_one: dict[
            str, tuple[np.ndarray, np.ndarray]
        ] = {}  # dense map -> (n, fan_in + 1), (rows, fan_out)
        self.narrow = np.empty((self.groups * self.n, 0), self.dtype)  # every other column of O, centred
        self.narrow_places = np.empty(0, np.intp)
        self._store = _Store(self.dtype)
        self._record(sigma)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Real parts above imaginary ones when psi has a phase, real parts alone otherwise."""
        return np.concatenate([values.real, values.imag]) if self.groups == 2 else values.real

    def gram_and_product(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """T (rows, rows) and O-bar vector (rows,), float64."""
        rows = self.groups * self.n
        total, count = np.zeros((rows, rows)), lanes(rows)
        sums = np.empty((count, rows, rows), self.dtype)
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(self._distilled, self.inputs))
            blocks = list(self._blocks(count * COLUMNS))
            block = np.empty(rows * max((width for _, width in blocks), default=0), self.dtype)
            for number, (pieces, width) in enumerate(blocks):
                columns = block[: rows * width].reshape(rows, width)
                self._fill(pieces, columns)
                add_tiles(columns, sums, float(number % _ROUNDS > 0), pool.map)
                if number % _ROUNDS == _ROUNDS - 1 or number == len(blocks) - 1:
                    add_lower(sums, total)
        for x, delta in self.rank_one.values():
            accumulate_rank_one(x, delta, self.n, total)
        mirror(total, 1 / self.n)
        return total, self.product(vector)

    def gram_panels(self, panels: Panels) -> dict[int, np.ndarray]:
        """This rank's panels of T.

        Every rank makes its own rows of all columns, block by block, and gives every other one a share of the columns: it ends
        with all rows of its share, of m rows and c columns 4 m c / P bytes, received and held.
        """
        for edge in self.inputs:  # one after the other: the ranks agree on each basis
            self._distilled(edge)
        rows, total = self.groups * self.n, panels.zeros(self.narrow, np.float64)
        blocks = list(self._blocks(COLUMNS))
        share = np.empty((panels.rows, sum(_width(self.ranks, width) for _, width in blocks)), self.dtype)
        place = 0
        for pieces, width in blocks:
            mine = np.empty((rows, width), self.dtype)
            self._fill(pieces, mine)
            own = _width(self.ranks, width)
            share[:, place : place + own] = all_rows(mine, self.ranks)
            place += own
        panels.add_products(total, share)
        for x, delta in self.rank_one.values():
            panels.add(total, rank_one_tiles(x, delta, self.samples, self.ranks))
        for panel in total.values():
            panel /= self.samples
        return total

    def _blocks(self, columns: int) -> Iterator[tuple[list[Piece], int]]:
        """All columns that have to be multiplied out, as blocks of about equal width and at most about ``columns``."""
        parts = [(None, self.narrow.shape[1], 1)] + [
            (brick, self._distilled(brick.inputs[0]).shape[2], brick.fan_out)
            for brick in self._dense()
            if brick.name not in self.rank_one
        ]
        left = sum(size * each for _, size, each in parts)
        remaining = -(-left // columns)
        room, width = 0.0, 0
        pieces: list[Piece] = []
        for brick, size, each in parts:
            first = 0
            while first < size:
                if not pieces:
                    room = left / remaining
                last = min(size, first + max(1, round((room - width) / each)))
                pieces.append((brick, first, last))
                width += (last - first) * each
                first = last
                if width + each / 2 >= room:
                    yield pieces, width
                    left, remaining, pieces, width = left - width, max(1, remaining - 1), [], 0
        if pieces:
            yield pieces, width

    def _fill(self, pieces: list[Piece], block: np.ndarray) -> None:
        """The centred columns of some pieces, side by side."""
        place = 0
        for brick, first, last in pieces:
            if brick is None:
                block[:, place : place + last - first] = self.narrow[:, first:last]
                place += last - first
                continue
            delta = self.deltas[brick.output]
            x = self._distilled(brick.inputs[0])
            mean = self.ranks.sum(column_sums(x, delta, first, last)) / self.samples
            outer_columns(x, delta, first, last, mean, block, place)
            place += (last - first) * delta.shape[2]

    def _distilled(self, edge: str) -> np.ndarray:
        """An input (n, token, fan_in) in fewer channels if it spans fewer: T sees scalar products only, so any basis does.

        A patch of b spins, embedded and normalised, spans b + 2 dimensions at most however wide the network. What is left
        out is, squared, a rounding error of T.
        """
        if edge not in self.distilled:
            x = self.inputs[edge]
            flat = x.reshape(-1, x.shape[2])
            basis = _basis(flat, self.ranks)
            self.distilled[edge] = x if basis is None else (flat @ basis).reshape(*x.shape[:2], -1)
        return self.distilled[edge]

    def product(self, vector: np.ndarray) -> np.ndarray:
        """O-bar vector (rows,)."""
        product = times_vector(self.narrow, vector[self.narrow_places])
        for brick in self._dense():
            place, bias = self._places(brick)
            weights = vector[place].reshape(brick.fan_in, -1)
            if brick.name not in self.rank_one:
                outer_product(self.inputs[brick.inputs[0]], self.deltas[brick.output], weights, product)
                continue
            x, delta = self.rank_one[brick.name]
            along = x[:, :-1] @ weights + x[:, -1:] * vector[bias]
            product += (delta.reshape(self.groups, self.n, -1) * along).sum(axis=2).ravel()
        return self._centred(product)

    def transposed_product(self, y: np.ndarray) -> np.ndarray:
        """O-bar^T y (n_parameters,)."""
        weight = self._centred(y)
        result = np.zeros(self.psi.state.n_parameters)
        result[self.narrow_places] = weighted_rows(self.narrow, weight)
        for brick in self._dense():
            place, bias = self._places(brick)
            if brick.name not in self.rank_one:
                x, delta = self.inputs[brick.inputs[0]], self.deltas[brick.output]
                result[place] = weighted_outer(x, delta, weight).ravel()
                continue
            x, delta = self.rank_one[brick.name]
            weighted = (weight[:, None] * delta).reshape(self.groups, self.n, -1).sum(axis=0)
            both = x.T @ weighted
            result[place], result[bias] = both[:-1].ravel(), both[-1]
        return self.ranks.sum(result)

    def _centred(self, values: np.ndarray) -> np.ndarray:
        """Without the mean over all samples, divided by the square root of their number."""
        groups = values.reshape(self.groups, self.n)
        mean = self.ranks.sum(groups.sum(axis=1, keepdims=True)) / self.samples
        return (groups - mean).ravel() / math.sqrt(self.samples)

    def _dense(self) -> Iterator[Dense]:
        """Dense maps whose inputs and deltas are kept, not their columns."""
        return (brick for brick in self.psi.state.bricks if isinstance(brick, Dense) and self.copies == 1)

    def _places(self, brick: Dense) -> tuple[slice, slice]:
        layout = self.psi.state.layout
        return layout[f"{brick.name}.weight"][0], layout[f"{brick.name}.bias"][0]

    def _record(self, sigma: np.ndarray) -> None:
        """Tapes of all samples, pass by pass; NumPy lets go of the interpreter inside, so passes run side by side."""
        self._pass(sigma[:1], slice(0, 1))  # every array is made, before passes share them
        size = max(1, PASS // self.copies)
        passes = (slice(start, min(start + size, self.n)) for start in range(0, self.n, size))
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(lambda here: self._pass(sigma[here], here), passes))
        centre_columns(self.narrow, self.n, self.samples, self.ranks)

    def _pass(self, sigma: np.ndarray, here: slice) -> None:
        tape = self.psi.tape(sigma)
        deltas = tape.backward(parts=True)
        narrow: list[tuple[slice, np.ndarray]] = []
        for brick in self.psi.state.bricks:
            delta = deltas[brick.output]
            if isinstance(brick, Dense) and self.copies == 1:
                bias = self._keep_dense(brick, tape.edges[brick.inputs[0]], delta, here)
                narrow += [] if bias is None else [bias]
            elif brick.shapes():
                narrow += self._other(brick, tape, delta)
        if not self.narrow.size:
            width = sum(columns.shape[-1] for _, columns in narrow)
            self.narrow = self._store.take((self.groups * self.n, width))
            self.narrow_places = np.concatenate(
                [np.arange(place.start, place.stop) for place, _ in narrow] or [np.empty(0, np.intp)]
            )
        if narrow:
            self._by_rows(self.narrow, here, np.concatenate([columns for _, columns in narrow], axis=-1))

    def _by_rows(self, array: np.ndarray, here: slice, values: np.ndarray) -> None:
        """Write values (group, n, ...) of the samples ``here`` to their rows."""
        array.reshape(self.groups, self.n, *array.shape[1:])[:, here] = values

    def _grouped(self, values: np.ndarray) -> np.ndarray:
        """Per-sample values (n, ...), complex or by parts, as (group, n, ...)."""
        if np.iscomplexobj(values):
            return np.stack([values.real, values.imag])
        return values if self.groups == 2 else values[None]

    def _keep_dense(
        self, brick: Dense, x: np.ndarray, delta: np.ndarray, here: slice
    ) -> tuple[slice, np.ndarray] | None:
        """Keep x and delta of a dense map; returns the columns of its bias unless they are kept with the weights."""
        rows = self.groups * self.n
        delta = self._grouped(delta)
        if delta.shape[2] == 1 or delta.strides[2] == 0:
            if brick.name not in self.rank_one:
                self.rank_one[brick.name] = (
                    np.empty((self.n, brick.fan_in + 1)),
                    np.empty((rows, brick.fan_out)),
                )
            sums, single = self.rank_one[brick.name]
            sums[here, :-1], sums[here, -1] = x.sum(axis=1, dtype=np.float64), x.shape[1]
            self._by_rows(single, here, delta[:, :, 0])
            return None
        source = brick.inputs[0]
        if source not in self.inputs:
            self.inputs[source] = self._store.take((self.n, *x.shape[1:]))
        if brick.output not in self.deltas:
            self.deltas[brick.output] = self._store.take((rows, *delta.shape[2:]))
        self.inputs[source][here] = x
        self._by_rows(self.deltas[brick.output], here, delta)
        return self._places(brick)[1], token_sums(delta)

    def _other(self, brick: Brick, tape, delta: np.ndarray) -> list[tuple[slice, np.ndarray]]:
        layout = self.psi.state.layout
        grouped = ((name, self._grouped(g)) for name, g in tape.gradient(brick, delta).items())
        return [(layout[name][0], g.reshape(self.groups, g.shape[1], -1)) for name, g in grouped]
