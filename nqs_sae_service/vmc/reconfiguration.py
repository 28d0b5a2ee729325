"""Stochastic reconfiguration in sample space: minSR with the momentum of SPRING.

Chen & Heyl, arXiv:2302.01941; Goldshlager et al., arXiv:2401.10190. With O-bar = (O - mean O) / sqrt(n_s) and
eps = (E_loc - E) / sqrt(n_s), real and imaginary parts stacked as rows, and T = O-bar O-bar^T:

    d theta_k = O-bar^T (T + shift I)^-1 (eps - mu O-bar d theta_{k-1}) + mu d theta_{k-1},      theta <- theta - lr d theta_k

mu = 0 is minSR. T is accumulated array by array; O is never held whole. The update is bounded in the metric S = O-bar^T O-bar:
its length |O-bar d theta| is how far the normalised state moves, and a step that is too long is shortened and reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from ..engine.arrays import namespace
from ..errors import NumericalError
from ..states import Wavefunction
from ..states.fused import Differentiates, Jacobian
from ..states.state import Tape
from .gram import accumulate_gram, mirror


@dataclass(frozen=True)
class Update:
    """A step: direction d theta (n_parameters,) float64, its length in the metric S, and the factor that bounds it."""

    direction: np.ndarray
    norm: float
    factor: float

    @property
    def bounded(self) -> bool:
        """Whether the step was shortened."""
        return self.factor < 1


def _stacked(values: np.ndarray) -> np.ndarray:
    """Real rows of complex ones: (n, ...) -> (2n, ...) when complex."""
    xp = namespace(values)
    return xp.concatenate([values.real, values.imag]) if xp.iscomplexobj(values) else values


class TapeJacobian:
    """O-bar of one set of samples from the bricks' tape: the plain form of ``states.fused.Jacobian``, for any network."""

    def __init__(self, psi: Wavefunction, sigma: np.ndarray):
        self.psi, self.n, self.xp = psi, len(sigma), namespace(sigma)
        self.passes = []
        size = psi.pass_rows(self.n)
        for start in range(0, self.n, size):
            tape = psi.tape(sigma[start : start + size])
            self.passes.append((tape, tape.backward()))

    def _blocks(self):
        """Centred, scaled, stacked blocks of columns: (place in the flat vector, (rows, size))."""
        for parts in zip(*(tape.gradients(deltas) for tape, deltas in self.passes), strict=True):
            block = self.xp.concatenate([g for _, g in parts])
            wide = np.complex128 if block.dtype.kind == "c" else np.float64
            block = (block - block.mean(axis=0, dtype=wide)) / math.sqrt(self.n)
            real = parts[0][1].real.dtype
            yield parts[0][0], _stacked(block).astype(real)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """Real parts above imaginary ones when psi has a phase, real parts alone otherwise."""
        return _stacked(values if self.psi.state.complex_amplitude else values.real)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """O-bar vector (rows,)."""
        return sum(block @ vector[place].astype(block.dtype) for place, block in self._blocks())

    def gram_and_product(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """T (rows, rows) and O-bar vector (rows,), rows = n, or 2n with a phase."""
        rows = self.n * (2 if self.psi.state.complex_amplitude else 1)
        total, product = self.xp.zeros((rows, rows)), self.xp.zeros(rows)
        for place, block in self._blocks():
            accumulate_gram(block, total)
            product += block @ vector[place].astype(block.dtype)
        return mirror(total), product

    def transposed_product(self, y: np.ndarray) -> np.ndarray:
        """O-bar^T y (n_parameters,): one more sum over the tape, with every sample weighted by its y."""
        weight = y[: self.n] - 1j * y[self.n :] if self.psi.state.complex_amplitude else y
        weight = (weight - weight.mean()) / math.sqrt(self.n)
        result = self.xp.zeros(self.psi.state.n_parameters)
        start = 0
        for tape, deltas in self.passes:
            rows = len(tape.log_psi)
            result += _weighted(tape, deltas, weight[start : start + rows])
            start += rows
        return result


def _weighted(tape: Tape, deltas: dict[str, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Re sum_n weight_n O_n (n_parameters,)."""
    scaled = {
        name: delta * weight.astype(delta.dtype).reshape(-1, *(1,) * (delta.ndim - 1))
        for name, delta in deltas.items()
    }
    result = namespace(weight).zeros(tape.state.n_parameters)
    for place, g in tape.gradients(scaled, total=True):
        result[place] = g.real
    return result


def solve_shifted(gram: np.ndarray, shift: float, rhs: np.ndarray) -> np.ndarray:
    """(T + shift I)^-1 rhs by Cholesky, by the eigenvalues if that fails. Raises NumericalError instead of returning NaN."""
    xp = namespace(gram)
    if not (xp.isfinite(gram).all() and xp.isfinite(rhs).all()):
        raise NumericalError(
            "the minSR matrix is not finite; lower ground_state.learning_rate or raise ground_state.shift"
        )
    shifted = gram + shift * xp.eye(len(gram))
    if xp is not np:
        return _solve_on_device(gram, shifted, shift, rhs)
    try:
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(shifted, lower=True, overwrite_a=True), rhs)
    except scipy.linalg.LinAlgError:
        return _solved_by_eigenvalues(scipy.linalg.eigh(gram), shift, rhs)


def _solve_on_device(gram, shifted, shift: float, rhs):
    """Cholesky by cuSOLVER, n^3 / 3 FLOPs in float64; it says by NaN, not by an error, that a matrix is not positive
    definite."""
    from cupyx.scipy.linalg import solve_triangular

    xp = namespace(gram)
    lower = xp.linalg.cholesky(shifted)
    y = solve_triangular(lower, solve_triangular(lower, rhs, lower=True), trans=1, lower=True)
    return y if xp.isfinite(y).all() else _solved_by_eigenvalues(xp.linalg.eigh(gram), shift, rhs)


def _solved_by_eigenvalues(eigen, shift: float, rhs):
    values, vectors = eigen
    return vectors @ ((vectors.T @ rhs) / (namespace(values).maximum(values, 0) + shift))


def natural_step(
    psi: Wavefunction,
    sigma: np.ndarray,
    local_energy: np.ndarray,
    previous: np.ndarray,
    shift: float,
    momentum: float,
    longest: float,
) -> Update:
    """One minSR / SPRING update.

    sigma (n, n_sites), local_energy (n,), previous d theta (n_parameters,) float64; ``shift`` > 0, ``momentum`` mu,
    ``longest``: bound of |O-bar d theta|. Returns the unscaled direction with the factor that respects the bound.
    """
    differentiates = psi.twin(Differentiates)  # type: ignore[type-abstract]
    jacobian: Jacobian = differentiates.jacobian(sigma) if differentiates else TapeJacobian(psi, sigma)
    eps = jacobian.rows(local_energy - local_energy.mean()) / math.sqrt(len(sigma))
    gram, moved = jacobian.gram_and_product(previous)
    y = solve_shifted(gram, shift, eps - momentum * moved)
    direction = jacobian.transposed_product(y) + momentum * previous
    xp = namespace(direction)
    norm = float(xp.linalg.norm(gram @ y + momentum * moved))
    if not (math.isfinite(norm) and xp.isfinite(direction).all()):
        raise NumericalError(
            "the update is not finite; lower ground_state.learning_rate or raise ground_state.shift"
        )
    return Update(direction, norm, min(1.0, longest / norm) if norm > 0 else 1.0)
