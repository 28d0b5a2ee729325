"""The transverse-field Ising chain as free Majorana fermions.

With a_j = (prod_{l<j} sx_l) sz_j and b_j = (prod_{l<j} sx_l) sy_j one has sx_j = i a_j b_j,
sz_j sz_{j+1} = -i a_{j+1} b_j and

    H = -i sum_ij a_i M_ij b_j,    M_jj = h,    M_{j+1,j} = -J,

on a ring also M_{0,N-1} = +J (the sector of even parity, which holds the ground state). From M = U S V^T
follow the energy E = -tr S and <i a_i b_j> = G_ij = (U V^T)_ij, and by Wick's theorem

    <sx_j> = G_jj,    <sz_i sz_j> = det( -G[i+1..j, i..j-1] )   for i < j.

On a ring, with k = (2m + 1) pi / N,

    G_ij = (1/N) sum_k e^{ik(i-j)} (h - J e^{-ik}) / |h - J e^{-ik}|,    E = -sum_k |h - J e^{-ik}|.

Lieb, Schultz & Mattis, Ann. Phys. 16, 407 (1961); Pfeuty, Ann. Phys. 57, 79 (1970).

Valid for h >= 0, not both J and h zero, except the frustrated ring (J < 0 and N odd), which callers must
exclude. ``ring`` needs N >= 3.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def ground_energy(n_sites: int, J: float, h: float, ring: bool) -> float:
    """Total ground-state energy, to rounding."""
    if ring:
        return -float(np.abs(h - J * np.exp(-1j * _momenta(n_sites))).sum())
    from scipy.linalg import eigvalsh_tridiagonal

    # The Majoranas a_0, b_0, a_1, b_1, ... form a chain with alternating bonds h, J: its spectrum is +-S.
    bonds = np.full(2 * n_sites - 1, h)
    bonds[1::2] = J
    return -0.5 * float(np.abs(eigvalsh_tridiagonal(np.zeros(2 * n_sites), bonds)).sum())


def sigma_x(n_sites: int, J: float, h: float, ring: bool) -> np.ndarray:
    """<sx_j> at every site, (n_sites,)."""
    return np.diagonal(majorana_correlations(n_sites, J, h, ring)).copy()


def majorana_correlations(n_sites: int, J: float, h: float, ring: bool) -> np.ndarray:
    """G_ij = <i a_i b_j>, (n_sites, n_sites)."""
    if ring:
        k, distance = _momenta(n_sites), np.arange(-n_sites + 1, n_sites)
        symbol = h - J * np.exp(-1j * k)
        g = (np.exp(1j * np.outer(distance, k)) @ (symbol / np.abs(symbol))).real / n_sites
        site = np.arange(n_sites)
        return g[site[:, None] - site[None, :] + n_sites - 1]
    u, _, vt = np.linalg.svd(np.diag(np.full(n_sites, h)) + np.diag(np.full(n_sites - 1, -J), -1))
    return u @ vt


@lru_cache(maxsize=8)
def correlation_matrix(n_sites: int, J: float, h: float, ring: bool) -> np.ndarray:
    """C_ij = <sz_i sz_j>, (n_sites, n_sites), read-only.

    It takes N/2 determinants on a ring, N (N - 1)/2 on an open chain.
    """
    majorana = majorana_correlations(n_sites, J, h, ring)
    if ring:
        c = np.array([_correlation(majorana, 0, r) for r in range(n_sites // 2 + 1)])
        distance = np.abs(np.subtract.outer(np.arange(n_sites), np.arange(n_sites)))
        matrix = c[np.minimum(distance, n_sites - distance)]
    else:
        matrix = np.eye(n_sites)
        for i in range(n_sites):
            for j in range(i + 1, n_sites):
                matrix[i, j] = matrix[j, i] = _correlation(majorana, i, j)
    matrix.flags.writeable = False
    return matrix


def _correlation(majorana: np.ndarray, i: int, j: int) -> float:
    return float(np.linalg.det(-majorana[i + 1 : j + 1, i:j])) if i < j else 1.0


def _momenta(n_sites: int) -> np.ndarray:
    return np.pi * (2 * np.arange(n_sites) + 1) / n_sites
