"""Executes a plan: each stage from the store, from its checkpoint, or from scratch; what it makes appears whole or not at all.

A run directory belongs to one process at a time (a kernel lock, gone with the process), and so does a key of the store while
it is computed. A point that fails does not stop the others of a sweep; a request to stop ends everything at the next tick.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from loguru import logger

from ..datasets import Origin, read_attributes, read_stage
from ..datasets.files import is_own_file, locked, sweep_temporaries, write_text
from ..datasets.status import Status, now
from ..engine.devices import HOST, Device
from ..engine.ranks import ALONE, Ranks
from ..errors import CompilationStopped, NumericalError, Stopped, UserError
from .checkpoint import load_checkpoint, save_checkpoint
from .durations import duration
from .log import run_log
from .mpi import Errand, Team
from .plan import PointPlan, Step
from .progress import StageProgress
from .stop import EXIT_AGAIN, FAILED, Stop, StopRequest

if TYPE_CHECKING:
    from ..spec import Spec

_SPARE = 10  # at most one part in ten of the time goes into writing checkpoints


class Locked(Exception):
    """Another process works in this run directory."""


class Postponed(Exception):
    """Another process computes the stage that this run needs next, and there is other work to do meanwhile."""


@dataclass
class StageContext:
    """The context of one running stage (``stages.stage.Context``): progress, checkpoints, and the request to stop."""

    spec: Spec
    upstream: Mapping[str, xr.Dataset]
    device: Device
    checkpoint: Path
    progress: StageProgress
    status: Status
    stop: Stop
    ranks: Ranks = ALONE
    restored: bool = False
    _due: float = field(init=False)
    _state: Callable[[], dict[str, np.ndarray]] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._due = time.monotonic() + self.spec.engine.checkpoint_seconds

    def tick(
        self,
        done: int,
        total: int,
        message: str = "",
        state: Callable[[], dict[str, np.ndarray]] | None = None,
    ) -> None:
        """Show progress, write a checkpoint when one is due, raise Stopped when a stop was asked for."""
        self._state = state or self._state
        asked, due = self.ranks.agree((self.stop.asked, time.monotonic() >= self._due))
        if state is not None and (asked or due):
            began = time.monotonic()
            save_checkpoint(self.checkpoint, state())
            ended = time.monotonic()
            self._due = ended + max(self.spec.engine.checkpoint_seconds, _SPARE * (ended - began))
        if asked:
            raise Stopped
        self.progress.update(done, total, message)
        self.status.report(progress=self.progress.share, eta=self.progress.eta, message=message)

    def keep(self) -> None:
        """Write what the stage last offered: the last good state of one that diverged."""
        if self._state is not None:
            save_checkpoint(self.checkpoint, self._state())

    def restore(self) -> dict[str, np.ndarray] | None:
        """The arrays of the last checkpoint of this stage, or None."""
        arrays = self.ranks.agree(load_checkpoint(self.checkpoint))
        if arrays is not None:
            self.restored = True
            logger.info("continuing from the checkpoint of an earlier attempt")
        return arrays


@dataclass(frozen=True)
class Outcome:
    """Exit code of a batch of runs, and the run directories that are complete."""

    code: int
    directories: tuple[Path, ...]


def run_plans(plans: Sequence[PointPlan], deadline: float = math.inf, ranks: Ranks = ALONE) -> Outcome:
    """Execute every plan in turn. Code 0: all done; 1: a run failed; 75: stopped, or locked by another process.

    After ``deadline``, on the monotonic clock, it stops like at a signal. The other ``ranks`` wait to help this one.
    """
    team = Team(ranks)
    done: list[Path] = []
    changed: dict[Path, Spec] = {}
    points = Counter(plan.directory.parent for plan in plans if plan.point.coordinates)
    code = 0
    with StopRequest(deadline) as own:
        stop = team.watch(own)
        for plan in plans:
            try:
                if run_point(plan, stop, team=team) and plan.point.coordinates:
                    changed[plan.directory.parent] = plan.point.spec
                done.append(plan.directory)
            except Stopped:
                team.leave(EXIT_AGAIN)
                return Outcome(code or EXIT_AGAIN, tuple(done))
            except Locked as problem:
                logger.error("{}", problem)
                code = code or EXIT_AGAIN
            except Exception:  # said and logged where it happened
                team.leave(FAILED)
                code = FAILED
        for sweep, spec in changed.items():
            # One point has nothing to compare, and others of its sweep may be at work elsewhere.
            if points[sweep] > 1:
                draw(sweep, spec)
    return Outcome(code, tuple(done))


def run_point(
    plan: PointPlan, stop: Stop, elsewhere: Callable[[], bool] = lambda: False, team: Team | None = None
) -> bool:
    """Execute one plan in its directory; whether any of its stage files changed.

    ``elsewhere()`` tells whether there is other work to do while another process computes the stage that is needed next.
    Raises Stopped, Locked, Postponed, or the error that ended it (already reported).
    """
    with ExitStack() as stack:
        try:
            _refuse_links_elsewhere(plan)
            plan.directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_owned(plan.directory))
            sweep_temporaries(plan.directory)
            stack.enter_context(run_log(plan.directory / "run.jsonl"))
            status = Status(plan.directory / "status.json", plan.point.run, dict(plan.point.coordinates))
            status.set()
        except (OSError, UserError) as problem:
            logger.error("{}", plainly(plan, problem))
            raise
        with _reported(plan, status):
            _prepare(plan)
            run = _Run(plan, stop, status, elsewhere, team or Team())
            run.execute()
            return run.changed


def _refuse_links_elsewhere(plan: PointPlan) -> None:
    """A run directory that is a link out of the results would have somebody else's files replaced."""
    results = plan.store.directory.parent.resolve()
    if not plan.directory.resolve().is_relative_to(results):
        raise UserError(
            f"{plan.directory} is a link out of {results}: remove it, or choose another --results"
        )


