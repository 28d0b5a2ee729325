"""From the datasets of a run to the sentences and tables of its report.

The order is that of the argument: is the state good (energy, R-hat, V-score), is the dictionary good (explained variance,
energy recovered), does a feature say more than its controls (gain with its interval), does turning it move the observable
further than the controls do at the same infidelity (reach within the energy budget, efficiency). After a quench
sections of their own follow: was the state followed through time, does one feature keep its meaning, what did turning it do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr

from . import findings, quality
from .alarm import comparison_section
from .attribution import attribution_section
from .completeness import completeness_section
from .crosscoder import crosscoder_section
from .evolution import dynamics_section, replaced
from .followed import courses, followed_section
from .heads import heads_section
from .hybrid import hybrid_section, learned_section
from .moments import at_time, last_training_time, settled, shown_times, when
from .numbers import NOTHING, number, with_error
from .portraits import portraits_section
from .reading import Run, Sweep
from .records import Kind, Section, Summary, Table, Verdict
from .scaling import scaling_section
from .values import attribute, cell, finite, labels

SWEEP = {
    "energy": "total, in J, with its standard error",
    "relative error": "(E - E_exact) / |E_exact|",
    "explained": "explained variance of the dictionaries of the last layer, mean over seeds",
    "|r| columns": "|r| of the best feature of the last layer on test chains, and its gain over the best control",
}
THROUGH_TIME = (
    "lowest |r| of the followed feature of the last layer over the held-out times, test chains, and by how much that is above "
    "the lowest of the best control"
)


def summarise(found: Run | Sweep) -> Summary:
    """Sentences and tables of a run or a sweep."""
    if isinstance(found, Sweep):
        sections = [
            comparison_section(found.comparison),
            scaling_section(found.scaling),
            hybrid_section(found.points),
        ]
        told = [section for section in sections if section]
        return Summary(found.name, _sweep_verdicts(found), [sweep_table(found)], told)
    stages = settled(found.stages)
    verdicts, tables = _state_verdicts(found), []
    if "ground_state" in stages:
        if not replaced(stages.get("dynamics", xr.Dataset())):
            verdicts += quality.ground_state_verdicts(stages["ground_state"])
        tables += quality.ground_state_tables(stages["ground_state"])
    if "observables" in stages:
        verdicts += quality.observable_verdicts(found.stages["observables"])
        tables += quality.observable_tables(stages["observables"])
    if "sae" in stages:
        verdicts += quality.dictionary_verdicts(stages["sae"])
        tables += quality.dictionary_tables(stages["sae"])
    if "features" in stages:
        features = stages["features"]
        if (
            next(courses(found.stages["features"]), None) is None
        ):  # else a section of their own leads with verdicts
            verdicts += _timed(findings.feature_verdicts(features), features)
        tables += findings.feature_tables(features)
    if "steering" in stages and "time" not in stages["steering"].dims:
        verdicts += findings.steering_verdicts(stages["steering"])
        tables += findings.steering_tables(stages["steering"])
    return Summary(found.name, verdicts, tables, _sections(found))


def _sections(run: Run) -> list[Section]:
    """What a run has to say about a teacher, time, attribution, a crosscoder, completeness, heads; nothing without them."""
    stages, sections = run.stages, []
    if learned := learned_section(stages.get("transfer", xr.Dataset())):
        sections.append(learned)
    if "dynamics" in stages:
        sections.append(dynamics_section(run))
    if followed := followed_section(stages.get("features", xr.Dataset())):
        sections.append(followed)
    if "steering" in stages and "time" in stages["steering"].dims:
        verdicts, tables = [], []
        for moment in shown_times(stages["steering"]):
            verdicts += _timed(findings.steering_verdicts(moment), moment)
            tables += findings.steering_tables(moment)
        sections.append(Section("Steering", verdicts, tables, ("steering", "later")))
    shown = settled(stages)
    if portraits := portraits_section(shown.get("features", xr.Dataset())):
        sections.append(portraits)
    if attributed := attribution_section(
        shown.get("attribution", xr.Dataset()), shown.get("features", xr.Dataset())
    ):
        sections.append(attributed)
    if complete := completeness_section(stages.get("completeness", xr.Dataset())):
        sections.append(complete)
    if ranked := heads_section(stages.get("heads", xr.Dataset())):
        sections.append(ranked)
    if crossed := crosscoder_section(stages.get("crosscoder", xr.Dataset())):
        sections.append(crossed)
    return sections


def _timed(verdicts: list[Verdict], dataset: xr.Dataset) -> list[Verdict]:
    """The verdicts of one time, which they say."""
    return [Verdict(verdict.kind, when(dataset, after=": ") + verdict.text) for verdict in verdicts]


def _state_verdicts(run: Run) -> list[Verdict]:
    """One sentence on a run that is not done; nothing about one that is."""
    missing = f" Not there yet: {', '.join(run.missing)}." if run.missing else ""
    if run.state == "done":
        return [Verdict("note", missing.strip())] if missing else []
    where = f" in stage {run.status['stage']}" if run.status.get("stage") else ""
    reason = next(
        (f" {str(run.status[key]).rstrip('.')}." for key in ("error", "message") if run.status.get(key)), ""
    )
    heard = f" Last heard of at {run.status['updated']}." if run.status.get("updated") else ""
    kind: Kind = "fault" if run.state == "failed" else "note"
    return [
        Verdict(kind, f"State of the run: {run.state}{where}{_progress(run.status)}.{reason}{heard}{missing}")
    ]


def _progress(status: Mapping[str, Any]) -> str:
    progress = status.get("progress")
    return f" ({progress:.0%})" if isinstance(progress, (int, float)) and 0 < progress < 1 else ""


def _sweep_verdicts(sweep: Sweep) -> list[Verdict]:
    """How many points are in which state, and why points failed."""
    states = [point.run.state for point in sweep.points]
    counts = ", ".join(f"{states.count(state)} {state}" for state in _in_order(states))
    failed = [
        Verdict("fault", f"{point.run.name} failed. {point.run.status.get('error', '')}".strip())
        for point in sweep.points
        if point.run.state == "failed"
    ]
    return [Verdict("note", f"Sweep of {len(states)} points: {counts}."), *failed]


def sweep_table(sweep: Sweep) -> Table:
    """One row per point: state, energy, dictionary, and the best feature of the last layer for every observable."""
    keys = _in_order(key for point in sweep.points for key in point.coordinates)
    features = [point.run.stages.get("features", xr.Dataset()) for point in sweep.points]
    observables = _in_order(name for dataset in features for name in labels(dataset, "observable"))
    rows = []
    for point, found in zip(sweep.points, features, strict=True):
        swept = [str(point.coordinates.get(key, NOTHING)) for key in keys]
        rows.append((*swept, *_point_cells(point.run), *(_headline(found, name) for name in observables)))
    columns = (*keys, "state", "energy", "relative error", "explained", *(f"|r| {o}" for o in observables))
    definitions = dict(SWEEP)
    if any("followed_pearson" in dataset for dataset in features):
        definitions["|r| columns"] = THROUGH_TIME
    return Table("Points of the sweep", columns, rows, definitions=definitions)


def _point_cells(run: Run) -> tuple[str, ...]:
    ground_state = run.stages.get("ground_state", xr.Dataset())
    energy, error = (attribute(ground_state, name) for name in ("final_energy", "final_energy_error"))
    explained = number(_explained(run.stages.get("sae", xr.Dataset())), 3)
    return run.state, with_error(energy, error), quality.relative_error(ground_state), explained


def _headline(features: xr.Dataset, observable: Any) -> str:
    """``|r| (gain)`` of the last layer; through time, of the feature that was followed."""
    at = {"layer": (labels(features, "layer") or [None])[-1], "observable": observable}
    last = at_time(features, last_training_time({"features": features}))
    r, gain = abs(cell(last, "best_pearson", **at)), cell(last, "gain", **at)
    for course in courses(features):
        if (course.layer, course.observable) == (str(at["layer"]), str(observable)) and course.weakest >= 0:
            r = float(course.r[course.weakest])
            gain = r - course.best_control[1]
    above = "" if math.isnan(gain) else f" ({gain:+.3f})"
    return NOTHING if math.isnan(r) else f"{r:.3f}{above}"


def _explained(dictionaries: xr.Dataset) -> float:
    if "explained_variance" not in dictionaries:
        return math.nan
    values = finite(dictionaries["explained_variance"].isel(layer=-1))
    return float(values.mean()) if values.size else math.nan


def _in_order(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))
