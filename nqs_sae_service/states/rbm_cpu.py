"""The RBM on the CPU by look-up tables: Metropolis walks and ratios psi'/psi without a transcendental function per flip.

With d_i = a_i - sum_j W_ij and x_j = e^(2 theta_j),

    psi = e^(d.s - sum_j b_j) prod_j (1 + x_j) / 2,

and flipping site i multiplies x_j by the tabulated e^(-4 s_i W_ij). Each hidden unit is kept as a pair c, y with x = y / c,
c > 0 and |c|, |y| <= 1/2, so that nothing overflows however large theta is:

    psi'/psi = e^(-2 s_i d_i) prod_j (c_j + y_j e^(-4 s_i W_ij)) / prod_j (c_j + y_j)

One flip costs 8 multiply-adds for each hidden unit and reads one row of the table; accepting it costs nothing more, the new y
has been computed. Where a product leaves the range of a double, and for stretches of more than half of the sites, theta itself
is moved and log psi taken from it. Every walk starts from fresh theta, so rounding does not build up.

All arithmetic is float64 on split real and imaginary parts, which vectorises where complex numbers do not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.exponentials import cosine_and_sine, exp_negative
from ..engine.jit import njit, prange
from ..engine.ranks import ALONE, Ranks
from .rbm_jacobian import RbmJacobian
from .state import State

# Factors multiplied before their logarithm is taken: typical ones lie between 0.5 and 1.
GROUP = 256
_SMALLEST, _LARGEST = 1e-280, 1e280  # squared modulus of a group's product
_TAME = 150.0  # largest |Re theta| for which the tables are used: e^(4 * 150) is still a double
_BLOCK = 16  # configurations a thread takes at a time


class Tables(NamedTuple):
    """Parameters as the kernels read them. Index 0 of ``gain`` and ``factor`` is for a spin +1, index 1 for -1."""

    a: np.ndarray  # (N,) complex
    b: np.ndarray  # (2, M): real, imaginary
    weight: np.ndarray  # (2, N, M)
    drift: np.ndarray  # (N,) complex: d_i
    gain: np.ndarray  # (2, N, 2, M): [spin, site, real or imaginary] of e^(-4 s W)
    factor: np.ndarray  # (2, N) complex: e^(-2 s d)
    tame: bool  # whether c, y and their products with gains stay inside the range of a double for all configurations


@njit()
def _angles(spins, tables, theta):
    """theta (2, M) of one configuration: 2 N M additions."""
    weight = tables.weight
    theta[:] = tables.b
    for i in range(spins.size):
        s = float(spins[i])
        for j in range(theta.shape[1]):
            theta[0, j] += s * weight[0, i, j]
            theta[1, j] += s * weight[1, i, j]


@njit()
def _units(theta, c, y, row, bits):
    """c (M,) and y (2, M) with cosh theta_j = (c_j + y_j) e^(|Re theta_j| - i Im theta_j); the sum of these exponents."""
    real, imaginary = 0.0, 0.0
    for j in range(c.size):
        row[j] = 2.0 * theta[1, j]
        c[j] = -2.0 * abs(theta[0, j])
        real += abs(theta[0, j])
        imaginary -= theta[1, j]
    cosine_and_sine(row, y[0], y[1])
    exp_negative(c, bits)
    for j in range(c.size):
        e = 0.5 * c[j]
        positive = theta[0, j] >= 0
        scale = 0.5 if positive else e
        c[j] = e if positive else 0.5
        y[0, j] *= scale
        y[1, j] *= scale
    return real, imaginary


@njit()
def _multiply_groups(z):
    """Products of groups of at most GROUP columns of z (2, M), left in the first columns; their number."""
    size = z.shape[1]
    groups = (size + GROUP - 1) // GROUP
    while size > groups:
        half = max((size + 1) // 2, groups)
        for j in range(size - half):
            re, im = z[0, j + half], z[1, j + half]
            z[0, j], z[1, j] = z[0, j] * re - z[1, j] * im, z[0, j] * im + z[1, j] * re
        size = half
    return groups


@njit()
def _in_range(z, groups):
    """Whether the products keep their precision (NaN does not)."""
    fine = True
    for k in range(groups):
        size = z[0, k] * z[0, k] + z[1, k] * z[1, k]
        fine = fine and size > _SMALLEST and size < _LARGEST
    return fine


@njit()
def _log(z, count):
    """Sum of the complex logarithms of the first columns of z."""
    real, imaginary = 0.0, 0.0
    for k in range(count):
        real += math.log(math.hypot(z[0, k], z[1, k]))
        imaginary += math.atan2(z[1, k], z[0, k])
    return real, imaginary


@njit()
def _log_modulus(z, groups):
    """Re of ``_log`` for products in range."""
    total = 0.0
    for k in range(groups):
        total += math.log(z[0, k] * z[0, k] + z[1, k] * z[1, k])
    return 0.5 * total


@njit()
def _sum_units(c, y, z):
    """z <- c + y."""
    for j in range(c.size):
        z[0, j] = c[j] + y[0, j]
        z[1, j] = y[1, j]


@njit()
def _log_product(c, y, z):
    """log prod_j (c_j + y_j), factor by factor where the product leaves the range; ``z`` is scratch."""
    _sum_units(c, y, z)
    groups = _multiply_groups(z)
    if _in_range(z, groups):
        return _log(z, groups)
    _sum_units(c, y, z)
    return _log(z, c.size)


@njit()
def _log_psi(spins, theta, tables, c, y, z, row, bits):
    """log psi (real, imaginary) of one configuration with these theta; fills c and y."""
    real, imaginary = _units(theta, c, y, row, bits)
    re, im = _log_product(c, y, z)
    a = tables.a
    for i in range(spins.size):
        re += spins[i] * a[i].real
        im += spins[i] * a[i].imag
    return real + re, imaginary + im


@njit()
def _times(gain, y, out):
    """out <- y gain, both (2, M) pairs of real and imaginary parts; out may be y."""
    for j in range(y.shape[1]):
        re, im = y[0, j], y[1, j]
        out[0, j] = re * gain[0, j] - im * gain[1, j]
        out[1, j] = re * gain[1, j] + im * gain[0, j]


@njit()
def _flip_once(gain, c, y, out, z):
    """out <- y gain and z <- c + out in one pass."""
    for j in range(c.size):
        re = y[0, j] * gain[0, j] - y[1, j] * gain[1, j]
        im = y[0, j] * gain[1, j] + y[1, j] * gain[0, j]
        out[0, j], out[1, j] = re, im
        z[0, j], z[1, j] = c[j] + re, im


@njit()
def _site(first, length, step, n):
    """Site number ``step`` of a proposal: of a stretch, or of the two that exchange their spins."""
    if length < 0 and step == 1:
        return -length - 1
    return (first + step) % n


@njit()
def _move(theta, spins, first, length, tables, out):
    """out <- theta after a proposal, for long stretches by way of a flip of all spins, which changes fewer sites."""
    n = spins.size
    weight = tables.weight
    whole = 2 * length > n
    sign = 1.0 if whole else -1.0
    start, count = (first + length, n - length) if whole else (first, 2 if length < 0 else length)
    for j in range(out.shape[1]):
        out[0, j] = 2.0 * tables.b[0, j] - theta[0, j] if whole else theta[0, j]
        out[1, j] = 2.0 * tables.b[1, j] - theta[1, j] if whole else theta[1, j]
    for step in range(count):
        i = _site(start, length, step, n)
        s = sign * 2.0 * spins[i]
        for j in range(out.shape[1]):
            out[0, j] += s * weight[0, i, j]
            out[1, j] += s * weight[1, i, j]


@njit()
def _flip(spins, first, length):
    for step in range(2 if length < 0 else length):
        i = _site(first, length, step, spins.size)
        spins[i] = -spins[i]


@njit()
def _walk_chain(sigma, first, length, threshold, tables):
    """All proposals of one chain, in place on sigma (N,); (log psi, number accepted)."""
    n, units = sigma.size, tables.b.shape[1]
    theta, theta_new = np.empty((2, units)), np.empty((2, units))
    y, y_new, z = np.empty((2, units)), np.empty((2, units)), np.empty((2, units))
    c, c_new, row = np.empty(units), np.empty(units), np.empty(units)
    bits = np.empty(units, np.int64)
    accepted = 0
    _angles(sigma, tables, theta)
    log_psi = complex(*_log_psi(sigma, theta, tables, c, y, z, row, bits))
    log_p = _log_product(c, y, z)
    for step in range(first.size):
        start, extent = first[step], length[step]
        if extent < 0 and sigma[start] == sigma[-extent - 1]:
            continue
        count = 2 if extent < 0 else extent
        fine = tables.tame and 2 * count <= n
        d_real, d_imaginary = 0.0, 0.0
        new_real, new_imaginary = 0.0, 0.0
        if fine:
            for k in range(count):
                i = _site(start, extent, k, n)
                gain = tables.gain[0 if sigma[i] > 0 else 1, i]
                d_real -= 2.0 * sigma[i] * tables.drift[i].real
                d_imaginary -= 2.0 * sigma[i] * tables.drift[i].imag
                before = y if k == 0 else y_new
                if k == count - 1:
                    _flip_once(gain, c, before, y_new, z)
                else:
                    _times(gain, before, y_new)
            groups = _multiply_groups(z)
            fine = _in_range(z, groups)
            if fine:
                new_real = _log_modulus(z, groups)
                d_real += new_real - log_p[0]
        if not fine:
            _move(theta, sigma, start, extent, tables, theta_new)
            _flip(sigma, start, extent)
            new_real, new_imaginary = _log_psi(sigma, theta_new, tables, c_new, y_new, z, row, bits)
            _flip(sigma, start, extent)
            d_real = new_real - log_psi.real
            if math.isnan(new_real):
                log_psi = complex(math.nan, math.nan)
        if not threshold[step] < 2.0 * d_real:
            continue
        accepted += 1
        if fine:
            new = _log(z, groups)
            log_psi += complex(d_real, d_imaginary + new[1] - log_p[1])
            log_p = (new_real, new[1])
            _move_few(theta, sigma, start, extent, tables)
        else:
            log_psi = complex(new_real, new_imaginary)
            theta, theta_new = theta_new, theta
            c, c_new = c_new, c
            log_p = _log_product(c, y_new, z)
        y, y_new = y_new, y
        _flip(sigma, start, extent)
    return log_psi, accepted


@njit()
def _move_few(theta, spins, first, length, tables):
    """theta of the flipped stretch, in place."""
    weight = tables.weight
    for step in range(2 if length < 0 else length):
        i = _site(first, length, step, spins.size)
        s = 2.0 * spins[i]
        for j in range(theta.shape[1]):
            theta[0, j] -= s * weight[0, i, j]
            theta[1, j] -= s * weight[1, i, j]


@njit(parallel=True)
def _walk(sigma, log_psi, first, length, threshold, accepted, tables):
    """Proposals (chain, row) of every chain, in place on sigma (chains, N); log_psi (chains,) is written."""
    for chain in prange(len(sigma)):
        log_psi[chain], accepted[chain] = _walk_chain(
            sigma[chain], first[chain], length[chain], threshold[chain], tables
        )


@njit(parallel=True)
def _amplitudes(sigma, tables, out):
    """log psi (n,) complex of configurations (n, N): 2 N M additions and three exponentials a hidden unit."""
    units = tables.b.shape[1]
    for block in prange((len(sigma) + _BLOCK - 1) // _BLOCK):
        theta, y, z = np.empty((2, units)), np.empty((2, units)), np.empty((2, units))
        c, row, bits = np.empty(units), np.empty(units), np.empty(units, np.int64)
        for n in range(block * _BLOCK, min(len(sigma), (block + 1) * _BLOCK)):
            _angles(sigma[n], tables, theta)
            re, im = _log_psi(sigma[n], theta, tables, c, y, z, row, bits)
            out[n] = complex(re, im)


@njit(parallel=True)
def _ratios(sigma, wanted, ends, sites, tables, out):
    """psi'/psi (n, flips) where flip f turns sites[ends[f] : ends[f + 1]]; 0 where it is not ``wanted``."""
    units, flips = tables.b.shape[1], out.shape[1]
    for block in prange((len(sigma) + _BLOCK - 1) // _BLOCK):
        theta, theta_new = np.empty((2, units)), np.empty((2, units))
        y, y_new, z, p = (
            np.empty((2, units)),
            np.empty((2, units)),
            np.empty((2, units)),
            np.empty((2, units)),
        )
        c, c_new, row = np.empty(units), np.empty(units), np.empty(units)
        bits, spins = np.empty(units, np.int64), np.empty(sigma.shape[1], np.int8)
        for n in range(block * _BLOCK, min(len(sigma), (block + 1) * _BLOCK)):
            spins[:] = sigma[n]
            _angles(spins, tables, theta)
            log_psi = _log_psi(spins, theta, tables, c, y, z, row, bits)
            _sum_units(c, y, p)
            groups = _multiply_groups(p)
            known = tables.tame and _in_range(p, groups)
            for f in range(flips):
                if not wanted[n, f]:
                    out[n, f] = 0.0
                    continue
                fine = known and ends[f + 1] > ends[f]
                if fine:
                    factor = complex(1.0, 0.0)
                    for k in range(ends[f], ends[f + 1]):
                        i = sites[k]
                        down = 0 if spins[i] > 0 else 1
                        factor *= tables.factor[down, i]
                        before = y if k == ends[f] else y_new
                        if k == ends[f + 1] - 1:
                            _flip_once(tables.gain[down, i], c, before, y_new, z)
                        else:
                            _times(tables.gain[down, i], before, y_new)
                    _multiply_groups(z)
                    fine = _in_range(z, groups) and _SMALLEST < abs(factor) < _LARGEST
                    for k in range(groups):
                        factor *= complex(z[0, k], z[1, k]) / complex(p[0, k], p[1, k])
                    out[n, f] = factor
                if not fine:
                    for k in range(ends[f], ends[f + 1]):
                        spins[sites[k]] = -spins[sites[k]]
                    _angles(spins, tables, theta_new)
                    new = _log_psi(spins, theta_new, tables, c_new, y_new, z, row, bits)
                    for k in range(ends[f], ends[f + 1]):
                        spins[sites[k]] = -spins[sites[k]]
                    out[n, f] = np.exp(complex(new[0] - log_psi[0], new[1] - log_psi[1]))


@njit(parallel=True)
def _tangents(sigma, tables, out):
    """tanh theta (n, 2 M), real parts beside imaginary ones: (y - c) / (y + c)."""
    units = tables.b.shape[1]
    for block in prange((len(sigma) + _BLOCK - 1) // _BLOCK):
        theta, y, c = np.empty((2, units)), np.empty((2, units)), np.empty(units)
        row, bits = np.empty(units), np.empty(units, np.int64)
        for n in range(block * _BLOCK, min(len(sigma), (block + 1) * _BLOCK)):
            _angles(sigma[n], tables, theta)
            _units(theta, c, y, row, bits)
            for j in range(units):
                re, im = y[0, j] + c[j], y[1, j]
                inverse = 1.0 / (re * re + im * im)
                out[n, j] = ((y[0, j] - c[j]) * re + im * im) * inverse
                out[n, units + j] = 2.0 * c[j] * im * inverse


class FastRbm:
    """Parameters of an RBM packed for the kernels: the fast twin of the bricks for one set of parameters."""

    def __init__(self, state: State, parameters: np.ndarray):
        w = {name: array.astype(np.float64) for name, array in state.unpack(parameters).items()}
        self.state = state
        hidden = state.width // 2
        a = w["visible.real"] + 1j * w["visible.imaginary"]
        weight = w["hidden.weight"][:, :hidden] + 1j * w["hidden.weight"][:, hidden:]
        drift = a - weight.sum(axis=1)
        largest = (np.abs(w["hidden.bias"][:hidden]) + np.abs(weight.real).sum(axis=0)).max()
        spins = np.array([1.0, -1.0])
        with np.errstate(over="ignore", invalid="ignore"):  # the kernels see what is out of range
            gain = np.exp(-4 * spins[:, None, None] * weight)
            factor = np.exp(-2 * spins[:, None] * drift)
        self.tables = Tables(
            a,
            w["hidden.bias"].reshape(2, hidden),
            np.stack([weight.real, weight.imag]),
            drift,
            np.stack([gain.real, gain.imag], axis=2),
            factor,
            bool(largest < _TAME and np.isfinite(drift).all()),
        )

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n,) complex128 of configurations (n, n_sites) int8, the phase modulo 2 pi."""
        out = np.empty(len(sigma), np.complex128)
        _amplitudes(np.ascontiguousarray(sigma), self.tables, out)
        return out

    def walk(
        self,
        sigma: np.ndarray,
        log_psi: np.ndarray,
        first: np.ndarray,
        length: np.ndarray,
        threshold: np.ndarray,
        ahead: bool = True,
    ) -> int:
        """Metropolis proposals in place, see ``fused.Walks``: 4 (length + 1) M multiply-adds for a short stretch.

        Proposals are too cheap for any to be evaluated ``ahead``.
        """
        accepted = np.empty(len(sigma), np.int64)
        proposals = (np.ascontiguousarray(array.T) for array in (first, length, threshold))
        _walk(sigma, log_psi, *proposals, accepted, self.tables)
        return int(accepted.sum())

    def ratios(
        self, sigma: np.ndarray, log_psi: np.ndarray, signs: np.ndarray, wanted: np.ndarray
    ) -> np.ndarray:
        """psi(sigma signs_f) / psi(sigma), (n, flips) complex128: 8 M multiply-adds for each single flip that is ``wanted``."""
        flip, sites = np.nonzero(signs < 0)
        ends = np.searchsorted(flip, np.arange(len(signs) + 1))
        out = np.empty((len(sigma), len(signs)), np.complex128)
        _ratios(np.ascontiguousarray(sigma), wanted, ends, sites, self.tables, out)
        return out

    def jacobian(self, sigma: np.ndarray, ranks: Ranks = ALONE) -> RbmJacobian:
        """O-bar of configurations (n, n_sites) in factorised form."""
        tangents = np.empty((len(sigma), self.state.width))
        _tangents(np.ascontiguousarray(sigma), self.tables, tangents)
        return RbmJacobian(self.state, sigma, tangents, ranks)
