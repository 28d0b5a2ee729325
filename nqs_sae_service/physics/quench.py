"""Exact dynamics after a quench: the oracle for time evolution. Energies and times in units of J and 1 / J, hbar = 1.

A state evolves under another Hamiltonian H than the one it belongs to,

    psi(t) = exp(-iHt) psi(0),    in imaginary time    psi(tau) = exp(-H tau) psi(0) / norm.

Up to 16 sites that is done on all 2^N amplitudes, by truncated Taylor series of the exponential acting on a vector (Al-Mohy &
Higham, SIAM J. Sci. Comput. 33, 488 (2011)). In real time, Ising chains of any fields without a longitudinal one are free
fermions (``free_fermions.py``), from their ground states and from all spins along x: a quadratic form f(sigma) = f(0) +
sum_i w_i s_i^2 + sum_{i<j} w_ij s_i s_j has the expectation value f(0) + sum_i w_i + sum_{i<j} w_ij <sz_i sz_j>(t), and the
very function that acts on samples gives the weights. (Barouch & McCoy, PRA 3, 786 (1971); Calabrese, Essler & Fagotti, J. Stat.
Mech. P07016 (2012).)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..errors import UserError
from .exact import FullSummation, all_configurations, exact_state, summed
from .free_fermions import GaussianState, IsingQuench
from .hamiltonians import MAX_SITES_DIAGONALISED, Hamiltonian
from .hamiltonians.tfim import TransverseFieldIsing
from .lattices import Lattice
from .observables import Observable, make_observable
from .operators import Operator, basis_index

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Start = Literal["ground_state", "x", "z", "neel"]

_MAX_SITES_FERMIONS = 512
_MOST_WORK = 1.5e10  # sum of n^3 over Pfaffians of n x n: seconds
_LONGEST_PIECE = 100.0  # of t |H|, between normalisations: exp(100) is far from overflow


def product_configuration(lattice: Lattice, start: Start) -> np.ndarray:
    """Spins (n_sites,) int8 of "z", all up, or "neel", up on sublattice 0. Raises UserError where there are no sublattices."""
    if start not in ("z", "neel"):
        raise ValueError(f"{start!r} is no configuration of spins along z")
    if start == "z":
        return np.ones(lattice.n_sites, np.int8)
    if not lattice.bipartite:
        raise UserError(
            "a Neel state needs two sublattices such that neighbours differ: this lattice has none"
        )
    return (1 - 2 * lattice.sublattice).astype(np.int8)


def product_state(lattice: Lattice, start: Start) -> np.ndarray:
    """Amplitudes (2^N,) float64 of the product state "x", "z" or "neel", in the order of ``all_configurations``."""
    dimension = 1 << lattice.n_sites
    if start == "x":
        return np.full(dimension, dimension**-0.5)
    psi = np.zeros(dimension)
    psi[basis_index(product_configuration(lattice, start))] = 1.0
    return psi


@dataclass(eq=False)
class Quench:
    """The ``start`` evolves under ``after``: a product state, or the ground state of ``before``.

    "x": all spins along +x; "z": all up; "neel": up on sublattice 0, down on the other. ``magnetization``: the sector that the
    ground state is sought in.
    """

    lattice: Lattice
    start: Start
    before: Hamiltonian | None
    after: Hamiltonian
    magnetization: int | None = None
    imaginary: bool = False
    _last: tuple[float, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.start == "ground_state" and self.before is None:
            raise UserError("to start from a ground state, say of which Hamiltonian")

    def state(self, t: float) -> FullSummation | None:
        """The state at time t, of spins rotated as those of ``after``; None beyond 16 sites.

        The evolution goes on from the time asked for last, so ask in ascending order.
        """
        if self.initial is None:
            return None
        if self._last is None or t < self._last[0]:
            self._last = 0.0, self.initial.psi
        before, psi = self._last
        self._last = t, self._evolved(psi, t - before)
        return FullSummation(self.initial.configurations, self._last[1])

    def observables(self, t: float, names: Sequence[str]) -> dict[str, float]:
        """Exact expectation values at time t by name; NaN where unknown. Raises UnknownObservable.

        Free fermions give ``sigma_x`` and all one- and two-point functions of sigma^z on chains of up to 512 sites.
        """
        fermions = None if self._fermions is None else self._fermions.at(t)
        observables = [make_observable(name, self.lattice, self._operator) for name in names]
        values = {o.name: self._closed(o, fermions) for o in observables}
        state = self.state(t) if None in values.values() else None
        for o in observables:
            if values[o.name] is None:
                values[o.name] = math.nan if state is None else summed(o, state)
        return {name: value for name, value in values.items() if value is not None}

    @cached_property
    def energy(self) -> float | None:
        """<H> after the quench, total, at t = 0 and in real time ever after; None where unknown."""
        if self._fermions is not None:
            return self._fermions.energy
        if self.start in ("z", "neel"):
            return float(self._operator.diagonal(product_configuration(self.lattice, self.start)[None])[0])
        if self.start == "x" and isinstance(self._operator, TransverseFieldIsing):
            return -float(self._operator.h.sum())
        return None if self.initial is None else self.initial.operator_expectation(self._matrix)

    @cached_property
    def initial(self) -> FullSummation | None:
        """The state at t = 0, of spins rotated as those of ``after``; None beyond 16 sites."""
        if self.lattice.n_sites > MAX_SITES_DIAGONALISED:
            return None
        sigma = all_configurations(self.lattice.n_sites)
        if self.start == "ground_state" and self.before is not None:
            state = exact_state(self.before, self.lattice, self.magnetization)
            assert state is not None
            psi = state.psi * _frame(sigma, self.before.build(self.lattice).rotated)
        else:
            psi = product_state(self.lattice, self.start)
        return FullSummation(sigma, psi * _frame(sigma, self._operator.rotated))

    def _evolved(self, psi: np.ndarray, duration: float) -> np.ndarray:
        from scipy.sparse.linalg import expm_multiply, norm

        pieces = math.ceil(abs(duration) * norm(self._matrix, 1) / _LONGEST_PIECE)
        for _ in range(pieces):
            psi = expm_multiply((-1 if self.imaginary else -1j) * duration / pieces * self._matrix, psi)
            psi = psi / np.linalg.norm(psi)
        return psi

    def _closed(self, observable: Observable, fermions: GaussianState | None) -> float | None:
        """What needs no state on all configurations."""
        if observable.name == "local_energy" and not self.imaginary:
            return self.energy
        if fermions is None:
            return None
        if observable.name == "sigma_x":
            return float(np.mean(fermions.sigma_x))
        if observable.degree == 1:
            return 0.0
        return _quadratic_form(observable, fermions) if observable.degree == 2 else None

    @cached_property
    def _operator(self) -> Operator:
        return self.after.build(self.lattice)

    @cached_property
    def _matrix(self) -> csr_matrix:
        return self._operator.to_sparse()

    @cached_property
    def _fermions(self) -> IsingQuench | None:
        after = self.after.free_fermions(self.lattice)
        if self.imaginary or after is None or self.lattice.n_sites > _MAX_SITES_FERMIONS:
            return None
        if self.start == "x":
            return IsingQuench(None, after)
        if self.start != "ground_state" or self.before is None:
            return None
        before = self.before.free_fermions(self.lattice)
        return IsingQuench(before, after) if before is not None and before.unique else None


def _frame(sigma: np.ndarray, rotated: np.ndarray | None) -> np.ndarray:
    """(-1)^(number of up spins among the ``rotated``), (n,): between the spins and those turned by pi about z."""
    return np.ones(len(sigma)) if rotated is None else np.prod(-sigma[:, rotated], axis=1, dtype=np.float64)


def _quadratic_form(observable: Observable, state: GaussianState) -> float | None:
    """The expectation of an observable of degree 2; None where that would take long."""
    n = len(state.turned)
    one, weights = np.eye(n, dtype=np.int8), np.zeros((n, n))
    constant = observable.values(np.zeros((1, n), np.int8))[0]
    single = observable.values(one) - constant
    for i in range(n - 1):
        both = observable.values(one[i] + one[i + 1 :]) - constant
        weights[i, i + 1 :] = both - single[i] - single[i + 1 :]
    pairs = np.argwhere(np.abs(weights) > 1e-14 * np.abs(weights).max()).tolist()
    distinct = {state.representative(i, j) for i, j in pairs}
    if sum((2.0 * (j - i)) ** 3 for i, j in distinct) > _MOST_WORK:
        return None
    return float(constant + single.sum() + sum(weights[i, j] * state.correlation(i, j) for i, j in pairs))
