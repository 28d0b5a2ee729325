"""features.nc: which feature means which observable, beside everything that would do as well without it.

Chains are split three ways. Dictionaries, principal components and regressions are fitted on the train chains; on
the select chains the best feature and the best candidate of every control are chosen; every number comes from the
test chains. The dictionary of the first ``sae.seeds`` is reported, the others measure how stable it is.

The same is asked once more beyond the simplest functions of the input (``physics/observables/simple.py``): by partial
correlations, with feature and candidates chosen anew.

After a quench all that is asked anew at every time, with components and regressions fitted on the train chains of the training
times together; and of every observable one feature, chosen on the training times, is followed through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..datasets.schema import labelled
from ..errors import UserError
from ..interpret import controls, correlation
from ..interpret.gain import Gain, gain_over_controls
from ..interpret.series import Average, Load, RowMoments, Rows, per_sample, pooled_moments, row_moments
from ..interpret.verdict import Evidence, verdict
from ..physics.observables import simple_functions
from ..sae.dictionary import Dictionary
from ..sae.inputs import Held
from ..sae.metrics import density, participation_ratio_of, stability
from .cost import Cost, network_flops, seconds_for
from .following import FEATURE, OFFERED, followed
from .over_time import contexts, everywhere, over_time, training
from .stage import Context, Stage

if TYPE_CHECKING:
    from ..spec import Spec

Tables = dict[str, Any]
Moments = dict[str, RowMoments]

_SPINS = "spins"  # beside the names of the layers
_STEPS = ("dictionary", "controls", "intervals", "p-values", "ranks", "stability")
_STABILITY_ROWS = 2**15  # correlations of activations to half a percent


class _Progress:
    """Ticks of the runner in steps of a layer."""

    def __init__(self, context: Context, n_layers: int) -> None:
        self.context, self.total = context, n_layers * len(_STEPS)
        self.done, self.message = -1, ""

    def begin(self, layer: str, step: str) -> None:
        self.done, self.message = self.done + 1, f"{layer}: {step}"
        self.tick()

    def tick(self) -> None:
        self.context.tick(max(self.done, 0), self.total, self.message)


@dataclass(frozen=True)
class _Experiment:
    """What the layers share: samples, observables, the split, the random numbers of the statistics.

    ``fitted``: moments of all training times, which take the place of those of the samples at hand.
    """

    context: Context
    fitted: Moments
    progress: _Progress
    rng: np.random.Generator
    split: dict[str, NDArray[np.int64]]
    counts: NDArray[np.float64]
    permutations: NDArray[np.int64]
    partner: dict[str, NDArray[np.int64]]

    @classmethod
    def of(
        cls, context: Context, fitted: Moments | None = None, progress: _Progress | None = None
    ) -> _Experiment:
        labels = context.upstream["samples"]["split"].values.astype(str)
        split = {part: np.flatnonzero(labels == part) for part in ("train", "select", "test")}
        for part, chains in split.items():
            if len(chains) < 2:
                raise UserError(
                    f"features: {len(chains)} {part} chains are too few, at least 2 are needed; "
                    "raise sampling.chains or change samples.split"
                )
        section, n_test = context.spec.features, len(split["test"])
        rng = np.random.Generator(np.random.Philox(section.seed))
        return cls(
            context=context,
            fitted=fitted or {},
            progress=progress or _Progress(context, context.upstream["sae"].sizes["layer"]),
            rng=rng,
            split=split,
            counts=correlation.chain_counts(n_test, section.bootstrap, rng),
            permutations=correlation.chain_permutations(n_test, section.permutations, rng),
            partner={part: controls.other_chain(len(split[part]), rng) for part in ("select", "test")},
        )

    @property
    def sae(self) -> xr.Dataset:
        return self.context.upstream["sae"]

    @property
    def layers(self) -> list[_Layer]:
        return [_Layer(self, str(name)) for name in self.sae["layer"].values]

    @property
    def observables(self) -> list[str]:
        return [str(name) for name in self.context.upstream["observables"]["observable"].values]

    @property
    def sae_seeds(self) -> list[int]:
        return [int(seed) for seed in self.sae["sae_seed"].values]

    @property
    def initialisations(self) -> list[int]:
        """Labels of the untrained control networks; none if the spec asks for none."""
        return (
            [int(i) for i in self.sae["initialisation"].values] if "initialisation" in self.sae.dims else []
        )

    @property
    def controls(self) -> list[str]:
        return [name for name in controls.CONTROLS if name != "untrained" or self.initialisations]

    @cached_property
    def observed(self) -> dict[str, NDArray[np.float64]]:
        """Observables (chain, draw, observable) of every part of the split."""
        value = self.context.upstream["observables"]["value"]
        return {
            part: value.isel(chain=chains).values.astype(np.float64) for part, chains in self.split.items()
        }

    @cached_property
    def simple(self) -> dict[str, NDArray[np.float64]]:
        """The simplest functions of the input (chain, draw, function) of the select and the test chains."""
        lattice, fixed = self.context.spec.lattice.build(), self.context.spec.sampling.fixed_magnetization
        design = {}
        for part in ("select", "test"):
            sigma = self.spins(self.split[part], slice(None))
            functions = simple_functions(lattice, sigma.reshape(-1, sigma.shape[-1]), fixed is not None)
            design[part] = functions.reshape(*sigma.shape[:2], -1)
        return design

    @cached_property
    def beyond(self) -> dict[str, NDArray[np.float64]]:
        """What these leave of the observables (chain, draw, observable)."""
        return {part: correlation.beyond(self.observed[part], design) for part, design in self.simple.items()}

    @cached_property
    def state(self) -> Any:
        return self.context.spec.state.build(self.context.spec.lattice.build())

    @property
    def n_draws(self) -> int:
        return self.context.upstream["samples"].sizes["draw"]

    def rows(self, load: Load, part: str, n_tokens: int, pooled: bool = False) -> Rows:
        return Rows(load, self.split[part], self.n_draws, n_tokens, pooled, self.progress.tick)

    def spins(self, chains: NDArray[np.int64], draws: slice) -> NDArray:
        """Configurations (chain, draw, spin)."""
        return self.context.upstream["samples"]["configuration"].isel(chain=chains, draw=draws).values

    @property
    def moments(self) -> Moments:
        """Of the train chains at hand: the rows of every layer, and spins and observables joined."""
        return {layer.name: layer.moments for layer in self.layers} | {_SPINS: self.spin_moments}

    @property
    def spin_moments(self) -> RowMoments:
        if self.fitted:
            return self.fitted[_SPINS]
        value = self.context.upstream["observables"]["value"]

        def joint(chains: NDArray[np.int64], draws: slice) -> NDArray:
            observed = value.isel(chain=chains, draw=draws).values
            return np.concatenate([self.spins(chains, draws), observed], axis=-1)[:, :, None]

        return row_moments(self.rows(joint, "train", 1), self.state.n_sites + value.shape[-1])

    @cached_property
    def raw_spins(self) -> NDArray:
        """Linear prediction of every observable from the spins, (chain, draw, observable), test chains."""
        predict = controls.spin_regression(self.spin_moments, self.state.n_sites)
        spins = self.rows(lambda chains, draws: self.spins(chains, draws)[:, :, None], "test", 1)
        return per_sample(predict, spins, len(self.observables))


@dataclass(frozen=True)
class _Layer:
    """One layer of the trained network and of the untrained ones."""

    experiment: _Experiment
    name: str

    @property
    def stored(self) -> xr.DataArray:
        return self.experiment.context.upstream["activations"][self.name]

    @property
    def width(self) -> int:
        return self.stored.shape[3]

    @cached_property
    def moments(self) -> RowMoments:
        """Of the inputs the dictionary was trained on: tokens, or token means."""
        fitted = self.experiment.fitted
        return fitted[self.name] if fitted else row_moments(self.trained("train"), self.width)

    @property
    def participation_ratio(self) -> float:
        """(tr C)^2 / tr C^2 of their covariance; NaN when they do not vary."""
        return participation_ratio_of(self.moments.covariance)

    @property
    def pooled(self) -> bool:
        return self.experiment.context.spec.sae.input == "pooled"

    def trained(self, part: str) -> Rows:
        def load(chains: NDArray[np.int64], draws: slice) -> NDArray:
            return self.stored.isel(chain=chains, draw=draws).values.astype(np.float32, copy=False)

        return self.experiment.rows(load, part, self.stored.shape[2], self.pooled)

    def untrained(self, initialisation: int, part: str) -> Rows:
        stored = self.experiment.sae["untrained_parameters"].sel(initialisation=initialisation).values
        parameters = np.ascontiguousarray(stored, dtype=self.experiment.state.dtype)

        def load(chains: NDArray[np.int64], draws: slice) -> NDArray:
            sigma = self.experiment.spins(chains, draws)
            flat = np.ascontiguousarray(sigma.reshape(-1, sigma.shape[-1]))
            x = self.experiment.state.activations(parameters, flat, [self.name])[self.name]
            return np.asarray(x, np.float32).reshape(*sigma.shape[:2], *x.shape[1:])

        return self.experiment.rows(load, part, self.stored.shape[2], self.pooled)

    def sample(self, part: str, at_most: int) -> NDArray:
        """About ``at_most`` rows (n, width) of a part of the split: every chain, evenly spaced draws."""
        rows = self.trained(part)
        per_draw = len(rows.chains) * rows.n_tokens
        step = max(1, -(-rows.n_draws * per_draw // at_most))
        x = rows.load(rows.chains, slice(0, rows.n_draws, step))
        return (x.mean(axis=2) if self.pooled else x).reshape(-1, self.width)

    def candidates(self, name: str, average: Average, rows: Callable[[str], Rows], count: int) -> _Candidates:
        """As many as ``count``, averages of rows of the layer."""
        series = {part: per_sample(average, rows(part), count) for part in ("select", "test")}
        return _Candidates.of(name, series, self.experiment)


@dataclass(frozen=True)
class _Candidates:
    """What a control offers: r and partial r (candidate, observable) on the select chains, series on the test chains.

    ``test`` (chain, draw, candidate).
    """

    name: str
    select: NDArray
    partial: NDArray
    test: NDArray

    @classmethod
    def of(cls, name: str, series: dict[str, NDArray], experiment: _Experiment) -> _Candidates:
        """From the ``series`` (chain, draw, candidate) on select and test chains."""
        rest = correlation.beyond(series["select"], experiment.simple["select"])
        return cls(
            name,
            correlation.pearson(series["select"], experiment.observed["select"]),
            correlation.pearson(rest, experiment.beyond["select"]),
            series["test"],
        )

    @property
    def chosen(self) -> NDArray:
        """The series (chain, draw, observable) of the best candidate on the select chains."""
        return controls.chosen(self.test, controls.strongest(self.select))

    @property
    def chosen_beyond(self) -> NDArray:
        """The same by partial r."""
        return controls.chosen(self.test, controls.strongest(self.partial))


def run(context: Context) -> xr.Dataset:
    """Correlations, controls, gains, verdicts and stability of every layer."""
    if not over_time(context):
        return _features(context)
    progress = _Progress(context, context.upstream["sae"].sizes["layer"])
    parts = [_Experiment.of(at, progress=progress).moments for at in training(contexts(context))]
    fitted = {name: pooled_moments([part[name] for part in parts]) for name in parts[0]}
    return followed(everywhere(partial(_features, fitted=fitted))(context))


def _features(context: Context, fitted: Moments | None = None) -> xr.Dataset:
    """features.nc at one time; with moments of all training times also r of all candidates, for ``following``."""
    experiment = _Experiment.of(context, fitted)
    tables = [_tables(layer) for layer in experiment.layers]
    variables = {name: np.stack([table[name] for table in tables]) for name in tables[0]}
    offered = {name: variables.pop(name) for name in ("candidate", *OFFERED) if name in variables}
    coords = {
        "layer": [layer.name for layer in experiment.layers],
        "feature": experiment.sae["feature"].values,
        "observable": experiment.observables,
        "control": experiment.controls,
        "initialisation": experiment.initialisations,
    }
    if not experiment.initialisations:
        del variables["untrained_pearson"], coords["initialisation"]
    dataset = labelled("features", variables, coords, {"confidence": context.spec.features.confidence})
    if not offered:
        return dataset
    return dataset.assign(
        {name: (("layer", "candidate", "observable"), offered[name]) for name in OFFERED}
    ).assign_coords(candidate=offered["candidate"][0])


def _tables(layer: _Layer) -> Tables:
    """All variables of features.nc for one layer, without the dimension ``layer``."""
    experiment = layer.experiment
    experiment.progress.begin(layer.name, "dictionary")
    dictionary = Dictionary.from_dataset(experiment.sae, layer.name, experiment.sae_seeds[0])
    f = {
        part: per_sample(dictionary.token_mean, layer.trained(part), dictionary.n_features)
        for part in ("select", "test")
    }
    features = _Candidates.of(FEATURE, f, experiment)
    best = controls.strongest(features.select)
    experiment.progress.begin(layer.name, "controls")
    names, series, series_beyond, offers = [], [], [], []
    for offer in _controls(layer, f):
        names.append(offer.name)
        series.append(offer.chosen)
        series_beyond.append(offer.chosen_beyond)
        if experiment.fitted:
            offers.append((offer.select, correlation.pearson(offer.test, experiment.observed["test"])))
    gain = gain_over_controls(
        controls.chosen(f["test"], best),
        np.stack(series),
        experiment.observed["test"],
        experiment.counts,
        experiment.context.spec.features.confidence,
    )
    tables = _correlations(layer, f["test"]) | _compared(experiment, names, gain)
    tables |= {"best_feature": best, "best_pearson": controls.of_chosen(tables["pearson"], best)}
    tables |= _beyond(experiment, features, names, np.stack(series_beyond))
    if experiment.fitted:
        offers.insert(0, (features.select, tables["pearson"]))
        tables |= {
            name: np.concatenate(parts)
            for name, parts in zip(OFFERED, zip(*offers, strict=True), strict=True)
        }
        tables["candidate"] = np.repeat([FEATURE, *names], [len(r) for r, _ in offers])
    tables["density"] = _density(dictionary, layer.trained("test"))
    tables["participation_ratio"] = layer.participation_ratio
    tables["verdict"] = [_verdict(layer, tables, i) for i in range(len(experiment.observables))]
    return tables | _stability(layer, dictionary)


def _controls(layer: _Layer, f: dict[str, NDArray]) -> Iterator[_Candidates]:
    """The candidates of every control; several ``untrained``."""
    experiment, width, features = layer.experiment, layer.width, f["test"].shape[-1]
    for i in experiment.initialisations:
        average = Dictionary.untrained_from_dataset(experiment.sae, layer.name, i).token_mean
        yield layer.candidates("untrained", average, partial(layer.untrained, i), features)
    moments = layer.moments
    principal = controls.principal_directions(moments)
    random = controls.random_average(width, features, moments.mean, experiment.rng)
    yield layer.candidates("neuron", lambda x: x.mean(axis=1), layer.trained, width)
    along = controls.linear_average(principal, moments.mean)
    yield layer.candidates("pca", along, layer.trained, width)
    own = np.eye(len(experiment.observables))  # the regression of an observable is the only candidate for it
    yield _Candidates("raw_spins", own, own, experiment.raw_spins)
    yield layer.candidates("random_direction", random, layer.trained, features)
    partner = experiment.partner
    shuffled = {
        "select": f["select"][np.argsort(partner["select"])],
        "test": f["test"][partner["test"]],
    }
    yield _Candidates.of("shuffled", shuffled, experiment)


def _correlations(layer: _Layer, f: NDArray) -> Tables:
    """Every feature with every observable, on the test chains."""
    experiment, o = layer.experiment, layer.experiment.observed["test"]
    tick, confidence = experiment.progress.tick, experiment.context.spec.features.confidence
    experiment.progress.begin(layer.name, "intervals")
    low, high = correlation.bootstrap_interval(f, o, experiment.counts, confidence, tick)
    experiment.progress.begin(layer.name, "p-values")
    p = correlation.permutation_p_values(f, o, experiment.permutations, tick)
    experiment.progress.begin(layer.name, "ranks")
    return {
        "pearson": correlation.pearson(f, o),
        "pearson_low": low,
        "pearson_high": high,
        "spearman": correlation.spearman(f, o, tick),
        "p_value": p,
        "q_value": correlation.q_values(p, correlation.varies(f)),
    }


def _compared(experiment: _Experiment, names: list[str], gain: Gain) -> Tables:
    """The controls of every name (of several the strongest) and the gain over the best of all."""
    size = np.nan_to_num(np.abs(gain.control), nan=-1.0)
    label = np.array(names)
    rows = [np.where((label == name)[:, None], size, -2.0).argmax(axis=0) for name in experiment.controls]
    of_control = (np.stack(rows), np.arange(size.shape[1]))
    return {
        "control_pearson": gain.control[of_control],
        "control_low": gain.control_low[of_control],
        "control_high": gain.control_high[of_control],
        "untrained_pearson": gain.control[label == "untrained"],
        "best_control": np.where(size.max(axis=0) < 0.0, "", label[size.argmax(axis=0)]),
        "gain": gain.value,
        "gain_low": gain.low,
        "gain_high": gain.high,
    }


def _beyond(experiment: _Experiment, features: _Candidates, names: list[str], series: NDArray) -> Tables:
    """Partial correlations with all features, and the best feature by them beside the controls' ``series``."""
    design, o = experiment.simple["test"], experiment.beyond["test"]
    f = correlation.beyond(features.test, design)
    best = controls.strongest(features.partial)
    gain = gain_over_controls(
        controls.chosen(f, best),
        np.stack([correlation.beyond(control, design) for control in series]),
        o,
        experiment.counts,
        experiment.context.spec.features.confidence,
    )
    compared = _compared(experiment, names, gain)
    partial = correlation.pearson(f, o)
    return {
        "partial_pearson": partial,
        "beyond_feature": best,
        "beyond_pearson": controls.of_chosen(partial, best),
        "beyond_control": compared["best_control"],
        **{f"beyond_{name}": compared[name] for name in ("control_pearson", "gain", "gain_low", "gain_high")},
    }


