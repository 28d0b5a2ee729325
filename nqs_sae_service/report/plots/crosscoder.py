"""In which views does a feature live, and how well is every view explained?"""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ...sae.classes import NEITHER
from ..values import grid, labels
from .style import CONTROLS, FEATURE, known, paired

LINES = (
    ("explained_variance", "sae_seed", "crosscoder"),
    ("separate_explained_variance", "sae_seed", "a dictionary of this view alone"),
    ("untrained_explained_variance", "initialisation", "crosscoder of untrained networks"),
)


def crosscoder_figure(dataset: xr.Dataset) -> Figure | None:
    """Relative decoder norms of the live features of the first seed as a heat map; explained variance of every view."""
    views = labels(dataset, "view")
    if not known(dataset, "decoder_norm") or not views:
        return None
    norms = grid(dataset, "decoder_norm", "sae_seed", "view", "feature")[0]
    alive = grid(dataset, "specific_view", "sae_seed", "feature")[0] >= NEITHER
    norms = norms[:, alive & np.isfinite(norms).all(axis=0) & (norms.max(axis=0, initial=0) > 0)]
    figure = Figure(figsize=(9.6, 1.9 + 0.34 * len(views)), layout="constrained")
    heat, explained = figure.subplots(1, 2, width_ratios=(1.6, 1), sharey=True)
    if norms.size:
        relative = norms / norms.max(axis=0)
        order = np.lexsort((relative.min(axis=0), relative.argmax(axis=0)))
        image = heat.imshow(
            relative[:, order], aspect="auto", vmin=0, vmax=1, cmap="viridis", interpolation="nearest"
        )
        figure.colorbar(image, ax=heat, label="of the longest row", location="top", shrink=0.6)
    heat.grid(visible=False)
    heat.set_yticks(range(len(views)), [str(view) for view in views])
    heat.set_xlabel("live features, by the view of their longest decoder row")
    for (name, dim, label), (colour, marker) in paired(LINES, (FEATURE, *CONTROLS)):
        for row, values in enumerate(grid(dataset, name, dim, "view")):
            legend = label if row == 0 else None
            explained.plot(
                values,
                range(len(views)),
                marker,
                color=colour,
                markersize=6,
                linestyle="none",
                alpha=0.7,
                label=legend,
            )
    explained.set_xlabel("explained variance, select split")
    explained.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
