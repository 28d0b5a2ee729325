"""features.nc: which feature means which observable, beside everything that would do as well without it.

At one time ``evidence.py`` makes the tables of every layer, by what ``experiment.py`` measures with. After a quench all that is
asked anew at every time, with components and regressions fitted on the train chains of the training times together; and of
every observable one feature, chosen on the training times, is followed through all of them (``following.py``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..interpret.series import pooled_moments
from .cost import Cost, network_flops, seconds_for
from .evidence import evidence
from .experiment import Experiment, Moments, Progress
from .following import OFFERED, followed
from .over_time import contexts, everywhere, over_time, training
from .portraits import geometry
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec


def run(context: Context) -> xr.Dataset:
    """Correlations, controls, gains, verdicts and stability of every layer."""
    if not over_time(context):
        return _features(context)
    progress = Progress(context, context.upstream["sae"].sizes["layer"])
    parts = [Experiment.of(at, progress=progress).moments for at in training(contexts(context))]
    fitted = {name: pooled_moments([part[name] for part in parts]) for name in parts[0]}
    return followed(everywhere(partial(_features, fitted=fitted))(context))


def _features(context: Context, fitted: Moments | None = None) -> xr.Dataset:
    """features.nc at one time; with moments of all training times also r of all candidates, for ``following``."""
    experiment = Experiment.of(context, fitted)
    tables = [evidence(layer) for layer in experiment.layers]
    variables = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    offered = {name: variables.pop(name) for name in ("candidate", *OFFERED) if name in variables}
    coords = {
        "layer": [layer.name for layer in experiment.layers],
        "feature": experiment.sae["feature"].values,
        "observable": experiment.observables,
        "sae_seed": experiment.sae_seeds,
        "control": experiment.controls,
        "initialisation": experiment.initialisations,
    }
    if not experiment.initialisations:
        del variables["untrained_pearson"], coords["initialisation"]
    if experiment.generators:
        coords["symmetry"] = list(experiment.generators)
    variables |= geometry(experiment)
    dataset = labelled("features", variables, coords, {"confidence": context.spec.features.confidence})
    if not offered:
        return dataset
    return dataset.assign(
        {name: (("layer", "candidate", "observable"), offered[name]) for name in OFFERED}
    ).assign_coords(candidate=offered["candidate"][0])


_TURNED = 2**14  # configurations, about: 2048 of two parts of the split for every generator


def estimate(spec: Spec) -> Cost:
    """Half the samples through every dictionary and untrained network, and one product per permutation.

    Symmetries take a few passes of the network over some thousand configurations.
    """
    n_layers, n_observables = len(spec.activations.layers), len(spec.observables.names)
    features, statistics = spec.sae.features, spec.features
    tokens = spec.state.build(spec.lattice.build()).n_tokens if spec.sae.input == "token" else 1
    _, select, test = (share * spec.samples.count for share in spec.samples.split)
    forward = network_flops(spec) * ((select + test) * spec.sae.untrained + _TURNED)
    encoded = (select + test) * tokens * features * (len(spec.sae.seeds) + 1 + spec.sae.untrained)
    permuted = test * features * n_observables * statistics.permutations
    resampled = statistics.bootstrap * features * n_observables
    seconds = (
        seconds_for(forward) + encoded * 4e-9 + permuted * 1.5e-10 + resampled * 2e-7 + test * features * 2e-7
    )
    disk = 8.0 * n_layers * features * (6 * n_observables + 20) + 1e5
    held = 8.0 * features * (select + test) + 8.0 * spec.samples.count * n_observables
    drawn = (
        8.0
        * spec.samples.split_chains(spec.sampling.chains)[2]
        * (statistics.bootstrap + statistics.permutations)
    )
    once = Cost(seconds=1.0 + n_layers * seconds, disk=disk, memory=held + drawn + 5e8)
    return once.repeated(len(spec.dynamics.times), 3 * disk)


STAGE = Stage(
    name="features",
    reads=("lattice", "hamiltonian", "state", "sae", "features"),
    upstream=("ground_state", "dynamics", "samples", "observables", "activations", "sae"),
    version=3,
    run=run,
    estimate=estimate,
)
