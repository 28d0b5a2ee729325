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

import numpy as np

from ..engine.blas import add_syrk
from ..engine.jit import numba
from ..states import Wavefunction
from ..states.primitives import Brick, Dense
from .gram import (
    COLUMNS,
    accumulate_rank_one,
    add_lower,
    centre_columns,
    mirror,
    outer_columns,
    weighted_outer,
)

PASS = 128  # samples on one tape: their edges stay in the shared cache
# Lanes add up pieces of columns side by side, each in its own matrix and order: their number must not follow the threads.
_LANES = 8
_LANES_BYTES = 2**28
_PIECES = 4  # that a lane adds up in the precision of the network before it is emptied into float64

Piece = tuple[
    Dense | None, int, int
]  # a dense map, or None for the narrow columns; first and last (row of its weights)


class TapeJacobian:
    """O-bar of configurations ``sigma`` (n, n_sites): rows of Re O-bar above those of Im O-bar when psi has a phase.

    Memory: n token (fan_in + 2 fan_out) numbers per dense map, rows x 1024 per thread for columns at work, lanes x rows^2.
    """

    def __init__(self, psi: Wavefunction, sigma: np.ndarray):
        self.psi, self.n = psi, len(sigma)
        self.groups = 2 if psi.state.complex_amplitude else 1
        self.dtype = psi.parameters.dtype
        self.inputs: dict[str, np.ndarray] = {}  # edge -> (n, token, fan_in)
        self.deltas: dict[str, np.ndarray] = {}  # edge -> (rows, token, fan_out)
        self.rank_one: dict[
            str, tuple[np.ndarray, np.ndarray]
        ] = {}  # dense map -> (n, fan_in + 1), (rows, fan_out)
        self.narrow = np.empty((self.groups * self.n, 0), self.dtype)  # every other column of O, centred
        self.narrow_places = np.empty(0, np.intp)
        self._record(sigma)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Real parts above imaginary ones when psi has a phase, real parts alone otherwise."""
        return np.concatenate([values.real, values.imag]) if self.groups == 2 else values.real

    def gram_and_product(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """T (rows, rows) and O-bar vector (rows,), float64."""
        rows = self.groups * self.n
        total, product = np.zeros((rows, rows)), self._other_product(vector)
        lanes = max(2, min(_LANES, _LANES_BYTES // (self.dtype.itemsize * rows**2)))
        sums, products = np.empty((lanes, rows, rows), self.dtype), np.zeros((lanes, rows))
        pieces = list(self._pieces())
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            for start in range(0, len(pieces), lanes * _PIECES):
                now = pieces[start : start + lanes * _PIECES]
                busy = min(lanes, len(now))
                list(
                    pool.map(
                        lambda i, now=now: self._lane(now[i::lanes], vector, sums[i], products[i]),
                        range(busy),
                    )
                )
                add_lower(sums[:busy], total)
        for x, delta in self.rank_one.values():
            accumulate_rank_one(x, delta, self.n, total)
        mirror(total, 1 / self.n)
        return total, self._centred(product + products.sum(axis=0))

    def _lane(self, pieces: list[Piece], vector: np.ndarray, total: np.ndarray, product: np.ndarray) -> None:
        """Lower triangle of ``total`` <- block block^T of all pieces, one after the other; ``product`` grows by O vector."""
        for number, piece in enumerate(pieces):
            add_syrk(self._columns(piece, vector, product), float(number > 0), total)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """O-bar vector (rows,)."""
        product = self._other_product(vector)
        for piece in self._pieces():
            self._columns(piece, vector, product)
        return self._centred(product)

    def transposed_product(self, y: np.ndarray) -> np.ndarray:
        """O-bar^T y (n_parameters,)."""
        weight = self._centred(y)
        result = np.zeros(self.psi.state.n_parameters)
        result[self.narrow_places] = weight @ self.narrow
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
        return result

    def _centred(self, values: np.ndarray) -> np.ndarray:
        """Without the mean over samples, divided by sqrt(n)."""
        groups = values.reshape(self.groups, self.n)
        return (groups - groups.mean(axis=1, keepdims=True)).ravel() / math.sqrt(self.n)

    def _dense(self) -> Iterator[Dense]:
        return (brick for brick in self.psi.state.bricks if isinstance(brick, Dense))

    def _places(self, brick: Dense) -> tuple[slice, slice]:
        layout = self.psi.state.layout
        return layout[f"{brick.name}.weight"][0], layout[f"{brick.name}.bias"][0]

    def _pieces(self) -> Iterator[Piece]:
        """All columns that have to be multiplied out, in pieces."""
        for brick in self._dense():
            if brick.name in self.rank_one:
                continue
            step = max(1, COLUMNS // brick.fan_out)
            yield from ((brick, a, min(brick.fan_in, a + step)) for a in range(0, brick.fan_in, step))
        width = self.narrow.shape[1]
        yield from ((None, a, min(width, a + COLUMNS)) for a in range(0, width, COLUMNS))

    def _columns(self, piece: Piece, vector: np.ndarray, product: np.ndarray) -> np.ndarray:
        """The centred columns (rows, size) of a piece; ``product`` grows by their product with ``vector``, up to centring."""
        brick, first, last = piece
        if brick is None:
            return np.ascontiguousarray(self.narrow[:, first:last])  # their product is among the others'
        x, delta = self.inputs[brick.inputs[0]], self.deltas[brick.output]
        start = self._places(brick)[0].start
        place = slice(start + first * brick.fan_out, start + last * brick.fan_out)
        block = np.empty((len(delta), place.stop - place.start), self.dtype)
        outer_columns(x, delta, first, last, vector[place], block, product)
        return block

    def _other_product(self, vector: np.ndarray) -> np.ndarray:
        """O vector (rows,), up to centring, without the dense maps of full rank."""
        product = self.narrow @ vector[self.narrow_places]
        for brick in self._dense():
            if brick.name in self.rank_one:
                (x, delta), (place, bias) = self.rank_one[brick.name], self._places(brick)
                along = x[:, :-1] @ vector[place].reshape(brick.fan_in, -1) + x[:, -1:] * vector[bias]
                product += (delta.reshape(self.groups, self.n, -1) * along).sum(axis=2).ravel()
        return product

    def _record(self, sigma: np.ndarray) -> None:
        """Tapes of all samples, pass by pass; NumPy lets go of the interpreter inside, so passes run side by side."""
        self._pass(sigma, 0)
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(lambda start: self._pass(sigma, start), range(PASS, self.n, PASS)))
        centre_columns(self.narrow, self.n)

    def _pass(self, sigma: np.ndarray, start: int) -> None:
        tape = self.psi.tape(sigma[start : start + PASS])
        deltas = tape.backward(parts=True)
        here = slice(start, min(start + PASS, self.n))
        narrow: list[tuple[slice, np.ndarray]] = []
        for brick in self.psi.state.bricks:
            delta = deltas[brick.output]
            if isinstance(brick, Dense):
                bias = self._keep_dense(brick, tape.edges[brick.inputs[0]], delta, here)
                narrow += [] if bias is None else [bias]
            elif brick.shapes():
                narrow += self._other(brick, tape, delta)
        if not start:
            width = sum(columns.shape[-1] for _, columns in narrow)
            self.narrow = np.empty((self.groups * self.n, width), self.dtype)
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
            self.inputs[source] = np.empty((self.n, *x.shape[1:]), self.dtype)
        if brick.output not in self.deltas:
            self.deltas[brick.output] = np.empty((rows, *delta.shape[2:]), self.dtype)
        self.inputs[source][here] = x
        self._by_rows(self.deltas[brick.output], here, delta)
        return self._places(brick)[1], delta.sum(axis=2)

    def _other(self, brick: Brick, tape, delta: np.ndarray) -> list[tuple[slice, np.ndarray]]:
        x = tuple(tape.edges[name] for name in brick.inputs)
        gradients = brick.gradient(tape.weights, x, delta, total=False)
        layout = self.psi.state.layout
        grouped = ((name, self._grouped(g)) for name, g in gradients.items())
        return [(layout[name][0], g.reshape(self.groups, g.shape[1], -1)) for name, g in grouped]
