"""Do two dictionaries write along the same directions? Principal angles between the spans of some decoder rows.

With more features than dimensions all rows together span everything. So the angles are between

    A   the rows of the m features of one dictionary that contribute most variance, Var(f_i) |d_i|^2,
    B   the rows of their partners in the other, matched one to one on their activations (not on the rows that are compared),

m the participation ratio of the inputs, rounded up: as many directions as carry the variance. The cosines of the principal
angles 0 <= theta_1 <= ... <= theta_m <= 90 degrees are the singular values of Q_A^T Q_B, with orthonormal bases Q (Björck &
Golub, Math. Comput. 27, 579 (1973)). All zero: one subspace.

Some angle is small by chance, and inputs that vary along few directions attract every dictionary to them. Hence two controls:
spans of m random vectors, isotropic ones, and ones with the covariance of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_BLOCK = 2**22  # cosines that are held at a time


def principal_angles(a: ArrayLike, b: ArrayLike) -> Array:
    """Angles (m,) in degrees between the spans of the rows of a (m, d) and b (m, d), smallest first, exact near zero too.

    NaN at the end for every row of a or b that the others of it span.
    """
    from scipy.linalg import subspace_angles

    rows = [np.asarray(x, np.float64) for x in (a, b)]
    angles = np.full(len(rows[0]), np.nan)
    if all(np.any(x) for x in rows):
        found = np.degrees(subspace_angles(*(x.T for x in rows)))[::-1]
        angles[: len(found)] = found
    return angles


def of_random(count: int, covariance: ArrayLike, replicas: int, rng: np.random.Generator) -> Array:
    """Principal angles (replicas, count) in degrees between spans of ``count`` random vectors each, of a covariance (d, d)."""
    variances, axes = np.linalg.eigh(np.asarray(covariance, np.float64))
    root = np.sqrt(np.maximum(variances, 0.0))[:, None] * axes.T
    drawn = rng.standard_normal((replicas, 2, count, len(root))) @ root
    return np.array([principal_angles(*pair) for pair in drawn])


def p_value(angles: Array, of_chance: Array) -> float:
    """Chance that random subspaces (replicas, m) are as close, by the mean of the known angles (m,).

    Never below 1 / (1 + replicas) (Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 9, 39 (2010), eq. 2).
    """
    mean, means = np.nanmean(angles), np.nanmean(of_chance, axis=1)
    return float((1 + np.sum(means <= mean)) / (1 + len(means)))


def leading(variance: ArrayLike, decoder: ArrayLike, count: int) -> NDArray[np.int64]:
    """The ``count`` features whose Var(f_i) |d_i|^2 is largest, largest first; fewer where fewer contribute anything.

    variance (F,) of the activations, decoder (F, d).
    """
    contributed = np.asarray(variance) * np.sum(np.asarray(decoder, np.float64) ** 2, axis=1)
    order = np.argsort(-contributed, kind="stable")[:count]
    return order[contributed[order] > 0]


def partners(similarity: ArrayLike) -> NDArray[np.int64]:
    """For each row of a similarity (m, F), m <= F, a column of its own, so that the sum is largest (Kuhn 1955). (m,)."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(np.asarray(similarity), maximize=True)[1]


def nearest(
    decoder: ArrayLike, features: NDArray[np.int64], live: NDArray[np.bool_], count: int
) -> tuple[NDArray[np.int64], Array]:
    """Other live features with the largest cosine of their decoder rows, largest first: numbers and cosines (n, count).

    decoder (F, d), ``features`` (n,) whose neighbours are asked for, ``live`` (F,). Where there are fewer: -1 and NaN. Only a
    block of the (n, F) cosines is held at a time.
    """
    rows = np.asarray(decoder, np.float32)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found, cosine = np.full((len(features), count), -1), np.full((len(features), count), np.nan)
    kept = min(count, len(unit))
    for block in _blocks(len(features), len(unit)):
        similarity = unit[features[block]] @ unit.T
        similarity[:, ~live] = -np.inf
        similarity[np.arange(len(similarity)), features[block]] = -np.inf
        some = np.argpartition(-similarity, kept - 1, axis=1)[:, :kept]
        order = np.lexsort((some, -np.take_along_axis(similarity, some, axis=1)), axis=1)
        some = np.take_along_axis(some, order, axis=1)
        values = np.take_along_axis(similarity, some, axis=1)
        known = np.isfinite(values)
        found[block, :kept] = np.where(known, some, -1)
        cosine[block, :kept] = np.where(known, values, np.nan)
    return found, cosine


def _blocks(total: int, row: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(row, 1))
    return (slice(first, first + size) for first in range(0, total, size))
