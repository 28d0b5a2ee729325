"""What was found: which feature means which observable beside the controls, and what turning it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..interpret.kinds import CONTROLS as STEERING_CONTROLS
from ..interpret.kinds import FEATURE, OF_THE_DICTIONARY
from .moments import when
from .numbers import NOTHING, number, span, with_error, with_interval
from .records import Kind, Table, Verdict
from .values import (
    MOST_TRUSTED_FIRST,
    attribute,
    cell,
    energy_budget,
    finite,
    index,
    labels,
    most_trusted,
    plain,
)

# how the stage's own sentences begin; any other is coloured by the interval of the gain
JUDGEMENTS: dict[str, Kind] = {"feature found": "good", "SAE not informative": "note", "undefined": "note"}
GAIN = ("gain", "gain_low", "gain_high")

# of a feature beside the best of its controls at matched infidelity
STEERING_JUDGEMENTS: dict[Kind, str] = {
    "good": "better than all controls",
    "open": "no better than controls",
    "bad": "worse than this control",
}

FEATURES = {
    "feature": "the feature with the largest |r| on the select chains",
    "r": "its Pearson correlation on the test chains, with the bootstrap interval over chains",
    "best control": "the control with the largest |r| on the same test chains",
    "gain": "|r| of the feature minus |r| of the best control, with the paired-bootstrap interval",
    "q": "q-value: chance of a false discovery, from permutations of whole chains, over features and observables",
    "stability": "mean |cosine| of the decoder row with its match in the dictionaries of the other seeds",
}
BEYOND = {
    "feature": "the feature with the largest |partial r| on the select chains",
    "partial r": "its r with the observable, on test chains, once the simple functions of the input are taken out of both",
    "best control": "the control with the largest |partial r|, its candidate chosen in the same way",
    "gain": "|partial r| of the feature minus that of the best control, with the paired-bootstrap interval",
}
CONTROLS = {
    "best feature": "the feature of the table above",
    "untrained": "the same pipeline on untrained networks",
    "neuron": "best single neuron of the layer",
    "pca": "best principal component of the layer",
    "raw spins": "linear regression on the spins themselves",
    "random direction": "best of as many random directions as there are features",
    "shuffled": "best feature against the observable of another chain",
}
STEERING = {
    "direction": "what is turned: the feature, and at matched infidelity "
    + "; ".join(f"{plain(name)}: {asks}" for name, asks in (STEERING_CONTROLS | OF_THE_DICTIONARY).items()),
    "estimator": "reweighted: original samples; resampled: fresh samples of the steered state; mbar: those of all scales "
    "pooled; exact: full summation",
    "predicted slope": "2 Re Cov(O, d log psi / d strength) at the original state",
    "measured slope": "slope of the measured curve there",
    "reach": "largest change of the target while |dE/E| stays within the energy budget",
    "monotone": "scales over which the target moves in one direction",
    "efficiency": "slope^2 / (chi d2E/d strength^2); 1 is the best any state can do",
    "min ESS": "smallest effective sample size over the scales, as a share of the samples",
}

RESPONSE = {
    "target": "what the field couples to, H - lambda O",
    "chi": "d<O>/d lambda of the ground state",
    "field": "the lambda in which, and in -lambda, the network was trained on; exact: from the diagonalised Hamiltonian",
}


def feature_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """The stage's own sentence for every layer and observable."""
    places = [
        {"layer": layer, "observable": observable}
        for layer in labels(dataset, "layer")
        for observable in labels(dataset, "observable")
    ]
    return [_feature_verdict(dataset, at) for at in places]


def _feature_verdict(dataset: xr.Dataset, at: Mapping[str, Any]) -> Verdict:
    sentence = _text(dataset, "verdict", at)
    low, high = cell(dataset, "gain_low", **at), cell(dataset, "gain_high", **at)
    kind: Kind = "bad" if high < 0 else "open"
    if sentence == NOTHING:
        gain = with_interval(*(cell(dataset, name, **at) for name in GAIN), sign=True)
        kind = "good" if low > 0 else kind
        return Verdict(kind, f"{at['layer']}, {at['observable']}: gain over the best control {gain}.")
    judged = next((known for start, known in JUDGEMENTS.items() if sentence.startswith(start)), kind)
    named = all(str(label) in sentence for label in at.values())
    return Verdict(judged, sentence if named else f"{at['layer']}, {at['observable']}: {sentence}")


