"""O-bar on a GPU, for any network made of bricks, and the solve of minSR there.

The same matrix as ``jacobian.TapeJacobian``, by other means: a device has the memory to keep the tape of a step, and its
BLAS wants few large products. O is made array by array of parameters from the per-sample gradients of the bricks, centred,
and multiplied out in blocks of columns: 2 rows^2 n_parameters FLOPs in the precision of the network (twice what symmetry
needs: cuBLAS has no faster half), each block's product added to T in float64, 24 rows^2 bytes. At 1024 samples with a phase
and 24,448 parameters that is 0.2 TFLOP and 12 additions of 100 MB; the Cholesky factor takes rows^3 / 3 FLOPs in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..states import Wavefunction
from ..states.state import Tape

Array = Any

COLUMNS = 2048  # of a product: float32 sums are no longer than this before they are added up in float64


class DeviceJacobian:
    """``states.fused.Jacobian`` from the bricks' tape, for arrays on a device: rows of Re O-bar above those of Im O-bar."""

    def __init__(self, psi: Wavefunction, sigma: Array):
        self.psi, self.n, self.xp = psi, len(sigma), namespace(sigma)
        size = psi.pass_rows(self.n)
        tapes = [psi.tape(sigma[start : start + size]) for start in range(0, self.n, size)]
        self.passes = [(tape, tape.backward()) for tape in tapes]

    def rows(self, values: Array) -> Array:
        """Real parts above imaginary ones when psi has a phase, real parts alone otherwise."""
        return self._stacked(values) if self.psi.state.complex_amplitude else values.real

    def _stacked(self, values: Array) -> Array:
        xp = self.xp
        return xp.concatenate([values.real, values.imag]) if xp.iscomplexobj(values) else values

    def _blocks(self) -> Iterator[tuple[slice, Array]]:
        """Centred, scaled columns of one parameter array after the other: (place in the flat vector, (rows, size))."""
        for parts in zip(*(tape.gradients(deltas) for tape, deltas in self.passes), strict=True):
            block = self.xp.concatenate([g for _, g in parts])
            wide = np.complex128 if block.dtype.kind == "c" else np.float64
            mean = block.mean(axis=0, dtype=wide).astype(block.dtype)
            block = (block - mean) * block.real.dtype.type(1 / math.sqrt(self.n))
            yield parts[0][0], self._stacked(block)

    def product(self, vector: Array) -> Array:
        """O-bar vector (rows,)."""
        return sum(block @ vector[place].astype(block.dtype) for place, block in self._blocks())

    def gram_and_product(self, vector: Array) -> tuple[Array, Array]:
        """T (rows, rows) and O-bar vector (rows,), float64."""
        rows = self.n * (2 if self.psi.state.complex_amplitude else 1)
        total, product = self.xp.zeros((rows, rows)), self.xp.zeros(rows)
        for place, block in self._blocks():
            for start in range(0, block.shape[1], COLUMNS):
                part = block[:, start : start + COLUMNS]
                total += part @ part.T
            product += block @ vector[place].astype(block.dtype)
        return total, product

    def transposed_product(self, y: Array) -> Array:
        """O-bar^T y (n_parameters,): one more sum over the tape, with every sample weighted by its y."""
        weight = y[: self.n] - 1j * y[self.n :] if self.psi.state.complex_amplitude else y
        weight = (weight - weight.mean()) / math.sqrt(self.n)
        result = self.xp.zeros(self.psi.state.n_parameters)
        start = 0
        for tape, deltas in self.passes:
            end = start + len(tape.log_psi)
            _add_weighted(tape, deltas, weight[start:end], result)
            start = end
        return result


def _add_weighted(tape: Tape, deltas: dict[str, Array], weight: Array, result: Array) -> None:
    """result (n_parameters,) += Re sum_n weight_n O_n."""
    scaled = {
        name: delta * weight.astype(delta.dtype).reshape(-1, *(1,) * (delta.ndim - 1))
        for name, delta in deltas.items()
    }
    for place, g in tape.gradients(scaled, total=True):
        result[place] += g.real


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
