"""Stage ``steering``: turn the best feature of every target, and its controls at the same infidelity, and measure everything.

For each layer and target: the feature chosen in ``features.nc`` is scaled; the other ``steering.directions``
(``interpret/kinds.py``) follow at strengths that move the state as far. Curves come from reweighted Born samples of the test
chains, from fresh samples, and on small systems from the sum over all configurations.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.schema import SCHEMA, labelled
from ..engine.random import Stream
from ..interpret import steering
from ..interpret.bench import ESTIMATORS, POOLED, Bench, Slopes
from ..interpret.directions import Direction
from ..interpret.expectation import REWEIGHTING_CALL, Curve, FreshSampling
from ..interpret.kinds import DIRECTIONS, FEATURE, OF_THE_DICTIONARY
from ..physics.hamiltonians import MAX_SITES_DIAGONALISED
from ..sampling import process_of
from . import ground_state
from .cost import Cost, network_flops, seconds_for
from .inputs import economy_of, measured, projection_attributes, tested, trained
from .later import Later, later_numbers
from .over_time import At, everywhere
from .response import susceptibility
from .stage import Context, Stage
from .steering_directions import Directions

if TYPE_CHECKING:
    from ..spec import Spec

_ROUNDING = 1e-9  # of times


def _steered_times(context: Context) -> list[int]:
    """Numbers of the recorded times that the spec asks for, the last one where the dynamics ended before them."""
    recorded = context.upstream["dynamics"]["time"].values
    wanted = [np.flatnonzero(np.abs(recorded - time) < _ROUNDING) for time in context.spec.steering.times]
    return [int(found[0]) for found in wanted if len(found)] or [len(recorded) - 1]


@partial(everywhere, times=_steered_times)
def run(context: Context) -> xr.Dataset:
    """Every (layer, target, direction) in turn; a checkpoint after each keeps what is done."""
    programme = _Programme(context)
    for target in range(len(programme.targets)):
        programme.respond(target)
    for layer, target in np.ndindex(len(programme.layers), len(programme.targets)):
        programme.turn(layer, target)
    for layer, target in np.ndindex(len(programme.layers), len(programme.targets)):
        programme.evolve(layer, target)
    return programme.dataset()


def _bench(context: Context) -> Bench:
    """The trained state with all observables that have a mean, the energy last."""
    spec, psi = context.spec, trained(context)
    sigma, log_psi = tested(context.upstream["samples"], spec.steering.samples, psi.state.complex_amplitude)
    process = process_of(
        spec.sampling, spec.lattice.build(), spec.steering.seed, Stream.STEERING, economy_of(spec)
    )
    fresh = FreshSampling(
        process,
        spec.sampling.chains,
        spec.steering.burn_in,
        spec.steering.draws,
        spec.sampling.sweeps,
        economy_of(spec),
    )
    put = context.device.put
    born = put(np.ascontiguousarray(sigma)), put(np.ascontiguousarray(log_psi))
    return Bench(psi, measured(spec), *born, fresh, context.device)


class _Programme:
    """What is turned in which order, and the result arrays being filled."""

    def __init__(self, context: Context):
        self.context, self.spec, self.options = context, context.spec, context.spec.steering
        self.bench = _bench(context)
        self.layers, self.targets = self.options.layers, self.options.targets
        self.names = self.options.directions
        self.directions = Directions(context, self.bench, self._tick_fit)
        self.estimators = (*ESTIMATORS, POOLED) if self.options.mbar else ESTIMATORS
        self.scales = np.asarray(self.options.scales)
        self.base = int(np.flatnonzero(self.scales == 1.0)[0])
        self.later = later_numbers(context, _steered_times) if self.options.evolve else range(0)
        self.results = context.restore() or self._empty()
        self.ticks = self._ticks_done()

    def _empty(self) -> dict[str, np.ndarray]:
        sizes = {
            "layer": len(self.layers),
            "target": len(self.targets),
            "direction": len(self.names),
            "scale": len(self.scales),
            "estimator": len(self.estimators),
            "observable": len(self.bench.names) - 1,
            "later": len(self.later),
        }
        left_out = {"held"} | ({"overlap"} if not self.options.mbar else set())
        left_out |= {"evolved_mean", "evolved_infidelity"} if not self.later else set()
        arrays = {
            name: np.full([sizes[d] for d in variable.dims], np.nan)
            for name, variable in SCHEMA["steering"].items()
            if name not in left_out
        }
        arrays["feature"] = np.full((len(self.layers), len(self.targets)), -1, np.int32)
        shape = len(self.layers), len(self.targets), len(self.names)
        arrays["turned_feature"] = np.full(shape, -1, np.int32)
        return {**arrays, "done": np.zeros(shape, bool), "responded": np.zeros(len(self.targets), bool)}

    def _resamples(self, d: int) -> bool:
        return d == 0 or self.options.resample_controls

    @cached_property
    def _ticks_of(self) -> np.ndarray:
        """Units of work in each direction."""
        fresh = len(self.scales) * (self.options.burn_in + self.options.draws * self.spec.sampling.sweeps)
        reweighting = -(-self.bench.log_psi.size // REWEIGHTING_CALL)
        if self.options.mbar:
            calls = -(-self.spec.sampling.chains * self.options.draws // REWEIGHTING_CALL)
            fresh += len(self.scales) * calls
        return np.asarray([reweighting + fresh * self._resamples(d) for d in range(len(self.names))])

    @cached_property
    def _total(self) -> int:
        return len(self.targets) * (self._ticks_of_response + len(self.layers) * int(self._ticks_of.sum()))

    @property
    def _ticks_of_response(self) -> int:
        """Units of work in the susceptibility of a target: pairs of steps in a field."""
        return 0 if self.bench.exact is not None else self.options.susceptibility_steps

    def _ticks_done(self) -> int:
        responded = int(self.results["responded"].sum()) * self._ticks_of_response
        return responded + int((self.results["done"] * self._ticks_of).sum())

    def tick(self, message: str) -> None:
        """One unit of work is done."""
        self.ticks += 1
        self.context.tick(min(self.ticks, self._total), self._total, message, lambda: self.results)

    def respond(self, target: int) -> None:
        """The susceptibility of a target."""
        if not self.results["responded"][target]:
            found = susceptibility(self.context, self.bench, self._column(target), self.tick)
            for name, value in zip(("susceptibility", "susceptibility_error", "field"), found, strict=True):
                self.results[name][target] = value
            self.results["responded"][target] = True
            self.ticks = self._ticks_done()

    def turn(self, layer: int, target: int) -> None:
        """All directions of one layer and target, the feature first."""
        if self.results["done"][layer, target].all():
            return
        at = self.layers[layer], self.targets[target]
        self.results["feature"][layer, target] = self.directions.best(*at)
        for d, name in enumerate(self.names):
            if not self.results["done"][layer, target, d]:
                direction, turned = self.directions.of(name, *at)
                self.results["turned_feature"][layer, target, d] = turned
                if direction is not None:
                    self._measure(layer, target, d, direction)
            self.results["done"][layer, target, d] = True
            self.ticks = self._ticks_done()

    def evolve(self, layer: int, target: int) -> None:
        """The feature turned by every scale that is asked for, and not turned, at the later times."""
        if not self.later:
            return
        direction, _ = self.directions.of(FEATURE, self.layers[layer], self.targets[target])
        if direction is None or not isinstance(self.context, At):
            return
        later = Later(self.context, self.bench.names[:-1], self._tick_later)
        mean, infidelity = self.results["evolved_mean"], self.results["evolved_infidelity"]
        for place in np.flatnonzero(np.isin(self.scales, (1.0, *self.options.evolve))):
            at = (layer, target, int(place))
            if later.numbers and np.isnan(infidelity[at]):
                turned = None if place == self.base else direction.at(self.scales[place] - 1)
                found, reached = later.of(turned)
                mean[at][-len(found) :], infidelity[at] = found, reached

    def _tick_later(self) -> None:
        self.context.tick(self._total, self._total, "evolving on", lambda: self.results)

    def _tick_fit(self, message: str) -> None:
        self.context.tick(min(self.ticks, self._total), self._total, message, lambda: self.results)

    def _place(self, d: int) -> int:
        """The number of a direction among all that there are: random numbers do not depend on which are asked for."""
        return DIRECTIONS.index(self.names[d])

    def _column(self, target: int) -> int:
        return self.bench.names.index(self.targets[target])

    def _measure(self, layer: int, target: int, d: int, direction: Direction) -> None:
        name = self.layers[layer]
        sampled = self.bench.slopes(direction, name)
        if sampled is None:
            return
        strengths = self._strengths(layer, target, d, direction, sampled)
        self.results["strength"][layer, target, d] = strengths
        shape = len(DIRECTIONS), len(self.layers), len(self.targets)
        number = int(np.ravel_multi_index((self._place(d), layer, target), shape))
        for e, estimator in enumerate(self.estimators):
            if estimator in ("resampled", POOLED) and not self._resamples(d):
                continue
            curve = self.bench.curve(estimator, direction, strengths, number, self.tick)
            if curve is not None:
                slopes = self.bench.exact_slopes(direction, name) if estimator == "exact" else sampled
                self._store((layer, target, d, e), curve, strengths, self._column(target), slopes)

    def _strengths(self, layer: int, target: int, d: int, direction: Direction, slopes: Slopes) -> np.ndarray:
        """scale - 1 for the feature; for a control the strengths of equal infidelity, signed so that the target moves alike."""
        if d == 0:
            return self.scales - 1
        column = self._column(target)
        wanted = self.results["infidelity"][layer, target, 0, :, 0]
        feature = self.results["slope_predicted"][layer, target, 0, 0, column]
        sense = -1.0 if feature * slopes.value[column] < 0 else 1.0
        return self.bench.matched_strengths(direction, wanted, sense * np.sign(self.scales - 1))

    def _store(
        self, at: tuple[int, int, int, int], curve: Curve, strengths: np.ndarray, column: int, slopes: Slopes
    ) -> None:
        """Everything about one curve; ``at``: (layer, target, direction, estimator)."""
        base, budget, error = self.base, self.options.energy_budget, curve.error
        local = steering.derivatives(curve, strengths, base)
        deviation, deviation_error = steering.relative_deviation(curve, base)
        layer, target, d, e = at
        generator = np.random.default_rng((self.options.seed, layer, target, self._place(d), e, 2))
        low, high = steering.monotone_range(curve, base, column)
        by_scale = {
            "observable_mean": curve.mean[:, :-1],
            "observable_error": error[:, :-1],
            "energy": curve.mean[:, -1],
            "energy_error": error[:, -1],
            "relative_energy_deviation": deviation,
            "relative_energy_deviation_error": deviation_error,
            "infidelity": curve.infidelity,
            "ess": curve.ess,
        }
        whole = {
            "slope_predicted": slopes.value[:-1],
            "slope_predicted_error": slopes.error[:-1],
            "slope_measured": local.slope[:-1],
            "slope_measured_error": local.slope_error[:-1],
            "energy_slope": local.slope[-1],
            "energy_curvature": local.curvature[-1],
            "efficiency": steering.efficiency(
                local.slope[column], local.curvature[-1], self.results["susceptibility"][at[1]]
            ),
            "reach": steering.reach(curve.mean, base, column, budget),
            "reach_error": steering.reach_error(curve, base, column, budget, generator),
            "monotone_low": self.scales[low],
            "monotone_high": self.scales[high],
        }
        if self.options.mbar:
            whole["overlap"] = curve.overlap
        for name, values in by_scale.items():
            self.results[name][layer, target, d, :, e] = values
        for name, value in whole.items():
            self.results[name][at] = value

    def dataset(self) -> xr.Dataset:
        """steering.nc."""
        variables = {name: array for name, array in self.results.items() if name not in ("done", "responded")}
        if "natural_gradient_held" in self.names:
            held = [", ".join((*self.directions.held(target), "energy")) for target in self.targets]
            variables["held"] = np.asarray(held, dtype=object)
        labels = {
            "layer": self.layers,
            "target": self.targets,
            "direction": self.names,
            "estimator": self.estimators,
            "observable": self.bench.names[:-1],
        }
        coordinates = {name: np.asarray(values, dtype=object) for name, values in labels.items()}
        if self.later and isinstance(self.context, At):
            recorded = self.context.whole.upstream["dynamics"]["time"].values
            coordinates["later"] = recorded[self.later]
        attributes = {
            "energy_budget": self.options.energy_budget,
            **projection_attributes(self.bench.psi.state),
        }
        return labelled("steering", variables, {**coordinates, "scale": self.scales}, attributes)


def estimate(spec: Spec) -> Cost:
    """Network calls of the reweighted curves (all directions) and of fresh sampling (the feature; controls if asked for).

    Slopes of all features take a backward pass (as long as three calls) for every sample of a layer.
    """
    lattice = spec.lattice.build()
    n, options, directions = lattice.n_sites, spec.steering, len(spec.steering.directions)
    connected = spec.final_hamiltonian.build(lattice).n_connected + 1
    points = len(options.layers) * len(options.targets) * len(options.scales)
    curves = points * directions * options.samples * connected
    fresh = spec.sampling.chains * (
        spec.sampling.evaluations(n) * (options.burn_in + options.draws * spec.sampling.sweeps)
        + options.draws * connected
    )
    fresh += spec.sampling.listed(n)
    fresh *= points * (directions if options.resample_controls else 1)
    if options.mbar:
        turned = directions if options.resample_controls else 1
        curves += points * turned * len(options.scales) * spec.sampling.chains * options.draws * connected
    if set(options.directions) & set(OF_THE_DICTIONARY):
        curves += len(options.layers) * options.samples * (3 + connected)
    exact, training = points * directions * 2**n if n <= MAX_SITES_DIAGONALISED else 0, 0.0
    if options.susceptibility_steps and not spec.dynamics.wanted and n > MAX_SITES_DIAGONALISED:
        steps = 2 * len(options.targets) * options.susceptibility_steps
        training = ground_state.estimate(spec).seconds * steps / max(1, spec.ground_state.steps)
    size = 8.0 * points * directions * len(ESTIMATORS) * (2 * len(spec.observables.names) + 8)
    memory = (
        16384.0 * 8 * n * 64
        + 8.0 * options.samples * len(options.scales) * (len(spec.observables.names) + 2) * 3
    )
    return Cost(
        training + seconds_for(1.5 * network_flops(spec, options.layers) * (0.6 * curves + fresh + exact)),
        size,
        memory,
    )


STAGE = Stage(
    name="steering",
    reads=("lattice", "hamiltonian", "state", "sampling", "observables", "sae", "steering"),
    upstream=("ground_state", "dynamics", "samples", "sae", "features"),
    version=3,
    run=run,
    estimate=estimate,
)
