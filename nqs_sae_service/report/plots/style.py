"""What all figures share: colours, markers, and a few strokes that survive missing numbers.

The colours are those of Okabe and Ito (Color Universal Design, 2008), told apart with every common form of colour
blindness; every control also has its own marker. The feature is always the blue circle.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from ..values import plain

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, OLIVE, GREY, BROWN = "#56B4E9", "#CC79A7", "#A89B00", "#666666", "#5D3A1A"
BLACK, INDIGO, WINE, SAND = "#000000", "#332288", "#882255", "#DDCC77"  # Tol, Colour Schemes (2021)

Look = tuple[str, str]  # colour, marker
FEATURE: Look = (BLUE, "o")
CONTROLS: tuple[Look, ...] = (
    (ORANGE, "s"),
    (GREEN, "^"),
    (RED, "D"),
    (PURPLE, "v"),
    (SKY, "P"),
    (OLIVE, "X"),
    (GREY, "<"),
    (BROWN, ">"),
    (BLACK, "*"),
    (INDIGO, "p"),
    (WINE, "h"),
    (SAND, "d"),
)
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.06,
    "svg.hashsalt": "nqs_sae_service",  # equal figures are equal files
}

T = TypeVar("T")


def paired(items: Sequence[T], looks: Sequence[Look]) -> Iterator[tuple[T, Look]]:
    """Each item with a colour and marker; looks are used again when there are more items."""
    return zip(items, cycle(looks), strict=False)


def known(dataset: xr.Dataset, name: str, **at: Any) -> bool:
    """Whether a variable holds any finite number at some labels."""
    return name in dataset and bool(np.isfinite(np.asarray(dataset[name].sel(at), dtype=float)).any())


def above(values: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Values for a logarithmic axis: what is not above ``floor`` becomes NaN, a gap in the line."""
    return np.where(np.nan_to_num(values) > floor, values, np.nan)


def bars(errors: np.ndarray) -> np.ndarray:
    """Lengths of error bars: an unknown error has no bar."""
    return np.nan_to_num(np.abs(errors), posinf=0.0)


def band(axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """A shaded interval, where it is known and has a width."""
    if (high > low).any():
        axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis with at most six labels; between the decades where it spans less than one."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1, 0.4)))


def columns_of(count: int) -> int:
    """Columns of a grid of so many panels that leaves few places empty."""
    return 2 if count == 4 else min(3, count)


def used(panels: np.ndarray, count: int, x_label: str) -> list[Axes]:
    """The first ``count`` of a grid of panels that share an x axis, named below each column; the others are removed."""
    every = list(panels.ravel())
    for axes in every[count:]:
        axes.remove()
    for axes in every[max(0, count - panels.shape[1]) : count]:
        axes.set_xlabel(x_label)
        axes.tick_params(labelbottom=True)
    return every[:count]


def whole_decades(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic y axis from decade to decade, so that at least two labels can be read."""
    known = values[np.isfinite(values)]
    if not known.size:
        return
    log_axis(axes)
    low, high = np.floor(np.log10(known.min())), np.ceil(np.log10(known.max()))
    axes.set_ylim(10.0 ** (low - 0.05), 10.0 ** (max(high, low + 1) + 0.05))


def wrapped(label: Any, width: int = 14) -> str:
    """A label in words, over several short lines."""
    return "\n".join(textwrap.wrap(plain(label), width, break_long_words=True))


def legend_above(figure: Figure) -> None:
    """One legend for all panels, each label once, in as many columns as the figure is wide."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    entry = 0.45 + 0.085 * max(len(label) for label in handles)  # inches, at the legend's font size
    columns = max(1, min(len(handles), int(figure.get_figwidth() / entry)))
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=columns)
