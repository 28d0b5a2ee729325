"""How strongly does a feature follow an observable, and how sure can one be?

The feature f and the observable O are known on Born samples that come from independent Markov chains. Samples
within a chain are correlated, so the chain, not the sample, is the unit of every statement about uncertainty:

    r = Cov(f, O) / sqrt(Var f  Var O)                      over all samples of the test chains
    interval: resample whole chains with replacement        (percentile bootstrap, Efron & Tibshirani, ch. 13)
    p-value:  give each chain of f the O of another chain,  p = (1 + #{|r_perm| >= |r|}) / (1 + P)
              which keeps both autocorrelations and breaks only the pairing (Phipson & Smyth 2010, eq. 2)
    q-value:  Benjamini & Hochberg 1995 over features x observables

A bootstrap replica weights the chains with multinomial counts, and r of the replica follows from per-chain
sums alone. The same counts serve every feature and every control, so that differences are paired. A
permutation leaves Var f and Var O as they are, so that all permutations of a block are one matrix product.

The partial correlation beyond some functions of the input is the r of what their least-squares fits leave of f and of O.

Corner cases: a feature that is constant on the given samples (dead, or no more than rounding) has r = 0 and p
= 1, and is no test in the count of q; an observable that is constant or not finite has NaN throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, rankdata

Array = NDArray[np.float64]

BLOCK = 2**22  # elements of a temporary (32 MiB): fixed, because block shapes can touch the last bit
EXPLAINED = 1e-6  # of its standard deviation: a rest below that is rounding (f is float32)
TIE = 1e-12  # permutations whose |r| equals the measured one but for rounding count as at least as large
ROUNDING = 4  # a deviation below this many eps of the given type is rounding of a constant


def varies(x: ArrayLike) -> NDArray[np.bool_]:
    """Which columns of x (chain, draw, K) are finite and vary by more than the rounding of x's type. (K,)."""
    x = np.asarray(x)
    eps = np.finfo(x.dtype if np.issubdtype(x.dtype, np.floating) else np.float64).eps
    with np.errstate(invalid="ignore"):
        size = np.abs(x).max(axis=(0, 1), initial=0.0)
        deviation = x.astype(np.float64).std(axis=(0, 1))
        return np.isfinite(size) & (deviation > ROUNDING * eps * size)


def standardised(x: ArrayLike) -> Array:
    """Columns of x (chain, draw, K) with zero mean and unit variance, in float64; zeros where constant."""
    x = np.asarray(x)
    alive = varies(x)
    out = np.where(alive, x, 0.0).astype(np.float64)
    out -= out.mean(axis=(0, 1))
    out /= np.where(alive, np.sqrt(np.mean(out**2, axis=(0, 1))), 1.0)
    return out


def pearson(f: ArrayLike, o: ArrayLike) -> Array:
    """Pearson correlation (F, O) over all samples of f (chain, draw, F) with o (chain, draw, O)."""
    f, o = np.asarray(f), np.asarray(o)
    targets = standardised(o).reshape(-1, o.shape[-1])
    r = np.empty((f.shape[-1], o.shape[-1]))
    for block in _blocks(f.shape[-1], len(targets)):
        r[block] = standardised(f[..., block]).reshape(len(targets), -1).T @ targets / len(targets)
    return np.clip(r, -1.0, 1.0) * _defined(o)


def spearman(f: ArrayLike, o: ArrayLike, tick: Callable[[], object] = lambda: None) -> Array:
    """Spearman correlation: the Pearson correlation of the average ranks. Shapes as in ``pearson``."""
    f, o = np.asarray(f), np.asarray(o)
    targets = _ranks(o)
    r = np.empty((f.shape[-1], o.shape[-1]))
    for block in _blocks(f.shape[-1], o.shape[0] * o.shape[1]):
        ranks = _ranks(f[..., block]) * varies(f[..., block])
        r[block] = pearson(ranks, targets)
        tick()
    return r * _defined(o)


def beyond(x: ArrayLike, design: ArrayLike) -> Array:
    """What the least-squares fit of the functions ``design`` (chain, draw, P) leaves of x (chain, draw, K), same shape.

    Zeros where that is no more than rounding. The design should contain a constant.
    """
    x, design = np.asarray(x), np.asarray(design, np.float64)
    d = np.linalg.qr(design.reshape(-1, design.shape[-1]) / np.abs(design).max(axis=(0, 1)).clip(min=1e-300))[
        0
    ]
    flat = x.reshape(len(d), -1)
    rest = np.empty(flat.shape)
    for block in _blocks(flat.shape[1], len(d)):
        part = flat[:, block].astype(np.float64)
        part -= part.mean(axis=0)
        left = part - d @ (d.T @ part)
        rest[:, block] = left * (left.std(axis=0) > EXPLAINED * part.std(axis=0))
    return rest.reshape(x.shape)


def chain_counts(n_chains: int, n_replicas: int, rng: np.random.Generator) -> Array:
    """How often each chain is drawn in each bootstrap replica (replica, chain); rows sum to ``n_chains``."""
    return rng.multinomial(n_chains, np.full(n_chains, 1.0 / n_chains), size=n_replicas).astype(np.float64)


