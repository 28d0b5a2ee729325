"""The scripts of a submission to Slurm: what sbatch is asked for, what a task runs, and how it ends.

A script is one job array. It can be read, changed and submitted by hand, and needs nothing of the shell it is submitted from:
paths are absolute, and the interpreter is the one that wrote it.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..spec.slurm import SECONDS_TO_STOP, Slurm
from .stop import EXIT_AGAIN
from .waves import Task

if TYPE_CHECKING:
    from ..spec import Point

PROGRAM = (sys.executable, "-m", "nqs_sae_service")
_MOST_TASKS = 1000  # of one array: the usual MaxArraySize is 1001
_PLAIN_PATH = re.compile(r"[\w./@+:,=-]+", re.ASCII)
# A rank that is the first to stop must not end the others; srun does not take over the cores of a task by itself.
_SRUN = 'srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" '
_KILLED_BY_USR1 = 138  # the code of a process that was asked to stop before it listened

_SCRIPT = """\
#!/bin/bash
# {name}, {title}
# Written by `nqs-sae submit --slurm`; `sbatch {script}` submits it once more.
{options}

results={results}
program=({program})
{setup}
# What each task of the array computes.
case $SLURM_ARRAY_TASK_ID in
{tasks}
esac

# The program runs in the background, so that this shell can act on signals.
# USR1 comes to this shell alone, {seconds} s before the time is over: passed on, it makes the run end with a checkpoint.
# TERM (the task is preempted or cancelled) Slurm sends to every process of the task: here it is enough to wait.
run= interrupted=
trap 'interrupted=1; [[ $run ]] && kill -USR1 "$run"' USR1
trap 'interrupted=1' TERM
{launch}"${{program[@]}}" "$@" &
run=$!
while
    interrupted=
    wait "$run"
    code=$?
    [[ $interrupted ]]  # the signal has ended `wait`, not the run
do :; done

# {again}: stopped, go on later ({killed}: by USR1, before the program listened). The task goes back into the queue, unless
# Slurm is ending it already (COMPLETING): a cancelled task stays cancelled, and a preempted one Slurm itself queues again.
task=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
if ((code == {again} || code == {killed})) && [[ $(squeue --noheader --jobs="$task" --format=%T) == RUNNING ]]; then
    scontrol requeue "$task"
