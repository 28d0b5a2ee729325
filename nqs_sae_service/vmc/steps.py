"""One step through time, by either method, for a state of its own: parameters, walkers, the length to try next.

``Tdvp`` follows the projected equation of motion (``evolution.py``) with steps that adapt to a tolerance; ``Ptvmc`` minimises
the infidelity to the evolved state (``infidelity.py``) at every step of a given length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..engine.devices import HOST, Device
from ..engine.economy import DEFAULT, Economy
from ..states import State, Wavefunction
from .ensembles import Ensemble, Ensembles, derivatives
from .estimators import local_values
from .evolution import Velocity, adaptive_step, projected_velocity
from .infidelity import Factor, Remembered, bring_onto, coefficients

if TYPE_CHECKING:
    from ..physics.operators import Operator
    from ..spec.dynamics import Dynamics

Array = Any

_HALVINGS = 4  # of a step of projections
_WELL = 30.0  # an infidelity so many times the one wanted is good enough


@dataclass(frozen=True)
class Advance:
    """A step taken: parameters (n_parameters,) float64 at its end, its length, the length to try next, and how good it was.

    ``error``: share of the energy variance that was missed, or the infidelity of the step; ``rank``: directions followed, NaN
    where that is not known.
    """

    theta: np.ndarray
    length: float
    next_length: float
    error: float
    rank: float


class Method(Protocol):
    """A way to take a step."""

    def step(self, theta: np.ndarray, longest: float, ensembles: Ensembles) -> Advance:
        """A step of at most ``longest``."""


@dataclass(frozen=True)
class Motion:
    """What moves: the network, the Hamiltonian, and how to compute. ``tick`` is called before everything that takes a while."""

    state: State
    hamiltonian: Operator
    economy: Economy = DEFAULT
    device: Device = HOST
    tick: Callable[[], None] = lambda: None

    def bind(self, theta: np.ndarray) -> Wavefunction:
        """The wave function with parameters (n_parameters,) float64, in the precision of the network, on the device."""
        return self.state.bind(self.device.put(theta.astype(self.state.dtype)))

    def local_energy(self, psi: Wavefunction, ensemble: Ensemble) -> Array:
        """E_loc (n,) on the configurations of an ensemble of psi."""
        (local,) = local_values(psi, [self.hamiltonian], ensemble.sigma, ensemble.log_psi, self.economy)
        return local


@dataclass(frozen=True)
class Tdvp:
    """Adaptive Heun steps of the projected equation."""

    motion: Motion
    options: Dynamics

    def step(self, theta: np.ndarray, longest: float, ensembles: Ensembles) -> Advance:
        """A step within the tolerance; raises NumericalError where there is none."""
        options = self.options
        step = adaptive_step(
            theta,
            longest,
            lambda there: self.velocity(there, ensembles),
            options.tolerance,
            min(options.shortest, longest / 2),
        )
        return Advance(step.theta, step.length, step.next_length, step.begun.error, step.begun.rank)

    def velocity(self, theta: np.ndarray, ensembles: Ensembles) -> Velocity:
        """theta_dot at theta."""
        motion, options = self.motion, self.options
        motion.tick()
        psi = motion.bind(theta)
        ensemble = ensembles.of(psi)
        local = motion.local_energy(psi, ensemble)
        motion.tick()
        return projected_velocity(
            derivatives(psi, ensemble.sigma),
            local,
            ensemble.weights,
            options.cutoff,
            options.snr if ensembles.sampled else 0.0,
            options.imaginary,
        )


@dataclass(frozen=True)
class Ptvmc:
    """Steps of the given length, each of them as many projections as its order."""

    motion: Motion
    options: Dynamics

    def step(self, theta: np.ndarray, longest: float, ensembles: Ensembles) -> Advance:
        """A step of at most the length of the spec: halved, some times, where the network does not follow."""
        options, length = self.options, min(self.options.step, longest)
        energy = self._energy(theta, ensembles)
        for halvings in range(_HALVINGS + 1):
            moved, infidelity = self._moved(theta, length, energy, ensembles)
            if infidelity <= _WELL * options.infidelity * options.order or halvings == _HALVINGS:
                break
            length /= 2
        return Advance(moved, length, min(options.step, 2 * length), infidelity, float("nan"))

    def _moved(
        self, theta: np.ndarray, length: float, energy: float, ensembles: Ensembles
    ) -> tuple[np.ndarray, float]:
        """Parameters after a step from a state of this energy, and its infidelity."""
        motion, options, infidelity = self.motion, self.options, 0.0
        for coefficient in coefficients(length, options.order):
            target = Factor(motion.bind(theta), motion.hamiltonian, coefficient, energy, motion.economy)
            projected = bring_onto(
                Remembered(target),
                motion.state,
                theta,
                ensembles,
                options.infidelity,
                options.iterations,
                motion.device.put,
                lambda message: motion.tick(),
            )
            theta, infidelity = projected.theta, infidelity + projected.infidelity
        return theta, infidelity

    def _energy(self, theta: np.ndarray, ensembles: Ensembles) -> float:
        psi = self.motion.bind(theta)
        ensemble = ensembles.of(psi)
        return float((ensemble.weights @ self.motion.local_energy(psi, ensemble)).real)


METHODS: dict[str, Callable[[Motion, Dynamics], Method]] = {"tdvp": Tdvp, "ptvmc": Ptvmc}
