"""Stage ``dynamics``: the state through time after a quench, with energy and observables at every recorded time.

The steps of an interval between recorded times fit it exactly. Where a step collapses, the stage ends at that time and says so;
what was recorded is as good as of any other run: later stages use the times that there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from loguru import logger

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..errors import NumericalError
from ..physics.exact import FullSummation, all_configurations
from ..physics.quench import Quench
from ..vmc.dynamics import Evolution, Flight
from ..vmc.ensembles import symmetries_of
from .cost import Cost, flip_flops, network_flops, seconds_for
from .inputs import economy_of
from .stage import Context, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..spec import Spec

_PARTS = 1000  # that progress is told in
_STEPS_PER_TIME, _ITERATIONS, _DOUBLE_PRECISION = 100, 15, 2.0  # for the forecast


def run(context: Context) -> xr.Dataset:
    """Follow the state from recorded time to recorded time; a checkpoint may be taken after any step."""
    spec, options = context.spec, context.spec.dynamics
    evolution = evolution_of(context, lambda flight: _tick(context, flight))
    saved, ended = context.restore(), ""
    flight = Flight.from_arrays(saved) if saved else _begun(context, evolution)
    try:
        for target in options.times:
            if not flight.times or target > flight.times[-1]:
                evolution.advance_to(flight, target)
                evolution.record(flight)
    except NumericalError as problem:
        if not flight.time:
            raise
        ended = f"t = {flight.time:.6g}: {problem}"
        logger.warning("{}: dynamics ends at {}", spec.name, ended)
        if flight.time > flight.times[-1]:
            evolution.record(flight)
    return _dataset(context, evolution, flight, ended)


def evolution_of(
    context: Context, tick: Callable[[Flight | None], None], names: tuple[str, ...] = ()
) -> Evolution:
    """What moves the network of a spec after its quench, and records the observables of these ``names``, or of the spec."""
    spec = context.spec
    options = spec.dynamics.model_copy(update={"observables": names}) if names else spec.dynamics
    lattice = spec.lattice.build()
    return Evolution(
        spec.state.build(lattice),
        lattice,
        spec.final_hamiltonian.build(lattice),
        spec.sampling,
        options,
        economy_of(spec),
        context.device,
        tick,
    )


def _begun(context: Context, evolution: Evolution) -> Flight:
    """At time 0: the state of the stage before, brought onto a product state where that is asked for."""
    before, options = context.upstream["ground_state"], context.spec.dynamics
    theta = before["parameters"].values.astype(np.float64)
    flight = Flight(theta, before["final_configuration"].values, length=options.step)
    if options.start != "ground_state":
        evolution.to_product_state(flight)
    return flight


def _tick(context: Context, flight: Flight | None) -> None:
    options = context.spec.dynamics
    if flight is None:
        context.tick(0, _PARTS, f"to the state {options.start}")
        return
    message = f"t = {flight.time:.3f}, step {flight.length:.1e}"
    if flight.records["energy"]:
        first, last = (float(flight.records["energy"][i]) for i in (0, -1))
        drift = (last - first) / (abs(first) or 1.0)
        message += f", E = {last:.4f}" if options.imaginary else f", energy drift {drift:+.1e}"
    context.tick(int(_PARTS * flight.time / options.duration), _PARTS, message, flight.arrays)


def _dataset(context: Context, evolution: Evolution, flight: Flight, ended: str) -> xr.Dataset:
    options = context.spec.dynamics
    variables: dict[str, Any] = {name: np.stack(values) for name, values in flight.records.items()}
    variables["parameters"] = variables["parameters"].astype(evolution.motion.state.dtype)
    variables |= _compared(context, evolution, flight)
    attributes: dict[str, Any] = {
        "method": options.method,
        "start_state": options.start,
        "imaginary": int(options.imaginary),
        "start_infidelity": flight.start_infidelity,
    }
    coordinates = {"time": np.asarray(flight.times), "observable": np.asarray(options.observables, object)}
    return labelled("dynamics", variables, coordinates, attributes | ({"ended": ended} if ended else {}))


def _compared(context: Context, evolution: Evolution, flight: Flight) -> dict[str, np.ndarray]:
    """The exactly evolved state, where it is known."""
    spec, options = context.spec, context.spec.dynamics
    before, after, names = spec.hamiltonian, spec.final_hamiltonian, options.observables
    quench = Quench(evolution.lattice, options.start, before, after, evolution.fixed, options.imaginary)
    exact, infidelity = [], []
    for time, theta in zip(flight.times, flight.records["parameters"], strict=True):
        evolution.tick()
        known = quench.observables(time, names)
        exact.append([known[name] for name in names])
        state = quench.state(time)
        infidelity.append(np.nan if state is None else _in_full(evolution, theta).infidelity(state))
    return {"observable_exact": np.asarray(exact), "infidelity": np.asarray(infidelity)}


def _in_full(evolution: Evolution, theta: np.ndarray) -> FullSummation:
    n = evolution.lattice.n_sites
    sigma = all_configurations(n)
    log_psi = to_host(evolution.motion.bind(theta).log_psi(evolution.device.put(sigma)))
    if evolution.fixed is not None:
        log_psi = np.where(sigma.sum(axis=1) == evolution.fixed, log_psi, -np.inf)
    return FullSummation.from_log_psi(n, log_psi)


def estimate(spec: Spec) -> Cost:
    """About a hundred steps per unit of time, each with its samples, local energies, derivatives, and metric."""
    lattice = spec.lattice.build()
    state, options, sampling = spec.state.build(lattice), spec.dynamics, spec.sampling
    n, times = lattice.n_sites, len(options.times)
    connected = spec.final_hamiltonian.build(lattice).n_connected + 1
    sweeps = options.sweeps or sampling.sweeps
    rows, each = options.samples, sweeps * sampling.evaluations(n) + connected
    if options.full_summation:
        rows, each = max(1, 2**n // len(symmetries_of(state))), connected
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


def wanted(spec: Spec) -> bool:
    """Whether the spec has a dynamics."""
    return spec.dynamics.wanted


STAGE = Stage(
    name="dynamics",
    reads=("lattice", "hamiltonian", "state", "sampling", "dynamics"),
    upstream=("ground_state",),
    version=1,
    run=run,
    estimate=estimate,
    wanted=wanted,
)
