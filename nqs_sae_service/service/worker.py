"""A worker: takes runs from the queue, the most urgent first, and computes them in this very process.

It takes a run when the cores (and the GPU) that the run asks for are free, and passes over one whose next stage another
process is just computing. Where two workers meet at a stage all the same, one computes, and the other gives its run back and
takes something else, or waits when there is nothing else. A worker never waits without cores of its own, so that one more may
be started every minute. Nothing is printed while all goes well.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

from ..datasets.files import is_locked
from ..errors import Stopped, UserError
from ..stages.stage import Stage
from .durations import duration
from .plan import PointPlan, make_plan
from .queue import Entry, Queue
from .runner import Locked, Postponed, draw, plainly, run_point
from .slots import Slots, gpus
from .sources import Unfinished
from .stop import EXIT_AGAIN, FAILED, StopRequest, deadline_in

if TYPE_CHECKING:
    from ..spec import Spec

_LOOK_AHEAD = 100  # queued runs that are considered
_POLL = 0.5  # seconds between looks at whether a run has been cancelled
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # the next run would meet it too
_REST = 10.0  # seconds before a run whose directory somebody else uses is tried again
_SHORT_REST = 1.0  # the same for one that was given back for other work


def work(
    queue: Queue,
    stages: Mapping[str, Stage],
    drain: bool = False,
    max_runs: int | None = None,
    max_time: float = math.inf,
    at_once: int = 0,
) -> int:
    """Execute the queue until nothing is left that can be taken now; the exit code: 0, 1 when a run failed, 75 when stopped.

    ``drain`` also takes runs that have to wait for a stage which another process computes. At most ``max_runs`` runs are
    taken; before ``max_time`` seconds are over the present one gets its checkpoint and goes back into the queue. A full or
    read-only disk ends the worker, not the runs: they stay in the queue.
    """
    deadline = deadline_in(max_time)
    slots = Slots(queue.directory / "slots", at_once)
    with StopRequest(deadline) as stop, ExitStack() as stack:
        gpu = stack.enter_context(slots.one_gpu())
        return _Worker(queue, stages, slots, stop, has_gpu=gpu or not gpus()).work(
            drain, max_runs or math.inf
        )


@dataclass
class _RunStop:
    """Asks one run to stop: with the worker, when it is cancelled, or when its time is up."""

    stop: StopRequest
    queue: Queue
    entry: Entry
    deadline: float
    cancelled: bool = False
    waited: float = 0.0  # seconds spent waiting for another process: they do not count
    _looked: float = 0.0
    _waiting_since: float = 0.0

    def waits(self) -> None:
        """Called five times a second while another process computes what this run needs."""
        moment = time.monotonic()
        if moment - self._waiting_since < 1.0:
            self.waited += moment - self._waiting_since
            self.deadline += moment - self._waiting_since
        self._waiting_since = moment

    @property
    def overdue(self) -> bool:
        return time.monotonic() >= self.deadline

    @property
    def asked(self) -> bool:
        if time.monotonic() - self._looked > _POLL:
            self.cancelled = self.queue.state(self.entry) != "running"
            self._looked = time.monotonic()
        return self.stop.asked or self.cancelled or self.overdue


@dataclass
class _Worker:
    queue: Queue
    stages: Mapping[str, Stage]
    slots: Slots
    stop: StopRequest
    has_gpu: bool
    code: int = 0
    broken: bool = False
    _plans: dict[int, PointPlan] = field(default_factory=dict)
    _resting: dict[int, float] = field(default_factory=dict)  # runs that are in use elsewhere, until when

    def work(self, drain: bool, runs_left: float) -> int:
        while not (self.stop.asked or self.broken) and runs_left > 0:
            took = self._take_one(drain)
            if took is None and not (drain and self._rested()):
                break
            runs_left -= took or 0
        return self.code or (EXIT_AGAIN if self.stop.asked else 0)

    def _rested(self) -> bool:
        """Wait a little for runs that are in use elsewhere; False when there are none."""
        moment = time.monotonic()
        self._resting = {number: until for number, until in self._resting.items() if until > moment}
        if self._resting:
            time.sleep(_POLL)
        return bool(self._resting)

    def _take_one(self, drain: bool) -> bool | None:
        """Take the next run. None: there is none to take now; False: it was given back; True: its end is settled."""
        self.queue.revive()
        entry = self._next() or (self._next(waiting=True) if drain else None)
        if entry is None:
            return None
        plan = self._planned(entry)
        if plan is None:
            return False
        with self.slots.taken(plan.point.spec.engine.threads) as enough:
            if not enough:
                return None
            with self.queue.taken(entry) as mine:
                return self._compute(entry, plan) if mine else False

    def _compute(self, entry: Entry, plan: PointPlan) -> bool:
        began = time.monotonic()
        left = math.inf if entry.time_limit is None else entry.time_limit - entry.seconds
        stop = _RunStop(self.stop, self.queue, entry, deadline_in(left))
        logger.info("{}: begins", entry.run)

        def elsewhere() -> bool:
            stop.waits()
            return self._next(entry) is not None

        try:
            run_point(plan, stop, elsewhere)
            state, message = "done", ""
        except Stopped:
            state, message = "queued", "stopped with a checkpoint"
            if stop.overdue and not self.stop.asked and not stop.cancelled:
                state, message = (
                    "failed",
                    f"its time limit of {duration(entry.time_limit or 0)} is over; retry continues it",
                )
                logger.error("{}: {}", entry.run, message)
        except Postponed:
            self._resting[entry.id] = time.monotonic() + _SHORT_REST
            state, message = "queued", ""
        except Locked as problem:
            self._resting[entry.id] = time.monotonic() + _REST
            state, message = "queued", str(problem)
        except Exception as problem:  # said and logged where it happened
            state, message = "failed", plainly(plan, problem)
            if any(getattr(error, "errno", None) in _DISK_TROUBLE for error in (problem, problem.__cause__)):
                state, self.broken = "queued", True
        self.queue.settle(entry, state, message, time.monotonic() - began - stop.waited)
        if state == "failed" or self.broken:
            self.code = FAILED
        if state == "queued":
            return False
        del self._plans[entry.id]
        if entry.coordinates:
            self._draw_sweep(entry, plan.point.spec)
        return True

    def _next(self, busy_with: Entry | None = None, waiting: bool = False) -> Entry | None:
        """The most urgent run, other than ``busy_with``, whose next stage nobody computes now or, ``waiting``, any."""
        moment, considered = time.monotonic(), self.queue.entries("queued", most=_LOOK_AHEAD)
        for entry in considered:
            if entry is busy_with or self._resting.get(entry.id, 0.0) > moment:
                continue
            plan = self._planned(entry)
            if (
                plan is not None
                and self._fits(plan.point.spec)
                and (waiting or not _next_stage_is_computed(plan))
            ):
                return entry
        return None

    def _planned(self, entry: Entry) -> PointPlan | None:
        """The plan of a run, None when it has gone or starts from one that has yet to run.

        A run that this version cannot plan fails with the reason.
        """
        if entry.id not in self._plans:
            try:
                point = self.queue.frozen(entry)
                if point is None:
                    return None
                (self._plans[entry.id],) = make_plan([point], self.stages, entry.results)
            except UserError as problem:
                if isinstance(problem, Unfinished) and (state := self._state_of(problem.directory)):
                    if state != "queued":
                        self._resting[entry.id] = time.monotonic() + _REST
                    return None
                with self.queue.taken(entry) as mine:
                    if mine:
                        logger.error("{}", problem)
                        self.queue.settle(entry, "failed", str(problem))
                        self.code = FAILED
                return None
        return self._plans[entry.id]

    def _state_of(self, directory: Path) -> str | None:
        """The state of the run of a directory while it is in the queue and has not ended."""
        alive = self.queue.entries("queued", "running", "cancelling")
        states = [
            entry.state for entry in alive if os.path.abspath(entry.directory) == os.path.abspath(directory)
        ]
        return states[0] if states else None

    def _fits(self, spec: Spec) -> bool:
        """A worker that found every GPU taken does only what needs none."""
        return self.has_gpu or spec.engine.device == "cpu"

    def _draw_sweep(self, entry: Entry, spec: Spec) -> None:
        """The figures and the report of a sweep, when its last run has ended."""
        sweep: Path = entry.directory.parent
        if not any(
            other.directory.parent == sweep for other in self.queue.entries("queued", "running", "cancelling")
        ):
            draw(sweep, spec)


def _next_stage_is_computed(plan: PointPlan) -> bool:
    """Whether another process holds the first stage that the store does not have."""
    for step in plan.steps:
        if not plan.store.has(step.stage.name, step.key):
            return is_locked(plan.store.lock_file(step.stage.name, step.key))
    return False