@contextmanager
def _owned(directory: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / ".lock"))
        except BlockingIOError:
            raise Locked(f"{directory} is locked by another process; run again when it has ended") from None
        yield


@contextmanager
def _reported(plan: PointPlan, status: Status) -> Iterator[None]:
    """Leave the end of a run, however it ends, in its status, its log and, as one line, on stderr."""
    try:
        yield
        status.set(state="done", stage=None, progress=1.0, eta=None, message="")
    except Stopped:
        with suppress(OSError):
            status.set(state="stopped", eta=None)
        logger.info("{}: stopped; run the same command again to continue", plan.point.run)
        raise
    except Postponed:
        with suppress(OSError):
            status.set(
                state="queued", eta=None, message="another process computes the stage that is needed next"
            )
        raise
    except Exception as problem:
        text = plainly(plan, problem)
        logger.opt(exception=not isinstance(problem, UserError)).error("{}", text)
        with suppress(OSError):
            status.set(state="failed", eta=None, error=text)
        raise


def plainly(plan: PointPlan, problem: Exception) -> str:
    """What went wrong in one line that says where and, if possible, what to do."""
    run = plan.point.run
    if isinstance(problem, UserError):
        return f"{run}: {problem}"
    if isinstance(problem, OSError):
        return f"{run}: {problem.filename or plan.directory}: {problem.strerror or problem}"
    if isinstance(problem, MemoryError):
        return f"{run}: out of memory; use fewer samples or set a smaller engine.chunk ({problem})"
    log = plan.directory / "run.jsonl"
    return f"{run}: unexpected {type(problem).__name__}: {problem}; the traceback is in {log}"


def _prepare(plan: PointPlan) -> None:
    """Write the resolved spec, and take away stage files that belong to an earlier version of it."""
    spec, text = plan.directory / "spec.toml", plan.point.toml()
    if not is_own_file(spec) or spec.read_bytes() != text.encode():
        write_text(spec, text)
    for step in plan.steps:
        present = plan.directory / f"{step.stage.name}.nc"
        if present.exists() and not _shows(present, plan, step):
            present.unlink()
            (plan.directory / "report.html").unlink(missing_ok=True)
    for step in plan.steps:
        if step.forced:
            with plan.store.lock(step.stage.name, step.key, lambda: None):
                plan.store.forget(step.stage.name, step.key)


def _shows(present: Path, plan: PointPlan, step: Step) -> bool:
    """Whether a file of the run directory is of this key. Links to the store are not opened: damaged HDF5 can crash."""
    stored = plan.store.path(step.stage.name, step.key)
    if stored.exists() and present.samefile(stored):
        return True
    return read_attributes(present).get("key") == step.key


