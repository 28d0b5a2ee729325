"""How much of the wave function a dictionary keeps: psi with a layer replaced by its reconstruction, or by its mean.

    energy recovered = (E_ablated - E_sae) / (E_ablated - E)      infidelity = 1 - |<psi|psi_sae>|^2

Every replaced state gets the energy of its own |psi|^2: by the sum over all configurations on small systems, by fresh
sampling otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine.arrays import beside, namespace, to_host
from ..physics.observables import Observable
from ..sae.dictionary import Dictionary
from ..states import LogPsi, Wavefunction
from .expectation import Exact, FreshSampling, Tick, infidelity, resampled


def reconstructed(psi: Wavefunction, layer: str, dictionary: Dictionary, pooled: bool) -> LogPsi:
    """psi with the layer replaced by the dictionary's output; a pooled dictionary replaces the mean over tokens.

    The dictionary reads float32, as it did in training, whatever the precision of the network.
    """

    def output(rows: np.ndarray) -> np.ndarray:
        return dictionary.reconstruct(rows.astype(np.float32, copy=False)).astype(rows.dtype, copy=False)

    def replace(x: np.ndarray) -> np.ndarray:
        if not pooled:
            return output(x)
        mean = x.mean(axis=1)
        return x + (output(mean) - mean)[:, None]

    return psi.edited(layer, replace)


def ablated(psi: Wavefunction, layer: str, mean: np.ndarray, pooled: bool) -> LogPsi:
    """psi with the layer (or, when pooled, its mean over tokens) replaced by the average activation ``mean`` (width,)."""

    def replace(x: np.ndarray) -> np.ndarray:
        if not pooled:
            return namespace(x).broadcast_to(beside(mean, x).astype(x.dtype), x.shape)
        return x + (beside(mean, x) - x.mean(axis=1)).astype(x.dtype)[:, None]

    return psi.edited(layer, replace)


@dataclass(frozen=True)
class Yardstick:
    """Energies and overlaps of replaced states: ``exact`` on small systems, else from Born samples of psi.

    born: configurations (n, n_sites) and log psi (n,), where psi is; ``energy``: the local energy; ``reference``: <H> of
    psi (total).
    """

    psi: Wavefunction
    energy: Observable
    exact: Exact | None
    sampling: FreshSampling
    born: tuple[np.ndarray, np.ndarray]
    reference: float

    def energy_of(self, psi_s: LogPsi, number: int, tick: Tick) -> float:
        """Energy of a replaced state; ``number`` keeps the random numbers of different states apart."""
        if self.exact is not None:
            return float(self.exact.curve(_Single(psi_s)).mean[0, -1])
        curve = resampled(psi_s, self.psi, (self.energy,), self.born, self.sampling, number, tick)
        return float(curve.mean[0, -1])

    def infidelity_of(self, psi_s: LogPsi) -> float:
        """1 - fidelity with psi."""
        if self.exact is not None:
            return float(self.exact.curve(_Single(psi_s)).infidelity[0])
        sigma, log_psi = self.born
        return infidelity(to_host(psi_s.log_psi(sigma) - log_psi))

    def energy_recovered(self, psi_sae: LogPsi, energy_ablated: float, number: int, tick: Tick) -> float:
        """1 when the reconstruction costs no energy, 0 when it is as bad as the mean; NaN if the mean costs none either."""
        gap = energy_ablated - self.reference
        return (energy_ablated - self.energy_of(psi_sae, number, tick)) / gap if gap > 0 else float("nan")


@dataclass(frozen=True)
class _Single:
    """One state seen as a family with one point."""

    psi: LogPsi

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        return self.psi.log_psi(sigma)[:, None]
