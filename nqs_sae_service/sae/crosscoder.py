"""Crosscoders: one dictionary whose features read from, and write to, several views of the same configuration.

    z = sum_v W_e^v (x_v - b_d^v) + b_e        f = act(z)        x_hat_v = (W_d^v)^T f + b_d^v

(Lindsey, Templeton, Marcus, Conerly, Batson, Olah 2024, transformer-circuits.pub, *Sparse Crosscoders for Cross-Layer Features
and Model Diffing*.) A view is a layer of a network: of several layers, of a training at several steps, at several couplings.
A feature is shared when its decoder rows are about equally long in all views, and specific to a view when it is long in one.

A crosscoder is a dictionary on the concatenation of the views, each centred and scaled,

    X_v = s_v (x_v - m_v),    E|X_v|^2 = d for every view

so that a view with large activations counts no more than another. It is trained by the existing kinds as they are; with
E_v, D_v, B_v the parts of its encoder, decoder and decoder bias that belong to a view, on raw activations

    W_e^v = s_v E_v,    W_d^v = D_v / s_v,    b_d^v = m_v + B_v / s_v,    b_e and thresholds unchanged

has the same f, and x_hat_v = m_v + X_hat_v / s_v. Kinds that penalise the length of decoder rows (``relu-l1``) thereby penalise
that of the concatenated row, not the sum of its lengths in the views as the paper does. So nothing pushes a feature out of a
view but the reconstruction, and L1 does not make shared features look specific (Minder et al. 2025, arXiv:2504.02922, who
advise BatchTopK for that reason).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import NumericalError
from .classes import COMMON, NEITHER
from .dictionary import Dictionary
from .inputs import Inputs, blocks

SHARED, SPECIFIC = 0.5, 0.2  # of the longest decoder row: every view has at least; all others at most


@dataclass(frozen=True)
class Scales:
    """Mean m_v (view, width) float64 and factor s_v (view,) of every view."""

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, inputs: Inputs, n_views: int) -> Scales:
        """Those of the rows of ``inputs``, whose columns are ``n_views`` views side by side, from one pass over them.

        Raises NumericalError when a view does not vary or is not finite.
        """
        mean, spread = (part.reshape(n_views, -1) for part in _moments(inputs))
        variance = spread.sum(axis=1)
        rounding = np.finfo(np.float32).eps ** 2 * (mean**2).sum(axis=1)
        for view in np.flatnonzero(~(variance > rounding)):
            raise NumericalError(
                f"view {view + 1} of the crosscoder is the same for every input, or not finite: leave this layer or "
                "network out of [crosscoder]"
            )
        return cls(mean, np.sqrt(mean.shape[1] / variance))

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """X (n, view x width) of raw rows of the same shape, in their precision."""
        scale = np.repeat(self.factor, self.mean.shape[1]).astype(rows.dtype)
        return (rows - self.mean.reshape(-1).astype(rows.dtype)) * scale

    def unscaled(self, dictionary: Dictionary) -> Dictionary:
        """The dictionary on raw rows that does what ``dictionary`` does on scaled ones (see the module)."""
        scale = np.repeat(self.factor, self.mean.shape[1])
        return replace(
            dictionary,
            encoder=(dictionary.encoder * scale).astype(np.float32),
            decoder=(dictionary.decoder / scale).astype(np.float32),
            decoder_bias=(self.mean.reshape(-1) + dictionary.decoder_bias / scale).astype(np.float32),
        )


class Scaled:
    """Views side by side, centred and scaled (``Inputs``)."""

    def __init__(self, inputs: Inputs, scales: Scales) -> None:
        self._inputs, self._scales = inputs, scales
        self.n_rows, self.width, self.block_rows = inputs.n_rows, inputs.width, inputs.block_rows

    def read(self, block: int) -> np.ndarray:
        """See ``Inputs``."""
        return self._scales.apply(self._inputs.read(block))


class OneView:
    """A single one of ``n_views`` views side by side (``Inputs``)."""

    def __init__(self, inputs: Inputs, view: int, n_views: int) -> None:
        self._inputs, self.width = inputs, inputs.width // n_views
        self._columns = slice(view * self.width, (view + 1) * self.width)
        self.n_rows, self.block_rows = inputs.n_rows, inputs.block_rows

    def read(self, block: int) -> np.ndarray:
        """See ``Inputs``."""
        return np.ascontiguousarray(self._inputs.read(block)[:, self._columns])


def by_view(rows: np.ndarray, n_views: int) -> np.ndarray:
    """Rows (..., view x width) as (view, ..., width)."""
    return np.moveaxis(rows.reshape(*rows.shape[:-1], n_views, -1), -2, 0)


def decoder_norms(decoder: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Length (view, F) of the decoder rows (view, F, width) in scaled units: s_v |W_d^v|."""
    return np.linalg.norm(decoder.astype(np.float64), axis=-1) * np.asarray(factor)[:, None]


