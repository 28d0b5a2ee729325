"""Expectation values along a family of wave functions psi_s, by estimators that check each other.

    reweighted   samples of psi with w = |psi_s / psi|^2:  <O>_s = E[w O_loc] / E[w],  ESS = (sum w)^2 / sum w^2
    resampled    fresh samples of every psi_s, with common random numbers along the family
    exact        the sum over all configurations (small systems)
    mbar         the fresh samples of all psi_s pooled (``mbar.py``)

The energy and off-diagonal observables always use psi_s's own local estimators. Infidelity: 1 - |E r|^2 / E|r|^2 with
r = psi_s / psi. A ``Curve`` keeps the influence of every batch of samples on every mean, so that any linear combination of
its points (a change, a slope, an interpolated value) has an honest error, chain by chain where the points share samples or
random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.devices import HOST, Device
from ..engine.economy import Economy
from ..engine.ranks import ALONE, Ranks
from ..physics.exact import FullSummation, all_configurations, sector
from ..physics.observables import Observable
from ..sampling import Process
from ..states import LogPsi
from ..vmc.estimators import measure
from ..vmc.statistics import autocorrelation_time, effective_sample_size, mean_and_error, weighted_mean

_OFFERS = 32  # samples offered to a chain before it starts
REWEIGHTING_CALL = 256  # samples per tick of a reweighted curve
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Curve:
    """Means (point, observable) along a family of states, and how each batch of samples moved them.

    ``influence`` (point, chain, draw, observable): the mean's deviation is the mean of the influence over chains and draws.
    ``paired``: the points share their samples. Exact curves have no influence. ``overlap``: how far the states of pooled
    samples hang together, see ``mbar.py``.
    """

    mean: np.ndarray
    influence: np.ndarray | None
    paired: bool
    infidelity: np.ndarray
    ess: np.ndarray
    overlap: float = float("nan")

    def combination(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """sum_p weights_p mean_p and its standard error: weights (point,) -> two arrays (observable,)."""
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
        """Standard error of every mean (point, observable)."""
        errors = np.stack([self.combination(row)[1] for row in np.eye(len(self.mean))])
        return np.where(np.isnan(self.mean), np.nan, errors)

    def replicas(self, count: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Means (point, observable) as other chains would have given them: a bootstrap over chains, to first order."""
        if self.influence is None:
            return
        by_chain = self.influence.mean(axis=2)
        points, chains = by_chain.shape[:2]
        for _ in range(count):
            drawn = generator.integers(chains, size=(1 if self.paired else points, chains))
            yield self.mean + np.take_along_axis(by_chain, drawn[:, :, None], axis=1).mean(axis=1)

    def spread(self, places: np.ndarray, points: int) -> Curve:
        """The same points at ``places`` of a longer curve that is NaN elsewhere."""

        def spread(array: np.ndarray) -> np.ndarray:
            longer = np.full((points, *array.shape[1:]), np.nan)
            longer[places] = array
            return longer

        influence = None if self.influence is None else spread(self.influence)
        return Curve(
            spread(self.mean), influence, self.paired, spread(self.infidelity), spread(self.ess), self.overlap
        )

    @classmethod
    def joined(cls, curves: Sequence[Curve], paired: bool) -> Curve:
        """Sampled points put together; ``paired``: chain by chain they used the same random numbers."""
        return cls(
            np.concatenate([c.mean for c in curves]),
            np.concatenate([c.influence for c in curves if c.influence is not None]),
            paired,
            np.concatenate([c.infidelity for c in curves]),
            np.concatenate([c.ess for c in curves]),
        )


def reweighted(
    family: LogPsi,
    observables: Sequence[Observable],
    sigma: np.ndarray,
    log_psi: np.ndarray,
    economy: Economy,
    tick: Tick,
) -> Curve:
    """Curve from samples of psi: sigma (chain, draw, n_sites), log_psi (chain, draw), on the device of the family.

    log psi of ``family`` has a trailing axis (point).
    """
    log_family, value = on_samples(family, observables, sigma, economy, tick)
    return from_ratios(log_family - to_host(log_psi)[:, :, None], value)


def on_samples(
    family: LogPsi, observables: Sequence[Observable], sigma: np.ndarray, economy: Economy, tick: Tick
) -> tuple[np.ndarray, np.ndarray]:
    """log psi (chain, draw, point) and real values (chain, draw, point, observable) of a family on samples (chain, draw, n)."""
    chains, draws = sigma.shape[:2]
    flat = sigma.reshape(-1, sigma.shape[-1])
    logs, values = [], []
    for start in range(0, len(flat), REWEIGHTING_CALL):
        tick("reweighting")
        rows = flat[start : start + REWEIGHTING_CALL]
        log_rows = family.log_psi(rows)
        logs.append(to_host(log_rows))
        values.append(to_host(measure(family, observables, rows, log_rows, economy)).real)
    log_family = np.concatenate(logs).reshape(chains, draws, -1)
    value = np.concatenate(values).reshape(chains, draws, log_family.shape[-1], -1)
    return log_family, value


def from_ratios(log_ratio: np.ndarray, value: np.ndarray) -> Curve:
    """Curve from log psi_s / psi (chain, draw, point) and values (chain, draw, point, observable) on samples of psi."""
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


def weighted_start(weight: np.ndarray, chains: int, seed: tuple[int, ...]) -> np.ndarray:
    """Indices (chains,) of samples of psi that are distributed as psi_s, given its weights (n,) on them.

    Independence Metropolis: every chain is offered one sample after another and takes it with probability min(1, w'/w). With
    the same seed, chains of neighbouring states are offered and mostly take the same samples: they start together.
    """
    generator = np.random.default_rng(seed)
    place = np.linspace(0, len(weight) - 1, chains).astype(int)
    for _ in range(_OFFERS):
        offered = np.resize(generator.permutation(len(weight)), chains)
        taken = generator.random(chains) * weight[place] < weight[offered]
        place = np.where(taken, offered, place)
    return place


