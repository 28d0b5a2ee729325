"""The TopK training step on a GPU: loss, gradients and firing counts of ``topk.py`` by the kernels of ``kernels_gpu``.

Five kernels, one product and one sort for the main term, the same on the dictionary of the dead features alone for the
auxiliary one. The loss is fetched once per step; what else the host asks for waits no longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from .distributed import best_over_ranks
from .kernels_gpu import adam_rows, backward, decode_error, encode_topk
from .topk import Choice, best_of_row, within
from .training import Adam, Parameters

Array = Any


class DeviceStep:
    """One optimisation step on a device: the counterpart of ``topk.SparseStep``."""

    def __init__(
        self,
        parameters: Parameters,
        k: int,
        k_aux: int,
        aux_coefficient: float,
        ranks: Ranks = ALONE,
        choose: Choice = best_of_row,
        groups: Sequence[slice] | None = None,
    ) -> None:
        self.parameters, self.constants = parameters, (k, k_aux, aux_coefficient)
        self.how = (ranks, choose, groups)

    def __call__(
        self, x: Array, progress: float, dead: Array, adam: Adam, learning_rate: float
    ) -> tuple[float, Array]:
        """See ``training.Learner``."""
        k, k_aux, aux_coefficient = self.constants
        loss, gradients, counts = sparse_gradients(
            self.parameters, x, k, dead, k_aux, aux_coefficient, *self.how
        )
        if np.isfinite(loss):
            constants = adam.next(learning_rate)
            for name, parameter in vars(self.parameters).items():
                gradient, unit = getattr(gradients, name), name == "decoder"
                adam_rows(parameter, *adam.moments[name], gradient, constants, unit)
        return loss, counts


def sparse_gradients(
    parameters: Parameters,
    x: Array,
    k: int,
    dead: Array,
    k_aux: int,
    aux_coefficient: float,
    ranks: Ranks = ALONE,
    choose: Choice = best_of_row,
    groups: Sequence[slice] | None = None,
) -> tuple[float, Parameters, Array]:
    """Loss, its gradients and the firing counts (F,), as ``reference.topk_gradients``; x (n, d), mask ``dead`` (F,).

    Where ``ranks`` share the features, parameters, gradients, counts and mask are those of this rank's. ``choose`` and
    ``groups`` as in ``topk.SparseStep``.
    """
    xp, p, n_features = namespace(x), parameters, len(parameters.encoder)
    groups = groups or [slice(0, n_features)]
    values, indices = choose(
        lambda n: encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, n), k, n_features, ranks
    )
    errors, squares, target, bias = [], [], x, p.decoder_bias
    for group in groups:
        target, squared = _rest(target, p.decoder, bias, values, within(indices, group, n_features), ranks)
        errors.append(target)
        squares.append(float(squared.sum()))
        bias = xp.zeros_like(bias)
    error, weight = errors[-1], -2 / x.size / len(errors)
    loss = sum(squares) / x.size / len(errors)
    pulls = list(accumulate(errors[::-1]))[::-1]
    parts = []
    for group, pull in zip(groups, pulls, strict=True):
        inside = within(indices, group, n_features)
        inside = xp.where(inside < 0, inside, inside - np.int32(group.start)) if group.start else inside
        parts.append(backward(x, pull, weight, p.decoder[group], p.decoder_bias, values, inside))
    d_encoder, d_decoder, d_encoder_bias, counts = (
        part[0] if len(part) == 1 else xp.concatenate(part) for part in zip(*parts, strict=True)
    )
    n_dead = int(ranks.sum(dead.sum(keepdims=True))[0])
    variance = float(error.var(axis=0, dtype=np.float64).mean()) if n_dead else 0.0
    if variance > 0 and aux_coefficient > 0:
        j = xp.flatnonzero(dead)
        encoder, decoder, no_bias = p.encoder[j], p.decoder[j], xp.zeros_like(p.decoder_bias)
        own = encode_topk(x, encoder, p.encoder_bias[j], p.decoder_bias, min(k_aux, len(j)), positive=False)
        values, indices = best_over_ranks(*own, min(k_aux, n_dead), ranks)
        residual, squared = _rest(error, decoder, no_bias, values, indices, ranks)
        of_aux = aux_coefficient / variance
        loss += of_aux * float(squared.sum()) / error.size
        of_dead = backward(x, residual, -2 * of_aux / error.size, decoder, p.decoder_bias, values, indices)
        d_encoder[j] += of_dead[0]
        d_decoder[j] += of_dead[1]
        d_encoder_bias[j] += of_dead[2]
    through_encoder = ranks.sum(d_encoder_bias @ p.encoder)
    d_decoder_bias = weight * pulls[0].sum(axis=0, dtype=np.float64) - through_encoder
    return loss, Parameters(d_encoder, d_decoder, d_encoder_bias, d_decoder_bias.astype(np.float32)), counts


def _rest(
    target: Array, decoder: Array, bias: Array, values: Array, indices: Array, ranks: Ranks
) -> tuple[Array, Array]:
    """What the active features of all ranks leave of ``target`` - ``bias`` (n, d), and its squares (n,)."""
    nothing = namespace(target).zeros_like
    if ranks.rank > 0:  # the others add their part to what rank 0 has
        target, bias = nothing(target), nothing(bias)
    result = decode_error(target, decoder, bias, values, indices)
    if ranks.size == 1:
        return result
    return decode_error(ranks.sum(result[0]), decoder, nothing(bias), values[:, :0], indices[:, :0])
