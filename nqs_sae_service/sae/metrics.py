"""How good a dictionary is, and whether another seed finds the same features.

    explained variance = 1 - sum |x - x_hat|^2 / sum |x - mean|^2        (global mean, float64)
    participation ratio = (tr C)^2 / tr C^2                              (C: covariance of the activations)

The participation ratio is the effective number of dimensions the activations fill: near one or two, a dictionary is not
informative. Stability matches the features of two dictionaries one to one (Hungarian method, Kuhn 1955) so that the summed
similarity is largest; a feature that no other seed finds is a choice of the optimiser, not a fact about the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..engine.ranks import ALONE, Ranks
from .dictionary import BLOCK_ELEMENTS, Dictionary
from .inputs import Inputs, blocks

MATCHED_FEATURES = (
    8192  # the largest dictionaries that are matched one to one: a matter of minutes and of 2 GiB
)


class Moments:
    """Mean and covariance of rows that arrive in blocks, float64, accumulated about the mean of the first block."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        """Take a block of rows (n, d) into account, n >= 1."""
        if self.count == 0:
            self._origin = rows.mean(axis=0, dtype=np.float64)
            self._total, self._square = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        shifted = rows - self._origin
        self._total += shifted.sum(axis=0)
        self._square += shifted.T @ shifted
        self.count += len(rows)

    @property
    def covariance(self) -> np.ndarray:
        """(d, d)."""
        mean = self._total / self.count
        return self._square / self.count - np.outer(mean, mean)

    @property
    def participation_ratio(self) -> float:
        """(tr C)^2 / tr C^2 of the covariance C; NaN when the rows do not vary."""
        return participation_ratio_of(self.covariance)


def mean_and_variance(inputs: Inputs) -> tuple[np.ndarray, float]:
    """Mean (d,) of the rows of ``inputs`` and E|x - mean|^2, float64, from one pass (about the mean of the first block)."""
    origin, total, square = np.zeros(inputs.width), np.zeros(inputs.width), 0.0
    for block, rows in enumerate(blocks(inputs)):
        origin = origin if block else rows.mean(axis=0, dtype=np.float64)
        shifted = rows - origin
        total, square = total + shifted.sum(axis=0), square + float(np.sum(shifted**2))
    mean = total / inputs.n_rows
    return origin + mean, square / inputs.n_rows - float(mean @ mean)


def explained_variance(
    inputs: Inputs, reconstruct: Callable[[np.ndarray], np.ndarray], ranks: Ranks = ALONE
) -> float:
    """Share of the variance of the rows of ``inputs`` that ``reconstruct`` (n, d) explains; NaN when they do not vary.

    Every one of the ``ranks`` reconstructs its share of each block.
    """
    _, variance = mean_and_variance(inputs)
    error = 0.0
    for block in blocks(inputs):
        rows = block[ranks.share(len(block))]
        error += float(np.sum((rows - reconstruct(rows).astype(np.float64)) ** 2))
    error = float(ranks.sum(np.asarray([error]))[0])
    return 1 - error / (inputs.n_rows * variance) if variance > 0 else float("nan")


def density(dictionary: Dictionary, inputs: Inputs, ranks: Ranks = ALONE) -> np.ndarray:
    """Share (F,) of the rows of ``inputs`` on which each feature is active; its sum is the mean L0.

    Every one of the ``ranks`` encodes its share of each block.
    """
    counts = np.zeros(dictionary.n_features, np.int64)
    for block in blocks(inputs):
        rows = block[ranks.share(len(block))]
        if dictionary.k:
            _, indices = dictionary.encode_sparse(rows)
            counts += np.bincount(indices[indices >= 0], minlength=dictionary.n_features)
            continue
        for part in _blocks(rows, dictionary.n_features):
            counts += (dictionary.encode(rows[part]) > 0).sum(axis=0)
    return ranks.sum(counts) / max(inputs.n_rows, 1)


def l0(dictionary: Dictionary, inputs: Inputs) -> float:
    """Mean number of active features on the rows of ``inputs``."""
    return float(density(dictionary, inputs).sum())


def participation_ratio_of(covariance: np.ndarray) -> float:
    """(tr C)^2 / tr C^2 of a covariance C (d, d) of any scale; NaN when it vanishes."""
    square = float(np.sum(covariance**2))
    return float(np.trace(covariance)) ** 2 / square if square > 0 else float("nan")


def stability(dictionaries: Sequence[Dictionary], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well the features of the first dictionary are found again by the others: two arrays (F,) in [-1, 1].

    The first: cosine of the decoder row with the matched one, mean over the other dictionaries. The second: Pearson correlation
    of the activations on ``x`` (n, d), matched on it; 0 for a feature that never fires. Both are signed, since activations are
    not negative: a feature and its opposite are two features. Cost of a match: O(F^3) operations, 8 F^2 bytes a matrix.
    NaN (not computed) when there is no other dictionary, and for more than ``MATCHED_FEATURES`` features.
    """
    first, others = dictionaries[0], dictionaries[1:]
    if not others or first.n_features > MATCHED_FEATURES:
        return np.full(first.n_features, np.nan), np.full(first.n_features, np.nan)
    cosine = [_matched(_unit(first.decoder) @ _unit(other.decoder).T) for other in others]
    activation = [_matched(activation_correlation(first, other, x)) for other in others]
    return np.mean(cosine, axis=0), np.mean(activation, axis=0)


