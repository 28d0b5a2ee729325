"""The TopK training step on a GPU: loss, gradients and firing counts of ``topk.py`` by the kernels of ``kernels_gpu``.

Five kernels, one product and one sort for the main term, the same on the dictionary of the dead features alone for the
auxiliary one. The loss is fetched once per step; what else the host asks for waits no longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import namespace
from .kernels_gpu import adam_rows, backward, decode_error, encode_topk
from .training import Adam, Parameters

Array = Any


class DeviceStep:
    """One optimisation step on a device: the counterpart of ``topk.SparseStep``."""

    def __init__(self, parameters: Parameters, k: int, k_aux: int, aux_coefficient: float) -> None:
        self.parameters, self.constants = parameters, (k, k_aux, aux_coefficient)

    def __call__(
        self, x: Array, progress: float, dead: Array, adam: Adam, learning_rate: float
    ) -> tuple[float, Array]:
        """See ``training.Learner``."""
        k, k_aux, aux_coefficient = self.constants
        loss, gradients, counts = sparse_gradients(self.parameters, x, k, dead, k_aux, aux_coefficient)
        if np.isfinite(loss):
            constants = adam.next(learning_rate)
            for name, parameter in vars(self.parameters).items():
                gradient, unit = getattr(gradients, name), name == "decoder"
                adam_rows(parameter, *adam.moments[name], gradient, constants, unit)
        return loss, counts


def sparse_gradients(
    parameters: Parameters, x: Array, k: int, dead: Array, k_aux: int, aux_coefficient: float
) -> tuple[float, Parameters, Array]:
    """Loss, its gradients and the firing counts (F,), as ``reference.topk_gradients``; x (n, d), mask ``dead`` (F,)."""
    xp, p = namespace(x), parameters
    values, indices = encode_topk(x, p.encoder, p.encoder_bias, p.decoder_bias, k)
    error, squared = decode_error(x, p.decoder, p.decoder_bias, values, indices)
    loss = float(squared.sum()) / error.size
    d_encoder, d_decoder, d_encoder_bias, counts = backward(
        x, error, -2 / error.size, p.decoder, p.decoder_bias, values, indices
    )
    variance = float(error.var(axis=0, dtype=np.float64).mean()) if dead.any() else 0.0
    if variance > 0 and aux_coefficient > 0:
        j = xp.flatnonzero(dead)
        encoder, decoder, no_bias = p.encoder[j], p.decoder[j], xp.zeros_like(p.decoder_bias)
        values, indices = encode_topk(
            x, encoder, p.encoder_bias[j], p.decoder_bias, min(k_aux, len(j)), positive=False
        )
        residual, squared = decode_error(error, decoder, no_bias, values, indices)
        weight = aux_coefficient / variance
        loss += weight * float(squared.sum()) / error.size
        of_dead = backward(x, residual, -2 * weight / error.size, decoder, p.decoder_bias, values, indices)
        d_encoder[j] += of_dead[0]
        d_decoder[j] += of_dead[1]
        d_encoder_bias[j] += of_dead[2]
    d_decoder_bias = -2 / error.size * error.sum(axis=0, dtype=np.float64) - d_encoder_bias @ p.encoder
    return loss, Parameters(d_encoder, d_decoder, d_encoder_bias, d_decoder_bias.astype(np.float32)), counts
