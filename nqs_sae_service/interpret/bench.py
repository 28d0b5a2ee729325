"""The bench on which directions are measured: one trained state, its Born samples, and the three estimators.

A direction gets its predicted slopes (2 Re Cov of the tangent with every local estimator), strengths at which it disturbs
the state as much as another one does, and curves of every observable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..engine.arrays import to_host
from ..engine.devices import HOST, Device
from ..errors import NumericalError
from ..physics.exact import ground_state, susceptibility
from ..physics.hamiltonians import MAX_SITES_DIAGONALISED
from ..physics.observables import Observable
from ..states import LogPsi, Wavefunction
from ..vmc.estimators import measure
from ..vmc.statistics import covariance
from . import steering
from .directions import Direction
from .expectation import Curve, Exact, FreshSampling, Tick, on_samples, resampled, reweighted
from .mbar import pooled

ESTIMATORS = ("reweighted", "resampled", "exact")
POOLED = "mbar"  # an estimator that has to be asked for: it measures every fresh sample for every state
_MATCHING_SAMPLES = 2048


@dataclass(frozen=True)
class Slopes:
    """d<O> / d strength of every observable at the state itself, with standard errors: two arrays (observable,)."""

    value: np.ndarray
    error: np.ndarray


@dataclass
class Bench:
    """``observables`` end with the local energy; sigma (chain, draw, n_sites), log_psi (chain, draw) are Born samples.

    psi and the samples are on ``device``; numbers that come out of them are on the host.
    """

    psi: Wavefunction
    observables: tuple[Observable, ...]
    sigma: np.ndarray
    log_psi: np.ndarray
    sampling: FreshSampling
    device: Device = HOST

    @cached_property
    def names(self) -> list[str]:
        """Names of the observables, the energy last."""
        return [o.name for o in self.observables]

    @cached_property
    def born(self) -> tuple[np.ndarray, np.ndarray]:
        """The samples without their chains: configurations (n, n_sites), log psi (n,)."""
        return self.sigma.reshape(-1, self.sigma.shape[-1]), self.log_psi.reshape(-1)

    def thinned(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """At most ``count`` of them, evenly spaced."""
        sigma, log_psi = self.born
        some = self.device.put(np.linspace(0, len(sigma) - 1, min(count, len(sigma))).astype(int))
        return sigma[some], log_psi[some]

    @cached_property
    def values(self) -> np.ndarray:
        """Every observable's value or local estimator on the samples: (chain, draw, observable), complex if psi is."""
        sigma, log_psi = self.born
        values = to_host(measure(self.psi, self.observables, sigma, log_psi, self.sampling.economy))
        return values.reshape(*self.log_psi.shape, -1)

    @cached_property
    def exact(self) -> Exact | None:
        """The sum over all configurations, on small systems."""
        n = self.psi.state.n_sites
        if n > MAX_SITES_DIAGONALISED:
            return None
        return Exact(self.psi, self.observables, n, self.device, self.sampling.process.magnetization)

    @cached_property
    def _susceptibilities(self) -> dict[int, float]:
        return {}

    def susceptibility(self, column: int) -> float:
        """Exact d<O>/d lambda of the ground state of H - lambda O; NaN on large systems or where it does not converge."""
        if self.exact is None:
            return float("nan")
        known = self._susceptibilities
        if column not in known:
            try:
                known[column] = susceptibility(
                    self.exact.operators[-1], self._ground, self.exact.operators[column]
                )
            except NumericalError:
                known[column] = float("nan")
        return known[column]

    @cached_property
    def _ground(self):
        energy = self.observables[-1].operator
        assert energy is not None
        return ground_state(energy, self.sampling.process.magnetization)

    @cached_property
    def _gradients(self) -> dict[tuple[str, str], np.ndarray]:
        return {}

    def gradient(self, layer: str, which: str) -> np.ndarray | None:
        """d log psi / d x at a layer on the Born samples or on all configurations; kept until another layer is asked for.

        None where psi is projected: every direction sums over the copies itself.
        """
        if self.psi.state.symmetry is not None:
            return None
        if any(kept != layer for kept, _ in self._gradients):
            self._gradients.clear()
        if (layer, which) not in self._gradients:
            if which == "born":
                sigma = self.born[0]
            else:
                assert self.exact is not None
                sigma = self.exact.on_device
            self._gradients[layer, which] = self.psi.layer_gradient(sigma, layer)
        return self._gradients[layer, which]

    def slopes(self, direction: Direction, layer: str) -> Slopes | None:
        """Predicted slopes from the Born samples; None when the direction does nothing."""
        tangent = to_host(direction.tangent(self.born[0], self.gradient(layer, "born")))
        tangent = tangent.reshape(self.log_psi.shape)
        if not np.var(tangent) > 0:
            return None
        value, error = covariance(tangent[..., None], self.values)
        return Slopes(2 * value, 2 * error)

    def exact_slopes(self, direction: Direction, layer: str) -> Slopes:
        """The same by full summation."""
        assert self.exact is not None
        tangent = direction.tangent(self.exact.on_device, self.gradient(layer, "all"))
        value = self.exact.slopes(to_host(tangent))
        return Slopes(value, np.zeros_like(value))

    def matched_strengths(self, direction: Direction, wanted: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """Strengths (point,) with the wanted infidelities; 0 where the sign is 0, NaN where there is none."""
        return steering.matched_strengths(direction, *self.thinned(_MATCHING_SAMPLES), wanted, signs)

    @cached_property
    def _fresh(self) -> dict[int, list[np.ndarray]]:
        """Fresh samples (chain, draw, n_sites) of every known point of the direction that was resampled last, by its number."""
        return {}

    def _pooled(self, family: LogPsi, number: int, base: int, tick: Tick) -> Curve | None:
        samples = self._fresh.get(number)
        if samples is None:
            return None
        economy = self.sampling.economy
        parts = [on_samples(family, self.observables, sigma, economy, tick) for sigma in samples]
        return pooled(np.stack([log for log, _ in parts]), np.stack([value for _, value in parts]), base)

    def curve(
        self, estimator: str, direction: Direction, strengths: np.ndarray, number: int, tick: Tick
    ) -> Curve | None:
        """Means at every strength, NaN where that is NaN; None where the estimator cannot be computed.

        ``number`` keeps the random numbers of different directions apart. Along one direction they are common, so that
        neighbouring states are compared on nearly the same chains.
        """
        known = np.flatnonzero(np.isfinite(strengths))
        if not len(known) or (estimator == "exact" and self.exact is None):
            return None
        if estimator == "resampled":
            self._fresh.clear()
            samples = self._fresh[number] = []
            points = [
                resampled(
                    direction.at(float(strengths[p])),
                    self.psi,
                    self.observables,
                    self.born,
                    self.sampling,
                    number,
                    tick,
                    samples,
                )
                for p in known
            ]
            curve: Curve | None = Curve.joined(points, paired=True)
        elif estimator == POOLED:
            family = direction.family(strengths[known])
            curve = self._pooled(family, number, int(np.argmin(np.abs(strengths[known]))), tick)
        elif estimator == "reweighted":
            family = direction.family(strengths[known])
            curve = reweighted(
                family, self.observables, self.sigma, self.log_psi, self.sampling.economy, tick
            )
        else:
            assert self.exact is not None
            curve = self.exact.curve(direction.family(strengths[known]))
        return None if curve is None else curve.spread(known, len(strengths))
