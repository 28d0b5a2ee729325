"""Operators on spins 1/2 in the sigma^z basis, seen as matrices that are never written down.

A configuration sigma is int8 in {-1, +1}. One row of the matrix O has a diagonal element and a few others,

    <sigma|O|sigma>    and    <sigma|O|sigma'_c>,   c = 1 ... n_connected,

where sigma'_c is sigma with a fixed set of sites flipped. Configurations are NumPy or CuPy arrays. This is all that
variational Monte Carlo needs: the local estimator is O_loc(sigma) = sum_sigma' <sigma|O|sigma'> psi(sigma') / psi(sigma)
(Becca & Sorella, Quantum Monte Carlo Approaches for Correlated Systems, Cambridge 2017, chapter 5).

Basis of the full space: the spins are the bits of the index, site 0 the most significant one, bit 0 is spin
up (+1). It is the order of Kronecker products sigma_0 (x) sigma_1 (x) ... with sigma^z = diag(+1, -1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..engine.arrays import beside, namespace
from .lattices import Lattice

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_ROWS_AT_ONCE = 1 << 14


class Operator(ABC):
    """A Hermitian operator.

    ``flips`` (n_connected, k) int32: the sites on which sigma'_c differs from sigma, every set of them once. ``dtype`` of
    the off-diagonal elements: float64, or complex128 where they may be complex. Subclasses set ``n_sites`` and ``flips`` and
    give ``diagonal`` and ``element``.

    ``rotated`` (n_sites,) bool marks the sites whose spins a Hamiltonian has turned by pi about z (S^x, S^y -> -S^x, -S^y),
    None if there are none: its wave function is that of the rotated spins, and other operators act on it only when turned
    alike.
    """

    n_sites: int
    flips: np.ndarray
    dtype: np.dtype = np.dtype(np.float64)
    rotated: np.ndarray | None = None

    @abstractmethod
    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        """<sigma|O|sigma>: (n, n_sites) int8 -> (n,) float64."""

    @abstractmethod
    def element(self, sigma: np.ndarray) -> np.ndarray:
        """<sigma|O|sigma'_c>: (n, n_sites) int8 -> (n, n_connected) of ``dtype``, zero where there is none."""

    def bonds(self, pairs: np.ndarray) -> Operator | None:
        """The terms that act on both sites of one of the pairs (n_pairs, 2), over n_pairs; None if there are none."""
        return None

    @property
    def n_connected(self) -> int:
        """Number of off-diagonal elements in a row."""
        return len(self.flips)

    def connected(self, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All sigma'_c (n, n_connected, n_sites) int8 and <sigma|O|sigma'_c> (n, n_connected)."""
        return sigma[:, None, :] * beside(self.signs, sigma), self.element(sigma)

    @cached_property
    def signs(self) -> np.ndarray:
        """+1 or -1 (n_connected, n_sites) int8: sigma'_c = sigma * signs_c."""
        signs = np.ones((self.n_connected, self.n_sites), dtype=np.int8)
        np.put_along_axis(signs, self.flips, np.int8(-1), axis=1)
        return signs

    def to_sparse(self) -> csr_matrix:
        """The matrix (2^n, 2^n) of ``dtype``, for up to 20 sites. Raises ValueError beyond."""
        from scipy.sparse import csr_matrix

        if self.n_sites > 20:
            raise ValueError(f"the full matrix of {self.n_sites} sites does not fit: at most 20")
        dimension = 1 << self.n_sites
        shape = (dimension, 1 + self.n_connected)
        columns, elements = np.empty(shape, np.int32), np.empty(shape, self.dtype)
        for start in range(0, dimension, _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, dimension))
            sigma = configurations(rows, self.n_sites)
            neighbours, off_diagonal = self.connected(sigma)
            columns[rows, 0], elements[rows, 0] = rows, self.diagonal(sigma)
            columns[rows, 1:], elements[rows, 1:] = basis_index(neighbours), off_diagonal
        row_ends = np.arange(dimension + 1, dtype=np.int32) * np.int32(shape[1])
        matrix = csr_matrix((elements.ravel(), columns.ravel(), row_ends), shape=(dimension, dimension))
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        return matrix


class SigmaX(Operator):
    """Transverse magnetization per site, (1/N) sum_i sigma^x_i, for spins of which some are ``rotated``."""

    def __init__(self, lattice: Lattice, rotated: np.ndarray | None = None) -> None:
        self.n_sites, self.rotated = lattice.n_sites, rotated
        self.flips = np.arange(self.n_sites, dtype=np.int32)[:, None]
        sign = np.ones(self.n_sites) if rotated is None else np.where(rotated, -1.0, 1.0)
        self.row = sign / self.n_sites

    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        return namespace(sigma).zeros(len(sigma))

    def element(self, sigma: np.ndarray) -> np.ndarray:
        return namespace(sigma).broadcast_to(beside(self.row, sigma), sigma.shape)


def distinct_connected(
    sigma: np.ndarray, signs: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ones among the configurations sigma_n signs_f that are ``wanted`` (n, flips) bool.

    sigma (n, n_sites), signs (flips, n_sites) int8. Returns pairs (distinct, 2) of n and f, one for each in the order of first
    occurrence, and the place of every wanted configuration among them, row by row. Spins are compared as bits, so that no two
    different ones are taken for equal.
    """
    bits = [np.packbits(array < 0, axis=1) for array in (sigma, signs)]
    entries = np.flatnonzero(wanted)
    sample, flip = np.divmod(entries, max(len(signs), 1))
    packed = np.zeros((len(entries), -(-bits[0].shape[1] // 8) * 8), np.uint8)
    packed[:, : bits[0].shape[1]] = bits[0][sample] ^ bits[1][flip]
    words = packed.view(np.uint64)
    keys = words[:, 0] if words.shape[1] == 1 else words.view([("", np.uint64)] * words.shape[1])[:, 0]
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return np.stack([sample[first[order]], flip[first[order]]], axis=1), rank[place.reshape(-1)]


def configurations(index: np.ndarray, n_sites: int) -> np.ndarray:
    """Configurations (..., n_sites) int8 of the basis states ``index`` (...): site 0 is the highest bit, bit
    0 is +1.
    """
    bits = (np.asarray(index)[..., None] >> np.arange(n_sites - 1, -1, -1)) & 1
    return (1 - 2 * bits).astype(np.int8)


def basis_index(sigma: np.ndarray) -> np.ndarray:
    """Index (...) int64 of the configurations (..., n_sites): the inverse of ``configurations``."""
    n_sites = sigma.shape[-1]
    return (sigma < 0) @ (np.int64(1) << np.arange(n_sites - 1, -1, -1))
