"""Per-sample derivatives of an RBM in factorised form: O = [s, t, s x t] with t = tanh theta, never written out.

O has N + M + N M complex columns made of N + M numbers. Everything that stochastic reconfiguration asks for follows from those:

    O O^dagger + 1 = (1 + S S^T) * (1 + t t^dagger)                 (elementwise product; S, t hold one sample a row)
    O v            = S v_a + t v_b + sum_j (S V)_j t_j
    O^dagger y     = [S^T y, t^dagger y, S^T (conj(t) y)]

Centring over the samples acts on these results: with P = I - 1 1^T / n, O-bar = P O / sqrt(n). psi is holomorphic, so one
complex row per sample stands for the two real ones of the general case, and the real and imaginary parts of O-bar^dagger y
belong to the real and imaginary parts of the parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..engine.jit import njit, prange
from ..engine.ranks import ALONE, Ranks
from .state import State

if TYPE_CHECKING:
    from ..engine.panels import Panels

_TILE = 128
_ROWS = 256  # rows of one product; fixed, so that sums do not depend on the number of threads


@njit(parallel=True)
def _kernel(spins, t, turned, mean, grand, total):
    """((1 + S S^T) * (1 + t t^dagger) - mean_i - conj(mean_j) + grand) / n, by tiles on and below the diagonal.

    spins (n, N), t (n, 2 M) = [Re, Im], turned (n, 2 M) = [Im, -Re], mean (n,) complex the row means of that product and grand
    their mean, total (n, n) complex, written.
    n (n + tile) (N + 4 M) FLOPs, 16 n^2 bytes written.
    """
    n = len(spins)
    side = (n + _TILE - 1) // _TILE
    for pair in prange(side * (side + 1) // 2):
        i = int((np.sqrt(8.0 * pair + 1.0) - 1.0) / 2.0)
        while i * (i + 1) // 2 > pair:
            i -= 1
        while (i + 1) * (i + 2) // 2 <= pair:
            i += 1
        j = pair - i * (i + 1) // 2
        i0, i1 = i * _TILE, min(n, (i + 1) * _TILE)
        j0, j1 = j * _TILE, min(n, (j + 1) * _TILE)
        overlap = np.dot(spins[i0:i1], spins[j0:j1].T)
        real = np.dot(t[i0:i1], t[j0:j1].T)
        imaginary = np.dot(turned[i0:i1], t[j0:j1].T)
        for r in range(i1 - i0):
            for c in range(min(j1 - j0, i0 + r + 1 - j0)):
                factor = 1.0 + overlap[r, c]
                centred = grand - mean[i0 + r] - mean[j0 + c].conjugate()
                value = complex(
                    (factor * (1.0 + real[r, c]) + centred.real) / n,
                    (factor * imaginary[r, c] + centred.imag) / n,
                )
                total[i0 + r, j0 + c] = value
                total[j0 + c, i0 + r] = value.conjugate()


@njit(parallel=True)
def _product(spins, t, v_a, v_b, v, out):
    """O v (n,) complex: v_a (N,), v_b (M,) complex, v (N, 2 M) = [Re, Im]. 4 n N M FLOPs."""
    n, units = len(spins), t.shape[1] // 2
    for block in prange((n + _ROWS - 1) // _ROWS):
        first, last = block * _ROWS, min(n, (block + 1) * _ROWS)
        mixed = np.dot(spins[first:last], v)
        for r in range(last - first):
            row, m = t[first + r], mixed[r]
            re, im = 0.0, 0.0
            for j in range(units):
                x, y = m[j] + v_b[j].real, m[units + j] + v_b[j].imag
                re += row[j] * x - row[units + j] * y
                im += row[j] * y + row[units + j] * x
            for i in range(spins.shape[1]):
                re += spins[first + r, i] * v_a[i].real
                im += spins[first + r, i] * v_a[i].imag
            out[first + r] = complex(re, im)


@njit(parallel=True)
def _adjoint(spins, t, y, weight, bias):
    """S^T (conj(t) y) and sum conj(t) y of each block of rows: weight (blocks, N, 2 M), bias (blocks, 2 M). 4 n N M FLOPs."""
    n, units = len(spins), t.shape[1] // 2
    for block in prange((n + _ROWS - 1) // _ROWS):
        first, last = block * _ROWS, min(n, (block + 1) * _ROWS)
        turned = np.empty((last - first, 2 * units))
        for r in range(last - first):
            row, re, im = t[first + r], y[first + r].real, y[first + r].imag
            for j in range(units):
                turned[r, j] = row[j] * re + row[units + j] * im
                turned[r, units + j] = row[j] * im - row[units + j] * re
        np.dot(spins[first:last].T, turned, weight[block])
        bias[block] = 0.0
        for r in range(last - first):
            for j in range(2 * units):
                bias[block, j] += turned[r, j]


class RbmJacobian:
    """O-bar of one set of samples, see ``fused.Jacobian``: spins (n, N), tangents t (n, 2 M) = [Re, Im] of this rank's."""

    def __init__(self, state: State, sigma: np.ndarray, tangents: np.ndarray, ranks: Ranks = ALONE):
        self.state, self.n, self.ranks = state, len(sigma), ranks
        self.samples = int(ranks.sum(np.asarray([self.n]))[0])
        self.spins, self.t = sigma.astype(np.float64), tangents

    @property
    def direct_operations(self) -> float:
        """FLOPs of T and its complex Cholesky factor, of all ranks together."""
        n = self.samples
        return n**2 * (self.spins.shape[1] + 2.0 * self.t.shape[1]) + 4 / 3 * n**3

    @property
    def product_operations(self) -> float:
        """FLOPs of O-bar v and O-bar^dagger y together, of all ranks."""
        return 4.0 * self.samples * self.spins.shape[1] * self.t.shape[1]

    def rows(self, values: np.ndarray) -> np.ndarray:
        """The values themselves: one complex row per sample."""
        return values.astype(np.complex128)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """O-bar v (n,) complex, vector (n_parameters,) real and imaginary parts of v."""
        w = self.state.unpack(vector)
        units = self.t.shape[1] // 2
        v_a = w["visible.real"] + 1j * w["visible.imaginary"]
        v_b = w["hidden.bias"][:units] + 1j * w["hidden.bias"][units:]
        moved = self._raw_product(v_a, v_b, w["hidden.weight"])
        return self._centred(moved)

    def _centred(self, values: np.ndarray) -> np.ndarray:
        """Without the mean over all samples, divided by the square root of their number."""
        mean = self.ranks.sum(values.sum(keepdims=True)) / self.samples
        return (values - mean) / math.sqrt(self.samples)

    def _raw_product(self, v_a: np.ndarray, v_b: np.ndarray, v: np.ndarray) -> np.ndarray:
        out = np.empty(self.n, np.complex128)
        _product(self.spins, self.t, v_a, v_b, np.ascontiguousarray(v), out)
        return out

    def transposed_product(self, y: np.ndarray) -> np.ndarray:
        """Real and imaginary parts (n_parameters,) of O-bar^dagger y, y (n,) complex."""
        v_a, v_b, v = self._raw_adjoint(self._centred(y))
        parts = {
            "visible.real": v_a.real,
            "visible.imaginary": v_a.imag,
            "hidden.bias": v_b,
            "hidden.weight": v,
        }
        return self.ranks.sum(np.concatenate([parts[name].ravel() for name in self.state.layout]))

    def _raw_adjoint(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """O^dagger y: (N,) complex, (2 M,) and (N, 2 M) real parts beside imaginary ones."""
        blocks, (n_sites, width) = -(-self.n // _ROWS), (self.spins.shape[1], self.t.shape[1])
        weight, bias = np.empty((blocks, n_sites, width)), np.empty((blocks, width))
        _adjoint(self.spins, self.t, y, weight, bias)
        v_a = self.spins.T @ y.real + 1j * (self.spins.T @ y.imag)
        return v_a, bias.sum(axis=0), weight.sum(axis=0)

    @property
    def _row_means(self) -> np.ndarray:
        """Mean over j of (1 + S S^T)_ij (1 + t t^dagger)_ij: O_i . conj(mean O) + 1, (n,) complex."""
        adjoint = self._raw_adjoint(np.full(self.n, 1 / self.samples, np.complex128))
        v_a, v_b, v = map(self.ranks.sum, adjoint)
        units = len(v_b) // 2
        return 1 + self._raw_product(v_a, v_b[:units] + 1j * v_b[units:], v)

    def gram_and_product(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """T (n, n) Hermitian and O-bar v (n,)."""
        units = self.t.shape[1] // 2
        turned = np.concatenate([self.t[:, units:], -self.t[:, :units]], axis=1)
        total = np.empty((self.n, self.n), np.complex128)
        means = self._row_means
        _kernel(self.spins, self.t, turned, means, means.real.mean(), total)
        return total, self.product(vector)

    def gram_panels(self, panels: Panels) -> dict[int, np.ndarray]:
        """This rank's panels of T. Every rank gets the factors S and t of all: 8 (N + 2 M) bytes a sample."""
        means = self.ranks.gather(self._row_means)
        spins, t, grand = self.ranks.gather(self.spins), self.ranks.gather(self.t), means.real.mean()
        units = t.shape[1] // 2
        turned = np.concatenate([t[:, units:], -t[:, :units]], axis=1)

        def tile(rows: slice, columns: slice) -> np.ndarray:
            product = t[rows] @ t[columns].T + 1j * (turned[rows] @ t[columns].T)
            product = (1 + spins[rows] @ spins[columns].T) * (1 + product)
            return (product - means[rows, None] - means[columns].conj() + grand) / self.samples

        total = panels.zeros(spins, np.complex128)
        panels.add(total, tile)
        return total
