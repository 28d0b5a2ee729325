"""Values of a spec that name files: where they lead, whoever runs the spec and wherever.

A path is relative to the file it was written in, or to the current directory on the command line, and absolute from then on:
in the queue, in a Slurm script, in the ``spec.toml`` of a run.
"""

from __future__ import annotations

import os

from .document import Document
from .problems import COMMAND_LINE, KeyPath

LOAD, START_FROM = "state.load", "ground_state.start_from"
_PLACES: tuple[KeyPath, ...] = tuple(tuple(key.split(".")) for key in (LOAD, START_FROM))


def is_path(start_from: str) -> bool:
    """Whether a value of ``ground_state.start_from`` is a path; else it is the name of a run."""
    return start_from.startswith(("/", "./", "../", "~")) or start_from.endswith(".nc")


def anchored(document: Document) -> Document:
    """The document with the paths in it absolute."""
    for place in _PLACES:
        table = document.values.get(str(place[0]))
        value = table.get(place[1]) if isinstance(table, dict) else None
        if not isinstance(value, str) or not value or (place == _PLACES[1] and not is_path(value)):
            continue
        origin = document.origin(place)
        base = "" if origin.rank == COMMAND_LINE else os.path.dirname(origin.source)
        path = os.path.abspath(os.path.join(base, os.path.expanduser(value)))
        inner = {path: origin for path, origin in document.origins.items() if path[: len(place)] == place}
        document = document.assigned(place, path, inner or {place: origin})
    return document


__all__ = ["LOAD", "START_FROM", "anchored", "is_path"]
