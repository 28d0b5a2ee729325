"""Logs: plain lines on stderr for people, JSON lines in ``run.jsonl`` for programs. Tracebacks go to the file only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message


def log_to_stderr() -> None:
    """Send every line of level INFO and above to stderr: the bare text, one line each."""
    logger.remove()
    logger.add(_write_line, level="INFO")


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Append everything logged inside to ``path`` as JSON lines."""
    with open(path, "a", encoding="utf-8") as file:

        def write(message: Message) -> None:
            with suppress(
                OSError
            ):  # a full disk ends the run where results are written, not where it is talked about
                file.write(message)
                file.flush()

        handler = logger.add(write, serialize=True, level="DEBUG", backtrace=False, diagnose=False)
        try:
            yield
        finally:
            logger.remove(handler)


def _write_line(message: Message) -> None:
    """The line for people: warnings and errors say so, line breaks become spaces, tracebacks stay in the file."""
    record = message.record
    prefix = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "error: "}.get(record["level"].name, "")
    with suppress(OSError):
        sys.stderr.write(prefix + " ".join(record["message"].split()) + "\n")
        sys.stderr.flush()
