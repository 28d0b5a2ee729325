"""What happened after the quench: how far the state was followed, whether its energy drifts, how far it is from exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from .moments import clock
from .numbers import NOTHING, number, with_error
from .reading import Run
from .records import Kind, Section, Table, Verdict
from .values import attribute, axis, grid, labels, plain, series

DRIFT_LIMIT = (
    1e-3  # relative energy drift (with two standard errors) up to which the energy is called conserved
)
DISTANCE_LIMIT = (
    1e-2  # distance from exact that is called small, in units of the larger of 1 and the exact values
)
BEYOND = 4.0  # standard errors: the largest of many numbers is two or three off by chance

METHODS = {"tdvp": "TDVP", "ptvmc": "projected t-VMC"}
STARTS = {
    "ground_state": "the ground state",
    "x": "all spins along +x",
    "z": "all spins along +z",
    "neel": "the Neel state",
}
DYNAMICS = {
    "start": "the state at time 0; its infidelity where the network was brought onto a product state",
    "method": "TDVP: the projected equation of motion; projected t-VMC: every step minimises the infidelity",
    "duration": "time that was reached, in units of 1 / J",
    "energy drift": "(E(t) - E(0)) / |E(0)|, largest of all recorded times; 0 for the exact evolution",
    "step size": "mean length of the steps between two recorded times, the smallest of all",
    "distance from exact": "expectation value minus that of the exactly evolved state, largest of all times",
    "infidelity": "1 - fidelity with the exactly evolved state, largest of all times",
}
ERRORS = {
    "TDVP error": "share of the energy variance that the network did not follow, mean over the steps between two recorded "
    "times; integrated: over time, in units of 1 / J",
    "step infidelity": "infidelity at which the steps between two recorded times ended, mean; summed: over all steps",
}
OBSERVABLES = {
    "first, last": "expectation value at the first and at the last recorded time",
    "exact": "that of the exactly evolved state at the last recorded time, where it is known",
    "distance": "expectation value minus exact, where it is largest, with its standard error",
}


@dataclass(frozen=True)
class Peak:
    """The largest (or smallest) of a series of numbers: value, standard error, time, and of which observable."""

    value: float = math.nan
    error: float = math.nan
    time: float = math.nan
    observable: str = ""

    @property
    def known(self) -> bool:
        return math.isfinite(self.value)

    def size(self, unit: str = "") -> str:
        """``|value| ± error at t = 0.3``, and of which observable."""
        whose = f" ({self.observable})" if self.observable else ""
        return f"{_measured(abs(self.value), self.error)}{unit}{whose} at {clock(self.time)}"

    def judged(self, limit: float) -> Kind:
        """Good when even two standard errors more are within the limit, bad when ``BEYOND`` fewer are not."""
        error = self.error if math.isfinite(self.error) else 0.0
        size = abs(self.value)
        return "good" if size + 2 * error <= limit else "bad" if size - BEYOND * error > limit else "open"


def largest(values: np.ndarray, errors: np.ndarray, times: np.ndarray) -> Peak:
    """The largest of the numbers by size; they and their errors are arrays (time,)."""
    sizes = np.where(np.isfinite(values), np.abs(values), -1.0)
    if not sizes.size or sizes.max() < 0:
        return Peak()
    index = int(sizes.argmax())
    return Peak(float(values[index]), float(errors[index]), float(times[index]))


def imaginary(dataset: xr.Dataset) -> bool:
    """Whether the evolution is one in imaginary time."""
    return attribute(dataset, "imaginary") > 0


def drift(dataset: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(E(t) - E(0)) / |E(0)| and its standard error, arrays (time,); E(t) - E(0) itself where E(0) is 0."""
    energy, error = series(dataset, "energy", "time"), np.abs(series(dataset, "energy_error", "time"))
    if not energy.size:
        return energy, error
    scale = abs(energy[0]) or 1.0
    errors = np.hypot(error, error[0]) / scale
    errors[0] = 0.0
    return (energy - energy[0]) / scale, errors


def distances(dataset: xr.Dataset) -> dict[str, Peak]:
    """Of every observable, where it is furthest from that of the exactly evolved state."""
    mean, error, exact = (
        grid(dataset, f"observable_{name}", "observable", "time") for name in ("mean", "error", "exact")
    )
    times, found = axis(dataset, "time"), {}
    for index, name in enumerate(map(str, labels(dataset, "observable"))):
        peak = largest(mean[index] - exact[index], error[index], times)
        found[name] = Peak(peak.value, peak.error, peak.time, name)
    return found


def dynamics_section(run: Run) -> Section:
    """Everything about the stage."""
    dataset, asked = run.stages["dynamics"], run.section("dynamics")
    after = _hamiltonian(asked.get("hamiltonian"), run.section("hamiltonian"))
    tables = [_table(dataset, asked, after), *_observables(dataset)]
    return Section("Dynamics", dynamics_verdicts(dataset, asked), tables, ("evolution", "drift"))


