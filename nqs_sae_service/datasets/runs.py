"""Reading one run: a tree with one labelled dataset per stage.

run = open_run("results/tfim-40")
run["ground_state"].attrs["relative_error"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from ..errors import UserError
from .netcdf import read_stage
from .status import read_status


def open_run(path: str | Path) -> xr.DataTree:
    """The stages of a run directory: one node per stage file, opened lazily, complex variables joined.

    Raises UserError when ``path`` is not a run directory.
    """
    directory = Path(path)
    check_run(directory)
    return xr.DataTree.from_dict(
        {file.stem: read_stage(file) for file in stage_files(directory)}, name=directory.name
    )


def check_run(directory: Path) -> None:
    """Raise UserError, saying what is there instead, unless ``directory`` is a run: it has a ``spec.toml``."""
    if (directory / "spec.toml").is_file():
        return
    if not directory.is_dir():
        raise UserError(f"{directory}: {'not a run directory' if directory.exists() else 'no such run'}")
    inside = [point.name for point in sweep_points(directory)]
    hint = f"a sweep, its runs are inside: {', '.join(inside)}" if inside else "no spec.toml inside"
    raise UserError(f"{directory}: not a run directory ({hint})")


def stage_files(directory: Path) -> list[Path]:
    """The stage files of a run directory."""
    return sorted(file for file in directory.glob("[!.]*.nc") if file.is_file())


def sweep_points(directory: Path) -> dict[Path, dict[str, Any]]:
    """The run directories inside the directory of a sweep, with their swept parameters (as ``status.json`` has them)."""
    specs = sorted(spec for spec in directory.glob("*/spec.toml") if spec.is_file())
    found = {spec.parent: dict(read_status(spec.parent).get("coordinates", {})) for spec in specs}
    return {point: coordinates for point, coordinates in found.items() if coordinates}
