"""Exchange of spins S = sigma / 2: sums of S_i . S_j over pairs, and the scalar chirality of triangles.

Both conserve sum_i S^z_i: an element leads from one configuration to another only by exchanging two unequal spins.

Some spins may be *rotated* by pi about z, S^x, S^y -> -S^x, -S^y (the Marshall rotation, ``hamiltonians/heisenberg.py``). The
exchange of a pair of which one spin is rotated then changes its sign. In such a frame psi(sigma) is (-1)^(number of up spins
among the rotated) times the wave function of the spins themselves; expectation values of operators rotated alike are the
same.
"""

from __future__ import annotations

import numpy as np

from ..engine.arrays import beside, namespace
from .operators import Operator


def exchange_sign(rotated: np.ndarray | None, pairs: np.ndarray) -> np.ndarray:
    """Sign (n_pairs,) of S^x_i S^x_j + S^y_i S^y_j for every pair: -1 where one of the two spins is rotated, else +1."""
    if rotated is None:
        return np.ones(len(pairs))
    return np.where(rotated[pairs[:, 0]] != rotated[pairs[:, 1]], -1.0, 1.0)


class SpinExchange(Operator):
    """sum_p J_p [S^x S^x + S^y S^y + delta S^z S^z] over pairs p, minus sum_i field_i S^z_i; S = sigma / 2.

    pairs (n_pairs, 2), strength (n_pairs,), field (n_sites,). Where one spin of a pair is ``rotated`` its exchange changes
    sign.
    """

    def __init__(
        self,
        n_sites: int,
        pairs: np.ndarray,
        strength: np.ndarray,
        delta: float = 1.0,
        rotated: np.ndarray | None = None,
        field: np.ndarray | None = None,
    ) -> None:
        self.n_sites, self.flips, self.rotated = n_sites, np.asarray(pairs, np.int32), rotated
        self.strength, self.delta = strength, delta
        self.along_z = delta * strength / 4
        self.across = exchange_sign(rotated, self.flips) * strength / 2
        self.field = None if field is None else field / 2

    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        value = self._products(sigma) @ beside(self.along_z, sigma)
        return value if self.field is None else value - sigma @ beside(self.field, sigma)

    def element(self, sigma: np.ndarray) -> np.ndarray:
        return (self._products(sigma) < 0) * beside(self.across, sigma)

    def bonds(self, pairs: np.ndarray) -> SpinExchange | None:
        """The exchange of these pairs, over n_pairs; None where none of them is coupled."""
        among = np.isin(_pair_keys(self.flips, self.n_sites), _pair_keys(pairs, self.n_sites))
        if not among.any():
            return None
        strength = self.strength[among] / len(pairs)
        return SpinExchange(self.n_sites, self.flips[among], strength, self.delta, self.rotated)

    def _products(self, sigma: np.ndarray) -> np.ndarray:
        pairs = beside(self.flips, sigma)
        return sigma[:, pairs[:, 0]] * sigma[:, pairs[:, 1]]


def _pair_keys(pairs: np.ndarray, n_sites: int) -> np.ndarray:
    low, high = np.sort(np.asarray(pairs, np.int64), axis=1).T
    return low * n_sites + high


class ScalarChirality(Operator):
    """Mean of S_i . (S_j x S_k) over triangles (n_triangles, 3) of sites (i, j, k), of which some spins are ``rotated``.

    It is the sum over cyclic (i, j, k) of S^z_k (S^x_i S^y_j - S^y_i S^x_j) = (i/2) S^z_k (S^+_i S^-_j - S^-_i S^+_j). The
    element of exchanging two unequal spins, (i/8) s_k (s_i - s_j), is imaginary, and there is no diagonal. Triangles share
    pairs: for every pair i < j ``third`` (n_sites, n_pairs) holds +1 or -1 over n_triangles for each third site.
    """

    dtype = np.dtype(np.complex128)

    def __init__(self, n_sites: int, triangles: np.ndarray, rotated: np.ndarray | None = None) -> None:
        corners = np.concatenate([np.roll(triangles, -turn, axis=1) for turn in range(3)])
        pairs, forward = np.sort(corners[:, :2], axis=1), corners[:, 0] < corners[:, 1]
        distinct, place = np.unique(pairs, axis=0, return_inverse=True)
        self.n_sites, self.flips, self.rotated = n_sites, distinct.astype(np.int32), rotated
        self.third = np.zeros((n_sites, len(distinct)))
        weight = np.where(forward, 1.0, -1.0) / len(triangles)
        np.add.at(self.third, (corners[:, 2], place.reshape(-1)), weight)
        self.third *= exchange_sign(rotated, distinct)

    def diagonal(self, sigma: np.ndarray) -> np.ndarray:
        return namespace(sigma).zeros(len(sigma))

    def element(self, sigma: np.ndarray) -> np.ndarray:
        pairs = beside(self.flips, sigma)
        return 0.125j * (sigma[:, pairs[:, 0]] - sigma[:, pairs[:, 1]]) * (sigma @ beside(self.third, sigma))
