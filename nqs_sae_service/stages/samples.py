"""Stage ``samples``: Born samples of the trained state, split by chain into train, select and test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..engine.random import Stream
from ..sampling import process_of
from .cost import Cost, flip_flops, seconds_for
from .inputs import economy_of, origin, projection_attributes, trained
from .over_time import everywhere, first_sweep
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

SPLITS = ("train", "select", "test")


@everywhere
def run(context: Context) -> xr.Dataset:
    """Let the chains of the training move on, thermalised as they are, then record ``count`` samples over all of them."""
    spec = context.spec
    psi = trained(context)
    process = process_of(
        spec.sampling, spec.lattice.build(), spec.samples.seed, Stream.SAMPLES, economy_of(spec)
    )
    share, ranks = context.ranks.share(spec.sampling.chains), context.ranks
    start = context.device.put(origin(context)["final_configuration"].values[share])
    chains = process.start(psi, start, first_sweep(context), share.start)
    draws = spec.samples.count // spec.sampling.chains
    total = spec.sampling.burn_in + draws
    for sweep in range(spec.sampling.burn_in):
        context.tick(sweep, total, "thermalising")
        ranks.together(lambda: process.sweep(psi, chains))
    sigma, log_psi = [], []
    for draw in range(draws):
        for _ in range(spec.samples.sweeps or spec.sampling.sweeps):
            ranks.together(lambda: process.sweep(psi, chains))
        sigma.append(to_host(chains.sigma).copy())
        log_psi.append(to_host(chains.log_psi).copy())
        context.tick(spec.sampling.burn_in + draw + 1, total, "sampling")
    n_chains = spec.sampling.chains
    return labelled(
        "samples",
        {
            "configuration": ranks.gather(np.stack(sigma, axis=1)),
            "log_psi": ranks.gather(np.stack(log_psi, axis=1)),
        },
        {
            "chain": np.arange(n_chains),
            "draw": np.arange(draws),
            "spin": np.arange(psi.state.n_sites),
            "split": ("chain", np.repeat(SPLITS, spec.samples.split_chains(n_chains))),
        },
        projection_attributes(psi.state),
    )


def estimate(spec: Spec) -> Cost:
    """One network call per proposal."""
    n = spec.lattice.build().n_sites
    sweeps = spec.sampling.burn_in + spec.samples.count // spec.sampling.chains * (
        spec.samples.sweeps or spec.sampling.sweeps
    )
    calls = sweeps * spec.sampling.evaluations(n) * spec.sampling.chains + spec.sampling.listed(n)
    once = Cost(
        seconds_for(flip_flops(spec) * calls),
        spec.samples.count * (n / 6 + 16),
        spec.samples.count * (n + 16),
    )
    return once.repeated(len(spec.dynamics.times), once.memory)


STAGE = Stage(
    name="samples",
    reads=("lattice", "state", "sampling", "samples"),
    upstream=("ground_state", "dynamics"),
    version=1,
    run=run,
    estimate=estimate,
    distributed=True,
)
