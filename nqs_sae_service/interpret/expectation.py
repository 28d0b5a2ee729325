"""Expectation values along a family of wave functions psi_s, by three estimators that check each other.

    reweighted   samples of psi with w = |psi_s / psi|^2:  <O>_s = E[w O_loc] / E[w],  ESS = (sum w)^2 / sum w^2
    resampled    fresh Metropolis samples of every psi_s
    exact        the sum over all configurations (small systems)

The energy and off-diagonal observables always use psi_s's own local estimators. The infidelity is 1 - |E r|^2 / E|r|^2 with
r = psi_s / psi. A ``Curve`` keeps the influence of every batch of samples on every mean, so that any linear combination of its
points (a change, a slope, an interpolated value) has an honest error: paired between the points of a reweighted curve,
independent otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..physics.exact import FullSummation
from ..physics.observables import Observable
from ..physics.operators import Operator
from ..sampling import Metropolis
from ..states import LogPsi
from ..vmc.estimators import local_values
from ..vmc.statistics import autocorrelation_time, effective_sample_size, mean_and_error, weighted_mean

MAX_SITES_EXACT = 16
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Quantities:
    """What is measured: observables, and the energy as the last column."""

    observables: tuple[Observable, ...]
    hamiltonian: Operator

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return (*(o.name for o in self.observables), "energy")

    def __len__(self) -> int:
        return len(self.observables) + 1

    def measure(self, psi: LogPsi, sigma: np.ndarray, log_psi: np.ndarray, chunk: int) -> np.ndarray:
        """Local value of every quantity: sigma (n, n_sites), log_psi (n, ...) -> (n, ..., quantity) float64."""
        operators = [o.operator for o in self.observables if o.operator is not None]
        estimates = iter(local_values(psi, [*operators, self.hamiltonian], sigma, log_psi, chunk))
        columns = []
        for o in self.observables:
            if o.operator is not None:
                columns.append(next(estimates).real)
            elif o.kind == "log_psi":
                columns.append(o.values(log_psi))
            else:
                values = o.values(sigma).reshape(-1, *(1,) * (log_psi.ndim - 1))
                columns.append(np.broadcast_to(values, log_psi.shape))
        return np.stack([*columns, next(estimates).real], axis=-1)


@dataclass(frozen=True)
class Curve:
    """Means (point, quantity) along a family of states, and how each batch of samples moved them.

    ``influence`` (point, chain, draw, quantity): the mean's deviation is the mean of the influence over chains and draws.
    ``paired``: the points share their samples. Exact curves have no influence.
    """

    mean: np.ndarray
    influence: np.ndarray | None
    paired: bool
    infidelity: np.ndarray
    ess: np.ndarray

    def combination(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """sum_p weights_p mean_p and its standard error: weights (point,) -> two arrays (quantity,)."""
        used = np.flatnonzero(weights)
        value = weights[used] @ self.mean[used]
        if self.influence is None or not len(used):
            return value, np.zeros_like(value)
        if self.paired:
            return value, mean_and_error(np.tensordot(weights[used], self.influence[used], axes=1))[1]
        errors = np.stack([mean_and_error(self.influence[p])[1] for p in used])
        return value, np.sqrt(weights[used] ** 2 @ errors**2)

    @property
    def error(self) -> np.ndarray:
        """Standard error of every mean (point, quantity)."""
        errors = np.stack([self.combination(row)[1] for row in np.eye(len(self.mean))])
        return np.where(np.isnan(self.mean), np.nan, errors)

    def spread(self, places: np.ndarray, points: int) -> Curve:
        """The same points at ``places`` of a longer curve that is NaN elsewhere."""

        def spread(array: np.ndarray) -> np.ndarray:
            longer = np.full((points, *array.shape[1:]), np.nan)
            longer[places] = array
            return longer

        influence = None if self.influence is None else spread(self.influence)
        return Curve(spread(self.mean), influence, self.paired, spread(self.infidelity), spread(self.ess))

    @classmethod
    def joined(cls, curves: Sequence[Curve]) -> Curve:
        """Independent points put together."""
        influences = [c.influence for c in curves if c.influence is not None]
        return cls(
            np.concatenate([c.mean for c in curves]),
            np.concatenate(influences) if influences else None,
            False,
            np.concatenate([c.infidelity for c in curves]),
            np.concatenate([c.ess for c in curves]),
        )


def reweighted(
    family: LogPsi, quantities: Quantities, sigma: np.ndarray, log_psi: np.ndarray, chunk: int, tick: Tick
) -> Curve:
    """Curve from samples of psi: sigma (chain, draw, n_sites), log_psi (chain, draw).

    The log psi of ``family`` has a trailing axis (point).
    """
    chains, draws = log_psi.shape
    flat, per_call = sigma.reshape(-1, sigma.shape[-1]), 256
    logs, values = [], []
    for start in range(0, len(flat), per_call):
        tick("reweighting")
        rows = flat[start : start + per_call]
        logs.append(family.log_psi(rows))
        values.append(quantities.measure(family, rows, logs[-1], chunk))
    log_family = np.concatenate(logs).reshape(chains, draws, -1)
    value = np.concatenate(values).reshape(chains, draws, log_family.shape[-1], -1)
    log_ratio = log_family - log_psi[:, :, None]
    return _from_ratios(log_ratio, value)


def _from_ratios(log_ratio: np.ndarray, value: np.ndarray) -> Curve:
    """log psi_s / psi (chain, draw, point) and values (chain, draw, point, quantity)."""
    means, influences, infidelities, sizes = [], [], [], []
    for p in range(log_ratio.shape[-1]):
        weight = np.exp(2 * (log_ratio[..., p].real - log_ratio[..., p].real.max()))
        mean, _ = weighted_mean(value[:, :, p], weight)
        means.append(mean)
        influences.append((weight / weight.mean())[..., None] * (value[:, :, p] - mean))
        infidelities.append(infidelity(log_ratio[..., p]))
        sizes.append(effective_sample_size(weight) / weight.size)
    return Curve(np.stack(means), np.stack(influences), True, np.asarray(infidelities), np.asarray(sizes))


def infidelity(log_ratio: np.ndarray) -> float:
    """1 - |E r|^2 / E|r|^2 = Var r / E|r|^2 from log r on samples of psi, any shape; accurate also when it is tiny."""
    r = np.exp(log_ratio - log_ratio.real.max())
    return float(np.mean(np.abs(r - r.mean()) ** 2) / np.mean(np.abs(r) ** 2))


def systematic_resample(weight: np.ndarray, count: int, offset: float) -> np.ndarray:
    """Indices (count,) drawn in proportion to ``weight`` (n,), evenly spread; ``offset`` in [0, 1).

    Chains that start at samples of psi drawn with the weights of psi_s are thermalised as far as the samples reach.
    """
    place = np.cumsum(weight) / weight.sum()
    return np.minimum(np.searchsorted(place, (np.arange(count) + offset) / count), len(weight) - 1)


def resampled(
    psi_s: LogPsi,
    psi: LogPsi,
    quantities: Quantities,
    metropolis: Metropolis,
    start: np.ndarray,
    first_sweep: int,
    burn_in: int,
    draws: int,
    sweeps: int,
    chunk: int,
    tick: Tick,
) -> Curve:
    """One point from fresh samples of psi_s: chains begin at ``start`` (chain, n_sites), ``draws`` samples per chain.

    ``first_sweep`` numbers the sweeps, so that different points use different random numbers. The ESS is 1 / tau of the energy.
    """
    chains = metropolis.start(psi_s, start, first_sweep)
    for _ in range(burn_in):
        tick("resampling")
        metropolis.sweep(psi_s, chains)
    values, log_ratios = [], []
    for _ in range(draws):
        for _ in range(sweeps):
            tick("resampling")
            metropolis.sweep(psi_s, chains)
        values.append(quantities.measure(psi_s, chains.sigma, chains.log_psi, chunk))
        log_ratios.append(psi.log_psi(chains.sigma) - chains.log_psi)
    value = np.stack(values, axis=1)
    mean = value.mean(axis=(0, 1))
    tau = autocorrelation_time(value[..., -1]) if draws > 1 else 1.0
    ess = 1 / max(1.0, float(tau))
    overlap = infidelity(np.stack(log_ratios))
    return Curve(mean[None], (value - mean)[None], False, np.asarray([overlap]), np.asarray([ess]))


class Exact:
    """Full summation: operators as sparse matrices, psi on all configurations, kept for all families that follow."""

    def __init__(self, psi: LogPsi, quantities: Quantities, n_sites: int, configurations: np.ndarray):
        self.quantities, self.n_sites, self.configurations = quantities, n_sites, configurations
        self.matrices = [
            o.operator.to_sparse() if o.operator is not None else None for o in quantities.observables
        ]
        self.hamiltonian = quantities.hamiltonian.to_sparse()
        self.psi = FullSummation.from_log_psi(n_sites, psi.log_psi(configurations))

    @property
    def energy(self) -> float:
        """Energy of psi."""
        return self.psi.operator_expectation(self.hamiltonian)

    def curve(self, family: LogPsi) -> Curve:
        """Exact curve of a family (trailing axis of log psi)."""
        log_family = family.log_psi(self.configurations)
        states = [
            FullSummation.from_log_psi(self.n_sites, log_family[:, p]) for p in range(log_family.shape[1])
        ]
        mean = np.stack([self.expectations(s, log_family[:, p]) for p, s in enumerate(states)])
        overlap = np.asarray([self.psi.infidelity(s) for s in states])
        return Curve(mean, None, True, overlap, np.ones(len(states)))

    def expectations(self, state: FullSummation, log_psi: np.ndarray) -> np.ndarray:
        """Every quantity in one state (quantity,)."""
        values = []
        for o, matrix in zip(self.quantities.observables, self.matrices, strict=True):
            if matrix is not None:
                values.append(state.operator_expectation(matrix))
            else:
                values.append(
                    float(
                        state.expectation(o.values(log_psi if o.kind == "log_psi" else self.configurations))
                    )
                )
        return np.asarray([*values, state.operator_expectation(self.hamiltonian)])

    def slopes(self, tangent: np.ndarray) -> np.ndarray:
        """2 Re Cov(t, O_loc) of every quantity (quantity,) for t = d log psi / d strength (2^N,): exact first derivatives."""
        psi, p = self.psi.psi, self.psi.probability
        t = tangent - p @ tangent
        values = []
        for o, matrix in zip(self.quantities.observables, self.matrices, strict=True):
            if matrix is not None:
                values.append(2 * np.vdot(t * psi, matrix @ psi).real)
            else:
                diagonal = np.full(len(p), np.nan) if o.kind == "log_psi" else o.values(self.configurations)
                values.append(float(2 * np.sum(p * t.real * diagonal)))
        return np.asarray([*values, 2 * np.vdot(t * psi, self.hamiltonian @ psi).real])