def feature_tables(dataset: xr.Dataset) -> list[Table]:
    """The best feature of every layer and observable; below it, feature and controls side by side."""
    confidence = attribute(dataset, "confidence")
    level = "" if math.isnan(confidence) else f" ({confidence:.0%} intervals)"
    best, beyond, beside = [], [], []
    for layer in labels(dataset, "layer"):
        ratio = number(cell(dataset, "participation_ratio", layer=layer), 3)
        heading = f"{layer} (participation ratio {ratio})"
        best += [(heading, *_best(dataset, layer, name)) for name in labels(dataset, "observable")]
        beyond += [
            (str(layer), *_beyond(dataset, layer, name))
            for name in labels(dataset, "observable")
            if "beyond_pearson" in dataset
        ]
        beside += [(str(layer), *row) for row in _beside(dataset, layer)]
    observables = [str(name) for name in labels(dataset, "observable")]
    at = when(dataset, " at ")
    tables = [
        Table(f"Features{at}{level}", ("layer", "observable", *FEATURES), best, 1, FEATURES),
        Table(
            f"Beyond simple functions of the input{at}{level}",
            ("layer", "observable", *BEYOND),
            beyond,
            1,
            BEYOND,
        ),
        Table(
            f"Features and controls{at}, r on test chains{level}",
            ("layer", "r of", *observables),
            beside,
            1,
            CONTROLS,
        ),
    ]
    return [table for table in tables if table.rows]


def _best(dataset: xr.Dataset, layer: Any, observable: Any) -> tuple[str, ...]:
    at = {"layer": layer, "observable": observable}
    feature = index(cell(dataset, "best_feature", **at))
    return (
        str(observable),
        NOTHING if feature < 0 else str(feature),
        _best_correlation(dataset, at),
        _text(dataset, "best_control", at),
        with_interval(*(cell(dataset, name, **at) for name in GAIN), sign=True),
        number(cell(dataset, "q_value", **at, feature=feature), 2),
        number(cell(dataset, "stability", layer=layer, feature=feature), 3),
    )


def _beyond(dataset: xr.Dataset, layer: Any, observable: Any) -> tuple[str, ...]:
    at = {"layer": layer, "observable": observable}
    feature = index(cell(dataset, "beyond_feature", **at))
    control = _text(dataset, "beyond_control", at)
    names = ("beyond_gain", "beyond_gain_low", "beyond_gain_high")
    return (
        str(observable),
        NOTHING if feature < 0 else str(feature),
        number(cell(dataset, "beyond_pearson", **at), 3),
        NOTHING
        if control == NOTHING
        else f"{control} {number(cell(dataset, 'beyond_control_pearson', **at, control=control), 3)}",
        with_interval(*(cell(dataset, name, **at) for name in names), sign=True),
    )


def _best_correlation(dataset: xr.Dataset, at: Mapping[str, Any]) -> str:
    """r of the best feature with its interval."""
    feature = index(cell(dataset, "best_feature", **at))
    ends = (cell(dataset, f"pearson_{end}", **at, feature=feature) for end in ("low", "high"))
    return with_interval(cell(dataset, "best_pearson", **at), *ends)


def _beside(dataset: xr.Dataset, layer: Any) -> list[tuple[str, ...]]:
    """A row for the best feature and one for every control; a column per observable."""
    places = [{"layer": layer, "observable": name} for name in labels(dataset, "observable")]
    rows = [("best feature", *(_best_correlation(dataset, at) for at in places))]
    for control in labels(dataset, "control"):
        names = ("control_pearson", "control_low", "control_high")
        cells = [with_interval(*(cell(dataset, n, **at, control=control) for n in names)) for at in places]
        rows.append((plain(control), *cells))
    return rows


def _text(dataset: xr.Dataset, name: str, at: Mapping[str, Any]) -> str:
    """A text at some labels, a dash when there is none."""
    return str(dataset[name].sel(at).item()).strip() or NOTHING if name in dataset else NOTHING


def steering_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """For every layer and target: reach of the feature beside the best control, and slope against its prediction.

    Before them one sentence where no feature goes further than its controls.
    """
    verdicts: list[Verdict] = []
    for layer in labels(dataset, "layer"):
        for target in labels(dataset, "target"):
            verdicts += _steering_verdict(dataset, {"layer": layer, "target": target})
    compared = [v for v in verdicts if any(judged in v.text for judged in STEERING_JUDGEMENTS.values())]
    if not compared or any(v.kind == "good" for v in compared):
        return verdicts
    text = "Steering: no feature moves its target further than the best of its controls does at matched infidelity."
    kind: Kind = "bad" if all(v.kind == "bad" for v in compared) else "open"
    return [Verdict(kind, text), *verdicts]


