"""Labelled NetCDF datasets: the schema, atomic writing, the content store, and the readers of runs and sweeps."""

from .compare import differences, same_data
from .netcdf import Origin, join_complex, read_attributes, read_stage, write_stage
from .runs import check_run, open_run
from .schema import labelled
from .store import Store
from .sweeps import open_sweep

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
