"""Local estimators: O_loc(sigma) = sum_sigma' <sigma|O|sigma'> psi(sigma') / psi(sigma), so that <O> = E_|psi|^2 [O_loc].

The energy and off-diagonal observables often reach the same configurations sigma' (a transverse field and sigma^x do).
Operators evaluated together share them: each psi(sigma') is computed once. Nothing of size samples x connected x width is ever
held: the network sees at most ``chunk`` configurations at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.arrays import namespace
from ..engine.devices import rows_that_fit
from ..physics.observables import Observable
from ..physics.operators import Operator
from ..states import LogPsi, Wavefunction
from ..states.fused import FlipRatios
from .statistics import append_axes

CHUNK = 16384
CHUNK_ON_DEVICE = 2**18
# Samples: a multiple of every block of the fused networks, so that ``chunk`` does not change the bits.
_ALIGNMENT = 64


def local_values(
    psi: LogPsi, operators: Sequence[Operator], sigma: np.ndarray, log_psi: np.ndarray, chunk: int = 0
) -> list[np.ndarray]:
    """Local estimator of every operator on every configuration.

    sigma (n, n_sites) int8, log_psi (n, ...) of the same wave function, or of a family of them along trailing axes;
    ``chunk``: configurations per network call (0: 16384, on a GPU by its free memory), rounded to calls of a multiple of 64
    samples, at least one. Returns one array (n, ...) per operator, float64, complex128 if psi is complex.
    """
    xp = namespace(sigma)
    flips, places = _shared_flips(operators)
    per_call = (
        max(1, (chunk or _default_chunk(sigma, len(flips))) // max(len(flips), 1) // _ALIGNMENT) * _ALIGNMENT
    )
    values = [
        append_axes(operator.diagonal(sigma), log_psi) + xp.zeros_like(log_psi) for operator in operators
    ]
    flips, places = xp.asarray(flips), [xp.asarray(place) for place in places]
    for start in range(0, len(sigma) if len(flips) else 0, per_call):
        rows = slice(start, start + per_call)
        ratio = _ratios(psi, flips, sigma[rows], log_psi[rows])
        for value, operator, place in zip(values, operators, places, strict=True):
            if operator.n_connected:
                element = append_axes(operator.element(sigma[rows]), ratio)
                value[rows] += (element * ratio[:, place]).sum(axis=1)
    return values


def measure(
    psi: LogPsi, observables: Sequence[Observable], sigma: np.ndarray, log_psi: np.ndarray, chunk: int = 0
) -> np.ndarray:
    """Value, or local estimator, of every observable on every configuration; operators share their network calls.

    sigma (n, n_sites), log_psi (n, ...) -> (n, ..., observable), float64, complex128 if psi is complex.
    """
    operators = [o.operator for o in observables if o.operator is not None]
    estimates = iter(local_values(psi, operators, sigma, log_psi, chunk) if operators else [])
    xp, columns = namespace(sigma), []
    for o in observables:
        if o.operator is not None:
            columns.append(next(estimates))
        elif o.kind == "log_psi":
            columns.append(o.values(log_psi))
        else:
            columns.append(xp.broadcast_to(append_axes(o.values(sigma), log_psi), log_psi.shape))
    return xp.stack(columns, axis=-1)


def _default_chunk(sigma: np.ndarray, flips: int) -> int:
    """A configuration costs its spins, its signs, log psi and the ratio."""
    if namespace(sigma) is np:
        return CHUNK
    return rows_that_fit(4 * sigma.shape[1] + 64, sigma, CHUNK_ON_DEVICE, len(sigma) * flips)


def _ratios(psi: LogPsi, signs: np.ndarray, sigma: np.ndarray, log_psi: np.ndarray) -> np.ndarray:
    """psi(sigma') / psi(sigma) for sigma' = sigma with each row of ``signs`` applied: (n, flips, ...)."""
    flips = psi.twin(FlipRatios) if isinstance(psi, Wavefunction) else None  # type: ignore[type-abstract]
    if flips is not None:
        return flips.ratios(sigma, log_psi, signs)
    connected = (sigma[:, None, :] * signs).reshape(-1, sigma.shape[1])
    log_connected = psi.log_psi(connected).reshape(len(sigma), len(signs), *log_psi.shape[1:])
    return namespace(sigma).exp(log_connected - log_psi[:, None])


def _shared_flips(operators: Sequence[Operator]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Distinct sign patterns (flips, n_sites) of all operators, and the place of each operator's own among them."""
    patterns = [operator.signs for operator in operators]
    stacked = np.concatenate(patterns)
    distinct, place = np.unique(stacked, axis=0, return_inverse=True)
    ends = np.cumsum([len(p) for p in patterns])
    return distinct, np.split(place.reshape(-1), ends[:-1])
