"""Stage ``observables``: every observable on every sample; off-diagonal ones by their local estimators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..physics.exact import exact_observables
from ..physics.observables import explained_r2, make_observable, simple_functions
from ..vmc.estimators import measure
from ..vmc.statistics import mean_and_error, split_r_hat
from .cost import Cost, flip_flops, seconds_for
from .inputs import born_samples, economy_of, trained
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

_SAMPLES_AT_ONCE = 1024


def run(context: Context) -> xr.Dataset:
    """Values (chain, draw, observable), means with errors, exact values where known, and what simple functions explain."""
    spec = context.spec
    lattice = spec.lattice.build()
    hamiltonian = spec.hamiltonian.build(lattice)
    observables = [make_observable(name, lattice, hamiltonian) for name in spec.observables.names]
    samples = context.upstream["samples"]
    psi = trained(context)
    sigma, log_psi = born_samples(samples, psi.state.complex_amplitude)
    shape = log_psi.shape
    sigma, log_psi = sigma.reshape(-1, lattice.n_sites), log_psi.reshape(-1)
    values = np.empty((len(sigma), len(observables)))
    for start in range(0, len(sigma), _SAMPLES_AT_ONCE):
        context.tick(start, len(sigma), "observables")
        rows = slice(start, start + _SAMPLES_AT_ONCE)
        block = context.device.put(sigma[rows]), context.device.put(log_psi[rows])
        values[rows] = to_host(measure(psi, observables, *block, economy_of(spec))).real
    design = simple_functions(lattice, sigma)
    by_chain = values.reshape(*shape, -1)
    mean, error = mean_and_error(by_chain)
    exact = exact_observables(spec.hamiltonian, lattice, spec.observables.names)
    return labelled(
        "observables",
        {
            "value": by_chain,
            "mean": mean,
            "error": error,
            "r_hat": split_r_hat(by_chain),
            "exact": np.asarray([exact[name] for name in spec.observables.names]),
            "simple_function_r2": np.atleast_1d(explained_r2(design, values)),
        },
        {
            "chain": samples["chain"].values,
            "draw": samples["draw"].values,
            "observable": np.asarray(spec.observables.names, dtype=object),
            "split": ("chain", samples["split"].values),
        },
    )


def estimate(spec: Spec) -> Cost:
    """One network call per connected configuration, if any observable is off-diagonal."""
    lattice = spec.lattice.build()
    hamiltonian = spec.hamiltonian.build(lattice)
    local = any(make_observable(name, lattice, hamiltonian).operator for name in spec.observables.names)
    calls = spec.samples.count * hamiltonian.n_connected if local else 0
    size = 8.0 * spec.samples.count * len(spec.observables.names)
    return Cost(seconds_for(flip_flops(spec) * calls), size, 3 * size)


STAGE = Stage(
    name="observables",
    reads=("lattice", "hamiltonian", "state", "observables"),
    upstream=("ground_state", "samples"),
    version=1,
    run=run,
    estimate=estimate,
)
