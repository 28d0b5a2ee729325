"""Directions in which a trained wave function can be turned, each with one real strength (0 is psi itself).

    feature              x -> x + strength f_i(x) d_i   at a layer, for every token     (strength = scale - 1)
    random_direction     x -> x + strength f_i(x) |d_i| u   with a random unit vector u instead of the decoder row
    other_feature        another live feature of the same dictionary
    jastrow_dial         log psi -> log psi + strength O / 2   for a diagonal observable O
    constant_shift       x -> x + strength s u   for every token, s the root mean square of |f_i d_i|
    difference_of_means  x -> x + strength v,   v the mean of x where O is above its median minus the mean elsewhere
    probe, principal_component   x -> x + strength v   with v a regression's vector or a principal component
    clamp                x -> x + strength (M - f_i(x)) d_i   clamped at strength 1, M the largest f_i of the train chains
    add                  x -> x + strength M d_i
    leverage_feature     the feature with the largest |slope| / sqrt(metric), see ``atlas.py``
    natural_gradient     x -> x + strength sum_i a_i f_i(x) d_i   with weights of all features, see ``natural_gradient.py``

The part of x that the dictionary does not explain stays, so strength 0 is psi exactly (Templeton et al. 2024, "feature
steering"). A direction knows log psi for a whole family of strengths at once, and its tangent d log psi / d strength at 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..engine.arrays import namespace, to_host
from ..physics.observables import Observable
from ..sae.dictionary import Dictionary
from ..states import Wavefunction

_ROUNDING = 1e-5  # of the range of local estimators: many samples have the same value but for rounding


class Direction(ABC):
    """A one-parameter family of wave functions through psi."""

    @abstractmethod
    def log_psi(self, sigma: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """log psi (n, strength) of configurations (n, n_sites)."""

    @abstractmethod
    def tangent(self, sigma: np.ndarray, gradient: np.ndarray | None = None) -> np.ndarray:
        """d log psi / d strength at strength 0: (n,), complex if psi is.

        ``gradient`` (n, token, width): d log psi / d x of the layer on sigma, where it is already known (of a bare network).
        """

    def family(self, strengths: Sequence[float] | np.ndarray) -> Family:
        """The wave functions at these strengths."""
        return Family(self, np.asarray(strengths, dtype=np.float64))

    def at(self, strength: float) -> Turned:
        """The wave function at one strength."""
        return Turned(self, strength)


@dataclass(frozen=True)
class Family:
    """Several wave functions of a direction; log psi has a trailing axis for the strength."""

    direction: Direction
    strengths: np.ndarray

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """(n, strength)."""
        return self.direction.log_psi(sigma, self.strengths)


@dataclass(frozen=True)
class Turned:
    """One wave function of a direction."""

    direction: Direction
    strength: float

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """(n,)."""
        return self.direction.log_psi(sigma, np.asarray([self.strength]))[:, 0]


@dataclass(frozen=True)
class LayerDirection(Direction):
    """x -> x + strength push(x) for the activations x of ``layer``, in every copy where psi is projected."""

    psi: Wavefunction
    layer: str

    @abstractmethod
    def push(self, x: np.ndarray) -> np.ndarray:
        """What is added at strength 1 to activations x (n, token, width): the same shape and precision."""

    def _edit(self, strength: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: x + x.dtype.type(strength) * self.push(x)

    def log_psi(self, sigma, strengths):
        return self.psi.over_copies(lambda psi, rows: self._of_network(psi, rows, strengths), sigma)

    def _of_network(self, psi: Wavefunction, sigma: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        if not psi.starts_at(self.layer):
            edits = [psi.edited(self.layer, self._edit(s)) for s in strengths]
            return namespace(sigma).stack([edited.log_psi(sigma) for edited in edits], axis=-1)
        x = psi.stream_at(sigma, self.layer)
        push = self.push(x)
        return namespace(sigma).stack(
            [psi.log_psi_from(self.layer, x + x.dtype.type(s) * push) for s in strengths], axis=-1
        )

    def tangent(self, sigma, gradient=None):
        if gradient is None:
            return self.psi.layer_tangent(sigma, self.layer, self.push)
        return (gradient * self.push(self.psi.stream_at(sigma, self.layer))).sum(axis=(1, 2))


@dataclass(frozen=True)
class FeatureDirection(LayerDirection):
    """Adds strength f_i(x) ``vector``.

    ``vector`` is the decoder row of feature ``i``, or another vector of its length for a control; both are where psi is.
    With a ``pooled`` dictionary f_i is read from the mean over tokens and the same vector is added to every token.
    """

    dictionary: Dictionary
    i: int
    vector: np.ndarray
    pooled: bool

    def activation(self, x: np.ndarray) -> np.ndarray:
        """f_i (n, token) of activations x (n, token, width); (n, 1) when pooled."""
        rows = x.mean(axis=1, keepdims=True) if self.pooled else x
        return self.dictionary.feature(namespace(x).ascontiguousarray(rows), self.i)

    def push(self, x):
        return (self.activation(x)[..., None] * self.vector).astype(x.dtype)

    def tangent(self, sigma, gradient=None):
        if gradient is None:
            return super().tangent(sigma)
        activation = self.activation(self.psi.stream_at(sigma, self.layer))
        return (activation * (gradient @ self.vector.astype(np.float64))).sum(axis=1)

    def largest(self, sigma: np.ndarray) -> float:
        """Largest activation over the rows of configurations (n, n_sites)."""
        return float(to_host(self.activation(self.psi.stream_at(sigma, self.layer))).max())

    def typical_length(self, sigma: np.ndarray) -> float:
        """Root mean square of |f_i(x) vector| over the rows of configurations (n, n_sites)."""
        activation = to_host(self.activation(self.psi.stream_at(sigma, self.layer))).astype(np.float64)
        return float(np.sqrt(np.mean(activation**2)) * np.linalg.norm(to_host(self.vector)))


@dataclass(frozen=True)
class ClampDirection(FeatureDirection):
    """Adds strength (``level`` - f_i(x)) ``vector``: at strength 1 the feature has the activation ``level`` on every row."""

    level: float

    def activation(self, x: np.ndarray) -> np.ndarray:
        """What the activation is short of, shaped like f_i."""
        f = super().activation(x)
        return f.dtype.type(self.level) - f


@dataclass(frozen=True)
class ShiftDirection(LayerDirection):
    """Adds strength ``vector`` (width,), which is where psi is, to every token of every configuration."""

    vector: np.ndarray

    def push(self, x):
        return namespace(x).broadcast_to(self.vector.astype(x.dtype), x.shape)


@dataclass(frozen=True)
class FeaturesDirection(LayerDirection):
    """Adds strength sum_i a_i f_i(x) d_i: every feature turned by a multiple of its weight a_i, ``weights`` (feature,).

    Dictionary and weights are where psi is. A ``pooled`` dictionary reads the mean over tokens and adds to every token.
    """

    dictionary: Dictionary
    weights: np.ndarray
    pooled: bool

    @cached_property
    def _weighted(self) -> Dictionary:
        """The dictionary with decoder rows a_i d_i."""
        decoder = self.dictionary.decoder
        return replace(self.dictionary, decoder=(self.weights[:, None] * decoder).astype(decoder.dtype))

    def push(self, x):
        rows = x.mean(axis=1, keepdims=True) if self.pooled else x
        pushed = (
            self._weighted.reconstruct(namespace(x).ascontiguousarray(rows)) - self._weighted.decoder_bias
        )
        return namespace(x).broadcast_to(pushed.astype(x.dtype), x.shape)


@dataclass(frozen=True)
class JastrowDial(Direction):
    """log psi + strength O(sigma) / 2: the simplest state that favours a diagonal observable."""

    psi: Wavefunction
    observable: Observable

    def log_psi(self, sigma, strengths):
        values, strengths = self.observable.values(sigma), namespace(sigma).asarray(strengths)
        return self.psi.log_psi(sigma)[:, None] + 0.5 * values[:, None] * strengths

    def tangent(self, sigma, gradient=None):
        return 0.5 * self.observable.values(sigma)


def random_unit_vector(width: int, seed: Sequence[int]) -> np.ndarray:
    """A direction drawn uniformly from the sphere, (width,)."""
    vector = np.random.default_rng(seed).normal(size=width)
    return vector / np.linalg.norm(vector)


def difference_of_means(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of x over samples with a value above the median minus the mean over the others: (width,) float64, on the host.

    x (n, token, width), averaged over tokens too, where psi is; values (n,). Where none is above, those at the median count
    as above. Zero when the values do not vary.
    """
    median, rounding = np.median(values), _ROUNDING * np.ptp(values)
    above = values > median + rounding
    if not above.any():
        above = values >= median - rounding
    if above.all():
        return np.zeros(x.shape[-1])
    rows = to_host(x.mean(axis=1)).astype(np.float64)
    return rows[above].mean(axis=0) - rows[~above].mean(axis=0)


