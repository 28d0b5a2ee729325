"""Directions in which a trained wave function can be turned, each with one real strength (0 is psi itself).

    feature           x -> x + strength f_i(x) d_i   at a layer, for every token     (strength = scale - 1)
    random_direction  x -> x + strength f_i(x) |d_i| u   with a random unit vector u instead of the decoder row
    other_feature     another live feature of the same dictionary
    jastrow_dial      log psi -> log psi + strength O / 2   for a diagonal observable O

The part of x that the dictionary does not explain stays, so strength 0 is psi exactly (Templeton et al. 2024, "feature
steering"). A direction knows log psi for a whole family of strengths at once, and its tangent d log psi / d strength at 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.arrays import namespace
from ..physics.observables import Observable
from ..sae.dictionary import Dictionary
from ..states import Wavefunction

DIRECTIONS = ("feature", "random_direction", "other_feature", "jastrow_dial")


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
class FeatureDirection(Direction):
    """Adds strength f_i(x) ``vector`` to the activations x of ``layer``, in every copy where psi is projected.

    ``vector`` is the decoder row of feature ``i``, or another vector of its length for a control; both are where psi is.
    With a ``pooled`` dictionary f_i is read from the mean over tokens and the same vector is added to every token.
    """

    psi: Wavefunction
    layer: str
    dictionary: Dictionary
    i: int
    vector: np.ndarray
    pooled: bool

    def activation(self, x: np.ndarray) -> np.ndarray:
        """f_i (n, token) of activations x (n, token, width); (n, 1) when pooled."""
        rows = x.mean(axis=1, keepdims=True) if self.pooled else x
        return self.dictionary.feature(namespace(x).ascontiguousarray(rows), self.i)

    def _push(self, x: np.ndarray) -> np.ndarray:
        return (self.activation(x)[..., None] * self.vector).astype(x.dtype)

    def _edit(self, strength: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: x + x.dtype.type(strength) * self._push(x)

    def log_psi(self, sigma, strengths):
        return self.psi.over_copies(lambda psi, rows: self._of_network(psi, rows, strengths), sigma)

    def _of_network(self, psi: Wavefunction, sigma: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        if not psi.starts_at(self.layer):
            edits = [psi.edited(self.layer, self._edit(s)) for s in strengths]
            return namespace(sigma).stack([edited.log_psi(sigma) for edited in edits], axis=-1)
        x = psi.stream_at(sigma, self.layer)
        push = self._push(x)
        return namespace(sigma).stack(
            [psi.log_psi_from(self.layer, x + x.dtype.type(s) * push) for s in strengths], axis=-1
        )

    def tangent(self, sigma, gradient=None):
        if gradient is None:
            return self.psi.layer_tangent(sigma, self.layer, self._push)
        activation = self.activation(self.psi.stream_at(sigma, self.layer))
        return (activation * (gradient @ self.vector.astype(np.float64))).sum(axis=1)


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
