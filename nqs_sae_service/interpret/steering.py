"""What a turned feature does: slopes, energy curvature, reach and efficiency, from curves of expectation values.

A curve is known at scales s (1 is psi), that is at strengths a(s) of a direction, a(1) = 0. Near an eigenstate the energy
deviates to second order and an observable to first, so a small |dE/E| near scale 1 is generic; hence

    reach         largest change of O within |E(s) - E(1)| <= budget |E(1)|
    efficiency    eta = (d<O>/da)^2 / (chi d^2E/da^2) with chi = d<O>/d lambda of the ground state of H - lambda O;
                  1 is the best there is

Controls are compared at equal infidelity: ``matched_strengths`` finds their strengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..engine.arrays import to_host
from .directions import Direction
from .expectation import Curve, infidelity

_MATCHING_ROUNDS = 12
_MATCHING_TOLERANCE = 0.01  # relative, of the infidelity: good enough to stop
_MATCHED = 0.05  # and good enough to be called matched
_REPLICAS = 200
_LOCAL_POINTS = 5  # points around scale 1 that a slope is fitted to


def matched_strengths(
    direction: Direction, sigma: np.ndarray, log_psi: np.ndarray, wanted: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Strengths (point,) at which the direction reaches the wanted infidelities: 0 where the sign is 0, NaN where it cannot.

    sigma (n, n_sites) samples of psi with log_psi (n,). The infidelity grows as strength^2 Var(tangent) at first; from there
    the strength is rescaled by the square root of what is missing, by a factor between 1/2 and 2 at a time.
    """
    asked = (signs != 0) & (wanted > 0)
    strengths = np.where(signs == 0, 0.0, np.nan)
    metric = np.var(to_host(direction.tangent(sigma)))
    if not metric > 0 or not asked.any():
        return strengths
    aim, sign = wanted[asked], signs[asked]
    size = np.sqrt(aim / metric)
    for _ in range(_MATCHING_ROUNDS):
        log_ratio = to_host(direction.log_psi(sigma, sign * size) - log_psi[:, None])
        reached = np.asarray([infidelity(column) for column in log_ratio.T])
        missed = np.abs(reached / aim - 1)
        strengths[asked] = np.where(missed < _MATCHED, sign * size, np.nan)
        if np.all(missed < _MATCHING_TOLERANCE):
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            size = size * np.clip(np.nan_to_num(np.sqrt(aim / reached), nan=0.5), 0.5, 2.0)
    return strengths


@dataclass(frozen=True)
class Derivatives:
    """First and second derivative by the strength at psi, of every observable, with standard errors of the first."""

    slope: np.ndarray
    slope_error: np.ndarray
    curvature: np.ndarray


def derivatives(curve: Curve, strengths: np.ndarray, base: int) -> Derivatives:
    """Derivatives at the point ``base`` (strength 0) from the nearest points by a polynomial through that point.

    Exact curves are interpolated (degree 4 through five points); sampled ones get a quadratic fit. Where the points share
    their samples, noise does not hide how far the two differ, and the difference counts into the error of the slope.
    """
    near = _nearest(strengths, base)
    degree = min(4, len(near)) if curve.influence is None else min(2, len(near))
    if degree < 1:
        nothing = np.full(curve.mean.shape[1], np.nan)
        return Derivatives(nothing, nothing, nothing)
    unit = np.max(np.abs(strengths[near]))
    powers = (strengths[near] / unit)[:, None] ** np.arange(1, degree + 1)
    inverse = np.linalg.pinv(powers)
    rows = [_through_base(inverse[order], near, base, len(strengths)) for order in range(min(2, degree))]
    slope, slope_error = curve.combination(rows[0] / unit)
    if curve.paired and curve.influence is not None and len(near) >= 4:
        quartic = np.linalg.pinv((strengths[near] / unit)[:, None] ** np.arange(1, 5))
        other = _through_base(quartic[0], near, base, len(strengths))
        slope_error = np.hypot(slope_error, slope - curve.combination(other / unit)[0])
    if degree < 2:
        return Derivatives(slope, slope_error, np.full_like(slope, np.nan))
    second, _ = curve.combination(rows[1] * 2 / unit**2)
    return Derivatives(slope, slope_error, second)


