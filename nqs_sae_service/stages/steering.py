"""Stage ``steering``: turn the best feature of every target, and its controls at the same infidelity, and measure everything.

For each layer and target: the feature chosen in ``features.nc`` is scaled; a random vector, another live feature and (for
diagonal targets) the Jastrow dial follow at strengths that move the state as far. Curves come from reweighted Born samples,
from fresh samples, and on small systems from the sum over all configurations.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import SCHEMA, labelled
from ..engine.random import Stream
from ..errors import NumericalError
from ..interpret import steering
from ..interpret.directions import DIRECTIONS, Direction, FeatureDirection, JastrowDial, random_unit_vector
from ..interpret.expectation import (
    MAX_SITES_EXACT,
    Curve,
    Exact,
    Quantities,
    resampled,
    reweighted,
    systematic_resample,
)
from ..physics.exact import all_configurations, ground_state, susceptibility
from ..physics.observables import make_observable
from ..sae.dictionary import Dictionary
from ..sampling import Metropolis
from ..vmc.statistics import covariance
from .cost import Cost, network_flops, seconds_for
from .inputs import born_samples, trained
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

ESTIMATORS = ("reweighted", "resampled", "exact")
_MATCHING_SAMPLES = 2048
_SWEEPS_OF_A_POINT = 1 << 24  # random numbers of different points never overlap
_REWEIGHTING_CALL = 256


def run(context: Context) -> xr.Dataset:
    """Every (layer, target, direction) in turn; a checkpoint after each keeps what is done."""
    experiment = _Experiment(context)
    for layer, target in np.ndindex(len(experiment.layers), len(experiment.targets)):
        experiment.turn(layer, target)
    return experiment.dataset()


class _Experiment:
    """Inputs shared by all directions, and the result arrays being filled."""

    def __init__(self, context: Context):
        self.context, self.spec = context, context.spec
        self.options = self.spec.steering
        self.lattice = self.spec.lattice.build()
        self.hamiltonian = self.spec.hamiltonian.build(self.lattice)
        self.psi = trained(context)
        self.layers, self.targets = self.options.layers, self.options.targets
        self.scales = np.asarray(self.options.scales)
        self.base = int(np.flatnonzero(self.scales == 1.0)[0])
        observables = [
            make_observable(name, self.lattice, self.hamiltonian) for name in self.spec.observables.names
        ]
        self.quantities = Quantities(tuple(o for o in observables if o.kind != "log_psi"), self.hamiltonian)
        self._take_born_samples()
        self._gradients: dict[str, Any] = {}
        self.results = context.restore() or self._empty()
        self.ticks = int(self.results["done"].sum()) * self._ticks_of_a_direction

    def _take_born_samples(self) -> None:
        sigma, log_psi = born_samples(self.context.upstream["samples"], self.psi.state.complex_amplitude)
        chains, draws = log_psi.shape
        kept = np.unique(
            np.linspace(0, draws - 1, max(1, min(draws, self.options.samples // chains))).round().astype(int)
        )
        self.sigma, self.log_psi = sigma[:, kept], log_psi[:, kept]
        value = self.context.upstream["observables"]["value"].sel(observable=list(self.quantities.names[:-1]))
        self.value = value.values[:, kept]

    def _empty(self) -> dict[str, np.ndarray]:
        sizes = {
            "layer": len(self.layers),
            "target": len(self.targets),
            "direction": len(DIRECTIONS),
            "scale": len(self.scales),
            "estimator": len(ESTIMATORS),
            "observable": len(self.quantities) - 1,
        }
        arrays = {
            name: np.full([sizes[d] for d in variable.dims], np.nan)
            for name, variable in SCHEMA["steering"].items()
        }
        arrays["feature"] = np.full((len(self.layers), len(self.targets)), -1, np.int32)
        return {**arrays, "done": np.zeros((len(self.layers), len(self.targets), len(DIRECTIONS)), bool)}

    @cached_property
    def _ticks_of_a_direction(self) -> int:
        fresh = self.spec.steering.burn_in + self.options.draws * self.spec.sampling.sweeps
        return -(-self.log_psi.size // _REWEIGHTING_CALL) + len(self.scales) * fresh

    def tick(self, message: str) -> None:
        """One unit of work is done."""
        self.ticks += 1
        total = len(self.layers) * len(self.targets) * len(DIRECTIONS) * self._ticks_of_a_direction
        self.context.tick(min(self.ticks, total), total, message, lambda: self.results)

    @cached_property
    def exact(self) -> Exact | None:
        """The sum over all configurations, on small systems."""
        n = self.lattice.n_sites
        return Exact(self.psi, self.quantities, n, all_configurations(n)) if n <= MAX_SITES_EXACT else None

    @cached_property
    def _ground(self):
        return ground_state(self.hamiltonian)

    def chi(self, target: int) -> float:
        """Exact susceptibility of a target, NaN on large systems or where it does not exist."""
        if self.exact is None:
            return float("nan")
        name = self.targets[target]
        column = self.quantities.names.index(name)
        matrix = self.exact.matrices[column]
        operator = (
            self.quantities.observables[column].values(self.exact.configurations)
            if matrix is None
            else matrix
        )
        try:
            return susceptibility(self.exact.hamiltonian, self._ground, operator)
        except NumericalError:
            return float("nan")

    def gradient(self, layer: int, which: str) -> np.ndarray:
        """d log psi / d x at a layer on the Born samples or on all configurations; kept until another layer is asked for."""
        if self._gradients.get("layer") != layer:
            self._gradients = {"layer": layer}
        if which not in self._gradients:
            if which == "born":
                sigma = self.sigma.reshape(-1, self.lattice.n_sites)
            else:
                assert self.exact is not None
                sigma = self.exact.configurations
            self._gradients[which] = self.psi.layer_gradient(sigma, self.layers[layer])
        return self._gradients[which]

    def turn(self, layer: int, target: int) -> None:
        """All directions of one layer and target, the feature first."""
        if self.results["done"][layer, target].all():
            return
        directions = self._directions(layer, target)
        chi = self.chi(target)
        for d, name in enumerate(DIRECTIONS):
            if not self.results["done"][layer, target, d]:
                direction = directions[name]
                if direction is not None:
                    self._measure(layer, target, d, direction, chi)
                self.results["done"][layer, target, d] = True
            self.ticks = int(self.results["done"].sum()) * self._ticks_of_a_direction

    def _directions(self, layer: int, target: int) -> dict[str, Direction | None]:
        name, sae = self.layers[layer], self.context.upstream["sae"]
        features = self.context.upstream["features"].sel(layer=name)
        dictionary = Dictionary.from_dataset(sae, name, self.spec.sae.seeds[0])
        best = int(features["best_feature"].sel(observable=self.targets[target]))
        self.results["feature"][layer, target] = best
        if best < 0:  # no feature, or no target, varies: there is nothing to turn
            return dict.fromkeys(DIRECTIONS)
        pooled = self.spec.sae.input == "pooled"

        def along(i: int, vector: np.ndarray) -> FeatureDirection:
            return FeatureDirection(self.psi, name, dictionary, i, vector.astype(np.float32), pooled)

        decoder = dictionary.decoder
        random = random_unit_vector(decoder.shape[1], (self.options.seed, layer, target, 0))
        directions: dict[str, Direction | None] = {
            "feature": along(best, decoder[best]),
            "random_direction": along(best, np.linalg.norm(decoder[best]) * random),
        }
        live = np.flatnonzero(features["density"].values > 0)
        others = live[live != best]
        generator = np.random.default_rng((self.options.seed, layer, target, 1))
        if len(others):
            other = int(generator.choice(others))
            directions["other_feature"] = along(other, decoder[other])
        observable = self.quantities.observables[self.quantities.names.index(self.targets[target])]
        if observable.kind == "diagonal":
            directions["jastrow_dial"] = JastrowDial(self.psi, observable)
        return {name: directions.get(name) for name in DIRECTIONS}

    def _measure(self, layer: int, target: int, d: int, direction: Direction, chi: float) -> None:
        column = self.quantities.names.index(self.targets[target])
        flat = self.sigma.reshape(-1, self.lattice.n_sites)
        tangent = np.concatenate(
            [
                direction.tangent(flat[i : i + _MATCHING_SAMPLES])
                for i in range(0, len(flat), _MATCHING_SAMPLES)
            ]
        ).reshape(self.log_psi.shape)
        slope, slope_error = covariance(tangent[..., None], self.value)
        if not np.var(tangent) > 0:  # a dead direction: nothing to turn
            return
        strengths = self._strengths(layer, target, d, direction, 2 * slope[column])
        self.results["strength"][layer, target, d] = strengths
        known = np.flatnonzero(np.isfinite(strengths))
        for e, estimator in enumerate(ESTIMATORS):
            curve = self._curve(estimator, direction, strengths, known, (layer, target, d))
            if curve is None:
                continue
            predicted, error = 2 * slope, 2 * slope_error
            if estimator == "exact":
                assert self.exact is not None
                exact_tangent = direction.tangent(self.exact.configurations, self.gradient(layer, "all"))
                predicted = self.exact.slopes(exact_tangent)[:-1]
                error = np.zeros_like(predicted)
            self._store((layer, target, d), e, curve, strengths, column, chi, (predicted, error))

    def _strengths(self, layer: int, target: int, d: int, direction: Direction, slope: float) -> np.ndarray:
        """scale - 1 for the feature; for a control the strengths of equal infidelity, signed so that the target moves alike."""
        if d == 0:
            return self.scales - 1
        wanted = self.results["infidelity"][layer, target, 0, :, 0]
        sense = (
            np.sign(self.results["slope_predicted"][layer, target, 0, 0, self._column(target)] * slope) or 1.0
        )
        some = np.linspace(0, self.log_psi.size - 1, min(_MATCHING_SAMPLES, self.log_psi.size)).astype(int)
        sigma, log_psi = self.sigma.reshape(-1, self.lattice.n_sites)[some], self.log_psi.reshape(-1)[some]
        return steering.matched_strengths(direction, sigma, log_psi, wanted, sense * np.sign(self.scales - 1))

    def _column(self, target: int) -> int:
        return self.quantities.names.index(self.targets[target])

    def _curve(
        self,
        estimator: str,
        direction: Direction,
        strengths: np.ndarray,
        known: np.ndarray,
        place: tuple[int, int, int],
    ) -> Curve | None:
        """The curve at all scales, NaN where there is no strength; None where the estimator is not computed."""
        chunk = self.spec.engine.chunk
        if estimator == "reweighted":
            family = direction.family(strengths[known])
            curve = reweighted(family, self.quantities, self.sigma, self.log_psi, chunk, self.tick)
        elif estimator == "exact":
            if self.exact is None:
                return None
            curve = self.exact.curve(direction.family(strengths[known]))
        elif place[2] == 0 or self.options.resample_controls:
            curve = Curve.joined([self._resampled(direction, strengths[p], (*place, p)) for p in known])
        else:
            return None
        return curve.spread(known, len(strengths))

    def _resampled(self, direction: Direction, strength: float, place: tuple[int, ...]) -> Curve:
        shape = (len(self.layers), len(self.targets), len(DIRECTIONS), len(self.scales))
        number = int(np.ravel_multi_index(place, shape))
        sampling = self.spec.sampling
        metropolis = Metropolis.of(sampling, self.lattice.n_sites, self.options.seed, Stream.STEERING)
        return resampled(
            direction.at(float(strength)),
            self.psi,
            self.quantities,
            metropolis,
            self._start(direction, strength, number),
            number * _SWEEPS_OF_A_POINT,
            self.options.burn_in,
            self.options.draws,
            sampling.sweeps,
            self.spec.engine.chunk,
            self.tick,
        )

    def _start(self, direction: Direction, strength: float, number: int) -> np.ndarray:
        """One configuration per chain, drawn from the Born samples with the weights of the turned state."""
        flat = self.sigma.reshape(-1, self.lattice.n_sites)
        log_ratio = direction.at(float(strength)).log_psi(flat).real - self.log_psi.reshape(-1).real
        offset = np.random.default_rng((self.options.seed, number)).random()
        weight = np.exp(2 * (log_ratio - log_ratio.max()))
        return flat[systematic_resample(weight, len(self.log_psi), offset)]

    def _store(
        self,
        place: tuple[int, int, int],
        e: int,
        curve: Curve,
        strengths: np.ndarray,
        column: int,
        chi: float,
        predicted: tuple[np.ndarray, np.ndarray],
    ) -> None:
        r, base = self.results, self.base
        each = (*place, slice(None), e)
        error = curve.error
        r["observable_mean"][each], r["observable_error"][each] = curve.mean[:, :-1], error[:, :-1]
        r["energy"][each], r["energy_error"][each] = curve.mean[:, -1], error[:, -1]
        deviation = steering.relative_deviation(curve, base)
        r["relative_energy_deviation"][each], r["relative_energy_deviation_error"][each] = deviation
        r["infidelity"][each], r["ess"][each] = curve.infidelity, curve.ess
        whole = (*place, e)
        r["slope_predicted"][whole], r["slope_predicted_error"][whole] = predicted
        local = steering.derivatives(curve, strengths, base)
        r["slope_measured"][whole], r["slope_measured_error"][whole] = (
            local.slope[:-1],
            local.slope_error[:-1],
        )
        r["energy_slope"][whole], r["energy_curvature"][whole] = local.slope[-1], local.curvature[-1]
        r["efficiency"][whole] = steering.efficiency(local.slope[column], local.curvature[-1], chi)
        r["reach"][whole], r["reach_error"][whole] = steering.reach(
            curve, base, column, self.options.energy_budget
        )
        low, high = steering.monotone_range(curve, base, column)
        r["monotone_low"][whole], r["monotone_high"][whole] = self.scales[low], self.scales[high]

    def dataset(self) -> xr.Dataset:
        """steering.nc."""

        def names(values):
            return np.asarray(values, dtype=object)

        variables = {name: array for name, array in self.results.items() if name != "done"}
        coordinates = {
            "layer": names(self.layers),
            "target": names(self.targets),
            "direction": names(DIRECTIONS),
            "scale": self.scales,
            "estimator": names(ESTIMATORS),
            "observable": names(self.quantities.names[:-1]),
        }
        return labelled("steering", variables, coordinates, {"energy_budget": self.options.energy_budget})


def estimate(spec: Spec) -> Cost:
    """Network calls of the reweighted curves (all directions) and of fresh sampling (the feature; controls if asked for)."""
    lattice = spec.lattice.build()
    n, options = lattice.n_sites, spec.steering
    connected = spec.hamiltonian.build(lattice).n_connected + 1
    points = len(options.layers) * len(options.targets) * len(options.scales)
    curves = points * len(DIRECTIONS) * options.samples * connected
    fresh = spec.sampling.chains * (
        n * (options.burn_in + options.draws * spec.sampling.sweeps) + options.draws * connected
    )
    fresh *= points * (len(DIRECTIONS) if options.resample_controls else 1)
    exact = points * len(DIRECTIONS) * 2**n if n <= MAX_SITES_EXACT else 0
    size = 8.0 * points * len(DIRECTIONS) * len(ESTIMATORS) * (2 * len(spec.observables.names) + 8)
    memory = (
        16384.0 * 8 * n * 64
        + 8.0 * options.samples * len(options.scales) * (len(spec.observables.names) + 2) * 3
    )
    return Cost(seconds_for(1.5 * network_flops(spec) * (0.6 * curves + fresh + exact)), size, memory)


STAGE = Stage(
    name="steering",
    reads=("lattice", "hamiltonian", "state", "sampling", "observables", "sae", "steering"),
    upstream=("ground_state", "samples", "observables", "sae", "features"),
    version=1,
    run=run,
    estimate=estimate,
)
