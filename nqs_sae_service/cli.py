"""The command line. Each command imports what it needs when it runs, so that ``--help`` is instant.

Results go to stdout; progress, logs and errors go to stderr, errors as plain text, one line each. Exit codes: 0 done, 1 a run
failed, 2 bad usage or bad spec, 75 stopped with a checkpoint or locked by another process (run again to continue).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from .engine.ranks import Ranks
    from .service.queue import Queue
    from .spec import Point

FAILED, BAD_USAGE = 1, 2
_WIDE = 160  # columns of tables when stdout is not a terminal

app = typer.Typer(
    name="nqs-sae",
    help="Train neural quantum states, take them apart with sparse autoencoders, steer them. Specs in, NetCDF out.",
    epilog="Exit codes: 0 done, 1 a run failed, 2 wrong usage or spec, 75 stopped with a checkpoint (run it again).",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Specs = Annotated[list[Path], typer.Argument(metavar="SPEC...", help="TOML spec files")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="directory of a run or of a sweep")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change the spec; the value is TOML"),
]
Results = Annotated[Path, typer.Option(metavar="DIR", help="where run directories are")]
QueueFolder = Annotated[
    Path | None,
    typer.Option(
        "--queue", metavar="DIR", help="the queue; by default $NQS_SAE_QUEUE, or one per user and machine"
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="stop with a checkpoint before this time is over: 2h, 90m, 1d"),
]


def main() -> None:
    """Entry point of ``nqs-sae``."""
    app(prog_name="nqs-sae")


def _version(asked: bool) -> None:
    if asked:
        print(f"nqs-sae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


@app.command()
def validate(specs: Specs) -> None:
    """Check specs; say every error at once."""
    for path, points in _load(specs, []):
        print(f"{path}: valid, {len(points)} run{'s' if len(points) != 1 else ''}")


@app.command()
def run(
    specs: Specs,
    set_: Sets = None,
    results: Results = Path("results"),
    until: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="compute this stage and what it needs, no more (repeatable)"),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="compute this stage again, and all that depends on it"),
    ] = None,
    max_time: MaxTime = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show stages, keys, reasons and costs; compute nothing")
    ] = False,
) -> None:
    """Run specs in the foreground; the last lines on stdout are the run directories."""
    from .service.mpi import execute

    with _plain_errors(FAILED):
        code = execute(lambda ranks: _run(ranks, specs, set_, results, until, force, max_time, dry_run))
    raise typer.Exit(code or 0)


def _run(
    ranks: Ranks,
    specs: Sequence[Path],
    set_: Sequence[str] | None,
    results: Path,
    until: Sequence[str] | None,
    force: Sequence[str] | None,
    max_time: str | None,
    dry_run: bool,
) -> None:
    points = [point for _, found in _load(specs, set_ or []) for point in found]
    with _plain_errors(BAD_USAGE):
        from .service.durations import seconds_in
        from .service.mpi import refuse_idle_ranks
        from .service.plan import make_plan
        from .service.stop import deadline_in
        from .stages import STAGES

        deadline = deadline_in(seconds_in(max_time) if max_time else math.inf)
        _refuse_twins(points)
        plans = make_plan(points, STAGES, results, until or (), force or ())
        refuse_idle_ranks(plans, ranks.size)
    if dry_run:
        from .service.forecast import print_plans

        return print_plans(plans, _console())
    from .service.log import log_to_stderr
    from .service.runner import run_plans

    log_to_stderr()
    outcome = run_plans(plans, deadline, ranks)
    for directory in outcome.directories:
        print(directory)
    raise typer.Exit(outcome.code)


@app.command()
def submit(
    specs: Specs,
    set_: Sets = None,
    results: Results = Path("results"),
    priority: Annotated[int, typer.Option(help="runs with a higher number come first")] = 0,
    time_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="computing time that each run may take: 2h, 90m, 1d")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="hand them to Slurm as job arrays, as [engine.slurm] says")
    ] = False,
    queue: QueueFolder = None,
) -> None:
    """Freeze specs into the queue, or hand them to Slurm; print the names of the runs, or the jobs."""
    points = [point for _, found in _load(specs, set_ or []) for point in found]
    with _plain_errors(BAD_USAGE):
        from .service.durations import seconds_in

        _refuse_twins(points)
        if slurm:
            from .service.submission import submit_slurm
            from .stages import STAGES

            if priority or time_limit or queue:
                raise UserError("--slurm takes qos and time from [engine.slurm], and knows no --queue")
            for line in submit_slurm(points, STAGES, results):
                print(line)
            return
        limit = seconds_in(time_limit) if time_limit else None
        for name in _queue(queue).submit(points, results, priority, limit):
            print(name)


@app.command()
def work(
    drain: Annotated[
        bool, typer.Option("--drain", help="also take runs that wait for a stage of another worker")
    ] = False,
    max_runs: Annotated[int | None, typer.Option(min=1, help="take at most so many runs")] = None,
    max_time: MaxTime = None,
    slots: Annotated[
        int,
        typer.Option(
            envvar="NQS_SAE_SLOTS", min=0, help="runs that share this machine; 0: one, or one per GPU"
        ),
    ] = 0,
    queue: QueueFolder = None,
) -> None:
    """Execute the queue. Silent unless something fails; on a terminal it shows progress."""
    with _plain_errors(BAD_USAGE):
        from .service.durations import seconds_in

        seconds = seconds_in(max_time) if max_time else math.inf
    with _plain_errors(FAILED):
        waiting = _queue(queue, create=False)
        if not waiting.entries("queued", "running", "cancelling"):
            return
        from .service.log import log_to_stderr, work_log
        from .service.worker import work as execute
        from .stages import STAGES

        log_to_stderr("INFO" if sys.stderr.isatty() else "ERROR")
        with work_log(waiting.directory / "work.log"):
            code = execute(waiting, STAGES, drain, max_runs, seconds, slots)
    raise typer.Exit(code)


@app.command()
def status(
    results: Results = Path("results"),
    json_: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
    queue: QueueFolder = None,
) -> None:
    """Show the queue and the runs of a results directory."""
    with _plain_errors(BAD_USAGE):
        from .service.overview import overview, print_overview

        lines = overview(_queue(queue, create=False), results)
        if json_:
            import json

            print(json.dumps(lines, indent=2))
        else:
            print_overview(lines, _console())


@app.command()
def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="name or directory of a run")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the run has ended")] = False,
    results: Results = Path("results"),
    queue: QueueFolder = None,
) -> None:
    """Print the log of a run."""
    with _plain_errors(BAD_USAGE):
        from .service.log import read_log
        from .service.overview import goes_on, run_directory

        waiting = _queue(queue, create=False)
        directory = run_directory(waiting, run, results)
        for line in read_log(directory, lambda: follow and goes_on(waiting, directory)):
            print(line, flush=True)


@app.command()
def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run or a sweep of the queue, or of Slurm")],
    results: Results = Path("results"),
    queue: QueueFolder = None,
) -> None:
    """Take a run out of the queue, or out of Slurm; a running one stops with a checkpoint. What is finished stays."""
    with _plain_errors(BAD_USAGE):
        from .service.overview import find
        from .service.slurm import cancel_slurm

        waiting = _queue(queue, create=False)
        try:
            found = find(waiting, run)
        except UserError:
            tasks = cancel_slurm(results, run)
            if not tasks:
                raise
            for task in tasks:
                print(f"{task.run}: job {task.job} cancelled")
            return
        for entry in found:
            print(f"{entry.run}: {waiting.cancel(entry)}")


@app.command()
def retry(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="a run or a sweep of the queue")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="every failed run")] = False,
    queue: QueueFolder = None,
) -> None:
    """Queue failed or cancelled runs again; they continue from their checkpoints."""
    with _plain_errors(BAD_USAGE):
        from .service.overview import find

        if (run is None) != failed:
            raise UserError("name a run, or say --failed")
        waiting = _queue(queue, create=False)
        for entry in waiting.entries("failed") if run is None else find(waiting, run):
            print(f"{entry.run}: {waiting.retry(entry)}")


@app.command()
def gc(
    results: Results = Path("results"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    queue: QueueFolder = None,
) -> None:
    """Delete from the store what no run shows and none will ask for; take its runs that are done off the queue's list."""
    with _plain_errors(BAD_USAGE):
        from .service.cleaning import leftovers, remove
        from .service.forecast import size
        from .stages import STAGES

        waiting = _queue(queue, create=False)
        found = leftovers(results, waiting, STAGES)
        done = [entry for entry in waiting.entries("done") if entry.results == results.absolute()]
        for leftover in found:
            print(leftover.path)
        if dry_run:
            print(f"{size(sum(leftover.size for leftover in found))} would be freed")
        else:
            print(f"{size(remove(found))} freed")
            waiting.forget(done)


