"""One run in several processes: ``mpiexec -n P nqs-sae run SPEC``, or ``srun``.

Rank 0 is the run: it alone has the plan, locks, store, checkpoints, status, logs and the last word. The others wait, without
keeping a core busy, until it names a stage that is computed together (``Stage.distributed``). There rank 0 decides at every
tick, for all, whether to go on, to checkpoint or to stop; a rank that gets a signal knocks at its door. What all ranks meet
alike (a number that is not finite) ends in order. A rank that fails alone leaves the others inside an operation that they
cannot finish: it says why, and ends them all.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from loguru import logger

from ..datasets import read_stage
from ..datasets.files import write_text
from ..datasets.status import read_status
from ..engine.devices import HOST, Device, choose_device
from ..engine.ranks import ALONE, MpiRanks, Ranks
from ..engine.threads import available_threads, configure_threads, cores
from ..errors import CompilationStopped, NumericalError, Stopped, UserError
from ..stages.stage import Stage
from .log import log_to_stderr, run_log
from .stop import EXIT_AGAIN, FAILED, Stop, StopRequest

if TYPE_CHECKING:
    from ..spec import Spec
    from .plan import PointPlan

_LAUNCHERS = (  # where a launcher says how many processes it started, and which one this is; an inner one comes first
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


def launched() -> tuple[int, int]:
    """How many processes were started together, and the number of this one, as the launcher says; (1, 0) without one."""
    for size, rank in _LAUNCHERS:
        if os.environ.get(size, "").isdecimal() and os.environ.get(rank, "").isdecimal():
            return int(os.environ[size]), int(os.environ[rank])
    return 1, 0


def processes() -> Ranks:
    """The processes that were started together. Raises UserError where they cannot find each other."""
    size, _ = launched()
    if size == 1:
        return ALONE
    together = f"{size} processes were started together, but"
    try:
        ranks = MpiRanks()
    except Exception as problem:  # a missing or broken MPI raises whatever it likes
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"{together} mpi4py cannot be used ({first}): install the extra mpi of this package, or start one process"
        ) from None
    if ranks.size != size:
        raise UserError(
            f"{together} mpi4py sees {ranks.size}: it belongs to another MPI than the launcher; "
            "use the launcher of mpi4py's MPI, or build mpi4py with this one"
        )
    return ranks


def execute(command: Callable[[Ranks], None]) -> int | None:
    """Let rank 0 execute a command, while the others help it; the exit code of those.

    Raises UserError, on rank 0 alone, where the processes cannot find each other, and what the command raises.
    """
    try:
        ranks = processes()
    except UserError:
        if launched()[1] == 0:
            raise
        return FAILED
    if ranks.size == 1:
        command(ranks)
        return None
    if ranks.rank > 0:
        return _help(ranks)
    code = FAILED
    try:
        command(ranks)
        code = 0
    except BaseException as leaving:
        code = getattr(leaving, "exit_code", FAILED)
        raise
    finally:
        ranks.meet()
        ranks.agree(code)
    return None


def refuse_idle_ranks(plans: Sequence[PointPlan], processes: int) -> None:
    """Raise UserError where a rank would get no chain."""
    for plan in plans:
        chains = plan.point.spec.sampling.chains
        if chains < processes:
            raise UserError(
                f"{plan.point.run}: {processes} processes cannot share sampling.chains = {chains}; "
                f"start at most {chains}, or raise sampling.chains"
            )


@dataclass(frozen=True)
class Errand:
    """What rank 0 asks the others to compute with it: a stage, its spec, its upstream files. ``directory``: of the run."""

    run: str
    stage: Stage
    spec: Spec
    upstream: Mapping[str, Path]
    directory: Path


@dataclass
class Team:
    """The ranks of a run, as its rank 0 sees them. ``apart``: it left a stage that the others are still in."""

    ranks: Ranks = ALONE
    apart: bool = False

    def watch(self, own: StopRequest) -> Stop:
        """Asks to stop when this or another rank is asked."""
        return own if self.ranks.size == 1 else _AnyStop(own, self.ranks)

    @contextmanager
    def computing(self, errand: Errand) -> Iterator[tuple[Ranks, int, Device]]:
        """All ranks begin a stage: the ranks that compute it, the threads of this one, and its device."""
        ranks = self.ranks if errand.stage.distributed else ALONE
        if ranks.size > 1:
            ranks.meet()
            ranks.agree(errand)
            self.apart = True
        try:
            yield ranks, *_seat(ranks, errand.spec)
        except (Stopped, NumericalError, _Unseated):
            self.apart = False
            raise
        self.apart = False

    def leave(self, code: int) -> None:
        """End the other ranks if they cannot go on by themselves."""
        if self.apart:
            self.ranks.abort(code)


@dataclass
class _AnyStop:
    own: StopRequest
    ranks: Ranks
    _notified: bool = False

    @property
    def asked(self) -> bool:
        self._notified = self._notified or self.ranks.notified()
        return self.own.asked or self._notified


def _seat(ranks: Ranks, spec: Spec) -> tuple[int, Device]:
    """Threads and device of this rank. The ranks of a machine share its cores and GPUs, unless the launcher has dealt them."""
    threads, number = _part_of_the_machine(ranks.collect((platform.node(), cores())), ranks.rank)
    threads = configure_threads(spec.engine.threads or min(threads, available_threads()))
    device, problem = HOST, ""
    try:
        device = choose_device(spec.engine.device, number)
    except UserError as missing:
        problem = str(missing)
    found = ranks.collect((device.kind, problem))
    for rank, (kind, reason) in enumerate(found):
        if reason or kind != found[0][0]:
            what = reason or f"it computes on the {kind}, rank 0 on the {found[0][0]}; set engine.device"
            raise _Unseated(what if ranks.size == 1 else f"rank {rank} of {ranks.size}: {what}")
    return threads, device


class _Unseated(UserError):
    """Some rank lacks the device that it should compute on, which all ranks know."""


def _part_of_the_machine(seats: Sequence[tuple[str, set[int]]], rank: int) -> tuple[int, int]:
    """How many cores a rank has for itself, and its number among the ranks of its machine; seats: host and cores of all."""
    host, mine = seats[rank]
    here = [other for other, (name, _) in enumerate(seats) if name == host]
    sharing = sum(bool(mine & seats[other][1]) for other in here)
    return max(1, len(mine) // sharing), here.index(rank)


def _help(ranks: Ranks) -> int:
    """What a rank other than 0 does: compute what rank 0 asks for, until it says the exit code."""
    log_to_stderr("ERROR")
    with StopRequest() as stop:
        knock = _Knock(stop, ranks)
        while True:
            ranks.meet(knock)
            errand: Errand | int = ranks.agree(0)
            if isinstance(errand, int):
                return errand
            _compute(errand, ranks, knock)


@dataclass
class _Knock:
    """Tells rank 0, once, that this rank was asked to stop."""

    stop: StopRequest
    ranks: Ranks
    done: bool = False

    def __call__(self) -> None:
        if self.stop.asked and not self.done:
            self.done = True
            self.ranks.notify()


def _compute(errand: Errand, ranks: Ranks, knock: _Knock) -> None:
    """Take part in a stage. What rank 0 meets as well is said there."""
    try:
        with ExitStack() as stack:
            context = HelperContext(errand.spec, {}, HOST, ranks, knock)
            try:
                _, context.device = _seat(ranks, errand.spec)
            except _Unseated:
                return
            context.upstream = {
                name: stack.enter_context(read_stage(path)) for name, path in errand.upstream.items()
            }
            try:
                errand.stage.run(context)
            except NumericalError:
                context.keep()
            except Stopped:
                pass
    except CompilationStopped:
        _mark(errand, state="stopped", eta=None)
        ranks.abort(EXIT_AGAIN)
    except BaseException as problem:
        _say(errand, ranks, problem)
        ranks.abort(FAILED)


def _say(errand: Errand, ranks: Ranks, problem: BaseException) -> None:
    """Leave the reason in the log and the status of the run, and as one line on stderr."""
    what = str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {problem}"
    text = (
        f"{errand.run}: rank {ranks.rank} of {ranks.size} on {platform.node()}: {errand.stage.name}: {what}"
    )
    _mark(errand, state="failed", eta=None, error=text)
    with suppress(OSError), run_log(errand.directory / "run.jsonl"):
        logger.opt(exception=problem).error("{}", text)


def _mark(errand: Errand, **fields: Any) -> None:
    """Change the status of the run, of which rank 0 will say nothing more."""
    with suppress(OSError):
        text = json.dumps(read_status(errand.directory) | fields, indent=2)
        write_text(errand.directory / "status.json", text + "\n")


@dataclass
class HelperContext:
    """The context (``stages.stage.Context``) of a distributed stage on a rank that does as rank 0 says."""

    spec: Spec
    upstream: Mapping[str, xr.Dataset]
    device: Device
    ranks: Ranks
    knock: Callable[[], None]
    _state: Callable[[], dict[str, np.ndarray]] | None = field(init=False, default=None)

    def tick(
        self,
        done: int,
        total: int,
        message: str = "",
        state: Callable[[], dict[str, np.ndarray]] | None = None,
    ) -> None:
        """Hear from rank 0 whether to go on, and take part in a checkpoint."""
        self._state = state or self._state
        self.knock()
        asked, due = self.ranks.agree((False, False))
        if state is not None and (asked or due):
            state()
        if asked:
            raise Stopped

    def keep(self) -> None:
        """Take part in the checkpoint of what the stage last offered."""
        if self._state is not None:
            self._state()

    def restore(self) -> dict[str, np.ndarray] | None:
        """The arrays of the checkpoint that rank 0 found."""
        return self.ranks.agree(None)
