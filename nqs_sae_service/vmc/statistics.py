"""Error bars of Markov chains. Arrays are (chain, draw, ...): trailing axes hold different quantities.

Successive draws of a chain are correlated, so the naive error sigma/sqrt(n) is too small. Chains are
independent of each other: the scatter of the chain means is an honest error (batch means, a chain being a
batch),

    mean = (1/C) sum_c x_c,    error^2 = (1/C) (1/(C - 1)) sum_c (x_c - mean)^2.

With fewer than 16 chains each is cut into stretches, which are taken as independent (they must be longer than
tau). Convergence: split R-hat (Gelman et al., Bayesian Data Analysis, 3rd ed., eq. 11.4; Vehtari et al.,
Bayesian Anal. 16, 667 (2021), eqs. 1-4).
"""

from __future__ import annotations

import numpy as np

_BATCHES = 16


def mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over chains and draws, and its standard error: (chain, draw, ...) -> two arrays (...).

    One single draw has no error: NaN.
    """
    mean = values.mean(axis=(0, 1))
    return mean, _error_of_mean(_batches(values - mean).mean(axis=1))


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Self-normalised importance sampling, <x> = sum w x / sum w, and its standard error.

    ``values`` (chain, draw, ...), ``weights`` (chain, draw) >= 0 of any scale. The error is that of a ratio
    estimator over chains, linearised: the scatter of r_c = (sum_d w (x - <x>))_c / mean_c (sum_d w)_c (Owen,
    Monte Carlo theory, methods and examples, 2013, section 9.2). It holds while the effective sample size is
    large. Raises ValueError when all weights vanish.
    """
    total = weights.sum()
    if not total > 0:
        raise ValueError("the importance weights vanish or are not finite")
    share = append_axes(weights * (weights.size / total), values)
    mean = (share * values).mean(axis=(0, 1))
    return mean, _error_of_mean(_batches(share * (values - mean)).mean(axis=1))


def covariance(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Re Cov(x, y) = Re <conj(x - <x>) (y - <y>)> over all draws, and its standard error over chains.

    ``x``, ``y`` (chain, draw, ...), real or complex, broadcast against each other; ``weights`` (chain, draw)
    reweight.
    """
    weights = np.ones(x.shape[:2]) if weights is None else weights
    dx, dy = x - weighted_mean(x, weights)[0], y - weighted_mean(y, weights)[0]
    return weighted_mean(np.real(np.conj(dx) * dy), weights)


def effective_sample_size(weights: np.ndarray) -> float:
    """(sum w)^2 / sum w^2 of importance weights of any shape and scale (Kish): between 1 and their number.

    It does not know of autocorrelation: divide by tau for that.
    """
    scaled = weights / np.max(weights)
    return float(scaled.sum() ** 2 / np.sum(scaled**2))


def split_r_hat(values: np.ndarray) -> np.ndarray:
    """Split R-hat, (chain, draw, ...) -> (...): 1 when all half-chains agree, larger when they do not.

    Every chain is cut into halves (the first draw is left out when the number is odd). With fewer than 4
    draws it is undefined: NaN. Values that never vary give 1; half-chains stuck at different values give inf.
    """
    half = values.shape[1] // 2
    if half < 2:
        return np.full(values.shape[2:], np.nan)
    halves = np.concatenate([values[:, -2 * half : -half], values[:, -half:]])
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    rounding = _rounding_variance(values)
    stuck = within <= rounding
    ratio = (half - 1) / half + between / np.where(stuck, 1.0, within)
    return np.sqrt(np.where(stuck, np.where(between <= rounding, 1.0, np.inf), ratio))


def autocorrelation_time(values: np.ndarray) -> np.ndarray:
    """Integrated autocorrelation time in draws, tau = 1 + 2 sum_{t >= 1} rho(t), (chain, draw, ...) -> (...).

    1 for independent draws; the effective number of draws is n / tau. rho is averaged over chains about the
    common mean. The sum runs over pairs rho(2t) + rho(2t + 1), which are positive for a reversible chain, and
    stops before the first that is not (Geyer, Stat. Sci. 7, 473 (1992), section 3.3). Where chains are shorter
    than the correlations the value is a lower bound.
    """
    n_draws = values.shape[1]
    spectrum = np.fft.rfft(values - values.mean(axis=(0, 1)), n=2 * n_draws, axis=1)
    lagged = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * n_draws, axis=1)[:, :n_draws].mean(axis=0)
    lagged /= append_axes(np.arange(n_draws, 0, -1), lagged)
    varies = lagged[0] > _rounding_variance(values)
    rho = lagged / np.where(varies, lagged[0], 1.0)
    pairs = np.add.reduceat(rho, np.arange(0, n_draws, 2), axis=0)
    positive = np.logical_and.accumulate(pairs > 0, axis=0)
    tau = 2 * np.sum(pairs, axis=0, where=positive) - 1
    return np.where(varies, np.maximum(tau, 1 / n_draws), 1.0)


def v_score(energy: float, variance: float, n_sites: int, energy_at_infinity: float = 0.0) -> float:
    """V-score N Var(H) / (E - E_inf)^2 of the total energy: 0 for an eigenstate.

    ``energy_at_infinity`` is the energy at infinite temperature, tr H / 2^N: 0 for traceless spin
    Hamiltonians. Wu et al., Science 386, 296 (2024).
    """
    return n_sites * variance / (energy - energy_at_infinity) ** 2


def _batches(values: np.ndarray) -> np.ndarray:
    """(chain, draw, ...) -> (batch, draw in batch, ...): a batch is a chain, or a piece of one.

    Leading draws that do not fill a stretch are left out.
    """
    n_chains, n_draws = values.shape[:2]
    pieces = min(n_draws, -(-_BATCHES // n_chains))
    length = n_draws // pieces
    kept = values[:, n_draws - pieces * length :]
    return kept.reshape(n_chains * pieces, length, *values.shape[2:])


def _error_of_mean(batch_means: np.ndarray) -> np.ndarray:
    n = len(batch_means)
    if n < 2:
        return np.full(batch_means.shape[1:], np.nan)
    return np.sqrt(np.var(batch_means, axis=0, ddof=1) / n)


def _rounding_variance(values: np.ndarray) -> np.ndarray:
    """Below this variance (...) the values (chain, draw, ...) differ by rounding only."""
    return (1e-14 * np.abs(values).max(axis=(0, 1))) ** 2


def append_axes(array: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Append axes of length one, so that ``array`` broadcasts against ``target`` along its leading axes."""
    return array.reshape(array.shape + (1,) * (target.ndim - array.ndim))