fi
exit "$code"
"""


@dataclass(frozen=True)
class Command:
    """What one task of an array runs: the arguments of nqs-sae as shell words; the run, and the last stages it computes."""

    words: str
    run: str
    until: tuple[str, ...] = ()


@dataclass(frozen=True)
class Array:
    """One job array: ``script`` is its name without suffix, ``wave`` counts from 1."""

    wave: int
    script: str
    title: str
    slurm: Slurm
    cpus: int
    commands: tuple[Command, ...]


Asked = tuple[Slurm, int, Command]  # what a task asks for, with its cores, and what it runs


def render_waves(planned: Sequence[Sequence[Task]], points: Sequence[Point]) -> list[Array]:
    """The arrays of all waves in turn, then those of the reports."""
    files = {point.run: point_file(index) for index, point in enumerate(points)}
    arrays: list[Array] = []
    for wave, tasks in enumerate(planned, start=1):
        about = (
            "stages that several points need, each computed once" if wave < len(planned) else "every point"
        )
        title = f"wave {wave} of {len(planned)}: {about}"
        arrays += _arrays(wave, f"wave-{wave}", title, _commands(tasks, files))
    title = "after the last wave: figures and report of the sweep"
    return arrays + _arrays(len(planned) + 1, "report", title, _reports(points))


def _commands(tasks: Sequence[Task], files: Mapping[str, str]) -> Iterator[Asked]:
    for task in tasks:
        until = "".join(f" --until {stage}" for stage in task.until)
        words = f'run {files[task.point.run]} --results "$results"{until}'
        engine = task.point.spec.engine
        cpus = engine.slurm.cpus or engine.threads or 1
        yield engine.slurm, cpus, Command(words, task.point.run, task.until)


def _reports(points: Sequence[Point]) -> Iterator[Asked]:
    """What remains to do for each sweep when its points are done. The points do not draw it: they may run at the same time."""
    first = {point.run.split("/")[0]: point.spec for point in reversed(points) if point.coordinates}
    for name, spec in first.items():
        slurm = spec.engine.slurm.model_copy(update={"ntasks": 1})
        for wanted, command in ((spec.output.figures, "figures"), (spec.output.report, "report")):
            if wanted:
                yield slurm, 1, Command(f'{command} "$results"/{name}', name)


def _arrays(wave: int, script: str, title: str, commands: Iterable[Asked]) -> list[Array]:
    """One array, or several where tasks ask for different things or are too many."""
    alike: dict[tuple[Slurm, int], list[Command]] = {}
    for slurm, cpus, command in commands:
        alike.setdefault((slurm, cpus), []).append(command)
    parts = [
        (slurm, cpus, found[start : start + _MOST_TASKS])
        for (slurm, cpus), found in alike.items()
        for start in range(0, len(found), _MOST_TASKS)
    ]
    names = [script] if len(parts) == 1 else [f"{script}-part-{n}" for n in range(1, len(parts) + 1)]
    return [
        Array(wave, part, title, slurm, cpus, tuple(found))
        for part, (slurm, cpus, found) in zip(names, parts, strict=True)
    ]


def render(array: Array, folder: Path, program: Sequence[str] = PROGRAM) -> str:
    """The text of an array's script. Raises UserError for a folder that sbatch cannot work in."""
    tasks = [
        f"    {n}) set -- {command.words} ;; # {command.run}" for n, command in enumerate(array.commands)
    ]
    return _SCRIPT.format(
        name=folder.name,
        title=array.title,
        script=f"{array.script}.sbatch",
        options="\n".join(f"#SBATCH {option}" for option in _options(array, folder)),
        results=shlex.quote(str(folder.parent.parent)),
        program=shlex.join(program),
        setup="".join(f"\n{line}" for line in array.slurm.setup) + "\n" * bool(array.slurm.setup),
        tasks="\n".join(tasks),
        seconds=SECONDS_TO_STOP,
        launch=_SRUN if array.slurm.ntasks > 1 else "",
        again=EXIT_AGAIN,
        killed=_KILLED_BY_USR1,
    )


def _options(array: Array, folder: Path) -> Iterator[str]:
    slurm = array.slurm
    at_most = f"%{slurm.at_most}" if slurm.at_most else ""
    yield f"--job-name={folder.name}-{array.script}"
    yield f"--chdir={_option_path(folder)}"
    yield f"--output={array.script}-task-%a.log"
    yield "--open-mode=append"
    yield f"--array=0-{len(array.commands) - 1}{at_most}"
    yield "--requeue"
    yield f"--signal=B:USR1@{SECONDS_TO_STOP}"
    for option in ("partition", "account", "qos", "time"):
        if (value := getattr(slurm, option)) is not None:
            yield f"--{option}={value}"
    yield f"--ntasks={slurm.ntasks}"
    yield f"--cpus-per-task={array.cpus}"
    if slurm.gpus:
        yield f"--gpus-per-task={slurm.gpus}"
    if slurm.memory is not None:
        yield f"--mem={slurm.memory}"
    yield from slurm.extra


def _option_path(path: Path) -> str:
    """A path as sbatch reads it in a line of options."""
    text = str(path)
    if not text.isprintable():
        raise UserError(
            f"{text!r}: sbatch cannot work in a directory of this name; choose another with --results"
        )
    if _PLAIN_PATH.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def point_file(index: int) -> str:
    """The file of a frozen point, in the folder of its submission."""
    return f"points/{index:04d}.toml"
