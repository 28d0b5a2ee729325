"""What every feature of a dictionary does to the state, from one backward pass per sample: an atlas of slopes.

A feature is scaled by adding (scale - 1) f_i d_i to every token of a layer. The chain rule gives

    g_i(sigma) = d log psi(sigma) / d scale_i = sum_t f_ti  d_i . d log psi / d x_t                 (all i at once)

and with g_i every first derivative at scale 1, for features nobody has turned yet:

    slope         d<O> / d scale_i = 2 Re Cov(g_i, O_loc),  Cov(a, b) = <(a - <a>)* (b - <b>)>    (O itself where diagonal)
    energy force  d<H> / d scale_i, the same with E_loc
    metric        Var(g_i) = <|g_i|^2> - |<g_i>|^2: the infidelity with psi grows as metric (scale - 1)^2
    leverage      slope / sqrt(metric): how far O moves for a given disturbance of the state

Local estimators are differentiated too, d O_loc / d scale_i = sum_s' O_ss' psi(s')/psi(s) (g_i(s') - g_i(s)). With the
activation f_ti measured from a baseline b, and at any point of the straight path on which all features go together from b to
their values, the same sums are gradient and integrated-gradient attribution (``attribution.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import namespace, to_host
from ..physics.operators import Operator
from ..sae.dictionary import BLOCK_ELEMENTS, Dictionary
from ..states import Wavefunction
from ..states.primitives import times_real
from ..vmc.statistics import covariance

Array = Any
Tangents = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
_COVARIANCES = 2**22  # products held at once


def no_tick() -> None:
    """Nobody wants to know about progress."""


@dataclass(frozen=True, eq=False)
class DecodedLayer:
    """A layer and its dictionary, both where psi is. The dictionary sees rows: every token or, when ``pooled``, their mean."""

    layer: str
    dictionary: Dictionary
    pooled: bool

    def rows(self, x: Array) -> Array:
        """What the dictionary sees (n, row, width) of activations x (n, token, width)."""
        return namespace(x).ascontiguousarray(x.mean(axis=1, keepdims=True) if self.pooled else x)

    def activations(self, x: Array, chosen: np.ndarray | None = None) -> Array:
        """f (n, row, feature) of x (n, token, width), of all features or some."""
        rows = self.rows(x)
        return self.dictionary.encode(rows) if chosen is None else self.dictionary.some(rows, chosen)

    def decoded(self, f: Array) -> Array:
        """sum_i f_i d_i (n, row, width) of all features, without the bias."""
        return f @ self.dictionary.decoder

    def along(self, gradient: Array, chosen: np.ndarray | None = None) -> Array:
        """d_i . gradient (n, row, feature) of a gradient (n, token, width); where pooled every token gets the same push."""
        decoder = self.dictionary.decoder if chosen is None else self.dictionary.decoder[chosen]
        rows = gradient.sum(axis=1, keepdims=True) if self.pooled else gradient
        return times_real(rows, decoder.T)


def tangents(
    psi: Wavefunction,
    at: DecodedLayer,
    sigma: Array,
    baseline: Array | float = 0.0,
    part: float = 1.0,
    chosen: np.ndarray | None = None,
    tick: Callable[[], None] = no_tick,
) -> tuple[np.ndarray, np.ndarray]:
    """log psi (n,) and sum_t (f_ti - b_ti) d_i . d log psi / d x_t (n, feature), on the host, complex if psi is.

    With baseline 0 the second is g_i of every feature, or of those ``chosen``. ``baseline`` (row or 1, feature) of all
    features. With ``part`` < 1 both are taken where all features are at b + part (f - b) instead of f: x - (1 - part) sum_i
    (f_i - b_i) d_i. One backward pass for a block of configurations (n, n_sites); of a projected state over all copies.
    """
    copies = psi.state.n_copies
    row_elements = copies * psi.state.n_tokens * at.dictionary.n_features
    size = max(1, min(psi.pass_rows(len(sigma)), BLOCK_ELEMENTS // row_elements))
    logs, pushed = [], []
    for start in range(0, len(sigma), size):
        tick()
        log_psi, block = _of_block(psi, at, sigma[start : start + size], baseline, part, chosen)
        logs.append(to_host(log_psi))
        pushed.append(to_host(block.reshape(-1, copies, block.shape[-1]).sum(axis=1)))
    return np.concatenate(logs), np.concatenate(pushed)


def _of_block(psi, at, sigma, baseline, part, chosen):
    """log psi (n,) and the sums over tokens (n copies, feature): the shares of copies are in the gradient."""
    kept: dict[str, Array] = {}

    def edit(x: Array) -> Array:
        if part == 1.0 and chosen is not None:
            column = baseline if isinstance(baseline, float) else baseline[:, chosen]
            kept["f"] = at.activations(x, chosen) - column
            return x
        f = at.activations(x) - baseline
        kept["f"] = f if chosen is None else f[..., chosen]
        return x if part == 1.0 else x - x.dtype.type(1 - part) * at.decoded(f).astype(x.dtype)

    tape = psi.tape(sigma, {at.layer: edit})
    gradient = tape.backward(until=at.layer)[at.layer]
    return tape.log_psi, (kept["f"] * at.along(gradient, chosen)).sum(axis=1)


def local_tangents(operator: Operator, sigma: Array, evaluate: Tangents) -> np.ndarray:
    """d O_loc / d a_i (n, feature) on configurations (n, n_sites); ``evaluate`` gives log psi and d log psi / d a_i.

    As many backward passes as the operator has flips.
    """
    log_psi, own = evaluate(sigma)
    element, signs = to_host(operator.element(sigma)), to_host(operator.signs)
    total = np.zeros(own.shape, np.result_type(own.dtype, element.dtype, np.float64))
    for j, flip in enumerate(signs):
        reached = np.flatnonzero(element[:, j])
        if not len(reached):
            continue
        xp = namespace(sigma)
        log_other, other = evaluate(sigma[xp.asarray(reached)] * xp.asarray(flip))
        amplitude = element[reached, j] * np.exp(log_other - log_psi[reached])
        total[reached] += amplitude[:, None] * (other - own[reached])
    return total


@dataclass(frozen=True)
class Atlas:
    """Slopes (feature, observable) and metric (feature,) at the state itself, with standard errors."""

    slope: np.ndarray
    slope_error: np.ndarray
    metric: np.ndarray
    metric_error: np.ndarray

    @property
    def leverage(self) -> np.ndarray:
        """slope / sqrt(metric) (feature, observable); NaN for features that do nothing."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.metric[:, None] > 0, self.slope / np.sqrt(self.metric)[:, None], np.nan)


def atlas(tangent: np.ndarray, values: np.ndarray, weights: np.ndarray | None = None) -> Atlas:
    """The atlas from g (chain, draw, feature) and values or local estimators (chain, draw, observable) on the same samples.

    ``weights`` (chain, draw) of the samples; with all configurations and their Born weights it is exact.
    """
    n_features = tangent.shape[-1]
    slope, slope_error = (np.empty((n_features, values.shape[-1])) for _ in range(2))
    metric, metric_error = (np.empty(n_features) for _ in range(2))
    size = max(1, _COVARIANCES // max(1, values.size))
    for start in range(0, n_features, size):
        some = slice(start, start + size)
        g = tangent[..., some].astype(np.result_type(tangent.dtype, np.float64))
        found = covariance(g[..., None], values[..., None, :], weights)
        slope[some], slope_error[some] = (2 * part for part in found)
        metric[some], metric_error[some] = covariance(g, g, weights)
    return Atlas(slope, slope_error, metric, metric_error)
