"""Networks that a crosscoder may look at together: other runs that fit, what tells them apart, and which share a basis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from ..datasets import read_stage
from ..errors import UserError
from ..spec.files import RUNS
from ..spec.keys import canonical_json
from .starts import sections_of

if TYPE_CHECKING:
    from ..spec import Spec

_STREAM = ("embedding", "residual_")  # layers of one network with a common basis begin so


def comparable(a: tuple[int, str], b: tuple[int, str]) -> bool:
    """Whether two views have a common basis: one training, and one layer or the residual stream."""
    return a[0] == b[0] and (a[1] == b[1] or (a[1].startswith(_STREAM) and b[1].startswith(_STREAM)))


def told_apart(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels from what differs between tables, ``h = 0.5``; numbers where that does not tell all apart."""
    keys = [
        key
        for key in dict.fromkeys(k for t in tables for k in t)
        if len({str(t.get(key)) for t in tables}) > 1
    ]
    labels = [", ".join(f"{key} = {table.get(key)}" for key in keys) for table in tables]
    if len(set(labels)) == len(labels):
        return labels
    return ["this run", *(f"run {number}" for number in range(1, len(tables)))]


def check_runs(spec: Spec, sources: Mapping[str, Path]) -> None:
    """Raise UserError where another run (by its key in the spec) has another lattice or network, or no plain samples."""
    for number in range(len(spec.crosscoder.runs)):
        place = f"{RUNS}[{number}]"
        ground_state, samples = (sources[f"{place}.{stage}"] for stage in ("ground_state", "samples"))
        with read_stage(ground_state) as before:
            for problem in _misfits(spec, before):
                raise UserError(f"{place}: {ground_state}: {problem}")
        with read_stage(samples) as drawn:
            if "time" in drawn.dims or "split" not in drawn:
                raise UserError(
                    f"{place}: {samples}: not the samples of a ground state; name a run without dynamics"
                )


def _misfits(spec: Spec, before: xr.Dataset) -> Iterator[str]:
    """What is another in the lattice and network that a ground state was computed with."""
    try:
        sections = sections_of(before)
        there = {name: dict(sections[name]) for name in ("lattice", "state")}
    except (KeyError, TypeError, ValueError):
        yield "its network is not known to this version; run its spec again"
        return
    here = json.loads(canonical_json({"lattice": spec.lattice, "state": spec.state}))
    for name, table in there.items():
        for key in sorted(table.keys() | here[name].keys()):
            if (name, key) != ("state", "load") and table.get(key) != here[name].get(key):
                yield (
                    f"{name}.{key} is {table.get(key)} there and {here[name].get(key)} here: views need the same lattice "
                    "and network"
                )
