"""The headline: by how much does the best feature beat the best control, and could that be chance?

    gain = |r(feature, O)| - max over controls |r(control, O)|        on the test chains

Feature and controls were chosen on other chains, so the choice adds no bias. Its interval comes from a paired
bootstrap: one resampling of the chains for the feature and all controls, the maximum over the controls taken
anew in every replica (see ``correlation`` for what is made of the replicas). The interval covers the choice of
samples, not the choice of the network: one that learned nothing still beats n untrained ones with probability
1 / (n + 1), whatever its interval says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .correlation import (
    FEWEST_CHAINS,
    Array,
    correlation_interval,
    effective_chains,
    leave_one_out,
    pearson,
    resampled_pearson,
    student_interval,
)


@dataclass(frozen=True)
class Gain:
    """Best feature beside K controls for O observables on test chains; intervals are NaN if too few chains carry a series."""

    feature: Array  # (O,) signed r of the best feature
    control: Array  # (K, O) signed r of every control
    control_low: Array
    control_high: Array
    value: Array  # (O,)
    low: Array
    high: Array


def gain_over_controls(
    feature: ArrayLike, controls: ArrayLike, o: ArrayLike, counts: Array, confidence: float
) -> Gain:
    """Gain of the best feature of every observable over its controls.

    feature (chain, draw, O), controls (K, chain, draw, O): the series chosen for every observable; o (chain,
    draw, O); counts (replica, chain). NaN for an observable that is constant.
    """
    o = np.asarray(o)
    series = np.concatenate([np.asarray(feature)[None], np.asarray(controls)])
    r, low, high = (np.empty((len(series), o.shape[-1])) for _ in range(3))
    gain_low, gain_high = np.empty(o.shape[-1]), np.empty(o.shape[-1])
    left_out = leave_one_out(len(o))
    for i in range(o.shape[-1]):
        candidates, target = np.moveaxis(series[..., i], 0, -1), o[..., [i]]
        r[:, i] = pearson(candidates, target)[:, 0]
        replicas, others = (resampled_pearson(candidates, target, c)[:, :, 0] for c in (counts, left_out))
        ends = correlation_interval(r[:, i], replicas, others, confidence)
        of_gain = student_interval(_gain(r[:, i]), _gain(replicas), _gain(others), confidence)
        carried = np.minimum(effective_chains(candidates), effective_chains(target)) >= FEWEST_CHAINS
        strongest = 1 + np.argmax(np.abs(r[1:, i]))
        low[:, i], high[:, i] = np.where(carried, ends, np.nan)
        gain_low[i], gain_high[i] = np.where(carried[0] & carried[strongest], of_gain, np.nan)
    return Gain(r[0], r[1:], low[1:], high[1:], _gain(r.T), gain_low, gain_high)


def _gain(r: Array) -> Array:
    """|r| of column 0 minus the largest |r| of the other columns. (..., 1 + K) -> (...)."""
    size = np.abs(r)
    return size[..., 0] - size[..., 1:].max(axis=-1)