def _steering_verdict(dataset: xr.Dataset, at: dict[str, Any]) -> list[Verdict]:
    estimator = _estimator_of_all(dataset, at)
    if estimator is None:
        return []
    feature = {**at, "direction": "feature", "estimator": estimator}
    reach, error = cell(dataset, "reach", **feature), cell(dataset, "reach_error", **feature)
    text = f"{at['layer']}, {at['target']}: turning {_turned(dataset, at)} moves it by {with_error(reach, error)} within "
    text += f"|dE/E| <= {number(energy_budget(dataset), 1)} ({estimator}{_fresh(dataset, at, estimator)})"
    low, high = cell(dataset, "monotone_low", **feature), cell(dataset, "monotone_high", **feature)
    if math.isfinite(low) and math.isfinite(high):
        text += f", monotone over scales {span(low, high)}"
    efficiency = cell(dataset, "efficiency", **feature)
    if math.isfinite(efficiency):
        text += f", efficiency {number(efficiency, 2)}"
    here = {**at, "estimator": estimator}
    kind, beside = _beside_controls(dataset, here, abs(reach), error)
    verdicts = [Verdict(kind, f"{text}{beside}{_beside_features(dataset, here)}.")]
    return verdicts + _slope_verdict(dataset, feature)


def _estimator_of_all(dataset: xr.Dataset, at: Mapping[str, Any]) -> str | None:
    """Like is compared with like: the most trusted estimator that the feature shares with a control, else its own best."""
    own = most_trusted(dataset, {**at, "direction": "feature"}, "reach")
    if own is None:
        return None
    controls = [name for name in labels(dataset, "direction") if name != "feature"]
    shared = dataset["reach"].sel(at).sel(direction=controls).notnull().any("direction")
    shared = shared & dataset["reach"].sel(at).sel(direction="feature").notnull()
    trusted = [e for e in MOST_TRUSTED_FIRST if e in labels(dataset, "estimator")]
    return next((e for e in trusted if bool(shared.sel(estimator=e))), own)


def _fresh(dataset: xr.Dataset, at: Mapping[str, Any], estimator: str) -> str:
    """What fresh samples say, where the verdict rests on reweighted ones."""
    where = {**at, "direction": "feature", "estimator": "resampled"}
    if estimator != "reweighted" or "resampled" not in labels(dataset, "estimator"):
        return ""
    reached = cell(dataset, "reach", **where)
    error = cell(dataset, "reach_error", **where)
    return f"; fresh samples: {with_error(reached, error)}" if math.isfinite(reached) else ""


def _beside_controls(
    dataset: xr.Dataset, at: Mapping[str, Any], reach: float, error: float
) -> tuple[Kind, str]:
    """Kind of the comparison with the control that reaches furthest (two standard errors decide), and its words."""
    controls = [name for name in labels(dataset, "direction") if name not in (FEATURE, *OF_THE_DICTIONARY)]
    furthest = _furthest(dataset, at, controls)
    if furthest is None:
        return "open", ""
    best, best_error, direction = furthest
    difference, sigma = reach - best, float(np.hypot(np.nan_to_num(error), np.nan_to_num(best_error)))
    kind: Kind = "good" if difference > 2 * sigma else "bad" if difference < -2 * sigma else "open"
    efficiency = cell(dataset, "efficiency", **at, direction=direction)
    efficient = f", efficiency {number(efficiency, 2)}" if math.isfinite(efficiency) else ""
    moved = f"the best control, {plain(direction)}, by {with_error(best, best_error)}{efficient}"
    return kind, f"; {moved}: {STEERING_JUDGEMENTS[kind]}"


def _furthest(
    dataset: xr.Dataset, at: Mapping[str, Any], directions: list[Any]
) -> tuple[float, float, Any] | None:
    """Reach, its error and the direction that reaches furthest; None where no reach is known."""
    found = []
    for direction in directions:
        reached = cell(dataset, "reach", **at, direction=direction)
        if math.isfinite(reached):
            found.append((abs(reached), cell(dataset, "reach_error", **at, direction=direction), direction))
    return max(found) if found else None


def _beside_features(dataset: xr.Dataset, at: Mapping[str, Any]) -> str:
    """What other features of the dictionary, or all of them together, do."""
    words = []
    for direction in (name for name in labels(dataset, "direction") if name in OF_THE_DICTIONARY):
        furthest = _furthest(dataset, at, [direction])
        if direction == "leverage_feature" and _is_the_feature(dataset, at):
            words.append("it has the largest leverage itself")
        elif furthest is not None:
            words.append(f"{_named(dataset, {**at, 'direction': direction})} by {with_error(*furthest[:2])}")
    return f"; of the same dictionary, {', '.join(words)}" if words else ""


def _is_the_feature(dataset: xr.Dataset, at: Mapping[str, Any]) -> bool:
    """Whether |r| and leverage chose the same feature."""
    here = {"layer": at["layer"], "target": at["target"]}
    best = index(cell(dataset, "feature", **here))
    return best >= 0 and best == index(cell(dataset, "turned_feature", **here, direction="leverage_feature"))


