"""Unexplained variance of dictionaries against the operations of their training, one line per size, with the frontier."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..scaling import has_laws
from ..values import grid, labels, plain
from .style import BLUE, band, columns_of, log_axis

MOST_PANELS = 8


def scaling_figure(found: xr.Dataset | None) -> Figure | None:
    """A panel for every group and layer; None without laws."""
    if found is None or "unexplained" not in found or not has_laws(found):
        return None
    places = [(group, layer) for group in labels(found, "group") for layer in labels(found, "layer")]
    places = places[:MOST_PANELS]
    columns = columns_of(len(places))
    rows = -(-len(places) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.4 + 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    sizes = labels(found, "features")
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(sizes)))
    for axes, (group, layer) in zip(panels, places, strict=False):
        at = found.sel(group=group, layer=layer)
        # the best learning rate of every size and number of steps, mean over seeds
        loss = grid(at, "unexplained", "features", "steps", "learning_rate", "sae_seed").mean(axis=-1)
        best = np.where(
            np.isnan(loss).all(axis=-1), np.nan, np.nanmin(np.nan_to_num(loss, nan=np.inf), axis=-1)
        )
        for size, compute, curve, colour in zip(
            sizes, grid(at, "compute", "features", "steps"), best, colours, strict=True
        ):
            axes.plot(compute, curve, "-o", color=colour, markersize=3, label=str(size))
        frontier = grid(at, "budget_compute", "budget"), grid(at, "optimal_loss", "budget")
        axes.plot(*frontier, "--", color=BLUE, label="best")
        low, high = (grid(at, f"optimal_loss_{end}", "budget") for end in ("low", "high"))
        band(axes, frontier[0], low, high, BLUE)
        axes.set(xscale="log", xlabel="operations", ylabel="unexplained share")
        log_axis(axes)
        title = str(layer) if found.sizes["group"] == 1 else f"{group}, {layer}"
        axes.set_title(plain(title))
    for axes in panels[len(places) :]:
        axes.axis("off")
    panels[0].legend(title="features", ncols=2)
    return figure
