"""On which configurations are the best features most active? Small pictures of the spins, the most active above."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from ..moments import when
from ..numbers import number
from ..values import cell, index, labels, plain
from .style import ORANGE, SKY, wrapped

MOST_OBSERVABLES, COLUMNS = 6, 4
NEEDED = ("top_configuration", "top_token", "top_value", "site_position", "site_token")
UP, DOWN, MARK = ORANGE, SKY, "#222222"
_HALF = 0.44  # of the side of a square, in lattice constants
_SQUARE = _HALF * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def configurations_figure(dataset: xr.Dataset) -> Figure | None:
    """A row of panels per layer, a panel per observable; up spins orange, down spins blue, the token that fires framed."""
    layers, observables = labels(dataset, "layer"), labels(dataset, "observable")[:MOST_OBSERVABLES]
    if any(name not in dataset for name in NEEDED) or not np.any(dataset["top_configuration"]):
        return None
    placed = np.isfinite(dataset["site_position"].values).all(axis=-1)
    if not placed.any():
        return None
    dataset = dataset.isel(spin=placed)
    places = _places(dataset)
    width, height = np.ptp(places, axis=(0, 1)) + 1
    panel = 2.3 * min(1.2, max(0.45, height / width))
    figure = Figure(
        figsize=(max(6.5, 0.4 + 3.1 * len(observables)), 0.6 + (0.7 + panel) * len(layers)),
        layout="constrained",
    )
    panels = figure.subplots(len(layers), len(observables), squeeze=False)
    for row, layer in zip(panels, layers, strict=True):
        for axes, observable in zip(row, observables, strict=True):
            at = {"layer": layer, "observable": observable}
            _draw(axes, dataset.sel(at), places)
            feature = index(cell(dataset, "best_feature", **at))
            axes.set_title(f"{plain(layer)}, feature {feature}\n{wrapped(observable, 24)}", fontsize=9)
    if time := when(dataset):
        figure.suptitle(time)
    return figure


def _places(dataset: xr.Dataset) -> np.ndarray:
    """Where sites are drawn (example, spin, 2): strips below each other, planes in rows of four with a gap for a number."""
    position = np.asarray(dataset["site_position"], float)
    strips = position.shape[1] == 1
    xy = np.column_stack([position, np.zeros(len(position))]) if strips else position[:, :2]
    columns = 1 if strips else COLUMNS
    count = np.arange(dataset.sizes["example"])
    steps = np.stack([count % columns, -(count // columns)], axis=1)
    return xy + (steps * (np.ptp(xy, axis=0) + ([1, 1.6] if strips else [2, 3])))[:, None]


def _draw(axes: Axes, here: xr.Dataset, places: np.ndarray) -> None:
    """All examples of one feature, each with the value of the observable."""
    sigma, token = np.asarray(here["top_configuration"]), np.asarray(here["top_token"])[:, None]
    for these, colour in ((sigma > 0, UP), (sigma < 0, DOWN)):
        _squares(axes, places[these], facecolors=colour, rasterized=True)
    fires = (np.asarray(here["site_token"]) == token) & (token >= 0) & (sigma != 0)
    _squares(axes, places[fires], facecolors="none", edgecolors=MARK, linewidths=1.1)
    strips = here["site_position"].shape[1] == 1
    for sites, value in zip(places, np.asarray(here["top_value"], float), strict=True):
        (left, bottom), middle = sites.min(axis=0), sites.mean(axis=0)
        if np.isfinite(value) and strips:
            axes.text(left - 1, middle[1], number(value, 3), fontsize=7, ha="right", va="center")
        elif np.isfinite(value):
            axes.text(middle[0], bottom - 0.8, number(value, 3), fontsize=7, ha="center", va="top")
    (left, bottom), (right, top) = places.min(axis=(0, 1)), places.max(axis=(0, 1))
    margin = 0.16 * (right - left) if strips else 0
    axes.set(xlim=(left - 0.8 - margin, right + 0.8), ylim=(bottom - (0.8 if strips else 2.2), top + 0.8))
    axes.set_aspect("equal")
    axes.set_axis_off()


def _squares(axes: Axes, places: np.ndarray, **style: Any) -> None:
    if len(places):
        axes.add_collection(PolyCollection(list(places[:, None] + _SQUARE), **style))
