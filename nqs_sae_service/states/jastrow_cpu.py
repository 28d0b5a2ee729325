"""The Jastrow wave function on the CPU: walks and ratios from local fields that follow the flips.

With f_i = a_i + sum_j v_ij s_j, flipping the sites S changes log psi by

    -2 sum_(i in S) s_i f_i + 2 sum_(i != j in S) v_ij s_i s_j,

|S| + |S|^2 products; an accepted flip of site i subtracts 2 s_i v_ij from every f_j, N products. All arithmetic is float64.
Derivatives are the spins and their products summed over classes, whatever the parameters are.
"""

from __future__ import annotations

import numpy as np

from ..engine.jit import njit, prange
from ..engine.ranks import ALONE, Ranks
from .jastrow import Fields, SpinsTimesFields
from .narrow_jacobian import NarrowJacobian
from .state import State

_BLOCK = 16  # configurations a thread takes at a time


@njit()
def _fields(spins, a, v, field):
    """f (channel, N) of one configuration, N^2 products; log psi (real, imaginary)."""
    total = np.zeros(2)
    for c in range(len(field)):
        row = field[c]
        for j in range(row.size):
            row[j] = 0.0
        for i in range(spins.size):
            s, own = float(spins[i]), v[c, i]
            for j in range(row.size):
                row[j] += s * own[j]
        for i in range(spins.size):
            total[c] += spins[i] * (a[c, i] + 0.5 * row[i])
            row[i] += a[c, i]
    return total[0], total[1]


@njit()
def _change(spins, sites, count, v, field):
    """log psi' - log psi (real, imaginary) when the first ``count`` of ``sites`` flip."""
    real, imaginary = 0.0, 0.0
    for c in range(len(field)):
        total = 0.0
        for k in range(count):
            i = sites[k]
            along = field[c, i]
            for m in range(count):
                along -= v[c, i, sites[m]] * spins[sites[m]]
            total -= 2.0 * spins[i] * along
        if c == 0:
            real = total
        else:
            imaginary = total
    return real, imaginary


@njit()
def _flip(spins, sites, count, v, field):
    """Flip the first ``count`` of ``sites``, in place on spins and fields."""
    for k in range(count):
        i = sites[k]
        twice = 2.0 * spins[i]
        spins[i] = -spins[i]
        for c in range(len(field)):
            row, own = field[c], v[c, i]
            for j in range(row.size):
                row[j] -= twice * own[j]


