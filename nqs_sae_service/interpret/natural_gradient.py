"""The direction in feature space that moves an observable most for a given disturbance of the state.

All features are turned together, x -> x + strength sum_i a_i f_i d_i. With g_i = d log psi / d scale_i (``atlas.py``) the
slope of O is b . a and the infidelity grows as strength^2 a . S a, where

    b_i = 2 Re Cov(g_i, O_loc)        S_ij = Re Cov(g_i, g_j)
    a = S^-1 b / sqrt(b . S^-1 b)     the largest slope, sqrt(b . S^-1 b), among all a with a . S a = 1

the natural gradient of <O> (Amari, Neural Comput. 10, 251 (1998)). No a whatever moves O faster than 2 std(O_loc). Where other
slopes c_k have to vanish, a . c_k = 0, the multipliers mu of Lagrange give

    a ~ S^-1 (b - sum_k mu_k c_k)     with  c_j . S^-1 (b - sum_k mu_k c_k) = 0 for all j:

b without its projection on the c_k, in coordinates in which S is the unit matrix.
"""

from __future__ import annotations

import numpy as np

CUTOFF = 1e-4
SAMPLES_EACH = 10
_NOTHING = 1e-6  # relative length below which a vector is rounding of a network in single precision


def metric(tangent: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """S (feature, feature) from g (chain, draw, feature), real or complex; ``weights`` (chain, draw) of the samples."""
    g = tangent.reshape(-1, tangent.shape[-1])
    g = g.astype(np.result_type(g.dtype, np.float64), copy=False)
    share = np.full(len(g), 1 / len(g)) if weights is None else weights.reshape(-1) / weights.sum()
    centred = np.sqrt(share)[:, None] * (g - share @ g)
    if not np.iscomplexobj(centred):
        return centred.T @ centred
    return centred.real.T @ centred.real + centred.imag.T @ centred.imag


def steepest(
    slope: np.ndarray,
    metric: np.ndarray,
    held: np.ndarray | None = None,
    cutoff: float = CUTOFF,
    at_most: int | None = None,
) -> np.ndarray:
    """Weights a (feature,) with a . S a = 1 and the largest slope b . a, b = ``slope`` (feature,) and S = ``metric``.

    ``held`` (feature, constraint): slopes that vanish. S is inverted on the eigenvectors whose eigenvalue exceeds ``cutoff``
    times the largest: along the others features have to be turned by a multiple of a hundred to be noticed, far from where a
    slope means anything. Of these the first ``at_most``; with samples, one for every ``SAMPLES_EACH`` of them at most, so that
    their noise is not fitted. Zero where nothing moves the observable.
    """
    values, vectors = np.linalg.eigh(metric)
    kept = np.flatnonzero(values > cutoff * max(values[-1], 0.0))[::-1][:at_most]
    white = vectors[:, kept] / np.sqrt(values[kept])
    force = white.T @ slope
    length = np.linalg.norm(force)
    if held is not None and force.size:
        force = _without(force, white.T @ held)
    left = np.linalg.norm(force)
    if not left > _NOTHING * length:
        return np.zeros_like(slope)
    return white @ (force / left)


def _without(vector: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A vector (n,) without its projection on the span of ``columns`` (n, m)."""
    lengths = np.linalg.norm(columns, axis=0)
    u, s, _ = np.linalg.svd(columns[:, lengths > 0] / lengths[lengths > 0], full_matrices=False)
    basis = u[:, s > _NOTHING]
    for _ in range(2):  # the second time takes what rounding left
        vector = vector - basis @ (basis.T @ vector)
    return vector
