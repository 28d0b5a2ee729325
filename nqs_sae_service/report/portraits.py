"""What the best features are like: how other seeds span them, their neighbours, examples, behaviour under symmetries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ..interpret.verdict import SIGNIFICANT
from .moments import when
from .numbers import NOTHING, number
from .records import Section, Table, Verdict
from .values import cell, index, labels, plain, several

SUBSPACES = {
    "angles": "principal angles between the decoder rows of the features that contribute most variance and those of their "
    "partners, matched on activations, in the dictionary of another seed; 0° for one subspace",
    "p": "chance that random vectors with the covariance of the inputs span subspaces as close, by the mean angle",
    "of random vectors": "mean of the same angles between as many isotropic random vectors",
    "of the covariance": "and between as many random vectors with the covariance of the inputs: the control to beat",
}
BEST = {
    "nearest feature": "the other live feature with the largest cosine of the decoder rows; in brackets this cosine and the "
    "correlation of both activations",
    "examples": "median percentile of the observable on the configurations where the feature is most active (figure)",
    "symmetries": "correlation of f(sigma) with f(g sigma); invariant from 0.95, partner where that of another feature with "
    "f(g sigma) is, else neither (with the best partner)",
}
WORDS = {"invariant": "invariant", "partner": "with a partner", "neither": "neither"}


def portraits_section(dataset: xr.Dataset) -> Section | None:
    """Sentences, tables and the figure of examples; None where the file has nothing of that."""
    tables = [table for table in (_subspaces(dataset), _best(dataset)) if table.rows]
    if not tables:
        return None
    layers = labels(dataset, "layer")
    verdicts = [v for layer in layers for v in (_seeds(dataset, layer), _symmetries(dataset, layer)) if v]
    return Section("What the best features are like", verdicts, tables, ("configurations",))


def _degrees(angles: np.ndarray) -> str:
    return ", ".join(f"{angle:.0f}°" for angle in angles) or NOTHING


def _seeds(dataset: xr.Dataset, layer: Any) -> Verdict | None:
    """Whether other seeds find the leading subspace more closely than chance does."""
    found = several(dataset, "subspace_angle", layer=layer)
    chance = several(dataset, "subspace_angle_covariance", layer=layer)
    p = several(dataset, "subspace_p_value", layer=layer)
    if not found.size or not chance.size or not p.size:
        return None
    judged = "closer than chance" if p.max() < SIGNIFICANT else "no closer than chance"
    return Verdict(
        "note",
        f"{layer}{when(dataset, ' at ')}: the {len(chance)} leading features of the first dictionary and their partners with "
        f"other seeds span subspaces {found.mean():.0f}° apart on average, random vectors with the covariance of the inputs "
        f"{chance.mean():.0f}°: {judged} (p = {number(float(p.max()), 2)}).",
    )


def _symmetries(dataset: xr.Dataset, layer: Any) -> Verdict | None:
    """How many of the best features behave how under each symmetry, every feature counted once."""
    if "symmetry_behaviour" not in dataset:
        return None
    here = dataset.sel(layer=layer)
    _, first = np.unique(here["best_feature"].values, return_index=True)
    parts = []
    for symmetry in labels(dataset, "symmetry"):
        words = here["symmetry_behaviour"].sel(symmetry=symmetry).values.astype(str)[np.sort(first)]
        counts = [f"{np.sum(words == word)} {said}" for word, said in WORDS.items() if np.any(words == word)]
        if counts:
            parts.append(f"under {plain(symmetry)} {', '.join(counts)}")
    return (
        Verdict("note", f"{layer}{when(dataset, ' at ')}, best features: {'; '.join(parts)}.")
        if parts
        else None
    )


def _subspaces(dataset: xr.Dataset) -> Table:
    rows = []
    for layer in labels(dataset, "layer"):
        chance = [
            _degrees(several(dataset, f"subspace_angle_{name}", layer=layer))
            for name in ("random", "covariance")
        ]
        for seed in labels(dataset, "sae_seed"):
            angles = several(dataset, "subspace_angle", layer=layer, sae_seed=seed)
            if angles.size:
                p = number(cell(dataset, "subspace_p_value", layer=layer, sae_seed=seed), 2)
                rows.append((str(layer), str(seed), _degrees(angles), p, *chance))
    return Table(
        f"Leading features of the first dictionary and of other seeds{when(dataset, ' at ')}",
        ("layer", "seed", *SUBSPACES),
        rows,
        1,
        SUBSPACES,
    )


def _best(dataset: xr.Dataset) -> Table:
    symmetries = labels(dataset, "symmetry")
    rows = [
        (str(layer), *_row(dataset, {"layer": layer, "observable": observable}, symmetries))
        for layer in labels(dataset, "layer")
        for observable in labels(dataset, "observable")
        if "nearest_feature" in dataset
    ]
    columns = ("layer", "observable", "feature", "nearest feature", "examples", *map(plain, symmetries))
    return Table(f"Best features{when(dataset, ' at ')}", columns, rows, 1, BEST)


def _row(dataset: xr.Dataset, at: Mapping[str, Any], symmetries: list[Any]) -> tuple[str, ...]:
    feature = index(cell(dataset, "best_feature", **at))
    percentiles = several(dataset, "top_percentile", **at)
    return (
        str(at["observable"]),
        NOTHING if feature < 0 else str(feature),
        _nearest(dataset, {"layer": at["layer"], "feature": feature, "neighbour": 0}),
        number(float(np.median(percentiles)), 3) if percentiles.size else NOTHING,
        *(_behaves(dataset, {**at, "symmetry": symmetry}) for symmetry in symmetries),
    )


def _nearest(dataset: xr.Dataset, at: Mapping[str, Any]) -> str:
    other = index(cell(dataset, "nearest_feature", **at))
    if other < 0:
        return NOTHING
    cosine, together = (cell(dataset, f"nearest_{name}", **at) for name in ("cosine", "pearson"))
    return f"{other} ({number(cosine, 2)}, {number(together, 2)})"


def _behaves(dataset: xr.Dataset, at: Mapping[str, Any]) -> str:
    r = cell(dataset, "symmetry_pearson", **at)
    if np.isnan(r):
        return NOTHING
    word = str(dataset["symmetry_behaviour"].sel(at).item())
    partner = index(cell(dataset, "symmetry_partner", **at))
    other = f" ({partner}: {number(cell(dataset, 'symmetry_partner_pearson', **at), 2)})"
    return f"{word} {r:+.2f}{other if word != 'invariant' and partner >= 0 else ''}"
