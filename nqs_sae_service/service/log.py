"""Logs: plain lines on stderr for people, JSON lines in ``run.jsonl`` for programs. Tracebacks go to the file only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message


_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def log_to_stderr() -> None:
    """Send every line of level INFO and above to stderr: the bare text, one line each."""
    logger.remove()
    logger.add(_write_line, level="INFO")


@contextmanager
def run_log(path: Path) -> Iterator[None]:
    """Append everything logged inside to ``path`` as JSON lines; neither through a link nor into a pipe."""
    descriptor = os.open(path, _APPEND, 0o666)
    try:

        def write(message: Message) -> None:
            with suppress(
                OSError
            ):  # a full disk ends the run where results are written, not where it is talked about
                _append_line(descriptor, message.encode())

        handler = logger.add(write, serialize=True, level="DEBUG", backtrace=False, diagnose=False)
        try:
            yield
        finally:
            logger.remove(handler)
    finally:
        os.close(descriptor)


def _append_line(descriptor: int, line: bytes) -> None:
    """Write the whole line or, when the disk fills up in the middle of it, nothing."""
    before = os.fstat(descriptor).st_size
    if os.write(descriptor, line) < len(line):
        os.ftruncate(descriptor, before)


def _write_line(message: Message) -> None:
    """The line for people: warnings and errors say so, line breaks become spaces, tracebacks stay in the file."""
    record = message.record
    prefix = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "error: "}.get(record["level"].name, "")
    with suppress(OSError):
        sys.stderr.write(prefix + " ".join(record["message"].split()) + "\n")
        sys.stderr.flush()
