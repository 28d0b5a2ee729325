"""How training went: the energy of the state, and the loss of the dictionaries."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..numbers import number
from ..values import attribute, axis, labels, plain, series
from .style import (
    BLUE,
    CONTROLS,
    FEATURE,
    ORANGE,
    RED,
    SKY,
    above,
    bars,
    known,
    legend_above,
    log_axis,
    paired,
)

DICTIONARY_PANELS = {
    "loss": "training loss per element",
    "l0": "active features (L0)",
    "dead_fraction": "dead features (share)",
}


def energy_figure(dataset: xr.Dataset) -> Figure | None:
    """Energy against training step beside the exact one; below, relative error and V-score on a log axis."""
    if not known(dataset, "energy"):
        return None
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2.4))
    step, energy, error = axis(dataset, "step"), series(dataset, "energy", "step"), _error(dataset)
    top.plot(step, energy, color=BLUE, linewidth=1.2, label="energy (band: standard error)")
    top.fill_between(step, energy - bars(error), energy + bars(error), color=BLUE, alpha=0.3, linewidth=0)
    exact = attribute(dataset, "exact_energy")
    if np.isfinite(exact):
        top.axhline(exact, color="black", linewidth=1, linestyle="--", label=f"exact, {number(exact, 9)} J")
    top.set_ylabel("energy (total, J)")
    top.legend()
    _draw_quality(bottom, dataset, exact)
    bottom.set_xlabel("training step")
    figure.align_ylabels()
    return figure


def _draw_quality(axes: Axes, dataset: xr.Dataset, exact: float) -> None:
    """Relative error with its standard error, V-score N Var(H) / E^2, and the final state."""
    step, energy = axis(dataset, "step"), series(dataset, "energy", "step")
    log_axis(axes)
    if dataset.sizes.get("spin"):
        v_score = dataset.sizes["spin"] * series(dataset, "energy_variance", "step") / energy**2
        axes.plot(step, above(v_score), color=ORANGE, linewidth=1, label="V-score")
    if np.isfinite(exact):
        axes.plot(
            step,
            above(np.abs(_error(dataset) / exact)),
            color=SKY,
            linewidth=1,
            label="relative standard error",
        )
        relative = above(np.abs((energy - exact) / exact))
        axes.plot(step, relative, color=BLUE, linewidth=1.2, label="relative error against exact")
    final = abs(attribute(dataset, "relative_error"))
    if final > 0:
        error = np.abs([attribute(dataset, "final_energy_error") / exact])
        axes.errorbar(
            step[-1:],
            [final],
            yerr=bars(error),
            color=RED,
            marker="o",
            markersize=5,
            capsize=3,
            linestyle="none",
            label="final state, fresh samples",
        )
    axes.set_ylabel("relative error, V-score")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(ncols=2)


def _error(dataset: xr.Dataset) -> np.ndarray:
    return series(dataset, "energy_error", "step")


def dictionary_figure(dataset: xr.Dataset) -> Figure | None:
    """Loss, number of active features and dead share against step: a colour per layer, a line per seed."""
    if not any(known(dataset, name) for name in DICTIONARY_PANELS):
        return None
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), DICTIONARY_PANELS.items(), strict=True):
        _draw_histories(axes, dataset, name)
        axes.set_xlabel("training step")
        axes.set_ylabel(title)
    log_axis(figure.axes[0])
    for axes in figure.axes[1:]:
        axes.set_ylim(bottom=0)
    legend_above(figure)
    return figure


def _draw_histories(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    for layer, (colour, _) in paired(labels(dataset, "layer"), (FEATURE, *CONTROLS)):
        for first, seed in enumerate(labels(dataset, "sae_seed")):
            history = series(dataset, name, "step", layer=layer, sae_seed=seed)
            shown = above(history) if name == "loss" else history
            label = None if first else f"{plain(layer)} (a line per seed)"
            axes.plot(axis(dataset, "step"), shown, color=colour, linewidth=1, alpha=0.8, label=label)
