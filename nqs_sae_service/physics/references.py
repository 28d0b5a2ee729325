"""Ground-state energies from the literature, for lattices that are too large to be diagonalised here.

Square lattices with periodic boundaries, energy per site in units of J, spin units, by exact diagonalisation: 6 x 6 (Schulz,
Ziman & Poilblanc, J. Phys. I 6, 675 (1996)), to the digits given. Energies with a statistical error do not belong here: what
lies below an exact energy is a fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lattices import Lattice

if TYPE_CHECKING:
    from .hamiltonians.heisenberg import Heisenberg

# (length, J2 / J) -> energy per site.
_SQUARE = {
    (6, 0.0): -0.678872,
    (6, 0.5): -0.503810,
}


def known_energy(lattice: Lattice, record: Heisenberg) -> float | None:
    """Total ground-state energy of a known case, else None."""
    length = round(lattice.n_sites**0.5)
    square = lattice.extent == (length, length) and lattice.basis == 1 and lattice.periodic
    plain = (
        record.delta == 1.0
        and record.hz == 0.0
        and not record.disordered
        and record.J3 == 0.0
        and record.J > 0
    )
    if not (square and plain) or len(lattice.edges) != 2 * lattice.n_sites:
        return None
    per_site = _SQUARE.get((length, record.J2 / record.J))
    return None if per_site is None else per_site * record.J * lattice.n_sites
