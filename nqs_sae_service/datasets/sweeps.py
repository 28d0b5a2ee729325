"""Reading a sweep: the tree of one run with the swept parameters as further dimensions.

sweep = open_sweep("results/tfim-40-fields")
sweep["steering"]["reach"].sel({"hamiltonian.h": 0.5})
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ..errors import UserError
from .netcdf import read_stage
from .runs import stage_files, sweep_points

_POINT = "sweep point"


def open_sweep(path: str | Path, stages: Collection[str] | None = None) -> xr.DataTree:
    """The points of a sweep joined along the swept parameters: one node per stage, one dimension per parameter.

    Parameters that were swept together (``[sweep.zip]``) share the dimension of the first; the others are coordinates along
    it. What a point lacks is NaN: points that are not computed, and labels (features, sites) that only other points have. A
    variable whose points differ in the size of a dimension without labels cannot be joined; it is left out, with a warning.
    A stage that is the same file for every point is kept once, without the swept dimensions. ``stages`` (default: all)
    leaves large ones unread. Raises UserError when ``path`` holds no points of a sweep.
    """
    points = {
        point: {name: _label(value) for name, value in coordinates.items()}
        for point, coordinates in sweep_points(Path(path)).items()
    }
    if not points:
        raise UserError(f"{path}: no sweep here (no run directories with swept parameters inside)")
    names = {file.stem for directory in points for file in stage_files(directory)}
    chosen = sorted(names if stages is None else names & set(stages))
    return xr.DataTree.from_dict(
        {stage: _join_stage(stage, points) for stage in chosen}, name=Path(path).name
    )


def _label(value: Any) -> Any:
    """A value that can label a dimension: lists and tables become their JSON text."""
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def _join_stage(stage: str, points: Mapping[Path, dict[str, Any]]) -> xr.Dataset:
    datasets = [read_stage(file) if (file := point / f"{stage}.nc").exists() else None for point in points]
    present = [dataset for dataset in datasets if dataset is not None]
    if len(present) == len(points) and len({dataset.attrs["key"] for dataset in present}) == 1:
        return present[0]
    table = pd.DataFrame(list(points.values()))
    there = table[[dataset is not None for dataset in datasets]]
    return _unfolded(_concatenated(stage, present), there, table)


def _concatenated(stage: str, datasets: list[xr.Dataset]) -> xr.Dataset:
    """All points along one dimension; labelled dimensions are united, variables that cannot be joined left out."""
    sizes: dict[str, set[int]] = {}
    for dataset in datasets:
        for dim, size in dataset.sizes.items():
            sizes.setdefault(str(dim), set()).add(size)
    labelled = {str(dim) for dataset in datasets for dim in dataset.indexes}
    unjoinable = {dim for dim, found in sizes.items() if len(found) > 1 and dim not in labelled}
    dropped = sorted(
        {str(n) for d in datasets for n, v in d.variables.items() if unjoinable & set(map(str, v.dims))}
    )
    if dropped:
        warnings.warn(
            f"{stage}: left out {', '.join(dropped)}: the points differ in the size of {', '.join(sorted(unjoinable))}",
            stacklevel=4,
        )
    padded = sorted(dim for dim, found in sizes.items() if len(found) > 1 and dim in labelled)
    if padded:
        warnings.warn(
            f"{stage}: the points differ in {', '.join(padded)}; missing labels are NaN", stacklevel=4
        )
    kept = [
        dataset.drop_vars([name for name in dropped if name in dataset.variables]) for dataset in datasets
    ]
    how: Any = {"join": "outer", "data_vars": "all", "coords": "minimal", "compat": "override"}
    return xr.concat(kept, dim=_POINT, combine_attrs="drop_conflicts", **how)


def _unfolded(joined: xr.Dataset, there: pd.DataFrame, table: pd.DataFrame) -> xr.Dataset:
    """The point dimension unfolded into one dimension per independent swept parameter.

    ``table`` has a row per point of the sweep and a column per swept parameter; ``there`` holds the rows of the points in
    ``joined``, in its order.
    """
    leader = {name: _leader(table, name) for name in table.columns}
    leaders = [name for name in table.columns if leader[name] == name]
    index = pd.MultiIndex.from_frame(there[leaders])
    unfolded = joined.assign_coords(xr.Coordinates.from_pandas_multiindex(index, _POINT)).unstack(_POINT)
    labels = {name: sorted(table[name].unique().tolist()) for name in leaders}
    if any(len(unfolded[name]) != len(labels[name]) for name in leaders):
        unfolded = unfolded.reindex(labels)
    for name in [name for name in table.columns if leader[name] != name]:
        follows = dict(zip(table[leader[name]], table[name], strict=True))
        along = [follows[label] for label in unfolded[leader[name]].values.tolist()]
        unfolded = unfolded.assign_coords({name: (leader[name], along)})
    return unfolded.transpose(*leaders, ...)


def _leader(table: pd.DataFrame, name: str) -> str:
    """The first parameter that was swept together with ``name``: each value of one belongs to one value of the other."""
    for other in table.columns[: list(table.columns).index(name)]:
        pairs = len(table[[other, name]].drop_duplicates())
        if pairs == table[other].nunique() == table[name].nunique() and pairs > 1:
            return str(other)
    return name
