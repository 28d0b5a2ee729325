"""What depends on the wave function itself: its energy, modulus, phase, and numbers of the whole state."""

from __future__ import annotations

import numpy as np

from ...engine.arrays import namespace
from ..lattices import Lattice
from ..operators import Operator
from .order import not_bipartite
from .registry import observable


@observable("local_energy", long_name="local energy (total)", units="J", kind="local")
def local_energy(lattice: Lattice, hamiltonian: Operator) -> Operator:
    """E_loc(sigma) = sum_s' H_{s s'} psi(s') / psi(s)."""
    return hamiltonian


@observable("log_abs_psi", long_name="log |psi|, unnormalised", kind="log_psi")
def log_abs_psi(log_psi: np.ndarray) -> np.ndarray:
    """log |psi(sigma)| = Re log psi."""
    return log_psi.real


Rotated = np.ndarray | None


@observable("cos_phase", long_name="cosine of the phase of psi", kind="phase")
def cos_phase(rotated: Rotated, lattice: Lattice, sigma: np.ndarray, log_psi: np.ndarray) -> np.ndarray:
    """cos(arg psi(sigma) - global phase), of the spins as the Hamiltonian has rotated them."""
    return namespace(sigma).exp(1j * log_psi.imag)


@observable("sin_phase", long_name="sine of the phase of psi", kind="phase", part="imag")
def sin_phase(rotated: Rotated, lattice: Lattice, sigma: np.ndarray, log_psi: np.ndarray) -> np.ndarray:
    """sin(arg psi(sigma) - global phase), of the spins as the Hamiltonian has rotated them."""
    return cos_phase(rotated, lattice, sigma, log_psi)


@observable(
    "marshall_sign",
    long_name="cosine of the phase of psi relative to the Marshall sign",
    kind="phase",
    missing=not_bipartite,
)
def marshall_sign(rotated: Rotated, lattice: Lattice, sigma: np.ndarray, log_psi: np.ndarray) -> np.ndarray:
    """Re[(-1)^(up spins on sublattice A) psi / |psi|] without the global phase: 1 where Marshall's rule holds, -1 where it is
    broken.

    In the rotated frame the rule is already in the Hamiltonian, and psi itself should be positive (Marshall, Proc. R. Soc. A
    232, 48 (1955)).
    """
    phase = cos_phase(rotated, lattice, sigma, log_psi)
    if rotated is not None:
        return phase
    # The product of -s is -1 for every up spin.
    xp = namespace(sigma)
    sign = xp.prod(-sigma[:, xp.asarray(np.flatnonzero(lattice.sublattice == 1))], axis=1)
    return sign.reshape(sign.shape + (1,) * (phase.ndim - 1)) * phase


def without_global_phase(phase: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Numbers z (n,) of modulus one over the global phase z_0: the axis along which they scatter most, turned towards their
    mean.

    z_0^2 = mean z^2 / |mean z^2| and Re(mean z / z_0) >= 0, so that psi may have both signs in equal parts. ``weights`` (n,)
    for means.
    """
    axis = np.exp(0.5j * np.angle(np.average(phase**2, weights=weights)))
    turned = phase / axis
    return turned if np.average(turned.real, weights=weights) >= 0 else -turned


@observable("energy_variance", long_name="variance of the energy (total)", units="J^2", kind="ensemble")
def energy_variance() -> None:
    """<H^2> - <H>^2 = E|E_loc - E|^2, 0 for an eigenstate: from the local energies of all samples."""


@observable("renyi2", long_name="second Renyi entropy of one half of the lattice", kind="ensemble")
def renyi2() -> None:
    """S_2 = -log tr rho_A^2: from pairs of samples (``vmc/entanglement.py``)."""