def _verdict(layer: _Layer, tables: Tables, i: int) -> str:
    """The sentence for observable ``i``."""
    experiment, feature = layer.experiment, int(tables["best_feature"][i])
    section, controls_here = experiment.context.spec.features, experiment.controls
    control = str(tables["best_control"][i])
    explained = experiment.context.upstream["observables"].get("simple_function_r2")
    return verdict(
        Evidence(
            layer=layer.name,
            observable=experiment.observables[i],
            feature=feature,
            pearson=float(tables["best_pearson"][i]),
            p_value=float(tables["p_value"][feature, i]),
            q_value=float(tables["q_value"][feature, i]),
            control=control,
            control_pearson=float(tables["control_pearson"][controls_here.index(control), i])
            if control
            else np.nan,
            gain=float(tables["gain"][i]),
            gain_low=float(tables["gain_low"][i]),
            gain_high=float(tables["gain_high"][i]),
            confidence=section.confidence,
            permutations=section.permutations,
            participation_ratio=layer.participation_ratio,
            test_chains=len(experiment.split["test"]),
            simple_function_r2=np.nan if explained is None else float(explained[i]),
        )
    )


def _density(dictionary: Dictionary, rows: Rows) -> NDArray:
    """Share of the rows on which each feature is active, (feature,)."""
    active, n_rows = np.zeros(dictionary.n_features), 0
    for _, _, x in rows.blocks(dictionary.width):
        flat = x.reshape(-1, dictionary.width)
        active += len(flat) * density(dictionary, Held(flat))
        n_rows += len(flat)
    return active / n_rows


