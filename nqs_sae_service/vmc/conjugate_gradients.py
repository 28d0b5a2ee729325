"""Conjugate gradients for (T + shift I) y = rhs from products with O-bar alone (Hestenes & Stiefel 1952); T is never formed.

An iteration applies O-bar^T and O-bar once. The sample-space and the parameter-space systems have the same nonzero spectrum and
are mapped to each other by O-bar^T, so they need the same iterations at the same price: there is one form, in sample space.
"""

from __future__ import annotations

import numpy as np

from ..states.fused import Jacobian


def conjugate_gradients(
    jacobian: Jacobian, shift: float, rhs: np.ndarray, tolerance: float, iterations: int
) -> tuple[np.ndarray, int] | None:
    """y (rows,) with |rhs - (T + shift) y| <= tolerance |rhs|, and the iterations taken; None if they do not suffice."""
    y, residual = np.zeros_like(rhs), rhs.copy()
    direction = residual.copy()
    size = _squared(residual)
    target = tolerance**2 * size
    for iteration in range(iterations):
        if size <= target:
            return y, iteration
        image = jacobian.product(jacobian.transposed_product(direction)) + shift * direction
        along = size / np.vdot(direction, image).real
        y += along * direction
        residual -= along * image
        before, size = size, _squared(residual)
        direction = residual + (size / before) * direction
    return (y, iterations) if size <= target else None


def _squared(vector: np.ndarray) -> float:
    return float(np.vdot(vector, vector).real)
