"""Stage ``crosscoder``: one dictionary for layers, training checkpoints and other runs together. Only if asked for.

A view is a layer of a network (``sae/crosscoder.py``); all networks see the same configurations, Born samples of this run and
of the others in equal shares. Beside the crosscoder stand a dictionary for every view alone, trained by the same record (what
does sharing cost?), and crosscoders of untrained networks. Observables are those of this run, on its own chains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from ..datasets.schema import labelled
from ..engine.arrays import to_host
from ..engine.memory import available_memory
from ..interpret import correlation
from ..interpret.controls import best_candidate, chosen, of_chosen
from ..interpret.gain import gain_over_controls
from ..interpret.series import Rows as SampleRows
from ..interpret.series import per_sample
from ..sae.classes import NEVER
from ..sae.crosscoder import (
    SHARED,
    SPECIFIC,
    OneView,
    Scaled,
    Scales,
    by_view,
    classified,
    counted,
    decoder_cosines,
    decoder_norms,
    explained_by_view,
    norm_share,
)
from ..sae.dictionary import ARRAYS, Dictionary
from ..sae.inputs import Held, Inputs
from ..sae.metrics import density
from ..sae.training import Training
from ..spec.files import RUNS
from ..spec.keys import canonical_json
from .cost import Cost, network_flops, seconds_for, training_seconds
from .inputs import Rows, Source, computed, projection_attributes
from .sae import UNTRAINED_SEED
from .stage import Context, Stage
from .starts import sections_of
from .views import check_runs, comparable, told_apart

if TYPE_CHECKING:
    from ..spec import Spec

_IN_TRAINING = "training."  # before the names of what a checkpoint holds of dictionaries in training
_SHARE_OF_MEMORY = 0.25  # of what is available: the most that inputs are held in
_HISTORY = ("loss", "l0", "dead_fraction")


def run(context: Context) -> xr.Dataset:
    """Train one task after the other; a checkpoint keeps those that are done, and the one in training."""
    workshop = _Workshop(context)
    for task in workshop.tasks:
        workshop.train(task)
    return workshop.dataset()


@dataclass(frozen=True)
class _Task:
    """Dictionaries trained together: those of the crosscoder, of a view alone, or of a crosscoder of untrained networks.

    ``view``: None for all of them side by side.
    """

    name: str
    networks: tuple[np.ndarray, ...]
    seeds: Sequence[int]
    view: int | None = None


class _Workshop:
    """Networks, configurations, and the dictionaries that are done: arrays ``<task>.<array>`` with a leading seed."""

    def __init__(self, context: Context) -> None:
        self.context, self.spec, self.options = context, context.spec, context.spec.crosscoder
        self.record = self.options.record(context.spec.sae)
        self.network = context.spec.state.build(context.spec.lattice.build())
        self.layers = self.options.layers
        self.runs = [f"{RUNS}[{number}]" for number in range(len(self.options.runs))]
        ground_state = context.upstream["ground_state"]
        kept = [ground_state["checkpoint_parameters"].sel(checkpoint=c) for c in self.options.checkpoints]
        others = [context.upstream[f"{run}.ground_state"]["parameters"] for run in self.runs]
        self.networks = tuple(x.values for x in (*kept, ground_state["parameters"], *others))
        self.n_views = self.options.n_views
        saved = context.restore() or {}
        self.in_training = {
            name.removeprefix(_IN_TRAINING): array
            for name, array in saved.items()
            if name.startswith(_IN_TRAINING)
        }
        self.done = {name: array for name, array in saved.items() if not name.startswith(_IN_TRAINING)}
        self._training: Training | None = None
        self._last: tuple[tuple[np.ndarray, ...], str, Inputs] | None = None

    @cached_property
    def tasks(self) -> list[_Task]:
        """The crosscoder first, then every view alone, then the untrained networks."""
        seeds, record = self.record.seeds, self.record
        own = [_Task("crosscoder", self.networks, seeds)]
        alone = [_Task(f"view_{view}", self.networks, seeds, view) for view in range(self.n_views)]
        return [*own, *alone, *(self._untrained(i) for i in range(record.untrained))]

    def _untrained(self, initialisation: int) -> _Task:
        """Networks with random parameters, another one for every network."""
        first = UNTRAINED_SEED + initialisation * self.options.n_networks
        random = (self.network.initial_parameters(first + i) for i in range(self.options.n_networks))
        return _Task(f"untrained_{initialisation}", tuple(random), self.record.seeds[:1])

    def configurations(self, part: str) -> np.ndarray:
        """(n, spin) of the chains of a split: the same number from this run and from each of the others, evenly spaced."""
        files = [self.context.upstream[f"{run}.samples"] for run in self.runs]
        each = [
            samples["configuration"].values[samples["split"].values.astype(str) == part]
            for samples in (self.context.upstream["samples"], *files)
        ]
        flat = [sigma.reshape(-1, self.network.n_sites) for sigma in each]
        count = min(len(sigma) for sigma in flat)
        some = [sigma[np.linspace(0, len(sigma) - 1, count).round().astype(int)] for sigma in flat]
        return np.concatenate(some)

    def source(self, networks: Sequence[np.ndarray], sigma: np.ndarray) -> Source:
        """All views side by side, computed when asked for: (sample, token, view x width); one token where they are pooled."""
        put, pooled = self.context.device.put, self.record.input == "pooled"
        found = [
            computed(self.network.bind(put(parameters)), layer, sigma)
            for parameters in networks
            for layer in self.layers
        ]

        def compute(first: int, last: int) -> np.ndarray:
            views = [np.asarray(to_host(view(first, last)), np.float32) for view in found]
            return np.concatenate([x.mean(axis=1, keepdims=True) if pooled else x for x in views], axis=-1)

        return compute

    def inputs(self, networks: tuple[np.ndarray, ...], part: str) -> Inputs:
        """Rows of all views side by side, raw: in memory where that is small, else computed again in every epoch."""
        if self._last is None or self._last[0] is not networks or self._last[1] != part:
            self._last = None
            sigma = self.configurations(part)
            source = self.source(networks, sigma)
            _, n_tokens, width = source(0, 1).shape
            rows = Rows(source, (len(sigma), n_tokens, width), False, lambda: self.tick(f"reading, {part}"))
            small = 4.0 * rows.n_rows * rows.width <= _SHARE_OF_MEMORY * available_memory()
            self._last = networks, part, Held.of(rows) if small else rows
        return self._last[2]

    def tick(self, message: str) -> None:
        """Progress; a checkpoint, when one is due, holds what is done and what is in training."""
        steps, names = self.record.steps, {name.partition(".")[0] for name in self.done}
        at = 0 if self._training is None else self._training.step
        self.context.tick(len(names) * steps + at, len(self.tasks) * steps, message, self.state)

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to continue with the same bits."""
        now = self.in_training if self._training is None else self._training.state()
        return self.done | {_IN_TRAINING + name: array for name, array in now.items()}

    def train(self, task: _Task) -> None:
        """Train the dictionaries of a task unless they are done, continued where a checkpoint left them."""
        if f"{task.name}.encoder" in self.done:
            return
        raw = self.inputs(task.networks, "train")
        scales = None if task.view is not None else Scales.of(raw, self.n_views)
        inputs = OneView(raw, task.view or 0, self.n_views) if scales is None else Scaled(raw, scales)
        training = Training(self.record, inputs, task.seeds, self.context.device)
        if self.in_training:
            training.restore(self.in_training)
        self._training = training
        while training.step < self.record.steps:
            training.advance()
            self.tick(f"{task.name.replace('_', ' ')}: {training.message}")
        found = training.finished()
        whole = [dictionary if scales is None else scales.unscaled(dictionary) for dictionary, _ in found]
        done = {name: np.stack([getattr(d, name) for d in whole]) for name in ARRAYS if _has(whole[0], name)}
        done |= {name: np.stack([getattr(history, name) for _, history in found]) for name in _HISTORY}
        if scales is not None:
            done["scale"] = scales.factor
        self.done |= {f"{task.name}.{name}": array for name, array in done.items()}
        self._training, self.in_training = None, {}

    def dictionaries(self, task: _Task) -> list[Dictionary]:
        """Those of a task that is done, one per seed; they act on raw rows."""
        names = [name for name in ARRAYS if f"{task.name}.{name}" in self.done]
        record = self.record
        return [
            Dictionary(
                record.kind, record.active, *(self.done[f"{task.name}.{name}"][seed] for name in names)
            )
            for seed in range(len(task.seeds))
        ]

    def of(self, name: str) -> list[_Task]:
        """The tasks whose name begins so."""
        return [task for task in self.tasks if task.name.startswith(name)]

    def dataset(self) -> xr.Dataset:
        """crosscoder.nc."""
        (own,) = self.of("crosscoder")
        crosscoders = [_measured(self, own, dictionary) for dictionary in self.dictionaries(own)]
        variables = _stacked(crosscoders) | {name: self.done[f"crosscoder.{name}"] for name in _HISTORY}
        variables["view_scale"] = self.done["crosscoder.scale"]
        select = self.inputs(self.networks, "select")
        alone = [
            [
                explained_by_view(OneView(select, task.view or 0, self.n_views), d.reconstruct, 1)[0]
                for d in self.dictionaries(task)
            ]
            for task in self.of("view_")
        ]
        variables["separate_explained_variance"] = np.transpose(alone)
        variables |= _Correlations(self).variables()
        if untrained := [_measured(self, task, self.dictionaries(task)[0]) for task in self.of("untrained_")]:
            table = _stacked(untrained)
            kept = ("explained_variance", "live_features", "shared_features", "specific_features")
            variables |= {f"untrained_{name}": table[name] for name in kept}
        family, views = self._family(), self._views()
        apart = np.array([[not comparable(a, b) for b in family] for a in family])
        variables["decoder_cosine"][:, apart] = np.nan
        coordinates: dict[str, Any] = {
            "view": np.asarray(views, object),
            "other_view": np.asarray(views, object),
            "view_layer": ("view", np.asarray(self.layers * self.options.n_networks, object)),
            "view_network": ("view", np.repeat(np.asarray(self._names(), object), len(self.layers))),
            "sae_seed": np.asarray(self.record.seeds),
            "feature": np.arange(self.record.features),
            "step": np.arange(self.record.steps),
            "observable": self.context.upstream["observables"]["observable"].values,
            "control": np.asarray(_controls(bool(self.record.untrained)), object),
        }
        if self.record.untrained:
            firsts = UNTRAINED_SEED + self.options.n_networks * np.arange(self.record.untrained)
            coordinates["initialisation"] = firsts
        attributes = {
            "kind": self.record.kind,
            "k": self.record.active,
            "input": self.record.input,
            "shared_above": SHARED,
            "specific_below": SPECIFIC,
            "confidence": self.spec.features.confidence,
            **projection_attributes(self.network),
        }
        return labelled("crosscoder", variables, coordinates, attributes)

    def _names(self) -> list[str]:
        """Of the networks: the step of a checkpoint, and what tells this run and the others apart."""
        steps = [f"step {step}" for step in self.options.checkpoints]
        if not self.runs:
            return [*steps, "final"]
        here = json.loads(canonical_json({"hamiltonian": self.spec.hamiltonian}))
        there = [sections_of(self.context.upstream[f"{run}.ground_state"]) for run in self.runs]
        tables = [here["hamiltonian"], *(sections["hamiltonian"] for sections in there)]
        return steps + told_apart(tables)

    def _views(self) -> list[str]:
        """Labels of the views: network and layer, as far as there are several."""
        if self.options.n_networks == 1:
            return list(self.layers)
        names = self._names()
        if len(self.layers) == 1:
            return names
        return [f"{name}, {layer}" for name in names for layer in self.layers]

    def _family(self) -> list[tuple[int, str]]:
        """Of every view: 0 for a network of this training, else the number of the other run; and the layer."""
        own = len(self.networks) - len(self.runs)
        return [(max(0, n - own + 1), layer) for n in range(len(self.networks)) for layer in self.layers]


