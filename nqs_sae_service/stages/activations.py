"""Stage ``activations``: the residual stream (and other layers) on every sample, written piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.netcdf import Piece, Streamed
from ..datasets.schema import declaration, labelled
from ..engine.arrays import to_host
from ..sae.metrics import Moments
from .cost import Cost, network_flops, seconds_for
from .inputs import aligned_samples, hyperslabs, projection_attributes, trained
from .over_time import everywhere_in_pieces
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

_PIECE_ELEMENTS = 2**22  # of all layers together, computed at a time


@everywhere_in_pieces
def run(context: Context) -> Streamed:
    """One variable per layer (chain, draw, token, width), float32, and the participation ratio of each."""
    psi, layers = trained(context), context.spec.activations.layers
    samples = context.upstream["samples"]
    n_chains, n_draws, n_sites = samples["configuration"].shape
    probe = psi.activations(context.device.put(np.ones((1, n_sites), np.int8)), layers)
    shapes = {layer: (n_chains, n_draws, *x.shape[1:]) for layer, x in probe.items()}
    labels = {
        declaration("activations", layer).dims[2]: np.arange(shape[2]) for layer, shape in shapes.items()
    }
    dataset = labelled(
        "activations",
        {"participation_ratio": np.full(len(layers), np.nan)},
        {
            "chain": samples["chain"].values,
            "draw": samples["draw"].values,
            "layer": np.asarray(layers, dtype=object),
            **labels,
        },
        projection_attributes(psi.state),
    )
    return Streamed(dataset, {layer: (shapes[layer], np.float32) for layer in layers}, _pieces(context))


def _pieces(context: Context) -> Iterator[Piece]:
    psi, layers = trained(context), context.spec.activations.layers
    configurations = context.upstream["samples"]["configuration"]
    n_draws, n_sites = configurations.shape[1:]
    sigma = configurations.values.reshape(-1, n_sites)
    moments = {layer: Moments() for layer in layers}
    each = len(layers) * psi.state.n_tokens * psi.state.width_of(layers[0])
    size = aligned_samples(_PIECE_ELEMENTS, each)
    for first in range(0, len(sigma), size):
        context.tick(first, len(sigma), "activations")
        last = min(len(sigma), first + size)
        for layer, values in psi.activations(context.device.put(sigma[first:last]), layers).items():
            x = np.asarray(to_host(values), np.float32)
            moments[layer].add(x.reshape(-1, x.shape[-1]))
            for chains, draws, place in hyperslabs(first, last, n_draws):
                shape = (chains.stop - chains.start, draws.stop - draws.start, *x.shape[1:])
                yield layer, (chains, draws), x[place].reshape(shape)
    yield (
        "participation_ratio",
        (slice(None),),
        np.array([moments[layer].participation_ratio for layer in layers]),
    )


def estimate(spec: Spec) -> Cost:
    """One network call per sample and layer, of copy 0 alone where the state is projected."""
    state = spec.state.build(spec.lattice.build())
    layers = len(spec.activations.layers)
    size = 4.0 * spec.samples.count * state.n_tokens * state.width_of(spec.activations.layers[0]) * layers
    held = min(size, 4.0 * _PIECE_ELEMENTS) + spec.samples.count * state.n_sites
    flops = network_flops(spec) / state.n_copies * spec.samples.count * layers
    return Cost(seconds_for(flops) + size / 2e8, size, 4 * held).repeated(len(spec.dynamics.times))


STAGE = Stage(
    name="activations",
    reads=("state", "lattice", "activations"),
    upstream=("ground_state", "dynamics", "samples"),
    version=2,
    run=run,
    estimate=estimate,
)
