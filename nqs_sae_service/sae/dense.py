"""What the kinds with dense features share: blocks of rows, the first length of a tied encoder, decoders of unit length.

While a penalty still decides how many features are active, many are: steps are matrix products, in blocks of rows. Their
encoders are trained as z = W_e x + b_e, without the b_d of the shared convention, so that b_d has one gradient alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from .training import Adam, Parameters

WARM_UP = 0.05  # share of the steps over which a penalty grows to its value
BLOCK_ELEMENTS = 2**17  # of the dense (rows, F) features of a block: they stay in the cache
BLOCK_ELEMENTS_ON_DEVICE = 2**25  # on a GPU a block has to be worth its launches


def row_blocks(x: np.ndarray, n_features: int, ranks: Ranks = ALONE) -> Iterator[np.ndarray]:
    """``x`` (n, d) in blocks of rows, the same on all ``ranks``, of which this one has ``n_features`` features."""
    most = max(1, -(-int(ranks.sum(np.asarray([n_features]))[0]) // ranks.size))  # features of a rank
    size = max(64, (BLOCK_ELEMENTS if namespace(x) is np else BLOCK_ELEMENTS_ON_DEVICE) // most)
    return (x[first : first + size] for first in range(0, len(x), size))


def tied_length(decoder: np.ndarray, x: np.ndarray, ranks: Ranks = ALONE) -> np.float32:
    """The factor a that minimises |x - a x_hat|^2, x_hat = ReLU(x W_d^T) W_d: <x, x_hat> / <x_hat, x_hat>.

    ``decoder`` (F, d): of its rows each of the ``ranks`` has its share.
    """
    along, square = 0.0, 0.0
    for rows in row_blocks(x, len(decoder), ranks):
        x_hat = ranks.sum(namespace(x).maximum(rows @ decoder.T, 0) @ decoder).astype(np.float64)
        along += float((rows * x_hat).sum())
        square += float((x_hat**2).sum())
    return np.float32(along / square if square > 0 else 1.0)


def unit_update(parameters: Parameters, gradients: Parameters, adam: Adam, learning_rate: float) -> None:
    """An Adam step that keeps decoder rows on the unit sphere.

    Their gradient g loses its part along the row p, g - (g.p) p, before the step, and they are renormalised after it.
    """
    decoder, xp = parameters.decoder, namespace(parameters.decoder)
    gradients.decoder -= (gradients.decoder * decoder).sum(axis=1, keepdims=True) * decoder
    adam.update(parameters, gradients, learning_rate)
    decoder /= xp.linalg.norm(decoder, axis=1, keepdims=True)


def bias_in_convention(encoder: np.ndarray, encoder_bias: np.ndarray, decoder_bias: np.ndarray) -> np.ndarray:
    """The b_e' of W_e (x - b_d) + b_e' = W_e x + b_e."""
    return encoder_bias + encoder @ decoder_bias
