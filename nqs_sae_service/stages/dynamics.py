"""Stage ``dynamics``: the state through time after a quench, with energy and observables at every recorded time.

The steps of an interval between recorded times fit it exactly. Where a step collapses, the stage ends at that time and says so;
what was recorded is as good as of any other run: later stages use the times that there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from loguru import logger

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..engine.random import Stream
from ..errors import NumericalError
from ..physics.exact import FullSummation, all_configurations
from ..physics.observables import make_observable
from ..physics.quench import Quench, product_configuration
from ..sampling import process_of
from ..sampling.exact import Exact
from ..states import Wavefunction
from ..vmc.dynamics import METHODS, Advance, Motion
from ..vmc.ensembles import Ensembles, Sampled, Summed
from ..vmc.estimators import measure
from ..vmc.infidelity import bring_onto, path_to
from ..vmc.statistics import mean_and_error
from .cost import Cost, flip_flops, network_flops, seconds_for
from .inputs import economy_of
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

_START_INFIDELITY = 3e-7  # to the product state; exactly there some directions of the parameters vanish
_START_ITERATIONS = 300
_REFUSED_INFIDELITY = 1e-2
_ROUNDING = 1e-9  # of times
_STEPS_PER_TIME, _ITERATIONS, _DOUBLE_PRECISION = 100, 15, 2.0  # for the forecast
_RECORDED = (
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
class _Flight:
    """Where the evolution is; everything that its next step needs, and what was recorded on the way."""

    theta: np.ndarray
    walkers: np.ndarray
    sweeps: int = 0
    time: float = 0.0
    length: float = 0.0
    steps: int = 0
    start_infidelity: float = 0.0
    interval: np.ndarray = field(
        default_factory=lambda: np.zeros(4)
    )  # steps, and sums of length, error, rank
    times: list[float] = field(default_factory=list)
    records: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in _RECORDED})

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
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> _Flight:
        """Inverse of ``arrays``."""
        sweeps, time, length, steps, start = arrays["scalars"].tolist()
        flight = cls(arrays["theta"], arrays["walkers"], int(sweeps), time, length, int(steps), start)
        flight.interval, flight.times = arrays["interval"], arrays["times"].tolist()
        for name in _RECORDED:
            flight.records[name] = list(arrays.get(f"recorded.{name}", ()))
        return flight


def run(context: Context) -> xr.Dataset:
    """Follow the state from recorded time to recorded time; a checkpoint may be taken after any step."""
    return _Experiment(context).run()


class _Experiment:
    """What stays the same while the state moves."""

    def __init__(self, context: Context):
        spec = context.spec
        self.context, self.spec, self.options = context, spec, spec.dynamics
        self.lattice, self.economy = spec.lattice.build(), economy_of(spec)
        hamiltonian = spec.final_hamiltonian.build(self.lattice)
        state = spec.state.build(self.lattice)
        self.motion = Motion(state, hamiltonian, self.economy, context.device, self.tick)
        self.method = METHODS[self.options.method](self.motion, self.options)
        self.observables = [
            make_observable(name, self.lattice, hamiltonian)
            for name in (*self.options.observables, "local_energy")
        ]
        self.fixed = spec.sampling.fixed_magnetization
        self.summed = (
            Summed(state, hamiltonian, self.fixed, context.device) if self.options.full_summation else None
        )
        self.flight: _Flight | None = None

    def run(self) -> xr.Dataset:
        saved = self.context.restore()
        self.flight = flight = _Flight.from_arrays(saved) if saved else self._begun()
        ended = ""
        try:
            for target in self.options.times:
                if target <= (flight.times or [-1.0])[-1]:
                    continue
                while flight.time < target - _ROUNDING:
                    self._advance(flight, target)
                self._record(flight)
        except NumericalError as problem:
            if not flight.time:
                raise
            ended = f"t = {flight.time:.6g}: {problem}"
            logger.warning("{}: dynamics ends at {}", self.spec.name, ended)
            if flight.time > flight.times[-1]:
                self._record(flight)
        return self._dataset(flight, ended)

    def tick(self) -> None:
        """Progress in thousandths of the duration."""
        flight, duration = self.flight, self.options.duration
        if flight is None:
            self.context.tick(0, 1000, f"to the state {self.options.start}")
            return
        share = int(1000 * flight.time / duration)
        message = f"t = {flight.time:.3f}, step {flight.length:.1e}"
        if flight.records["energy"]:
            first, last = (float(flight.records["energy"][i]) for i in (0, -1))
            message += (
                f", E = {last:.4f}" if self.options.imaginary else f", drift {_drift(first, last):+.1e}"
            )
        self.context.tick(share, 1000, message, flight.arrays)

    def _begun(self) -> _Flight:
        """At time 0: the state of the stage before, brought onto a product state where that is asked for."""
        before = self.context.upstream["ground_state"]
        flight = _Flight(
            before["parameters"].values.astype(np.float64),
            before["final_configuration"].values,
            length=self.options.step,
        )
        if self.options.start == "ground_state":
            return flight
        ensembles, infidelity = self._ensembles(flight), math.inf
        start, rotated = self.options.start, self.motion.hamiltonian.rotated
        up = None if start == "x" else product_configuration(self.lattice, start)
        for product, wanted in path_to(up, self.lattice.n_sites, _START_INFIDELITY, rotated):
            reached = bring_onto(
                product,
                self.motion.state,
                flight.theta,
                ensembles,
                wanted,
                _START_ITERATIONS,
                self.context.device.put,
                lambda message: self.tick(),
            )
            flight.theta, infidelity = reached.theta, reached.infidelity
            ensembles.move_on(self.motion.bind(flight.theta))
            if infidelity > _REFUSED_INFIDELITY:
                break
        if infidelity > _REFUSED_INFIDELITY:
            raise NumericalError(
                f"the network does not reach the product state {self.options.start} (infidelity {infidelity:.1e}): "
                "choose a state that breaks the symmetries which this one has, or a larger one"
            )
        flight.start_infidelity = infidelity
        self._moved_on(flight, ensembles)
        return flight

    def _ensembles(self, flight: _Flight) -> Ensembles:
        if self.summed is not None:
            return self.summed
        sampling = self.spec.sampling
        process = process_of(sampling, self.lattice, self.options.seed, Stream.DYNAMICS, self.economy)
        draws = self.options.samples // sampling.chains
        walkers = self.context.device.put(flight.walkers)
        return Sampled(process, walkers, draws, self.options.sweeps or sampling.sweeps, flight.sweeps)

    def _moved_on(self, flight: _Flight, ensembles: Ensembles) -> None:
        if isinstance(ensembles, Sampled):
            flight.walkers, flight.sweeps = to_host(ensembles.walkers).copy(), ensembles.done

    def _advance(self, flight: _Flight, target: float) -> None:
        """A step that does not pass the target; the walkers follow it."""
        ensembles = self._ensembles(flight)
        room = target - flight.time
        advance: Advance = self.method.step(flight.theta, min(flight.length, room), ensembles)
        ensembles.move_on(self.motion.bind(advance.theta))
        self._moved_on(flight, ensembles)
        cut = advance.length >= room - _ROUNDING and advance.next_length < flight.length
        if (
            not cut or advance.length >= flight.length
        ):  # a step cut short by the target says little about the next
            flight.length = advance.next_length
        flight.theta, flight.steps = advance.theta, flight.steps + 1
        flight.time = target if advance.length >= room - _ROUNDING else flight.time + advance.length
        flight.interval = flight.interval + np.asarray(
            [1, advance.length, advance.error * advance.length, advance.rank * advance.length]
        )

    def _record(self, flight: _Flight) -> None:
        """Everything about the state at this time."""
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

    def _measured(self, psi: Wavefunction, flight: _Flight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means and errors of the observables, the energy last, from fresh samples; and where their chains end."""
        sampling, options = self.spec.sampling, self.options
        process = process_of(sampling, self.lattice, options.seed, Stream.DYNAMICS_MEASUREMENT, self.economy)
        chains = process.start(psi, self.context.device.put(flight.walkers), flight.sweeps)
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
        self, psi: Wavefunction, flight: _Flight
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exact means, and independent samples for chains to start from."""
        put, n = self.context.device.put, self.lattice.n_sites
        sigma = put(all_configurations(n))
        if self.fixed is not None:
            sigma = sigma[sigma.sum(axis=1) == self.fixed]
        log_psi = psi.log_psi(sigma)
        weights = np.exp(2 * (to_host(log_psi.real) - float(log_psi.real.max())))
        values = to_host(measure(psi, self.observables, sigma, log_psi, self.economy)).real
        possible = weights > 0
        mean = weights[possible] @ values[possible] / weights.sum()
        process = Exact(n, self.options.seed, Stream.DYNAMICS_MEASUREMENT, self.fixed)
        chains = process.start(psi, put(flight.walkers), len(flight.times))
        process.sweep(psi, chains)
        return mean, np.zeros_like(mean), to_host(chains.sigma).copy()

    def _dataset(self, flight: _Flight, ended: str) -> xr.Dataset:
        variables: dict[str, Any] = {name: np.stack(values) for name, values in flight.records.items()}
        variables["parameters"] = variables["parameters"].astype(self.motion.state.dtype)
        variables |= self._compared(flight)
        attributes: dict[str, Any] = {
            "method": self.options.method,
            "start": self.options.start,
            "imaginary": int(self.options.imaginary),
            "start_infidelity": flight.start_infidelity,
        }
        coordinates = {
            "time": np.asarray(flight.times),
            "observable": np.asarray(self.options.observables, object),
        }
        return labelled("dynamics", variables, coordinates, attributes | ({"ended": ended} if ended else {}))

    def _compared(self, flight: _Flight) -> dict[str, np.ndarray]:
        """The exactly evolved state, where it is known."""
        spec, names = self.spec, self.options.observables
        quench = Quench(
            self.lattice,
            self.options.start,
            spec.hamiltonian,
            spec.final_hamiltonian,
            self.fixed,
            self.options.imaginary,
        )
        exact, infidelity = [], []
        for time, theta in zip(flight.times, flight.records["parameters"], strict=True):
            self.tick()
            known = quench.observables(time, names)
            exact.append([known[name] for name in names])
            state = quench.state(time)
            infidelity.append(np.nan if state is None else self._in_full(theta).infidelity(state))
        return {"observable_exact": np.asarray(exact), "infidelity": np.asarray(infidelity)}

    def _in_full(self, theta: np.ndarray) -> FullSummation:
        sigma = all_configurations(self.lattice.n_sites)
        log_psi = to_host(self.motion.bind(theta).log_psi(self.context.device.put(sigma)))
        if self.fixed is not None:
            log_psi = np.where(sigma.sum(axis=1) == self.fixed, log_psi, -np.inf)
        return FullSummation.from_log_psi(self.lattice.n_sites, log_psi)


def _drift(first: float, last: float) -> float:
    return (last - first) / abs(first) if first else last - first


def estimate(spec: Spec) -> Cost:
    """About a hundred steps per unit of time, each with its samples, local energies, derivatives, and metric."""
    lattice = spec.lattice.build()
    state, options, sampling = spec.state.build(lattice), spec.dynamics, spec.sampling
    n, times = lattice.n_sites, len(options.times)
    connected = spec.final_hamiltonian.build(lattice).n_connected + 1
    sweeps = options.sweeps or sampling.sweeps
    rows, each = options.samples, sweeps * sampling.evaluations(n) + connected
    if options.full_summation:
        rows, each = 2**n, connected
    parts = 2 if state.complex_amplitude else 1
    evaluations = 5 * _STEPS_PER_TIME * options.duration
    if options.method == "ptvmc":
        evaluations = options.order * _ITERATIONS * options.duration / options.step
    small = min(parts * rows, state.n_parameters)
    algebra = 2.0 * parts * rows * state.n_parameters * small + 10.0 * small**3
    measured = 2**n * connected if options.full_summation else options.measurements * each
    flops = evaluations * (
        rows * (each * flip_flops(spec) + 30 * network_flops(spec)) + _DOUBLE_PRECISION * algebra
    )
    flops += times * measured * flip_flops(spec)
    disk = 8.0 * times * (state.n_parameters + 10) + times * sampling.chains * n / 6
    memory = 4.0 * parts * rows * state.n_parameters * state.dtype.itemsize + 24.0 * small**2
    return Cost(seconds_for(flops), disk, memory)


STAGE = Stage(
    name="dynamics",
    reads=("lattice", "hamiltonian", "state", "sampling", "dynamics"),
    upstream=("ground_state",),
    version=1,
    run=run,
    estimate=estimate,
    wanted=lambda spec: spec.dynamics.wanted,
)
