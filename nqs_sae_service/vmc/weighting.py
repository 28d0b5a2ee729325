"""Weighted samples in the natural gradient: an O-bar made of any other one, without touching how that was made.

With weights w that sum to 1, O-bar_w = sqrt(W) (1 - 1 w^T) O. The plain O-bar = (1 - 1 1^T / n) O / sqrt(n) is centred already,
and centring by w undoes any earlier centring: O-bar_w = A O-bar with A = sqrt(n W) (1 - 1 w^T), one A for the
rows of Re O and one for those of Im O. So T_w = A T A^T, of which only products T w are new.

Samples of |psi|^(2 b) stand for those of |psi|^2 with weights w ~ |psi|^(2 - 2 b) (Misery et al., arXiv:2507.05352): for b < 1
they visit configurations near zeros of psi, which samples of |psi|^2 never see although <sigma|H|psi> does not vanish there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.panels import Panels
from ..engine.ranks import ALONE, Ranks
from ..states.fused import Jacobian

Array = Any


def born_weights(log_psi: Array, exponent: float, ranks: Ranks = ALONE) -> Array:
    """Weights (n,) ~ |psi|^(2 - 2 b) of samples of |psi|^(2 b), b = ``exponent``; over all ranks they sum to 1."""
    xp = namespace(log_psi)
    log_weights = 2 * (1 - exponent) * log_psi.real.astype(xp.float64)
    weights = xp.exp(log_weights - max(ranks.collect(float(log_weights.max()))))
    return weights / ranks.sum(weights.sum().reshape(1))[0]


class Weighted(Jacobian):
    """O-bar of samples with ``weights`` (n,), this rank's, of a ``plain`` O-bar of the same samples."""

    def __init__(self, plain: Jacobian, weights: Array, ranks: Ranks = ALONE):
        self.plain, self.weights, self.ranks = plain, weights, ranks
        self._total = int(ranks.sum(np.asarray([len(weights)]))[0])

    def rows(self, values: Array) -> Array:
        """As of the plain one."""
        return self.plain.rows(values)

    def gram_and_product(self, vector: Array) -> tuple[Array, Array]:
        """T_w and O-bar_w vector."""
        gram, product = self.plain.gram_and_product(vector)
        tile = self._transformed([gram @ each for each in self._probes(product)], product)
        everything = slice(0, len(gram))
        return tile(gram, everything, everything), self._applied(product)

    def gram_panels(self, panels: Panels) -> dict[int, Array]:
        """T_w, this rank's panels of it."""
        own = self.plain.rows(self.weights)
        moved = [self.plain.product(self.plain.transposed_product(each)) for each in self._probes(own)]
        tile = self._transformed(moved, own)
        return {
            j: tile(panel, slice(panels.columns[j].start, panels.rows), panels.columns[j])
            for j, panel in self.plain.gram_panels(panels).items()
        }

    def product(self, vector: Array) -> Array:
        """O-bar_w vector."""
        return self._applied(self.plain.product(vector))

    def transposed_product(self, y: Array) -> Array:
        """O-bar_w^T y."""
        groups = (self._scale(y) * y).reshape(-1, len(self.weights))
        sums = self.ranks.sum(groups.sum(axis=1))
        return self.plain.transposed_product((groups - sums[:, None] * self.weights).ravel())

    def scaled(self, values: Array) -> Array:
        """Numbers of the samples (n,) times sqrt(w), which stands where 1 / sqrt(n) does without weights."""
        return values * namespace(values).sqrt(self.weights)

    def _scale(self, rows: Array) -> Array:
        """sqrt(n w) for every row."""
        xp = namespace(self.weights)
        return xp.tile(xp.sqrt(self._total * self.weights), len(rows) // len(self.weights))

    def _probes(self, rows: Array) -> list[Array]:
        """The weights in the rows of one group and zeros in the others, for every group."""
        xp, groups = namespace(rows), len(rows) // len(self.weights)
        probes = xp.zeros((groups, groups, len(self.weights)), rows.dtype)
        for g in range(groups):
            probes[g, g] = self.weights
        return list(probes.reshape(groups, -1))

    def _applied(self, rows: Array) -> Array:
        """A rows."""
        groups = rows.reshape(-1, len(self.weights))
        means = self.ranks.sum((groups * self.weights).sum(axis=1))
        return self._scale(rows) * (groups - means[:, None]).ravel()

    def _transformed(self, moved: list[Array], rows: Array):
        """``tile(of T, rows, columns)`` -> the same tile of T_w, from ``moved``: T w (rows of this rank) for every group."""
        xp, ranks = namespace(rows), self.ranks
        groups = len(moved)
        means = ranks.gather(xp.stack(moved, axis=1))
        group = ranks.gather(xp.repeat(xp.arange(groups), len(self.weights)))
        weight = ranks.gather(xp.tile(self.weights, groups))
        scale = ranks.gather(self._scale(rows))
        own = group[:, None] == xp.arange(groups)
        overlap = (weight[:, None] * own).T @ means  # w^T T w, for pairs of groups

        def tile(part: Array, here: slice, there: slice) -> Array:
            part = part - means[here][:, group[there]] - means[there][:, group[here]].conj().T
            part += overlap[group[here]][:, group[there]]
            part *= scale[here, None] * scale[there]
            return part

        return tile


__all__ = ["Weighted", "born_weights"]
