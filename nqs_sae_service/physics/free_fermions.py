"""The transverse-field Ising chain as free Majorana fermions, also in fields that differ from site to site.

With a_j = (prod_{l<j} sx_l) sz_j and b_j = (prod_{l<j} sx_l) sy_j one has sx_j = i a_j b_j,
sz_j sz_{j+1} = -i a_{j+1} b_j and

    H = -i sum_ij a_i M_ij b_j,    M_jj = h_j,    M_{j+1,j} = -J,

on a ring also M_{0,N-1} = +J: the sector of even parity, P = prod_j sx_j = 1. For positive h_j every off-diagonal element of
-H is non-negative and connects all configurations, so the ground state is positive, unique, and even. (Where h_j < 0, a
rotation of spin j by pi about z makes it positive and turns sx_j into -sx_j; nothing else changes.) From M = U S V^T with
S >= 0 follow, for a filling D = diag(+-1) of the modes,

    E = -tr(D S),    <i a_i b_j> = G_ij = (U D V^T)_ij,    P = det G,

so D = 1 if det M >= 0, and on a frustrated ring (J < 0, N odd, weak fields), where det M < 0, the mode of least S is
excited. By Wick's theorem

    <sx_j> = G_jj,    <sz_i sz_j> = det( -G[i+1..j, i..j-1] )   for i < j.

On a ring with equal fields, with k = (2m + 1) pi / N and unless it is frustrated,

    G_ij = (1/N) sum_k e^{ik(i-j)} (h - J e^{-ik}) / |h - J e^{-ik}|,    E = -sum_k |h - J e^{-ik}|.

Lieb, Schultz & Mattis, Ann. Phys. 16, 407 (1961); Pfeuty, Ann. Phys. 57, 79 (1970); random fields: Young & Rieger, PRB 53,
8486 (1996).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

_CLOSE = 1e-9  # modes nearer than this share of the largest are degenerate


@dataclass(frozen=True)
class IsingChain:
    """H = -J sum sz_j sz_{j+1} - sum_j h_j sx_j on a line, or on a ``ring`` of at least three sites; not all of it zero."""

    J: float
    h: tuple[float, ...]
    ring: bool

    @property
    def n_sites(self) -> int:
        return len(self.h)

    @property
    def homogeneous(self) -> bool:
        """Whether all fields are equal and not negative."""
        return self.h[0] >= 0 and len(set(self.h)) == 1

    @property
    def frustrated(self) -> bool:
        """An antiferromagnet on an odd ring."""
        return self.J < 0 and self.ring and self.n_sites % 2 == 1

    @cached_property
    def energy(self) -> float:
        """Total ground-state energy, to rounding. O(N) on a ring with equal fields, O(N^2) on a line, else O(N^3)."""
        if self._momentum:
            return -float(np.abs(self._symbol).sum())
        if self.ring:
            return -float(self._filling @ self._modes[1])
        from scipy.linalg import eigvalsh_tridiagonal

        # The Majoranas a_0, b_0, a_1, b_1, ... form a chain with alternating bonds h_j, J: its spectrum is +-S.
        bonds = np.full(2 * self.n_sites - 1, self.J)
        bonds[::2] = self.h
        return -0.5 * float(np.abs(eigvalsh_tridiagonal(np.zeros(2 * self.n_sites), bonds)).sum())

    @cached_property
    def majorana_correlations(self) -> np.ndarray:
        """G_ij = <i a_i b_j>, (n_sites, n_sites), of the spins rotated to positive fields."""
        n = self.n_sites
        if self._momentum:
            distance = np.arange(-n + 1, n)
            phases = np.exp(1j * np.outer(distance, _momenta(n)))
            g = (phases @ (self._symbol / np.abs(self._symbol))).real / n
            site = np.arange(n)
            return g[site[:, None] - site[None, :] + n - 1]
        u, _, vt = self._modes
        return u * self._filling @ vt

    @property
    def unique(self) -> bool:
        """Whether the correlations are those of one state: a frustrated ring in no field has many ground states."""
        if not self.frustrated:
            return True
        s = self._modes[1]
        return bool(self._filling[-1] > 0 or s[-2] - s[-1] > _CLOSE * s[0])

    @property
    def sigma_x(self) -> np.ndarray:
        """<sx_j> at every site, (n_sites,)."""
        return np.where(np.asarray(self.h) < 0, -1.0, 1.0) * np.diagonal(self.majorana_correlations)

    @property
    def correlation_matrix(self) -> np.ndarray:
        """C_ij = <sz_i sz_j>, (n_sites, n_sites), read-only: N/2 determinants on a ring with equal fields, else N (N - 1)/2."""
        return _correlation_matrix(self)

    @property
    def _momentum(self) -> bool:
        return self.ring and self.homogeneous and not self.frustrated

    @property
    def _symbol(self) -> np.ndarray:
        return self.h[0] - self.J * np.exp(-1j * _momenta(self.n_sites))

    @cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """U, S (descending) and V^T of M."""
        n = self.n_sites
        matrix = np.diag(np.abs(self.h)) + np.diag(np.full(n - 1, -self.J), -1)
        if self.ring:
            matrix[0, -1] += self.J
        u, s, vt = np.linalg.svd(matrix)
        return u, s, vt

    @property
    def _filling(self) -> np.ndarray:
        filling, (u, _, vt) = np.ones(self.n_sites), self._modes
        if self.frustrated and np.linalg.slogdet(u @ vt)[0] < 0:
            filling[-1] = -1.0
        return filling


@lru_cache(maxsize=8)
def _correlation_matrix(chain: IsingChain) -> np.ndarray:
    majorana, n = chain.majorana_correlations, chain.n_sites
    if chain._momentum:
        c = np.array([_correlation(majorana, 0, r) for r in range(n // 2 + 1)])
        distance = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        matrix = c[np.minimum(distance, n - distance)]
    else:
        matrix = np.eye(n)
        for i in range(n):
            for j in range(i + 1, n):
                matrix[i, j] = matrix[j, i] = _correlation(majorana, i, j)
    matrix.flags.writeable = False
    return matrix


def _correlation(majorana: np.ndarray, i: int, j: int) -> float:
    return float(np.linalg.det(-majorana[i + 1 : j + 1, i:j])) if i < j else 1.0


def _momenta(n_sites: int) -> np.ndarray:
    return np.pi * (2 * np.arange(n_sites) + 1) / n_sites
