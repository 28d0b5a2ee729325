"""O-bar on a GPU, for any network made of bricks, and the solve of minSR there.

The same matrix as ``jacobian.TapeJacobian``, by other means: launches, not operations, are what a device has few of. All
columns stand side by side in one matrix, which is kept while it fits: 4 rows n_parameters bytes, 200 MB for 1024 samples with
a phase and 24,448 parameters. A fast twin with the ability ``Columns`` writes it in one launch; otherwise it is written from
the bricks' tape, and what does not fit is made again, slab by slab, for every product. T takes rows^2 n_parameters FLOPs
(symmetric half only) in double precision where the device has it at half the speed of float32 or better, else in short
float32 sums that are added up in float64; the Cholesky factor takes rows^3 / 3 in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.devices import doubles_are_fast, rows_that_fit
from ..engine.panels import Panels, all_rows
from ..engine.ranks import ALONE, Ranks
from ..states import Wavefunction
from ..states.fused import Columns
from ..states.primitives import Brick

Array = Any

COLUMNS = (
    2048  # of a product in float32: its sums are no longer than this before they are added up in float64
)
_COLUMNS_IN_DOUBLE = 2**14  # of a product in float64: its copy takes 8 rows bytes a column


class DeviceJacobian:
    """``states.fused.Jacobian`` from the bricks' tape, for arrays on a device: rows of Re O-bar above those of Im O-bar."""

    def __init__(self, psi: Wavefunction, sigma: Array, ranks: Ranks = ALONE):
        self.psi, self.n, self.xp, self.ranks = psi, len(sigma), namespace(sigma), ranks
        self.samples = int(ranks.sum(np.asarray([self.n]))[0])
        self.groups = 2 if psi.state.complex_amplitude else 1
        self.kept: tuple[slice, Array] | None
        self.slabs = self._slabs(sigma)
        columns = psi.twin(Columns)  # type: ignore[type-abstract]
        if columns is not None and len(self.slabs) == 1:
            self.kept = self._centred(slice(0, psi.state.n_parameters), columns.columns(sigma))
            return
        size = psi.pass_rows(self.n)
        tapes = [psi.tape(sigma[start : start + size]) for start in range(0, self.n, size)]
        self.passes = [(tape, tape.backward(parts=True)) for tape in tapes]
        self.kept = self._slab(self.slabs[0]) if len(self.slabs) == 1 else None

    def rows(self, values: Array) -> Array:
        """Real parts above imaginary ones when psi has a phase, real parts alone otherwise."""
        return self.xp.concatenate([values.real, values.imag]) if self.groups == 2 else values.real

    def product(self, vector: Array) -> Array:
        """O-bar vector (rows,)."""
        products = (block @ vector[place].astype(block.dtype) for place, block in self._blocks())
        return sum(products) / math.sqrt(self.samples)

    def gram_and_product(self, vector: Array) -> tuple[Array, Array]:
        """T (rows, rows) and O-bar vector (rows,), float64."""
        from cupy.cublas import syrk

        xp, rows = self.xp, self.groups * self.n
        total, product = xp.zeros((rows, rows)), xp.zeros(rows)
        wide = doubles_are_fast(xp)
        step = _COLUMNS_IN_DOUBLE if wide else COLUMNS
        for place, block in self._blocks():
            product += block @ vector[place].astype(block.dtype)
            for start in range(0, block.shape[1], step):
                part = block[:, start : start + step]
                if wide:
                    syrk("N", part.astype(np.float64), out=total, beta=1.0, lower=True)
                    continue
                total += syrk(
                    "N", xp.ascontiguousarray(part), out=xp.zeros((rows, rows), part.dtype), lower=True
                )
        return (total + xp.tril(total, -1).T) / self.n, product / math.sqrt(self.n)

    def gram_panels(self, panels: Panels) -> dict[int, Array]:
        """This rank's panels of T: columns are exchanged, and parts of panels added up, through the host."""
        total = panels.zeros(self.psi.parameters, np.float64)
        wide = np.float64 if doubles_are_fast(self.xp) else self.psi.parameters.dtype
        for _, block in self._blocks():
            share = self.xp.asarray(all_rows(to_host(block), self.ranks))
            panels.add_products(total, share.astype(wide))
        for panel in total.values():
            panel /= self.samples
        return total

    def transposed_product(self, y: Array) -> Array:
        """O-bar^T y (n_parameters,)."""
        result = self.xp.empty(self.psi.state.n_parameters)
        for place, block in self._blocks():
            result[place] = y.astype(block.dtype) @ block
        return self.ranks.sum(result) / math.sqrt(self.samples)

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """All columns: (place in the flat vector, (rows, size))."""
        return iter([self.kept]) if self.kept is not None else map(self._slab, self.slabs)

    def _slabs(self, like: Array) -> list[list[Brick]]:
        """Neighbouring bricks whose columns are made together: all of them, or as many as the memory beside ``like`` holds."""
        state = self.psi.state
        bytes_per_column = self.groups * self.n * np.dtype(self.psi.parameters.dtype).itemsize
        fitting = rows_that_fit(bytes_per_column, like, state.n_parameters, state.n_parameters)
        most = min(self.ranks.collect(fitting))  # slabs are exchanged: all ranks have the same
        slabs: list[list[Brick]] = []
        width = most
        for brick in state.bricks:
            size = sum(math.prod(shape) for shape in brick.shapes().values())
            if not size:
                continue
            if width + size > most:
                slabs.append([])
                width = 0
            slabs[-1].append(brick)
            width += size
        return slabs

    def _slab(self, bricks: list[Brick]) -> tuple[slice, Array]:
        """Centred columns of some bricks: (place in the flat vector, (rows, size))."""
        xp, layout = self.xp, self.psi.state.layout
        places = [layout[name][0] for brick in bricks for name in brick.shapes()]
        first, last = places[0].start, places[-1].stop
        block = xp.empty((self.groups, self.n, last - first), self.psi.parameters.dtype)
        start = 0
        for tape, deltas in self.passes:
            stop = start + len(tape.log_psi)
            for brick in bricks:
                for name, g in tape.gradient(brick, deltas[brick.output]).items():
                    place = layout[name][0]
                    columns = block[:, start:stop, place.start - first : place.stop - first]
                    columns[...] = self._grouped(g).reshape(columns.shape)
            start = stop
        return self._centred(slice(first, last), block)

    def _centred(self, place: slice, block: Array) -> tuple[slice, Array]:
        """Columns (group, n, size) as rows, without their means over each group; not yet divided by sqrt(n)."""
        sums = self.ranks.sum(block.sum(axis=1, keepdims=True, dtype=np.float64))
        block -= (sums / self.samples).astype(block.dtype)
        return place, block.reshape(self.groups * self.n, -1)

    def _grouped(self, values: Array) -> Array:
        """Per-sample values (n, ...), complex or by parts, as (group, n, ...)."""
        xp = self.xp
        if xp.iscomplexobj(values):
            return xp.stack([values.real, values.imag])
        return values if self.groups == 2 else values[None]


def solve_on_device(gram: Array, shift: float, rhs: Array) -> Array:
    """(T + shift I)^-1 rhs by Cholesky, by the eigenvalues if that fails; NaN where T or rhs is not finite.

    cuSOLVER says by NaN, not by an error, that a matrix is not positive definite.
    """
    from cupyx.scipy.linalg import solve_triangular

    xp = namespace(gram)
    lower = xp.linalg.cholesky(gram + shift * xp.eye(len(gram)))
    y = solve_triangular(lower, solve_triangular(lower, rhs, lower=True), trans=1, lower=True)
    if xp.isfinite(y).all() or not (xp.isfinite(gram).all() and xp.isfinite(rhs).all()):
        return y
    values, vectors = xp.linalg.eigh(gram)
    return vectors @ ((vectors.T @ rhs) / (xp.maximum(values, 0) + shift))