def dynamics_verdicts(dataset: xr.Dataset, asked: Mapping[str, Any]) -> list[Verdict]:
    """How far and how well the state was followed; first of all, whether that ended early."""
    verdicts = []
    if ended := str(dataset.attrs.get("ended", "")).rstrip("."):
        before = f" before {clock(float(asked['duration']))}" if _is_number(asked.get("duration")) else ""
        text = f"The evolution ended{before}, at {ended}. What was recorded until then is shown."
        verdicts.append(Verdict("fault", text))
    verdicts += [_reached(dataset, asked), _energy(dataset), _distance(dataset)]
    return verdicts


def _reached(dataset: xr.Dataset, asked: Mapping[str, Any]) -> Verdict:
    times, steps = axis(dataset, "time"), series(dataset, "steps", "time")
    if not times.size:
        return Verdict("open", "Dynamics: no time was recorded.")
    taken = f" in {steps[-1]:.0f} steps" if math.isfinite(steps[-1]) else ""
    name, peak, (adding, total) = _missed(dataset)
    text = f"Dynamics: {_method(dataset)} from {_start(dataset, asked)} to {clock(times[-1])}{taken}"
    if peak.known:
        text += f"; {name} at most {number(peak.value, 2)} at {clock(peak.time)}, {number(total, 2)} {adding}"
    step = _shortest(dataset)
    if step.known:
        text += f"; steps as short as {number(step.value, 2)}"
    return Verdict("note", f"{text}.")


def _energy(dataset: xr.Dataset) -> Verdict:
    energy, error = series(dataset, "energy", "time"), series(dataset, "energy_error", "time")
    if not np.isfinite(energy).any():
        return Verdict("open", "Energy after the quench: not known.")
    if imaginary(dataset):
        last = with_error(float(energy[-1]), float(error[-1]))
        return Verdict("note", f"Energy in imaginary time: from {number(float(energy[0]), 6)} to {last} J.")
    peak = largest(*drift(dataset), axis(dataset, "time"))
    if not peak.known:
        return Verdict("open", "Energy drift: not known.")
    return Verdict(peak.judged(DRIFT_LIMIT), f"Energy drift: at most {peak.size(_unit(dataset))}.")


def _unit(dataset: xr.Dataset) -> str:
    """What the drift is a share of."""
    return " of |E(0)|" if np.any(series(dataset, "energy", "time")[:1]) else " J"


def _distance(dataset: xr.Dataset) -> Verdict:
    peak = _furthest(dataset)
    infidelity = _infidelity(dataset)
    if not peak.known and not infidelity.known:
        return Verdict("open", "Exact evolution: not known, nothing to compare with.")
    parts = []
    if peak.known:
        parts.append(f"observables differ from it by at most {peak.size()}")
    if infidelity.known:
        parts.append(f"infidelity at most {number(infidelity.value, 2)} at {clock(infidelity.time)}")
    kind = peak.judged(DISTANCE_LIMIT * _scale(dataset, peak)) if peak.known else "open"
    return Verdict(kind, f"Exact evolution: {', '.join(parts)}.")


def _furthest(dataset: xr.Dataset) -> Peak:
    known = [peak for peak in distances(dataset).values() if peak.known]
    return max(known, key=lambda peak: abs(peak.value), default=Peak())


def _scale(dataset: xr.Dataset, peak: Peak) -> float:
    exact = np.abs(series(dataset, "observable_exact", "time", observable=peak.observable))
    return float(np.max(exact, initial=1.0, where=np.isfinite(exact)))


def _infidelity(dataset: xr.Dataset) -> Peak:
    values = series(dataset, "infidelity", "time")
    return largest(values, np.full_like(values, np.nan), axis(dataset, "time"))


def _missed(dataset: xr.Dataset) -> tuple[str, Peak, tuple[str, float]]:
    """The error of the steps: its name, where it is largest, and how it adds up."""
    error, times = series(dataset, "tdvp_error", "time"), axis(dataset, "time")
    peak = largest(error, np.full_like(error, np.nan), times)
    if dataset.attrs.get("method") == "ptvmc":
        steps = np.diff(series(dataset, "steps", "time"), prepend=0.0)
        return "step infidelity", peak, ("summed", float(np.nansum(error * steps)))
    return "TDVP error", peak, ("integrated", float(np.nansum(error * np.diff(times, prepend=times[:1]))))


def _shortest(dataset: xr.Dataset) -> Peak:
    sizes, times = series(dataset, "step_size", "time"), axis(dataset, "time")
    usable = np.where(np.isfinite(sizes) & (sizes > 0), sizes, np.inf)
    if not usable.size or np.isinf(usable.min()):
        return Peak()
    index = int(usable.argmin())
    return Peak(float(sizes[index]), math.nan, float(times[index]))


