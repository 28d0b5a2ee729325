"""What happened after the quench: observables beside the exact ones, the energy that should stay, the errors of the steps."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evolution import drift, imaginary
from ..values import axis, labels, plain, series
from .style import BLUE, RED, above, band, bars, columns_of, known, legend_above, used, whole_decades

ROUNDING = 1e-6  # an observable that varies less stays as it is


def time_label(dataset: xr.Dataset) -> str:
    """The name of the axis of times."""
    return "imaginary time (1/J)" if imaginary(dataset) else "time after the quench (1/J)"


def observables_figure(dataset: xr.Dataset) -> Figure | None:
    """A panel per observable: its expectation value with the standard error, and the exactly evolved one."""
    names = [
        name for name in labels(dataset, "observable") if known(dataset, "observable_mean", observable=name)
    ]
    if not names:
        return None
    columns = columns_of(len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(7.0, 3.6 * columns), 0.8 + 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for axes, name in zip(used(panels, len(names), time_label(dataset)), names, strict=True):
        _draw_observable(axes, dataset, name)
        axes.set_title(plain(name))
    legend_above(figure)
    return figure


def _draw_observable(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    time = axis(dataset, "time")
    mean, error, exact = (
        series(dataset, f"observable_{part}", "time", observable=name) for part in ("mean", "error", "exact")
    )
    if np.isfinite(exact).any():
        axes.plot(time, exact, color="black", linewidth=1, linestyle="--", zorder=3, label="exact")
    label = "network (band: standard error)" if bars(error).any() else "network"
    axes.plot(time, mean, color=BLUE, linewidth=1.4, marker="o", markersize=2.5, label=label)
    band(axes, time, mean - bars(error), mean + bars(error), BLUE)
    low, high = axes.get_ylim()
    if high - low < ROUNDING:  # conserved
        axes.set_ylim(low - 0.01, high + 0.01)
    _mark_end(axes, dataset)


def drift_figure(dataset: xr.Dataset) -> Figure | None:
    """Energy, error of the steps and their length against time; the last two on logarithmic axes."""
    if not known(dataset, "energy"):
        return None
    figure = Figure(figsize=(7.5, 6.4), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    _draw_energy(top, dataset)
    time = axis(dataset, "time")
    projected = dataset.attrs.get("method") == "ptvmc"
    errors = "infidelity\nof a step" if projected else "TDVP error"
    for axes, name, label in ((middle, "tdvp_error", errors), (bottom, "step_size", "step size (1/J)")):
        values = above(series(dataset, name, "time"))
        axes.plot(time, values, color=BLUE, linewidth=1.2, marker="o", markersize=3)
        axes.set_ylabel(label)
        whole_decades(axes, values)
        _mark_end(axes, dataset)
    bottom.set_xlabel(time_label(dataset))
    legend_above(figure)
    figure.align_ylabels()
    return figure


def _draw_energy(axes: Axes, dataset: xr.Dataset) -> None:
    """The drift in real time; in imaginary time, where the energy falls, the energy itself."""
    if imaginary(dataset):
        energy, errors = series(dataset, "energy", "time"), series(dataset, "energy_error", "time")
        axes.set_ylabel("energy (total, J)")
        axes.ticklabel_format(axis="y", useOffset=False)
    else:
        energy, errors = drift(dataset)
        relative = bool(np.any(series(dataset, "energy", "time")[:1]))
        axes.set_ylabel(r"$(E(t)-E(0))\,/\,|E(0)|$" if relative else r"$E(t)-E(0)$ (J)")
        axes.axhline(0.0, color="black", linewidth=1, linestyle="--", label="exact")
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axes.errorbar(
        axis(dataset, "time"),
        energy,
        yerr=bars(errors) if bars(errors).any() else None,
        color=BLUE,
        linewidth=1.2,
        marker="o",
        markersize=3.5,
        capsize=2,
        label="network",
    )
    _mark_end(axes, dataset)


def _mark_end(axes: Axes, dataset: xr.Dataset) -> None:
    if dataset.attrs.get("ended") and dataset.sizes["time"]:
        last = axis(dataset, "time")[-1]
        axes.axvline(last, color=RED, linewidth=1.2, linestyle=":", label="the step collapsed")
