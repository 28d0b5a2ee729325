"""O-bar of a network with few parameters, held whole: fewer columns than samples make the system of minSR a small one.

With q columns and m rows, (T + shift)^-1 follows from a q x q system (Woodbury):

    (T + shift)^-1 r = (r - O-bar (O-bar^dagger O-bar + shift)^-1 O-bar^dagger r) / shift

Where psi is holomorphic in complex parameters a complex column stands for a pair of real ones, and a complex row for the two
rows of Re O-bar and Im O-bar.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..engine.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from ..engine.panels import Panels


class NarrowJacobian:
    """``fused.Jacobian`` of derivatives O (n, q) of this rank's samples; with the ability ``SolvesItself``.

    Column c belongs to the flat parameter ``real[c]`` and, where psi is holomorphic, ``imaginary[c]`` (else None). Derivatives
    may be real although psi has a phase. 16 n q bytes at most.
    """

    def __init__(
        self,
        o: np.ndarray,
        n_parameters: int,
        real: np.ndarray,
        imaginary: np.ndarray | None,
        ranks: Ranks = ALONE,
    ):
        self.n_parameters, self.real, self.imaginary, self.ranks = n_parameters, real, imaginary, ranks
        self.samples = int(ranks.sum(np.asarray([len(o)]))[0])
        mean = ranks.sum(o.sum(axis=0)) / self.samples
        self.o = (o - mean) / math.sqrt(self.samples)

    def rows(self, values: np.ndarray) -> np.ndarray:
        """One complex row per sample where psi is holomorphic, else one real row."""
        return values.real if self.imaginary is None else values.astype(np.complex128)

    def product(self, vector: np.ndarray) -> np.ndarray:
        """O-bar vector (n,), vector (n_parameters,) real and imaginary parts. 8 n q FLOPs."""
        if self.imaginary is None:
            return self.o @ vector[self.real]
        return self.o @ (vector[self.real] + 1j * vector[self.imaginary])

    def transposed_product(self, y: np.ndarray) -> np.ndarray:
        """Real and imaginary parts (n_parameters,) of O-bar^dagger y, y (n,)."""
        return self._spread(self.ranks.sum(self.o.conj().T @ y))

    def _spread(self, columns: np.ndarray) -> np.ndarray:
        result = np.zeros(self.n_parameters)
        result[self.real] = columns.real
        if self.imaginary is not None:
            result[self.imaginary] = columns.imag
        return result

    def gram_and_product(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """T (n, n) and O-bar vector (n,). 8 n^2 q FLOPs."""
        gram = self.o @ self.o.conj().T
        dtype = np.float64 if self.imaginary is None else np.complex128
        return gram.astype(dtype, copy=False), self.product(vector)

    def gram_panels(self, panels: Panels) -> dict[int, np.ndarray]:
        """This rank's panels of T. Every rank gets O-bar of all: 16 q bytes a sample."""
        o = self.ranks.gather(self.o)
        total = panels.zeros(o, np.float64 if self.imaginary is None else np.complex128)
        panels.add(total, lambda rows, columns: o[rows] @ o[columns].conj().T)
        return total

    def solve(self, shift: float, rhs: np.ndarray) -> np.ndarray | None:
        """y (n,) with (T + shift) y = rhs; None where there are more columns than rows. 8 n q^2 + 4/3 q^3 FLOPs."""
        n_columns = self.o.shape[1]
        if n_columns > self.samples:
            return None
        metric = self.ranks.sum(self.o.conj().T @ self.o) + shift * np.eye(n_columns)
        force = self.ranks.sum(self.o.conj().T @ rhs)
        return (rhs - self.o @ self.ranks.agree(np.linalg.solve(metric, force))) / shift
