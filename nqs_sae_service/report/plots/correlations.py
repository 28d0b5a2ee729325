"""Does a feature say more than its controls? |r| on test chains of the best feature, beside every control."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..moments import when
from ..values import cell, index, labels, plain
from .style import CONTROLS, FEATURE, Look, known, legend_above, paired, wrapped


def correlation_figure(dataset: xr.Dataset) -> Figure | None:
    """A panel per layer, a group of marks per observable: the feature first, then its controls, with intervals."""
    layers, observables = labels(dataset, "layer"), labels(dataset, "observable")
    if not known(dataset, "best_pearson"):
        return None
    figure = Figure(
        figsize=(max(7.5, 1.5 + 1.7 * len(observables)), 0.9 + 2.4 * len(layers)), layout="constrained"
    )
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for axes, layer in zip(panels, layers, strict=True):
        _draw_layer(axes, dataset, layer)
        axes.set_title(plain(layer) + when(dataset, ", "), loc="left")
        axes.set_ylabel("|r| on test chains")
    panels[-1].set_xticks(range(len(observables)), [wrapped(name) for name in observables])
    legend_above(figure)
    return figure


def _draw_layer(axes: Axes, dataset: xr.Dataset, layer: Any) -> None:
    observables, controls = labels(dataset, "observable"), labels(dataset, "control")
    x, places = np.arange(len(observables)), np.linspace(-0.36, 0.36, len(controls) + 1)
    feature = [_feature(dataset, layer, name) for name in observables]
    _draw_marks(axes, x + places[0], feature, FEATURE, "best feature", 7)
    for place, (control, look) in zip(places[1:], paired(controls, CONTROLS), strict=True):
        beside = [_control(dataset, layer, name, control) for name in observables]
        _draw_marks(axes, x + place, beside, look, plain(control), 5)
    for edge in x[:-1] + 0.5:
        axes.axvline(edge, color="#bbbbbb", linewidth=0.8)
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(observables) - 0.5)
    axes.set_ylim(0, 1.03)


def _feature(dataset: xr.Dataset, layer: Any, observable: Any) -> list[float]:
    """(r, low, high) of the best feature."""
    at = {"layer": layer, "observable": observable}
    feature = index(cell(dataset, "best_feature", **at))
    ends = [cell(dataset, f"pearson_{end}", **at, feature=feature) for end in ("low", "high")]
    return [cell(dataset, "best_pearson", **at), *ends]


def _control(dataset: xr.Dataset, layer: Any, observable: Any, control: Any) -> list[float]:
    """(r, low, high) of a control."""
    at = {"layer": layer, "observable": observable, "control": control}
    return [cell(dataset, f"control_{name}", **at) for name in ("pearson", "low", "high")]


def _draw_marks(
    axes: Axes, x: np.ndarray, rows: list[list[float]], look: Look, label: str, size: float
) -> None:
    """|r| with the interval of r folded at zero; ``rows`` holds (r, low, high)."""
    r, low, high = np.asarray(rows, dtype=float).T
    near, far = np.sort(np.abs([low, high]), axis=0)
    near = np.where(low * high < 0, 0.0, near)
    lengths = np.nan_to_num(np.clip([np.abs(r) - near, far - np.abs(r)], 0, None))
    axes.errorbar(
        x,
        np.abs(r),
        yerr=lengths,
        linestyle="none",
        color=look[0],
        marker=look[1],
        markersize=size,
        elinewidth=1.4,
        capsize=2,
        label=label,
    )
