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

from ..engine.arrays import namespace, to_host
from ..errors import NumericalError

Array = Any

_SHARPNESS = 6  # of the filter: Schmitt & Heyl, supplement
_IRRELEVANT = 0.1  # of the cutoff: directions with so little weight are filtered to 1e-6
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 2.0  # Hairer, Norsett & Wanner, Solving ODEs I, section II.4
_ORDER = 2
_BLOCK = 1024  # rows of a product
_TINY, _EPS = 1e-300, float(np.finfo(np.float64).eps)


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


def projected_velocity(
    columns: Array,
    local_energy: Array,
    weights: Array,
    cutoff: float = 1e-8,
    snr: float = 0.0,
    imaginary: bool = False,
) -> Velocity:
    """theta_dot for real parameters.

    ``columns``: O (part, n, n_parameters), real part and, where psi has a phase, imaginary part; ``local_energy`` (n,), on
    configurations with ``weights`` (n,) that sum to 1: Born probabilities of all of them, or 1 / n for samples. ``columns`` is
    overwritten. ``snr`` 0: no noise, as in full summation. Raises NumericalError where a number is not finite.
    """
    xp = namespace(columns)
    root = xp.sqrt(weights)
    centred = centre(columns, weights)
    eps = root * (local_energy - weights @ local_energy)
    rhs = rows_of(-eps if imaginary else -1j * eps, len(columns))
    if not (bool(xp.isfinite(centred).all()) and bool(xp.isfinite(rhs).all())):
        raise NumericalError(
            "a derivative or a local energy is not finite: psi vanishes on a configuration, where TDVP is singular"
        )
    values, vectors, expand = _spectrum(centred, _IRRELEVANT * cutoff)
    force = vectors.T @ rhs
    kept = _filter(values, force, vectors, rhs, len(weights), cutoff, snr)
    residual = rhs - vectors @ (kept * force)
    variance = float((xp.abs(eps) ** 2).sum())
    missed = (
        float(residual @ residual) + variance - float(rhs @ rhs)
    )  # what a real psi cannot follow at all comes on top
    return Velocity(
        to_host(expand(kept * force / values)),
        missed / variance if variance else 0.0,
        float(kept.sum()),
        lambda change: float(xp.linalg.norm(centred @ xp.asarray(change, centred.dtype))),
    )


def centre(columns: Array, weights: Array) -> Array:
    """O-bar (parts n, n_parameters) of O (part, n, n_parameters), which is overwritten."""
    xp, root = namespace(columns), namespace(weights).sqrt(weights).astype(columns.dtype)
    for part in columns:
        part -= weights.astype(part.dtype) @ part
        part *= root[:, None]
    return xp.reshape(columns, (-1, columns.shape[2]))


def rows_of(values: Array, parts: int) -> Array:
    """Complex numbers (n,) as the rows of O-bar are: real parts above imaginary ones, or real parts alone."""
    return namespace(values).concatenate([values.real, values.imag]) if parts == 2 else values.real


def gram(rows: Array) -> Array:
    """A^T A (m, m) float64, A (n, m): products of a block in the precision of A, their sum in double precision."""
    xp = namespace(rows)
    total = xp.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        total += block.T @ block
    return total


def _spectrum(centred: Array, least: float) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Eigenvalues (k,) and eigenvectors u (rows, k) of T, by the smaller one of T and S; those of rounding are left out.

    So are those that are a share of the largest below ``least``. The third: y (k,) -> O-bar^T sum_k u_k y_k.
    """
    xp = namespace(centred)
    rows, columns = centred.shape
    small = rows <= columns
    if small:
        wide = centred.astype(xp.float64)
        values, vectors = xp.linalg.eigh(wide @ wide.T)
    else:
        values, vectors = xp.linalg.eigh(gram(centred))
    rounding = max(rows, columns) * _EPS + float(
        np.finfo(centred.dtype).eps
    )  # of the arithmetic, of the numbers
    seen = values > max(rounding, least) * max(float(values[-1]), 0.0)
    values, vectors = values[seen], vectors[:, seen]
    if small:
        return values, vectors, lambda y: wide.T @ (vectors @ y)
    left = centred @ (vectors / xp.sqrt(values)).astype(centred.dtype)
    return values, left.astype(xp.float64), lambda y: vectors @ (xp.sqrt(values) * y)


def _filter(
    values: Array, force: Array, vectors: Array, rhs: Array, n: int, cutoff: float, snr: float
) -> Array:
    """g_k in [0, 1] of every direction."""
    xp = namespace(values)
    if not len(values):
        return values
    kept = 1 / (1 + (cutoff * values[-1] / values) ** _SHARPNESS)
    if snr:
        shares = n * (vectors * rhs[:, None]).reshape(-1, n, len(values)).sum(axis=0)
        noise = shares.std(axis=0, ddof=1) / math.sqrt(n)
        with np.errstate(over="ignore"):
            kept /= 1 + (snr * noise / xp.maximum(xp.abs(force), _TINY)) ** _SHARPNESS
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
