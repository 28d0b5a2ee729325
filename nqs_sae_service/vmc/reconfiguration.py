"""Stochastic reconfiguration in sample space: minSR with the momentum of SPRING.

Chen & Heyl, arXiv:2302.01941; Goldshlager et al., arXiv:2401.10190. With O-bar = (O - mean O) / sqrt(n_s) and
eps = (E_loc - E) / sqrt(n_s), real and imaginary parts stacked as rows, and T = O-bar O-bar^T:

    d theta_k = O-bar^T (T + shift I)^-1 (eps - mu O-bar d theta_{k-1}) + mu d theta_{k-1},      theta <- theta - lr d theta_k

mu = 0 is minSR. T is accumulated array by array; O is never held whole. The update is bounded in the metric S = O-bar^T O-bar:
its length |O-bar d theta| is how far the normalised state moves, and a step that is too long is shortened and reported.

The linear system is solved by Cholesky, by conjugate gradients from products with O-bar where these are cheap and the samples
many, or in the space of the parameters where these are few. Where several ranks share the samples, T and its Cholesky factor
are spread over them (``panels``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from loguru import logger

from ..engine.arrays import namespace
from ..engine.blas import cholesky_in_place
from ..engine.panels import Panels
from ..engine.ranks import ALONE, Ranks
from ..errors import NumericalError
from ..states import Wavefunction
from ..states.fused import Differentiates, Factorised, Jacobian, SolvesItself
from .conjugate_gradients import conjugate_gradients
from .jacobian import TapeJacobian
from .jacobian_gpu import DeviceJacobian, solve_on_device
from .weighting import Weighted

# Relative residual of conjugate gradients, hence relative error of d theta: far below the noise of the samples, also after the
# momentum has summed up the errors of many steps.
TOLERANCE = 1e-8
_FEWEST_ITERATIONS, _MOST_ITERATIONS = 200, 2000  # fewer hardly ever suffice


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
        # Seen by columns, as LAPACK wants it, L is the upper factor of the conjugate matrix.
        return scipy.linalg.cho_solve((gram.T, False), rhs.conj(), check_finite=False).conj()
    lower = np.tril_indices(len(gram), -1)
    gram[lower] = gram.T[lower].conj()  # the factorisation left the upper triangle alone
    diagonal[...] = before
    if not (np.isfinite(gram).all() and np.isfinite(rhs).all()):
        raise NumericalError(
            "the minSR matrix is not finite; lower ground_state.learning_rate or raise ground_state.shift"
        )
    values, vectors = scipy.linalg.eigh(gram)
    return vectors @ ((vectors.conj().T @ rhs) / (np.maximum(values, 0) + shift))


def affordable_iterations(jacobian: Jacobian, solver: str) -> int:
    """How many iterations of conjugate gradients ``solver`` allows.

    "auto": as many as cost the operations of T and its Cholesky factor, counted, where products with O-bar are cheap.
    """
    if solver == "cg":
        return _MOST_ITERATIONS
    if solver == "cholesky" or not isinstance(jacobian, Factorised):
        return 0
    return min(_MOST_ITERATIONS, int(jacobian.direct_operations / jacobian.product_operations))


def _iterated(
    jacobian: Jacobian, shift: float, rhs: np.ndarray, iterations: int, foresee: bool, ranks: Ranks
) -> np.ndarray | None:
    """(T + shift I)^-1 rhs by conjugate gradients; None, and a line in the log, where they do not converge."""
    solution = conjugate_gradients(jacobian, shift, rhs, TOLERANCE, iterations, foresee, ranks)
    if solution is not None:
        return solution[0]
    logger.debug(f"conjugate gradients do not converge in {iterations} iterations: solving by Cholesky")
    return None


def _jacobian(psi: Wavefunction, sigma: np.ndarray, ranks: Ranks) -> Jacobian:
    differentiates = psi.twin(Differentiates)  # type: ignore[type-abstract]
    if differentiates is not None:
        return differentiates.jacobian(sigma, ranks)
    return (TapeJacobian if namespace(sigma) is np else DeviceJacobian)(psi, sigma, ranks)


def _direct(
    jacobian: Jacobian, previous: np.ndarray, eps: np.ndarray, momentum: float, shift: float, ranks: Ranks
) -> np.ndarray:
    """y, the rows of this rank, from T."""
    if ranks.size == 1:
        gram, moved = jacobian.gram_and_product(previous)
        return solve_shifted(gram, shift, eps - momentum * moved)
    rhs = ranks.gather(eps - momentum * jacobian.product(previous))
    panels = Panels(ranks, len(rhs))
    y = panels.solve(jacobian.gram_panels(panels), shift, rhs)
    if y is None:
        logger.debug("T is not positive definite: every rank solves by its eigenvalues")
        y = solve_shifted(panels.whole(jacobian.gram_panels(panels)), shift, rhs)
    before = sum(ranks.collect(len(eps))[: ranks.rank])
    return y[before : before + len(eps)]


def natural_step(
    psi: Wavefunction,
    sigma: np.ndarray,
    local_energy: np.ndarray,
    previous: np.ndarray,
    shift: float,
    momentum: float,
    longest: float,
    solver: str = "auto",
    ranks: Ranks = ALONE,
    weights: np.ndarray | None = None,
) -> Update:
    """One minSR / SPRING update, the same on all ranks, each of which passes its own samples.

    sigma (n, n_sites), local_energy (n,), previous d theta (n_parameters,) float64; ``shift`` > 0, ``momentum`` mu,
    ``longest``: bound of |O-bar d theta|; ``solver``: "cholesky", "cg", or "auto" for what promises to be cheapest;
    ``weights`` (n,) of the samples, which sum to 1 over all ranks; default: equal ones. Returns the unscaled direction with the
    factor that respects the bound.
    """
    xp, jacobian = namespace(sigma), _jacobian(psi, sigma, ranks)
    if weights is None:
        everywhere = ranks.gather(local_energy)
        eps = jacobian.rows(local_energy - everywhere.mean()) / math.sqrt(len(everywhere))
    else:
        jacobian = Weighted(jacobian, weights, ranks)
        mean = ranks.sum((weights * local_energy).sum().reshape(1))[0]
        eps = jacobian.rows(jacobian.scaled(local_energy - mean))
    y, iterations = None, affordable_iterations(jacobian, solver)
    if isinstance(jacobian, SolvesItself) and solver == "auto":
        y = jacobian.solve(shift, eps - momentum * jacobian.product(previous))
    elif iterations >= _FEWEST_ITERATIONS:
        rhs = eps - momentum * jacobian.product(previous)
        y = _iterated(jacobian, shift, rhs, iterations, solver == "auto", ranks)
    if y is None:
        y = _direct(jacobian, previous, eps, momentum, shift, ranks)
    direction = jacobian.transposed_product(y) + momentum * previous
    moved = ranks.gather(eps - shift * y)  # = T y + momentum O-bar previous
    norm = ranks.agree(float(xp.linalg.norm(moved)))  # whose last bit may depend on the processor
    if not (math.isfinite(norm) and xp.isfinite(direction).all()):
        raise NumericalError(
            "the update is not finite; lower ground_state.learning_rate or raise ground_state.shift"
        )
    return Update(direction, norm, min(1.0, longest / norm) if norm > 0 else 1.0)
