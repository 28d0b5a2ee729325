"""What attribution found: does it agree with ablation, which features move what, and what drives the best ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr

from .moments import when
from .numbers import NOTHING, number, with_error
from .records import Kind, Section, Table, Verdict
from .values import attribute, cell, grid, index, labels, plain, series

WELL = 0.8  # of a correlation of attribution with ablation; 0.81 in Templeton et al. 2024
SHOWN_EDGES = 3  # into each target
TRUSTED = 2.0  # standard errors of a slope

ATLAS = {
    "feature": "the one with the largest |slope| / sqrt(metric) among those with a slope beyond two standard errors",
    "leverage": "its slope / sqrt(metric); no state reaches more than twice the standard deviation of the local estimator",
    "slope": "d<O> / d scale at scale 1",
    "metric": "the infidelity grows as metric (scale - 1)^2 at first",
    "energy force": "dE / d scale, in J: 0 in a converged state",
    "of the best by |r|": "leverage of the feature with the largest |r|, which the other stages look at",
}
AGREEMENT = {
    "zero, mean, resample": "what the activations of an ablated feature are replaced by; other samples' for resample",
    "gradient": "one backward pass for all features",
    "integrated": "gradients averaged over the path on which all features go together from their means to their values",
    "activation": "activation x length of the decoder row: what attribution has to beat",
    "log abs psi, phase, local energy": "over all pairs of a sample and a feature, without a constant",
    "mean ...": "expectation values, over the features. Near an eigenstate that of the energy is of second order: no gradient "
    "predicts it",
}
EDGES = {
    "weight": "source activation x d (target activation) / d (source activation), mean over samples",
    "by ablation": "target activation lost when the source is set to zero",
}


def attribution_section(dataset: xr.Dataset, features: xr.Dataset) -> Section | None:
    """Verdicts and tables of attribution.nc; ``features`` names the features with the largest |r|."""
    tables = [_agreement_table(dataset), _atlas_table(dataset, features), _edge_table(dataset)]
    shown = [table for table in tables if table.rows]
    if not shown:
        return None
    verdicts = [verdict for layer in labels(dataset, "layer") for verdict in _verdicts(dataset, layer)]
    return Section("Attribution", verdicts, shown, ("atlas", "attribution"))


def _verdicts(dataset: xr.Dataset, layer: Any) -> list[Verdict]:
    """How gradients agree with ablation to zero, sample by sample, beside the bare activation."""
    at = {"layer": layer, "ablation": "zero", "quantity": "log_abs_psi"}
    r = {name: cell(dataset, "agreement", **at, predictor=name) for name in labels(dataset, "predictor")}
    gradient, activation = r.get("gradient", math.nan), r.get("activation", math.nan)
    if math.isnan(gradient):
        return []
    kind: Kind = "good" if gradient >= WELL and gradient > activation else "open"
    kind = "bad" if gradient <= activation else kind
    count = int((grid(dataset, "ablated_feature", "layer", "ablated") >= 0).sum(axis=1).max(initial=0))
    text = f"{layer}{when(dataset, ', ')}: the effect on log|psi| that gradients predict, against ablation to zero of up to "
    text += f"{count} features: r = {number(gradient, 3)} (the bare activation: {number(activation, 2)})"
    return [Verdict(kind, f"{text}.")]


def _agreement_table(dataset: xr.Dataset) -> Table:
    quantities, rows = labels(dataset, "quantity"), []
    for layer in labels(dataset, "layer"):
        for ablation in labels(dataset, "ablation"):
            for predictor in labels(dataset, "predictor"):
                at = {"layer": layer, "ablation": ablation, "predictor": predictor}
                cells = [_correlations(dataset, {**at, "quantity": quantity}) for quantity in quantities]
                if any(text != NOTHING for text in cells):
                    rows.append((str(layer), f"{ablation}, {predictor}", *cells))
    columns = ("layer", "ablation, predictor", *map(plain, quantities))
    title = f"Attribution against ablation{when(dataset, ' at ')}, r (rank correlation)"
    return Table(title, columns, rows, 1, AGREEMENT)


def _correlations(dataset: xr.Dataset, at: dict[str, Any]) -> str:
    r, rank = (cell(dataset, name, **at) for name in ("agreement", "rank_agreement"))
    return NOTHING if math.isnan(r) else f"{r:.2f} ({rank:.2f})"


def _atlas_table(dataset: xr.Dataset, features: xr.Dataset) -> Table:
    rows = []
    for layer in labels(dataset, "layer"):
        for observable in labels(dataset, "observable"):
            at = {"layer": layer, "observable": observable}
            feature = furthest(dataset, at)
            if feature is None:
                continue
            best = index(cell(features, "best_feature", **at))
            here = {"layer": layer, "feature": feature}
            row = (
                str(layer),
                str(observable),
                str(feature),
                number(cell(dataset, "leverage", **at, feature=feature), 3),
                with_error(*(cell(dataset, f"slope{e}", **at, feature=feature) for e in ("", "_error"))),
                with_error(*(cell(dataset, f"metric{e}", **here) for e in ("", "_error"))),
                with_error(*(cell(dataset, f"energy_force{e}", **here) for e in ("", "_error"))),
                number(cell(dataset, "leverage", **at, feature=best), 3),
            )
            rows.append(row)
    samples = attribute(dataset, "samples")
    of = "" if math.isnan(samples) else f" ({samples:.0f} samples)"
    title = f"Atlas{when(dataset, ' at ')}: the feature that moves each observable furthest{of}"
    return Table(title, ("layer", "observable", *ATLAS), rows, 1, ATLAS)


def furthest(dataset: xr.Dataset, at: dict[str, Any]) -> Any | None:
    """The feature with the largest |leverage| whose slope is beyond its error; None where there is none."""
    leverage, slope, error = (
        series(dataset, name, "feature", **at) for name in ("leverage", "slope", "slope_error")
    )
    with np.errstate(invalid="ignore"):
        size = np.where(np.abs(slope) > TRUSTED * error, np.abs(leverage), np.nan)
    if not np.isfinite(size).any():
        return None
    return labels(dataset, "feature")[int(np.nanargmax(np.where(np.isfinite(size), size, np.nan)))]


def _edge_table(dataset: xr.Dataset) -> Table:
    """The strongest edges into every target."""
    rows: list[tuple[str, ...]] = []
    seen: dict[str, int] = {}
    for edge in labels(dataset, "edge"):
        source, target = (index(cell(dataset, f"{end}_feature", edge=edge)) for end in ("source", "target"))
        if source < 0 or target < 0:
            continue
        layer, before, observable = (
            _text(dataset, name, edge) for name in ("target_layer", "source_layer", "target_observable")
        )
        heading = f"{layer}, feature {target} ({observable})"
        seen[heading] = seen.get(heading, 0) + 1
        if seen[heading] > SHOWN_EDGES:
            continue
        weight, effect = (
            with_error(cell(dataset, name, edge=edge), cell(dataset, f"{name}_error", edge=edge))
            for name in ("weight", "edge_effect")
        )
        rows.append((heading, f"{before}, feature {source}", weight, effect))
    return Table("Edges between layers", ("target", "source", *EDGES), rows, 1, EDGES)


def _text(dataset: xr.Dataset, name: str, edge: Any) -> str:
    try:
        return str(dataset[name].sel(edge=edge).item())
    except (KeyError, ValueError):
        return NOTHING