def linear_probe(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The vector along which ridge regression of the values on x reads them, as long as the spread of x along it: (width,).

    Shapes as in ``difference_of_means``. The penalty counts as much as one sample. Zero when the values do not vary.
    """
    rows, values = _centred(x, values)
    weights = np.linalg.solve(rows.T @ rows + np.eye(rows.shape[1]) * rows.var(), rows.T @ values)
    return _spread_along(rows, weights)


def principal_component(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The principal component of x with the largest |r| with the values, as long as the spread along it: (width,).

    Shapes as in ``difference_of_means``. Components of less than 1e-6 of the variance are left out.
    """
    rows, values = _centred(x, values)
    variance, components = np.linalg.eigh(rows.T @ rows)
    kept = variance > 1e-6 * variance.sum()
    if not kept.any() or not values.any():
        return np.zeros(rows.shape[1])
    overlap = np.where(kept, values @ (rows @ components) / np.sqrt(np.where(kept, variance, 1)), 0)
    best = int(np.abs(overlap).argmax())
    return _spread_along(rows, np.sign(overlap[best]) * components[:, best])


def _centred(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Token means of x (n, width) and values (n,) about their means, float64; zeros for values that vary by rounding only."""
    rows = to_host(x.mean(axis=1)).astype(np.float64)
    spread = np.ptp(values) > _ROUNDING * np.abs(values).max()
    return rows - rows.mean(axis=0), (values - values.mean()) * spread


def _spread_along(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The unit vector along ``vector``, times the standard deviation of the rows along it."""
    length = np.linalg.norm(vector)
    unit = vector / length if length else vector
    return unit * (rows @ unit).std()
