"""The share of products of spins that have a feature, against their frequency and their weight, with the sigmoids."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from ..values import attribute, cell, grid, labels, plain
from .style import CONTROLS, FEATURE, paired

BINS = 8
MOST_LAYERS = 4
AXES = {"frequency": "share of tokens with the rarer sign", "weight": "|r| with log|psi|"}


def completeness_figure(dataset: xr.Dataset) -> Figure | None:
    """A row for each layer, a column for each predictor; None without strings."""
    layers, predictors = labels(dataset, "layer")[:MOST_LAYERS], labels(dataset, "predictor")
    if not layers or not predictors or not labels(dataset, "string"):
        return None
    figure = Figure(figsize=(9, 0.4 + 2.8 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), len(predictors), squeeze=False, sharey=True)
    has = np.abs(grid(dataset, "pearson", "layer", "source", "string")) >= attribute(dataset, "threshold")
    for row, layer, of_layer in zip(panels, layers, has, strict=False):
        for axes, predictor in zip(row, predictors, strict=True):
            x = grid(dataset, str(predictor), "string")
            known = np.flatnonzero(x > 0)
            if not known.size:
                axes.axis("off")
                continue
            bins = np.array_split(known[np.argsort(x[known], kind="stable")], min(BINS, len(known)))
            at = [float(x[b].mean()) for b in bins]
            for (source, share), (colour, marker) in zip(
                zip(labels(dataset, "source"), of_layer, strict=True), _looks(len(of_layer)), strict=True
            ):
                heights = [float(share[b].mean()) for b in bins]
                axes.plot(at, heights, marker, color=colour, label=plain(str(source)))
            here = {"layer": layer, "predictor": predictor}
            half, slope = cell(dataset, "half", **here), cell(dataset, "slope", **here)
            curve = np.geomspace(x[known].min(), x[known].max(), 200)
            with np.errstate(over="ignore", invalid="ignore"):
                axes.plot(curve, 1 / (1 + (curve / half) ** -slope), color=FEATURE[0])
            axes.set(xscale="log", title=plain(str(layer)))
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(AXES.get(str(predictor), plain(str(predictor))))
        row[0].set_ylabel("share with a feature")
    panels[0, 0].legend()
    return figure


def _looks(count: int) -> list[tuple[str, str]]:
    """The feature first, then the controls."""
    return [look for _, look in paired(range(count), (FEATURE, *CONTROLS))]
