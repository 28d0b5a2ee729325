"""Scores of all heads as a map, and what is lost when heads are knocked out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..heads import STRONGEST, WEAKEST, random_orders
from ..values import axis, grid, labels, series
from .style import CONTROLS, FEATURE, GREY, band, bars, known

MOST_NUMBERS = 64  # heads whose scores are written into the map
CURVES = {
    "infidelity": "infidelity",
    "energy_change": "energy change, relative",
}


def heads_figure(dataset: xr.Dataset) -> Figure | None:
    """The map of scores, then infidelity and energy against the share of heads that is knocked out; None without scores."""
    if not known(dataset, "mean_score"):
        return None
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(CURVES))
    _draw_map(figure, first, dataset)
    for axes, (name, label) in zip(others, CURVES.items(), strict=True):
        _draw_curves(axes, dataset, name)
        axes.set(xlabel="share of heads knocked out", ylabel=label)
    if others[0].get_legend_handles_labels()[0]:
        others[0].legend(loc="best")
    return figure


def _draw_map(figure: Figure, axes: Axes, dataset: xr.Dataset) -> None:
    score = grid(dataset, "mean_score", "block", "head")
    blocks, heads = labels(dataset, "block"), labels(dataset, "head")
    image = axes.imshow(score, vmin=0, vmax=1, cmap="cividis", aspect="auto", origin="lower")
    figure.colorbar(image, ax=axes, label="score")
    for which, names in ((axes.xaxis, heads), (axes.yaxis, blocks)):
        which.set_major_locator(MaxNLocator(nbins=8, integer=True))
        which.set_major_formatter(FuncFormatter(partial(_label, names)))
    axes.set(xlabel="head", ylabel="block", xlim=(-0.5, len(heads) - 0.5), ylim=(-0.5, len(blocks) - 0.5))
    axes.grid(visible=False)
    if score.size <= MOST_NUMBERS:
        for (row, column), value in np.ndenumerate(score):
            colour = "white" if value < 0.5 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)


def _label(names: list[Any], place: float, _: int | None = None) -> str:
    """The name at a place of the axis, nothing between two of them."""
    inside = 0 <= place < len(names) and place == round(place)
    return str(names[int(place)]) if inside else ""


def _draw_curves(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    """Strongest and weakest first with standard errors where there are any, random orders as mean and standard deviation."""
    count = axis(dataset, "knocked")
    if not count.size or not count[-1] > 0:
        return
    share = count / count[-1]
    random = [series(dataset, name, "knocked", order=order) for order in random_orders(dataset)]
    if len(random) > 1:
        mean, spread = np.mean(random, axis=0), np.std(random, axis=0, ddof=1)
        axes.plot(share, mean, color=GREY, label="random order")
        band(axes, share, mean - spread, mean + spread, GREY)
    for order, (colour, marker) in ((STRONGEST, FEATURE), (WEAKEST, CONTROLS[0])):
        value = series(dataset, name, "knocked", order=order)
        error = bars(series(dataset, f"{name}_error", "knocked", order=order))
        if np.isfinite(value).any():
            axes.errorbar(share, value, error, color=colour, marker=marker, markersize=4, label=order)
