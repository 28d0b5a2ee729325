"""What a feature has to beat: correlations that need no dictionary, no training, or no feature at all.

Many observables are simple functions of the input, and anything that reads the input correlates with them.
Every control offers candidate series, and is treated exactly as the features are: its best candidate is
chosen by |r| on the select chains and measured on the test chains.

    neuron             every component of the layer, mean over the tokens
    pca                principal components of the rows on the train chains, mean over the tokens
    raw_spins          ridge regression of the observable on sigma, fitted on the train chains
    random_direction   as many random unit vectors d as features: token mean of ReLU((x - mean) . d)
    shuffled           the features against the observable of another chain: what selection alone yields
    untrained          the same dictionary pipeline on networks that were never trained; of several
                       initialisations the one with the largest |r| on the test chains (not the mean:
                       a gain must hold against each of them)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .correlation import pearson
from .series import Average, RowMoments

CONTROLS = ("untrained", "neuron", "pca", "raw_spins", "random_direction", "shuffled")


def best_candidate(f: ArrayLike, o: ArrayLike) -> NDArray[np.int64]:
    """Candidate with the largest |r| for every observable (O,); -1 where it or every candidate is constant.

    f (chain, draw, K) and o (chain, draw, O) on the select chains.
    """
    return strongest(pearson(f, o))


def strongest(r: ArrayLike) -> NDArray[np.int64]:
    """Candidate with the largest |r| (candidate, O) for every observable (O,); -1 where all are 0 or undefined."""
    strength = np.nan_to_num(np.abs(r), nan=0.0)
    return np.where(strength.max(axis=0) > 0.0, strength.argmax(axis=0), -1)


def of_chosen(r: ArrayLike, best: NDArray[np.int64]) -> NDArray[np.float64]:
    """r (..., candidate, O) of every observable's chosen candidate, (..., O); 0, or NaN where undefined, if there is none."""
    of_best = np.asarray(r)[..., np.maximum(best, 0), np.arange(len(best))]
    return np.where(best < 0, 0.0 * of_best, of_best)


def chosen(f: ArrayLike, best: Sequence[int] | NDArray[np.int64]) -> NDArray:
    """Series (chain, draw, O) of the chosen candidate of every observable; zeros where none was chosen."""
    return np.where(np.asarray(best) >= 0, np.asarray(f)[..., np.asarray(best)], 0.0)


def principal_directions(moments: RowMoments) -> NDArray[np.float64]:
    """All principal directions as rows (width, width), largest variance first."""
    return np.linalg.eigh(moments.covariance)[1][:, ::-1].T


def linear_average(directions: NDArray, origin: NDArray) -> Average:
    """x (sample, row, width) -> the mean over rows of (x - origin) . d for every direction d (K, width)."""
    return lambda x: (x.mean(axis=1, dtype=np.float64) - origin) @ directions.T


def random_average(width: int, features: int, origin: NDArray, rng: np.random.Generator) -> Average:
    """x (sample, row, width) -> the mean over rows of ReLU((x - origin) . d), d random unit vectors."""
    directions = rng.standard_normal((features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    d, centre = directions.T.astype(np.float32), origin.astype(np.float32)
    return lambda x: np.maximum((x - centre) @ d, 0.0).mean(axis=1)


def spin_regression(moments: RowMoments, n_sites: int) -> Average:
    """Ridge regression of the observables on the spins, as x (sample, 1, n_sites) -> prediction (sample, O).

    ``moments`` of the joint rows (sigma, O) on the train chains. The penalty counts as much as one sample, so
    that it is invisible with many samples and the solution is unique with few.
    """
    spins, cross = moments.covariance[:n_sites, :n_sites], moments.covariance[:n_sites, n_sites:]
    weights = np.linalg.solve(spins + np.eye(n_sites) / moments.count, cross)
    return linear_average(weights.T, moments.mean[:n_sites])


def other_chain(n_chains: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """For every chain another one (chain,): a random single cycle, so that none is paired with itself."""
    order = rng.permutation(n_chains)
    partner = np.empty(n_chains, np.int64)
    partner[order] = np.roll(order, 1)
    return partner
