"""Submitting to Slurm: the points of a sweep as job arrays, one for each wave, as scripts that can be read and changed by hand.

A submission is a folder ``results/.slurm/<name>-<n>``:

    points/0003.toml     the frozen spec of a point; no later edit of the spec file touches it
    wave-1.sbatch        a script for each array of tasks, and the log of every task beside it
    jobs.json            which task of which job computes what

A task is ``nqs-sae run`` of one frozen point, in earlier waves only as far as the stages that other points need too. Its state
is in the run directory, as always: a task that starts again continues from the checkpoint, whoever wrote it. Waves are chained
with ``afterany``: when a task fails, the points that miss its stage compute it themselves, and the others need not care.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import tomli
import tomli_w

from ..datasets.files import write_text
from ..datasets.status import now
from ..errors import UserError
from .mpi import refuse_idle_ranks
from .plan import make_plan
from .sbatch import PROGRAM, Array, point_file, render, render_waves
from .slurm import FOLDER, RECORD, ask, slurm_jobs
from .waves import waves

if TYPE_CHECKING:
    from ..spec import Point
    from ..stages.stage import Stage


def submit_slurm(
    points: Sequence[Point],
    stages: Mapping[str, Stage],
    results: Path,
    program: Sequence[str] = PROGRAM,
) -> list[str]:
    """Freeze points, write the scripts of their waves and hand them to sbatch, all or none; a line for each job.

    ``program`` is the command that stands for ``nqs-sae`` in the scripts. Raises UserError when there is no Slurm, when it
    refuses, or when one of the runs is in its queue already.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not on the PATH: submit on a login node of a Slurm cluster (with its module loaded), "
            "or leave out --slurm"
        )
    results = Path(os.path.abspath(results))
    _refuse_present(points, results)
    plans = make_plan(points, stages, results)
    for plan in plans:
        refuse_idle_ranks([plan], plan.point.spec.engine.slurm.ntasks)
    planned = waves(plans)
    folder = _new_folder(results / FOLDER, points[0].run.split("/")[0])
    for index, point in enumerate(points):
        (folder / point_file(index)).write_text(frozen_text(point), encoding="utf-8")
    arrays = render_waves(planned, points)
    for array in arrays:
        (folder / f"{array.script}.sbatch").write_text(render(array, folder, program), encoding="utf-8")
    return _hand_over(arrays, folder)


def frozen_text(point: Point) -> str:
    """A spec that loads to this very point: the resolved spec, and its place in the sweep as a sweep of one value each."""
    document = tomli.loads(point.toml())
    if point.coordinates:
        document["sweep"] = {"grid": {key: [value] for key, value in point.coordinates.items()}}
    return f"# {point.run}\n{tomli_w.dumps(document)}"


def _new_folder(parent: Path, name: str) -> Path:
    """The first of ``<name>-1``, ``<name>-2``, ... that does not exist, made."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        (folder / "points").mkdir()
        return folder
    raise AssertionError


def _refuse_present(points: Sequence[Point], results: Path) -> None:
    present = {job.run: job for job in slurm_jobs(results) if job.state != "UNKNOWN"}
    for point in points:
        if job := present.get(point.run):
            raise UserError(
                f"{point.run} is with Slurm already, as job {job.job} ({job.state}): wait for its end, cancel it, "
                "or give the new one another name"
            )


def _hand_over(arrays: Sequence[Array], folder: Path) -> list[str]:
    """Submit every array behind those of the wave before it; cancel what was accepted when one is refused."""
    jobs: list[tuple[Array, str]] = []
    try:
        for array in arrays:
            before = [job for other, job in jobs if other.wave == array.wave - 1]
            chain = [f"--dependency=afterany:{':'.join(before)}"] if before else []
            answer = ask("sbatch", "--parsable", *chain, str(folder / f"{array.script}.sbatch"))
            jobs.append((array, answer.strip().split(";")[0]))
            _record(jobs, folder)
    except BaseException:  # a full disk, Ctrl-C
        if jobs:
            with suppress(UserError):
                ask("scancel", *(job for _, job in jobs))
        raise
    return [f"job {job}: {folder.name}, {array.title}; {folder / array.script}.sbatch" for array, job in jobs]


def _record(jobs: Sequence[tuple[Array, str]], folder: Path) -> None:
    content = {
        "submitted": now(),
        "arrays": [
            {
                "job": job,
                "script": f"{array.script}.sbatch",
                "tasks": [{"run": command.run, "until": command.until} for command in array.commands],
            }
            for array, job in jobs
        ],
    }
    write_text(folder / RECORD, json.dumps(content, indent=1) + "\n")