class _Correlations:
    """Best features beside controls: chosen on the select chains of this run, measured on its test chains."""

    def __init__(self, workshop: _Workshop) -> None:
        self.workshop, context = workshop, workshop.context
        split = context.upstream["samples"]["split"].values.astype(str)
        self.chains = {part: np.flatnonzero(split == part) for part in ("select", "test")}
        self.sigma = context.upstream["samples"]["configuration"].values
        value = context.upstream["observables"]["value"].values.astype(np.float64)
        self.observed = {part: value[chains] for part, chains in self.chains.items()}
        options = context.spec.features
        generator = np.random.Generator(np.random.Philox(options.seed))
        self.counts = correlation.chain_counts(len(self.chains["test"]), options.bootstrap, generator)
        self.confidence = options.confidence

    def variables(self) -> dict[str, np.ndarray]:
        """Best feature of the first seed, controls, gain."""
        workshop, observed = self.workshop, self.observed["test"]
        (own,) = workshop.of("crosscoder")
        best, _, feature = self._of_dictionary(own)
        width = workshop.n_views * workshop.network.width_of(workshop.layers[0])
        neuron = self._best(own.networks, lambda x: x.mean(axis=1), width)[2]
        alone = self._strongest([self._of_dictionary(task) for task in workshop.of("view_")])
        controls, found = [neuron, alone], {}
        if untrained := [self._of_dictionary(task)[2] for task in workshop.of("untrained_")]:
            every = range(observed.shape[-1])
            r = np.array(
                [
                    [correlation.pearson(x[..., [o]], observed[..., [o]])[0, 0] for o in every]
                    for x in untrained
                ]
            )
            strongest = np.nan_to_num(np.abs(r)).argmax(axis=0)
            controls.insert(0, np.stack([untrained[i][..., o] for o, i in enumerate(strongest)], axis=-1))
            found["untrained_pearson"] = r
        gain = gain_over_controls(feature, np.stack(controls), observed, self.counts, self.confidence)
        ends = [
            correlation.bootstrap_interval(
                feature[..., [o]], observed[..., [o]], self.counts, self.confidence
            )
            for o in range(observed.shape[-1])
        ]
        low, high = (np.array([pair[end][0, 0] for pair in ends]) for end in (0, 1))
        return found | {
            "best_feature": best,
            "best_pearson": gain.feature,
            "best_low": low,
            "best_high": high,
            "control_pearson": gain.control,
            "control_low": gain.control_low,
            "control_high": gain.control_high,
            "gain": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
        }

    def _of_dictionary(self, task: _Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best features of the first seed of a task, see ``_best``."""
        dictionary = self.workshop.dictionaries(task)[0]
        place = slice(None)
        if task.view is not None:
            place = slice(task.view * dictionary.width, (task.view + 1) * dictionary.width)
        return self._best(
            task.networks,
            lambda x: dictionary.token_mean(np.ascontiguousarray(x[..., place])),
            dictionary.n_features,
        )

    def _best(
        self, networks: Sequence[np.ndarray], average: Callable[[np.ndarray], np.ndarray], count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of ``count`` candidates the best (O,) for each observable, its |r| on select chains, its series on test chains."""
        select = per_sample(average, self._rows(networks, "select"), count)
        best = best_candidate(select, self.observed["select"])
        r = np.abs(of_chosen(correlation.pearson(select, self.observed["select"]), best))
        return best, r, chosen(per_sample(average, self._rows(networks, "test"), count), best)

    @staticmethod
    def _strongest(offers: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
        """The series (chain, draw, O) of the offer with the largest |r| on select chains, for every observable."""
        winner = np.nan_to_num(np.stack([r for _, r, _ in offers])).argmax(axis=0)
        return np.stack([offers[i][2][..., o] for o, i in enumerate(winner)], axis=-1)

    def _rows(self, networks: Sequence[np.ndarray], part: str) -> SampleRows:
        def load(chains: np.ndarray, draws: slice) -> np.ndarray:
            sigma = self.sigma[chains][:, draws]
            flat = np.ascontiguousarray(sigma.reshape(-1, sigma.shape[-1]))
            x = self.workshop.source(networks, flat)(0, len(flat))
            return x.reshape(*sigma.shape[:2], *x.shape[1:])

        tokens = self.workshop.source(networks, self.sigma[0, :1])(0, 1).shape[1]
        tick = partial(self.workshop.tick, "correlations")
        return SampleRows(load, self.chains[part], self.sigma.shape[1], tokens, tick=tick)


def _measured(workshop: _Workshop, task: _Task, dictionary: Dictionary) -> dict[str, np.ndarray]:
    """The arrays of a crosscoder by view, and what its decoder rows say."""
    n_views, select = workshop.n_views, workshop.inputs(task.networks, "select")
    encoder, decoder = by_view(dictionary.encoder, n_views), by_view(dictionary.decoder, n_views)
    norms = decoder_norms(decoder, workshop.done[f"{task.name}.scale"])
    alive = density(dictionary, select)
    classes = np.where(alive > 0, classified(norms), NEVER)
    shared, specific = counted(classes, n_views)
    arrays = {
        "encoder": encoder,
        "decoder": decoder,
        "encoder_bias": dictionary.encoder_bias,
        "decoder_bias": by_view(dictionary.decoder_bias, n_views),
        "feature_density": alive,
        "decoder_norm": norms,
        "norm_share": norm_share(norms),
        "specific_view": classes,
        "live_features": np.asarray(np.sum(alive > 0)),
        "shared_features": shared,
        "specific_features": specific,
        "decoder_cosine": decoder_cosines(decoder),
        "explained_variance": explained_by_view(select, dictionary.reconstruct, n_views),
    }
    return arrays if dictionary.threshold is None else arrays | {"threshold": dictionary.threshold}


def _stacked(tables: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([table[name] for table in tables]) for name in tables[0]}


def _has(dictionary: Dictionary, name: str) -> bool:
    return getattr(dictionary, name) is not None


def _controls(untrained: bool) -> list[str]:
    return [*(["untrained"] if untrained else []), "neuron", "separate"]


def estimate(spec: Spec) -> Cost:
    """The training of all views for the crosscoder, and of one for each dictionary alone."""
    state, options = spec.state.build(spec.lattice.build()), spec.crosscoder
    record, width = options.record(spec.sae), options.n_views * state.width_of(options.layers[0])
    dictionaries = 2 * len(record.seeds) + record.untrained
    rows = spec.samples.count * (1 if record.input == "pooled" else state.n_tokens)
    seconds = dictionaries * training_seconds(record, width)
    networks = 3 * (2 + record.untrained) * options.n_views * spec.samples.count
    seconds += seconds_for(networks * network_flops(spec) / state.n_copies)
    arrays = 2 * 4.0 * record.features * width
    memory = dictionaries * arrays + 3 * arrays * len(record.seeds) + 4.0 * rows * width
    return Cost(seconds, len(record.seeds) * arrays, memory)


def wanted(spec: Spec) -> bool:
    """Whether the spec asks for it."""
    return spec.crosscoder.wanted


STAGE = Stage(
    name="crosscoder",
    reads=("lattice", "state", "sae", "features", "crosscoder"),
    upstream=("ground_state", "samples", "observables"),
    version=1,
    run=run,
    estimate=estimate,
    sources=(RUNS,),
    check=check_runs,
    wanted=wanted,
)