def replaced(dataset: xr.Dataset) -> bool:
    """Whether the evolution begins with another state than that of the stage before: what that was does not matter then."""
    return dataset.attrs.get("start_state", "ground_state") in set(STARTS) - {"ground_state"}


def _method(dataset: xr.Dataset) -> str:
    method = str(dataset.attrs.get("method", "followed"))
    return f"{METHODS.get(method, method)} in {'imaginary' if imaginary(dataset) else 'real'} time"


def _start(dataset: xr.Dataset, asked: Mapping[str, Any]) -> str:
    """The state at time 0, as the spec calls it or, without one, the stage file."""
    start = str(asked.get("start", dataset.attrs.get("start_state")))
    return STARTS.get(start, "the state before")


def _table(dataset: xr.Dataset, asked: Mapping[str, Any], after: str) -> Table:
    """What was evolved, and the largest errors with the times at which they occur."""
    name, missed, (adding, total) = _missed(dataset)
    times, steps = axis(dataset, "time"), series(dataset, "steps", "time")
    reached = f"{times[-1]:g}" if times.size else NOTHING
    if _is_number(asked.get("duration")) and dataset.attrs.get("ended"):
        reached += f" of {asked['duration']:g}"
    infidelity = attribute(dataset, "start_infidelity")
    start = _start(dataset, asked) + (f" (infidelity {number(infidelity, 2)})" if infidelity > 0 else "")
    rows = [
        ("start", start, NOTHING),
        ("Hamiltonian after", after, NOTHING),
        ("method", _method(dataset), NOTHING),
        ("duration", reached, NOTHING),
        ("recorded times", str(times.size), NOTHING),
        ("steps", _count(steps), NOTHING),
    ]
    if not imaginary(dataset):
        rows.append(_peak_row("energy drift", largest(*drift(dataset), times)))
    rows += [
        _peak_row(name, missed, 3),
        (f"{name}, {adding}", number(total, 3) if missed.known else NOTHING, NOTHING),
        _peak_row("step size", _shortest(dataset), 3),
        _peak_row("distance from exact", _furthest(dataset)),
        _peak_row("infidelity", _infidelity(dataset), 3),
    ]
    definitions = DYNAMICS | {name: ERRORS[name]}
    known = [row for row in rows if row[1] != NOTHING]
    shown = {key: text for key, text in definitions.items() if key in {row[0] for row in known}}
    return Table("Dynamics", ("quantity", "value", "at t"), known, definitions=shown)


def _peak_row(name: str, peak: Peak, digits: int = 0) -> tuple[str, str, str]:
    """Quantity, value and time; ``digits`` of a number without an error."""
    if not peak.known:
        return name, NOTHING, NOTHING
    value = number(peak.value, digits) if digits else _measured(peak.value, peak.error)
    return name, value, f"{peak.time:g}"


def _hamiltonian(after: Any, before: Mapping[str, Any]) -> str:
    """The Hamiltonian after the quench by what has changed, ``tfim, h = 0.5 (before: 1.0)``."""
    if not isinstance(after, dict):
        return NOTHING
    kind, same = str(after.get("kind", "")), after.get("kind") == before.get("kind")
    changed = {key: value for key, value in after.items() if key != "kind" and before.get(key) != value}
    if not same:
        return ", ".join([kind, *(f"{plain(key)} = {value}" for key, value in changed.items())])
    was = [f"{plain(key)} = {value} (before: {before.get(key, 'default')})" for key, value in changed.items()]
    return ", ".join([kind, *was]) if was else f"{kind}, unchanged"


def _observables(dataset: xr.Dataset) -> list[Table]:
    """Where every observable begins and ends, and how far it gets from exact."""
    rows = []
    for name, peak in distances(dataset).items():
        mean, error, exact = (
            series(dataset, f"observable_{part}", "time", observable=name)
            for part in ("mean", "error", "exact")
        )
        if not mean.size:
            continue
        first, last = (with_error(float(mean[i]), float(error[i])) for i in (0, -1))
        rows.append((name, first, last, number(float(exact[-1]), 6), *_peak_row(name, peak)[1:]))
    columns = ("observable", "first", "last", "exact", "distance", "at t")
    return [Table("Observables after the quench", columns, rows, definitions=OBSERVABLES)] if rows else []


def _measured(value: float, error: float) -> str:
    """A difference with its error; without one, to a few digits."""
    return with_error(value, error) if error > 0 else number(value, 3)


def _count(steps: np.ndarray) -> str:
    return f"{steps[-1]:.0f}" if steps.size and math.isfinite(steps[-1]) else NOTHING


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
