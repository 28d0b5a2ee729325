"""Writing and reading one stage file: NetCDF-4, everything in the root group, readable with ``xarray.open_dataset``.

``write_stage`` adds to the dataset where it comes from (root attributes) and writes it in one atomic step; variables too large
for the memory come in pieces. ``read_stage``
differs from plain xarray in one thing only: pairs ``x_re``, ``x_im`` come back as one complex variable ``x``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import Stopped, UserError
from . import schema
from .files import refusal, replace_atomically, require_space
from .provenance import code_version, machine

_OVERHEAD = 1 << 18  # bytes of a file that are no data: attributes, indices

VOLATILE = (
    "start",
    "end",
    "host",
    "device",
    "versions",
    "ranks",
    "threads",
    "package_version",
    "git_commit",
    "git_dirty",
)


@dataclass(frozen=True)
class Origin:
    """What a stage's dataset was made from: the hashed part of the spec, and how and when it was computed.

    ``sections`` is the JSON text of the hashed sections; ``start`` and ``end`` are ISO 8601 times in UTC;
    ``gpu`` names the device if one computed.
    """

    stage: str
    key: str
    version: int
    sections: str
    seed: int
    threads: int
    start: str
    end: str
    ranks: int = 1
    gpu: str = ""


# Name of a variable, the part of it, the values.
Piece = tuple[str, tuple[int | slice, ...], np.ndarray]


@dataclass(frozen=True)
class Streamed:
    """A dataset with variables that are never held whole.

    ``dataset`` has all coordinates and the small variables; ``large`` maps names declared in the schema to (shape, type); a
    shape may have a leading time more than declared.
    Writing takes the ``pieces``, of large and small variables, one after the other: what they compute happens then.
    """

    dataset: xr.Dataset
    large: Mapping[str, tuple[tuple[int, ...], type]]
    pieces: Iterable[Piece]


def write_stage(dataset: xr.Dataset | Streamed, path: Path, origin: Origin) -> None:
    """Write a stage's dataset to ``path``, read-only, in one atomic step. Raises UserError where the disk refuses."""
    streamed = dataset if isinstance(dataset, Streamed) else Streamed(dataset, {}, ())
    dataset = streamed.dataset
    complete = dataset.copy(deep=False)
    complete.attrs = _root_attributes(dataset, origin)
    encodings = {
        name: schema.encoding(origin.stage, str(name), complete[name]) for name in complete.variables
    }

    size = dataset.nbytes + sum(math.prod(s) * np.dtype(kind).itemsize for s, kind in streamed.large.values())

    def write(temporary: Path) -> None:
        # HDF5 never lets go of a file that it could not write to the end: better not to begin
        require_space(path.parent, size + _OVERHEAD)
        try:
            complete.to_netcdf(
                temporary, format="NETCDF4", engine="netcdf4", encoding=encodings, unlimited_dims=()
            )
            if streamed.large:
                _write_pieces(temporary, origin.stage, streamed)
        except (UserError, Stopped):  # raised by what computes the pieces
            raise
        except Exception as problem:  # netCDF calls a full disk a RuntimeError, or no permission, or worse
            if refused := refusal(temporary):
                raise refused from problem
            raise

    try:
        replace_atomically(path, write, mode=0o444)
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror or problem})") from problem
    except RuntimeError as problem:
        raise UserError(f"{path}: cannot be written ({problem}); is the disk full?") from problem


def _write_pieces(path: Path, stage: str, streamed: Streamed) -> None:
    import netCDF4

    with netCDF4.Dataset(path, "a") as file:
        for name, (shape, kind) in streamed.large.items():
            declared = schema.declaration(stage, name)
            dims = declared.over(len(shape))
            for dimension, size in zip(dims, shape, strict=True):
                if dimension not in file.dimensions:
                    file.createDimension(dimension, size)
            variable: Any = file.createVariable(name, kind, dims, fill_value=False, contiguous=True)
            variable.setncatts({"long_name": declared.long_name, "units": declared.units})
        for name, part, values in streamed.pieces:
            file.variables[name][part] = values


def read_stage(path: str | Path) -> xr.Dataset:
    """Open a stage file lazily, complex variables joined. Raises UserError when it is missing or not NetCDF."""
    dataset = open_plainly(path)
    joined = join_complex(dataset)
    if joined is not dataset:
        joined.set_close(dataset.close)
    return joined


def open_plainly(path: str | Path) -> xr.Dataset:
    """A NetCDF file opened lazily, as it is stored. Raises UserError when it is missing or not NetCDF."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file")
    if not Path(path).is_file():
        raise UserError(f"{path}: not a file")
    try:
        return xr.open_dataset(path, engine="netcdf4", decode_times=False)
    except Exception as problem:  # there is hardly an exception that a damaged file does not bring about
        raise UserError(f"{path}: not a readable NetCDF file ({problem})") from problem


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Root attributes of a stage file; empty when it is missing or not readable."""
    try:
        with open_plainly(path) as dataset:
            return dict(dataset.attrs)
    except UserError:
        return {}


def join_complex(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with every pair ``x_re``, ``x_im`` replaced by the complex variable ``x``."""
    names = [str(name) for name in dataset.data_vars]
    for base in [name[:-3] for name in names if name.endswith("_re") and f"{name[:-3]}_im" in names]:
        real, imaginary = dataset[f"{base}_re"], dataset[f"{base}_im"]
        attributes = real.attrs | {
            "long_name": str(real.attrs.get("long_name", base)).removesuffix(", real part")
        }
        joined = (real + 1j * imaginary).assign_attrs(attributes)
        dataset = dataset.drop_vars([f"{base}_re", f"{base}_im"]).assign({base: joined})
    return dataset


def _root_attributes(dataset: xr.Dataset, origin: Origin) -> dict[str, Any]:
    own = {str(name): _storable(value) for name, value in dataset.attrs.items() if value is not None}
    volatile = [*VOLATILE, *schema.volatile_variables(origin.stage, dataset)]
    if "volatile" in own:
        volatile += str(own["volatile"]).split()
    standard: Mapping[str, Any] = {
        "schema_version": schema.VERSION,
        "stage": origin.stage,
        "stage_version": origin.version,
        "key": origin.key,
        "sections": origin.sections,
        "seed": origin.seed,
        "ranks": origin.ranks,
        "threads": origin.threads,
        "start": origin.start,
        "end": origin.end,
        "conventions": schema.CONVENTIONS,
        "volatile": " ".join(dict.fromkeys(volatile)),
    }
    return own | dict(standard) | code_version() | machine(origin.gpu)


def _storable(value: Any) -> Any:
    """A NetCDF attribute value: truth values become 0 and 1, records become JSON."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    return json.dumps(value) if isinstance(value, dict) else value
