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
from ..engine.blas import cholesky_in_place
from ..errors import NumericalError
from ..states import Wavefunction
from ..states.fused import Differentiates, Jacobian
from .jacobian import TapeJacobian
from .jacobian_gpu import DeviceJacobian, solve_on_device


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


def solve_shifted(gram: np.ndarray, shift: float, rhs: np.ndarray) -> np.ndarray:
    """(T + shift I)^-1 rhs by Cholesky, by the eigenvalues if that fails. ``gram`` T (m, m) is overwritten.

    Raises NumericalError instead of returning NaN.
    """
    if namespace(gram) is not np:
        return solve_on_device(gram, shift, rhs)
    diagonal = np.einsum("ii->i", gram)
    before = diagonal.copy()
    diagonal += shift
    if cholesky_in_place(gram):
        return scipy.linalg.cho_solve((gram.T, False), rhs, check_finite=False)
    lower = np.tril_indices(len(gram), -1)
    gram[lower] = gram.T[lower]  # the factorisation left the upper triangle alone
    diagonal[...] = before
    if not (np.isfinite(gram).all() and np.isfinite(rhs).all()):
        raise NumericalError(
            "the minSR matrix is not finite; lower ground_state.learning_rate or raise ground_state.shift"
        )
    values, vectors = scipy.linalg.eigh(gram)
    return vectors @ ((vectors.T @ rhs) / (np.maximum(values, 0) + shift))


def _jacobian(psi: Wavefunction, sigma: np.ndarray) -> Jacobian:
    differentiates = psi.twin(Differentiates)  # type: ignore[type-abstract]
    if differentiates is not None:
        return differentiates.jacobian(sigma)
    return TapeJacobian(psi, sigma) if namespace(sigma) is np else DeviceJacobian(psi, sigma)


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
    xp, jacobian = namespace(sigma), _jacobian(psi, sigma)
    eps = jacobian.rows(local_energy - local_energy.mean()) / math.sqrt(len(sigma))
    gram, moved = jacobian.gram_and_product(previous)
    rhs = eps - momentum * moved
    y = solve_shifted(gram, shift, rhs)
    direction = jacobian.transposed_product(y) + momentum * previous
    norm = float(xp.linalg.norm(rhs - shift * y + momentum * moved))  # T y = rhs - shift y
    if not (math.isfinite(norm) and xp.isfinite(direction).all()):
        raise NumericalError(
            "the update is not finite; lower ground_state.learning_rate or raise ground_state.shift"
        )
    return Update(direction, norm, min(1.0, longest / norm) if norm > 0 else 1.0)
