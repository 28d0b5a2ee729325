"""``nqs-sae gc``: take out of a results directory what no run shows and no run will ask for.

A file of the store stays when a run directory shows it, or when a run there, or one of the queue, would ask for its key. The
rest is what edits left behind: stages of earlier versions of a spec, their checkpoints, locks and half-written files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..datasets import read_attributes
from ..datasets.files import locked
from ..datasets.runs import stage_files
from ..datasets.status import run_directories
from ..errors import UserError
from ..spec import Point, load_spec
from ..stages.stage import Stage
from .plan import STORE, make_plan
from .queue import Queue

_GRACE = 3600.0  # seconds during which a new file is left alone: its run may be on its way


@dataclass(frozen=True)
class Leftover:
    """A file that nothing needs, and its size in bytes (of which a file that is linked elsewhere frees none)."""

    path: Path
    size: int


def leftovers(results: Path, queue: Queue, stages: Mapping[str, Stage]) -> list[Leftover]:
    """The files of the store of ``results`` that no run shows or will ask for.

    Raises UserError for a run whose spec cannot be read: what it needs is not known then.
    """
    store = results / STORE
    needed = {f"{stage}-{key}" for stage, key in _needed(results, queue, stages)}
    found = []
    for path in sorted(store.glob("*")):
        status = path.stat()
        if _entry(path) not in needed and time.time() - status.st_mtime > _GRACE:
            found.append(Leftover(path, status.st_size if status.st_nlink == 1 else 0))
    return found


def remove(found: Iterable[Leftover]) -> int:
    """Delete leftovers, except of keys that a process holds; the bytes that this frees."""
    freed = 0
    for leftover in found:
        path = leftover.path
        lock = path.with_name(f"{_entry(path)}.lock")
        try:
            with locked(lock):
                path.unlink(missing_ok=True)
                freed += leftover.size
        except BlockingIOError:
            continue
    return freed


def _entry(path: Path) -> str:
    """The entry ``<stage>-<key>`` that a file belongs to, also a half-written one (``.tmp~12~<stage>-<key>.nc``)."""
    return path.name.rpartition("~")[2].partition(".")[0]


def _needed(results: Path, queue: Queue, stages: Mapping[str, Stage]) -> Iterator[tuple[str, str]]:
    directories = run_directories(results, "spec.toml")
    points = [point for directory in directories for point in _points(directory)]
    waiting = [e for e in queue.entries() if e.state != "done" and e.results == results.absolute()]
    points += [point for entry in waiting if (point := queue.frozen(entry)) is not None]
    for point in points:
        try:
            (plan,) = make_plan([point], stages, results)
        except UserError:  # what it starts from has gone: it cannot continue, and what it shows is kept below
            continue
        for step in plan.steps:
            yield step.stage.name, step.key
    for directory in directories:
        for file in stage_files(directory):
            yield file.stem, str(read_attributes(file).get("key"))


def _points(directory: Path) -> list[Point]:
    try:
        return load_spec(directory / "spec.toml")
    except UserError as problem:
        raise UserError(
            f"{directory} may need files of the store, but its spec cannot be read ({problem})"
        ) from None
