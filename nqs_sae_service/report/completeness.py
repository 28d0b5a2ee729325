"""Which products of spins around a token have a feature, and what decides it: sentences and tables of completeness.nc."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from .numbers import NOTHING, number, with_error
from .records import Section, Table, Verdict
from .values import attribute, cell, grid, labels

TITLE = "Completeness"
SHARES = {
    "dictionary": "share of the products of so many spins with a feature: its |r| over tokens of the test chains reaches the "
    "threshold, chosen on the select chains",
    "neuron": "the same for single components of the layer",
    "untrained": "the same for dictionaries of untrained networks",
}
SIGMOID = {
    "frequency": "share of tokens on which a product has its rarer sign",
    "weight": "|r| of the product, averaged over tokens, with log|psi|",
    "slope": "of the logistic function in the logarithm of the predictor; a dash where all or none have a feature",
    "half": "predictor at which half of the products have one",
}


def completeness_section(dataset: xr.Dataset) -> Section | None:
    """Verdicts and tables of completeness.nc; None where there is none."""
    if not labels(dataset, "string") or "share" not in dataset:
        return None
    return Section(TITLE, _verdicts(dataset), [_shares(dataset), _sigmoids(dataset)], ("completeness",))


def _verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """One sentence for each layer: does the dictionary have more than its controls?"""
    verdicts, threshold = [], attribute(dataset, "threshold")
    r = np.abs(grid(dataset, "pearson", "layer", "source", "string"))
    sources = [str(source) for source in labels(dataset, "source")]
    for layer, values in zip(labels(dataset, "layer"), r, strict=True):
        count = values.shape[-1]
        has = (values >= threshold).sum(axis=-1)
        own, others = int(has[0]), dict(zip(sources[1:], has[1:].tolist(), strict=True))
        text = f"{layer}: {own} of {count} products of spins around a token have a feature (|r| >= {threshold:g})"
        if not others:
            verdicts.append(Verdict("note", f"{text}."))
            continue
        name, most = max(others.items(), key=lambda item: item[1])
        text += f"; the best control, {name}, has {most}"
        verdicts.append(Verdict("good" if own > most else "bad", f"{text}."))
    return verdicts


def _shares(dataset: xr.Dataset) -> Table:
    sources, rows = labels(dataset, "source"), []
    for layer in labels(dataset, "layer"):
        for spins in labels(dataset, "spins"):
            shares = (cell(dataset, "share", layer=layer, source=s, spins=spins) for s in sources)
            told = (NOTHING if math.isnan(share) else f"{share:.1%}" for share in shares)
            rows.append((str(layer), str(spins), *told))
    columns = ("layer", "spins", *map(str, sources))
    return Table("Products of spins with a feature", columns, rows, group=1, definitions=SHARES)


def _sigmoids(dataset: xr.Dataset) -> Table:
    rows = []
    for layer in labels(dataset, "layer"):
        for predictor in labels(dataset, "predictor"):
            at = {"layer": layer, "predictor": predictor}
            slope, error = (cell(dataset, name, **at) for name in ("slope", "slope_error"))
            half = number(cell(dataset, "half", **at), 3)
            told = NOTHING if math.isnan(slope) else with_error(slope, error)
            rows.append((str(layer), str(predictor), told, half))
    columns = ("layer", "predictor", "slope", "half")
    return Table("What decides whether a product has a feature", columns, rows, group=1, definitions=SIGMOID)
