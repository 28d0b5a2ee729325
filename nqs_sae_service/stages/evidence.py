"""The tables of features.nc for one layer of one state.

The dictionary of the first ``sae.seeds`` is reported, the others measure how stable it is. Everything is asked once more beyond
the simplest functions of the input (``physics/observables/simple.py``): by partial correlations, with feature and candidates
chosen anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..interpret import controls, correlation
from ..interpret.gain import Gain, gain_over_controls
from ..interpret.series import Rows, per_sample
from ..interpret.verdict import Evidence, verdict
from ..sae.dictionary import Dictionary
from ..sae.inputs import Held
from ..sae.metrics import density, stability
from .experiment import Candidates, Experiment, Layer
from .following import FEATURE, OFFERED
from .portraits import ROWS, portraits

Tables = dict[str, Any]


def evidence(layer: Layer) -> Tables:
    """All variables of features.nc for one layer, without the dimension ``layer``."""
    experiment = layer.experiment
    experiment.progress.begin(layer.name, "dictionary")
    dictionary = Dictionary.from_dataset(experiment.sae, layer.name, experiment.sae_seeds[0])
    f = {
        part: per_sample(dictionary.token_mean, layer.trained(part), dictionary.n_features)
        for part in ("select", "test")
    }
    features = Candidates.of(FEATURE, f, experiment)
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
    tables |= _stability(layer, dictionary)
    tables["verdict"] = [_verdict(layer, tables, i) for i in range(len(experiment.observables))]
    experiment.progress.begin(layer.name, "portraits")
    return tables | portraits(layer, dictionary, f, best, tables["density"] > 0)


def _controls(layer: Layer, f: dict[str, NDArray]) -> Iterator[Candidates]:
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
    yield Candidates("raw_spins", own, own, experiment.raw_spins)
    yield layer.candidates("random_direction", random, layer.trained, features)
    partner = experiment.partner
    shuffled = {
        "select": f["select"][np.argsort(partner["select"])],
        "test": f["test"][partner["test"]],
    }
    yield Candidates.of("shuffled", shuffled, experiment)


def _correlations(layer: Layer, f: NDArray) -> Tables:
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


def _compared(experiment: Experiment, names: list[str], gain: Gain) -> Tables:
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


def _beyond(experiment: Experiment, features: Candidates, names: list[str], series: NDArray) -> Tables:
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


def _verdict(layer: Layer, tables: Tables, i: int) -> str:
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
            stability=float(tables["stability"][feature]),
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


def _stability(layer: Layer, dictionary: Dictionary) -> Tables:
    """Agreement with the dictionaries of the other seeds, on a sample of the test rows."""
    experiment = layer.experiment
    experiment.progress.begin(layer.name, "stability")
    others = layer.other_dictionaries
    if not others:
        return dict.fromkeys(("stability", "stability_activation"), np.full(dictionary.n_features, np.nan))
    x = layer.sample("test", ROWS)
    scores = []
    for other in others:
        scores.append(stability([dictionary, other], x))
        experiment.progress.tick()
    decoder, activation = np.mean(scores, axis=0)
    return {"stability": decoder, "stability_activation": activation}
