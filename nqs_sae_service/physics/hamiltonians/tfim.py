"""The Ising model in a transverse field, with Pauli matrices,

    H = -J sum_<ij> sigma^z_i sigma^z_j - h sum_i sigma^x_i.

On a chain it is solved by free fermions (Pfeuty, Ann. Phys. 57, 79 (1970)). For J > 0 the ground state orders
at h < J, is critical at h = J, and its amplitudes are positive. On a finite ring the magnetization vanishes
by symmetry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from ...engine.arrays import beside, namespace
from ...spec.section import Finding, Section
from .. import free_fermions
from ..lattices import Lattice
from ..observables import make_observable
from ..operators import Operator
from . import Hamiltonian


class TransverseFieldIsing(Operator):
    """H = -J sum_<ij> sz_i sz_j - h sum_i sx_i: a diagonal, and one element -h for every single flip."""

    def __init__(self, lattice: Lattice, J: float, h: float) -> None:
        self.n_sites = lattice.n_sites
        self.edges, self.J, self.h = lattice.edges, J, h
        self.flips = np.arange(self.n_sites, dtype=np.int32)[:, None]

    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        edges = beside(self.edges, sigma)
        return -self.J * (sigma[:, edges[:, 0]] * sigma[:, edges[:, 1]]).sum(axis=1)

    def element(self, sigma: np.ndarray) -> np.ndarray:
        return namespace(sigma).full((len(sigma), self.n_sites), -self.h)


class Tfim(Hamiltonian):
    """Transverse-field Ising model, Pauli matrices: H = -J sum sz sz - h sum sx."""

    kind: Literal["tfim"]
    J: float = Field(
        default=1.0, ge=-1e6, le=1e6, description="Ising coupling, the unit of energy; > 0 is a ferromagnet"
    )
    h: float = Field(ge=0.0, le=1e6, description="transverse field, in the units of J")

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        if self.J == 0.0 and self.h == 0.0:
            yield Finding("h", "J and h are both zero: there is no Hamiltonian")

    def build(self, lattice: Lattice) -> TransverseFieldIsing:
        """The operator on a lattice."""
        return TransverseFieldIsing(lattice, self.J, self.h)

    def exact_energy(self, lattice: Lattice) -> float | None:
        """Total ground-state energy by free fermions; a frustrated ring by diagonalisation, or None."""
        if self._frustrated(lattice):
            return super().exact_energy(lattice)
        return free_fermions.ground_energy(lattice.n_sites, self.J, self.h, _is_ring(lattice))

    def exact_value(self, name: str, lattice: Lattice) -> float | None:
        """Ground-state expectation of everything that one- and two-point functions give; else None.

        Two-point functions need one determinant for each distance (ring, up to 512 sites) or pair (open, up
        to 128). With the correlation matrix C = sum_a c_a v_a v_a^T, a quadratic form f(sigma) = f(0) +
        sum_ij W_ij s_i s_j has the expectation f(0) + sum_a c_a (f(v_a) - f(0)): the very function that acts
        on samples gives the exact value. At h = 0 the limit h -> 0+ is meant: the even superposition of both
        ordered states.
        """
        if name == "local_energy":
            return self.exact_energy(lattice)
        if self._frustrated(lattice) or lattice.n_sites > (512 if lattice.periodic else 128):
            return None
        chain = (lattice.n_sites, self.J, self.h, _is_ring(lattice))
        if name == "sigma_x":
            return float(np.mean(free_fermions.sigma_x(*chain)))
        observable = make_observable(name, lattice, self.build(lattice))
        if observable.degree == 1:
            return 0.0
        if observable.degree != 2:
            return None
        strength, mode = np.linalg.eigh(free_fermions.correlation_matrix(*chain))
        constant = observable.values(np.zeros((1, lattice.n_sites)))[0]
        return float(constant + strength @ (observable.values(mode.T) - constant))

    def _frustrated(self, lattice: Lattice) -> bool:
        """An antiferromagnet on an odd ring, where the fermion vacuum has the wrong parity."""
        return self.J < 0 and _is_ring(lattice) and lattice.n_sites % 2 == 1


def _is_ring(lattice: Lattice) -> bool:
    """Whether the chain closes: a ring of two sites has a single edge, as the open chain has."""
    return len(lattice.edges) == lattice.n_sites
