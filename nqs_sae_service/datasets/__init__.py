"""Labelled NetCDF datasets: the schema, atomic writing, the content store, and the readers of runs and sweeps.

The names below load on first use: files and locks (``datasets.files``) need none of the libraries that data need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .compare import differences, same_data
    from .netcdf import Origin, join_complex, read_attributes, read_stage, write_stage
    from .runs import check_run, open_run
    from .schema import labelled
    from .store import Store
    from .sweeps import open_sweep

_HOME = {
    "Origin": "netcdf",
    "Store": "store",
    "check_run": "runs",
    "differences": "compare",
    "join_complex": "netcdf",
    "labelled": "schema",
    "open_run": "runs",
    "open_sweep": "sweeps",
    "read_attributes": "netcdf",
    "read_stage": "netcdf",
    "same_data": "compare",
    "write_stage": "netcdf",
}

__all__ = [
    "Origin",
    "Store",
    "check_run",
    "differences",
    "join_complex",
    "labelled",
    "open_run",
    "open_sweep",
    "read_attributes",
    "read_stage",
    "same_data",
    "write_stage",
]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
