"""The transverse-field Ising chain as free Majorana fermions, also in fields that differ from site to site.

With a_j = (prod_{l<j} sx_l) sz_j and b_j = (prod_{l<j} sx_l) sy_j one has sx_j = i a_j b_j,
sz_j sz_{j+1} = -i a_{j+1} b_j and

    H = -i sum_ij a_i M_ij b_j,    M_jj = h_j,    M_{j+1,j} = -J,

on a ring also M_{0,N-1} = +J: the sector of even parity, P = prod_j sx_j = 1. For positive h_j every off-diagonal element of
-H is non-negative and connects all configurations, so the ground state is positive, unique, and even. (Where h_j < 0, a
rotation of spin j by pi about z makes it positive and turns sx_j into -sx_j; nothing else changes.) From M = U S V^T with
S >= 0 follow, for a filling D = diag(+-1) of the modes,

    E = -tr(D S),    <i a_i b_j> = G_ij = (U D V^T)_ij,    P = det G,

so D = 1 if det M > 0, and on a frustrated ring (J < 0, N odd, weak fields), where det M < 0, the mode of least S is
excited. Where a field is zero on a line that mode costs nothing, and P = 1 decides. By Wick's theorem

    <sx_j> = G_jj,    <sz_i sz_j> = det( -G[i+1..j, i..j-1] )   for i < j.

On a ring with equal fields, with k = (2m + 1) pi / N and unless it is frustrated,

    G_ij = (1/N) sum_k e^{ik(i-j)} (h - J e^{-ik}) / |h - J e^{-ik}|,    E = -sum_k |h - J e^{-ik}|.

After a quench to another M = U S V^T the Majoranas rotate, da/dt = i[H, a] = -2 M b, db/dt = 2 M^T a:

    a(t) = U cos(2St) U^T a - U sin(2St) V^T b,    b(t) = V sin(2St) U^T a + V cos(2St) V^T b.

<i a_i a_j> and <i b_i b_j> no longer vanish for i != j. With w = (a_0, b_0, a_1, b_1, ...) and Gamma_xy = <i w_x w_y> for
x != y, real and antisymmetric, the determinant becomes a Pfaffian,

    <sz_i sz_j> = Pf Gamma[b_i, a_{i+1}, b_{i+1}, ..., a_j].

Lieb, Schultz & Mattis, Ann. Phys. 16, 407 (1961); Pfeuty, Ann. Phys. 57, 79 (1970); random fields: Young & Rieger, PRB 53,
8486 (1996); quenches: Barouch & McCoy, PRA 3, 786 (1971); Calabrese, Essler & Fagotti, J. Stat. Mech. P07016 (2012).
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
        return self.turned * np.diagonal(self.majorana_correlations)

    @property
    def turned(self) -> np.ndarray:
        """-1 where the spin is rotated because its field is negative, else +1, (n_sites,)."""
        return np.where(np.asarray(self.h) < 0, -1.0, 1.0)

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
        u, s, vt = np.linalg.svd(self.couplings(np.abs(self.h)))
        return u, s, vt

    def couplings(self, fields: np.ndarray) -> np.ndarray:
        """M, (n_sites, n_sites), in ``fields`` (n_sites,) instead of its own."""
        matrix = np.diag(fields) + np.diag(np.full(self.n_sites - 1, -self.J), -1)
        if self.ring:
            matrix[0, -1] += self.J
        return matrix

    @property
    def _filling(self) -> np.ndarray:
        filling, (u, _, vt) = np.ones(self.n_sites), self._modes
        if np.linalg.slogdet(u @ vt)[0] < 0:
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


@dataclass(frozen=True, eq=False)
class GaussianState:
    """An even state of free fermions: Gamma (2 n_sites, 2 n_sites) of a_0, b_0, a_1, b_1, ...

    ``turned`` (n_sites,): -1 where a spin is rotated by pi about z, else +1. ``uniform``: on a ring whose sites are all alike.
    """

    covariance: np.ndarray
    turned: np.ndarray
    uniform: bool
    _known: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def sigma_x(self) -> np.ndarray:
        """<sx_j> at every site, (n_sites,)."""
        return self.turned * np.diagonal(self.covariance[::2, 1::2])

    def representative(self, i: int, j: int) -> tuple[int, int]:
        """A pair of the same correlation, in order: on a uniform ring (0, r), r at most n_sites / 2."""
        r = abs(i - j)
        return (0, min(r, len(self.turned) - r)) if self.uniform else (min(i, j), max(i, j))

    def correlation(self, i: int, j: int) -> float:
        """<sz_i sz_j>. O(|i - j|^3), once for each pair."""
        pair = self.representative(i, j)
        if pair not in self._known:
            inside = slice(2 * pair[0] + 1, 2 * pair[1] + 1)
            self._known[pair] = pfaffian(self.covariance[inside, inside])
        return self._known[pair]


@dataclass(frozen=True)
class IsingQuench:
    """The ground state of the chain ``before`` (None: all spins along +x) evolves under ``after``, of the same shape.

    Spins in negative fields before are rotated by pi about z, as in the ground state: the parity is then even.
    """

    before: IsingChain | None
    after: IsingChain

    @property
    def energy(self) -> float:
        """<H> after the quench, total: conserved."""
        return -float(np.sum(self._couplings * self._initial))

    def at(self, time: float) -> GaussianState:
        """The state at a time, in units of 1 / energy. O(n_sites^3)."""
        n, (u, s, vt) = self.after.n_sites, self._modes
        cos, sin = np.cos(2 * s * time), np.sin(2 * s * time)
        rotation = np.block([[u * cos @ u.T, -u * sin @ vt], [vt.T * sin @ u.T, vt.T * cos @ vt]])
        zero = np.zeros((n, n))
        blocks = np.block([[zero, self._initial], [-self._initial.T, zero]])
        interleaved = np.arange(2 * n).reshape(2, n).T.ravel()
        covariance = (rotation @ blocks @ rotation.T)[np.ix_(interleaved, interleaved)]
        chains = [self.after] if self.before is None else [self.before, self.after]
        return GaussianState(covariance, self._turned, all(c.ring and c.homogeneous for c in chains))

    @property
    def _turned(self) -> np.ndarray:
        return np.ones(self.after.n_sites) if self.before is None else self.before.turned

    @property
    def _initial(self) -> np.ndarray:
        return np.eye(self.after.n_sites) if self.before is None else self.before.majorana_correlations

    @property
    def _couplings(self) -> np.ndarray:
        return self.after.couplings(self._turned * self.after.h)

    @cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        u, s, vt = np.linalg.svd(self._couplings)
        return u, s, vt


def pfaffian(matrix: np.ndarray) -> float:
    """Pf A of a real antisymmetric matrix (2n, 2n): Pf(A)^2 = det A.

    Reflections Q reduce A = Q T Q^T to a tridiagonal T, stable without pivots: Pf A = det(Q) T_01 T_23 ... O(n^3). (Wimmer, ACM
    Trans. Math. Softw. 38, 30 (2012).)
    """
    from scipy.linalg.lapack import dgehrd

    if not len(matrix):
        return 1.0
    tridiagonal, reflections, _ = dgehrd(matrix)
    sign = (-1.0) ** np.count_nonzero(reflections)
    return float(sign * np.prod(np.diagonal(tridiagonal, 1)[::2]))
