"""Writing and reading one stage file: NetCDF-4, everything in the root group, readable with ``xarray.open_dataset``.

``write_stage`` adds to the dataset where it comes from (root attributes) and writes it in one atomic step. ``read_stage``
differs from plain xarray in one thing only: pairs ``x_re``, ``x_im`` come back as one complex variable ``x``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import UserError
from . import schema
from .files import replace_atomically
from .provenance import code_version, machine

VOLATILE = (
    "start",
    "end",
    "host",
    "device",
    "versions",
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


def write_stage(dataset: xr.Dataset, path: Path, origin: Origin) -> None:
    """Write a stage's dataset to ``path``, read-only, in one atomic step. Raises UserError where the disk refuses."""
    complete = dataset.copy(deep=False)
    complete.attrs = _root_attributes(dataset, origin)
    encodings = {
        name: schema.encoding(origin.stage, str(name), complete[name]) for name in complete.variables
    }
    try:
        replace_atomically(
            path,
            lambda temporary: complete.to_netcdf(
                temporary, format="NETCDF4", engine="netcdf4", encoding=encodings, unlimited_dims=()
            ),
            mode=0o444,
        )
    except (OSError, RuntimeError) as problem:  # netCDF reports a full disk as RuntimeError
        raise UserError(f"{path}: cannot be written ({problem}); is the disk full?") from problem


def read_stage(path: str | Path) -> xr.Dataset:
    """Open a stage file lazily, complex variables joined. Raises UserError when it is missing or not NetCDF."""
    try:
        dataset = xr.open_dataset(path, engine="netcdf4")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, RuntimeError) as problem:
        raise UserError(f"{path}: not a readable NetCDF file ({problem})") from problem
    joined = join_complex(dataset)
    if joined is not dataset:
        joined.set_close(dataset.close)
    return joined


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Root attributes of a stage file; empty when it is missing or not readable."""
    try:
        with xr.open_dataset(path, engine="netcdf4") as dataset:
            return dict(dataset.attrs)
    except (OSError, ValueError, RuntimeError):
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
