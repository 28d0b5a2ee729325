"""Conjugate gradients for (T + shift I) y = rhs from products with O-bar alone (Hestenes & Stiefel 1952); T is never formed.

An iteration applies O-bar^T and O-bar once. The sample-space and the parameter-space systems have the same nonzero spectrum and
are mapped to each other by O-bar^T, so they need the same iterations at the same price: there is one form, in sample space.
"""

from __future__ import annotations

import math

import numpy as np

from ..engine.arrays import namespace
from ..engine.ranks import ALONE, Ranks
from ..states.fused import Jacobian

_LOOK_EVERY = 50  # iterations


def conjugate_gradients(
    jacobian: Jacobian,
    shift: float,
    rhs: np.ndarray,
    tolerance: float,
    iterations: int,
    foresee: bool = False,
    ranks: Ranks = ALONE,
) -> tuple[np.ndarray, int] | None:
    """y (rows,) with |rhs - (T + shift) y| <= tolerance |rhs|, and the iterations taken; None if they do not suffice.

    ``foresee``: give up as soon as, at the average rate of convergence so far, the iterations will not suffice.
    ``rhs`` and y are the rows of this rank.
    """
    xp = namespace(rhs)
    y, residual = xp.zeros_like(rhs), rhs.copy()
    direction = residual.copy()
    first = size = _product(residual, residual, ranks)
    target = tolerance**2 * first
    for iteration in range(iterations):
        if size <= target:
            return y, iteration
        if foresee and iteration and iteration % _LOOK_EVERY == 0:
            wanted = iteration * math.log(target / first) / min(math.log(size / first), -1e-300)
            if wanted > iterations:
                return None
        image = jacobian.product(jacobian.transposed_product(direction)) + shift * direction
        along = size / _product(direction, image, ranks)
        y += along * direction
        residual -= along * image
        before, size = size, _product(residual, residual, ranks)
        direction = residual + (size / before) * direction
    return (y, iterations) if size <= target else None


def _product(a: np.ndarray, b: np.ndarray, ranks: Ranks) -> float:
    """Re <a, b> over the rows of all ranks."""
    return float(ranks.sum(namespace(a).vdot(a, b).real.reshape(1))[0])
