"""What turning a feature does: its target, the energy, and how far the state has moved, beside the controls.

Controls are drawn at matched infidelity: at every scale they disturb the state as much as the feature does. Close to an
eigenstate the energy changes in second order and the target in first, so the energy axis is linear inside the budget
and logarithmic outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ...interpret.kinds import DIRECTIONS
from ..moments import when
from ..numbers import number
from ..values import axis, cell, energy_budget, labels, most_trusted, plain, series
from .style import (
    CONTROLS,
    FEATURE,
    GREEN,
    GREY,
    Look,
    above,
    bars,
    known,
    legend_above,
    log_axis,
    paired,
)

ROUNDING = 1e-9  # an infidelity below it is rounding of the network in single precision


@dataclass(frozen=True)
class Stroke:
    """How a curve is drawn: colour and marker, line style, marker size (0: none) and whether the marker is open."""

    look: Look
    line: str = "-"
    size: float = 3.5
    open: bool = False


ESTIMATORS = {
    "exact": Stroke(FEATURE, size=0),
    "resampled": Stroke(FEATURE, line="none", size=6),
    "reweighted": Stroke(FEATURE, line="--", size=6, open=True),
}
TANGENT = np.array([-0.5, 0.5])  # scales, relative to 1, over which the predicted slope is drawn


def steering_figure(dataset: xr.Dataset, target: Any) -> Figure | None:
    """A column per layer; target, relative energy deviation, infidelity and ESS against the scale."""
    layers = labels(dataset, "layer")
    if not known(dataset, "observable_mean", target=target):
        return None
    figure = Figure(figsize=(max(6.5, 1.0 + 4.3 * len(layers)), 9.0), layout="constrained")
    heights = (3.2, 2.4, 1.7, 1.4)
    panels = figure.subplots(4, len(layers), sharex=True, sharey="row", squeeze=False, height_ratios=heights)
    for column, layer in zip(panels.T, layers, strict=True):
        _draw_layer(column, dataset, {"layer": layer, "target": target})
    names = (plain(target), r"$(E-E_1)\,/\,|E_1|$", "infidelity", "ESS / samples")
    for axes, name in zip(panels[:, 0], names, strict=True):
        axes.set_ylabel(name)
    _set_energy_axis(panels[1], energy_budget(dataset))
    if _extent(panels[2])[1] > 0:
        log_axis(panels[2, 0])
    panels[3, 0].set_ylim(0, 1.08)
    legend_above(figure)
    figure.align_ylabels()
    return figure


def _draw_layer(column: Sequence[Axes], dataset: xr.Dataset, at: dict[str, Any]) -> None:
    """The feature by every estimator, each control by its most trustworthy one."""
    looks = dict(paired(_in_one_order(dataset), CONTROLS))
    for direction in (name for name in labels(dataset, "direction") if name != "feature"):
        look = looks[direction]
        here = {**at, "direction": direction}
        estimator = most_trusted(dataset, {**here, "observable": at["target"]}, "observable_mean")
        if estimator is not None:
            _draw_direction(column, dataset, {**here, "estimator": estimator}, Stroke(look), plain(direction))
    for estimator, stroke in ESTIMATORS.items():
        here = {**at, "direction": "feature", "estimator": estimator}
        _draw_direction(column, dataset, here, stroke, f"feature, {estimator}")
    _draw_tangent(column[0], dataset, at)
    _draw_budget(column[1], energy_budget(dataset))
    for axes in column:
        axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    feature = cell(dataset, "feature", **at)
    turned = f", feature {feature:.0f}" if feature >= 0 else ""
    column[0].set_title(f"{plain(at['layer'])}{turned}{when(dataset, ', ')}")
    column[-1].set_xlabel("scale of the feature")


def _in_one_order(dataset: xr.Dataset) -> list[Any]:
    """All directions but the feature, unknown ones last: a direction looks the same whichever others are there."""
    return list(dict.fromkeys((*DIRECTIONS, *labels(dataset, "direction"))))[1:]


def _draw_direction(
    column: Sequence[Axes], dataset: xr.Dataset, at: dict[str, Any], stroke: Stroke, label: str
) -> None:
    """One direction by one estimator, in the four panels."""
    target = {**at, "observable": at["target"]}
    nothing = np.zeros(dataset.sizes["scale"])
    curves = (
        (
            series(dataset, "observable_mean", "scale", **target),
            series(dataset, "observable_error", "scale", **target),
        ),
        (
            series(dataset, "relative_energy_deviation", "scale", **at),
            series(dataset, "relative_energy_deviation_error", "scale", **at),
        ),
        (above(series(dataset, "infidelity", "scale", **at), ROUNDING), nothing),
        (series(dataset, "ess", "scale", **at), nothing),
    )
    for axes, (values, errors) in zip(column, curves, strict=True):
        _draw_curve(axes, axis(dataset, "scale"), values, errors, stroke, label)


def _draw_curve(
    axes: Axes, scale: np.ndarray, values: np.ndarray, errors: np.ndarray, stroke: Stroke, label: str
) -> None:
    """One curve with its error bars; what is not known is a gap."""
    if not np.isfinite(values).any():
        return
    colour, marker = stroke.look
    axes.errorbar(
        scale,
        values,
        yerr=bars(errors) if errors.any() else None,
        color=colour,
        linestyle=stroke.line,
        linewidth=1.3,
        marker=marker if stroke.size else "none",
        markersize=stroke.size,
        markerfacecolor="white" if stroke.open else colour,
        capsize=2,
        zorder=3 if stroke.look == FEATURE else 2,
        label=label,
    )


def _draw_tangent(axes: Axes, dataset: xr.Dataset, at: dict[str, Any]) -> None:
    """The predicted slope of the feature as a line through the original state."""
    here = {**at, "direction": "feature", "observable": at["target"]}
    estimator = most_trusted(dataset, here, "slope_predicted")
    origin = {**here, "scale": 1.0}
    if estimator is None or 1.0 not in labels(dataset, "scale"):
        return
    start = most_trusted(dataset, origin, "observable_mean")
    if start is None:
        return
    slope = cell(dataset, "slope_predicted", **here, estimator=estimator)
    value = cell(dataset, "observable_mean", **origin, estimator=start)
    axes.plot(1 + TANGENT, value + slope * TANGENT, "k-.", linewidth=1.2, zorder=4, label="predicted slope")


def _draw_budget(axes: Axes, budget: float) -> None:
    if budget > 0:
        label = f"energy budget ±{number(budget, 1)}"
        axes.axhspan(-budget, budget, color=GREEN, alpha=0.18, linewidth=0, label=label)


def _set_energy_axis(row: Sequence[Axes], budget: float) -> None:
    """Linear inside the budget, logarithmic outside: both the budget and the far scales can be read."""
    if not budget > 0:
        return
    low, high = _extent(row)
    decades = [sign * 10.0**power for sign in (-1, 1) for power in range(-12, 7) if 10.0**power > 2 * budget]
    row[0].set_yscale("symlog", linthresh=budget, linscale=0.8)
    row[0].yaxis.set_major_locator(FixedLocator([-budget, 0.0, budget, *decades]))
    row[0].yaxis.set_minor_locator(NullLocator())
    row[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    row[0].set_ylim(min(1.6 * low, -2 * budget), max(1.6 * high, 2 * budget))


def _extent(row: Sequence[Axes]) -> tuple[float, float]:
    """Smallest and largest value drawn in a row of panels, zero included."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for axes in row for line in axes.get_lines()]
    drawn = np.concatenate([np.zeros(1), *(values for values in lines if len(values) > 2)])
    return float(np.nanmin(drawn)), float(np.nanmax(drawn))
