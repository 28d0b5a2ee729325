"""Stage ``observables``: every observable on every sample; off-diagonal ones by their local estimators.

Two belong to the whole state, not to a sample: the variance of the energy and the Renyi entropy, variables of their own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..physics.exact import exact_observables, exact_state
from ..physics.observables import (
    Observable,
    explained_r2,
    make_observable,
    observable_kind,
    simple_function_names,
    simple_functions,
    without_global_phase,
)
from ..states import Wavefunction
from ..vmc.entanglement import halves, renyi2
from ..vmc.estimators import measure
from ..vmc.statistics import mean_and_error, split_r_hat
from .cost import Cost, flip_flops, network_flops, seconds_for
from .inputs import born_samples, economy_of, origin, trained
from .over_time import everywhere, over_time
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..physics.lattices import Lattice
    from ..spec import Spec

_SAMPLES_AT_ONCE = 1024
_OF_GROUND_STATE = {"exact", "renyi2_exact"}  # unless there is a quench
Samples = tuple[np.ndarray, np.ndarray]


@everywhere
def run(context: Context) -> xr.Dataset:
    """Values (chain, draw, observable), means with errors, exact values where known, and what simple functions explain."""
    spec = context.spec
    lattice = spec.lattice.build()
    hamiltonian = spec.final_hamiltonian.build(lattice)
    asked, names = spec.observables.names, _names_of_samples(spec, lattice)
    # The energy comes along, last, where its variance is asked for.
    measured = (*names, "local_energy") if "energy_variance" in asked else names
    observables = [make_observable(name, lattice, hamiltonian) for name in measured]
    samples = context.upstream["samples"]
    psi = trained(context)
    sigma, log_psi = born_samples(samples, psi.state.complex_amplitude)
    shape = log_psi.shape
    raw = _measured(context, psi, observables, (sigma.reshape(-1, lattice.n_sites), log_psi.reshape(-1)))
    columns = zip(observables[: len(names)], raw.T, strict=False)
    values = np.stack([_real(observable, column) for observable, column in columns], axis=1)
    fixed = spec.sampling.fixed_magnetization
    design = simple_functions(lattice, sigma.reshape(-1, lattice.n_sites), fixed is not None)
    by_chain = values.reshape(*shape, -1)
    mean, error = mean_and_error(by_chain)
    variables = {
        "value": by_chain,
        "mean": mean,
        "error": error,
        "r_hat": split_r_hat(by_chain),
        "exact": _exact(context, lattice, names),
        "simple_function_r2": np.atleast_1d(explained_r2(design, values)),
    }
    coordinates = {
        "chain": samples["chain"].values,
        "draw": samples["draw"].values,
        "observable": np.asarray(names, dtype=object),
        "split": ("chain", samples["split"].values),
    }
    if "energy_variance" in asked:
        variables |= _energy_variance(raw[:, -1].reshape(shape))
    if "renyi2" in asked:
        variables |= _entanglement(context, psi, (sigma, log_psi))
        coordinates["subsystem"] = np.asarray(list(halves(lattice)), dtype=object)
    functions = ", ".join(simple_function_names(lattice, fixed is not None))
    dataset = labelled("observables", variables, coordinates, {"simple_functions": f"{{{functions}}}"})
    if over_time(context):
        for name in _OF_GROUND_STATE & set(dataset):
            dataset[name].attrs["long_name"] = "that of the exactly evolved state where known, else NaN"
    return dataset


def _names_of_samples(spec: Spec, lattice: Lattice) -> tuple[str, ...]:
    """The observables that have a value on a sample."""
    return tuple(name for name in spec.observables.names if observable_kind(name, lattice) != "ensemble")


def _exact(context: Context, lattice: Lattice, names: tuple[str, ...]) -> np.ndarray:
    """Exact values (observable,) in the ground state or, after a quench, in the evolved state; NaN where unknown."""
    spec = context.spec
    if over_time(context):
        evolved = origin(context)
        known = dict(zip(evolved["observable"].values, evolved["observable_exact"].values, strict=True))
    else:
        known = exact_observables(spec.hamiltonian, lattice, names, spec.sampling.fixed_magnetization)
    return np.asarray([known.get(name, np.nan) for name in names])


def _measured(
    context: Context, psi: Wavefunction, observables: list[Observable], born: Samples
) -> np.ndarray:
    """Values and local estimators (n, observable) of all samples, complex where one is."""
    sigma, log_psi = born
    economy, put = economy_of(context.spec), context.device.put
    blocks = []
    for start in range(0, len(sigma), _SAMPLES_AT_ONCE):
        context.tick(start, len(sigma), "observables")
        rows = slice(start, start + _SAMPLES_AT_ONCE)
        blocks.append(to_host(measure(psi, observables, put(sigma[rows]), put(log_psi[rows]), economy)))
    return np.concatenate(blocks)


def _real(observable: Observable, column: np.ndarray) -> np.ndarray:
    """What counts of a measured column (n,): the real part, of phases the chosen part once the global phase is taken out."""
    if observable.kind == "phase":
        return getattr(without_global_phase(column), observable.part)
    return column.real


def _energy_variance(local_energy: np.ndarray) -> dict[str, Any]:
    """From complex local energies (chain, draw)."""
    variance, error = mean_and_error(np.abs(local_energy - local_energy.mean()) ** 2)
    return {"energy_variance": variance, "energy_variance_error": error}


def _entanglement(context: Context, psi: Wavefunction, born: Samples) -> dict[str, Any]:
    """Renyi entropies of the halves of the lattice, from all samples."""
    spec = context.spec
    lattice = spec.lattice.build()
    fixed = spec.sampling.fixed_magnetization
    total = born[1].size
    found, exact = [], []
    state = None if over_time(context) else exact_state(spec.hamiltonian, lattice, fixed)
    for name, sites in halves(lattice).items():
        tick = partial(context.tick, total, total, f"Renyi entropy, {name}")
        found.append(renyi2(psi, sites, *born, fixed is not None, context.device.put, tick))
        exact.append(float("nan") if state is None else state.renyi2(sites))
    value, error = np.asarray(found).T
    return {"renyi2": value, "renyi2_error": error, "renyi2_exact": np.asarray(exact)}


def estimate(spec: Spec) -> Cost:
    """One network call per connected configuration, if any observable is off-diagonal; one per sample for each subsystem."""
    lattice = spec.lattice.build()
    hamiltonian = spec.final_hamiltonian.build(lattice)
    names = spec.observables.names
    connected = {
        o.operator.n_connected
        for o in (make_observable(name, lattice, hamiltonian) for name in names)
        if o.operator is not None
    }
    calls = spec.samples.count * max(connected, default=0)
    flops = flip_flops(spec) * calls
    if "renyi2" in names:
        flops += network_flops(spec) * spec.samples.count * len(halves(lattice))
    size = 8.0 * spec.samples.count * len(names)
    return Cost(seconds_for(flops), size, 3 * size).repeated(len(spec.dynamics.times), size)


STAGE = Stage(
    name="observables",
    reads=("lattice", "hamiltonian", "state", "observables"),
    upstream=("ground_state", "dynamics", "samples"),
    version=2,
    run=run,
    estimate=estimate,
)
