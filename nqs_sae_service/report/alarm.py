"""Sentences and tables on the points of a sweep that share a Hamiltonian: do states of nearly the same energy differ?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from .kept import not_computed
from .numbers import NOTHING, number, with_error
from .records import Kind, Section, Table, Verdict
from .values import cell, index, labels

TITLE = "Do states of nearly the same energy differ in physics?"
MOST_VERDICTS = 10
KINDS: dict[str, Kind] = {"alarm": "fault", "agree": "good", "not comparable": "note"}
POINTS = {
    "energy": "total, in J, with its standard error",
    "V-score": "N Var(H) / E^2; 0 for an eigenstate",
    "check energy": "the same from samples of |psi|, weighted",
    "check V-score": "from these samples; much larger where the training locked at a zero of psi",
    "flip balance": "0 where the samples visit both sectors of the spin flip as |psi|^2 does; near +1 or -1 they stick in one",
}
PAIRS = {
    "dE": "difference of the energies (total, in J)",
    "in errors": "the same in combined standard errors",
    "fidelity": "|<a|b>|^2: summed over all configurations up to 14 sites, else from the samples of both; <= where these do "
    "not reach each other: then a bound from the distributions of diagonal observables",
    "differ": "observables whose means differ significantly (p < 0.01 over all comparisons) and by more than 0.2 standard "
    "deviations of the samples and 5 % of the mean",
}
OBSERVABLES = {
    "z": "difference in combined standard errors",
    "p": "two-sided, times the number of observables and pairs compared (Bonferroni)",
    "effect": "difference in standard deviations of the samples",
}
FEATURES = {
    "matched": "features of the first with a partner in the second dictionary: activations on the samples of both states "
    "correlate with r >= 0.7, matched one to one (Hungarian method)",
    "unmatched": "live features without one, of the first and of the second dictionary",
    "carriers": "of either dictionary the feature whose mean activation differs most between the samples of the two states: "
    "its shift in standard deviations, its z over chains, the observable that it follows on the samples of both and r",
}


def comparison_section(found: xr.Dataset | None) -> Section | None:
    """What ``comparison.nc`` says; None where there is nothing to compare."""
    if found is None:
        return None
    if section := not_computed(TITLE, found):
        return section
    tables = [_points(found), _pairs(found), _observables(found), _features(found)]
    return Section(
        TITLE,
        [*_faults(found), *_verdicts(found)],
        [table for table in tables if table.rows],
        ("comparison",),
    )


def kind_of(sentence: str) -> str:
    """alarm, agree or not comparable."""
    return sentence.partition(":")[0]


def _faults(found: xr.Dataset) -> list[Verdict]:
    """Points whose samples or whose training cannot be trusted."""
    from ..interpret.alarm import hidden, locked, out_of_balance

    verdicts = []
    for point in labels(found, "point"):
        balance, its_error = (
            cell(found, name, point=point) for name in ("flip_balance", "flip_balance_error")
        )
        if out_of_balance(balance, its_error):
            text = (
                f"alarm: the chains of {point} stick in one sector: the network gives its mirror image a weight that the "
                f"samples do not (flip balance {with_error(balance, its_error)}). Raise sampling.global_flip."
            )
            verdicts.append(Verdict("fault", text))
        names = ("energy", "energy_error", "check_energy", "check_energy_error")
        energy, error, check, check_error = (cell(found, name, point=point) for name in names)
        if locked(energy, error, check, check_error):
            text = (
                f"alarm: samples of |psi| give {point} the energy {with_error(check, check_error)} J, Born samples "
                f"{with_error(energy, error)} J: the training may have locked at a zero of psi. Set "
                "ground_state.exponent = 0.5."
            )
            verdicts.append(Verdict("fault", text))
        score, check, check_error = (
            cell(found, name, point=point) for name in ("v_score", "check_v_score", "check_v_score_error")
        )
        if hidden(score, check, check_error):
            text = (
                f"alarm: samples of |psi| show {point} the V-score {with_error(check, check_error)}, Born samples "
                f"{number(score, 2)}: psi is small where H psi is not, and the training may have locked there. Set "
                "ground_state.exponent = 0.5."
            )
            verdicts.append(Verdict("fault", text))
    return verdicts


def _verdicts(found: xr.Dataset) -> list[Verdict]:
    """The sentences on the pairs, alarms first."""
    sentences = [str(text) for text in found["verdict"].values]
    order = sorted(
        sentences, key=lambda text: list(KINDS).index(kind_of(text)) if kind_of(text) in KINDS else 9
    )
    verdicts = [Verdict(KINDS.get(kind_of(text), "note"), text) for text in order[:MOST_VERDICTS]]
    if len(order) > MOST_VERDICTS:
        verdicts.append(Verdict("note", f"{len(order) - MOST_VERDICTS} more pairs are in the tables."))
    return verdicts


def _points(found: xr.Dataset) -> Table:
    names = labels(found, "observable")
    rows = []
    for point in labels(found, "point"):

        def told(name: str, point: Any = point, **at: Any) -> str:
            error = name.replace("_mean", "") + "_error"
            return with_error(cell(found, name, point=point, **at), cell(found, error, point=point, **at))

        observed = [told("observable_mean", observable=name) for name in names]
        score = number(cell(found, "v_score", point=point), 2)
        rows.append(
            (
                str(point),
                told("energy"),
                score,
                told("check_energy"),
                told("check_v_score"),
                told("flip_balance"),
                *observed,
            )
        )
    columns = ("point", "energy", "V-score", "check energy", "check V-score", "flip balance", *names)
    return Table("States compared", columns, rows, definitions=POINTS)


def _pairs(found: xr.Dataset) -> Table:
    names, rows = labels(found, "observable"), []
    for i, pair in enumerate(labels(found, "pair")):
        gap, error = (cell(found, n, pair=pair) for n in ("energy_difference", "energy_difference_error"))
        differ = [name for name in names if cell(found, "differs", pair=pair, observable=name) > 0]
        rows.append(
            (
                _sides(found, i),
                with_error(gap, error),
                number(abs(gap) / error if error > 0 else math.nan, 2),
                _fidelity(found, pair),
                ", ".join(map(str, differ)) or "none",
                kind_of(str(found["verdict"].values[i])),
            )
        )
    return Table(
        "Pairs", ("pair", "dE", "in errors", "fidelity", "differ", "verdict"), rows, definitions=PAIRS
    )


def _fidelity(found: xr.Dataset, pair: Any) -> str:
    from ..interpret.alarm import Fidelity

    exact, bound = (cell(found, name, pair=pair) for name in ("fidelity_exact", "fidelity_bound"))
    value, error, closure = (
        cell(found, name, pair=pair) for name in ("fidelity", "fidelity_error", "closure")
    )
    if math.isfinite(exact):
        return f"{number(exact, 3)} (exact)"
    if Fidelity(value, error, closure).known:
        return with_error(value, error)
    return NOTHING if math.isnan(bound) else f"<= {number(bound, 2)}"


def _sides(found: xr.Dataset, i: int) -> str:
    return f"{found['first'].values[i]} | {found['second'].values[i]}"


def _observables(found: xr.Dataset) -> Table:
    """The nearly degenerate pairs, observable by observable."""
    rows = []
    for i, pair in enumerate(labels(found, "pair")):
        if not cell(found, "nearly_degenerate", pair=pair) > 0:
            continue
        for name in labels(found, "observable"):
            at = {"pair": pair, "observable": name}
            values = [cell(found, n, **at) for n in ("observable_difference", "z", "p_value", "effect")]
            if not math.isnan(values[0]):
                rows.append((_sides(found, i), str(name), *(number(value, 3) for value in values)))
    columns = ("pair", "observable", "difference", "z", "p", "effect")
    return Table("Observables of nearly degenerate pairs", columns, rows, group=1, definitions=OBSERVABLES)


def _features(found: xr.Dataset) -> Table:
    rows = []
    for i, pair in enumerate(labels(found, "pair")):
        for layer in labels(found, "layer"):
            matched = cell(found, "matched_features", pair=pair, layer=layer)
            if math.isnan(matched):
                continue
            alone = [
                cell(found, "unmatched_features", pair=pair, side=s, layer=layer)
                for s in labels(found, "side")
            ]
            carriers = [_carrier(found, i, pair, side, layer) for side in labels(found, "side")]
            rows.append(
                (
                    _sides(found, i),
                    str(layer),
                    f"{matched:.0f}",
                    ", ".join(f"{n:.0f}" for n in alone),
                    *carriers,
                )
            )
    columns = ("pair", "layer", "matched", "unmatched", "carrier in the first", "in the second")
    return Table("Features of the pairs", columns, rows, group=1, definitions=FEATURES)


def _carrier(found: xr.Dataset, i: int, pair: Any, side: Any, layer: Any) -> str:
    at = {"pair": pair, "side": side, "layer": layer}
    feature = index(cell(found, "carrier", **at))
    if feature < 0:
        return "none"
    shift, z = (cell(found, n, **at, feature=feature) for n in ("feature_shift", "feature_shift_z"))
    follows = str(found["carrier_observable"].sel(at).values)
    r = cell(found, "carrier_pearson", **at)
    return f"{feature}: shift {shift:+.2f}, z {z:+.0f}, {follows} {r:+.2f}"


def most_alarming(found: xr.Dataset) -> int | None:
    """Position of the pair in alarm whose observables differ most; None without an alarm."""
    alarms = [i for i, text in enumerate(found["verdict"].values) if kind_of(str(text)) == "alarm"]
    if not alarms:
        return None
    effect = np.abs(np.nan_to_num(found["effect"].values, posinf=1e9, neginf=-1e9)) * found["differs"].values
    return max(alarms, key=lambda i: float(effect[i].max(initial=0.0)))
