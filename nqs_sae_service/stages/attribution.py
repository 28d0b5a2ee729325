"""Stage ``attribution``: what every feature does to the state, from gradients, and how far ablation agrees. Only if asked for.

For each layer, on the test chains: slopes of all observables, metric and energy force of all features (``interpret/atlas.py``);
attribution by gradients, and ablation of some features to judge it by (``interpret/attribution.py``). From each layer to the
next: the strongest edges into the best feature of every observable (``interpret/edges.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import SCHEMA, labelled
from ..engine.arrays import to_host
from ..interpret.atlas import DecodedLayer, atlas, local_tangents, tangents
from ..interpret.attribution import (
    ABLATIONS,
    PREDICTORS,
    Ablated,
    Effects,
    ablated,
    activation_sizes,
    activations_at,
    agreement,
    integrated,
    mean_activation,
    most_and_others,
    predicted,
)
from ..interpret.edges import edge_effect, edge_weights, strongest
from ..interpret.expectation import REWEIGHTING_CALL, on_samples
from ..sae.dictionary import Dictionary
from ..vmc.estimators import measure
from ..vmc.statistics import mean_and_error
from .cost import Cost, network_flops, seconds_for
from .inputs import economy_of, measured, projection_attributes, tested, trained
from .over_time import everywhere
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

_DONORS = 2  # samples that a resampled feature takes its activations from
_STEPS = ("atlas", "attribution", *ABLATIONS, "edges")
_BACKWARD = 4.0  # a forward and a backward pass of the bricks, in forward passes
_TEXTS = ("source_layer", "target_layer", "target_observable")


@dataclass(frozen=True, eq=False)
class _Born:
    """Samples (chain, draw, n_sites), where psi is, with log psi and local estimators (chain, draw, ...) on the host."""

    sigma: Any
    log_psi: np.ndarray
    values: np.ndarray

    @property
    def flat(self) -> Any:
        """Configurations (n, n_sites)."""
        return self.sigma.reshape(-1, self.sigma.shape[-1])

    def by_chain(self, per_sample: np.ndarray) -> np.ndarray:
        """(n, ...) as (chain, draw, ...)."""
        return per_sample.reshape(*self.log_psi.shape, *per_sample.shape[1:])


@everywhere
def run(context: Context) -> xr.Dataset:
    """Every step of every layer in turn; a checkpoint after each keeps what is done."""
    programme = _Programme(context)
    for number in range(len(programme.layers)):
        layer = _Layer(programme, number)
        for step, name in enumerate(_STEPS):
            if not programme.results["done"][number, step]:
                programme.begin(number, name)
                layer.compute(name)
                programme.results["done"][number, step] = True
    return programme.dataset()


class _Programme:
    """What the layers share, and the result arrays being filled."""

    def __init__(self, context: Context) -> None:
        self.context, self.spec, self.options = context, context.spec, context.spec.attribution
        self.psi, self.observables = trained(context), measured(context.spec)
        self.phase = self.psi.state.complex_amplitude
        known = self.psi.state.layers
        self.layers = sorted(self.options.layers, key=known.index)  # as the network computes them
        self.message = ""
        self.results = context.restore() or self._empty()

    @cached_property
    def quantities(self) -> list[str]:
        """Sample by sample first, then the expectation values."""
        sampled = ["log_abs_psi", *(["phase"] if self.phase else []), "local_energy"]
        return [*sampled, *(f"mean_{o.name}" for o in self.observables[:-1]), "mean_energy"]

    @cached_property
    def targets(self) -> list[str]:
        """Observables whose best features edges lead to."""
        return [str(name) for name in self.context.upstream["features"]["observable"].values]

    @property
    def _edges_of_a_layer(self) -> int:
        return len(self.targets) * self.options.edges

    def _empty(self) -> dict[str, np.ndarray]:
        sizes = {
            "layer": len(self.layers),
            "feature": self.context.upstream["sae"].sizes["feature"],
            "observable": len(self.observables) - 1,
            "predictor": len(PREDICTORS),
            "quantity": len(self.quantities),
            "ablation": len(ABLATIONS),
            "ablated": self.options.ablated,
            "edge": (len(self.layers) - 1) * self._edges_of_a_layer,
        }
        arrays = {
            name: np.full([sizes[d] for d in variable.dims], np.nan)
            for name, variable in SCHEMA["attribution"].items()
            if all(sizes[d] for d in variable.dims) and name not in _TEXTS
        }
        for name in ("ablated_feature", "source_feature", "target_feature"):
            if name in arrays:
                arrays[name] = np.full(arrays[name].shape, -1, np.int32)
        if not self.options.ablated:
            for name in ("agreement", "rank_agreement"):
                del arrays[name]
        return {**arrays, "done": np.zeros((len(self.layers), len(_STEPS)), bool)}

    def begin(self, layer: int, step: str) -> None:
        """Say what comes next; what is done can be kept now."""
        self.message = f"{self.layers[layer]}: {step}"
        self.tick()

    def tick(self, _: str = "") -> None:
        """Nothing is lost but the step at hand."""
        done = self.results["done"]
        self.context.tick(int(done.sum()), done.size, self.message, lambda: self.results)

    def _born(self, wanted: int) -> _Born:
        sigma, log_psi = tested(self.context.upstream["samples"], wanted, self.phase)
        there = self.context.device.put(np.ascontiguousarray(sigma))
        flat, log_flat = there.reshape(-1, sigma.shape[-1]), self.context.device.put(log_psi.reshape(-1))
        values = []
        for start in range(0, len(flat), REWEIGHTING_CALL):
            self.tick()
            some = slice(start, start + REWEIGHTING_CALL)
            found = measure(self.psi, self.observables, flat[some], log_flat[some], economy_of(self.spec))
            values.append(to_host(found))
        value = np.concatenate(values)
        return _Born(there, log_psi, value.reshape(*log_psi.shape, value.shape[-1]))

    @cached_property
    def born(self) -> _Born:
        """The samples of the atlas."""
        return self._born(self.options.samples)

    @cached_property
    def fewer(self) -> _Born:
        """Those of ablation and edges."""
        return self._born(min(self.options.samples, self.options.ablation_samples))

    def decoded(self, layer: str) -> DecodedLayer:
        """A layer with the dictionary of the first seed."""
        dictionary = Dictionary.from_dataset(self.context.upstream["sae"], layer, self.spec.sae.seeds[0])
        return DecodedLayer(layer, dictionary.on(self.context.device), self.spec.sae.input == "pooled")

    def place_of_edges(self, layer: int) -> slice:
        """Those into layer number ``layer``."""
        return slice((layer - 1) * self._edges_of_a_layer, layer * self._edges_of_a_layer)

    def dataset(self) -> xr.Dataset:
        """attribution.nc."""
        variables: dict[str, Any] = {name: array for name, array in self.results.items() if name != "done"}
        if "weight" in variables:
            each, names = self._edges_of_a_layer, np.asarray(self.layers, object)
            variables["source_layer"] = np.repeat(names[:-1], each)
            variables["target_layer"] = np.repeat(names[1:], each)
            within = np.repeat(np.asarray(self.targets, object), self.options.edges)
            variables["target_observable"] = np.tile(within, len(self.layers) - 1)
        labels = {
            "layer": self.layers,
            "predictor": PREDICTORS,
            "quantity": self.quantities,
            "ablation": ABLATIONS,
            "observable": [o.name for o in self.observables[:-1]],
        }
        used = {d for name in variables for d in SCHEMA["attribution"][name].dims}
        coordinates: dict[str, Any] = {
            name: np.asarray(values, dtype=object) for name, values in labels.items() if name in used
        }
        coordinates["feature"] = self.context.upstream["sae"]["feature"].values
        attributes = {
            "samples": self.born.log_psi.size,
            "ablation_samples": self.fewer.log_psi.size,
            "donors": _DONORS,
            "path": "all features together from their mean activations",
            **projection_attributes(self.psi.state),
        }
        return labelled("attribution", variables, coordinates, attributes)


@dataclass(eq=False)
class _Layer:
    """The steps of one layer; what several of them need is computed once."""

    programme: _Programme
    number: int

    def compute(self, step: str) -> None:
        """One step of ``_STEPS``."""
        if step == "atlas":
            self._atlas()
        elif step == "attribution":
            self._attribution()
        elif step == "edges":
            self._edges()
        else:
            self._ablation(ABLATIONS.index(step))

    def _store(self, place: tuple[Any, ...], **values: Any) -> None:
        for name, value in values.items():
            self.programme.results[name][(self.number, *place)] = value

    @cached_property
    def at(self) -> DecodedLayer:
        return self.programme.decoded(self.programme.layers[self.number])

    @cached_property
    def mean(self) -> Any:
        return mean_activation(self.programme.psi, self.at, self.programme.fewer.flat)

    @cached_property
    def donors(self) -> Any:
        """Activations (donor, row, feature) of some of the samples."""
        programme = self.programme
        generator = np.random.default_rng((programme.options.seed, self.number, 1))
        flat = programme.fewer.flat
        some = generator.choice(len(flat), size=min(_DONORS, len(flat)), replace=False)
        return activations_at(programme.psi, self.at, flat[programme.context.device.put(np.sort(some))])

    @cached_property
    def chosen(self) -> np.ndarray:
        features = self.programme.results["ablated_feature"][self.number]
        return features[features >= 0].astype(np.int64)

    def _atlas(self) -> None:
        programme, born = self.programme, self.programme.born
        _, g = tangents(programme.psi, self.at, born.flat, tick=programme.tick)
        found = atlas(born.by_chain(g), born.values)
        self._store(
            (),
            slope=found.slope[:, :-1],
            slope_error=found.slope_error[:, :-1],
            leverage=found.leverage[:, :-1],
            metric=found.metric,
            metric_error=found.metric_error,
            energy_force=found.slope[:, -1],
            energy_force_error=found.slope_error[:, -1],
        )
        if programme.options.ablated:
            generator = np.random.default_rng((programme.options.seed, self.number, 0))
            chosen = most_and_others(found.metric, programme.options.ablated, generator)
            self._store((), ablated_feature=chosen)

    def _evaluate(self, baseline: Any, chosen: Any = None) -> Any:
        return partial(
            tangents,
            self.programme.psi,
            self.at,
            baseline=baseline,
            chosen=chosen,
            tick=self.programme.tick,
        )

    @property
    def _energy(self) -> Any:
        return self.programme.observables[-1].operator

    def _predicted(self, log_effect: np.ndarray, local_effect: np.ndarray) -> Effects:
        born = self.programme.fewer
        return predicted(
            born.by_chain(log_effect), born.by_chain(local_effect), born.values, self.programme.phase
        )

    def _by_gradient(self, baseline: Any, chosen: Any = None) -> Effects:
        evaluate, flat = self._evaluate(baseline, chosen), self.programme.fewer.flat
        return self._predicted(evaluate(flat)[1], local_tangents(self._energy, flat, evaluate))

    def _by_activation(self, baseline: Any, chosen: Any) -> Effects:
        sizes = activation_sizes(self.programme.psi, self.at, self.programme.fewer.flat, baseline, chosen)
        return self._predicted(sizes.astype(np.complex128 if self.programme.phase else np.float64), sizes)

    @cached_property
    def _integrated(self) -> tuple[Effects, float]:
        """Of all features, and how far they are from complete."""
        programme, flat = self.programme, self.programme.fewer.flat
        log_effect, local_effect = integrated(
            programme.psi, self.at, self._energy, flat, self.mean, programme.options.steps, programme.tick
        )
        evaluate = self._evaluate(self.mean)
        whole = evaluate(flat)[0] - evaluate(flat, part=0.0)[0]
        missed = log_effect.sum(axis=1) - whole
        size = np.std(whole)
        return self._predicted(log_effect, local_effect), float(np.std(missed) / size) if size else np.nan

    @cached_property
    def _gradient(self) -> Effects:
        return self._by_gradient(self.mean)

    def _everything(self) -> Any:
        xp_all = np.arange(self.at.dictionary.n_features)
        return self.programme.context.device.put(xp_all)

    def _attribution(self) -> None:
        activation = self._by_activation(self.mean, self._everything())
        found = [self._gradient, self._integrated[0], activation]
        sizes = np.stack([effects.sizes for effects in found])
        self._store((), attribution=sizes, completeness_error=self._integrated[1])

    def _ablation(self, kind: int) -> None:
        """Ablated states beside what the three predictions predict from the same baseline."""
        if not self.programme.options.ablated or not len(self.chosen):
            return
        programme, born = self.programme, self.programme.fewer
        there = programme.context.device.put(self.chosen)
        baselines = self._baselines(ABLATIONS[kind])
        truths = []
        for baseline in baselines:
            family = Ablated(programme.psi, self.at, there, baseline[:, there])
            logs, value = on_samples(
                family, programme.observables, born.sigma, economy_of(programme.spec), programme.tick
            )
            truths.append(ablated(logs - born.log_psi[..., None], value, born.values.real, programme.phase))
        truth = Effects.mean([effects for effects, _, _ in truths])
        baseline = sum(baselines[1:], baselines[0]) / np.float32(len(baselines))
        same = ABLATIONS[kind] == "mean"
        predictions = [
            self._gradient.of(self.chosen) if same else self._by_gradient(baseline, there),
            self._integrated[0].of(self.chosen),
            self._by_activation(baseline, there),
        ]
        some = slice(0, len(self.chosen))
        sampled = truth.sampled.shape[-1]
        self._store(
            (kind, some),
            ablation_effect=truth.sizes,
            ablation_infidelity=np.mean([infidelity for _, infidelity, _ in truths], axis=0),
            ablation_ess=np.mean([ess for _, _, ess in truths], axis=0),
        )
        self._store((kind, some, slice(sampled, None)), ablation_effect_error=truth.expected_error)
        for m, effects in enumerate(predictions):
            pearson, spearman = agreement(effects, truth)
            self._store((m, kind), agreement=pearson, rank_agreement=spearman)
            self._store((m, kind, some), ablation_attribution=effects.sizes)

    def _baselines(self, kind: str) -> list[Any]:
        """Of all features, (row or 1, feature) each."""
        if kind == "resample":
            return list(self.donors)
        return [self.mean if kind == "mean" else 0 * self.mean]

    def _edges(self) -> None:
        programme = self.programme
        if self.number == 0 or not programme.options.edges:
            return
        source = programme.decoded(programme.layers[self.number - 1])
        features = programme.context.upstream["features"].sel(layer=self.at.layer)
        best = features["followed_feature" if "followed_feature" in features else "best_feature"].values
        place, known = programme.place_of_edges(self.number), {}
        for target, feature in enumerate(int(i) for i in best):
            if feature < 0:
                continue
            if feature not in known:
                known[feature] = self._edges_into(source, feature)
            first = place.start + target * programme.options.edges
            for name, values in known[feature].items():
                programme.results[name][first : first + len(values)] = values

    def _edges_into(self, source: DecodedLayer, feature: int) -> dict[str, np.ndarray]:
        """The strongest ones, each with the effect of its ablation."""
        programme, born = self.programme, self.programme.fewer
        psi = programme.psi.bare
        each = edge_weights(psi, source, self.at, feature, born.flat, programme.tick)
        weight, error = mean_and_error(born.by_chain(each).astype(np.float64))
        sources = strongest(weight, programme.options.edges)
        found = sources[sources >= 0]
        effects = np.full((2, len(sources)), np.nan)
        for e, i in enumerate(found):
            programme.tick()
            change = edge_effect(psi, source, self.at, int(i), feature, born.flat)
            effects[:, e] = mean_and_error(born.by_chain(change).astype(np.float64))
        return {
            "source_feature": sources,
            "target_feature": np.where(sources >= 0, feature, -1),
            "weight": np.where(sources >= 0, weight[sources], np.nan),
            "weight_error": np.where(sources >= 0, error[sources], np.nan),
            "edge_effect": effects[0],
            "edge_effect_error": effects[1],
        }


def estimate(spec: Spec) -> Cost:
    """Backward passes on samples and their neighbours, and the forward passes of every ablated feature on them."""
    lattice, options = spec.lattice.build(), spec.attribution
    state = spec.state.build(lattice)
    connected = spec.final_hamiltonian.build(lattice).n_connected + 1
    rows = min(options.samples, options.ablation_samples) * connected
    backward = options.samples + rows * (options.steps + 3)
    bricks = 30.0 * 2.0 * state.n_parameters * state.n_tokens * state.n_copies
    flops = _BACKWARD * bricks * backward
    kinds = len(ABLATIONS) - 1 + _DONORS
    flops += network_flops(spec, options.layers) * (
        rows * options.ablated * kinds + options.samples * connected
    )
    n_layers, features = len(options.layers), spec.sae.features
    quantities = len(spec.observables.names) + 4
    disk = 8.0 * n_layers * features * (3 * quantities + 4 * len(spec.observables.names) + 8)
    memory = 16.0 * features * (options.samples + 12 * options.ablation_samples) + 2e8
    once = Cost(1.0 + n_layers * seconds_for(flops), disk, memory)
    return once.repeated(len(spec.dynamics.times), disk)


def wanted(spec: Spec) -> bool:
    """Whether the spec asks for it."""
    return spec.attribution.wanted


STAGE = Stage(
    name="attribution",
    reads=("lattice", "hamiltonian", "state", "observables", "sae", "attribution"),
    upstream=("ground_state", "dynamics", "samples", "sae", "features"),
    version=1,
    run=run,
    estimate=estimate,
    wanted=wanted,
)