def _nearest(strengths: np.ndarray, base: int) -> np.ndarray:
    """The closest points to ``base`` with a known strength, at most four."""
    known = [
        p for p in range(len(strengths)) if p != base and np.isfinite(strengths[p]) and strengths[p] != 0
    ]
    return np.asarray(sorted(known, key=lambda p: (abs(p - base), p))[: _LOCAL_POINTS - 1], dtype=int)


def _through_base(coefficients: np.ndarray, near: np.ndarray, base: int, points: int) -> np.ndarray:
    row = np.zeros(points)
    row[near] = coefficients
    row[base] = -coefficients.sum()
    return row


def change(curve: Curve, point: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean at ``point`` minus mean at ``base``, with its standard error: two arrays (observable,)."""
    row = np.zeros(len(curve.mean))
    row[point] += 1
    row[base] -= 1
    return curve.combination(row)


def relative_deviation(curve: Curve, base: int) -> tuple[np.ndarray, np.ndarray]:
    """(E(s) - E(1)) / |E(1)| at every point, with its standard error: two arrays (point,)."""
    pairs = [change(curve, p, base) for p in range(len(curve.mean))]
    energy = abs(curve.mean[base, -1])
    return np.asarray([v[-1] for v, _ in pairs]) / energy, np.asarray([e[-1] for _, e in pairs]) / energy


def reach(mean: np.ndarray, base: int, column: int, budget: float) -> float:
    """Largest |change| of an observable within the energy budget, from means (point, observable), the energy last.

    On both sides of ``base`` the curve is followed outwards until the deviation leaves the budget; the crossing is
    interpolated in sqrt|dE|, which is linear in the strength near an eigenstate. Where the curve ends within the budget its
    last point counts.
    """
    deviation = np.abs(mean[:, -1] - mean[base, -1]) / abs(mean[base, -1])
    change = mean[:, column] - mean[base, column]
    return max(abs(_followed(deviation, change, base, step, budget)) for step in (-1, 1))


def _followed(deviation: np.ndarray, change: np.ndarray, base: int, step: int, budget: float) -> float:
    """The change where the deviation leaves the budget, going from ``base`` by ``step``."""
    inner, outer = base, base + step
    while 0 <= outer < len(deviation) and deviation[outer] <= budget:
        inner, outer = outer, outer + step
    if not 0 <= outer < len(deviation) or not np.isfinite(deviation[outer]):
        return float(change[inner])
    low, high = np.sqrt(deviation[[inner, outer]])
    part = (np.sqrt(budget) - low) / (high - low)
    return float((1 - part) * change[inner] + part * change[outer])


def reach_error(curve: Curve, base: int, column: int, budget: float, generator: np.random.Generator) -> float:
    """Standard error of the reach: how it scatters when whole chains are drawn anew, in the change and in the energy."""
    replicas = [reach(mean, base, column, budget) for mean in curve.replicas(_REPLICAS, generator)]
    return float(np.std(replicas)) if replicas else 0.0


def monotone_range(curve: Curve, base: int, column: int) -> tuple[int, int]:
    """First and last point of the stretch around ``base`` over which an observable moves one way, up to two standard errors.

    The way is that of the step between the neighbours of ``base``; where that is unknown the stretch is ``base`` alone.
    """
    sign = np.sign(_side_difference(curve, base, column))
    ends = []
    for step in (-1, 1):
        end = base
        while sign in (-1, 1) and 0 <= end + step < len(curve.mean):
            value, error = change(curve, end + step, end)
            if not step * sign * value[column] >= -2 * error[column]:
                break
            end += step
        ends.append(end)
    return ends[0], ends[1]


def _side_difference(curve: Curve, base: int, column: int) -> float:
    low, high = max(base - 1, 0), min(base + 1, len(curve.mean) - 1)
    return float(curve.mean[high, column] - curve.mean[low, column])


def efficiency(slope: float, curvature: float, chi: float) -> float:
    """eta = slope^2 / (chi curvature); NaN unless chi and the curvature are positive and finite."""
    if not (np.isfinite([slope, curvature, chi]).all() and chi > 0 and curvature > 0):
        return float("nan")
    return slope**2 / (chi * curvature)