@dataclass
class _Run:
    """One point on its way through its stages."""

    plan: PointPlan
    stop: Stop
    status: Status
    elsewhere: Callable[[], bool]
    team: Team
    seconds: dict[str, float] = field(default_factory=dict)
    changed: bool = False

    def execute(self) -> None:
        for step in self.plan.steps:
            if step.wanted:
                self._obtain(step)
            if self.stop.asked:
                raise Stopped
        if self.changed:
            self.status.set(stage="report", progress=0.0, eta=None, message="")
            began = time.monotonic()
            draw(self.plan.directory, self.plan.point.spec)
            self.seconds["report"] = time.monotonic() - began
        timings = [f"{name} {duration(seconds)}" for name, seconds in self.seconds.items()]
        total = duration(sum(self.seconds.values()))
        logger.info(
            "{}: {}",
            self.plan.point.run,
            f"{', '.join(timings)}, total {total}" if timings else "nothing to compute",
        )

    def _obtain(self, step: Step) -> None:
        """Link a stage into the run directory, computing it first unless the store has it."""
        store, name, key = self.plan.store, step.stage.name, step.key
        self.status.set(stage=name, progress=0.0, eta=None, message="")
        with store.lock(name, key, self._wait):
            if store.has(name, key) and not store.intact(name, key):
                logger.warning(
                    "{}: damaged (its checksum differs); computing it again", store.path(name, key)
                )
                store.forget(name, key)
            if not store.has(name, key):
                self._compute(step)
            # Here, not in _compute: whoever was killed after the stage was stored has left its checkpoint.
            store.checkpoint(name, key).unlink(missing_ok=True)
            self.changed |= name in self.seconds or not self._file(name).exists()
            store.link(name, key, self._file(name))

    def _compute(self, step: Step) -> None:
        store, name, spec = self.plan.store, step.stage.name, self.plan.point.spec
        checkpoint = store.checkpoint(name, step.key)
        began, start = time.monotonic(), now()
        files = {above: self._file(above) for above in step.upstream}
        for place, source in step.sources.items():
            source.refuse_change(self.plan.point.run)
            if source.stage_file:
                files[place] = source.path
        errand = Errand(self.plan.point.run, step.stage, spec, files, self.plan.directory)
        with ExitStack() as stack:
            upstream = {above: stack.enter_context(read_stage(file)) for above, file in files.items()}
            progress = StageProgress(self.plan.point.run, name)
            stack.callback(progress.close)
            context = StageContext(spec, upstream, HOST, checkpoint, progress, self.status, self.stop)
            try:
                with self.team.computing(errand) as (context.ranks, threads, context.device):
                    dataset = step.stage.run(context)
            except NumericalError:
                context.keep()
                raise
            except CompilationStopped:
                if not self.team.apart:
                    context.keep()
                raise Stopped from None
            except (KeyError, IndexError, TypeError, ValueError):
                if context.restored:
                    remedy = "if it does so again, delete that file: the stage then starts anew"
                    logger.warning(
                        "{}: {} failed after it continued from {}; {}",
                        self.plan.point.run,
                        name,
                        checkpoint,
                        remedy,
                    )
                raise
            seed = getattr(getattr(spec, name, None), "seed", spec.seed)
            store.put(
                dataset,
                Origin(
                    name,
                    step.key,
                    step.stage.version,
                    step.sections,
                    seed,
                    threads,
                    start,
                    now(),
                    context.ranks.size,
                    context.device.name,
                ),
            )
        self.seconds[name] = time.monotonic() - began
        logger.info("{}: {} done in {}", self.plan.point.run, name, duration(self.seconds[name]))

    def _file(self, stage: str) -> Path:
        return self.plan.directory / f"{stage}.nc"

    def _wait(self) -> None:
        """Called while another process computes the stage that is needed next."""
        self.status.report(message="waiting for another process that computes this stage")
        if self.stop.asked:
            raise Stopped
        if self.elsewhere():
            raise Postponed


def draw(directory: Path, spec: Spec) -> None:
    """Figures and report of a run or sweep. The numbers are safe by now: what fails here is said, and the run is still done."""
    try:
        from .. import report

        if not (spec.output.figures or spec.output.report):
            return
        images = report.Images(report.read(directory))
        if spec.output.figures:
            report.write_figures(directory, images)
        if spec.output.report:
            report.write_report(directory, images)
    except Exception as problem:
        logger.opt(exception=not isinstance(problem, UserError)).error(
            "{}: the report failed: {}", directory, problem
        )
