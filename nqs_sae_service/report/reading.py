"""A run directory as the report sees it: its status, its resolved spec, and the summaries of the stages that are there.

Only summaries are read: variables over chains, parameters or widths (samples, activations, dictionaries) stay
on disk, so a report costs the same for a run of 16 sites and for one of 10,000. Texts lose their control characters here: a
file may come from anywhere, and a terminal obeys them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli
import xarray as xr

from ..datasets.netcdf import open_plainly
from ..datasets.schema import STAGES
from ..datasets.status import read_status
from ..errors import UserError, plain

LEFT_ON_DISK = {"chain", "parameter", "width"}


@dataclass(frozen=True)
class Run:
    """What a run directory holds. ``stages`` maps the name of each finished stage to its summary dataset."""

    directory: Path
    status: Mapping[str, Any]
    spec_text: str
    stages: Mapping[str, xr.Dataset]

    @property
    def name(self) -> str:
        return self.directory.resolve().name

    @property
    def state(self) -> str:
        """The state told by ``status.json``; without that file, what the stage files show.

        A report is drawn by the run itself, as its last act: with every number there it counts as done.
        """
        told = str(self.status.get("state") or ("partial" if self.missing else "done"))
        drawing = told == "running" and (self.status.get("stage") == "report" or not self.missing)
        return "done" if drawing else told

    @property
    def missing(self) -> list[str]:
        asked = {
            "transfer": self.learns,
            "dynamics": self.evolves,
            "attribution": self.attributes,
            "crosscoder": self.crosses,
            "completeness": self.completes,
            "heads": self.looks_at_heads,
        }
        return [stage for stage in STAGES if asked.get(stage, True) and stage not in self.stages]

    @property
    def learns(self) -> bool:
        """Whether the spec names a teacher."""
        return bool(self.section("transfer").get("teacher"))

    @property
    def evolves(self) -> bool:
        """Whether the run follows its state through time, as its spec or its files say."""
        if any("time" in dataset.dims for dataset in self.stages.values()):
            return True
        duration = self.section("dynamics").get("duration")
        return isinstance(duration, (int, float)) and duration > 0

    @property
    def attributes(self) -> bool:
        """Whether the spec asks for an attribution."""
        samples = self.section("attribution").get("samples")
        return isinstance(samples, (int, float)) and samples > 0

    @property
    def crosses(self) -> bool:
        """Whether the spec asks for a crosscoder."""
        return any(self.section("crosscoder").get(views) for views in ("layers", "checkpoints", "runs"))

    @property
    def completes(self) -> bool:
        """Whether the spec asks for completeness."""
        order = self.section("completeness").get("order")
        return isinstance(order, (int, float)) and order > 0

    @property
    def looks_at_heads(self) -> bool:
        """Whether the spec asks which heads matter."""
        samples = self.section("heads").get("samples")
        return isinstance(samples, (int, float)) and samples > 0

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the spec, empty when it is missing or cannot be read."""
        try:
            section = tomli.loads(self.spec_text).get(name)
        except (ValueError, RecursionError):
            return {}
        return section if isinstance(section, dict) else {}


@dataclass(frozen=True)
class Point:
    """One run of a sweep and the values it has of the swept keys."""

    coordinates: Mapping[str, Any]
    run: Run


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep directory, in the order of their coordinates.

    ``comparison`` of those that share a Hamiltonian (``comparison.py``), ``scaling`` of those that differ in the size of their
    dictionaries (``scaling.py``); None where no two do.
    """

    directory: Path
    points: tuple[Point, ...]
    comparison: xr.Dataset | None = None
    scaling: xr.Dataset | None = None

    @property
    def name(self) -> str:
        return self.directory.resolve().name


def read(directory: Path | str) -> Run | Sweep:
    """The run or the sweep in ``directory``. Raises ``UserError`` when it is neither."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such run directory")
    points = [child for child in directory.iterdir() if "=" in child.name and _is_run(child)]
    if points:
        from .comparison import comparison
        from .scaling import scaling

        ordered = tuple(sorted(map(_read_point, points), key=_order))
        return Sweep(directory, ordered, comparison(directory, ordered), scaling(directory, ordered))
    if not _is_run(directory):
        raise UserError(f"{directory}: not a run directory (no spec.toml, status.json or stage file inside)")
    return read_run(directory)


def read_run(directory: Path) -> Run:
    """The run in ``directory``; stages, status and spec may each be missing."""
    spec = directory / "spec.toml"
    files = {stage: directory / f"{stage}.nc" for stage in STAGES}
    return Run(
        directory=directory,
        status=read_status(directory),
        spec_text=spec.read_text(encoding="utf-8", errors="replace") if spec.is_file() else "",
        stages={stage: read_summary(path) for stage, path in files.items() if path.is_file()},
    )


def _read_point(directory: Path) -> Point:
    """A point of a sweep; its ``status.json`` states the coordinates, without it the name of the directory does."""
    run = read_run(directory)
    stated = run.status.get("coordinates")
    return Point(stated if isinstance(stated, dict) and stated else coordinates(directory.name), run)


def coordinates(point: str) -> dict[str, Any]:
    """Swept keys and values from the name of a point, ``hamiltonian.h=0.5,sae.k=8``: TOML values, else text."""
    pairs = (part.partition("=") for part in re.split(r",(?=[\w.-]+=)", point))
    return {key: _value(text) for key, _, text in pairs}


def _value(text: str) -> Any:
    try:
        return tomli.loads(f"value = {text}")["value"]
    except tomli.TOMLDecodeError:
        return text


def _order(point: Point) -> list[tuple[int, float, str]]:
    """Sort numbers as numbers and everything else as text."""
    values = point.coordinates.values()
    return [(0, float(v), "") if isinstance(v, (int, float)) else (1, 0.0, str(v)) for v in values]


def _is_run(directory: Path) -> bool:
    names = ["spec.toml", "status.json", *(f"{stage}.nc" for stage in STAGES)]
    return any((directory / name).is_file() for name in names)


def _printable(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def read_summary(path: Path) -> xr.Dataset:
    """What a file holds of small variables. Raises ``UserError`` when it cannot be read."""
    with open_plainly(path) as stored:
        large = [name for name, variable in stored.variables.items() if LEFT_ON_DISK & set(variable.dims)]
        try:
            summary = stored.drop_vars(large).load()
        except Exception as error:  # as in open_plainly
            raise UserError(f"{path}: cannot be read as NetCDF ({error})") from error
    texts = {
        str(name): (array.dims, np.vectorize(_printable, otypes=[object])(array.values), array.attrs)
        for name, array in summary.variables.items()
        if array.dtype.kind in "OUS" and array.size
    }
    return summary.assign(texts).assign_attrs({k: _printable(v) for k, v in summary.attrs.items()})
