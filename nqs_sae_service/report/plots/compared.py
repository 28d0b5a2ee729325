"""States of one Hamiltonian side by side: energies and observables of the points, and the features that tell two apart."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..alarm import most_alarming
from ..values import grid, labels, plain
from .style import BLUE, CONTROLS, FEATURE, bars, columns_of

MOST_OBSERVABLES = 6


def comparison_figure(found: xr.Dataset | None) -> Figure | None:
    """A panel for the energy, one per observable (those that differ first), and the shifts of features; None without data."""
    if found is None or "verdict" not in found or not np.isfinite(grid(found, "energy", "point")).any():
        return None
    shown, shifts = _observables(found), _shifts(found)
    count = 1 + len(shown) + (shifts is not None)
    columns = columns_of(count)
    rows = -(-count // columns)
    width = max(2.8, 0.75 * found.sizes["point"])
    figure = Figure(figsize=(max(6.0, width * columns), 0.6 + 3.0 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).ravel())
    energy = grid(found, "energy", "point")
    _points(panels[0], found, energy, grid(found, "energy_error", "point"), "energy [J]")
    for axes, name in zip(panels[1:], shown, strict=False):
        at = found.sel(observable=name)
        _points(
            axes,
            found,
            grid(at, "observable_mean", "point"),
            grid(at, "observable_error", "point"),
            plain(name),
        )
    if shifts is not None:
        _draw_shifts(panels[count - 1], *shifts)
    for axes in panels[count:]:
        axes.remove()
    return figure


def _observables(found: xr.Dataset) -> list[object]:
    """The observables that differ in most pairs first."""
    differing = np.asarray(found["differs"].transpose("observable", "pair"), dtype=float).sum(axis=1)
    names = labels(found, "observable")
    return [names[i] for i in np.argsort(-differing, kind="stable")][:MOST_OBSERVABLES]


def _points(axes: Axes, found: xr.Dataset, values: np.ndarray, errors: np.ndarray, quantity: str) -> None:
    colour, marker = FEATURE
    x = np.arange(len(values))
    axes.errorbar(x, values, yerr=bars(errors), color=colour, marker=marker, linestyle="none", capsize=2)
    axes.set_xticks(x, [str(point).replace(", ", "\n") for point in labels(found, "point")], fontsize=6)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_title(quantity)


def _shifts(found: xr.Dataset) -> tuple[str, list[tuple[str, np.ndarray]]] | None:
    """Title, and the shifts of the features of either dictionary in the most alarming pair, last layer, largest first."""
    place = most_alarming(found)
    if place is None or not labels(found, "layer"):
        return None
    last = found.isel(pair=place, layer=-1)
    shifts = grid(last, "feature_shift", "side", "feature")
    if not np.isfinite(shifts).any():
        return None
    names = [str(last[name].values) for name in ("first", "second")]
    ordered = [np.sort(np.abs(row[np.isfinite(row)]))[::-1] for row in shifts]
    return f"features at {last['layer'].item()}", list(zip(names, ordered, strict=True))


def _draw_shifts(axes: Axes, title: str, curves: list[tuple[str, np.ndarray]]) -> None:
    for (name, shifts), (colour, marker) in zip(curves, ((BLUE, "o"), CONTROLS[0]), strict=True):
        axes.plot(
            np.arange(len(shifts)), shifts, color=colour, marker=marker, markersize=3, label=f"of {name}"
        )
    axes.set_title(title)
    axes.set_xlabel("feature, sorted")
    axes.set_ylabel("|shift| [std. deviations]")
    axes.legend(fontsize=7)
