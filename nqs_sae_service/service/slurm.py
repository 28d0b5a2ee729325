"""What Slurm does with the tasks that were submitted from a results directory, and how to cancel them.

``jobs.json`` in the folder of each submission (``service/submission.py``) tells which task of which job computes what; squeue
tells the rest. Slurm knows nothing of the runs: how far they are stands in their directories.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets.status import read_status
from ..errors import UserError

FOLDER = ".slurm"
RECORD = "jobs.json"
_PATIENCE = 20  # seconds for an answer of Slurm


@dataclass(frozen=True)
class Job:
    """A task that has not ended. ``state`` is Slurm's word (PENDING, RUNNING, ...), UNKNOWN where squeue does not answer."""

    job: str
    run: str
    until: tuple[str, ...]
    state: str
    reason: str
    folder: Path


def slurm_jobs(results: Path) -> list[Job]:
    """The tasks of all submissions in ``results`` that have not ended, as far as squeue knows.

    Where squeue does not answer, the tasks of runs that are not done, in the state UNKNOWN.
    """
    recorded = list(_recorded(results))
    if not recorded:
        return []
    try:
        answer = ask("squeue", "--array", "--noheader", f"--user={os.getuid()}", "--format=%i|%T|%r")
    except UserError as problem:
        return [
            Job(job, run, until, "UNKNOWN", str(problem), folder)
            for job, run, until, folder in recorded
            if read_status(results / run).get("state") != "done"
        ]
    known = {}
    for line in answer.splitlines():
        job, state, reason = line.strip().split("|", 2)
        known[job] = (state, "" if reason == "None" else reason)
    return [Job(job, run, until, *known[job], folder) for job, run, until, folder in recorded if job in known]


def cancel_slurm(results: Path, name: str) -> list[Job]:
    """Cancel the tasks of a run, or of all points of a sweep; those that were cancelled. What is finished stays."""
    found = [job for job in slurm_jobs(results) if name in (job.run, job.run.split("/")[0])]
    if found:
        ask("scancel", *(job.job for job in found))
    return found


def _recorded(results: Path) -> Iterator[tuple[str, str, tuple[str, ...], Path]]:
    """Job, run, last stages and folder of every task that was ever submitted; a record that cannot be read is passed over."""
    for path in sorted((results / FOLDER).glob(f"*/{RECORD}")):
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            for array in content["arrays"]:
                for index, task in enumerate(array["tasks"]):
                    yield f"{array['job']}_{index}", str(task["run"]), tuple(task["until"]), path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue


def ask(*command: str) -> str:
    """What a command of Slurm answers. Raises UserError when it fails, is not there, or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]}: no answer of Slurm within {_PATIENCE} s; try again later") from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"{command[0]}: {reason}")
    return done.stdout
