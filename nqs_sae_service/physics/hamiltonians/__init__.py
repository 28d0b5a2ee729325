"""Hamiltonians, one file each.

A module of this package that defines a record derived from ``Hamiltonian`` is found by itself and becomes a
value of ``hamiltonian.kind``; nothing else has to be edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import get_args

from ...spec.section import Section
from ..free_fermions import IsingChain
from ..lattices import Lattice
from ..operators import Operator

# Up to here the exact ground state is found by sparse diagonalisation within seconds.
MAX_SITES_DIAGONALISED = 16


class Hamiltonian(Section):
    """Base of the records of ``[hamiltonian]``. A subclass has a ``kind`` and builds its operator."""

    def build(self, lattice: Lattice) -> Operator:
        """The Hamiltonian on a lattice. Energies are totals."""
        raise NotImplementedError

    def exact_energy(self, lattice: Lattice, magnetization: int | None = None) -> float | None:
        """Lowest energy (total) of all states, or of one conserved ``magnetization`` = sum of all sigma^z; None where unknown.

        Here: exact diagonalisation of up to 16 sites.
        """
        from ..exact import ground_state

        if lattice.n_sites > MAX_SITES_DIAGONALISED:
            return None
        return ground_state(self.build(lattice), magnetization).energy

    @property
    def conserves_magnetization(self) -> bool:
        """Whether H commutes with the sum of all S^z, so that sampling may stay in one of its sectors."""
        return False

    def exact_value(self, name: str, lattice: Lattice, magnetization: int | None = None) -> float | None:
        """Ground-state expectation of an observable where a closed solution gives it, else None."""
        return self.exact_energy(lattice, magnetization) if name == "local_energy" else None

    def free_fermions(self, lattice: Lattice) -> IsingChain | None:
        """The chain of free fermions that this is, if it is one."""
        return None


def _discover() -> dict[str, type[Hamiltonian]]:
    found: dict[str, type[Hamiltonian]] = {}
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        own = (
            value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__
        )
        for record in own:
            if isinstance(record, type) and issubclass(record, Hamiltonian):
                (kind,) = get_args(record.model_fields["kind"].annotation)
                found[kind] = record
    return found


HAMILTONIANS = _discover()
