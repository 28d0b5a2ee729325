"""Values of a dataset that may be absent: a missing variable, label or attribute is NaN, never an exception.

A report is also made of runs that are not finished, and of files written by other versions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

# where two estimators of a steered expectation disagree, the fresh samples are right
MOST_TRUSTED_FIRST = ("exact", "mbar", "resampled", "reweighted")


def attribute(dataset: xr.Dataset, name: str) -> float:
    """A numeric attribute, NaN when it is missing or not a number."""
    try:
        return float(dataset.attrs[name])
    except (KeyError, TypeError, ValueError):
        return math.nan


def cell(dataset: xr.Dataset, name: str, **labels: Any) -> float:
    """One number of a variable at some labels, NaN when the variable or a label is missing."""
    try:
        value = _at(dataset, name, labels)
        return float(value) if value.ndim == 0 else math.nan
    except (KeyError, TypeError, ValueError):
        return math.nan


def _at(dataset: xr.Dataset, name: str, at: Mapping[str, Any]) -> np.ndarray:
    """Values of a variable at some labels: what ``sel`` finds, in a hundredth of the time. Raises KeyError."""
    variable = dataset.variables[name]
    if not set(at) <= set(variable.dims):
        raise KeyError(f"{name} has no {', '.join(set(at) - set(variable.dims))}")
    places = [_place(dataset, str(dim), at[str(dim)]) if dim in at else slice(None) for dim in variable.dims]
    return np.asarray(variable.values[tuple(places)])


def _place(dataset: xr.Dataset, dimension: str, label: Any) -> int:
    """The one position of a label. Raises KeyError."""
    known = labels(dataset, dimension)
    if known.count(label) != 1:
        raise KeyError(label)
    return known.index(label)


def labels(dataset: xr.Dataset, dimension: str) -> list[Any]:
    """Labels of a dimension, its positions when it has none, nothing when it is absent."""
    if dimension in dataset.variables:
        return dataset.variables[dimension].values.tolist() if dimension in dataset.dims else []
    return list(range(dataset.sizes.get(dimension, 0)))


def series(dataset: xr.Dataset, name: str, dim: str, **at: Any) -> np.ndarray:
    """A variable along ``dim`` at some labels, float64 (size of dim,); NaN when it or a label is missing."""
    nothing = np.full(dataset.sizes.get(dim, 0), np.nan)
    try:
        found = np.asarray(_at(dataset, name, at), dtype=float)
    except (KeyError, TypeError, ValueError):
        return nothing
    return found if found.shape == nothing.shape else nothing


def grid(dataset: xr.Dataset, name: str, *dims: str) -> np.ndarray:
    """A variable over ``dims`` in this order, float64; NaN when it is missing or has other dimensions."""
    if name not in dataset or set(dataset[name].dims) != set(dims):
        return np.full([dataset.sizes.get(dim, 0) for dim in dims], np.nan)
    return np.asarray(dataset[name].transpose(*dims), dtype=float)


def axis(dataset: xr.Dataset, dim: str) -> np.ndarray:
    """Labels of a dimension as numbers."""
    return np.asarray(labels(dataset, dim), dtype=float)


def finite(values: xr.DataArray | np.ndarray | None) -> np.ndarray:
    """The finite numbers of a variable as a flat array."""
    array = np.asarray([] if values is None else values, dtype=float).ravel()
    return array[np.isfinite(array)]


def several(dataset: xr.Dataset, name: str, **labels: Any) -> np.ndarray:
    """The finite numbers of a variable at some labels, at all times; none when the variable or a label is missing."""
    try:
        return finite(_at(dataset, name, labels))
    except (KeyError, TypeError, ValueError):
        return np.empty(0)


def most_trusted(dataset: xr.Dataset, at: Mapping[str, Any], name: str) -> str | None:
    """The most trustworthy estimator for which ``name`` holds a finite number at these labels, or None."""
    return next((e for e in MOST_TRUSTED_FIRST if several(dataset, name, **at, estimator=e).size), None)


def energy_budget(dataset: xr.Dataset) -> float:
    """The budget of |dE/E| that the reach refers to (NaN when the file does not say)."""
    return attribute(dataset, "energy_budget")


def plain(name: Any) -> str:
    """A label in words."""
    return str(name).replace("_", " ")


def index(value: float) -> int:
    """The number of a feature, -1 when there is none."""
    return -1 if math.isnan(value) else int(value)
