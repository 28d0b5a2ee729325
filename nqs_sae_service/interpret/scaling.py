"""How good a dictionary of a size becomes for a compute budget, which size is best, and how features split as it grows.

The loss of a grid of dictionaries (number of features F, optimisation steps, learning rate) at otherwise equal settings:

    compute   C = steps x batch x (operations of an input), see ``operations``
    frontier  for a budget C the loss of every size, interpolated in log C along the steps; the best size is the minimum of the
              parabola, in log F, through the lowest and its neighbours
    laws      best loss, size and steps of the budgets whose best size is inside the sizes that reach them, and the best
              learning rate, as power laws a C^b (Templeton et al. 2024, Scaling Monosemanticity;
              the frontier as in Hoffmann et al. 2022, arXiv:2203.15556, approach 2)
    bands     the same from losses redrawn with their scatter between seeds

Splitting: a feature of the larger dictionary descends from that of the smaller whose decoder row is nearest, if the cosine is
above what 99 % of random directions of the same covariance reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BUDGETS = 9
SIZES = 3  # at least, that a budget must reach to have an optimum
QUANTITIES = ("loss", "features", "steps", "learning_rate")
REDRAWN = 1000
CHANCE = 0.99  # share of random directions that are no descendants
_BLOCK = 4096  # rows of a block of cosines


def operations(kind_k: int, features: int, width: int) -> float:
    """Multiplications and additions that an input of ``width`` d costs in training.

    With k active features 2 F d for the encoder and 8 k d for decoder and gradients; ``kind_k`` = 0: all dense, 10 F d.
    """
    return 2.0 * features * width + 8.0 * kind_k * width if kind_k else 10.0 * features * width


@dataclass(frozen=True)
class Frontier:
    """The best dictionary of every budget C (budget,): loss, features, steps.

    ``inside`` where the best size is neither the smallest nor the largest that reaches the budget.
    """

    compute: Array
    loss: Array
    features: Array
    steps: Array
    inside: NDArray[np.bool_]


@dataclass(frozen=True)
class Law:
    """prefactor x C^exponent, NaN where fewer than three budgets are known."""

    prefactor: float
    exponent: float


def lowest(x: Array, y: Array) -> tuple[float, float, bool]:
    """Where the parabola through the lowest point of y(x) and its neighbours has its minimum, its height, and True.

    At an end of the points: that point, and False. NaN are left out; without any point NaN.
    """
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if not len(x):
        return np.nan, np.nan, False
    i = int(y.argmin())
    if i in (0, len(x) - 1):
        return float(x[i]), float(y[i]), False
    left, right = x[i - 1] - x[i], x[i + 1] - x[i]
    slopes = (y[i - 1] - y[i]) / left, (y[i + 1] - y[i]) / right
    curvature = (slopes[1] - slopes[0]) / (right - left)
    slope = slopes[0] - curvature * left
    if curvature <= 0:  # three equal points
        return float(x[i]), float(y[i]), True
    at = -slope / (2 * curvature)
    return float(x[i] + at), float(y[i] + slope * at + curvature * at**2), True


def budgets(compute: Array) -> Array:
    """Budgets (budget,) that at least ``SIZES`` sizes reach, evenly spaced in log C, if any; of ``compute`` (size, steps)."""
    first, last = compute.min(axis=1), compute.max(axis=1)
    ends = np.unique([first, last])
    reaching = ((first <= ends[:, None]) & (ends[:, None] <= last)).sum(axis=1)
    enough = ends[reaching >= SIZES]
    return np.geomspace(enough[0], enough[-1], BUDGETS) if len(enough) > 1 else np.empty(0)


def frontier(sizes: Array, steps: Array, compute: Array, loss: Array, at: Array) -> Frontier:
    """The best size for the budgets ``at`` (budget,); ``compute`` and ``loss`` (size, steps), loss NaN where not computed."""
    found = []
    for budget in np.log(at):
        curve = [_interpolated(budget, np.log(c), np.log(y)) for c, y in zip(compute, loss, strict=True)]
        log_size, log_loss, inside = lowest(np.log(sizes), np.asarray(curve))
        each = np.exp(np.interp(log_size, np.log(sizes), np.log(compute[:, 0] / steps[0])))  # of a step
        found.append((np.exp(log_loss), np.exp(log_size), np.exp(budget) / each, inside))
    best, features, long, inside = np.asarray(found, np.float64).T
    return Frontier(at, best, features, long, inside > 0)


def _interpolated(at: float, x: Array, y: Array) -> float:
    """y(x) at a place between known points, NaN outside."""
    known = np.isfinite(y)
    if not known.any():
        return np.nan
    return float(np.interp(at, x[known], y[known], np.nan, np.nan))


def law(compute: Array, values: Array) -> Law:
    """Least squares of log values on log C."""
    known = np.isfinite(values) & (values > 0)
    if known.sum() < 3 or np.ptp(np.log(compute[known])) == 0:
        return Law(np.nan, np.nan)
    exponent, constant = np.polyfit(np.log(compute[known]), np.log(values[known]), 1)
    return Law(float(np.exp(constant)), float(exponent))


@dataclass(frozen=True)
class Scaling:
    """Frontier, laws by ``QUANTITIES``, and the ends of the intervals of both (NaN with a single seed).

    ``learning_rate`` (size, steps): the best one, parabola in its logarithm; NaN where it is at an end of those tried.
    """

    frontier: Frontier
    low: Frontier
    high: Frontier
    laws: dict[str, Law]
    exponents: dict[str, tuple[float, float]]
    learning_rate: Array


def scaling(
    sizes: Array, steps: Array, rates: Array, compute: Array, loss: Array, confidence: float = 0.95
) -> Scaling | None:
    """From the ``loss`` (size, steps, rate, seed) > 0 and ``compute`` (size, steps); None without a budget to compare at.

    The scatter of log loss between seeds is pooled over the grid; intervals are the middle ``confidence`` of redrawn means.
    """
    at = budgets(compute)
    if not len(at):
        return None
    logs = np.log(loss)
    mean = logs.mean(axis=-1)
    found = _once(sizes, steps, rates, compute, mean, at)
    n_seeds = loss.shape[-1]
    scatter = np.sqrt(np.nanmean(logs.var(axis=-1, ddof=1)) / n_seeds) if n_seeds > 1 else np.nan
    rng = np.random.default_rng(0)
    draws = [
        _once(sizes, steps, rates, compute, mean + scatter * rng.standard_normal(mean.shape), at)
        for _ in range(REDRAWN if np.isfinite(scatter) else 0)
    ]
    low, high = (_quantile([d[0] for d in draws], at, q) for q in _ends(confidence))
    exponents = {name: _interval([d[1][name].exponent for d in draws], confidence) for name in QUANTITIES}
    return Scaling(found[0], low, high, found[1], exponents, found[2])


def _once(
    sizes: Array, steps: Array, rates: Array, compute: Array, log_loss: Array, at: Array
) -> tuple[Frontier, dict[str, Law], Array]:
    best = frontier(sizes, steps, compute, np.exp(_best(log_loss)), at)
    rate = np.full(compute.shape, np.nan)
    for place in np.ndindex(compute.shape):
        log_rate, _, inside = lowest(np.log(rates), log_loss[place])
        rate[place] = np.exp(log_rate) if inside else np.nan
    laws = {
        name: law(at, np.where(best.inside, getattr(best, name), np.nan))
        for name in ("loss", "features", "steps")
    }
    return best, laws | {"learning_rate": law(compute.ravel(), rate.ravel())}, rate


def _best(log_loss: Array) -> Array:
    """The lowest over the learning rates, NaN where none is known."""
    return np.where(
        np.isnan(log_loss).all(axis=-1), np.nan, np.nanmin(np.nan_to_num(log_loss, nan=np.inf), axis=-1)
    )


def _ends(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    known = [value for value in values if np.isfinite(value)]
    if 2 * len(known) < REDRAWN:  # more often than not there was no law
        return np.nan, np.nan
    low, high = np.quantile(known, _ends(confidence))
    return float(low), float(high)


def _quantile(drawn: Sequence[Frontier], at: Array, q: float) -> Frontier:
    nothing = np.full(len(at), np.nan)
    if not drawn:
        return Frontier(at, nothing, nothing, nothing, np.zeros(len(at), bool))
    loss, features, steps = (
        np.quantile([getattr(d, name) for d in drawn], q, axis=0) for name in ("loss", "features", "steps")
    )
    return Frontier(at, loss, features, steps, np.all([d.inside for d in drawn], axis=0))


@dataclass(frozen=True)
class Descent:
    """From a smaller to a larger dictionary: the parent of every feature of the larger (F,), and its cosine (F,).

    ``threshold``: what a cosine must exceed. ``live`` (F,), and ``live_before`` of the smaller: the features that fire at all.
    """

    parent: NDArray[np.int64]
    cosine: Array
    threshold: float
    live: NDArray[np.bool_]
    live_before: NDArray[np.bool_]

    @property
    def descended(self) -> NDArray[np.bool_]:
        """Whether a live feature of the larger dictionary has a parent (F,)."""
        return self.live & (self.cosine > self.threshold)

    @property
    def children(self) -> NDArray[np.int64]:
        """Number of descendants of every feature of the smaller dictionary."""
        return np.bincount(self.parent[self.descended], minlength=len(self.live_before))

    @property
    def shares(self) -> dict[str, float]:
        """Of the smaller's live features: lost (no child), kept (one), split (several); of the larger's: new (no parent)."""
        children = self.children[self.live_before]
        return {
            "lost": float((children == 0).mean()),
            "kept": float((children == 1).mean()),
            "split": float((children > 1).mean()),
            "new": float(1 - self.descended[self.live].mean()),
        }


def descent(
    small: NDArray, large: NDArray, live_small: NDArray[np.bool_], live_large: NDArray[np.bool_]
) -> Descent | None:
    """Between decoders ``small`` (f, d) and ``large`` (F, d), with masks of live features; None where nothing lives."""
    if not live_small.any() or not live_large.any():
        return None
    before, after = _unit(small[live_small]), _unit(large[live_large])
    rows = (
        np.random.default_rng(0).standard_normal((_BLOCK, len(after))) @ after
    )  # of the covariance of the larger
    threshold = float(np.quantile(_nearest(_unit(rows), before)[1], CHANCE))
    parent, cosine = np.full(len(large), -1), np.full(len(large), np.nan)
    place, nearest = _nearest(after, before)
    parent[live_large], cosine[live_large] = np.flatnonzero(live_small)[place], nearest
    return Descent(parent, cosine, threshold, live_large, live_small)


def _unit(rows: NDArray) -> Array:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)


def _nearest(rows: Array, among: Array) -> tuple[NDArray[np.int64], Array]:
    """Index and cosine of the nearest of unit rows ``among`` for every unit row."""
    place, cosine = np.empty(len(rows), np.int64), np.empty(len(rows))
    for first in range(0, len(rows), _BLOCK):
        cosines = rows[first : first + _BLOCK] @ among.T
        best = cosines.argmax(axis=1)
        place[first : first + _BLOCK] = best
        cosine[first : first + _BLOCK] = cosines[np.arange(len(best)), best]
    return place, cosine
