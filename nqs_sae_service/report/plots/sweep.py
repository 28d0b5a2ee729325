"""A sweep at a glance: observables, and how well features follow them, against the swept parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..moments import settled
from ..reading import Sweep
from ..values import cell, labels, plain
from .style import CONTROLS, FEATURE, Look, bars, legend_above, paired

Values = Callable[[xr.Dataset, Any], list[float]]
Panel = Callable[[Axes, np.ndarray, Look, str], None]
Curves = dict[Any, dict[str, np.ndarray]]  # observable -> the other swept values -> rows (x, values...)


def sweep_figures(sweep: Sweep) -> dict[str, Figure]:
    """Figures against the first swept parameter that is a number; a line per combination of the others."""
    key = _swept_number(sweep)
    if key is None:
        return {}
    observables = _curves(sweep, key, "observables", _expectation)
    correlations = _curves(sweep, key, "features", _correlation)
    last = ", last time" if any(point.run.evolves for point in sweep.points) else ""
    drawn = {}
    if observables:
        drawn["sweep_observables"] = _figure(observables, key, _draw_expectation, f"expectation value{last}")
    if correlations:
        drawn["sweep_correlations"] = _figure(
            correlations, key, _draw_correlation, f"|r| on test chains{last}"
        )
    return drawn


def _swept_number(sweep: Sweep) -> str | None:
    for key in dict.fromkeys(key for point in sweep.points for key in point.coordinates):
        values = [point.coordinates.get(key) for point in sweep.points]
        if all(isinstance(value, (int, float)) for value in values) and len(set(values)) > 1:
            return key
    return None


def _curves(sweep: Sweep, key: str, stage: str, values: Values) -> Curves:
    rows: dict[Any, dict[str, list[list[float]]]] = {}
    for point in sweep.points:
        dataset = settled(point.run.stages).get(stage, xr.Dataset())
        others = ", ".join(f"{name} = {value}" for name, value in point.coordinates.items() if name != key)
        for observable in labels(dataset, "observable"):
            row = [float(point.coordinates[key]), *values(dataset, observable)]
            rows.setdefault(observable, {}).setdefault(others, []).append(row)
    return {name: {others: np.asarray(r) for others, r in lines.items()} for name, lines in rows.items()}


def _expectation(dataset: xr.Dataset, observable: Any) -> list[float]:
    return [cell(dataset, name, observable=observable) for name in ("mean", "error", "exact")]


def _correlation(dataset: xr.Dataset, observable: Any) -> list[float]:
    """|r| of the best feature of the last layer, and of its best control."""
    at = {"layer": labels(dataset, "layer")[-1], "observable": observable}
    feature = abs(cell(dataset, "best_pearson", **at))
    return [feature, feature - cell(dataset, "gain", **at)]


def _draw_expectation(axes: Axes, rows: np.ndarray, look: Look, others: str) -> None:
    x, mean, error, exact = rows.T
    colour, marker = look
    label = others or "sampled"
    axes.errorbar(
        x, mean, yerr=bars(error), color=colour, marker=marker, markersize=5, capsize=2, label=label
    )
    if np.isfinite(exact).any():
        axes.plot(x, exact, color="black", linestyle="none", marker="_", markersize=14, label="exact")


def _draw_correlation(axes: Axes, rows: np.ndarray, look: Look, others: str) -> None:
    x, feature, control = rows.T
    colour, marker = look
    of = f", {others}" if others else ""
    axes.plot(x, feature, color=colour, marker=marker, markersize=5, label=f"best feature{of}")
    axes.plot(
        x, control, "--", color=colour, marker=marker, markerfacecolor="white", label=f"best control{of}"
    )
    axes.set_ylim(0, 1.03)


def _figure(curves: Curves, key: str, draw: Panel, quantity: str) -> Figure:
    """A panel per observable, a line per combination of the other swept values."""
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(max(6.0, 3.6 * columns), 0.8 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (observable, lines) in zip(panels, curves.items(), strict=False):
        for (others, table), look in paired(list(lines.items()), (FEATURE, *CONTROLS)):
            draw(axes, table, look, others)
        axes.set_title(plain(observable))
        axes.set_xlabel(key)
        axes.set_ylabel(quantity)
    for axes in panels[len(curves) :]:
        axes.remove()
    legend_above(figure)
    return figure