def _stability(layer: _Layer, dictionary: Dictionary) -> Tables:
    """Agreement with the dictionaries of the other seeds, on a sample of the test rows."""
    experiment = layer.experiment
    experiment.progress.begin(layer.name, "stability")
    others = [Dictionary.from_dataset(experiment.sae, layer.name, seed) for seed in experiment.sae_seeds[1:]]
    if not others:
        return dict.fromkeys(("stability", "stability_activation"), np.full(dictionary.n_features, np.nan))
    x = layer.sample("test", _STABILITY_ROWS)
    scores = []
    for other in others:
        scores.append(stability([dictionary, other], x))
        experiment.progress.tick()
    decoder, activation = np.mean(scores, axis=0)
    return {"stability": decoder, "stability_activation": activation}


def estimate(spec: Spec) -> Cost:
    """Half the samples through every dictionary and untrained network, and one product per permutation."""
    n_layers, n_observables = len(spec.activations.layers), len(spec.observables.names)
    features, statistics = spec.sae.features, spec.features
    tokens = spec.state.build(spec.lattice.build()).n_tokens if spec.sae.input == "token" else 1
    _, select, test = (share * spec.samples.count for share in spec.samples.split)
    forward = network_flops(spec) * (select + test) * spec.sae.untrained
    encoded = (select + test) * tokens * features * (len(spec.sae.seeds) + 1 + spec.sae.untrained)
    permuted = test * features * n_observables * statistics.permutations
    resampled = statistics.bootstrap * features * n_observables
    seconds = (
        seconds_for(forward) + encoded * 4e-9 + permuted * 1.5e-10 + resampled * 2e-7 + test * features * 2e-7
    )
    disk = 8.0 * n_layers * features * (6 * n_observables + 3) + 1e5
    held = 8.0 * features * (select + test) + 8.0 * spec.samples.count * n_observables
    drawn = (
        8.0
        * spec.samples.split_chains(spec.sampling.chains)[2]
        * (statistics.bootstrap + statistics.permutations)
    )
    once = Cost(seconds=1.0 + n_layers * seconds, disk=disk, memory=held + drawn + 5e8)
    return once.repeated(len(spec.dynamics.times), 3 * disk)


STAGE = Stage(
    name="features",
    reads=("lattice", "state", "sae", "features"),
    upstream=("dynamics", "samples", "observables", "activations", "sae"),
    version=2,
    run=run,
    estimate=estimate,
)
