"""The dense twin of the TopK training step: the formula in NumPy, in any precision, for the kernels to be held to.

    L = <|x - x_hat|^2> + alpha <|e - e_hat|^2> / Var(e)          (see ``topk.py``)

with e and Var(e) held fixed (detached) in the second term. The selection is held fixed by every derivative.
"""

from __future__ import annotations

import numpy as np

from .dictionary import select_topk
from .training import Parameters


def topk_gradients(
    parameters: Parameters, x: np.ndarray, k: int, dead: np.ndarray, k_aux: int, aux_coefficient: float
) -> tuple[float, Parameters, np.ndarray]:
    """Loss, its gradients, and how often each feature fires (F,), for inputs ``x`` (n, d) and the mask ``dead`` (F,)."""
    p = parameters
    centred = x - p.decoder_bias
    z = centred @ p.encoder.T + p.encoder_bias
    active = select_topk(z, k) & (z > 0)
    f = np.where(active, z, 0)
    error = x - (f @ p.decoder + p.decoder_bias)
    loss = float(np.mean(error**2))
    g = -2 / error.size * error
    delta = np.where(active, g @ p.decoder.T, 0)
    d_decoder = f.T @ g
    d_decoder_bias = g.sum(axis=0)
    variance = np.mean((error - error.mean(axis=0)) ** 2)
    if dead.any() and variance > 0 and aux_coefficient > 0:
        chosen = select_topk(np.where(dead, z, -np.inf), k_aux) & dead
        a = np.where(chosen, z, 0)
        residual = error - a @ p.decoder
        loss += float(aux_coefficient * np.mean(residual**2) / variance)
        g_aux = -2 * aux_coefficient / (error.size * variance) * residual
        delta += np.where(chosen, g_aux @ p.decoder.T, 0)
        d_decoder += a.T @ g_aux
    d_encoder_bias = delta.sum(axis=0)
    d_decoder_bias -= d_encoder_bias @ p.encoder
    return loss, Parameters(delta.T @ centred, d_decoder, d_encoder_bias, d_decoder_bias), active.sum(axis=0)
