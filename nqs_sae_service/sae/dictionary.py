"""A trained sparse dictionary: few active features f explain an activation x.

    z = W_e (x - b_d) + b_e        f = act(z)        x_hat = W_d^T f + b_d

with one of three activations:

    ReLU             f = max(z, 0)                                    (Templeton et al. 2024, Scaling Monosemanticity)
    k largest        the ReLU of the k largest entries of z, else 0   (Gao et al. 2024, arXiv:2406.04093)
    with thresholds  f = z where z > theta >= 0, else 0               (Rajamanoharan et al. 2024, arXiv:2407.14435)

Whatever ``kind`` was trained ends as one of them. The arrays act on raw activations: the centring and scaling of training
are folded in. Where two pre-activations tie, the lower index wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.devices import Device

if TYPE_CHECKING:
    import xarray as xr

ARRAYS = (
    "encoder",
    "decoder",
    "encoder_bias",
    "decoder_bias",
    "threshold",
)  # the last one where there is one
BLOCK_ELEMENTS = 2**24  # of a dense (rows, F) array: nothing larger is held by the blocked methods


def select_topk(z: np.ndarray, k: int) -> np.ndarray:
    """Mask, shaped like ``z`` (..., F), of the k largest entries along the last axis; the lower index wins a tie."""
    n_features, xp = z.shape[-1], namespace(z)
    if k >= n_features:
        return xp.ones(z.shape, bool)
    kth = xp.partition(z, n_features - k, axis=-1)[..., n_features - k, None]
    above, tied = z > kth, z == kth
    room = k - above.sum(axis=-1, keepdims=True)
    return above | (tied & (xp.cumsum(tied, axis=-1) <= room))


def _plain(array: np.ndarray) -> np.ndarray:
    """As contiguous, writable float32: kernels are compiled once more for anything else."""
    if isinstance(array, np.ndarray):
        return np.require(array, np.float32, ["C", "W"])
    return namespace(array).ascontiguousarray(array, dtype=np.float32)


def kernels_for(x: Any) -> Any:
    """The module with the hot loops for arrays where ``x`` is: ``kernels`` on the host, ``kernels_gpu`` on a device."""
    if isinstance(x, np.ndarray):
        from . import kernels

        return kernels
    from . import kernels_gpu

    return kernels_gpu


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Encoder and decoder rows (F, d), biases (F,) and (d,), float32.

    ``k``: so many features are active at most; 0: any number. ``threshold`` (F,): what a pre-activation must exceed; None: 0.
    """

    kind: str
    k: int
    encoder: np.ndarray
    decoder: np.ndarray
    encoder_bias: np.ndarray
    decoder_bias: np.ndarray
    threshold: np.ndarray | None = None

    def on(self, device: Device) -> Dictionary:
        """The dictionary with its arrays on a device, for activations that are there."""
        arrays = (getattr(self, name) for name in ARRAYS if getattr(self, name) is not None)
        return Dictionary(self.kind, self.k, *map(device.put, arrays))

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return self.encoder.shape[0]

    @property
    def width(self) -> int:
        """Width d of the activations."""
        return self.encoder.shape[1]

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Features f (..., F) of activations ``x`` (..., d), dense, in the precision of ``x`` (float32 or float64)."""
        z = (x - self.decoder_bias) @ self.encoder.T + self.encoder_bias
        f = self._exceeding(z, self.threshold)
        return namespace(x).where(select_topk(z, self.k), f, x.dtype.type(0)) if self.k else f

    def encode_sparse(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The active features of ``x`` (n, d): values (n, k) float32 > 0 and indices (n, k) int32, where there is a ``k``.

        The fused kernel: equal to ``encode`` in float32 up to rounding, without an (n, F) array. Indices ascend
        along a row; where fewer than k pre-activations are positive the rest has value 0 and index -1.
        """
        if not self.k:
            raise ValueError(f"a {self.kind} dictionary has no fixed number of active features; use encode")
        k = min(self.k, self.n_features)
        return kernels_for(x).encode_topk(_plain(x), self.encoder, self.encoder_bias, self.decoder_bias, k)

    def decode(self, f: np.ndarray) -> np.ndarray:
        """Reconstruction x_hat (..., d) from dense features ``f`` (..., F)."""
        return f @ self.decoder + self.decoder_bias

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """x_hat (..., d), in the precision of ``x`` (..., d)."""
        rows = x.reshape(-1, self.width)
        if self._sparse(x):
            values, indices = self.encode_sparse(rows)
            zero, decoder = namespace(x).zeros(rows.shape, np.float32), (self.decoder, self.decoder_bias)
            minus_x_hat, _ = kernels_for(x).decode_error(zero, *decoder, values, indices)
            minus_x_hat *= -1
            return minus_x_hat.reshape(x.shape)
        return self._blocked(rows, lambda block: self.decode(self.encode(block))).reshape(x.shape)

    def feature(self, x: np.ndarray, i: int) -> np.ndarray:
        """Activation (...,) of feature ``i`` on ``x`` (..., d), never holding more than a block of the (n, F) features."""
        rows = x.reshape(-1, self.width)
        if not self.k:
            z = (rows - self.decoder_bias) @ self.encoder[i] + self.encoder_bias[i]
            f = self._exceeding(z, None if self.threshold is None else self.threshold[i])
        elif self._sparse(x):
            k, biases = min(self.k, self.n_features), (self.encoder_bias, self.decoder_bias)
            f = kernels_for(x).feature_topk(_plain(rows), self.encoder, *biases, i, k)
        else:
            f = self._blocked(rows, lambda block: self.encode(block)[:, i])
        return f.reshape(x.shape[:-1])

    def some(self, x: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Activations (..., m) of the features ``chosen`` (m,) on ``x`` (..., d), see ``feature``."""
        rows, xp = x.reshape(-1, self.width), namespace(x)
        if not self._sparse(x):
            f = self._blocked(rows, lambda block: self.encode(block)[:, chosen])
            return f.reshape(*x.shape[:-1], len(chosen))
        values, indices = self.encode_sparse(rows)
        column = xp.full(self.n_features + 1, -1)  # the last one for index -1: no feature
        column[chosen] = xp.arange(len(chosen))
        place = column[indices]
        row, active = xp.nonzero(place >= 0)
        f = xp.zeros((len(rows), len(chosen)), np.float32)
        f[row, place[row, active]] = values[row, active]
        return f.reshape(*x.shape[:-1], len(chosen))

    def token_mean(self, x: np.ndarray) -> np.ndarray:
        """Features averaged over tokens, (n, F), of ``x`` (n, token, d): a sample's activations when tokens are rows."""
        n_tokens = x.shape[1]
        if not self._sparse(x):
            return self._blocked(x, lambda block: self.encode(block).mean(axis=1), rows_each=n_tokens)
        from .kernels import scatter_mean

        values, indices = self.encode_sparse(x.reshape(-1, self.width))
        shape = (len(x), n_tokens * values.shape[1])
        return scatter_mean(values.reshape(shape), indices.reshape(shape), n_tokens, self.n_features)

    def _sparse(self, x: np.ndarray) -> bool:
        return bool(self.k) and x.dtype == np.float32

    @staticmethod
    def _exceeding(z: np.ndarray, threshold: np.ndarray | None) -> np.ndarray:
        """The pre-activations that are features; zero for the others."""
        xp = namespace(z)
        return xp.maximum(z, 0) if threshold is None else xp.where(z > threshold, z, z.dtype.type(0))

    def _blocked(
        self, x: np.ndarray, function: Callable[[np.ndarray], np.ndarray], rows_each: int = 1
    ) -> np.ndarray:
        """``function`` on blocks of the first axis so that a block's dense features stay below BLOCK_ELEMENTS."""
        size = max(1, BLOCK_ELEMENTS // (self.n_features * rows_each))
        parts = [function(x[a : a + size]) for a in range(0, max(len(x), 1), size)]
        return namespace(x).concatenate(parts)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset, layer: str, sae_seed: int) -> Dictionary:
        """The dictionary of one layer and seed in an ``sae.nc`` dataset."""
        return cls._read(ds.sel(layer=layer, sae_seed=sae_seed), "")

    @classmethod
    def untrained_from_dataset(cls, ds: xr.Dataset, layer: str, initialisation: int) -> Dictionary:
        """The dictionary of one layer of an untrained control network in an ``sae.nc`` dataset."""
        return cls._read(ds.sel(layer=layer, initialisation=initialisation), "untrained_")

    @classmethod
    def _read(cls, ds: xr.Dataset, prefix: str) -> Dictionary:
        arrays = (_plain(ds[prefix + name].values) for name in ARRAYS if prefix + name in ds)
        return cls(str(ds.attrs["kind"]), int(ds.attrs.get("k", 0)), *arrays)
