"""The feature and its controls at every layer for every target, as the stage ``steering`` asks for them by name.

The feature is that of ``features.nc``. Means are taken over train chains, slopes and metric of all features over select chains,
``steering.samples`` of each; what a direction does is measured on the test chains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from ..engine.arrays import to_host
from ..interpret.atlas import Atlas, DecodedLayer, atlas, tangents
from ..interpret.bench import Bench
from ..interpret.directions import (
    ClampDirection,
    Direction,
    FeatureDirection,
    FeaturesDirection,
    JastrowDial,
    ShiftDirection,
    difference_of_means,
    linear_probe,
    principal_component,
    random_unit_vector,
)
from ..interpret.natural_gradient import SAMPLES_EACH, metric, steepest
from ..physics.observables import Observable
from ..sae.dictionary import Dictionary
from ..vmc.estimators import measure
from .inputs import of_chains
from .stage import Context

_RANDOM, _OTHER = 0, 1  # numbers of streams


@dataclass(frozen=True)
class _Fitted:
    """Slopes and metric of all features of a layer, from so many ``samples``."""

    atlas: Atlas
    metric: np.ndarray
    samples: int


@dataclass(frozen=True)
class _Pair:
    """A layer and a target, the column of the target among the observables, and the feature that means it."""

    layer: str
    target: str
    column: int
    best: int
    seed: tuple[int, ...]


class Directions:
    """Directions of the ``bench``. ``tick`` says what takes time; fits of the last layer are kept."""

    def __init__(self, context: Context, bench: Bench, tick: Callable[[str], None]) -> None:
        self.context, self.bench, self.tick = context, bench, tick
        self.options = context.spec.steering
        self._fits: dict[str, _Fitted] = {}
        self._dictionaries: dict[str, Dictionary] = {}

    def best(self, layer: str, target: str) -> int:
        """The feature that means the target; -1 where no feature, or not the target, varies."""
        features = self._features(layer)
        chosen = features["followed_feature" if "followed_feature" in features else "best_feature"]
        return int(chosen.sel(observable=target))

    def of(self, name: str, layer: str, target: str) -> tuple[Direction | None, int]:
        """The direction, None where there is none, and the number of the feature that it turns, -1 for none or many."""
        pair = self._pair(layer, target)
        if pair.best < 0:  # there is nothing to be compared with
            return None, -1
        chosen = {"feature": self._best, "other_feature": self._other, "leverage_feature": self._strongest}
        if name in chosen:
            i = chosen[name](pair)
            return (self._along(pair, i) if i >= 0 else None), i
        made: dict[str, Callable[[_Pair], Direction | None]] = {
            "random_direction": self._random,
            "jastrow_dial": self._dial,
            "constant_shift": self._shift,
            "difference_of_means": partial(self._fitted_shift, "difference of means", difference_of_means),
            "probe": partial(self._fitted_shift, "probe", linear_probe),
            "principal_component": partial(self._fitted_shift, "principal component", principal_component),
            "clamp": self._clamp,
            "add": self._add,
            "natural_gradient": self._all_features,
            "natural_gradient_held": self._all_features_held,
        }
        of_the_feature = ("random_direction", "clamp", "add")
        return made[name](pair), (pair.best if name in of_the_feature else -1)

    def held(self, target: str) -> list[str]:
        """Observables that ``natural_gradient_held`` holds beside the energy while the target moves."""
        return [name for name in self.options.held or self.options.targets if name != target]

    def _pair(self, layer: str, target: str) -> _Pair:
        seed = (self.options.seed, self.options.layers.index(layer), self.options.targets.index(target))
        return _Pair(layer, target, self.bench.names.index(target), self.best(layer, target), seed)

    def _features(self, layer: str) -> xr.Dataset:
        return self.context.upstream["features"].sel(layer=layer)

    def _dictionary(self, layer: str) -> Dictionary:
        """That of the first seed, on the host."""
        if layer not in self._dictionaries:
            sae, seed = self.context.upstream["sae"], self.context.spec.sae.seeds[0]
            self._dictionaries = {layer: Dictionary.from_dataset(sae, layer, seed)}
        return self._dictionaries[layer]

    @property
    def _pooled(self) -> bool:
        return bool(self.context.spec.sae.input == "pooled")

    def _put(self, array: np.ndarray) -> Any:
        return self.context.device.put(np.asarray(array, np.float32))

    def _along(self, pair: _Pair, i: int, vector: np.ndarray | None = None) -> FeatureDirection:
        """The activation of feature ``i`` along its decoder row, or another vector."""
        dictionary = self._dictionary(pair.layer)
        pushed = self._put(dictionary.decoder[i] if vector is None else vector)
        there = dictionary.on(self.context.device)
        return FeatureDirection(self.bench.psi, pair.layer, there, i, pushed, self._pooled)

    def _best(self, pair: _Pair) -> int:
        return pair.best

    def _other(self, pair: _Pair) -> int:
        live = np.flatnonzero(self._features(pair.layer)["density"].values > 0)
        others = live[live != pair.best]
        return int(np.random.default_rng((*pair.seed, _OTHER)).choice(others)) if len(others) else -1

    def _strongest(self, pair: _Pair) -> int:
        leverage = np.abs(self._fitted(pair.layer).atlas.leverage[:, pair.column])
        return int(np.nanargmax(leverage)) if np.isfinite(leverage).any() else -1

    def _unit_vector(self, pair: _Pair) -> np.ndarray:
        return random_unit_vector(self._dictionary(pair.layer).width, (*pair.seed, _RANDOM))

    def _random(self, pair: _Pair) -> Direction:
        length = np.linalg.norm(self._dictionary(pair.layer).decoder[pair.best])
        return self._along(pair, pair.best, length * self._unit_vector(pair))

    def _shift(self, pair: _Pair) -> Direction:
        length = self._along(pair, pair.best).typical_length(self.bench.born[0])
        return ShiftDirection(self.bench.psi, pair.layer, self._put(length * self._unit_vector(pair)))

    def _largest(self, pair: _Pair) -> float:
        """The largest activation of the feature on the train chains."""
        sigma, _ = self._born("train")
        return self._along(pair, pair.best).largest(sigma.reshape(-1, sigma.shape[-1]))

    def _clamp(self, pair: _Pair) -> Direction:
        feature = self._along(pair, pair.best)
        return ClampDirection(**vars(feature), level=self._largest(pair))

    def _add(self, pair: _Pair) -> Direction:
        row = self._dictionary(pair.layer).decoder[pair.best]
        return ShiftDirection(self.bench.psi, pair.layer, self._put(self._largest(pair) * row))

    def _dial(self, pair: _Pair) -> Direction | None:
        observable = self.bench.observables[pair.column]
        return JastrowDial(self.bench.psi, observable) if observable.kind == "diagonal" else None

    def _born(self, split: str) -> tuple[Any, Any]:
        """Configurations (chain, draw, n_sites) and log psi (chain, draw) where psi is, of the chains of a split."""
        phase = self.bench.psi.state.complex_amplitude
        chosen = of_chains(self.context.upstream["samples"], split, self.options.samples, phase)
        sigma, log_psi = (self.context.device.put(np.ascontiguousarray(array)) for array in chosen)
        return sigma, log_psi

    def _values(self, observables: tuple[Observable, ...], sigma: Any, log_psi: Any) -> np.ndarray:
        """Values or local estimators (chain, draw, observable)."""
        flat = sigma.reshape(-1, sigma.shape[-1])
        values = measure(self.bench.psi, observables, flat, log_psi.reshape(-1), self.bench.sampling.economy)
        return to_host(values).reshape(*log_psi.shape, -1)

    def _fitted_shift(
        self, what: str, fit: Callable[[np.ndarray, np.ndarray], np.ndarray], pair: _Pair
    ) -> Direction:
        """Along the vector (width,) that ``fit`` finds in activations and values of the target on the train chains."""
        self.tick(what)
        sigma, log_psi = self._born("train")
        value = self._values((self.bench.observables[pair.column],), sigma, log_psi).real
        x = self.bench.psi.stream_at(sigma.reshape(-1, sigma.shape[-1]), pair.layer)
        vector = fit(x, value.reshape(-1))
        return ShiftDirection(self.bench.psi, pair.layer, self._put(vector))

    def _fitted(self, layer: str) -> _Fitted:
        if layer not in self._fits:
            at = DecodedLayer(layer, self._dictionary(layer).on(self.context.device), self._pooled)
            sigma, log_psi = self._born("select")
            flat = sigma.reshape(-1, sigma.shape[-1])
            _, g = tangents(self.bench.psi, at, flat, tick=lambda: self.tick("slopes of all features"))
            g = g.reshape(*log_psi.shape, -1)
            values = self._values(self.bench.observables, sigma, log_psi)
            self._fits = {layer: _Fitted(atlas(g, values), metric(g), len(flat))}
        return self._fits[layer]

    def _all_features(self, pair: _Pair, held: tuple[str, ...] = ()) -> Direction:
        fitted = self._fitted(pair.layer)
        slope = fitted.atlas.slope
        columns = slope[:, [self.bench.names.index(name) for name in held]]
        modes = max(1, fitted.samples // SAMPLES_EACH)
        weights = steepest(slope[:, pair.column], fitted.metric, columns, at_most=modes)
        there = self._dictionary(pair.layer).on(self.context.device)
        return FeaturesDirection(self.bench.psi, pair.layer, there, self._put(weights), self._pooled)

    def _all_features_held(self, pair: _Pair) -> Direction:
        return self._all_features(pair, (*self.held(pair.target), self.bench.names[-1]))
