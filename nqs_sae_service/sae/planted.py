"""Inputs whose true features are known, and how well a dictionary finds them.

    x = sum_i f_i d_i + noise,   d_i random unit vectors,   f_i = 0 but for a few i

The rates at which features fire are equal or fall like 1 / rank (Zipf); a feature may fire only together with its parent, or
more often together with its neighbours. Scores, after the one-to-one match of decoder rows with true directions that makes the
summed cosine largest (Hungarian method, Kuhn 1955):

    MCC    mean over the true features of the cosine with the matched row                (Sharkey et al. 2022)
    F1     mean over the true features of 2 P R / (P + R): P of the inputs on which the matched feature is active the true one
           is, R of those on which the true one is the matched one is
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .dictionary import Dictionary
from .training import unit_rows

BLOCK = 4096  # inputs
CHILD = 0.4  # how often a child fires when its parent does


@dataclass(frozen=True)
class Regime:
    """How the features of planted data fire.

    ``active``: true features per input, on average. ``zipf``: exponent of the rates. ``children``: features come in families of
    a parent, which fires twice as often, and so many children, which fire only with it (and then with probability 0.4).
    ``correlation``: of the Gaussians that decide which features of a group of four fire. ``noise``: standard deviation of
    every component of x; an active f_i is uniform on 0.5 ... 1.5.
    """

    features: int = 64
    width: int = 48
    active: float = 3.0
    zipf: float = 0.0
    children: int = 0
    correlation: float = 0.0
    noise: float = 0.02


REGIMES = {
    "easy": Regime(),
    "Zipf": Regime(zipf=1.0),
    "hierarchy": Regime(children=3),
    "correlated": Regime(correlation=0.7),
}


@dataclass(frozen=True)
class Planted:
    """Inputs x (n, d) float32, true directions (F, d) of length 1 and true features (n, F) >= 0."""

    x: np.ndarray
    directions: np.ndarray
    features: np.ndarray

    def part(self, rows: slice) -> Planted:
        """Some of the inputs."""
        return Planted(self.x[rows], self.directions, self.features[rows])


class Score(NamedTuple):
    """See the module."""

    mcc: float
    f1: float


def planted(regime: Regime, n: int, seed: int) -> Planted:
    """``n`` inputs of a regime; the same for the same seed."""
    generator = np.random.default_rng(seed)
    directions = unit_rows(generator, regime.features, regime.width)
    fires = _firing(regime, n, generator)
    features = np.where(fires, generator.uniform(0.5, 1.5, fires.shape), 0).astype(np.float32)
    noise = regime.noise * generator.standard_normal((n, regime.width))
    return Planted((features @ directions + noise).astype(np.float32), directions, features)


def _firing(regime: Regime, n: int, generator: np.random.Generator) -> np.ndarray:
    """Which features fire, (n, F) bool."""
    from scipy.special import ndtr

    rates = (1.0 + np.arange(regime.features)) ** -regime.zipf
    rates = np.minimum(rates * regime.active / rates.sum(), 0.5)
    groups = -(-regime.features // 4)
    common = np.repeat(generator.standard_normal((n, groups)), 4, axis=1)[:, : regime.features]
    own, rho = generator.standard_normal((n, regime.features)), regime.correlation
    fires = ndtr(np.sqrt(rho) * common + np.sqrt(1 - rho) * own) < rates
    if regime.children:
        family = 1 + regime.children  # a parent and its children are neighbours
        parents = np.arange(regime.features) // family * family
        is_child = parents != np.arange(regime.features)
        often = generator.random((n, regime.features)) < np.where(is_child, CHILD, np.minimum(2 * rates, 1))
        fires = often & (often[:, parents] | ~is_child)
    return fires


def score(dictionary: Dictionary, truth: Planted) -> Score:
    """How well a dictionary finds the true features; those without a partner count as 0."""
    from scipy.optimize import linear_sum_assignment

    lengths = np.linalg.norm(dictionary.decoder, axis=1, keepdims=True)
    cosine = truth.directions @ (dictionary.decoder / np.where(lengths > 0, lengths, 1)).T
    own, found = linear_sum_assignment(cosine, maximize=True)
    both, true, claimed = (np.zeros(len(own)) for _ in range(3))
    for first in range(0, len(truth.x), BLOCK):
        rows = slice(first, first + BLOCK)
        fires, active = truth.features[rows][:, own] > 0, dictionary.encode(truth.x[rows])[:, found] > 0
        both += (fires & active).sum(axis=0)
        true += fires.sum(axis=0)
        claimed += active.sum(axis=0)
    f1 = 2 * both / np.maximum(true + claimed, 1)
    n = len(truth.directions)
    return Score(float(cosine[own, found].sum()) / n, float(f1.sum()) / n)
