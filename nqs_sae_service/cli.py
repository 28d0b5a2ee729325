"""The command line. Each command imports what it needs when it runs, so that ``--help`` is instant.

Results go to stdout; progress, logs and errors go to stderr, errors as plain text, one line each. Exit codes: 0 done, 1 a run
failed, 2 bad usage or bad spec, 75 stopped with a checkpoint or locked by another process (run again to continue).
"""

from __future__ import annotations

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
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="change the spec; the value is TOML"),
    ] = None,
    results: Annotated[Path, typer.Option(metavar="DIR", help="where run directories go")] = Path("results"),
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="compute this stage and what it needs, no more")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="compute this stage again, and all that depends on it"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show stages, keys, reasons and costs; compute nothing")
    ] = False,
) -> None:
    """Run specs in the foreground; the last lines on stdout are the run directories."""
    points = [point for _, found in _load(specs, set_ or []) for point in found]
    with _plain_errors(BAD_USAGE):
        from .service.plan import make_plan
        from .stages import STAGES

        _refuse_twins(points)
        plans = make_plan(points, STAGES, results, until, force or ())
    if dry_run:
        from .service.forecast import print_plans

        return print_plans(plans, _console())
    from .service.log import log_to_stderr
    from .service.runner import run_plans

    log_to_stderr()
    outcome = run_plans(plans)
    for directory in outcome.directories:
        print(directory)
    raise typer.Exit(outcome.code)


@app.command()
def show(run: Run) -> None:
    """Summarise a run: energy, dictionaries, verdicts, steering."""
    with _plain_errors(BAD_USAGE):
        from .report import show as show_run

        show_run(run, _console())


@app.command()
def report(run: Run) -> None:
    """Write report.html, one self-contained page, and print its path."""
    with _plain_errors(BAD_USAGE):
        from .report import write_report

        print(write_report(run))


@app.command()
def figures(run: Run) -> None:
    """Write the figures of a run (PNG and SVG) and print their paths."""
    with _plain_errors(BAD_USAGE):
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


def _say(line: str) -> None:
    """One plain line on stderr."""
    print(" ".join(line.split()), file=sys.stderr)


def _console() -> Console:
    """A console on stdout; wide when nobody's terminal limits it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDE)
