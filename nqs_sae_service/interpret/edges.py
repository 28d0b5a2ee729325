"""Which features of a layer drive a feature of a later layer: attribution from feature to feature, a sparse graph.

For the activation F_j = sum_t f_j(x'_t) of feature j in the later layer (of a pooled dictionary the one activation),

    weight_ij = < sum_t f_ti  d_i . (J^T e_j)_t >,      J = d x' / d x,

with the encoder row e_j at those tokens where feature j is active (which ones are active is held fixed), averaged over Born
samples: gradient x activation with F_j in the place of log psi, from one backward pass for all sources. Held against the
change of <F_j> when the source is set to zero, selection and all. After Marks et al., arXiv:2403.19647.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..engine.arrays import namespace, to_host
from ..states import Wavefunction
from .atlas import Array, DecodedLayer, no_tick


def edge_weights(
    psi: Wavefunction,
    source: DecodedLayer,
    target: DecodedLayer,
    feature: int,
    sigma: Array,
    tick: Callable[[], None] = no_tick,
) -> np.ndarray:
    """sum_t f_ti d_i . (J^T e_j)_t (n, source feature) on configurations (n, n_sites) of a bare network, on the host.

    A source that is scaled changes F_j at this rate.
    """

    def evaluate(rows: Array) -> Array:
        tick()
        tape = psi.tape(rows)
        x = tape.edges[target.layer]
        active = _activation(target, x, feature) > 0
        cotangent = active[..., None] * target.dictionary.encoder[feature].astype(x.dtype)
        if target.pooled:
            cotangent = namespace(x).broadcast_to(cotangent / x.dtype.type(x.shape[1]), x.shape)
        gradient = tape.pull(target.layer, cotangent, source.layer)
        return (source.activations(tape.edges[source.layer]) * source.along(gradient)).sum(axis=1)

    return to_host(psi.passes(evaluate, sigma))


def edge_effect(
    psi: Wavefunction, source: DecodedLayer, target: DecodedLayer, i: int, j: int, sigma: Array
) -> np.ndarray:
    """F_j minus F_j with the source feature ``i`` set to zero, (n,) on the host."""

    def without(x: Array) -> Array:
        f = source.activations(x, namespace(x).asarray([i]))
        return x - (f * source.dictionary.decoder[i]).astype(x.dtype)

    def evaluate(rows: Array) -> Array:
        kept, edited = psi.tape(rows), psi.tape(rows, {source.layer: without})
        f = [_activation(target, tape.edges[target.layer], j).sum(axis=1) for tape in (kept, edited)]
        return f[0] - f[1]

    return to_host(psi.passes(evaluate, sigma))


def strongest(weight: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` features with the largest |weight| (feature,), strongest first; -1 where no more differ from 0."""
    order = np.argsort(-np.abs(weight), kind="stable")[:count]
    found = np.full(count, -1, np.int32)
    found[: len(order)] = np.where(weight[order] != 0, order, -1)
    return found


def _activation(target: DecodedLayer, x: Array, feature: int) -> Array:
    """f_j (n, row) of activations x (n, token, width)."""
    return target.activations(x, namespace(x).asarray([feature]))[..., 0]
