"""Features through time: one feature for all times, chosen at the training times and judged at those held out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from .moments import clock, held_out
from .numbers import NOTHING, number
from .records import Kind, Section, Table, Verdict
from .values import attribute, axis, cell, finite, index, labels, plain, series

WITHOUT_JUDGEMENT = ("undefined", "SAE not informative")  # how sentences begin that judge nothing
FOLLOWED = {
    "feature": "the feature with the largest mean |r| over the training times, on the select chains",
    "lowest |r|": "of this feature on the test chains, over the held-out times, with its bootstrap interval at that time",
    "at t": "the held-out time of the lowest |r|",
    "best control": "the control whose lowest |r| over the held-out times is largest; chosen in the same way, once for all "
    "times",
    "its lowest |r|": "of this control, over the held-out times",
}


@dataclass(frozen=True)
class Course:
    """|r| through time of one feature and of every control, arrays (time,); the ends of the interval are folded at 0."""

    layer: str
    observable: str
    feature: int
    verdict: str
    times: np.ndarray
    held_out: np.ndarray
    r: np.ndarray
    low: np.ndarray
    high: np.ndarray
    controls: Mapping[str, np.ndarray]

    @property
    def training_mean(self) -> float:
        """Mean |r| over the training times, by which the feature was chosen; -1 when it is not known."""
        known = finite(xr.DataArray(self.r[~self.held_out]))
        return float(known.mean()) if known.size else -1.0

    @property
    def weakest(self) -> int:
        """Index of the held-out time at which |r| is lowest, -1 when there is none."""
        return _lowest(self.r, self.held_out)

    @property
    def best_control(self) -> tuple[str, float]:
        """The control whose lowest |r| over the held-out times is largest, and that |r|."""
        found = [
            (float(values[place]), name)
            for name, values in self.controls.items()
            if (place := _lowest(values, self.held_out)) >= 0
        ]
        lowest, name = max(found, default=(math.nan, NOTHING))
        return name, lowest


def _lowest(values: np.ndarray, among: np.ndarray) -> int:
    usable = np.where(among & np.isfinite(values), values, np.inf)
    return int(usable.argmin()) if usable.size and np.isfinite(usable.min()) else -1


def courses(dataset: xr.Dataset) -> Iterator[Course]:
    """The course of every layer and observable that has a followed feature."""
    if "followed_pearson" not in dataset:
        return
    for layer in labels(dataset, "layer"):
        for observable in labels(dataset, "observable"):
            course = _course(dataset, layer, observable)
            if np.isfinite(course.r).any() or course.verdict:
                yield course


def _course(dataset: xr.Dataset, layer: str, observable: str) -> Course:
    at = {"layer": layer, "observable": observable}
    r, low, high = (series(dataset, f"followed_{name}", "time", **at) for name in ("pearson", "low", "high"))
    near, far = np.sort(np.abs([low, high]), axis=0)
    controls = {
        plain(name): np.abs(series(dataset, "followed_control_pearson", "time", **at, control=name))
        for name in labels(dataset, "control")
    }
    return Course(
        str(layer),
        str(observable),
        index(cell(dataset, "followed_feature", **at)),
        str(dataset["followed_verdict"].sel(at).item()).strip() if "followed_verdict" in dataset else "",
        axis(dataset, "time"),
        held_out(dataset),
        np.abs(r),
        np.where(low * high < 0, 0.0, near),
        far,
        controls,
    )


def followed_section(dataset: xr.Dataset) -> Section | None:
    """Verdicts, figure and table; None where no feature was followed."""
    found = list(courses(dataset))
    if not found:
        return None
    verdicts = [_verdict(course) for course in found]
    return Section("Features through time", verdicts, [_table(dataset, found)], ("followed",))


def _verdict(course: Course) -> Verdict:
    """The stage's own sentence, coloured by the interval of |r| beside the best control; good only where it says so too."""
    kind = _judged(course)
    if not course.verdict:
        name, lowest = course.best_control
        text = (
            f"{course.layer}, {course.observable}: feature {course.feature}, |r| on held-out times at least "
        )
        return Verdict(kind, f"{text}{_weakest(course)}; the best control, {name}, {number(lowest, 3)}.")
    if course.verdict.startswith(WITHOUT_JUDGEMENT):
        kind = "note"
    elif kind == "good" and not course.verdict.startswith("followed"):
        kind = "open"
    named = course.layer in course.verdict and course.observable in course.verdict
    return Verdict(
        kind, course.verdict if named else f"{course.layer}, {course.observable}: {course.verdict}"
    )


def _judged(course: Course) -> Kind:
    """Good or bad where the interval lies above or below the best control at every held-out time."""
    held, control = course.held_out, course.controls.get(course.best_control[0])
    if control is None:
        return "open"
    known = held & np.isfinite(course.low + course.high + control)
    if not known.any():
        return "open"
    if (course.low > control)[known].all():
        return "good"
    return "bad" if (course.high < control)[known].all() else "open"


def _weakest(course: Course) -> str:
    place = course.weakest
    return NOTHING if place < 0 else f"{course.r[place]:.3f} (at {clock(course.times[place])})"


def _table(dataset: xr.Dataset, found: list[Course]) -> Table:
    confidence = attribute(dataset, "confidence")
    level = "" if math.isnan(confidence) else f" ({confidence:.0%} intervals)"
    count = int(held_out(dataset).sum())
    title = f"Followed features at {count} held-out times of {dataset.sizes['time']}{level}"
    by_observable = sorted(found, key=lambda course: labels(dataset, "observable").index(course.observable))
    rows = [(course.observable, course.layer, *_cells(course)) for course in by_observable]
    return Table(title, ("observable", "layer", *FOLLOWED), rows, 1, FOLLOWED)


def _cells(course: Course) -> tuple[str, ...]:
    place, (name, lowest) = course.weakest, course.best_control
    feature = NOTHING if course.feature < 0 else str(course.feature)
    if place < 0:
        return feature, NOTHING, NOTHING, name, number(lowest, 3)
    low, high = course.low[place], course.high[place]
    interval = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low + high) else ""
    weakest = f"{course.r[place]:.3f}{interval}"
    return (
        feature,
        weakest,
        f"{course.times[place]:g}",
        name,
        NOTHING if math.isnan(lowest) else f"{lowest:.3f}",
    )
