"""Completeness: which products of spins near a token have a feature of their own, and what decides it.

Every function of a configuration is a sum of Walsh strings chi_S = prod_{i in S} sigma_i. Seen from a token, a string up to
some order over its nearest sites is a concept that the dictionary may or may not have: the correlation of the best feature with
it over tokens, chosen on the select and measured on the test chains, exceeds a threshold or does not. In language models the
chance of a feature is a sigmoid in the logarithm of the concept's frequency (Templeton et al. 2024, Scaling Monosemanticity);
here both

    frequency   how often the string has its rarer sign (1/2 for all odd strings of an even state)
    weight      |r| of the string, averaged over the tokens, with log|psi|: how much it matters to the state

are offered to the fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PREDICTORS = ("frequency", "weight")
_RIDGE = 1e-3  # on the slope of the sigmoid: finite where the strings with and without a feature are apart
_ROUNDS = 100


@dataclass(frozen=True)
class Moments:
    """Sums over rows of f (rows, F), chi (rows, S) and their products, in double precision; chi^2 = 1."""

    count: int
    f: Array
    square: Array
    chi: Array
    product: Array

    @classmethod
    def of(cls, blocks: Iterable[tuple[NDArray, NDArray]]) -> Moments:
        """From blocks (f, chi); a product of single precision rows is exact to 1e-5 of its spread."""
        count, sums = 0, [0.0, 0.0, 0.0, 0.0]
        for f, chi in blocks:
            own = (
                f.sum(axis=0, dtype=np.float64),
                np.einsum("nf,nf->f", f, f, dtype=np.float64),
                chi.sum(axis=0, dtype=np.float64),
                (f.T @ chi).astype(np.float64),
            )
            count, sums = count + len(f), [total + part for total, part in zip(sums, own, strict=True)]
        return cls(count, *map(np.asarray, sums))

    @property
    def correlation(self) -> Array:
        """r (F, S) over the rows, 0 where one of them does not vary."""
        mean, chi = self.f / self.count, self.chi / self.count
        spread = np.sqrt(np.maximum(self.square / self.count - mean**2, 0))
        other = np.sqrt(np.maximum(1 - chi**2, 0))
        small = spread <= 1e-6 * np.sqrt(self.square / self.count)
        scale = np.outer(spread, other)
        covariance = self.product / self.count - np.outer(mean, chi)
        known = (scale > 0) & ~small[:, None]
        return np.where(known, covariance / np.where(known, scale, 1), 0.0)


def rarer_share(mean: Array) -> Array:
    """How often a string of this mean has its rarer sign, same shape."""
    return (1 - np.abs(mean)) / 2


def best(select: Array, test: Array) -> tuple[NDArray[np.int64], Array]:
    """For every string the candidate with the largest |r| in ``select`` (F, S), and its r in ``test``."""
    chosen = np.abs(select).argmax(axis=0)
    return chosen, test[chosen, np.arange(test.shape[1])]


@dataclass(frozen=True)
class Sigmoid:
    """P(feature) = 1 / (1 + (x / half)^-slope) in a predictor x > 0, and the error of the slope; NaN without both kinds."""

    half: float
    slope: float
    slope_error: float


def sigmoid(x: Array, has: NDArray[np.bool_]) -> Sigmoid:
    """Maximum likelihood, logistic in log x, with a weak ridge on the slope; rows with x = 0 are left out."""
    known = np.isfinite(x) & (x > 0)
    x, y = np.log(x[known]), has[known].astype(np.float64)
    if not 0 < y.sum() < len(y) or np.ptp(x) == 0:
        return Sigmoid(np.nan, np.nan, np.nan)
    middle, spread = x.mean(), x.std()
    design = np.stack([np.ones(len(x)), (x - middle) / spread], axis=1)
    beta, ridge = np.zeros(2), np.diag([0.0, _RIDGE])
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -500, 500)))
        information = (design.T * (p * (1 - p))) @ design + ridge
        step = np.linalg.solve(information + 1e-12 * np.eye(2), design.T @ (y - p) - ridge @ beta)
        beta += step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-300))
        if np.abs(step).max() < 1e-10:
            break
    slope = beta[1] / spread
    error = float(np.sqrt(np.linalg.inv(information)[1, 1])) / spread
    half = float(np.exp(np.clip(middle - beta[0] / slope, -700, 700))) if slope else np.nan
    return Sigmoid(half, float(slope), error)
