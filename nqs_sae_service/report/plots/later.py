"""What a turned feature does later: its target while the steered state evolves on."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..moments import moment, shown_times, when
from ..values import axis, labels, plain, series
from .style import legend_above


def later_figure(dataset: xr.Dataset, target: Any) -> Figure | None:
    """A row per steered time, a column per layer, a colour per scale; the original state is black."""
    shown = [found for found in shown_times(dataset) if _known(found, target)]
    layers = labels(dataset, "layer")
    if not shown:
        return None
    figure = Figure(figsize=(max(7.0, 1.0 + 4.0 * len(layers)), 0.9 + 2.6 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), len(layers), sharex=True, sharey="row", squeeze=False)
    for row, found in zip(panels, shown, strict=True):
        for axes, layer in zip(row, layers, strict=True):
            _draw(axes, found, {"layer": layer, "target": target, "observable": target})
            axes.set_title(f"{plain(layer)}{when(found, ', turned at ')}")
        row[0].set_ylabel(plain(target))
    for axes in panels[-1]:
        axes.set_xlabel("time after the quench (1/J)")
    legend_above(figure)
    return figure


def _known(dataset: xr.Dataset, target: Any) -> bool:
    try:
        values = dataset["evolved_mean"].sel(target=target, observable=target)
    except (KeyError, ValueError):
        return False
    return bool(np.isfinite(np.asarray(values, dtype=float)).any())


def _draw(axes: Axes, dataset: xr.Dataset, at: dict[str, Any]) -> None:
    later, scales = axis(dataset, "later"), axis(dataset, "scale")
    furthest = float(np.abs(scales - 1).max()) or 1.0
    colours = mpl.colormaps["coolwarm"]
    for scale in scales:
        values = series(dataset, "evolved_mean", "later", **at, scale=scale)
        if not np.isfinite(values).any():
            continue
        original = scale == 1
        axes.plot(
            later,
            values,
            color="black" if original else colours(0.5 + 0.5 * (scale - 1) / furthest),
            linewidth=1.8 if original else 1.2,
            zorder=3 if original else 2,
            label=f"scale {scale:g}",
        )
    if np.isfinite(moment(dataset)):
        axes.axvline(moment(dataset), color="#666666", linewidth=0.8, linestyle=":")
