"""Variational Monte Carlo of a ground state: sample, measure local energies, take a natural-gradient step, repeat.

    E(theta) = E_{|psi|^2}[E_loc],      theta <- theta - lr (S + shift)^-1 grad E

The step is imaginary-time evolution projected on the network. ``Training`` is everything that has to survive an interruption;
it can be turned into plain arrays and back. The random numbers are counter-based, so a training that continues from a
checkpoint takes the same path bit by bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.devices import HOST, Device
from ..engine.economy import DEFAULT, Economy
from ..engine.random import Stream
from ..engine.ranks import ALONE, Ranks
from ..errors import NumericalError
from ..physics.lattices import Lattice
from ..physics.operators import Operator
from ..sampling import Chains, drift, process_of
from ..states import State, Wavefunction
from .estimators import local_values
from .reconfiguration import natural_step
from .weighting import born_weights

if TYPE_CHECKING:
    from ..spec.sampling import Sampling
    from ..spec.sections import GroundState

HISTORIES = (
    "energy",
    "energy_error",
    "energy_variance",
    "acceptance",
    "learning_rate",
    "shift",
    "step_norm",
    "step_bounded",
    "step_seconds",
)
_DRIFT_EVERY = 25  # steps
_DRIFT_LIMIT = 1e-2  # relative, of psi


@dataclass
class Training:
    """State of a training after ``step`` steps; ``previous`` is the last update (SPRING), ``history`` one list per quantity.

    The arrays live on the device that computes. ``sigma`` are the walkers of this rank's chains, everything else is the same
    on all.
    """

    parameters: np.ndarray
    previous: np.ndarray
    sigma: np.ndarray
    sweeps: int = 0
    step: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in HISTORIES})

    def arrays(self, ranks: Ranks = ALONE) -> dict[str, np.ndarray]:
        """Plain arrays on the host, for a checkpoint; with the chains of all ranks."""
        histories = {f"history_{name}": np.asarray(values) for name, values in self.history.items()}
        counters = np.asarray([self.sweeps, self.step])
        return {
            "parameters": to_host(self.parameters),
            "previous": to_host(self.previous),
            "sigma": ranks.gather(to_host(self.sigma)),
            "counters": counters,
            **histories,
        }

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, np.ndarray], device: Device = HOST, ranks: Ranks = ALONE
    ) -> Training:
        """Inverse of ``arrays``, with the arrays on a device, for any number of ranks."""
        history = {name: arrays[f"history_{name}"].tolist() for name in HISTORIES}
        sweeps, step = (int(v) for v in arrays["counters"])
        parameters, previous = (device.put(arrays[n]) for n in ("parameters", "previous"))
        sigma = device.put(arrays["sigma"][ranks.share(len(arrays["sigma"]))])
        return cls(parameters, previous, sigma, sweeps, step, history)


class Trainer:
    """Takes optimisation steps on a ``Training``; holds what does not change: network, Hamiltonian, schedules.

    Several ``ranks`` share the chains, and with them samples, local energies and rows of the natural gradient. They draw the
    samples that one process would draw, and all numbers and decisions are the same on all of them.
    """

    def __init__(
        self,
        state: State,
        lattice: Lattice,
        hamiltonian: Operator,
        sampling: Sampling,
        options: GroundState,
        economy: Economy = DEFAULT,
        device: Device = HOST,
        ranks: Ranks = ALONE,
    ):
        self.state, self.lattice, self.hamiltonian = state, lattice, hamiltonian
        self.sampling, self.options, self.economy, self.device = sampling, options, economy, device
        self.ranks, self.share = ranks, ranks.share(sampling.chains)
        self.process = process_of(sampling, lattice, options.seed, Stream.TRAINING, economy, options.exponent)

    def start(self, parameters: np.ndarray | None = None, sigma: np.ndarray | None = None) -> Training:
        """A training at its beginning, the chains thermalised.

        ``parameters`` (n_parameters,) and the chains ``sigma`` (chains, n_sites) are random unless given, on the host.
        """
        if parameters is None:
            parameters = self.state.initial_parameters(self.options.seed)
        if sigma is None:
            sigma = self.process.random_chains(self.sampling.chains)
        parameters = self.device.put(parameters)
        psi = self.state_at(0).bind(parameters)
        sigma = self.device.put(sigma[self.share])
        chains = self.process.start(psi, sigma, number=self.share.start)

        def burn_in() -> None:
            for _ in range(self.sampling.burn_in):
                self.process.sweep(psi, chains)

        self.ranks.together(burn_in)
        previous = self.device.put(np.zeros(self.state.n_parameters))
        return Training(parameters, previous, chains.walkers, chains.sweeps)

    def state_at(self, step: int) -> State:
        """The wave function that a step trains: without its projection before the step from which it is projected."""
        symmetry = self.state.symmetry
        return self.state.bare if symmetry is not None and step < symmetry.from_step else self.state

    def learning_rate(self, step: int) -> float:
        """Cosine decay from ``learning_rate`` to the share ``final_learning_rate`` of it."""
        left = self.options.final_learning_rate
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.options.steps))
        return self.options.learning_rate * (left + (1 - left) * cosine)

    def shift(self, step: int) -> float:
        """Geometric decay from ``shift_start`` to ``shift`` over ``shift_steps``."""
        if step >= self.options.shift_steps:
            return self.options.shift
        return self.options.shift_start * (self.options.shift / self.options.shift_start) ** (
            step / self.options.shift_steps
        )

    @np.errstate(over="ignore", invalid="ignore")  # what diverges is refused below, in plain words
    def advance(self, training: Training) -> None:
        """One step, in place. Raises NumericalError, leaving ``training`` as it was, when a number is not finite."""
        started = time.perf_counter()
        psi = self.state_at(training.step).bind(training.parameters)
        sigma, local, log_psi, chains = self.ranks.together(lambda: self._measured(psi, training))
        energies, weights = self.ranks.gather(to_host(local)), None
        accepted, proposed = self.ranks.sum(np.asarray([chains.accepted, chains.proposed]))
        if not np.isfinite(energies).all():
            raise NumericalError(
                f"a local energy is not finite at step {training.step}; "
                "lower ground_state.learning_rate or raise ground_state.shift"
            )
        if self.options.exponent < 1:
            weights = born_weights(log_psi, self.options.exponent, self.ranks)
        rate, shift = self.learning_rate(training.step), self.shift(training.step)
        update = natural_step(
            psi,
            sigma,
            local,
            training.previous,
            shift,
            self.options.momentum,
            self.options.max_step / rate,
            self.options.solver,
            self.ranks,
            weights,
        )
        parameters = training.parameters - rate * update.factor * update.direction
        parameters = parameters.astype(self.state.dtype)
        if not namespace(parameters).isfinite(parameters).all():
            raise NumericalError(
                "the parameters outgrew their precision; lower ground_state.learning_rate or raise ground_state.shift"
            )
        training.parameters = parameters
        training.previous = update.direction
        training.sigma, training.sweeps = chains.walkers, chains.sweeps
        training.step += 1
        values = (
            *_moments(energies, None if weights is None else self.ranks.gather(to_host(weights))),
            accepted / max(proposed, 1),
            rate,
            shift,
            rate * update.norm,
            float(update.bounded),
            time.perf_counter() - started,
        )
        for name, value in zip(HISTORIES, values, strict=True):
            training.history[name].append(float(value))

    def _measured(
        self, psi: Wavefunction, training: Training
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, Chains]:
        """Samples (n, n_sites) of this rank's chains, moved on, their local energies and log psi (n,), and the chains."""
        chains = self.process.start(psi, training.sigma, training.sweeps, self.share.start)
        if training.step and psi.state.symmetry is not None and training.step == psi.state.symmetry.from_step:
            for _ in range(self.sampling.burn_in):  # the chains are samples of the bare network
                self.process.sweep(psi, chains)
            chains.clear_counters()
        draws = self.options.samples // self.sampling.chains
        sigma, log_psi = self.process.draws(psi, chains, draws, self.sampling.sweeps)
        if training.step % _DRIFT_EVERY == 0:
            _refuse_drift(drift(psi, psi.reference, chains))
        sigma, log_psi = sigma.reshape(-1, self.state.n_sites), log_psi.reshape(-1)
        return sigma, self.local_energies(psi, sigma, log_psi), log_psi, chains

    def local_energies(self, psi: Wavefunction, sigma: np.ndarray, log_psi: np.ndarray) -> np.ndarray:
        """E_loc (n,) of configurations (n, n_sites) with log psi (n,)."""
        (local,) = local_values(psi, [self.hamiltonian], sigma, log_psi, self.economy)
        return local


def _moments(energies: np.ndarray, weights: np.ndarray | None) -> tuple[float, float, float]:
    """Energy, its standard error as if all samples were independent, and the variance of the local energies."""
    if weights is None:
        return (
            energies.real.mean(),
            energies.real.std(ddof=1) / math.sqrt(len(energies)),
            energies.var(ddof=1),
        )
    mean = weights @ energies
    distance = np.abs(energies - mean)
    return mean.real, float(np.linalg.norm(weights * (energies - mean).real)), weights @ distance**2


def _refuse_drift(departure: float) -> None:
    if not departure <= _DRIFT_LIMIT:
        raise NumericalError(
            f"cached and recomputed psi differ by a share of {departure:.1e}: float32 is not enough for this network; "
            'set state.precision = "float64"'
        )
