"""The hot loops of sparse dictionaries on a GPU, float32: the functions of ``kernels.py`` for arrays on the device.

With N inputs of width d, F features and k active ones: the product z = x W_e^T is cuBLAS's (2 N F d operations); z is made
for as many rows at a time as fit the second-level cache, and the selection reads it there six times (four histograms,
count, write), so that neither pays memory bandwidth for it. Everything after the selection touches N k d numbers. At (d, F,
k) = (32, 2048, 8) and N = 4096 that is 0.54 GFLOP and 34 MB of cache traffic per reading of z, against 4 MB of rows behind
the active entries: the selection and the launches decide, not the arithmetic; at (256, 16384, 32) the product does (34
GFLOP). Sums have an order that only the launch geometry fixes: the same call gives the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.cuda import Kernels

Array = Any

_KERNELS = Kernels(Path(__file__).with_suffix(".cu"))
_THREADS, _LANES = 256, 32
_ROWS = _THREADS // _LANES
_SELECTION_BYTES = 4 * (3 * 1024 + 2 * _THREADS + 4)  # as ``select_top`` lays it out
# Of z at a time: 16 MB, which stay in the second-level cache of the GPUs meant here (40 MB and more).
_CACHED_ELEMENTS = 2**22


def encode_topk(
    x: Array, encoder: Array, encoder_bias: Array, decoder_bias: Array, k: int, positive: bool = True
) -> tuple[Array, Array]:
    """Active entries of ``x`` (n, d): values (n, k) float32 and indices (n, k) int32, ascending; see ``kernels.encode_topk``.

    2 n F d operations by cuBLAS; the selection reads z, 24 n F bytes, from the cache and writes 8 n k bytes.
    """
    xp = namespace(x)
    n, features = len(x), len(encoder)
    values, indices = xp.empty((n, k), dtype=xp.float32), xp.empty((n, k), dtype=xp.int32)
    if values.size == 0:
        return values, indices
    rows = max(1, _CACHED_ELEMENTS // features)
    for first in range(0, n, rows):
        block = slice(first, first + rows)
        z = (x[block] - decoder_bias) @ encoder.T
        _KERNELS.launch(
            "select_top", len(z), (_THREADS,), z, encoder_bias, values[block], indices[block], *z.shape, k, positive,
            shared_bytes=_SELECTION_BYTES,
        )  # fmt: skip
    return values, indices


def decode_error(
    x: Array, decoder: Array, decoder_bias: Array, values: Array, indices: Array
) -> tuple[Array, Array]:
    """e = x - (f W_d + b_d), (n, d) float32, and |e|^2 (n,) float64; see ``kernels.decode_error``.

    2 n k d operations; reads one decoder row per active entry, mostly from the cache: 4 n d (k + 2) bytes.
    """
    xp = namespace(x)
    x = xp.ascontiguousarray(x)
    error, squared = xp.empty_like(x), xp.empty(len(x), dtype=xp.float64)
    _rowwise(
        "decode_error", len(x), x, decoder, decoder_bias, values, indices, error, squared, *x.shape, values.shape[1]
    )  # fmt: skip
    return error, squared


def backward(
    x: Array, error: Array, scale: float, decoder: Array, decoder_bias: Array, values: Array, indices: Array
) -> tuple[Array, Array, Array, Array]:
    """dW_e (F, d), dW_d (F, d), db_e (F,) of a loss with dL/dx_hat = ``scale`` e, and how often each feature is active (F,).

    The active entries are brought together by feature with a stable radix sort of their indices (n k keys), each feature's
    stretch is summed by one block: no atomics, the order of the inputs. 6 n k d operations, three rows of length d per entry.
    """
    xp = namespace(x)
    x, scale = xp.ascontiguousarray(x), float(scale)
    features, width = decoder.shape
    k = indices.shape[1]
    flat = indices.reshape(-1)
    order = xp.argsort(flat, kind="stable")
    start = xp.searchsorted(flat[order], xp.arange(features + 1, dtype=flat.dtype))
    delta = xp.empty(len(flat), dtype=xp.float32)
    _rowwise("entry_delta", len(flat), error, decoder, indices, delta, scale, len(flat), width, k)
    d_encoder, d_decoder = xp.empty_like(decoder), xp.empty_like(decoder)
    d_encoder_bias = xp.empty(features, dtype=xp.float32)
    _KERNELS.launch(
        "segment_sums", features, (_LANES, _ROWS), x, error, decoder_bias, values, delta, order.astype(xp.int64),
        start.astype(xp.int64), d_encoder, d_decoder, d_encoder_bias, scale, features, width, k,
        shared_bytes=8 * _THREADS,
    )  # fmt: skip
    return d_encoder, d_decoder, d_encoder_bias, start[1:] - start[:-1]


def adam_rows(
    parameter: Array, mean: Array, square: Array, gradient: Array, constants: np.ndarray, unit: bool = False
) -> None:
    """One Adam step in place; ``constants`` as in ``rows.adam``. One pass, 28 n d bytes.

    With ``unit`` the rows (n, d) stay on the unit sphere: their gradient g loses its part along the row p, g - (g.p) p,
    before the step, and they are renormalised after it.
    """
    rate, epsilon, beta1, _, beta2, _ = (float(value) for value in constants)
    arrays = (parameter, gradient, mean, square, rate, epsilon, beta1, beta2)
    if unit:
        _rowwise("adam", len(parameter), *arrays, *parameter.shape, True)
        return
    size = parameter.size  # rows do not matter: one number per thread
    _KERNELS.launch(
        "adam", -(-size // _THREADS), (1, _THREADS), *arrays, size, 1, False, shared_bytes=4 * _THREADS
    )


def feature_topk(x: Array, encoder: Array, encoder_bias: Array, decoder_bias: Array, i: int, k: int) -> Array:
    """Activation (n,) of feature ``i`` on ``x`` (n, d) in the precision of x: z_i where fewer than k features are ahead of it.

    2 n F d operations and one reading of z: nothing is selected, only counted. The lower index wins a tie.
    """
    xp = namespace(x)
    f = xp.empty(len(x), dtype=x.dtype)
    rows = max(1, _CACHED_ELEMENTS // len(encoder))
    for first in range(0, len(x), rows):
        block = slice(first, first + rows)
        z = (x[block] - decoder_bias) @ encoder.T + encoder_bias
        own = z[:, i : i + 1]
        ahead = (z > own).sum(axis=1) + (z[:, :i] == own).sum(axis=1)
        f[block] = xp.where((ahead < k) & (own[:, 0] > 0), own[:, 0], np.float32(0))
    return f


def _rowwise(name: str, rows: int, *arguments: Any) -> None:
    _KERNELS.launch(name, -(-rows // _ROWS), (_LANES, _ROWS), *arguments, shared_bytes=4 * _THREADS)
