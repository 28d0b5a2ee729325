"""Does a feature that follows an observable also move it, and does attribution predict what ablation does?"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..moments import when
from ..values import labels, plain, series
from .style import CONTROLS, FEATURE, ORANGE, known, legend_above, paired, wrapped

MOST_PANELS = 4  # quantities or observables side by side
FIRST = ("log_abs_psi", "local_energy")  # then the expectation values


def atlas_figure(dataset: xr.Dataset, features: xr.Dataset) -> Figure | None:
    """|slope| / sqrt(metric) of every feature against its |r|: a row per layer, a column per observable."""
    layers, observables = labels(dataset, "layer"), labels(dataset, "observable")[:MOST_PANELS]
    if not known(dataset, "leverage") or not known(features, "pearson"):
        return None
    figure, panels = _panels(len(layers), len(observables))
    for row, layer in zip(panels, layers, strict=True):
        for axes, observable in zip(row, observables, strict=True):
            _draw_atlas(axes, dataset, features, {"layer": layer, "observable": observable})
        row[0].set_ylabel(f"{plain(layer)}{when(dataset, ', ')}\n|slope| / sqrt(metric)")
    for axes, observable in zip(panels[0], observables, strict=True):
        axes.set_title(wrapped(observable, 24), fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("|r| on test chains")
    legend_above(figure)
    return figure


def _draw_atlas(axes: Axes, dataset: xr.Dataset, features: xr.Dataset, at: dict[str, Any]) -> None:
    leverage = np.abs(series(dataset, "leverage", "feature", **at))
    r = dict(
        zip(labels(features, "feature"), np.abs(series(features, "pearson", "feature", **at)), strict=False)
    )
    correlation = np.array([r.get(name, np.nan) for name in labels(dataset, "feature")])
    axes.plot(correlation, leverage, "o", color=FEATURE[0], markersize=3.5, alpha=0.7, label="feature")
    if np.isfinite(correlation).any():
        best = int(np.nanargmax(correlation))
        axes.plot(correlation[best], leverage[best], "D", color=ORANGE, markersize=6, label="the largest |r|")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(bottom=0)


def agreement_figure(dataset: xr.Dataset) -> Figure | None:
    """Effect by gradient against effect by ablation: a row per layer, a column per quantity, a colour per ablation."""
    layers, found = labels(dataset, "layer"), labels(dataset, "quantity")
    if not known(dataset, "ablation_effect") or not known(dataset, "ablation_attribution"):
        return None
    means = [name for name in found if str(name).startswith("mean_")]
    quantities = [name for name in found if name in FIRST] + means
    quantities = quantities[:MOST_PANELS]
    if not quantities:
        return None
    figure, panels = _panels(len(layers), len(quantities))
    for row, layer in zip(panels, layers, strict=True):
        for axes, quantity in zip(row, quantities, strict=True):
            _draw_agreement(axes, dataset, {"layer": layer, "quantity": quantity})
        row[0].set_ylabel(f"{plain(layer)}{when(dataset, ', ')}\neffect by gradient")
    for axes, quantity in zip(panels[0], quantities, strict=True):
        size = ", rms over samples" if quantity in FIRST else ""
        axes.set_title(wrapped(f"{quantity}{size}", 24), fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel("effect by ablation")
    legend_above(figure)
    return figure


def _draw_agreement(axes: Axes, dataset: xr.Dataset, at: dict[str, Any]) -> None:
    ends: list[float] = []
    for ablation, (colour, marker) in paired(labels(dataset, "ablation"), CONTROLS):
        here = {**at, "ablation": ablation}
        effect = series(dataset, "ablation_effect", "ablated", **here)
        predicted = series(dataset, "ablation_attribution", "ablated", **here, predictor="gradient")
        axes.plot(
            effect, predicted, marker, color=colour, markersize=4, linestyle="none", label=str(ablation)
        )
        ends += [float(x) for x in (*effect, *predicted) if np.isfinite(x)]
    if ends:
        low, high = min(0.0, *ends), max(0.0, *ends)
        axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=1, label="equal")


def _panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(6.0, 0.8 + 2.9 * columns), 1.0 + 2.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)