@app.command()
def show(run: Run) -> None:
    """Summarise a run: energy, dynamics, dictionaries, verdicts, steering."""
    with _plain_errors(BAD_USAGE), _foreign_files(run):
        from .report import show as show_run

        show_run(run, _console())


@app.command()
def report(run: Run) -> None:
    """Write report.html, one self-contained page, and print its path."""
    with _plain_errors(BAD_USAGE), _foreign_files(run):
        from .report import write_report

        print(write_report(run))


@app.command()
def figures(run: Run) -> None:
    """Write the figures of a run (PNG and SVG) and print their paths."""
    with _plain_errors(BAD_USAGE), _foreign_files(run):
        from .report import write_figures

        for path in write_figures(run):
            print(path)


@app.command()
def warmup(
    specs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SPEC...]", help="what to compile for; without specs: all architectures"),
    ] = None,
) -> None:
    """Compile the kernels ahead, so that runs start at once; print where they are kept."""
    points = [point for _, found in _load(specs or [], []) for point in found]
    from .service.log import log_to_stderr
    from .service.warmup import default_points, warm_up

    log_to_stderr()
    code, cache = warm_up(points or default_points())
    if code:
        raise typer.Exit(code)
    print(cache)


@app.command()
def doctor(
    results: Annotated[Path, typer.Option(metavar="DIR", help="where run directories would go")] = Path(
        "results"
    ),
) -> None:
    """Examine this machine: what is there, what is missing, what to do about it."""
    from .service.doctor import examine

    errors = False
    for finding in examine(results):
        print(finding, flush=True)
        errors |= finding.level == "error"
    raise typer.Exit(FAILED if errors else 0)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec, for editors."""
    import json

    from .spec import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def init(name: Annotated[str, typer.Argument(metavar="NAME", help="name of the experiment")]) -> None:
    """Write NAME.toml, a commented spec to start from."""
    from .spec import starter

    with _plain_errors(BAD_USAGE):
        path, text = Path(f"{name}.toml"), starter(name)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise UserError(f"{path} exists already; choose another name or remove it") from None
    print(path)


def _load(specs: Sequence[Path], sets: Sequence[str]) -> list[tuple[Path, list[Point]]]:
    """Load every spec; say the errors of all of them, and leave with code 2 if there are any."""
    from .spec import SpecError, load_spec

    loaded: list[tuple[Path, list[Point]]] = []
    failed = False
    for path in specs:
        try:
            loaded.append((path, load_spec(path, sets)))
        except SpecError as error:
            failed = True
            for problem in error.problems:
                _say(str(problem))
    if failed:
        raise typer.Exit(BAD_USAGE)
    return loaded


def _queue(folder: Path | None, create: bool = True) -> Queue:
    from .service.queue import Queue, default_queue

    return Queue(folder or default_queue(), create)


def _refuse_twins(points: Sequence[Point]) -> None:
    """Two runs of the same name would overwrite each other."""
    seen: set[str] = set()
    for point in points:
        if point.run in seen:
            raise UserError(f"two of the specs write to the run {point.run!r}: give them different names")
        seen.add(point.run)


@contextmanager
def _plain_errors(code: int) -> Iterator[None]:
    """Turn what the user can mend into one plain line and an exit code."""
    try:
        yield
    except UserError as error:
        _say(f"error: {error}")
        raise typer.Exit(code) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        _say(f"error: {error.filename or ''}: {error.strerror or error}")
        raise typer.Exit(code) from None


@contextmanager
def _foreign_files(run: Path) -> Iterator[None]:
    """Files that this version did not write may hold anything: what they bring about is said in one line."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as problem:
        what = f"{type(problem).__name__}: {problem}"
        raise UserError(
            f"{run}: its files do not fit together ({what}); run its spec again to replace them"
        ) from problem


def _say(line: str) -> None:
    """One plain line on stderr."""
    print(" ".join(line.split()), file=sys.stderr)


def _console() -> Console:
    """A console on stdout; wide when nobody's terminal limits it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDE)