@njit(parallel=True)
def _amplitudes(sigma, a, v, real, imaginary):
    """log psi of configurations sigma (n, N)."""
    for block in prange((len(sigma) + _BLOCK - 1) // _BLOCK):
        field = np.empty(a.shape)
        for n in range(block * _BLOCK, min(len(sigma), (block + 1) * _BLOCK)):
            real[n], imaginary[n] = _fields(sigma[n], a, v, field)


@njit()
def _walk_chain(spins, first, length, threshold, a, v):
    """All proposals of one chain, in place on spins (N,); log psi (real, imaginary), number accepted."""
    field, sites, accepted = np.empty(a.shape), np.empty(spins.size, np.int64), 0
    real, imaginary = _fields(spins, a, v, field)
    for r in range(first.size):
        count = length[r]
        if count < 0:
            sites[0], sites[1], count = first[r], -count - 1, 2
            if spins[sites[0]] == spins[sites[1]]:
                continue
        else:
            for k in range(count):
                sites[k] = (first[r] + k) % spins.size
        d_real, d_imaginary = _change(spins, sites, count, v, field)
        if threshold[r] < 2.0 * d_real:
            accepted += 1
            real, imaginary = real + d_real, imaginary + d_imaginary
            _flip(spins, sites, count, v, field)
    return real, imaginary, accepted


@njit(parallel=True)
def _walk(sigma, real, imaginary, first, length, threshold, accepted, a, v):
    """Proposals (chain, row) of every chain, in place on sigma (chains, N)."""
    for chain in prange(len(sigma)):
        real[chain], imaginary[chain], accepted[chain] = _walk_chain(
            sigma[chain], first[chain], length[chain], threshold[chain], a, v
        )


@njit(parallel=True)
def _ratios(sigma, wanted, ends, sites, a, v, out):
    """psi'/psi (n, flips) where flip f turns sites[ends[f] : ends[f + 1]]; 0 where it is not ``wanted``."""
    for block in prange((len(sigma) + _BLOCK - 1) // _BLOCK):
        field = np.empty(a.shape)
        for n in range(block * _BLOCK, min(len(sigma), (block + 1) * _BLOCK)):
            _fields(sigma[n], a, v, field)
            for f in range(out.shape[1]):
                out[n, f] = 0.0
                if wanted[n, f]:
                    count = ends[f + 1] - ends[f]
                    real, imaginary = _change(sigma[n], sites[ends[f] :], count, v, field)
                    out[n, f] = np.exp(complex(real, imaginary))


@njit(parallel=True)
def _pair_sums(sigma, classes, out):
    """Columns of O of the couplings, (n, class): half the sum of s_i s_j over the ordered pairs of a class. N^2 additions."""
    for n in prange(len(sigma)):
        row, spins = out[n], sigma[n]
        for i in range(spins.size):
            for j in range(i):
                row[classes[i, j]] += spins[i] * spins[j]


class FastJastrow:
    """The fast twin for one set of parameters, with the abilities ``Walks``, ``FlipRatios`` and ``Differentiates``."""

    def __init__(self, state: State, parameters: np.ndarray):
        self.state = state
        w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        fields, products = state.bricks
        assert isinstance(fields, Fields)
        assert isinstance(products, SpinsTimesFields)
        self.pairs, self.sites = fields.classes, products.classes
        self.a = np.ascontiguousarray(w["site.bias"][:, self.sites])
        self.v = np.ascontiguousarray(fields.couplings(w))

    def _psi(self, real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
        return real + 1j * imaginary if self.state.complex_amplitude else real

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) of configurations (n, n_sites) int8."""
        real, imaginary = np.empty(len(sigma)), np.empty(len(sigma))
        _amplitudes(np.ascontiguousarray(sigma), self.a, self.v, real, imaginary)
        return self._psi(real, imaginary)

    def walk(self, sigma, log_psi, first, length, threshold, ahead=True) -> int:
        """Metropolis proposals in place, see ``fused.Walks``."""
        real, imaginary = np.empty(len(sigma)), np.empty(len(sigma))
        accepted = np.empty(len(sigma), np.int64)
        moves = (np.ascontiguousarray(array.T) for array in (first, length, threshold))
        _walk(sigma, real, imaginary, *moves, accepted, self.a, self.v)
        log_psi[...] = self._psi(real, imaginary)
        return int(accepted.sum())

    def ratios(self, sigma, log_psi, signs, wanted) -> np.ndarray:
        """psi(sigma signs_f) / psi(sigma), (n, flips), see ``fused.FlipRatios``."""
        flip, sites = np.nonzero(signs < 0)
        ends = np.searchsorted(flip, np.arange(len(signs) + 1))
        out = np.empty((len(sigma), len(signs)), np.complex128)
        _ratios(np.ascontiguousarray(sigma), wanted, ends, sites, self.a, self.v, out)
        return out if self.state.complex_amplitude else out.real

    def jacobian(self, sigma: np.ndarray, ranks: Ranks = ALONE) -> NarrowJacobian:
        """O-bar of configurations (n, n_sites): one row per sample, complex with a phase."""
        n, count = len(sigma), int(self.sites.max()) + 1
        couplings = np.zeros((n, int(self.pairs.max()) + 1))
        _pair_sums(np.ascontiguousarray(sigma), self.pairs, couplings)
        same = (self.sites[:, None] == np.arange(count)).astype(np.float64)
        o = np.concatenate([couplings, sigma.astype(np.float64) @ same], axis=1)
        places = self.state.unpack(np.arange(self.state.n_parameters))
        real, *imaginary = (
            np.concatenate([places["pair.coupling"][c], places["site.bias"][c]]) for c in range(len(self.a))
        )
        return NarrowJacobian(o, self.state.n_parameters, real, imaginary[0] if imaginary else None, ranks)
