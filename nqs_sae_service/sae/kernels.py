"""The sparse kernels of a TopK dictionary on the CPU, float32: decoding, and the learning step behind the selection.

With N inputs of width d, F features and k active ones, a dense step costs 10 N F d operations. Only the product in
``encode.py`` is dense (2 N F d); everything here touches the N k active entries (8 N k d), and the parameters once.

Active entries are pairs (value, index); index -1 marks an empty place. Every sum is made by one thread in a fixed order:
results do not depend on the number of threads. Dense twins in float64: ``reference.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine.jit import njit, numba, prange
from ..engine.ranks import ALONE
from .encode import Scratch, encode_topk
from .rows import adam, add, add_two, dot, prefetch, scale

__all__ = [
    "Scratch",
    "Sorted",
    "Term",
    "adam_rows",
    "decode_error",
    "decode_error_and_sum",
    "encode_topk",
    "feature_topk",
    "learn",
    "scatter_mean",
    "sort_by_feature",
]

CHUNK = 64  # features, or inputs, whose contributions to one sum are added up before their sums are
_AHEAD = 4  # entries between asking for a row and using it


def feature_topk(x, encoder, encoder_bias, decoder_bias, i, k):
    """Activation (n,) float32 of feature ``i`` on ``x`` (n, d).

    Equals column i of the encoding to the bit. Where z_i <= 0 nothing else is computed, so the cost is 2 d operations a row,
    plus 2 F d where the feature might be active.
    """
    f = np.zeros(len(x), np.float32)
    _, alone = encode_topk(x, encoder[i : i + 1], encoder_bias[i : i + 1], decoder_bias, 1)
    rows = np.flatnonzero(alone[:, 0] == 0)
    values, indices = encode_topk(x[rows], encoder, encoder_bias, decoder_bias, k)
    entries, places = np.nonzero(indices == i)
    f[rows[entries]] = values[entries, places]
    return f


@njit(_nrt=False)
def _decode_row(i, x, decoder, decoder_bias, values, indices, error):
    width, k = x.shape[1], values.shape[1]
    rows, errors = decoder.reshape(-1), error.reshape(-1)
    for q in range(min(k, _AHEAD)):
        prefetch(rows, max(0, indices[i, q]) * width, width)
    for c in range(width):
        error[i, c] = x[i, c] - decoder_bias[c]
    for q in range(k):
        if q + _AHEAD < k:
            prefetch(rows, max(0, indices[i, q + _AHEAD]) * width, width)
        if indices[i, q] >= 0:
            add(errors, i * width, -values[i, q], rows, indices[i, q] * width, width)
    return dot(errors, i * width, errors, i * width, width)


@njit(parallel=True)
def _decode_error(x, decoder, decoder_bias, values, indices, error, squared, sums):
    width = x.shape[1]
    errors, totals = error.reshape(-1), sums.reshape(-1)
    for chunk in prange(len(sums)):
        sums[chunk] = 0
        for i in range(chunk * CHUNK, min(len(x), (chunk + 1) * CHUNK)):
            squared[i] = _decode_row(i, x, decoder, decoder_bias, values, indices, error)
            add(totals, chunk * width, np.float32(1), errors, i * width, width)


def decode_error(x, decoder, decoder_bias, values, indices):
    """Error e = x - (f W_d + b_d), (n, d) float32, of sparse features f, and |e|^2 (n,) float64.

    Cost: 2 n k d operations; reads x and, for each active entry, one row of W_d (F, d).
    """
    return decode_error_and_sum(x, decoder, decoder_bias, values, indices, Scratch(), "error")[:2]


def decode_error_and_sum(x, decoder, decoder_bias, values, indices, scratch, name):
    """``decode_error``, and the sum of the rows of e (d,) float64; e lives in ``scratch`` under ``name``."""
    error = scratch.array(name, x.shape)
    squared, sums = np.empty(len(x)), np.empty((-(-len(x) // CHUNK), x.shape[1]), np.float32)
    _decode_error(x, decoder, decoder_bias, values, indices, error, squared, sums)
    return error, squared, sums.sum(axis=0, dtype=np.float64)


@njit(parallel=True)
def _scatter_mean(values, indices, n_tokens, mean):
    for i in prange(len(values)):
        row, own_values, own_indices = mean[i], values[i], indices[i]
        for q in range(own_values.size):
            if own_indices[q] >= 0:
                row[own_indices[q]] += own_values[q] / np.float32(n_tokens)


def scatter_mean(values, indices, n_tokens, n_features):
    """Dense token means (n, F) float32 of the sparse features (n, tokens * k) of n samples."""
    mean = np.zeros((len(values), n_features), np.float32)
    _scatter_mean(values, indices, n_tokens, mean)
    return mean


@njit(_nrt=False)
def _count(indices, first, last, counts):
    for j in range(counts.size):
        counts[j] = 0
    for i in range(first, last):
        for q in range(indices.shape[1]):
            if indices[i, q] >= 0:
                counts[indices[i, q]] += 1


@njit(_nrt=False)
def _place(values, indices, first, last, places, rows, sorted_values):
    for i in range(first, last):
        for q in range(indices.shape[1]):
            j = indices[i, q]
            if j >= 0:
                rows[places[j]], sorted_values[places[j]] = i, values[i, q]
                places[j] += 1


@njit(parallel=True)
def _sort_by_feature(values, indices, places, start, rows, sorted_values):
    n, parts = len(indices), len(places)
    for part in prange(parts):
        _count(indices, part * n // parts, (part + 1) * n // parts, places[part])
    total = 0
    for j in range(start.size - 1):
        start[j] = total
        for part in range(parts):
            count = places[part, j]
            places[part, j] = total
            total += count
    start[-1] = total
    for part in prange(parts):
        _place(
            *(values, indices, part * n // parts, (part + 1) * n // parts),
            *(places[part], rows, sorted_values),
        )


@dataclass(frozen=True)
class Sorted:
    """The active entries of each feature together, in the order of the inputs: those of j are start[j]:start[j + 1]."""

    start: np.ndarray
    rows: np.ndarray
    values: np.ndarray


def sort_by_feature(values, indices, n_features, scratch=None, name="sorted"):
    """Counting sort of the active entries (n, k) by feature; empty places are left out. Cost: two passes, 16 n k bytes."""
    scratch, size = scratch or Scratch(), values.size
    parts = max(1, min(numba.get_num_threads(), size // max(1, n_features)))
    result = Sorted(
        scratch.array(f"{name} start", (n_features + 1,), np.int32),
        scratch.array(f"{name} rows", (size,), np.int32),
        scratch.array(f"{name} values", (size,)),
    )
    places = scratch.array("places", (parts, n_features), np.int32)
    _sort_by_feature(values, indices, places, result.start, result.rows, result.values)
    return result


@njit(_nrt=False)
def _gradient(x, target, weight, decoder, at, j, starts, rows, values, d_encoder, d_decoder):
    """Add what the active entries of feature j contribute; returns the sum of delta."""
    width, total, start, end = x.shape[1], np.float32(0), starts[j], starts[j + 1]
    x_rows, target_rows = x.reshape(-1), target.reshape(-1)
    for place in range(start, min(end, start + _AHEAD)):
        prefetch(x_rows, rows[place] * width, width)
        prefetch(target_rows, rows[place] * width, width)
    for place in range(start, end):
        if place + _AHEAD < end:
            prefetch(x_rows, rows[place + _AHEAD] * width, width)
            prefetch(target_rows, rows[place + _AHEAD] * width, width)
        row = rows[place] * width
        delta = weight * dot(decoder, at, target_rows, row, width)
        add_two(d_encoder, d_decoder, delta, x_rows, weight * values[place], target_rows, row, width)
        total += delta
    return total


@njit(_nrt=False)
def _learn_chunk(
    chunk,
    x,
    error,
    weight,
    active,
    residual,
    weight_auxiliary,
    auxiliary,
    decoder_bias,
    encoder,
    decoder,
    encoder_bias,
    moments,
    bias_moments,
    constants,
    unit,
    partial,
    d_encoder,
    d_decoder,
    d_bias,
):
    """One chunk of features: gradients, kept in the first-level cache, and the Adam step with them."""
    n_features, width = len(encoder_bias), x.shape[1]
    first, last = chunk * CHUNK, min(n_features, (chunk + 1) * CHUNK)
    m_encoder, v_encoder, m_decoder, v_decoder = moments
    for c in range(width):
        partial[chunk * width + c] = 0
    for j in range(first, last):
        at = j * width
        for c in range(width):
            d_encoder[c] = d_decoder[c] = 0
        total = _gradient(x, error, weight, decoder, at, j, *active, d_encoder, d_decoder)
        total += _gradient(x, residual, weight_auxiliary, decoder, at, j, *auxiliary, d_encoder, d_decoder)
        d_bias[j - first] = total
        if total != 0:
            add(d_encoder, 0, -total, decoder_bias, 0, width)
            add(partial, chunk * width, -total, encoder, at, width)
        adam(encoder, m_encoder, v_encoder, at, d_encoder, np.float32(0), constants, width)
        along = dot(d_decoder, 0, decoder, at, width) if unit else np.float32(0)
        squared = adam(decoder, m_decoder, v_decoder, at, d_decoder, along, constants, width)
        if unit:
            scale(decoder, at, np.float32(1) / np.sqrt(squared), width)
    adam(encoder_bias, *bias_moments, first, d_bias, np.float32(0), constants, last - first)


@njit(parallel=True)
def _learn(
    x,
    error,
    weight,
    active,
    residual,
    weight_auxiliary,
    auxiliary,
    decoder_bias,
    encoder,
    decoder,
    encoder_bias,
    moments,
    bias_moments,
    constants,
    unit,
    partial,
    workers,
):
    chunks, width = (len(encoder_bias) + CHUNK - 1) // CHUNK, x.shape[1]
    for worker in prange(workers):
        d_encoder, d_decoder = np.empty(width, np.float32), np.empty(width, np.float32)
        d_bias = np.empty(CHUNK, np.float32)
        for chunk in range(worker * chunks // workers, (worker + 1) * chunks // workers):
            _learn_chunk(
                *(chunk, x, error, weight, active, residual, weight_auxiliary, auxiliary),
                *(decoder_bias, encoder, decoder, encoder_bias, moments, bias_moments),
                *(constants, unit, partial, d_encoder, d_decoder, d_bias),
            )


@njit()
def _adam_rows(parameter, mean, square, gradient, constants):
    adam(parameter, mean, square, 0, gradient, np.float32(0), constants, parameter.size)


@dataclass(frozen=True)
class Term:
    """A part of the loss whose derivative by the reconstruction is ``weight`` * ``target`` (n, d), and its active entries."""

    target: np.ndarray
    weight: float
    active: Sorted

    def arrays(self, features):
        """As the kernel takes them: what concerns these ``features``."""
        start = self.active.start[features.start : features.stop + 1]
        return self.target, np.float32(self.weight), (start, self.active.rows, self.active.values)


def learn(x, groups, bias_gradient, parameters, moments, constants, unit, ranks=ALONE):
    """One Adam step, in place, with the gradients of the sum of two ``terms`` by the parameters of a sparse dictionary.

    Equals, with dense f and delta = weight (target W_d^T) where f is active: dW_d = weight f^T target,
    dW_e = delta^T (x - b_d), db_e = sum_n delta, db_d = ``bias_gradient`` (d,) - db_e W_e, each summed over the terms; then
    ``rows.adam`` with ``constants`` and, for ``unit``, rows of W_d on the unit sphere: their gradient g loses its part along
    the row p, g - (g.p) p, before the step, and they are renormalised after it. Gradients are never stored: those of a feature
    stay in the cache until its step is done. ``parameters``, and ``moments``, a pair for each: W_e, W_d (F, d), b_e, b_d.
    Features come in ``groups``, a slice of them and their two terms each, whose loss may differ.
    Where ``ranks`` share the features, these are the ones of this rank, and b_d is the same everywhere.
    Cost: 6 n k d operations and about 30 F d; reads two rows of length d per active entry, passes 48 F d bytes.
    """
    through_encoder = np.zeros(x.shape[1])
    for features, terms in groups:
        through_encoder += _learn_features(x, features, terms, parameters, moments, constants, unit)
    gradient = (bias_gradient + ranks.sum(through_encoder)).astype(np.float32)
    _adam_rows(parameters[3], *moments[3], gradient, constants)


def _learn_features(x, features, terms, parameters, moments, constants, unit):
    """The step of some features; what they contribute to the gradient by b_d, - db_e W_e (d,) float64."""
    encoder, decoder, encoder_bias = (array[features] for array in parameters[:3])
    pairs = [array[features] for pair in moments[:3] for array in pair]
    partial = np.empty((-(-len(encoder) // CHUNK), x.shape[1]), np.float32)
    workers = min(len(partial), 8 * numba.get_num_threads())
    _learn(
        *(x, *(array for term in terms for array in term.arrays(features)), parameters[3]),
        *(encoder.reshape(-1), decoder.reshape(-1), encoder_bias),
        tuple(array.reshape(-1) for array in pairs[:4]),
        *(tuple(pairs[4:]), constants, unit, partial.reshape(-1), workers),
    )
    return partial.sum(axis=0, dtype=np.float64)


def adam_rows(parameter, mean, square, gradient, constants):
    """One Adam step, in place, on arrays of any one shape; ``constants`` as in ``rows.adam``."""
    _adam_rows(*(array.reshape(-1) for array in (parameter, mean, square, gradient)), constants)
