"""The Ising model in a transverse field, with Pauli matrices,

    H = -J sum_<ij> sigma^z_i sigma^z_j - sum_i h_i sigma^x_i - sum_i hz_i sigma^z_i.

One of the fields may differ from site to site (``physics/disorder.py``). On a chain without longitudinal field hz it is
solved by free fermions (Pfeuty, Ann. Phys. 57, 79 (1970)), in equal fields and in random ones. For J > 0 the ground state of
the chain orders at h < J, is critical at h = J, and its amplitudes are positive. On a finite lattice without longitudinal
field the magnetization vanishes by symmetry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ...engine.arrays import beside, namespace
from ...spec.section import Finding, Section
from ..disorder import SiteDisorder
from ..free_fermions import IsingChain
from ..lattices import Lattice
from ..observables import make_observable
from ..operators import Operator
from . import Hamiltonian

# An exact energy beyond costs more than a minute where the fields are random.
_MAX_SITES_RANDOM_RING = 1024


class TransverseFieldIsing(Operator):
    """H = -J sum_<ij> sz_i sz_j - sum_i h_i sx_i - sum_i hz_i sz_i: a diagonal, and one element -h_i for every single flip.

    h and hz: numbers, or (n_sites,) float64.
    """

    def __init__(
        self, lattice: Lattice, J: float, h: float | np.ndarray, hz: float | np.ndarray = 0.0
    ) -> None:
        self.n_sites = lattice.n_sites
        self.edges, self.J = lattice.edges, J
        self.h, self.hz = (np.broadcast_to(np.asarray(f, np.float64), self.n_sites).copy() for f in (h, hz))
        self.flips = np.arange(self.n_sites, dtype=np.int32)[:, None]
        self.row = -self.h

    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        edges = beside(self.edges, sigma)
        value = -self.J * (sigma[:, edges[:, 0]] * sigma[:, edges[:, 1]]).sum(axis=1)
        return value - sigma @ beside(self.hz, sigma) if self.hz.any() else value

    def element(self, sigma: np.ndarray) -> np.ndarray:
        return namespace(sigma).broadcast_to(beside(self.row, sigma), (len(sigma), self.n_sites))


class Tfim(Hamiltonian, SiteDisorder):
    """Transverse-field Ising model, Pauli matrices: H = -J sum sz sz - h sum sx - hz sum sz."""

    kind: Literal["tfim"]
    J: float = Field(
        default=1.0, ge=-1e6, le=1e6, description="Ising coupling, the unit of energy; > 0 is a ferromagnet"
    )
    h: float = Field(ge=0.0, le=1e6, description="transverse field, in the units of J")
    hz: float = Field(
        0.0,
        ge=-1e6,
        le=1e6,
        description="longitudinal field, in the units of J",
        json_schema_extra={"neutral": True},
    )
    disorder_of: Literal["h", "hz"] = Field(
        "h", description="which field is random, if there is disorder", json_schema_extra={"neutral": True}
    )

    def findings(self, sections: Mapping[str, Section]) -> Iterator[Finding]:
        yield from self.disorder_findings()
        if self.J == self.h == self.hz == 0.0 and not self.disordered:
            yield Finding("h", "J and h are both zero: there is no Hamiltonian")
        geometry, state = sections.get("lattice"), sections.get("state")
        if geometry is None or getattr(state, "amplitude", None) != "positive":
            return
        fields: Any = self.fields(geometry.build())[0]  # type: ignore[attr-defined]
        if negative := int(np.sum(fields < 0)):
            yield Finding(
                "disorder_width",
                f"{negative} of the transverse fields are negative, where psi changes its sign: choose a smaller width "
                'or state.amplitude = "complex"',
            )

    def fields(self, lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
        """Transverse and longitudinal field at every site, (n_sites,) each."""
        random = self.random_fields(lattice.n_sites)
        at = (self.disorder_of == "h", self.disorder_of == "hz")
        return self.h + at[0] * random, self.hz + at[1] * random

    def build(self, lattice: Lattice) -> TransverseFieldIsing:
        """The operator on a lattice."""
        return TransverseFieldIsing(lattice, self.J, *self.fields(lattice))

    def exact_energy(self, lattice: Lattice, magnetization: int | None = None) -> float | None:
        """Total ground-state energy: of a chain by free fermions (a ring in random fields: up to 1024 sites), else as usual."""
        chain = self.free_fermions(lattice)
        if chain is None or (
            chain.ring and not chain.homogeneous and lattice.n_sites > _MAX_SITES_RANDOM_RING
        ):
            return super().exact_energy(lattice, magnetization)
        return chain.energy

    def exact_value(self, name: str, lattice: Lattice, magnetization: int | None = None) -> float | None:
        """Ground-state expectation of everything that one- and two-point functions give; else None.

        Two-point functions need one determinant for each distance (ring in equal fields, up to 512 sites) or
        pair (else, up to 128). With the correlation matrix C = sum_a c_a v_a v_a^T, a quadratic form f(sigma) = f(0) +
        sum_ij W_ij s_i s_j has the expectation f(0) + sum_a c_a (f(v_a) - f(0)): the very function that acts
        on samples gives the exact value. At h = 0 the limit h -> 0+ is meant: the even superposition of both
        ordered states.
        """
        if name == "local_energy":
            return self.exact_energy(lattice)
        chain = self.free_fermions(lattice)
        if (
            chain is None
            or lattice.n_sites > (512 if chain.ring and chain.homogeneous else 128)
            or not chain.unique
        ):
            return None
        if name == "sigma_x":
            return float(np.mean(chain.sigma_x))
        observable = make_observable(name, lattice, self.build(lattice))
        if observable.degree == 1:
            return 0.0
        if observable.degree != 2:
            return None
        strength, mode = np.linalg.eigh(chain.correlation_matrix)
        constant = observable.values(np.zeros((1, lattice.n_sites)))[0]
        return float(constant + strength @ (observable.values(mode.T) - constant))

    def free_fermions(self, lattice: Lattice) -> IsingChain | None:
        """The chain of free fermions that this is, else None: in other dimensions and in longitudinal fields."""
        h, hz = self.fields(lattice)
        if lattice.dimensions != 1 or hz.any() or (self.J == 0.0 and not h.any()):
            return None
        return IsingChain(self.J, tuple(h.tolist()), _is_ring(lattice))


def _is_ring(lattice: Lattice) -> bool:
    """Whether the chain closes: a ring of two sites has a single edge, as the open chain has."""
    return len(lattice.edges) == lattice.n_sites