def activation_correlation(
    a: Dictionary, b: Dictionary, x: np.ndarray, chosen: np.ndarray | None = None
) -> np.ndarray:
    """Pearson correlation (F_a, F_b) between the activations of two dictionaries on ``x`` (n, d); 0 where one is constant.

    Of ``a`` only the features ``chosen`` (m,), if given: (m, F_b).
    """
    size = a.n_features if chosen is None else len(chosen), b.n_features
    cross = np.zeros(size)
    sums, squares = [np.zeros(n) for n in size], [np.zeros(n) for n in size]
    for rows in _blocks(x, a.n_features + b.n_features):
        own = a.encode(x[rows]) if chosen is None else a.some(x[rows], chosen)
        features = [own.astype(np.float64), b.encode(x[rows]).astype(np.float64)]
        cross += features[0].T @ features[1]
        for f, total, square in zip(features, sums, squares, strict=True):
            total += f.sum(axis=0)
            square += (f**2).sum(axis=0)
    covariance = len(x) * cross - np.outer(*sums)
    return _normalised(covariance, np.outer(*_spreads(len(x), sums, squares)))


def pair_correlation(
    dictionary: Dictionary, x: np.ndarray, first: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """The same (m, k) between the features ``first`` (m,) and those ``others`` (m, k) of one dictionary; NaN for index -1.

    O(n F) operations and never more than a block of the (n, F) features.
    """
    needed, place = np.unique(np.concatenate([first, others[others >= 0]]), return_inverse=True)
    at = np.full(others.shape, 0)
    at[others >= 0] = place[len(first) :]
    own = place[: len(first)]
    total, square = np.zeros(len(needed)), np.zeros(len(needed))
    cross = np.zeros(others.shape)
    for rows in _blocks(x, dictionary.n_features):
        f = dictionary.some(x[rows], needed).astype(np.float64)
        total += f.sum(axis=0)
        square += (f**2).sum(axis=0)
        for k in range(others.shape[1]):
            cross[:, k] += np.einsum("ni,ni->i", f[:, own], f[:, at[:, k]])
    covariance = len(x) * cross - total[own, None] * total[at]
    (spread,) = _spreads(len(x), [total], [square])
    return np.where(others >= 0, _normalised(covariance, spread[own, None] * spread[at]), np.nan)


def activation_variance(dictionary: Dictionary, x: np.ndarray) -> np.ndarray:
    """Variance (F,) of every feature's activation on ``x`` (n, d)."""
    total, square = np.zeros(dictionary.n_features), np.zeros(dictionary.n_features)
    for rows in _blocks(x, dictionary.n_features):
        f = dictionary.encode(x[rows]).astype(np.float64)
        total += f.sum(axis=0)
        square += (f**2).sum(axis=0)
    return np.maximum(square / len(x) - (total / len(x)) ** 2, 0)


def _spreads(n: int, sums: Sequence[np.ndarray], squares: Sequence[np.ndarray]) -> list[np.ndarray]:
    """n times the standard deviations, from sums and sums of squares of ``n`` rows."""
    return [
        np.sqrt(np.maximum(n * square - total**2, 0)) for total, square in zip(sums, squares, strict=True)
    ]


def _normalised(covariance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 0)


def _matched(similarity: np.ndarray) -> np.ndarray:
    """Similarity of each row with its partner in the best one-to-one match; 0 for rows left without one."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(similarity, maximize=True)
    matched = np.zeros(len(similarity))
    matched[rows] = similarity[rows, columns]
    return matched


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _blocks(x: np.ndarray, columns: int) -> Iterator[slice]:
    size = max(1, BLOCK_ELEMENTS // (8 * columns))
    return (slice(first, first + size) for first in range(0, len(x), size))
