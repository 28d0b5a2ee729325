"""Encoding and selection in one pass: the k largest entries of z = W_e (x - b_d) + b_e, without ever writing z down.

Inputs and features are cut into the tiles of ``microkernel.py``. Every input keeps a short list of candidates, and a bound that
at least k of them reach; a tile says which of its sums exceed the bound, and only these, about k (1 + log(F / k)) of F for each
input, are looked at one by one. A full list is cut back to its best, and the bound rises.

The product costs 2 n F d operations. A block of features is brought into the order of the tile once (it then stays in the
second-level cache) and passed over by all inputs of a thread. No input depends on another: results depend neither on
the number of threads nor on what is encoded together.
"""

from __future__ import annotations

import numpy as np

from ..engine.jit import EXACT, njit, numba, prange
from .microkernel import (
    FEATURES,
    LANES,
    NEVER,
    ROWS,
    count_above,
    encode_tile,
    largest,
    lowest_bit,
    smallest,
    vector_above,
)

BLOCK_ROWS = 171 * ROWS  # inputs that pass over a block of features
_BLOCK_ELEMENTS = 2**16  # of a block of features, ordered for the tile
_CANDIDATES = 2**21  # of all inputs of a block
_TILE = ROWS * FEATURES
_FIRST = 512  # features, at least, that the first bounds come from
_LINE = 16  # numbers in a line of the cache


def _kernel():
    """``njit`` for functions that own no memory: without the reference counts, which would cost more than the work."""
    return njit(fastmath=EXACT, _nrt=False)


@_kernel()
def _capacity(k):
    """Places in a list of candidates: what is kept, twice as many until it is cut, and what one tile may add."""
    return (3 * k + 24 + FEATURES + FEATURES - 1) // FEATURES * FEATURES


@_kernel()
def _raised(z, at, stride, pairs, k, slack, low):
    """Raise the bound ``low``, which at least k entries exceed: (low, high, count), count = entries above low.

    Bisects until k <= count <= k + slack. If it ends with more, the k-th largest ties: low and high are neighbouring floats,
    fewer than k exceed high, and all others above low equal it.
    """
    count = count_above(z, at, stride, pairs, low)
    if count <= k + slack:
        return low, low, count
    high = largest(z, at, stride, pairs)
    while count > k + slack:
        middle = np.float32(0.5) * low + np.float32(0.5) * high
        if not (low < middle < high):
            break
        above = count_above(z, at, stride, pairs, middle)
        if above >= k:
            low, count = middle, above
        else:
            high = middle
    return low, high, count


@_kernel()
def _cut(values, places, start, n, k, slack, bound, floor, to_values, to_places, to):
    """Copy the k + ``slack`` best at most of a list of n >= k candidates; their number, and the new bound.

    Candidates stay in order. Where the k-th largest ties, the first of the equal ones are kept: the lower index wins, and those
    that come later do not exceed the bound. Candidates are above the floor, and above or, after such a tie, at the old bound.
    """
    pairs = (n + FEATURES - 1) // FEATURES
    for q in range(start + n, start + pairs * FEATURES):
        values[q] = NEVER
    low = max(floor, np.nextafter(bound, NEVER))
    low, high, count = _raised(values, start, FEATURES, pairs, k, slack, low)
    kept = to
    if count <= k + slack:
        for at in range(start, start + n, LANES):
            word = vector_above(values, at, low)
            while word != 0:
                candidate = at + np.int64(lowest_bit(word))
                word &= word - np.uint32(1)
                to_values[kept], to_places[kept] = values[candidate], places[candidate]
                kept += 1
        return kept - to, low
    ties = k - count_above(values, start, FEATURES, pairs, high)
    for q in range(start, start + n):
        value, place = values[q], places[q]
        if value > high or (value == high and ties > 0):
            ties -= value == high
            to_values[kept], to_places[kept] = value, place
            kept += 1
    return kept - to, high


@_kernel()
def _push(word, z, z_at, values, places, at, base):
    """Append the entries of a run of z whose bits are set, ``base`` the index of the first; the place behind the last."""
    while word != 0:
        j = np.int64(lowest_bit(word))
        word &= word - np.uint32(1)
        values[at], places[at] = z[z_at + j], base + j
        at += 1
    return at


@_kernel()
def _begin(z, panels, r, k, values, places, start, floor):
    """Fill a list from the first tiles at once, so that few candidates follow: their number, and the bound."""
    at, slack = r * FEATURES, k // 2
    low = floor
    if floor < 0:
        lowest = max(floor, smallest(z, at, _TILE, panels))
        if count_above(z, at, _TILE, panels, lowest) >= k:
            low = lowest
    low, high, count = _raised(z, at, _TILE, panels, k, slack, low)
    if count <= k + slack:
        end = start
        for panel in range(panels):
            for v in range(2):
                place = panel * _TILE + at + v * LANES
                word = vector_above(z, place, low)
                end = _push(word, z, place, values, places, end, panel * FEATURES + v * LANES)
        return end - start, low
    n, ties = 0, k - count_above(z, at, _TILE, panels, high)
    for panel in range(panels):
        for j in range(FEATURES):
            value = z[panel * _TILE + at + j]
            if value > high or (value == high and ties > 0):
                ties -= value == high
                values[start + n], places[start + n] = value, panel * FEATURES + j
                n += 1
    return n, high


