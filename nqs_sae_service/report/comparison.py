"""The points of a sweep that share a Hamiltonian, compared: ``comparison.nc`` beside the report of the sweep.

Points are compared pair by pair where lattice and Hamiltonian are the same and the trained states are not. Everything comes
from the stage files: parameters, Born samples, observables, dictionaries. What takes the networks of both (fidelity,
activations on the samples of the other) is computed once (``kept.py``). It is made by ``stages/compared.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import plain
from .kept import kept

if TYPE_CHECKING:
    import xarray as xr

    from .reading import Point, Run

FILE = "comparison.nc"
VERSION = 2
NEEDED = ("ground_state", "samples", "observables")
MOST_POINTS = 8  # of one Hamiltonian, those of the lowest energies


def comparison(directory: Path, points: Sequence[Point]) -> xr.Dataset | None:
    """What ``comparison.nc`` holds, read or computed and written; None where no two points can be compared.

    What cannot be compared (damaged files, networks of another version) is a dataset with nothing but the attribute
    ``problem``. A directory that cannot be written to is left as it is.
    """
    groups = comparable(points)
    if not groups:
        return None
    from ..stages.compared import compared

    return kept(
        directory / FILE,
        VERSION,
        _told(groups),
        lambda: compared([{label: run.directory for label, run in group.items()} for group in groups]),
    )


def comparable(points: Sequence[Point]) -> list[dict[str, Run]]:
    """Label -> run of the points that share lattice and Hamiltonian, a group for each that at least two states have."""
    labels = _labels([point.coordinates for point in points])
    groups: dict[str, dict[str, Run]] = {}
    for label, point in zip(labels, points, strict=True):
        physics = _physics(point.run)
        if physics is not None:
            group = groups.setdefault(physics, {})
            keys = {run.stages["ground_state"].attrs["key"] for run in group.values()}
            if point.run.stages["ground_state"].attrs["key"] not in keys:
                group[label] = point.run
    return [dict(_lowest(group)) for group in groups.values() if len(group) > 1]


def _lowest(group: Mapping[str, Run]) -> list[tuple[str, Run]]:
    """The points of a group that are compared, in their order."""
    if len(group) <= MOST_POINTS:
        return list(group.items())

    def energy(label: str) -> float:
        return float(group[label].stages["ground_state"].attrs.get("final_energy", np.inf))

    kept = sorted(group, key=energy)[:MOST_POINTS]
    return [(label, run) for label, run in group.items() if label in kept]


def _physics(run: Run) -> str | None:
    """Lattice and Hamiltonian as text; None where stages are missing or the state is followed through time."""
    if any(stage not in run.stages for stage in NEEDED) or run.evolves:
        return None
    attributes = run.stages["ground_state"].attrs
    try:
        sections = json.loads(attributes["sections"])
        if not isinstance(attributes["key"], str) or not np.isfinite(attributes["final_energy"]):
            return None
        return json.dumps([sections["lattice"], sections["hamiltonian"]], sort_keys=True)
    except (KeyError, TypeError, ValueError):
        return None


def _labels(coordinates: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short unique label for every point: the last words of the swept keys, where these are unique."""
    keys = list(dict.fromkeys(key for point in coordinates for key in point))
    last = [key.rpartition(".")[2] for key in keys]
    names = dict(zip(keys, last if len(set(last)) == len(keys) else keys, strict=True))
    return [plain(", ".join(f"{names[k]}={value}" for k, value in point.items())) for point in coordinates]


def _told(groups: Sequence[Mapping[str, Run]]) -> list[list[str]]:
    """The stage files that the dataset is made from."""
    stages = (*NEEDED, "sae")
    return [
        [label, run.name, *(str(run.stages[s].attrs.get("key")) if s in run.stages else "" for s in stages)]
        for group in groups
        for label, run in group.items()
    ]
