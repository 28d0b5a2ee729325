"""How much of the wave function a dictionary keeps: psi with a layer replaced by its reconstruction, or by its mean.

    energy recovered = (E_ablated - E_sae) / (E_ablated - E)      infidelity = 1 - |<psi|psi_sae>|^2

Every replaced state gets the energy of its own |psi|^2: by the sum over all configurations on small systems, by fresh
sampling otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..sae.dictionary import Dictionary
from ..sampling import Metropolis
from ..states import LogPsi, Wavefunction
from .expectation import Exact, Quantities, Tick, infidelity, resampled

_BURN_IN, _DRAWS = 15, 2  # sweeps before, and samples per chain of, the energy of a replaced state


def reconstructed(psi: Wavefunction, layer: str, dictionary: Dictionary, pooled: bool) -> LogPsi:
    """psi with the layer replaced by the dictionary's output; a pooled dictionary replaces the mean over tokens."""

    def replace(x: np.ndarray) -> np.ndarray:
        if not pooled:
            return dictionary.reconstruct(x)
        mean = np.ascontiguousarray(x.mean(axis=1))
        return x + (dictionary.reconstruct(mean) - mean)[:, None]

    return psi.edited(layer, replace)


def ablated(psi: Wavefunction, layer: str, mean: np.ndarray, pooled: bool) -> LogPsi:
    """psi with the layer (or, when pooled, its mean over tokens) replaced by the average activation ``mean`` (width,)."""

    def replace(x: np.ndarray) -> np.ndarray:
        if not pooled:
            return np.broadcast_to(mean.astype(x.dtype), x.shape)
        return x + (mean - x.mean(axis=1)).astype(x.dtype)[:, None]

    return psi.edited(layer, replace)


@dataclass(frozen=True)
class Yardstick:
    """Energies and overlaps of replaced states: ``exact`` on small systems, else Born samples to start and reweight from.

    sigma (chain, draw, n_sites), log_psi (chain, draw) of psi; ``energy`` of psi (total).
    """

    psi: Wavefunction
    quantities: Quantities
    exact: Exact | None
    metropolis: Metropolis
    sigma: np.ndarray
    log_psi: np.ndarray
    energy: float
    chunk: int

    def energy_of(self, psi_s: LogPsi, number: int, tick: Tick) -> float:
        """Energy of a replaced state; ``number`` keeps the random numbers of different states apart."""
        if self.exact is not None:
            return float(self.exact.curve(_Single(psi_s)).mean[0, -1])
        sigma = np.ascontiguousarray(self.sigma[:, -1])
        curve = resampled(
            psi_s,
            self.psi,
            self.quantities,
            self.metropolis,
            sigma,
            number << 24,
            _BURN_IN,
            _DRAWS,
            1,
            self.chunk,
            tick,
        )
        return float(curve.mean[0, -1])

    def infidelity_of(self, psi_s: LogPsi) -> float:
        """1 - fidelity with psi."""
        if self.exact is not None:
            return float(self.exact.curve(_Single(psi_s)).infidelity[0])
        flat = self.sigma.reshape(-1, self.sigma.shape[-1])
        return infidelity(psi_s.log_psi(flat) - self.log_psi.reshape(-1))

    def energy_recovered(self, psi_sae: LogPsi, energy_ablated: float, number: int, tick: Tick) -> float:
        """1 when the reconstruction costs no energy, 0 when it is as bad as the mean; NaN if the mean costs none either."""
        gap = energy_ablated - self.energy
        return (energy_ablated - self.energy_of(psi_sae, number, tick)) / gap if gap > 0 else float("nan")


@dataclass(frozen=True)
class _Single:
    """One state seen as a family with one point."""

    psi: LogPsi

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        return self.psi.log_psi(sigma)[:, None]
