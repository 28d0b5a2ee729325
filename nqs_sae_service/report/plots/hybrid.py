"""Energy, V-score and time of a step against the share of full attention heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..hybrid import Network
from .style import CONTROLS, FEATURE, plain


def hybrid_figure(found: Sequence[Network]) -> Figure | None:
    """A marker for every choice of heads, with standard errors over seeds; None without networks to compare."""
    if not found:
        return None
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    looks = iter(CONTROLS * len(found))
    for network in found:
        colour, marker = FEATURE if network.attention == "ranked" else next(looks)
        energy, error = network.energy
        scores = network.scores
        spread = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0.0
        values = ((energy, error), (float(scores.mean()), spread), (network.seconds, 0.0))
        for axes, (value, bar) in zip(panels, values, strict=True):
            if np.isfinite(value):
                bars = bar if np.isfinite(bar) else None
                axes.errorbar(
                    network.full,
                    value,
                    bars,
                    color=colour,
                    marker=marker,
                    linestyle="",
                    label=plain(network.attention),
                )
    for axes, label in zip(panels, ("energy (J)", "V-score", "seconds per step"), strict=True):
        axes.set(xlabel="share of full heads", ylabel=label, xlim=(-0.05, 1.05))
    if panels[0].get_legend_handles_labels()[0]:
        panels[0].legend(loc="best")
    return figure