@_kernel()
def _collect(z, above, first, bounds, counts, values, places, capacity, base, k, floor):
    """Add what a tile found to the lists of its inputs."""
    rows = np.uint32(0)
    for i in range(ROWS):
        rows |= np.uint32(above[i] != 0) << np.uint32(i)
    while (
        rows != 0
    ):  # only over those: to test every row would be to guess every branch, and wrong guesses cost most
        r = np.int64(lowest_bit(rows))
        rows &= rows - np.uint32(1)
        row = first + r
        start = row * capacity
        n = _push(above[r], z, r * FEATURES, values, places, start + counts[row], base) - start
        if n > capacity - FEATURES:
            n, bounds[row] = _cut(
                values, places, start, n, k, k // 2, bounds[row], floor, values, places, start
            )
        counts[row] = n


@_kernel()
def _order_inputs(x, decoder_bias, first, last, ordered):
    """x - b_d in the order of the tile: (block, d, ROWS); zeros where there is no input."""
    width = x.shape[1]
    blocks = (last - first + ROWS - 1) // ROWS
    for i in range(first, first + blocks * ROWS):
        block, r = divmod(i - first, ROWS)
        for c in range(width):
            at = (block * width + c) * ROWS + r
            ordered[at] = x[i, c] - decoder_bias[c] if i < last else np.float32(0)


@_kernel()
def _order_features(encoder, encoder_bias, chosen, first, last, ordered, biases):
    """Rows chosen[first:last] of the encoder in the order of the tile: (panel, d, FEATURES); bias -inf where there is none."""
    width = encoder.shape[1]
    panels = (last - first + FEATURES - 1) // FEATURES
    for panel in range(panels):
        for start in range(0, width, _LINE):
            for j in range(FEATURES):
                place = panel * FEATURES + j
                at = panel * width * FEATURES + j
                if first + place >= last:
                    biases[place] = NEVER
                    for c in range(start, min(width, start + _LINE)):
                        ordered[at + c * FEATURES] = 0
                    continue
                feature = chosen[first + place] if chosen.size > 0 else first + place
                biases[place] = encoder_bias[feature]
                for c in range(start, min(width, start + _LINE)):
                    ordered[at + c * FEATURES] = encoder[feature, c]
    return panels


@_kernel()
def _first_tiles(
    inputs, weights, biases, bounds, counts, values, places, z, above, width, row, n, tiles, k, floor
):
    for panel in range(tiles):
        j = panel * FEATURES
        encode_tile(
            inputs, row * width, weights, j * width, biases, j, bounds, row, width, z, panel * _TILE, above
        )
    for r in range(row, min(row + ROWS, n)):
        start = r * _capacity(k)
        counts[r], bounds[r] = _begin(z, tiles, r - row, k, values, places, start, floor)


@_kernel()
def _pass_over(
    inputs,
    weights,
    biases,
    bounds,
    counts,
    values,
    places,
    z,
    above,
    width,
    n,
    first,
    panels,
    tiles,
    k,
    floor,
):
    """All inputs of a block over one block of ``panels`` x FEATURES features, which begin with number ``first``."""
    for row in range(0, n, ROWS):
        seen = 0
        if first == 0:
            seen = tiles
            _first_tiles(
                inputs,
                weights,
                biases,
                bounds,
                counts,
                values,
                places,
                z,
                above,
                width,
                row,
                n,
                tiles,
                k,
                floor,
            )
        for panel in range(seen, panels):
            j = panel * FEATURES
            if encode_tile(
                inputs, row * width, weights, j * width, biases, j, bounds, row, width, z, 0, above
            ):
                _collect(z, above, row, bounds, counts, values, places, _capacity(k), first + j, k, floor)


@_kernel()
def _finish(candidates, places, counts, bounds, first, n, k, floor, values, indices):
    """The k best of every list, in order."""
    capacity = _capacity(k)
    for i in range(n):
        count, start, to = counts[i], i * capacity, (first + i) * k
        if count > k:
            _cut(candidates, places, start, count, k, 0, bounds[i], floor, values, indices, to)
            continue
        for q in range(count):
            values[to + q], indices[to + q] = candidates[start + q], places[start + q]
        for q in range(to + count, to + k):
            values[q], indices[q] = 0, -1


