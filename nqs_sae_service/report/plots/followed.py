"""Does one feature keep its meaning through time? |r| on test chains of the followed feature, beside its controls."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..followed import Course, courses
from ..values import plain
from .style import BLUE, CONTROLS, FEATURE, GREY, band, columns_of, legend_above, paired, used, wrapped

TIME = "time after the quench (1/J)"
WANTED = 0.92  # |r| of the best features of a ground state
MANY = 40  # times, above which those held out are shaded instead of every time marked
MOST_ROWS, MOST_COLUMNS = 3, 4  # up to so many layers and observables every layer has a row


def followed_figure(dataset: xr.Dataset) -> Figure | None:
    """A column per observable and a row per layer where these are few; else a panel per observable, of its best layer."""
    found = [course for course in courses(dataset) if np.isfinite(course.r).any()]
    if not found:
        return None
    shown, columns = _arranged(found)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(7.0, 3.4 * columns), 1.0 + 2.75 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, course in zip(used(panels, len(shown), TIME), shown, strict=True):
        _draw_course(axes, course)
        feature = f", feature {course.feature}" if course.feature >= 0 else ""
        axes.set_title(f"{wrapped(course.observable, 36)}\n{plain(course.layer)}{feature}", fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("|r| on test chains")
    legend_above(figure)
    return figure


def _arranged(found: list[Course]) -> tuple[list[Course], int]:
    """The courses that are shown, row by row, and the number of columns."""
    layers = list(dict.fromkeys(course.layer for course in found))
    observables = list(dict.fromkeys(course.observable for course in found))
    whole = len(found) == len(layers) * len(observables)
    if whole and 1 < len(layers) <= MOST_ROWS and len(observables) <= MOST_COLUMNS:
        return found, len(observables)
    best = [
        max(
            (course for course in found if course.observable == name), key=lambda course: course.training_mean
        )
        for name in observables
    ]
    return best, columns_of(len(best))


def _draw_course(axes: Axes, course: Course) -> None:
    """The feature with its band; training times filled, held-out times open; controls as thin lines."""
    colour = FEATURE[0]
    band(axes, course.times, course.low, course.high, BLUE)
    axes.plot(course.times, course.r, color=colour, linewidth=1.6, zorder=3, label="followed feature")
    if len(course.times) > MANY:
        _shade(axes, course)
    else:
        _mark(axes, course, ~course.held_out, colour, "training time")
        _mark(axes, course, course.held_out, "white", "held-out time")
    axes.axhline(WANTED, color="black", linewidth=1, linestyle="--", zorder=1, label=f"|r| = {WANTED}")
    for (name, values), (shade, _) in paired(list(course.controls.items()), CONTROLS):
        if np.isfinite(values).any():
            axes.plot(course.times, values, color=shade, linewidth=1, label=name)
    axes.set_ylim(0, 1.03)


def _mark(axes: Axes, course: Course, among: np.ndarray, face: str, label: str) -> None:
    if not among.any():
        return
    colour, marker = FEATURE
    axes.plot(
        course.times[among],
        course.r[among],
        linestyle="none",
        color=colour,
        marker=marker,
        markersize=4.5,
        markerfacecolor=face,
        zorder=4,
        label=label,
    )


def _shade(axes: Axes, course: Course) -> None:
    """Spans of held-out times, each from the middle to the time before it to the middle to the one behind it."""
    middles = (course.times[1:] + course.times[:-1]) / 2
    edges = np.concatenate([course.times[:1], middles, course.times[-1:]])
    changes = np.flatnonzero(np.diff(np.concatenate([[0], course.held_out, [0]])))
    for first, end in changes.reshape(-1, 2):
        axes.axvspan(edges[first], edges[end], color=GREY, alpha=0.15, linewidth=0, label="held-out times")