def norm_share(norms: np.ndarray) -> np.ndarray:
    """Share of every view in the summed lengths (view, F), same shape: the relative norm of the paper; NaN for zero rows."""
    total = norms.sum(axis=0)
    return np.divide(norms, total, out=np.full(norms.shape, np.nan), where=total > 0)


def classified(norms: np.ndarray) -> np.ndarray:
    """Which view every feature is specific to, (F,) from lengths (view, F); ``COMMON``: shared by all; ``NEITHER``.

    Shared: its row is at least ``SHARED`` of the longest one in every view. Specific: at most ``SPECIFIC`` of it in all others.
    """
    longest = norms.max(axis=0)
    relative = np.divide(norms, longest, out=np.zeros(norms.shape), where=longest > 0)
    specific = np.sort(relative, axis=0)[-2] <= SPECIFIC if len(norms) > 1 else np.ones(longest.shape, bool)
    found = np.where(relative.min(axis=0) >= SHARED, COMMON, NEITHER)
    return np.where((longest > 0) & specific, norms.argmax(axis=0), found)


def counted(classes: np.ndarray, n_views: int) -> tuple[np.ndarray, np.ndarray]:
    """How many features (F,) are shared, and how many are specific to each view (view,)."""
    return np.sum(classes == COMMON), np.bincount(classes[classes >= 0], minlength=n_views)


def decoder_cosines(decoder: np.ndarray) -> np.ndarray:
    """Cosine (view, view, F) between the decoder rows (view, F, width) of a feature in two views; NaN where one is zero."""
    d = decoder.astype(np.float64)
    length = np.linalg.norm(d, axis=-1)
    product = np.einsum("vfd,wfd->vwf", d, d)
    scale = length[:, None] * length[None]
    return np.divide(product, scale, out=np.full(product.shape, np.nan), where=scale > 0)


def explained_by_view(
    inputs: Inputs, reconstruct: Callable[[np.ndarray], np.ndarray], n_views: int
) -> np.ndarray:
    """Share (view,) of the variance of each view that ``reconstruct`` (n, view x width) explains; NaN where there is none."""
    variance, error = by_view(_moments(inputs)[1], n_views).sum(axis=-1), np.zeros(inputs.width)
    for rows in blocks(inputs):
        error += ((rows - reconstruct(rows).astype(np.float64)) ** 2).sum(axis=0)
    missed = by_view(error, n_views).sum(axis=-1) / inputs.n_rows
    return 1 - np.divide(missed, variance, out=np.full(n_views, np.nan), where=variance > 0)


def _moments(inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every column, (width,) float64, from one pass (about the mean of the first block)."""
    origin, total, square = (np.zeros(inputs.width) for _ in range(3))
    for block, rows in enumerate(blocks(inputs)):
        origin = origin if block else rows.mean(axis=0, dtype=np.float64)
        shifted = rows - origin
        total, square = total + shifted.sum(axis=0), square + (shifted**2).sum(axis=0)
    mean = total / inputs.n_rows
    return origin + mean, square / inputs.n_rows - mean**2
