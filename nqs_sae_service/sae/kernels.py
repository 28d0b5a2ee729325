"""The hot loops of sparse dictionaries on the CPU, float32.

With N inputs of width d, F features and k active ones, a dense step costs 10 N F d operations. Here only the product
z = W_e (x - b_d) is dense (2 N F d), made block by block so that z never leaves the cache; everything after the selection
touches the N k active entries only (8 N k d). Dense twins in float64: ``reference.py``.

Every block has the same shape (the last one is padded) and is done by one thread, so results do not depend on the number of
threads. Active entries are pairs (value, index); index -1 marks an empty place.
"""

from __future__ import annotations

import numpy as np

from ..engine.jit import EXACT, njit, numba, prange


def _block_rows(n_features: int) -> int:
    """Rows per block: enough for an efficient product, with at most 16 MB of pre-activations."""
    return max(1, min(64, 2**22 // n_features))


def _chunks(n_features: int, k: int) -> int:
    """Chunks of the selection: enough that the k best entries mostly fall into different ones."""
    return min(n_features, max(64, 32 * int(np.ceil(k / 8))))


@njit(fastmath=EXACT)
def _above(z, n, bound):
    """How many of the first ``n`` entries exceed ``bound``."""
    count = np.int32(0)
    for j in range(n):
        count += np.int32(z[j] > bound)
    return count


@njit(fastmath=EXACT)
def _threshold(z, n, k, low, high):
    """Bisect between ``low`` and ``high`` >= max z for a bound that exactly k of the first ``n`` entries exceed.

    Returns (low, high, count), count = entries above low. count < k: there are no more above the low given. count > k: low and
    high are neighbouring floats, and the k-th largest entry ties with others at high.
    """
    count = _above(z, n, low)
    while count > k:
        middle = np.float32(0.5) * (low + high)
        if not (low < middle < high):
            break
        above = _above(z, n, middle)
        if above >= k:
            low, count = middle, above
        else:
            high = middle
    return low, high, count


@njit(fastmath=EXACT)
def _select(z, k, floor, maxima, candidates, places, values, indices):
    """The (at most) k largest entries above ``floor`` of one row ``z`` (F,), indices ascending; the lower one wins a tie.

    Equals ``sorted(np.argsort(-z, kind="stable")[:k])`` where z > floor. The maxima of C interleaved chunks give a lower
    bound of the k-th largest entry; the few candidates above it are collected and searched again. Nothing is sorted, and
    hardly a branch depends on the data.
    """
    n_features, n_chunks = z.size, maxima.size
    for c in range(n_chunks):
        maxima[c] = z[c]
    for start in range(n_chunks, n_features, n_chunks):
        part = z[start : start + n_chunks]
        for c in range(part.size):
            maxima[c] = max(maxima[c], part[c])
    low = largest = maxima[0]
    for c in range(n_chunks):
        low, largest = min(low, maxima[c]), max(largest, maxima[c])
    low = max(low, floor)
    if _above(maxima, n_chunks, low) < k:
        low = floor
    low, _, _ = _threshold(maxima, n_chunks, k, low, largest)
    n = 0
    for j in range(n_features):
        places[n] = j
        n += z[j] > low
    for q in range(n):
        candidates[q] = z[places[q]]
    low, high, count = _threshold(candidates, n, k, low, largest)
    ties = k - _above(candidates, n, high) if count > k else count
    found = 0
    for q in range(n):
        if candidates[q] > high or (candidates[q] > low and ties > 0):
            ties -= candidates[q] <= high
            values[found], indices[found] = candidates[q], places[q]
            found += 1
    for q in range(found, k):
        values[q], indices[q] = 0, -1


@njit()
def _encode_blocks(x, encoder, encoder_bias, decoder_bias, floor, rows, chunks, start, step, values, indices):
    n, width = x.shape
    n_features, k = encoder.shape[0], values.shape[1]
    shifted, z = np.zeros((rows, width), np.float32), np.empty((rows, n_features), np.float32)
    maxima, candidates = np.empty(chunks, np.float32), np.empty(n_features, np.float32)
    places = np.empty(n_features + 1, np.int32)
    for first in range(start * rows, n, step * rows):
        last = min(n, first + rows)
        for i in range(first, last):
            for c in range(width):
                shifted[i - first, c] = x[i, c] - decoder_bias[c]
        np.dot(shifted, encoder.T, z)
        for i in range(first, last):
            row = z[i - first]
            for j in range(n_features):
                row[j] += encoder_bias[j]
            _select(row, k, floor, maxima, candidates, places, values[i], indices[i])


@njit(parallel=True)
def _encode_topk(x, encoder, encoder_bias, decoder_bias, floor, rows, chunks, workers, values, indices):
    for worker in prange(workers):
        _encode_blocks(
            x, encoder, encoder_bias, decoder_bias, floor, rows, chunks, worker, workers, values, indices
        )


def encode_topk(x, encoder, encoder_bias, decoder_bias, k, positive=True):
    """Active entries of ``x`` (n, d): values (n, k) float32 and indices (n, k) int32, ascending.

    Equals z = (x - b_d) W_e^T + b_e, its k largest per row, without the z <= 0 if ``positive``. The lower index wins a tie.
    Cost: 2 n F d operations and about 3 n F comparisons and moves; reads x and W_e, writes 8 n k bytes; z stays in the cache.
    """
    values, indices = np.empty((len(x), k), np.float32), np.empty((len(x), k), np.int32)
    n_features = len(encoder)
    floor = np.float32(0) if positive else np.finfo(np.float32).min
    rows, chunks, workers = _block_rows(n_features), _chunks(n_features, k), numba.get_num_threads()
    _encode_topk(x, encoder, encoder_bias, decoder_bias, floor, rows, chunks, workers, values, indices)
    return values, indices


@njit(parallel=True)
def _feature_topk(x, columns, encoder_bias, decoder_bias, i, k, workers, f):
    n, width = x.shape
    n_features = columns.shape[1]
    for worker in prange(workers):
        z = np.empty(n_features, np.float32)
        for row in range(worker * n // workers, (worker + 1) * n // workers):
            own = encoder_bias[i]
            for c in range(width):
                own += (x[row, c] - decoder_bias[c]) * columns[c, i]
            f[row] = 0
            if not own > 0:
                continue
            for j in range(n_features):
                z[j] = encoder_bias[j]
            for c in range(width):
                shifted = x[row, c] - decoder_bias[c]
                for j in range(n_features):
                    z[j] += shifted * columns[c, j]
            ahead = np.int32(0)
            for j in range(n_features):
                ahead += np.int32(z[j] > z[i])
            for j in range(i):
                ahead += np.int32(z[j] == z[i])
            if ahead < k and z[i] > 0:
                f[row] = z[i]


def feature_topk(x, columns, encoder_bias, decoder_bias, i, k):
    """Activation (n,) float32 of feature ``i`` on ``x`` (n, d), ``columns`` (d, F) the transposed encoder.

    Equals column i of the dense encoding to rounding; the lower index wins a tie. Where z_i <= 0 nothing else is computed, so
    the cost is 2 d operations a row, plus 2 F d where the feature might be active. No row depends on another.
    """
    f = np.empty(len(x), np.float32)
    workers = max(1, min(len(x), 16 * numba.get_num_threads()))
    _feature_topk(x, columns, encoder_bias, decoder_bias, i, k, workers, f)
    return f


@njit()
def _decode_row(x, decoder, decoder_bias, values, indices, error):
    for c in range(x.size):
        error[c] = x[c] - decoder_bias[c]
    for q in range(values.size):
        if indices[q] >= 0:
            row, value = decoder[indices[q]], values[q]
            for c in range(x.size):
                error[c] -= value * row[c]
    squared = 0.0
    for c in range(x.size):
        squared += np.float64(error[c]) * np.float64(error[c])
    return squared


@njit(parallel=True)
def _decode_error(x, decoder, decoder_bias, values, indices, error, squared):
    for i in prange(len(x)):
        squared[i] = _decode_row(x[i], decoder, decoder_bias, values[i], indices[i], error[i])


def decode_error(x, decoder, decoder_bias, values, indices):
    """Error e = x - (f W_d + b_d), (n, d) float32, of sparse features f, and |e|^2 (n,) float64.

    Cost: 2 n k d operations; reads x and, for each active entry, one row of W_d (F, d).
    """
    error, squared = np.empty(x.shape, np.float32), np.empty(len(x))
    _decode_error(x, decoder, decoder_bias, values, indices, error, squared)
    return error, squared


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


@njit()
def _sort_by_feature(values, indices, start, rows, sorted_values):
    n, k = values.shape
    for i in range(n):
        for q in range(k):
            start[indices[i, q] + 2] += 1  # empty places are counted in start[1] and laid aside at the front
    for j in range(2, start.size):
        start[j] += start[j - 1]
    for i in range(n):
        for q in range(k):
            place = start[indices[i, q] + 1]
            rows[place], sorted_values[place] = i, values[i, q]
            start[indices[i, q] + 1] += 1


@njit()
def _backward_feature(x, error, scale, decoder, decoder_bias, rows, values, d_encoder, d_decoder):
    total = np.float32(0)
    for place in range(rows.size):
        x_row, e_row = x[rows[place]], error[rows[place]]
        delta = np.float32(0)
        for c in range(decoder.size):
            delta += decoder[c] * e_row[c]
        delta *= scale
        value = scale * values[place]
        for c in range(decoder.size):
            d_decoder[c] += value * e_row[c]
            d_encoder[c] += delta * (x_row[c] - decoder_bias[c])
        total += delta
    return total


@njit(parallel=True)
def _backward(
    x, error, scale, decoder, decoder_bias, start, rows, values, d_encoder, d_decoder, d_encoder_bias
):
    for j in prange(len(decoder)):
        own = slice(start[j], start[j + 1])
        d_encoder_bias[j] = _backward_feature(
            x, error, scale, decoder[j], decoder_bias, rows[own], values[own], d_encoder[j], d_decoder[j]
        )


def backward(x, error, scale, decoder, decoder_bias, values, indices):
    """Gradients of a loss L whose derivative by the reconstruction is ``scale`` * ``error`` (n, d), for sparse features.

    Equals, with dense f and delta = scale (error W_d^T) where f is active: dW_d = scale f^T error, dW_e = delta^T (x - b_d),
    db_e = sum_n delta. Returns dW_e (F, d), dW_d (F, d), db_e (F,), and how often each feature is active (F,) int64.
    A counting sort brings the active entries of each feature together, in the order of the inputs; one thread then sums each
    feature: no races, the same order always. Cost: 6 n k d operations; reads two rows of length d per active entry.
    """
    n_features, n_entries = len(decoder), values.size
    start = np.zeros(n_features + 2, np.int64)
    rows, sorted_values = np.empty(n_entries, np.int32), np.empty(n_entries, np.float32)
    _sort_by_feature(values, indices, start, rows, sorted_values)
    d_encoder, d_decoder = np.zeros_like(decoder), np.zeros_like(decoder)
    d_encoder_bias = np.empty(n_features, np.float32)
    scale = np.float32(scale)
    _backward(
        x,
        error,
        scale,
        decoder,
        decoder_bias,
        start,
        rows,
        sorted_values,
        d_encoder,
        d_decoder,
        d_encoder_bias,
    )
    return d_encoder, d_decoder, d_encoder_bias, np.diff(start)[:n_features]


@njit()
def _adam_row(parameter, gradient, mean, square, rate, epsilon, beta1, beta2, unit):
    along, length = np.float32(0), np.float32(0)
    if unit:
        for c in range(parameter.size):
            along += gradient[c] * parameter[c]
    for c in range(parameter.size):
        g = gradient[c] - along * parameter[c]
        mean[c] = beta1 * mean[c] + (np.float32(1) - beta1) * g
        square[c] = beta2 * square[c] + (np.float32(1) - beta2) * g * g
        parameter[c] -= rate * mean[c] / (np.sqrt(square[c]) + epsilon)
        length += parameter[c] ** 2
    if unit:
        inverse = np.float32(1) / np.sqrt(length)
        for c in range(parameter.size):
            parameter[c] *= inverse


@njit()
def _adam_small(parameter, gradient, mean, square, rate, epsilon, beta1, beta2, unit):
    for j in range(len(parameter)):
        _adam_row(parameter[j], gradient[j], mean[j], square[j], rate, epsilon, beta1, beta2, unit)


@njit(parallel=True)
def _adam_large(parameter, gradient, mean, square, rate, epsilon, beta1, beta2, unit):
    for j in prange(len(parameter)):
        _adam_row(parameter[j], gradient[j], mean[j], square[j], rate, epsilon, beta1, beta2, unit)


def adam(parameter, gradient, mean, square, rate, epsilon, beta1, beta2, unit):
    """One Adam step in place on rows (n, d): m and v in ``mean`` and ``square``, parameter -= rate m / (sqrt(v) + epsilon).

    ``rate`` and ``epsilon`` carry the bias corrections. With ``unit`` each row stays on the unit sphere: the gradient g loses
    its part along the row p, g - (g.p) p, before the step, and the row is renormalised after it.
    Cost: one pass over four arrays, 28 n d bytes, about 12 n d operations. Small arrays are not worth waking the threads.
    """
    rows = _adam_small if parameter.size < 2**16 else _adam_large
    constants = (np.float32(value) for value in (rate, epsilon, beta1, beta2))
    rows(parameter, gradient, mean, square, *constants, unit)
