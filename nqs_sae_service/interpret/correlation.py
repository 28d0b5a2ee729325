"""How strongly does a feature follow an observable, and how sure can one be?

The feature f and the observable O are known on Born samples that come from independent Markov chains. Samples
within a chain are correlated, so the chain, not the sample, is the unit of every statement about uncertainty:

    r = Cov(f, O) / sqrt(Var f  Var O)                      over all samples of the test chains
    interval: tanh(atanh r +- t s), s from resampling whole chains with replacement
                                                            (bootstrap, Efron & Tibshirani 1993, ch. 12; Fisher's z)
    p-value:  give each chain of f the O of another chain,  p = (1 + #{|r_perm| >= |r|}) / (1 + P)
              which keeps both autocorrelations and breaks only the pairing (Phipson & Smyth 2010, eq. 2)
    q-value:  Benjamini & Hochberg 1995 over features x observables

A bootstrap replica weights the chains with multinomial counts, and r of the replica follows from per-chain
sums alone. The same counts serve every feature and every control, so that differences are paired. A
permutation leaves Var f and Var O as they are, so that all permutations of a block are one matrix product.

The factor t is Student's with as many degrees of freedom as s is worth. s^2 sums the squared influences u_c of the chains (of
leaving one out), and its own relative variance is (kurtosis of u - 1) / C over C chains: that of 2 C / (kurtosis - 1) degrees
of freedom (Satterthwaite 1946), nearly C for influences like a Gaussian's, few where few chains decide. Where a series varies
in fewer than three chains, (sum v_c)^2 / sum v_c^2 with v_c their shares of its variance, there is no telling what other chains
would say, and the interval is NaN. ``benchmarks/intervals.py`` measures what all that covers.

The partial correlation beyond some functions of the input is the r of what their least-squares fits leave of f and of O.

Corner cases: a feature that is constant on the given samples (dead, or no more than rounding) has r = 0 and p
= 1, and is no test in the count of q; an observable that is constant or not finite has NaN throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, rankdata
from scipy.stats import t as student

Array = NDArray[np.float64]

BLOCK = 2**22  # elements of a temporary (32 MiB): fixed, because block shapes can touch the last bit
EXPLAINED = 1e-6  # of its standard deviation: a rest below that is rounding (f is float32)
TIE = 1e-12  # permutations whose |r| equals the measured one but for rounding count as at least as large
FEWEST_CHAINS = 3  # that must carry a series, or it has no intervals
LARGEST = 1 - 2**-40  # |r| whose Fisher z is still taken
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
    """Interval (low, high), each (F, O), of the Pearson correlation, resampling whole chains; NaN where too few carry it."""
    f, o = np.asarray(f), np.asarray(o)
    low, high = (np.empty((f.shape[-1], o.shape[-1])) for _ in range(2))
    left_out, known = leave_one_out(len(o)), effective_chains(o) >= FEWEST_CHAINS
    for block in _blocks(f.shape[-1], max(o.shape[0] * o.shape[1], len(counts) * o.shape[-1])):
        part = f[..., block]
        ends = correlation_interval(
            pearson(part, o),
            resampled_pearson(part, o, counts),
            resampled_pearson(part, o, left_out),
            confidence,
        )
        carried = (effective_chains(part) >= FEWEST_CHAINS)[:, None] & known
        low[block], high[block] = np.where(carried, ends, np.nan)
        tick()
    return low, high


def effective_chains(x: ArrayLike) -> Array:
    """How many chains carry the variance of the columns of x (chain, draw, K): (sum v)^2 / sum v^2. Infinite where constant."""
    v = np.mean(standardised(x) ** 2, axis=1)
    total = np.sum(v**2, axis=0)
    return np.divide(v.sum(axis=0) ** 2, total, out=np.full(len(total), np.inf), where=total > 0)


def leave_one_out(n_chains: int) -> Array:
    """``chain_counts`` that leave one chain out in turn (chain, chain)."""
    return 1.0 - np.eye(n_chains)


def correlation_interval(
    r: Array, replicas: Array, left_out: Array, confidence: float
) -> tuple[Array, Array]:
    """``student_interval`` of correlations on the scale of Fisher's z, where their distribution is close to a normal one."""
    z, resampled, others = (np.arctanh(np.clip(x, -LARGEST, LARGEST)) for x in (r, replicas, left_out))
    low, high = (np.tanh(end) for end in student_interval(z, resampled, others, confidence))
    return np.minimum(low, r), np.maximum(high, r)


def student_interval(
    value: Array, replicas: Array, left_out: Array, confidence: float
) -> tuple[Array, Array]:
    """Ends of value (...) -+ t s, from its bootstrap ``replicas`` (replica, ...) and those of ``leave_one_out`` (chain, ...).

    s is the standard deviation of the replicas, times sqrt(C / (C - 1)) for C chains; t has 2 C / (kurtosis - 1) degrees of
    freedom, at least 1 and at most C - 1.
    """
    n_chains = len(left_out)
    influence = left_out - left_out.mean(axis=0)
    second, fourth = np.mean(influence**2, axis=0), np.mean(influence**4, axis=0)
    excess = np.divide(fourth, second**2, out=np.full_like(second, 3.0), where=second**2 > 0) - 1.0
    freedom = np.clip(2.0 * n_chains / np.maximum(excess, TIE), 1.0, max(1.0, n_chains - 1.0))
    error = replicas.std(axis=0, ddof=1) * np.sqrt(n_chains / (n_chains - 1.0))
    reach = student.ppf((1.0 + confidence) / 2.0, freedom) * error
    return value - reach, value + reach


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