def _slope_verdict(dataset: xr.Dataset, at: Mapping[str, Any]) -> list[Verdict]:
    """A warning where predicted and measured slope differ by more than three standard errors."""
    here = {**at, "observable": at["target"]}
    predicted, measured = cell(dataset, "slope_predicted", **here), cell(dataset, "slope_measured", **here)
    errors = [cell(dataset, f"slope_{kind}_error", **here) for kind in ("predicted", "measured")]
    sigma = float(np.hypot(*np.nan_to_num(errors)))
    if math.isnan(predicted) or math.isnan(measured) or not 0 < 3 * sigma < abs(predicted - measured):
        return []
    text = f"{at['layer']}, {at['target']}: the slope of steering is {with_error(measured, errors[1])}, predicted "
    return [Verdict("fault", f"{text}{with_error(predicted, errors[0])}: more than 3 sigma apart.")]


def steering_tables(dataset: xr.Dataset) -> list[Table]:
    """One row per layer, target, direction and estimator: all of the feature, of each control the most trusted one."""
    rows = []
    for layer in labels(dataset, "layer"):
        for target in labels(dataset, "target"):
            for direction in labels(dataset, "direction"):
                for estimator in _shown_estimators(dataset, layer, target, direction):
                    at = {"layer": layer, "target": target, "direction": direction, "estimator": estimator}
                    cells = _steering_cells(dataset, at)
                    if any(text != NOTHING for text in cells):
                        rows.append((f"{layer} · {target}", f"{_named(dataset, at)}, {estimator}", *cells))
    title = f"Steering{when(dataset, ' at ')} (energy budget |dE/E| <= {number(energy_budget(dataset), 1)})"
    columns = ("layer, target", "direction, estimator", *list(STEERING)[2:])
    return [*([Table(title, columns, rows, 1, STEERING)] if rows else []), *_response_table(dataset)]


def _response_table(dataset: xr.Dataset) -> list[Table]:
    """How the targets answer a field; none where that is not known, or at a time: it is the ground state that answers."""
    rows = []
    for target in [] if when(dataset) else labels(dataset, "target"):
        chi, error, field = (
            cell(dataset, name, target=target) for name in ("susceptibility", "susceptibility_error", "field")
        )
        if not math.isnan(chi):
            rows.append(
                (str(target), with_error(chi, error), number(field, 2) if math.isfinite(field) else "exact")
            )
    return [Table("Susceptibilities", tuple(RESPONSE), rows, 0, RESPONSE)] if rows else []


def _shown_estimators(dataset: xr.Dataset, layer: Any, target: Any, direction: Any) -> list[Any]:
    at = {"layer": layer, "target": target, "direction": direction}
    best = most_trusted(dataset, at, "reach") or most_trusted(dataset, at, "slope_predicted")
    return labels(dataset, "estimator") if direction == FEATURE or best is None else [best]


def _steering_cells(dataset: xr.Dataset, at: dict[str, Any]) -> tuple[str, ...]:
    here = {**at, "observable": at["target"]}
    predicted, measured = (
        with_error(cell(dataset, f"slope_{kind}", **here), cell(dataset, f"slope_{kind}_error", **here))
        for kind in ("predicted", "measured")
    )
    ess = finite(dataset["ess"].sel(at)) if "ess" in dataset else np.empty(0)
    return (
        predicted,
        measured,
        with_error(cell(dataset, "reach", **at), cell(dataset, "reach_error", **at)),
        span(cell(dataset, "monotone_low", **at), cell(dataset, "monotone_high", **at)),
        number(cell(dataset, "efficiency", **at), 3),
        number(float(ess.min()), 2) if ess.size else NOTHING,
    )


def _turned(dataset: xr.Dataset, at: Mapping[str, Any]) -> str:
    feature = index(cell(dataset, "feature", layer=at["layer"], target=at["target"]))
    return "feature" if feature < 0 else f"feature {feature}"


def _named(dataset: xr.Dataset, at: Mapping[str, Any]) -> str:
    """A direction in words, with the number of another feature and with what is held."""
    direction = at["direction"]
    if direction == FEATURE:
        return _turned(dataset, at)
    turned = index(
        cell(dataset, "turned_feature", layer=at["layer"], target=at["target"], direction=direction)
    )
    if direction in ("other_feature", "leverage_feature") and turned >= 0:
        return f"{plain(direction)} {turned}"
    held = (
        _text(dataset, "held", {"target": at["target"]}) if direction == "natural_gradient_held" else NOTHING
    )
    return plain(direction) if held == NOTHING else f"{plain(direction)} ({plain(held)})"
