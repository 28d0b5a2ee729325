"""Values of a spec that name files: where they lead, whoever runs the spec and wherever.

A path is relative to the file it was written in, or to the current directory on the command line, and absolute from then on:
in the queue, in a Slurm script, in the ``spec.toml`` of a run.
"""

from __future__ import annotations

import os
from typing import Any

from .document import Document
from .problems import COMMAND_LINE, KeyPath

LOAD, START_FROM, RUNS = "state.load", "ground_state.start_from", "crosscoder.runs"
TEACHER, ATTENTION, RANKING = "transfer.teacher", "state.attention", "state.ranking"
_PLACES: tuple[KeyPath, ...] = tuple(
    tuple(key.split(".")) for key in (LOAD, START_FROM, RUNS, TEACHER, ATTENTION, RANKING)
)


def is_path(run: str) -> bool:
    """Whether a value that names a run is a path; else it is the name of one in the same results."""
    return run.startswith(("/", "./", "../", "~")) or run.endswith(".nc")


def anchored(document: Document) -> Document:
    """The document with the paths in it absolute."""
    for place in _PLACES:
        table = document.values.get(str(place[0]))
        value = table.get(place[1]) if isinstance(table, dict) else None
        origin = document.origin(place)
        base = "" if origin.rank == COMMAND_LINE else os.path.dirname(origin.source)
        found = _anchored(value, base, ".".join(map(str, place)) == LOAD)
        if found == value:
            continue
        inner = {path: origin for path, origin in document.origins.items() if path[: len(place)] == place}
        document = document.assigned(place, found, inner or {place: origin})
    return document


def _anchored(value: Any, base: str, always: bool) -> Any:
    """A path, or paths in an array, from ``base`` on; what is no text, or a name unless ``always`` a path, as it is."""
    if isinstance(value, list):
        return [_anchored(each, base, always) for each in value]
    if not isinstance(value, str) or not value or not (always or is_path(value)):
        return value
    return os.path.abspath(os.path.join(base, os.path.expanduser(value)))


__all__ = ["LOAD", "RANKING", "RUNS", "START_FROM", "TEACHER", "anchored", "is_path"]