@dataclass(frozen=True)
class FreshSampling:
    """How a state is sampled anew: ``draws`` samples per chain, ``sweeps`` apart, after ``burn_in`` sweeps.

    The ``ranks`` share the chains.
    """

    process: Process
    chains: int
    burn_in: int
    draws: int
    sweeps: int
    economy: Economy
    ranks: Ranks = ALONE


_SWEEPS_OF_A_STATE = 1 << 24  # the random numbers of different states never overlap


def resampled(
    psi_s: LogPsi,
    psi: LogPsi,
    observables: Sequence[Observable],
    born: tuple[np.ndarray, np.ndarray],
    sampling: FreshSampling,
    number: int,
    tick: Tick,
    record: list[np.ndarray] | None = None,
) -> Curve:
    """One point from fresh samples of psi_s; states with different ``number`` use different random numbers.

    The samples (chain, draw, n_sites) of this rank are appended to ``record``.
    The chains start at Born samples of psi, (n, n_sites) and log psi (n,), taken by the weights |psi_s / psi|^2. The ESS is
    1 / tau of the energy: an upper bound when the draws per chain are few.
    """
    sigma, log_psi = born
    log_ratio = to_host(psi_s.log_psi(sigma) - log_psi).real
    weight = np.exp(2 * (log_ratio - log_ratio.max()))
    start = weighted_start(weight, sampling.chains, (sampling.process.seed, number))
    ranks = sampling.ranks
    own = ranks.share(sampling.chains)
    start = namespace(sigma).asarray(start[own])
    chains = sampling.process.start(psi_s, sigma[start], number * _SWEEPS_OF_A_STATE, own.start)

    def sweep() -> None:
        tick("resampling")
        ranks.together(lambda: sampling.process.sweep(psi_s, chains))

    for _ in range(sampling.burn_in):
        sweep()
    values, log_ratios, drawn = [], [], []
    for _ in range(sampling.draws):
        for _ in range(sampling.sweeps):
            sweep()
        measured = measure(psi_s, observables, chains.sigma, chains.log_psi, sampling.economy)
        values.append(to_host(measured).real)
        drawn.append(chains.sigma.copy())
        log_ratios.append(to_host(psi.log_psi(chains.sigma) - chains.log_psi))
    if record is not None:
        record.append(namespace(sigma).stack(drawn, axis=1))
    value = ranks.gather(np.stack(values, axis=1))
    mean = value.mean(axis=(0, 1))
    tau = float(autocorrelation_time(value[..., -1])) if sampling.draws > 1 else 1.0
    overlap = infidelity(np.ascontiguousarray(ranks.gather(np.stack(log_ratios, axis=1)).T))
    return Curve(
        mean[None], (value - mean)[None], False, np.asarray([overlap]), np.asarray([1 / max(1.0, tau)])
    )


class Exact:
    """Full summation: operators as sparse matrices, psi on all configurations, kept for all families that follow.

    With a ``magnetization`` psi is zero outside of that sector, as it is for the samples, whatever the network says there.
    psi is evaluated on ``device``, everything else happens on the host.
    """

    def __init__(
        self,
        psi: LogPsi,
        observables: Sequence[Observable],
        n_sites: int,
        device: Device = HOST,
        magnetization: int | None = None,
    ):
        self.observables, self.configurations = observables, all_configurations(n_sites)
        everything = np.arange(len(self.configurations))
        self._inside = everything if magnetization is None else sector(self.configurations, magnetization)
        self.on_device = device.put(self.configurations[self._inside])
        self.operators = [
            o.operator.to_sparse() if o.operator is not None else o.values(self.configurations)
            for o in observables
        ]
        self.state = self._normalised(to_host(psi.log_psi(self.on_device)))

    def _normalised(self, log_psi: np.ndarray) -> FullSummation:
        return FullSummation.from_log_psi(self.configurations.shape[1], self._everywhere(log_psi, -np.inf))

    def _everywhere(self, values: np.ndarray, outside: float) -> np.ndarray:
        """Values (m,) on the configurations where psi is evaluated, on all of them (2^N,)."""
        everywhere = np.full(len(self.configurations), outside, values.dtype)
        everywhere[self._inside] = values
        return everywhere

    def curve(self, family: LogPsi) -> Curve:
        """Exact curve of a family (trailing axis of log psi)."""
        states = [self._normalised(column) for column in to_host(family.log_psi(self.on_device)).T]
        overlap = np.asarray([self.state.infidelity(s) for s in states])
        return Curve(
            np.stack([self.expectations(s) for s in states]), None, True, overlap, np.ones(len(states))
        )

    def expectations(self, state: FullSummation) -> np.ndarray:
        """Every observable in one state (observable,)."""
        return np.asarray(
            [
                float(state.expectation(o)) if isinstance(o, np.ndarray) else state.operator_expectation(o)
                for o in self.operators
            ]
        )

    def slopes(self, tangent: np.ndarray) -> np.ndarray:
        """2 Re Cov(t, O_loc) of every observable (observable,): exact first derivatives.

        t = d log psi / d strength on ``on_device``.
        """
        psi, tangent = self.state.psi, self._everywhere(tangent, 0.0)
        turned = (tangent - self.state.probability @ tangent) * psi
        applied = (o * psi if isinstance(o, np.ndarray) else o @ psi for o in self.operators)
        return np.asarray([2 * np.vdot(turned, a).real for a in applied])
