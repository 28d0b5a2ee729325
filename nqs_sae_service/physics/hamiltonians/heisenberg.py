"""Heisenberg magnets of spins S = sigma / 2,

    H = sum_k J_k sum_<ij>_k [S^x_i S^x_j + S^y_i S^y_j + delta S^z_i S^z_j] - sum_i hz_i S^z_i,

with the pairs <ij>_k of the k-th shell of the lattice: J1 on nearest neighbours, J2, J3 on the next ones. J > 0 is an
antiferromagnet, ``delta`` = 1 the isotropic (Heisenberg) point. The field may differ from site to site
(``physics/disorder.py``). H conserves the magnetization, and so may the sampling.

The Marshall rotation turns the spins of one sublattice by pi about z. It changes the sign of the exchange between the
sublattices, S^x_i S^x_j + S^y_i S^y_j -> -(...), after which the ground state of the unfrustrated antiferromagnet is positive
(Marshall, Proc. R. Soc. A 232, 48 (1955)). psi(sigma) is then that of the rotated spins, (-1)^(number of up spins on the
sublattice) times the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ...spec.section import Finding, Section
from ..disorder import SiteDisorder
from ..exchange import SpinExchange
from ..lattices import Lattice
from ..references import known_energy
from . import Hamiltonian


class Heisenberg(Hamiltonian, SiteDisorder):
    """Heisenberg or XXZ model with couplings on three shells, spin units: H = sum J S.S - hz sum S^z."""

    kind: Literal["heisenberg"]
    J: float = Field(
        1.0, ge=-1e6, le=1e6, description="coupling of nearest neighbours; > 0 is an antiferromagnet"
    )
    J2: float = Field(0.0, ge=-1e6, le=1e6, description="coupling of the second shell of neighbours")
    J3: float = Field(0.0, ge=-1e6, le=1e6, description="coupling of the third shell of neighbours")
    delta: float = Field(1.0, ge=-1e6, le=1e6, description="anisotropy: weight of S^z S^z; 1 is isotropic")
    hz: float = Field(0.0, ge=-1e6, le=1e6, description="field along z, in the units of J")
    marshall: bool = Field(
        False, description="rotate one sublattice by pi about z (Marshall); for bipartite lattices"
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from self.disorder_findings()
        if self.J == self.J2 == self.J3 == self.hz == 0.0 and not self.disordered:
            yield Finding("J", "all couplings are zero: there is no Hamiltonian")
        geometry: Any = sections.get("lattice")
        if geometry is None:
            return
        lattice = geometry.build()
        if self.marshall and not lattice.bipartite:
            yield Finding(
                "marshall", "the lattice has no two sublattices; leave marshall out or set it to false"
            )
        for order, name in ((2, "J2"), (3, "J3")):
            if getattr(self, name) != 0.0 and not len(lattice.shell(order)):
                yield Finding(name, f"this lattice has no shell {order} of neighbours")

    @property
    def conserves_magnetization(self) -> bool:
        """Whether H commutes with sum_i S^z_i: always."""
        return True

    def couplings(self, lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (n_pairs, 2) of all shells with their strength (n_pairs,)."""
        shells: Sequence[tuple[float, np.ndarray]] = [
            (J, lattice.shell(k)) for k, J in enumerate((self.J, self.J2, self.J3), 1) if J != 0.0
        ]
        if not shells:
            return np.empty((0, 2), np.int32), np.empty(0)
        return np.concatenate([p for _, p in shells]), np.concatenate([np.full(len(p), J) for J, p in shells])

    def build(self, lattice: Lattice) -> SpinExchange:
        """The operator on a lattice."""
        pairs, strength = self.couplings(lattice)
        field = self.hz + self.random_fields(lattice.n_sites) if self.hz or self.disordered else None
        rotated = lattice.sublattice == 1 if self.marshall else None
        return SpinExchange(lattice.n_sites, pairs, strength, self.delta, rotated, field)

    def exact_energy(self, lattice: Lattice, magnetization: int | None = None) -> float | None:
        """Total ground-state energy: by diagonalisation on up to 16 sites, else from the literature, else None."""
        energy = super().exact_energy(lattice, magnetization)
        if energy is None and not magnetization:  # the known ones are those of singlets
            return known_energy(lattice, self)
        return energy
