"""A state on its way through time: where it starts, its steps, and what is recorded of it.

``Flight`` is everything that the next step depends on; ``Evolution`` moves it: onto a given state, to a later time, and takes
down energy and observables where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..engine.arrays import to_host
from ..engine.devices import HOST, Device
from ..engine.economy import DEFAULT, Economy
from ..engine.random import Stream
from ..errors import NumericalError
from ..physics.observables import make_observable
from ..physics.quench import product_configuration
from ..physics.symmetries import commutes
from ..sampling import process_of
from ..sampling.exact import Exact
from ..states import LogPsi, State, Wavefunction
from .ensembles import Ensembles, Sampled, Summed, normalised, symmetries_of
from .estimators import measure
from .infidelity import bring_onto, path_to
from .statistics import mean_and_error
from .steps import METHODS, Motion

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..physics.operators import Operator
    from ..spec.dynamics import Dynamics
    from ..spec.sampling import Sampling

_ITERATIONS = 300  # of the descent onto a given state
_REFUSED_INFIDELITY = 1e-2
_ROUNDING = 1e-9  # of times
RECORDED = (
    "energy",
    "energy_error",
    "tdvp_error",
    "effective_rank",
    "step_size",
    "steps",
    "observable_mean",
    "observable_error",
    "parameters",
    "final_configuration",
)


@dataclass
class Flight:
    """Where the evolution is; everything that its next step needs, and what was recorded on the way.

    ``interval`` (4,): since the last record the number of steps, and the sums of their lengths, errors and ranks.
    """

    theta: np.ndarray
    walkers: np.ndarray
    sweeps: int = 0
    time: float = 0.0
    length: float = 0.0
    steps: int = 0
    start_infidelity: float = 0.0
    interval: np.ndarray = field(default_factory=lambda: np.zeros(4))
    times: list[float] = field(default_factory=list)
    records: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in RECORDED})

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything, for a checkpoint."""
        scalars = (self.sweeps, self.time, self.length, self.steps, self.start_infidelity)
        recorded = {f"recorded.{name}": np.stack(values) for name, values in self.records.items() if values}
        return {
            "theta": self.theta,
            "walkers": self.walkers,
            "scalars": np.asarray(scalars, np.float64),
            "interval": self.interval,
            "times": np.asarray(self.times),
            **recorded,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Flight:
        """Inverse of ``arrays``."""
        sweeps, time, length, steps, start = arrays["scalars"].tolist()
        flight = cls(arrays["theta"], arrays["walkers"], int(sweeps), time, length, int(steps), start)
        flight.interval, flight.times = arrays["interval"], arrays["times"].tolist()
        for name in RECORDED:
            flight.records[name] = list(arrays.get(f"recorded.{name}", ()))
        return flight


def close_enough(options: Dynamics) -> float:
    """Infidelity at which the network is taken for a given state. Exactly at a product state directions of theta vanish."""
    return 3e-7 if options.full_summation else 1e-5


class Evolution:
    """Moves flights of one network under one Hamiltonian.

    ``tick`` is called with the flight about once a second, and before there is one.
    """

    def __init__(
        self,
        state: State,
        lattice: Lattice,
        hamiltonian: Operator,
        sampling: Sampling,
        options: Dynamics,
        economy: Economy = DEFAULT,
        device: Device = HOST,
        tick: Callable[[Flight | None], None] = lambda flight: None,
    ):
        self.lattice, self.sampling, self.options = lattice, sampling, options
        self.economy, self.device, self._tick = economy, device, tick
        self.motion = Motion(state, hamiltonian, economy, device, self.tick)
        self.method = METHODS[options.method](self.motion, options)
        names = (*options.observables, "local_energy")
        self.observables = [make_observable(name, lattice, hamiltonian) for name in names]
        self.fixed = sampling.fixed_magnetization
        self.summed = Summed(state, hamiltonian, self.fixed, device) if options.full_summation else None
        # TDVP judges noise by the samples themselves.
        group = symmetries_of(state) if self.summed is None and options.method == "ptvmc" else None
        self.shared = group if group is not None and commutes(hamiltonian, group) else None
        self.flight: Flight | None = None

    def tick(self) -> None:
        """Progress, of the flight that is being moved."""
        self._tick(self.flight)

    def to_product_state(self, flight: Flight) -> None:
        """Onto the product state of the options. Raises NumericalError where the network cannot be that."""
        start, n = self.options.start, self.lattice.n_sites
        up = None if start == "x" else product_configuration(self.lattice, start)
        group = symmetries_of(self.motion.state)
        if up is not None and (up[group.permutations] * group.flips[:, None] != up).any():
            raise NumericalError(
                f"the network cannot be the product state {start}: it has symmetries that this state has not; leave out "
                "state.symmetry, or choose a kind of state without them"
            )
        for product, wanted in path_to(up, n, close_enough(self.options), self.motion.hamiltonian.rotated):
            infidelity = self.onto(flight, product, wanted)
            if infidelity > _REFUSED_INFIDELITY:
                raise NumericalError(
                    f"the network does not reach the product state {start} (infidelity {infidelity:.1e}): choose a larger one, "
                    "or another kind of state"
                )
        flight.start_infidelity = infidelity

    def onto(self, flight: Flight, target: LogPsi, wanted: float) -> float:
        """Bring the network onto a state; the infidelity that is reached."""
        ensembles = self._ensembles(flight)
        reached = bring_onto(
            target,
            self.motion.state,
            flight.theta,
            ensembles,
            wanted,
            _ITERATIONS,
            self.device.put,
            lambda message: self.tick(),
        )
        flight.theta = reached.theta
        self._moved_on(flight, ensembles)
        return reached.infidelity

    def advance_to(self, flight: Flight, target: float) -> None:
        """Steps up to a time. Raises NumericalError where they collapse; the flight is then where it came to."""
        self.flight = flight
        while flight.time < target - _ROUNDING:
            self._advance(flight, target)

    def _ensembles(self, flight: Flight) -> Ensembles:
        if self.summed is not None:
            return self.summed
        sampling = self.sampling
        options = self.options
        process = process_of(
            sampling, self.lattice, options.seed, Stream.DYNAMICS, self.economy, options.exponent
        )
        draws, sweeps = options.samples // sampling.chains, options.sweeps or sampling.sweeps
        walkers = self.device.put(flight.walkers)
        return Sampled(process, walkers, draws, sweeps, flight.sweeps, options.exponent, self.shared)

    def _moved_on(self, flight: Flight, ensembles: Ensembles) -> None:
        """The walkers follow the flight."""
        ensembles.move_on(self.motion.bind(flight.theta))
        if isinstance(ensembles, Sampled):
            flight.walkers, flight.sweeps = to_host(ensembles.walkers).copy(), ensembles.done

    def _advance(self, flight: Flight, target: float) -> None:
        """A step that does not pass the target."""
        ensembles = self._ensembles(flight)
        room = target - flight.time
        advance = self.method.step(flight.theta, min(flight.length, room), ensembles)
        arrived = advance.length >= room - _ROUNDING
        # A step cut short by the target says little about the next one.
        if not arrived or advance.next_length >= flight.length or advance.length >= flight.length:
            flight.length = advance.next_length
        flight.theta, flight.steps = advance.theta, flight.steps + 1
        self._moved_on(flight, ensembles)
        flight.time = target if arrived else flight.time + advance.length
        flight.interval = flight.interval + np.asarray(
            [1, advance.length, advance.error * advance.length, advance.rank * advance.length]
        )

    def record(self, flight: Flight) -> None:
        """Everything about the state at this time."""
        self.flight = flight
        psi = self.motion.bind(flight.theta)
        mean, error, chains = (
            self._measured_in_full(psi, flight) if self.summed else self._measured(psi, flight)
        )
        count, length, missed, rank = flight.interval
        with np.errstate(invalid="ignore"):
            values = {
                "energy": mean[-1],
                "energy_error": error[-1],
                "tdvp_error": missed / length if length else np.nan,
                "effective_rank": rank / length if length else np.nan,
                "step_size": length / count if count else np.nan,
                "steps": flight.steps,
                "observable_mean": mean[:-1],
                "observable_error": error[:-1],
                "parameters": flight.theta,
                "final_configuration": chains,
            }
        for name, value in values.items():
            flight.records[name].append(np.asarray(value))
        flight.times.append(flight.time)
        flight.interval = np.zeros(4)

    def _measured(self, psi: Wavefunction, flight: Flight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means and errors of the observables, the energy last, from fresh samples; and where their chains end."""
        sampling, options = self.sampling, self.options
        process = process_of(sampling, self.lattice, options.seed, Stream.DYNAMICS_MEASUREMENT, self.economy)
        chains = process.start(psi, self.device.put(flight.walkers), flight.sweeps)
        if options.exponent < 1:  # the walkers are those of another distribution
            for _ in range(sampling.burn_in):
                process.sweep(psi, chains)
        values = []
        for _ in range(options.measurements // sampling.chains):
            self.tick()
            for _ in range(options.sweeps or sampling.sweeps):
                process.sweep(psi, chains)
            found = measure(psi, self.observables, chains.sigma, chains.log_psi, self.economy)
            values.append(to_host(found).real)
        mean, error = mean_and_error(np.stack(values, axis=1))
        return mean, error, to_host(chains.sigma).copy()

    def _measured_in_full(
        self, psi: Wavefunction, flight: Flight
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exact means, and independent samples for chains to start from."""
        process = Exact(self.lattice.n_sites, self.options.seed, Stream.DYNAMICS_MEASUREMENT, self.fixed)
        chains = process.start(psi, self.device.put(flight.walkers), len(flight.times))
        sigma, log_psi = self.device.put(process.configurations), chains.all_log_psi
        weights = to_host(normalised(2 * log_psi.real))
        values = to_host(measure(psi, self.observables, sigma, log_psi, self.economy)).real
        mean = weights[weights > 0] @ values[weights > 0]
        process.sweep(psi, chains)
        return mean, np.zeros_like(mean), to_host(chains.sigma).copy()
