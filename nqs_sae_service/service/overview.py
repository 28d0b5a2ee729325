"""What ``nqs-sae status`` shows: the runs of the queue, and those beside it in a results directory, in one list."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..datasets.files import is_locked
from ..datasets.status import read_status, run_directories
from ..errors import UserError
from .durations import duration
from .queue import Entry, Queue
from .slurm import Job, slurm_jobs

_ORDER = ("running", "cancelling", "queued", "failed", "interrupted", "stopped", "cancelled", "done")
_SHOWN = 20  # runs of one state in the table

Line = Mapping[str, Any]


def overview(queue: Queue, results: Path) -> list[Line]:
    """Every run that is known, as plain values: those of the queue, and those of ``results`` that are not in it.

    Fields: run, directory, state, stage, progress (0 to 1), eta (s), message, job (of Slurm), priority, submitted, started,
    ended, pid, host; None where there is nothing to say.
    """
    queue.revive()
    lines = [_of_entry(entry) for entry in queue.entries()]
    known = {line["directory"] for line in lines}
    beside = run_directories(results.absolute(), "status.json")
    lines += [_of_directory(path, results) for path in beside if str(path) not in known]
    lines = _with_slurm(lines, slurm_jobs(results), results)
    return sorted(
        lines, key=lambda line: _ORDER.index(line["state"]) if line["state"] in _ORDER else len(_ORDER)
    )


def print_overview(lines: Sequence[Line], console: Console) -> None:
    """The list as a table, not more than some of each state; then how many there are of each."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "stage", "progress", "left", "note"):
        table.add_column(heading, no_wrap=heading != "note", overflow="fold")
    counts: Counter[str] = Counter()
    for line in lines:
        counts[line["state"]] += 1
        if counts[line["state"]] > _SHOWN:
            continue
        share = f"{line['progress']:.0%}" if line["stage"] and line["progress"] is not None else ""
        left = duration(line["eta"]) if line["eta"] is not None else ""
        cells = (line["run"], line["state"], line["stage"] or "", share, left, line["message"] or "")
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    hidden = any(count > _SHOWN for count in counts.values())
    more = f"; the first {_SHOWN} of each are shown, status --json has all" if hidden else ""
    console.print(f"{total}{more}", markup=False, highlight=False, soft_wrap=True)


def find(queue: Queue, name: str) -> list[Entry]:
    """The runs of the queue that ``name`` means: a run, all points of a sweep, or the directory of either.

    Raises UserError when there is none.
    """
    entries, directory = queue.entries(), Path(os.path.abspath(name))
    found = [e for e in entries if name in (e.run, e.run.split("/")[0])]
    found = found or [e for e in entries if directory in (e.directory, e.directory.parent)]
    if not found:
        raise UserError(f"no run of the queue is called {name!r}; nqs-sae status lists them")
    return found


def run_directory(queue: Queue, name: str, results: Path) -> Path:
    """The directory of the run that ``name`` means, in the queue or not.

    Raises UserError when there is none, or when it is a sweep.
    """
    for candidate in (Path(name), results / name):
        if (candidate / "status.json").exists():
            return candidate
    found = find(queue, name)
    if len(found) > 1:
        raise UserError(f"{name} is a sweep; name one of its runs: {', '.join(e.run for e in found[:3])} ...")
    return found[0].directory


def goes_on(queue: Queue, directory: Path) -> bool:
    """Whether more may happen in a run directory: a process works there, or the queue will give it one."""
    active = queue.entries("queued", "running", "cancelling")
    return is_locked(directory / ".lock") or any(e.directory == directory.absolute() for e in active)


def _of_entry(entry: Entry) -> Line:
    status = read_status(entry.directory) if entry.state in ("running", "cancelling") else {}
    return {
        "run": entry.run,
        "directory": str(entry.directory),
        "state": entry.state,
        "stage": status.get("stage"),
        "progress": status.get("progress"),
        "eta": status.get("eta"),
        "message": entry.message or status.get("message"),
        "job": None,
        "priority": entry.priority,
        **{name: getattr(entry, name) for name in ("submitted", "started", "ended", "pid", "host")},
    }


def _of_directory(directory: Path, results: Path) -> Line:
    status = read_status(directory)
    state = status.get("state", "unknown")
    here = status.get("host") == platform.node()
    if state == "running" and here and not is_locked(directory / ".lock"):
        state = "interrupted"  # its process is gone
    line = {name: status.get(name) for name in ("stage", "progress", "eta", "started", "pid", "host")}
    return line | {
        "run": str(directory.relative_to(results.absolute())),
        "directory": str(directory),
        "state": state,
        "message": status.get("error") if state == "failed" else status.get("message"),
        "job": None,
        "priority": None,
        "submitted": None,
        "ended": status.get("updated") if state in ("done", "failed") else None,
    }


def _with_slurm(lines: list[Line], jobs: Sequence[Job], results: Path) -> list[Line]:
    """The lines with what Slurm says of its tasks: the first of each run, whose earlier stop a waiting one outweighs."""
    tasks = {str(results.absolute() / job.run): job for job in reversed(jobs)}
    told = [
        _with_task(line, tasks.pop(line["directory"])) if line["directory"] in tasks else line
        for line in lines
    ]
    return told + [
        _with_task(_of_directory(Path(directory), results), job) for directory, job in tasks.items()
    ]


def _with_task(line: Line, job: Job) -> Line:
    reason = f", {job.reason}" if job.reason else ""
    state = {"RUNNING": "running", "UNKNOWN": line["state"]}.get(job.state, "queued")
    return {**line, "state": state, "job": job.job, "message": f"Slurm job {job.job}: {job.state}{reason}"}