def chain_permutations(n_chains: int, n_permutations: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Independent uniform permutations of the chains (permutation, chain)."""
    return rng.permuted(np.tile(np.arange(n_chains), (n_permutations, 1)), axis=1)


def resampled_pearson(f: ArrayLike, o: ArrayLike, counts: Array) -> Array:
    """Pearson correlation in every bootstrap replica of the chains.

    f (chain, draw, F), o (chain, draw, O), counts (replica, chain) of ``chain_counts`` -> (replica, F, O). A
    feature or observable that happens to be constant in a replica has r = 0 there.
    """
    weights = counts / counts.sum(axis=1, keepdims=True)
    f_hat, o_hat = standardised(f), standardised(o)
    mean_f, var_f = _replica_moments(f_hat, weights)
    mean_o, var_o = _replica_moments(o_hat, weights)
    product = np.matmul(f_hat.transpose(0, 2, 1), o_hat) / f_hat.shape[1]  # per chain: (chain, F, O)
    r = np.tensordot(weights, product, axes=1) - mean_f[:, :, None] * mean_o[:, None, :]
    scale = np.sqrt(var_f[:, :, None] * var_o[:, None, :])
    r = np.divide(r, scale, out=np.zeros_like(r), where=scale > TIE)
    return np.clip(r, -1.0, 1.0) * _defined(o)


def bootstrap_interval(
    f: ArrayLike, o: ArrayLike, counts: Array, confidence: float, tick: Callable[[], object] = lambda: None
) -> tuple[Array, Array]:
    """Percentile interval (low, high), each (F, O), of the Pearson correlation, resampling whole chains."""
    f, o = np.asarray(f), np.asarray(o)
    low, high = (np.empty((f.shape[-1], o.shape[-1])) for _ in range(2))
    for block in _blocks(f.shape[-1], max(o.shape[0] * o.shape[1], len(counts) * o.shape[-1])):
        low[block], high[block] = percentiles(resampled_pearson(f[..., block], o, counts), confidence)
        tick()
    return low, high


def percentiles(replicas: Array, confidence: float) -> tuple[Array, Array]:
    """Ends of the central interval that holds the share ``confidence`` of the replicas (axis 0)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicas, [tail, 1.0 - tail], axis=0)
    return low, high


def permutation_p_values(
    f: ArrayLike, o: ArrayLike, permutations: NDArray[np.int64], tick: Callable[[], object] = lambda: None
) -> Array:
    """Two-sided p-values of r from permutations of whole chains of the observables.

    f (chain, draw, F), o (chain, draw, O), permutations (P, chain) -> (F, O), never below 1 / (1 + P). Draws
    keep their place, so that a common drift along the chains does not count as a correlation between them.
    """
    f, o = np.asarray(f), np.asarray(o)
    n_samples, n_observables = o.shape[0] * o.shape[1], o.shape[-1]
    targets = np.ascontiguousarray(standardised(o).transpose(2, 0, 1))  # (O, chain, draw)
    at_least = np.zeros((f.shape[-1], n_observables))
    for block in _blocks(f.shape[-1], n_samples):
        features = standardised(f[..., block]).reshape(n_samples, -1)
        measured = np.abs(targets.reshape(n_observables, -1) @ features) / n_samples - TIE
        for some in _blocks(len(permutations), max(n_samples, features.shape[1]) * n_observables):
            shuffled = targets[:, permutations[some]].reshape(-1, n_samples)  # (O * some, sample)
            r = np.abs(shuffled @ features).reshape(n_observables, -1, features.shape[1]) / n_samples
            at_least[block] += np.sum(r >= measured[:, None], axis=1).T
            tick()
    return (1.0 + at_least) / (1.0 + len(permutations)) * _defined(o)


def q_values(p: Array, alive: NDArray[np.bool_]) -> Array:
    """Benjamini-Hochberg q-values of p (F, O) over features and observables; ``alive`` (F,) marks the tests.

    A dead feature cannot be found whatever the observable, so it is left out of the count and has q = 1. NaN
    stays NaN.
    """
    q = np.where(np.isnan(p), np.nan, 1.0)
    tested = alive[:, None] & ~np.isnan(p)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q


def _replica_moments(x: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and variance of the columns of x (chain, draw, K) in every replica, each (replica, K)."""
    mean = weights @ x.mean(axis=1)
    return mean, np.maximum(weights @ np.mean(x**2, axis=1) - mean**2, 0.0)


def _ranks(x: NDArray) -> Array:
    """Average ranks of the columns of x (chain, draw, K) over all samples, same shape."""
    return rankdata(x.reshape(-1, x.shape[-1]), axis=0).reshape(x.shape)


def _defined(o: ArrayLike) -> Array:
    """1 for observables that vary, NaN for those with which nothing can be correlated. (O,)."""
    return np.where(varies(o), 1.0, np.nan)


def _blocks(total: int, row: int) -> Iterator[slice]:
    """Slices of ``range(total)`` such that a block times ``row`` elements stays near ``BLOCK``."""
    size = max(1, BLOCK // max(row, 1))
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
