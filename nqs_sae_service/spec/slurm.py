"""``[engine.slurm]``: what a run asks of Slurm. Each value becomes one ``#SBATCH`` line of a script of ``submit --slurm``.

The keys carry the names of sbatch's options where they mean the same. A value must not be able to say more than its own line
does: what is not a plain word of the kind expected is refused, line breaks, quotes and blanks first of all.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from .section import Section

SECONDS_TO_STOP = 120  # before the end of its time a task is asked to stop; Slurm may be up to a minute early
_SHORTEST = 300  # seconds of a task that still has time to compute something

_NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]*(,[A-Za-z0-9_][A-Za-z0-9_.:@+-]*)*")
_TIME = re.compile(r"(?:(?P<days>\d{1,4})-)?(?P<clock>\d{1,6}(:\d{1,2}){0,2})")
_MEMORY = re.compile(r"[1-9]\d{0,8}[KMGT]?")
_OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(=[A-Za-z0-9_.:,;@%+/&|*()\[\]=-]+)?")
_OURS = (  # options without which the script would not do what it says
    *(
        "array",
        "chdir",
        "dependency",
        "input",
        "error",
        "open-mode",
        "output",
        "parsable",
        "requeue",
        "no-requeue",
    ),
    *("signal", "test-only", "wait", "wrap"),
)


def _name(value: str) -> str:
    if not _NAMES.fullmatch(value):
        raise ValueError(f"must be a name as Slurm has them: letters, digits, '_', '.', '-'; got {value!r}")
    return value


def _time(value: str) -> str:
    seconds = seconds_of(value)
    if seconds is None:
        raise ValueError(
            f'must be a time as sbatch reads it, "02:00:00" for two hours or "1-12:00:00" for a day and a half; got {value!r}'
        )
    if seconds < _SHORTEST:
        raise ValueError(
            f"must be at least 5 minutes: a run is asked to stop {SECONDS_TO_STOP} s before the end; got {value!r}"
        )
    return value


def _memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ValueError(f'must be a size such as "8G" or "500M"; got {value!r}')
    return value


def _shell_line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"must be one line of shell, such as 'module load cuda'; got {value!r}")
    return value


def _option(value: str) -> str:
    match = _OPTION.fullmatch(value)
    if match is None:
        raise ValueError(f'must be one option of sbatch, such as "--constraint=a100"; got {value!r}')
    name = match["name"]
    if name.replace("-", "_") in Slurm.model_fields or name in _KEYS:
        raise ValueError(f"has a key of its own: {_KEYS.get(name, name)}; got {value!r}")
    if any(ours.startswith(name) for ours in _OURS):  # sbatch understands the beginning of a name too
        raise ValueError(f"is an option that the service sets itself; got {value!r}")
    return value


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit in the notations of sbatch, None for anything else.

    ``M``, ``M:S``, ``H:M:S``, and with days ``D-H``, ``D-H:M``, ``D-H:M:S``.
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    parts = [int(part) for part in match["clock"].split(":")]
    if match["days"]:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


_Name = Annotated[str, Field(max_length=200), AfterValidator(_name)]


class Slurm(Section):
    """What each task of a Slurm array asks for (`submit --slurm`); what is not set is left to the cluster."""

    partition: _Name | None = Field(None, description='partition, or several: "gpu,long"')
    account: _Name | None = Field(None, description="account that is charged")
    qos: _Name | None = Field(None, description="quality of service")
    time: Annotated[str, AfterValidator(_time)] | None = Field(
        None, description='time limit of a task, "02:00:00"; a run that needs more continues in the next one'
    )
    ntasks: int = Field(
        1, ge=1, le=4096, description="processes that share a run through MPI; more than 1: srun"
    )
    cpus: int = Field(
        0, ge=0, le=4096, description="cores of each process; 0: engine.threads, or 1 where that is 0 too"
    )
    gpus: int = Field(0, ge=0, le=64, description="GPUs of each process")
    memory: Annotated[str, AfterValidator(_memory)] | None = Field(None, description='memory on a node, "8G"')
    at_most: int = Field(0, ge=0, le=100_000, description="tasks of an array that run at a time; 0: all")
    setup: tuple[Annotated[str, Field(max_length=1000), AfterValidator(_shell_line)], ...] = Field(
        (), max_length=100, description='shell lines before the run, such as "module load cuda"'
    )
    extra: tuple[Annotated[str, Field(max_length=200), AfterValidator(_option)], ...] = Field(
        (), max_length=100, description='further options of sbatch, such as "--constraint=a100"'
    )


_KEYS = {  # options of sbatch whose key is called otherwise
    "cpus-per-task": "cpus",
    "gpus-per-task": "gpus",
    "mem": "memory",
}
