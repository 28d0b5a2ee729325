"""Time evolution projected on a network: time-dependent variational Monte Carlo (TDVP), real or imaginary time.

    |sum_k theta_dot_k O-bar_k - f eps| is smallest,    f = -i (real time) or -1 (imaginary time),

with O-bar and eps of ``reconfiguration`` (Carleo et al., Sci. Rep. 2, 243 (2012); Yuan et al., Quantum 3, 191 (2019)). For real
parameters and real time that is Re(S) theta_dot = Im F, F = <O-bar* eps>. T = O-bar O-bar^T = U diag(lambda) U^T solves it:

    theta_dot = O-bar^T sum_k u_k (u_k . rhs) g_k / lambda_k,

where the filter g_k suppresses directions that carry no weight, lambda_k < cutoff lambda_max, or whose force drowns in the
noise of the samples (Schmitt & Heyl, PRL 125, 100503 (2020)):

    g_k = 1 / (1 + (cutoff lambda_max / lambda_k)^6) / (1 + (snr / SNR_k)^6).

The step follows Heun's method; two half steps beside a whole one give its error, in the metric of the states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import NumericalError

Array = Any

_SHARPNESS = 6  # of the filter: Schmitt & Heyl, supplement
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 2.0  # Hairer, Norsett & Wanner, Solving ODEs I, section II.4
_ORDER = 2


@dataclass(frozen=True)
class Velocity:
    """theta_dot (n_parameters,) float64 and how good it is.

    ``error``: share of the energy variance that no motion of the parameters follows, 0 for an exact evolution; ``rank``: number
    of directions that pass the filter; ``length``: maps d theta to its length in the metric S, |O-bar d theta|.
    """

    direction: Array
    error: float
    rank: float
    length: Callable[[Array], float]


def _real_rows(values: Array) -> Array:
    """Real parts (n, ...) above imaginary ones."""
    return np.concatenate([values.real, values.imag])


def projected_velocity(
    derivatives: Array,
    local_energy: Array,
    weights: Array,
    cutoff: float = 1e-8,
    snr: float = 0.0,
    imaginary: bool = False,
) -> Velocity:
    """theta_dot for real parameters.

    ``derivatives`` O (n, n_parameters) and ``local_energy`` (n,) on configurations with ``weights`` (n,) that sum to 1: Born
    probabilities of all configurations, or 1 / n for samples of them. ``snr`` 0: no noise, as in full summation. Raises
    NumericalError where a number is not finite.
    """
    root = np.sqrt(weights)
    centred = _real_rows(root[:, None] * (derivatives - weights @ derivatives))
    eps = root * (local_energy - weights @ local_energy)
    rhs = _real_rows(-eps if imaginary else -1j * eps)
    if not (np.isfinite(centred).all() and np.isfinite(rhs).all()):
        raise NumericalError(
            "a derivative or a local energy is not finite: psi vanishes on a configuration, where TDVP is singular"
        )
    values, vectors = _spectrum(centred)
    force = vectors.T @ rhs
    kept = _filter(values, force, vectors, rhs, cutoff, snr)
    y = vectors @ (kept * force / values)
    residual = rhs - vectors @ (kept * force)
    variance = float(rhs @ rhs)
    return Velocity(
        centred.T @ y,
        float(residual @ residual) / variance if variance else 0.0,
        float(kept.sum()),
        lambda change: float(np.linalg.norm(centred @ change)),
    )


def _spectrum(centred: Array) -> tuple[Array, Array]:
    """Eigenvalues (k,) and eigenvectors (rows, k) of T, by the smaller one of T and S; those of rounding left out."""
    rows, columns = centred.shape
    if rows <= columns:
        values, vectors = np.linalg.eigh(centred @ centred.T)
    else:
        values, vectors = np.linalg.eigh(centred.T @ centred)
    seen = values > max(rows, columns) * np.finfo(values.dtype).eps * max(values[-1], 0.0)
    values, vectors = values[seen], vectors[:, seen]
    return values, vectors if rows <= columns else centred @ vectors / np.sqrt(values)


def _filter(values: Array, force: Array, vectors: Array, rhs: Array, cutoff: float, snr: float) -> Array:
    """g_k in [0, 1] of every direction."""
    if not len(values):
        return values
    kept = 1 / (1 + (cutoff * values[-1] / values) ** _SHARPNESS)
    if snr:
        n = len(rhs) // 2
        shares = vectors * rhs[:, None]
        noise = (n * (shares[:n] + shares[n:])).std(axis=0, ddof=1) / math.sqrt(n)
        with np.errstate(over="ignore"):
            kept /= 1 + (snr * noise / np.maximum(np.abs(force), np.finfo(force.dtype).tiny)) ** _SHARPNESS
    return kept


def heun(theta: Array, step: float, first: Array, velocity: Callable[[Array], Velocity]) -> Array:
    """theta after one Heun step, of second order, that begins with the direction ``first``."""
    second = velocity(theta + step * first).direction
    return theta + 0.5 * step * (first + second)


@dataclass(frozen=True)
class Step:
    """An accepted step: where it ends, how long it was, its estimated error, and how long the next one should be."""

    theta: Array
    length: float
    error: float
    next_length: float
    begun: Velocity


def adaptive_step(
    theta: Array,
    longest: float,
    velocity: Callable[[Array], Velocity],
    tolerance: float,
    shortest: float = 1e-7,
) -> Step:
    """One step of at most ``longest`` whose error in the metric of the states is at most ``tolerance``.

    Two half steps are taken and compared with a whole one: their difference, in the metric at theta, shrinks as the third power
    of the step. Raises NumericalError when a step shorter than ``shortest`` would be needed.
    """
    begun, length = velocity(theta), longest
    while True:
        whole = heun(theta, length, begun.direction, velocity)
        middle = heun(theta, length / 2, begun.direction, velocity)
        halves = heun(middle, length / 2, velocity(middle).direction, velocity)
        error = begun.length(halves - whole)
        if not math.isfinite(error):
            better = _SHRINK
        else:
            better = min(
                _GROW, max(_SHRINK, _SAFETY * (tolerance / max(error, 1e-300)) ** (1 / (_ORDER + 1)))
            )
        if error <= tolerance:
            return Step(halves, length, error, length * better, begun)
        length *= better
        if length < shortest:
            raise NumericalError(
                f"the time step collapsed below {shortest:g}: the projected equation is singular here; raise the cutoff of the "
                "eigenvalues or the tolerance of a step, or take more samples"
            )
