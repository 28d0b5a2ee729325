"""Local estimators: O_loc(sigma) = sum_sigma' <sigma|O|sigma'> psi(sigma') / psi(sigma), so that <O> = E_|psi|^2 [O_loc].

The energy and off-diagonal observables often reach the same configurations sigma' (a transverse field and sigma^x do).
Operators evaluated together share them: each psi(sigma') is computed once. Nothing of size samples x connected x width is ever
held: the network sees at most ``chunk`` configurations at a time. A configuration that several samples reach is seen once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..engine.devices import rows_that_fit
from ..engine.economy import DEFAULT, Economy
from ..physics.observables import Observable
from ..physics.operators import Operator, distinct_connected
from ..states import LogPsi, Wavefunction
from ..states.fused import ALIGNMENT, FlipRatios, Flips
from .statistics import append_axes

CHUNK_ON_DEVICE = 2**18
# Connected configurations that are looked at together, whatever ``chunk`` is: among them equal ones are found.
_GROUP = 2**18


def local_values(
    psi: LogPsi,
    operators: Sequence[Operator],
    sigma: np.ndarray,
    log_psi: np.ndarray,
    economy: Economy = DEFAULT,
) -> list[np.ndarray]:
    """Local estimator of every operator on every configuration.

    sigma (n, n_sites) int8, log_psi (n, ...) of the same wave function, or of a family of them along trailing axes;
    Calls of the network take ``economy.chunk`` configurations, rounded to a multiple of 64. Returns one array (n, ...) per
    operator, float64, complex128 if psi or the operator is complex.
    """
    xp = namespace(sigma)
    flips, places = _shared_flips(operators)
    at_once = max(1, _GROUP // max(len(flips), 1) // ALIGNMENT) * ALIGNMENT
    values = [
        append_axes(o.diagonal(sigma), log_psi)
        + xp.zeros(log_psi.shape, np.result_type(log_psi.dtype, o.dtype))
        for o in operators
    ]
    flips, places = xp.asarray(flips), [xp.asarray(place) for place in places]
    for start in range(0, len(sigma) if len(flips) else 0, at_once):
        rows = slice(start, start + at_once)
        elements = [o.element(sigma[rows]) if o.n_connected else None for o in operators]
        wanted = xp.zeros((len(sigma[rows]), len(flips)), bool)
        for element, place in zip(elements, places, strict=True):
            if element is not None:
                wanted[:, place] |= element != 0
        ratio = _ratios(psi, flips, sigma[rows], log_psi[rows], wanted, economy)
        for value, element, place in zip(values, elements, places, strict=True):
            if element is not None:
                value[rows] += (append_axes(element, ratio) * ratio[:, place]).sum(axis=1)
    return values


def measure(
    psi: LogPsi,
    observables: Sequence[Observable],
    sigma: np.ndarray,
    log_psi: np.ndarray,
    economy: Economy = DEFAULT,
) -> np.ndarray:
    """Value, or local estimator, of every observable on every configuration; operators share their network calls.

    sigma (n, n_sites), log_psi (n, ...) -> (n, ..., observable), float64, complex128 if psi or an operator is complex. Phases
    are complex too, and still have the global phase of psi.
    """
    operators = [o.operator for o in observables if o.operator is not None]
    estimates = iter(local_values(psi, operators, sigma, log_psi, economy) if operators else [])
    xp, columns = namespace(sigma), []
    for o in observables:
        if o.operator is not None:
            columns.append(next(estimates))
        elif o.kind == "log_psi":
            columns.append(o.values(log_psi))
        elif o.kind == "phase":
            columns.append(o.values(sigma, log_psi))
        else:
            columns.append(xp.broadcast_to(append_axes(o.values(sigma), log_psi), log_psi.shape))
    return xp.stack(columns, axis=-1)


def _ratios(
    psi: LogPsi,
    signs: np.ndarray,
    sigma: np.ndarray,
    log_psi: np.ndarray,
    wanted: np.ndarray,
    economy: Economy,
) -> np.ndarray:
    """psi(sigma') / psi(sigma) for sigma' = sigma with each row of ``signs`` applied: (n, flips, ...).

    Zero where it is not ``wanted`` (n, flips): the network is not asked where the operators have no matrix element.
    """
    xp = namespace(sigma)
    twins = isinstance(psi, Wavefunction) and economy.increments
    ratios = psi.twin(FlipRatios) if twins else None  # type: ignore[attr-defined]
    if ratios is not None:
        return ratios.ratios(sigma, log_psi, signs, wanted)
    flips = psi.twin(Flips) if twins else None  # type: ignore[attr-defined]
    # Where everything is wanted, as in a transverse field, no array of places is made: on a device each would be waited for.
    entries: Any = slice(None) if bool(wanted.all()) else xp.flatnonzero(wanted)
    numbers = xp.arange(wanted.size)[entries]
    row = numbers // wanted.shape[1]
    place: Any = slice(None)
    if economy.duplicates and xp is np:
        pairs, place = distinct_connected(sigma, signs, wanted)
    else:
        pairs = xp.stack([row, numbers % wanted.shape[1]], axis=1)
    chunk = _chunk(sigma, len(pairs), economy)
    fresh = []
    for start in range(0, len(pairs), chunk):
        some = pairs[start : start + chunk]
        if flips is not None:
            fresh.append(flips.log_psi_flipped(sigma, signs, some))
        else:
            fresh.append(psi.log_psi(sigma[some[:, 0]] * signs[some[:, 1]]))
    ratio = xp.zeros((wanted.size, *log_psi.shape[1:]), log_psi.dtype)
    if fresh:
        ratio[entries] = xp.exp(xp.concatenate(fresh)[place] - log_psi[row])
    return ratio.reshape(*wanted.shape, *log_psi.shape[1:])


def _chunk(sigma: np.ndarray, connected: int, economy: Economy) -> int:
    """Configurations per network call, a multiple of 64. Each costs its spins, its signs, log psi and the ratio."""
    bytes_each = 4 * sigma.shape[1] + 64
    if namespace(sigma) is np or economy.chunk:
        chunk = economy.chunk_that_fits(bytes_each)
    else:
        chunk = rows_that_fit(bytes_each, sigma, CHUNK_ON_DEVICE, connected)
    return max(1, chunk // ALIGNMENT) * ALIGNMENT


def _shared_flips(operators: Sequence[Operator]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Distinct sign patterns (flips, n_sites) of all operators, and the place of each operator's own among them.

    Raises ValueError where an operator has one pattern twice.
    """
    patterns = [operator.signs for operator in operators]
    stacked = np.concatenate(patterns)
    distinct, place = np.unique(stacked, axis=0, return_inverse=True)
    ends = np.cumsum([len(p) for p in patterns])
    places = np.split(place.reshape(-1), ends[:-1])
    # Each writes what it wants of a pattern once: of two columns with the same one the first would be lost.
    if any(len(np.unique(own)) < len(own) for own in places):
        raise ValueError("an operator has the same flips in two columns: sum their elements")
    return distinct, places
