"""Dictionaries without training by gradients: principal and independent components, halved into features.

A component c = v . x of either sign becomes two features, max(c, 0) with row d and max(-c, 0) with row -d. Of all of them the k
largest are active, as in ``topk.py``: a linear code with the sparsity of a dictionary.

    pca    v = d: eigenvectors of <x x^T>, by falling variance (Pearson 1901)
    ica    x = sum_j s_j a_j with s as independent as can be, d = a / |a|, c = |a| s (Hyvarinen 1999, FastICA):
           w_j <- <y g(w_j . y)> - <g'(w_j . y)> w_j, then W <- (W W^T)^(-1/2) W;  y = <x x^T>^(-1/2) x, g = tanh

<x x^T> is that of all inputs seen so far. Each step of ica is one iteration on its batch; over the second half of the steps W
is averaged, so that what remains is noise of many batches, not of one. With fewer than two features a component only the first
components are kept; with more the rest stays empty (zero). Every rank computes all components and keeps its share of the
features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from ..engine.arrays import namespace, to_host
from ..engine.ranks import ALONE, Ranks
from .dictionary import Dictionary, kernels_for
from .record import CountedSection
from .training import Adam, Parameters

RANK = 1e-6  # times the largest variance: directions with less are none
AVERAGED = 0.5  # share of the steps after which the rotation is averaged


class Components(CountedSection):
    """What both kinds have in common."""

    def turned(
        self, rotation: np.ndarray, covariance: np.ndarray, x: np.ndarray, weight: float
    ) -> np.ndarray:
        """The ``rotation`` (d, d) of whitened inputs into components after a batch ``x`` (n, d) that counts with ``weight``."""
        raise NotImplementedError

    def learner(
        self, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> ComponentsLearner:
        """No component yet; a random rotation for those that begin with one."""
        return ComponentsLearner(self, generator, sample, ranks)


class Pca(Components):
    """``[sae] kind = "pca"``: a baseline, both halves of principal components, k of them active."""

    kind: Literal["pca"] = Field(description="halves of principal components")

    def turned(
        self, rotation: np.ndarray, covariance: np.ndarray, x: np.ndarray, weight: float
    ) -> np.ndarray:
        return np.linalg.eigh(covariance)[1].T


class Ica(Components):
    """``[sae] kind = "ica"``: a baseline, both halves of independent components, k of them active."""

    kind: Literal["ica"] = Field(description="halves of independent components (FastICA)")

    def turned(
        self, rotation: np.ndarray, covariance: np.ndarray, x: np.ndarray, weight: float
    ) -> np.ndarray:
        y = x @ power(covariance, -0.5)
        g = np.tanh(y @ rotation.T)
        found = nearest_rotation(g.T @ y / len(x) - np.mean(1 - g**2, axis=0)[:, None] * rotation)
        found *= np.where((found * rotation).sum(axis=1) < 0, -1, 1)[:, None]  # w and -w are one component
        return nearest_rotation((1 - weight) * rotation + weight * found)


@dataclass
class ComponentsParameters(Parameters):
    """With the sum over the batches of <x x^T>, and the rotation of whitened inputs into components (d, d), float64."""

    covariance: np.ndarray
    rotation: np.ndarray


class ComponentsLearner:
    """Components that are still being measured."""

    def __init__(
        self, record: Components, generator: np.random.Generator, sample: np.ndarray, ranks: Ranks = ALONE
    ) -> None:
        self.record, self.own, xp = record, ranks.share(record.features), namespace(sample)
        width, n = sample.shape[1], self.own.stop - self.own.start
        rotation = xp.asarray(nearest_rotation(generator.standard_normal((width, width))))
        encoder, decoder = (xp.zeros((n, width), np.float32) for _ in range(2))
        biases = xp.zeros(n, np.float32), xp.zeros(width, np.float32)
        covariance = xp.zeros((width, width))
        self.parameters = ComponentsParameters(encoder, decoder, *biases, covariance, rotation)

    def step(
        self, x: np.ndarray, progress: float, dead: np.ndarray, adam: Adam, learning_rate: float
    ) -> tuple[float, np.ndarray]:
        """See ``training.Learner``; the loss is that after the step."""
        p, rows, xp = self.parameters, to_host(x), namespace(x)
        before, adam.steps = adam.steps, adam.steps + 1
        wide = rows.astype(np.float64)
        covariance = to_host(p.covariance) + wide.T @ wide / len(x)
        averaged = before - round(before * AVERAGED / progress) if progress > AVERAGED else 0
        rotation = self.record.turned(to_host(p.rotation), covariance / adam.steps, wide, 1 / (1 + averaged))
        encoder, decoder = halves(covariance / adam.steps, rotation, self.record.features)
        found = (encoder[self.own], decoder[self.own], covariance, rotation)
        for name, array in zip(("encoder", "decoder", "covariance", "rotation"), found, strict=True):
            getattr(p, name)[...] = xp.asarray(array)
        nothing = np.zeros(len(encoder), np.float32), np.zeros(x.shape[1], np.float32)
        whole = Dictionary(self.record.kind, self.record.k, encoder, decoder, *nothing)
        values, indices = whole.encode_sparse(rows)
        _, squared = kernels_for(rows).decode_error(rows, decoder, nothing[1], values, indices)
        counts = np.bincount(indices[indices >= 0], minlength=len(encoder))[self.own]
        return float(squared.sum()) / x.size, xp.asarray(counts)

    def finished(self, batches: Iterable[np.ndarray] = ()) -> Parameters:
        """See ``training.Learner``."""
        p = self.parameters
        return Parameters(p.encoder, p.decoder, p.encoder_bias, p.decoder_bias)


def halves(covariance: np.ndarray, rotation: np.ndarray, n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """Encoder and decoder (F, d) float32 of the components that ``rotation`` (d, d) makes of whitened inputs, both signs.

    The longest components come first.
    """
    components, readers = rotation @ power(covariance, 0.5), rotation @ power(covariance, -0.5)
    lengths = np.linalg.norm(components, axis=1)
    order = np.argsort(-lengths, kind="stable")[: -(-n_features // 2)]
    long = lengths[order, None]
    rows = components[order] / np.where(long > 0, long, 1)
    encoder, decoder = np.zeros((2, n_features, len(rotation)), np.float32)
    for sign in (1, -1):
        own = slice((1 - sign) // 2, 2 * len(order), 2)
        there = len(encoder[own])
        encoder[own], decoder[own] = sign * (long * readers[order])[:there], sign * rows[:there]
    return encoder, decoder


def power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    """A power of a covariance (d, d); zero along directions that hardly vary."""
    variances, directions = np.linalg.eigh(covariance)
    there = variances > RANK * variances[-1]
    powers = np.where(there, np.where(there, variances, 1) ** exponent, 0)
    return (directions * powers) @ directions.T


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """(M M^T)^(-1/2) M, also of a singular matrix."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right
