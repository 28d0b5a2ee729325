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

from .directions import Direction
from .expectation import Curve, infidelity

_MATCHING_ROUNDS = 12
_MATCHING_TOLERANCE = 0.01
_LOCAL_POINTS = 5  # points around scale 1 that a slope is fitted to


def matched_strengths(
    direction: Direction, sigma: np.ndarray, log_psi: np.ndarray, wanted: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Strengths (point,) at which the direction reaches the wanted infidelities; NaN where it cannot.

    sigma (n, n_sites) samples of psi with log_psi (n,). The infidelity grows as strength^2 Var(tangent) at first; a damped
    secant in its square root follows from there.
    """
    metric = np.var(direction.tangent(sigma))
    if not metric > 0:
        return np.where(wanted == 0, 0.0, np.nan)
    with np.errstate(invalid="ignore"):
        size = np.sqrt(wanted / metric)
    reached = np.zeros_like(size)
    for _ in range(_MATCHING_ROUNDS):
        log_ratio = direction.log_psi(sigma, signs * np.nan_to_num(size)) - log_psi[:, None]
        reached = np.asarray([infidelity(column) for column in log_ratio.T])
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.where(wanted > 0, size * np.clip(np.sqrt(wanted / reached), 0.5, 2.0), 0.0)
        if np.all((wanted == 0) | _matches(reached, wanted)):
            break
    return np.where((wanted == 0) | _matches(reached, wanted, slack=5.0), signs * size, np.nan)


def _matches(reached: np.ndarray, wanted: np.ndarray, slack: float = 1.0) -> np.ndarray:
    return np.abs(reached - wanted) <= slack * _MATCHING_TOLERANCE * wanted + 1e-14


@dataclass(frozen=True)
class Derivatives:
    """First and second derivative by the strength at psi, of every quantity, with standard errors of the first."""

    slope: np.ndarray
    slope_error: np.ndarray
    curvature: np.ndarray


def derivatives(curve: Curve, strengths: np.ndarray, base: int) -> Derivatives:
    """Derivatives at the point ``base`` (strength 0) from the nearest points by a polynomial through that point.

    Exact curves are interpolated (degree 4 through five points); sampled ones get a quadratic fit.
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
    """Mean at ``point`` minus mean at ``base``, with its standard error: two arrays (quantity,)."""
    row = np.zeros(len(curve.mean))
    row[point] += 1
    row[base] -= 1
    return curve.combination(row)


def relative_deviation(curve: Curve, base: int) -> tuple[np.ndarray, np.ndarray]:
    """(E(s) - E(1)) / |E(1)| at every point, with its standard error: two arrays (point,)."""
    pairs = [change(curve, p, base) for p in range(len(curve.mean))]
    energy = abs(curve.mean[base, -1])
    return np.asarray([v[-1] for v, _ in pairs]) / energy, np.asarray([e[-1] for _, e in pairs]) / energy


def reach(curve: Curve, base: int, quantity: int, budget: float) -> tuple[float, float]:
    """Largest |change| of a quantity within the energy budget, with its standard error.

    On both sides of ``base`` the curve is followed outwards until the deviation leaves the budget; the crossing is interpolated
    in sqrt|dE|, which is linear in the strength near an eigenstate. Where the curve ends within the budget, its last point
    counts.
    """
    deviation, _ = relative_deviation(curve, base)
    best = (0.0, 0.0)
    for step in (-1, 1):
        row = _crossing(np.abs(deviation), base, step, budget)
        if row is not None:
            value, error = curve.combination(row)
            best = max(best, (abs(float(value[quantity])), float(error[quantity])))
    return best


def _crossing(deviation: np.ndarray, base: int, step: int, budget: float) -> np.ndarray | None:
    """Weights (point,) of the change at the point where the deviation leaves the budget, going from ``base`` by ``step``."""
    inner, outer = base, base + step
    while 0 <= outer < len(deviation) and deviation[outer] <= budget:
        inner, outer = outer, outer + step
    row = np.zeros(len(deviation))
    row[base] -= 1
    if not 0 <= outer < len(deviation) or not np.isfinite(deviation[outer]):
        row[inner] += 1
        return row if inner != base else None
    low, high = np.sqrt(deviation[[inner, outer]])
    part = (np.sqrt(budget) - low) / (high - low)
    row[inner] += 1 - part
    row[outer] += part
    return row


def monotone_range(curve: Curve, base: int, quantity: int) -> tuple[int, int]:
    """First and last point of the stretch around ``base`` over which a quantity moves one way, up to two standard errors."""
    sign = np.sign(_side_difference(curve, base, quantity))
    ends = []
    for step in (-1, 1):
        end = base
        while 0 <= end + step < len(curve.mean) and np.isfinite(curve.mean[end + step, quantity]):
            value, error = change(curve, end + step, end)
            if step * sign * value[quantity] < -2 * error[quantity]:
                break
            end += step
        ends.append(end)
    return ends[0], ends[1]


def _side_difference(curve: Curve, base: int, quantity: int) -> float:
    low, high = max(base - 1, 0), min(base + 1, len(curve.mean) - 1)
    return float(curve.mean[high, quantity] - curve.mean[low, quantity])


def efficiency(slope: float, curvature: float, chi: float) -> float:
    """eta = slope^2 / (chi curvature); NaN unless chi and the curvature are positive and finite."""
    if not (np.isfinite([slope, curvature, chi]).all() and chi > 0 and curvature > 0):
        return float("nan")
    return slope**2 / (chi * curvature)
