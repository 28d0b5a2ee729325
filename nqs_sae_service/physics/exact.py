"""Exact answers on small lattices: the oracle for everything that is sampled.

Up to 20 sites the ground state is found by Lanczos on the sparse matrix. Any wave function given as log psi
on all 2^N configurations is summed in full: p(sigma) = |psi|^2 / sum |psi|^2,

    <f> = sum_sigma p(sigma) f(sigma),    <O> = psi^dagger O psi / psi^dagger psi.

The static susceptibility of O is the linear response to a field, with H - lambda O and the ground state |0>,

    chi = d<O>/d lambda = 2 <0| O Q (H - E_0)^-1 Q O |0>,    Q = 1 - |0><0|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import NumericalError
from .hamiltonians import MAX_SITES_DIAGONALISED, Hamiltonian
from .lattices import Lattice
from .observables import Observable, make_observable, without_global_phase
from .operators import Operator, configurations

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_DENSE_DIMENSION = 256
_DEGENERACY = 1e-9  # relative to the energy: below this, rounding decides which vector Lanczos finds


def all_configurations(n_sites: int) -> np.ndarray:
    """All 2^N configurations (2^N, N) int8 in the order of the basis: site 0 is the highest bit, bit 0 is +1.

    Raises ValueError beyond 24 sites (400 MB).
    """
    if n_sites > 24:
        raise ValueError(f"2^{n_sites} configurations cannot be listed: at most 24 sites")
    return configurations(np.arange(1 << n_sites), n_sites)


def sector(sigma: np.ndarray, magnetization: int) -> np.ndarray:
    """Places (m,) of the configurations (n, n_sites) of which the sum of all sigma^z is the ``magnetization``."""
    return np.flatnonzero(sigma.sum(axis=1) == magnetization)


@dataclass(frozen=True, eq=False)
class FullSummation:
    """A wave function on all configurations; ``psi`` (2^N,) is normalised, float64 or complex128."""

    configurations: np.ndarray
    psi: np.ndarray

    @classmethod
    def from_log_psi(cls, n_sites: int, log_psi: np.ndarray) -> FullSummation:
        """From log psi (2^N,) in the order of ``all_configurations``; any norm, psi = 0 is log psi = -inf."""
        psi = np.exp(log_psi - np.max(np.real(log_psi)))
        return cls(all_configurations(n_sites), psi / np.linalg.norm(psi))

    @property
    def probability(self) -> np.ndarray:
        """p(sigma) = |psi(sigma)|^2, (2^N,)."""
        return np.abs(self.psi) ** 2

    def expectation(self, values: np.ndarray) -> np.ndarray:
        """sum_sigma p(sigma) f(sigma) for values (2^N, ...) of a function of sigma."""
        return np.tensordot(self.probability, values, axes=1)

    def operator_expectation(self, matrix: csr_matrix) -> float:
        """psi^dagger O psi for the matrix of a Hermitian operator (``Operator.to_sparse``)."""
        return float(np.vdot(self.psi, matrix @ self.psi).real)

    def renyi2(self, sites: np.ndarray) -> float:
        """-log tr rho_A^2 of the sites (n_A,) of a subsystem A: with psi as a matrix A x B, rho_A = psi psi^dagger."""
        n_sites = self.configurations.shape[1]
        others = np.setdiff1d(np.arange(n_sites), sites)
        axes = (*sites.tolist(), *others.tolist())
        psi = self.psi.reshape((2,) * n_sites).transpose(axes).reshape(1 << len(sites), -1)
        rho = psi @ psi.conj().T if len(sites) <= len(others) else psi.conj().T @ psi
        return float(-np.log(np.linalg.norm(rho) ** 2))

    def operator_variance(self, matrix: csr_matrix) -> float:
        """<O^2> - <O>^2."""
        applied = matrix @ self.psi
        return float(np.linalg.norm(applied - np.vdot(self.psi, applied).real * self.psi) ** 2)

    def infidelity(self, other: FullSummation) -> float:
        """1 - |<psi|other>|^2, accurate also when it is tiny."""
        overlap = np.vdot(self.psi, other.psi)
        return float(np.linalg.norm(other.psi - overlap * self.psi) ** 2)


@dataclass(frozen=True, eq=False)
class ExactGroundState:
    """Lowest eigenvalue (total) and eigenvector (2^N,) of the matrix' dtype, and the gap to the next eigenvalue.

    ``partner`` is the other vector of a ground state that is degenerate to rounding, else None.
    """

    energy: float
    vector: np.ndarray
    gap: float
    partner: np.ndarray | None


def ground_state(operator: Operator, magnetization: int | None = None) -> ExactGroundState:
    """Sparse exact diagonalisation (Lanczos, scipy's eigsh, fixed start vector), up to 20 sites.

    Of all states, or of those of one ``magnetization`` = sum of all sigma^z that the operator conserves: the vector is zero
    elsewhere, the gap is that within the sector.

    Of two vectors degenerate to rounding the combination closest to the uniform superposition is returned:
    the even one of the two cat states of an ordered Ising ring, which is its true ground state at any h > 0.
    The sign (of a complex vector, the phase) makes the sum of the amplitudes non-negative. Raises ValueError beyond 20 sites.
    """
    matrix = operator.to_sparse()
    if magnetization is None:
        energies, vectors = _two_lowest(matrix)
    else:
        inside = sector(all_configurations(operator.n_sites), magnetization)
        energies, within = _two_lowest(matrix[inside][:, inside])
        vectors = np.zeros((matrix.shape[0], within.shape[1]), within.dtype)
        vectors[inside] = within
    gap = float(energies[1] - energies[0])
    degenerate = gap < _DEGENERACY * max(1.0, abs(energies[0]))
    if degenerate:
        vectors = _most_uniform_first(vectors)
    vector = vectors[:, 0] / _phase(vectors[:, 0].sum())
    return ExactGroundState(float(energies[0]), vector, gap, vectors[:, 1] if degenerate else None)


def _phase(number: complex) -> complex:
    """number / |number|, 1 for zero: a sign where it is real."""
    return number / abs(number) if number else 1.0


def _two_lowest(matrix: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    if matrix.shape[0] <= _DENSE_DIMENSION:
        energies, vectors = np.linalg.eigh(matrix.toarray())
        return energies[:2], vectors[:, :2]
    from scipy.sparse.linalg import eigsh

    start = np.random.default_rng(1).uniform(size=matrix.shape[0])
    energies, vectors = eigsh(matrix, k=2, which="SA", v0=start, ncv=24)
    order = np.argsort(energies)
    return energies[order], vectors[:, order]


def _most_uniform_first(vectors: np.ndarray) -> np.ndarray:
    """Rotate two orthonormal columns so that the sum of the second vanishes."""
    a, b = vectors.sum(axis=0)
    length = np.hypot(abs(a), abs(b))
    if not length:
        return vectors
    return vectors @ (np.array([[np.conj(a), -b], [np.conj(b), a]]) / length)


def susceptibility(
    hamiltonian: csr_matrix, ground: ExactGroundState, observable: np.ndarray | csr_matrix
) -> float:
    """chi = d<O>/d lambda of the ground state of H - lambda O at lambda = 0.

    ``observable``: values (2^N,) of a diagonal observable, or the matrix of an operator. On a finite
    symmetric system an odd observable (m) connects the two sectors and chi is of order 1/gap, huge in the
    ordered phase; it is inf where the gap is lost in rounding. An even one (|m|, correlations) does not see
    the other sector. Raises NumericalError when the linear solver does not converge.
    """
    from scipy.sparse.linalg import LinearOperator, cg

    def apply(vector: np.ndarray) -> np.ndarray:
        return observable * vector if isinstance(observable, np.ndarray) else observable @ vector

    lowest = np.stack([v for v in (ground.vector, ground.partner) if v is not None], axis=1)

    def project(vector: np.ndarray) -> np.ndarray:
        return vector - lowest @ (lowest.conj().T @ vector)

    forced = apply(ground.vector)
    size = np.linalg.norm(forced)
    if ground.partner is not None and abs(np.vdot(ground.partner, forced)) > 1e-8 * size:
        return float("inf")
    forced = project(forced)
    excited = LinearOperator(
        hamiltonian.shape,
        matvec=lambda v: project(hamiltonian @ project(v) - ground.energy * project(v)),
        dtype=np.result_type(hamiltonian.dtype, forced.dtype),
    )
    response, status = cg(excited, forced, rtol=1e-10, atol=1e-12 * size, maxiter=5_000)
    if status != 0:
        raise NumericalError("the susceptibility did not converge: the gap of the Hamiltonian is too small")
    return float(2 * np.vdot(forced, response).real)


def exact_observables(
    hamiltonian: Hamiltonian, lattice: Lattice, names: Sequence[str], magnetization: int | None = None
) -> dict[str, float]:
    """Exact ground-state expectation values by name, of all states or of one ``magnetization``; NaN where unknown.

    Closed solutions first (``Hamiltonian.exact_value``), then sparse diagonalisation up to 16 sites.
    ``log_abs_psi`` depends on the normalisation of psi and is never known.
    """
    values = {name: hamiltonian.exact_value(name, lattice, magnetization) for name in names}
    exact = {name: float("nan") if value is None else value for name, value in values.items()}
    unsolved = [name for name in names if values[name] is None]
    state = exact_state(hamiltonian, lattice, magnetization) if unsolved else None
    if state is not None:
        operator = hamiltonian.build(lattice)
        exact.update((name, summed(make_observable(name, lattice, operator), state)) for name in unsolved)
    return exact


def exact_state(
    hamiltonian: Hamiltonian, lattice: Lattice, magnetization: int | None = None
) -> FullSummation | None:
    """The ground state, of one ``magnetization`` if given, by sparse diagonalisation, None beyond 16 sites."""
    if lattice.n_sites > MAX_SITES_DIAGONALISED:
        return None
    vector = ground_state(hamiltonian.build(lattice), magnetization).vector
    return FullSummation(all_configurations(lattice.n_sites), vector)


def summed(observable: Observable, state: FullSummation) -> float:
    """The expectation value of an observable in a state on all configurations; NaN where it is not a mean over them."""
    if observable.kind in ("log_psi", "ensemble"):
        return float("nan")
    if observable.kind == "phase":
        return _summed_phase(observable, state)
    if observable.operator is not None:
        return state.operator_expectation(observable.operator.to_sparse())
    return float(state.expectation(observable.values(state.configurations)))


def _summed_phase(observable: Observable, state: FullSummation) -> float:
    """Mean over the configurations that psi reaches: elsewhere it has no phase."""
    there = state.probability > 0
    log_psi = np.log(state.psi[there].astype(np.complex128))
    phase = observable.values(state.configurations[there], log_psi)
    weights = state.probability[there]
    return float(weights @ getattr(without_global_phase(phase, weights), observable.part))
