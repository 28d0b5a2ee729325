"""Stage ``activations``: the residual stream (and other layers) on every sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..sae.metrics import participation_ratio
from .cost import Cost, network_flops, seconds_for
from .inputs import trained
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

_SAMPLES_AT_ONCE = 4096


def run(context: Context) -> xr.Dataset:
    """One variable per layer (chain, draw, token, width), float32, and the participation ratio of each."""
    spec = context.spec
    psi = trained(context)
    samples = context.upstream["samples"]
    shape = samples["configuration"].shape
    sigma = samples["configuration"].values.reshape(-1, psi.state.n_sites)
    layers = spec.activations.layers
    arrays: dict[str, np.ndarray] = {}
    for start in range(0, len(sigma), _SAMPLES_AT_ONCE):
        context.tick(start, len(sigma), "activations")
        rows = slice(start, start + _SAMPLES_AT_ONCE)
        for layer, x in psi.activations(context.device.put(sigma[rows]), layers).items():
            array = arrays.setdefault(layer, np.empty((len(sigma), *x.shape[1:]), np.float32))
            array[rows] = to_host(x)
    ratios = [participation_ratio(arrays[layer].reshape(-1, arrays[layer].shape[-1])) for layer in layers]
    variables = {layer: array.reshape(*shape[:2], *array.shape[1:]) for layer, array in arrays.items()}
    return labelled(
        "activations",
        {**variables, "participation_ratio": np.asarray(ratios)},
        {
            "chain": samples["chain"].values,
            "draw": samples["draw"].values,
            "layer": np.asarray(layers, dtype=object),
        },
    )


def estimate(spec: Spec) -> Cost:
    """One network call per sample and layer."""
    state = spec.state.build(spec.lattice.build())
    layers = len(spec.activations.layers)
    size = 4.0 * spec.samples.count * state.n_tokens * state.width * layers
    return Cost(seconds_for(network_flops(spec) * spec.samples.count * layers) + size / 2e8, size, 3 * size)


STAGE = Stage(
    name="activations",
    reads=("state", "lattice", "activations"),
    upstream=("ground_state", "samples"),
    version=1,
    run=run,
    estimate=estimate,
)
