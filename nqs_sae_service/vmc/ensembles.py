"""Where means over |psi|^2 come from while a state moves: from samples, or from all configurations, summed with weights.

Both give an ``Ensemble`` for any psi. Samples are drawn once and reweighted, by |psi'|^2 / |psi|^2, for the psi' that follow,
as long as their effective number allows it: until ``move_on`` two velocities, or two infidelities, differ by what differs in
psi and not by noise, and what was computed on the configurations stays true. They are of |psi|^(2 b): with b < 1 they visit
configurations near zeros of psi, which samples of |psi|^2 do not see although the state that psi has to become may be large
there (Misery et al., arXiv:2507.05352).

One configuration is enough of every orbit of the symmetries that psi and the Hamiltonian share: those of an orbit have the
same |psi| and the same local energy, and derivatives of log psi that differ by a constant at most. ``Summed`` holds no others;
samples of a small system, where many fall into one orbit, are merged as well.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..engine.arrays import namespace, to_host
from ..engine.devices import HOST, Device
from ..engine.jit import numba
from ..errors import NumericalError
from ..physics.exact import all_configurations
from ..physics.symmetries import Symmetries, commutes
from ..sampling import Chains, Process
from ..states import State, Wavefunction
from ..states.fused import Columns

if TYPE_CHECKING:
    from ..physics.operators import Operator

Array = Any

_ENOUGH = 0.5  # effective share of reweighted samples
_FEW_ORBITS = 16  # orbits per sample, at most, for merging to be worth the search


@dataclass(frozen=True)
class Ensemble:
    """Configurations ``sigma`` (n, n_sites) int8, log psi (n,) and ``weights`` (n,) that sum to 1: <f> = weights @ f."""

    sigma: Array
    log_psi: Array
    weights: Array


class Ensembles(Protocol):
    """A source of ensembles."""

    sampled: bool

    def of(self, psi: Wavefunction) -> Ensemble:
        """That of psi, with the same random numbers every time."""

    def move_on(self, psi: Wavefunction) -> None:
        """From here on other random numbers; the walkers go on from where they are under psi."""


class Sampled:
    """``draws`` samples of every chain, ``sweeps`` apart, from ``walkers`` that have ``done`` so many sweeps.

    The ``process`` samples |psi|^(2 ``exponent``). Samples of one orbit of the ``symmetries`` are merged, where orbits are few;
    what is left are no longer independent samples of equal weight.
    """

    sampled = True

    def __init__(
        self,
        process: Process,
        walkers: Array,
        draws: int,
        sweeps: int,
        done: int = 0,
        exponent: float = 1.0,
        symmetries: Symmetries | None = None,
    ):
        self.process, self.draws, self.sweeps, self.exponent = process, draws, sweeps, exponent
        self.walkers, self.done = walkers, done
        samples, n_sites = draws * len(walkers), walkers.shape[1]
        few = symmetries is not None and 2**n_sites <= _FEW_ORBITS * samples * len(symmetries.flips)
        self.symmetries = symmetries if few else None
        self._drawn: _Drawn | None = None

    def of(self, psi: Wavefunction) -> Ensemble:
        """Samples with the weights of |psi|^2, drawn for psi or for one of its predecessors."""
        drawn = self._drawn
        if drawn is not None:
            ensemble = drawn.weighted(psi.log_psi(drawn.sigma))
            if drawn.effective_number(ensemble) > _ENOUGH * drawn.effective_number(drawn.own):
                return ensemble
        self._drawn = self._merged(*self._draw(psi)[:2])
        return self._drawn.own

    def move_on(self, psi: Wavefunction) -> None:
        """The walkers are those behind fresh samples of psi."""
        _, _, chains = self._draw(psi)
        self.walkers, self.done, self._drawn = chains.walkers, chains.sweeps, None

    def _draw(self, psi: Wavefunction) -> tuple[Array, Array, Chains]:
        """Samples (n, n_sites) with log psi (n,), and the chains behind them."""
        chains = self.process.start(psi, self.walkers, self.done)
        sigma, log_psi = self.process.draws(psi, chains, self.draws, self.sweeps)
        return sigma.reshape(-1, sigma.shape[-1]), log_psi.reshape(-1), chains

    def _merged(self, sigma: Array, log_psi: Array) -> _Drawn:
        counts = namespace(sigma).ones(len(sigma))
        if self.symmetries is not None:
            first, counts = (namespace(sigma).asarray(a) for a in orbits(to_host(sigma), self.symmetries))
            sigma, log_psi = sigma[first], log_psi[first]
        return _Drawn(sigma, log_psi, counts, self.exponent)


@dataclass(frozen=True)
class _Drawn:
    """Configurations sigma (n, n_sites) drawn ``counts`` (n,) times each from |psi|^(2 ``exponent``), with log psi (n,)."""

    sigma: Array
    log_psi: Array
    counts: Array
    exponent: float

    def weighted(self, log_psi: Array) -> Ensemble:
        """They stand for another psi, whose log psi this is."""
        ratio = log_psi.real - self.exponent * self.log_psi.real
        log_counts = namespace(self.counts).log(self.counts)
        return Ensemble(self.sigma, log_psi, normalised(2 * ratio + log_counts))

    @cached_property
    def own(self) -> Ensemble:
        """The ensemble of the psi that they were drawn for."""
        return self.weighted(self.log_psi)

    def effective_number(self, ensemble: Ensemble) -> float:
        """Effective number of samples of an ensemble of these configurations (Kish)."""
        return 1 / float((ensemble.weights**2 / self.counts).sum())


class Summed:
    """All configurations, of one ``magnetization`` if that is fixed, and of every orbit one where ``operator`` allows it."""

    sampled = False

    def __init__(
        self, state: State, operator: Operator, magnetization: int | None = None, device: Device = HOST
    ):
        sigma = all_configurations(state.n_sites)
        if magnetization is not None:
            sigma = sigma[sigma.sum(axis=1) == magnetization]
        group = symmetries_of(state)
        if commutes(operator, group):
            first, counts = orbits(sigma, group)
            sigma = sigma[first]
        else:
            counts = np.ones(len(sigma))
        self.sigma, self._log_counts = device.put(sigma), device.put(np.log(counts))

    def of(self, psi: Wavefunction) -> Ensemble:
        """Weights are the probabilities of the orbits."""
        log_psi = psi.log_psi(self.sigma)
        return Ensemble(self.sigma, log_psi, normalised(2 * log_psi.real + self._log_counts))

    def move_on(self, psi: Wavefunction) -> None:
        """There is nothing random."""


def normalised(logarithms: Array) -> Array:
    """Weights (n,) that sum to 1, from their logarithms (n,) on any scale; NaN counts as zero."""
    xp = namespace(logarithms)
    known = ~xp.isnan(logarithms)
    top = float(logarithms[known].max()) if bool(known.any()) else math.nan
    if not math.isfinite(top):
        raise NumericalError(
            "log psi is not finite on any configuration: the parameters outgrew their precision"
        )
    weights = xp.where(known, xp.exp(xp.where(known, logarithms, -math.inf) - top), 0.0)
    return weights / weights.sum()


def symmetries_of(state: State) -> Symmetries:
    """All elements under which |psi| does not change: what the network does not see, and what it is projected on."""
    invariances = state.invariances
    if invariances is None:
        invariances = np.arange(state.n_sites)[None]
    permutations, flips = invariances.astype(np.int32), np.ones(len(invariances), np.int8)
    if state.symmetry is not None:
        elements = state.symmetry.elements
        permutations = elements.permutations[:, permutations].reshape(-1, state.n_sites)
        flips = np.repeat(elements.flips, len(invariances))
    return Symmetries(permutations, flips, np.ones(len(flips)), tuple(range(len(flips))))


def orbits(sigma: np.ndarray, group: Symmetries) -> tuple[np.ndarray, np.ndarray]:
    """Of configurations (n, n_sites), the place (m,) of the first of every orbit, and how many belong to it (m,)."""
    _, first, counts = np.unique(orbit_names(sigma, group), return_index=True, return_counts=True)
    return first, counts


def orbit_names(sigma: np.ndarray, group: Symmetries) -> np.ndarray:
    """A number (n,) int64 for every configuration (n, n_sites), at most 62 sites: the same for all of an orbit."""
    powers = 1 << np.arange(sigma.shape[1], dtype=np.int64)
    names = np.full(len(sigma), np.iinfo(np.int64).max)
    for permutation, flip in zip(group.permutations, group.flips, strict=True):
        np.minimum(names, (sigma[:, permutation] * flip > 0) @ powers, out=names)
    return names


def derivatives(psi: Wavefunction, sigma: Array) -> Array:
    """O = d log psi / d theta of configurations (n, n_sites), held whole: (part, n, n_parameters), real and imaginary part.

    A real psi has the real part alone.
    """
    columns = psi.twin(Columns)  # type: ignore[type-abstract]
    if columns is not None:
        return columns.columns(sigma)
    fast, xp = psi.fast_bricks, namespace(sigma)
    parts = 2 if psi.state.complex_amplitude else 1
    out = xp.empty((parts, len(sigma), psi.state.n_parameters), psi.parameters.dtype)
    size = psi.pass_rows(len(sigma))

    def fill(start: int) -> None:
        here = slice(start, start + size)
        tape = fast.tape(sigma[here])
        deltas = tape.backward(parts=True)
        for brick in fast.state.bricks:
            for name, gradient in tape.gradient(brick, deltas[brick.output]).items():
                place = psi.state.layout[name][0]
                out[:, here, place] = _by_parts(gradient, parts, len(sigma[here]))

    starts = range(0, len(sigma), size)
    if xp is np:
        with ThreadPoolExecutor(numba.get_num_threads()) as pool:
            list(pool.map(fill, starts))
    else:
        for start in starts:
            fill(start)
    return out


def _by_parts(gradient: Array, parts: int, n: int) -> Array:
    """Gradients of one array as (part, n, size), from complex ones (n, ...) or those that come by parts."""
    if namespace(gradient).iscomplexobj(gradient):
        return namespace(gradient).stack([gradient.real, gradient.imag]).reshape(parts, n, -1)
    return gradient.reshape(parts, n, -1)
