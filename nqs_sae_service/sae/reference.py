"""The dense twin of the sparse training step: the formula in NumPy, in any precision, for the kernels to be held to.

    L = 1/M sum_m <|x - x_hat_m|^2> + alpha <|e - e_hat|^2> / Var(e)          (see ``topk.py``, ``matryoshka.py``)

with e, the error of the last x_hat_m, and Var(e) held fixed (detached) in the second term. The selection is held fixed by
every derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .dictionary import select_topk
from .training import Parameters


def select_of_batch(z: np.ndarray, k: int) -> np.ndarray:
    """Mask, shaped like ``z`` (n, F), of the n k largest of all entries."""
    return select_topk(z.reshape(1, -1), k * len(z)).reshape(z.shape)


def topk_gradients(
    parameters: Parameters,
    x: np.ndarray,
    k: int,
    dead: np.ndarray,
    k_aux: int,
    aux_coefficient: float,
    of_batch: bool = False,
    sizes: Sequence[int] = (),
) -> tuple[float, Parameters, np.ndarray]:
    """Loss, its gradients, and how often each feature fires (F,), for inputs ``x`` (n, d) and the mask ``dead`` (F,).

    ``of_batch``: the n k largest of all, not the k largest of each input; ``sizes`` of nested dictionaries.
    """
    p = parameters
    centred = x - p.decoder_bias
    z = centred @ p.encoder.T + p.encoder_bias
    active = (select_of_batch if of_batch else select_topk)(z, k) & (z > 0)
    f = np.where(active, z, 0)
    loss, sizes = 0.0, list(sizes) or [len(p.encoder)]
    delta, d_decoder, d_decoder_bias = np.zeros_like(z), np.zeros_like(p.decoder), np.zeros_like(x[0])
    for size in sizes:
        inside = np.arange(len(p.encoder)) < size
        error = x - ((f * inside) @ p.decoder + p.decoder_bias)
        loss += float(np.mean(error**2)) / len(sizes)
        g = -2 / error.size / len(sizes) * error
        delta += np.where(active & inside, g @ p.decoder.T, 0)
        d_decoder += (f * inside).T @ g
        d_decoder_bias += g.sum(axis=0)
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