@njit()
def _encode_block(
    x, encoder, encoder_bias, decoder_bias, chosen, floor, first, last, k, values, indices, scratch
):
    width, n = x.shape[1], last - first
    n_features = chosen.size if chosen.size > 0 else len(encoder)
    padded, capacity = (n + ROWS - 1) // ROWS * ROWS, _capacity(k)
    candidates, places = scratch[: padded * capacity], scratch[padded * capacity :].view(np.int32)
    inputs = scratch[2 * padded * capacity :]
    _order_inputs(x, decoder_bias, first, last, inputs)
    step = max(1, _BLOCK_ELEMENTS // (FEATURES * width)) * FEATURES
    weights, biases = np.empty(step * width, np.float32), np.empty(step, np.float32)
    bounds, counts = np.full(padded, floor, np.float32), np.zeros(padded, np.int64)
    bounds[n:] = np.inf
    tiles = max(1, min(step, max(_FIRST, 32 * k), n_features) // FEATURES)
    z, above = np.empty(tiles * _TILE, np.float32), np.empty(ROWS, np.uint32)
    for start in range(0, n_features, step):
        end = min(n_features, start + step)
        panels = _order_features(encoder, encoder_bias, chosen, start, end, weights, biases)
        _pass_over(
            *(inputs, weights, biases, bounds, counts, candidates, places, z, above),
            *(width, n, start, panels, tiles, k, floor),
        )
    _finish(candidates, places, counts, bounds, first, n, k, floor, values, indices)
    if chosen.size > 0:
        for q in range(first * k, last * k):
            if indices[q] >= 0:
                indices[q] = chosen[indices[q]]


@njit(parallel=True)
def _encode_topk(x, encoder, encoder_bias, decoder_bias, chosen, floor, rows, k, values, indices, scratch):
    n, workers = len(x), len(scratch)
    for worker in prange(workers):
        for first in range(worker * rows, n, workers * rows):
            last = min(n, first + rows)
            _encode_block(
                *(x, encoder, encoder_bias, decoder_bias, chosen, floor, first, last),
                *(k, values, indices, scratch[worker]),
            )


class Scratch:
    """Memory that a loop over batches keeps: pages asked from the system anew every time cost more than the selection."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        """An uninitialised array of this shape, valid until it is asked for again by the same name."""
        size, kept = int(np.prod(shape)), self._arrays.get(name)
        if kept is None or kept.size < size or kept.dtype != dtype:
            kept = self._arrays[name] = np.empty(size, dtype)
        return kept[:size].reshape(shape)


def _rows_at_once(n: int, k: int) -> int:
    """Inputs of a block: equal shares of a thread's part, unless their lists would outgrow the cache."""
    share = -(-n // numba.get_num_threads())
    most = max(ROWS, min(BLOCK_ROWS, _CANDIDATES // _capacity(k)))
    return -(-share // -(-share // most))


ALL = np.empty(0, np.int64)


def encode_topk(
    x, encoder, encoder_bias, decoder_bias, k, positive=True, chosen=ALL, scratch=None, name="active"
):
    """Active entries of ``x`` (n, d): values (n, k) float32 and indices (n, k) int32, ascending.

    Equals z = (x - b_d) W_e^T + b_e, its k largest per row, without the z <= 0 if ``positive``. The lower index wins a tie.
    Empty places have value 0 and index -1. ``chosen`` (m,) int64, ascending, not empty: only among these features.
    With ``scratch`` the results live there, under ``name``.
    Cost: 2 n F d operations; reads x and, once per block of rows, W_e; writes 8 n k bytes; z stays in registers.
    """
    scratch = scratch or Scratch()
    values = scratch.array(f"{name} values", (len(x), k))
    indices = scratch.array(f"{name} indices", (len(x), k), np.int32)
    if values.size == 0:
        return values, indices
    floor = np.float32(0) if positive else np.finfo(np.float32).min
    rows = _rows_at_once(len(x), k)
    workers = min(numba.get_num_threads(), -(-len(x) // rows))
    padded = -(-rows // ROWS) * ROWS
    lists = scratch.array("lists", (workers, padded * (2 * _capacity(k) + x.shape[1])))
    _encode_topk(
        *(x, encoder, encoder_bias, decoder_bias, chosen, floor, rows, k),
        *(values.reshape(-1), indices.reshape(-1), lists),
    )
    return values, indices


@njit(parallel=True)
def _keep_best(scores, places, stride, n, k, keep):
    floor = np.finfo(np.float32).min
    for i in prange(len(keep)):
        start, lowest = i * stride, np.float32(np.inf)
        for q in range(start, start + n):
            places[q] = q - start
            if floor < scores[q] < lowest:  # a search from the lowest number that there is would be long
                lowest = scores[q]
        kept, _ = _cut(scores, places, start, n, k, 0, lowest, floor, scores, places, start)
        for q in range(start, start + kept):
            keep[i, places[q]] = True


def keep_best(scores, k):
    """Mask, shaped like ``scores`` (n, m) float32, of the k largest of every row; the first wins a tie, -inf is never kept."""
    n, m = scores.shape
    keep, stride = np.zeros((n, m), np.bool_), -(-m // FEATURES) * FEATURES
    padded, places = np.empty((n, stride), np.float32), np.empty(n * stride, np.int32)
    padded[:, :m] = scores
    _keep_best(padded.reshape(-1), places, stride, m, k, keep)
    return keep
