"""Logs: plain lines on stderr for people, JSON lines in ``run.jsonl`` for programs. Tracebacks go to the file only.

Files are bounded: a full one becomes ``run.jsonl.1``, older ones move on, the oldest goes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message

_LARGEST, _KEPT = 10_000_000, 3  # bytes of a log file, and how many older ones are kept


def log_to_stderr(level: str = "INFO") -> None:
    """Send every line of this level and above to stderr: the bare text, one line each."""
    logger.remove()
    logger.add(_write_line, level=level)


def run_log(path: Path) -> AbstractContextManager[None]:
    """Append everything logged inside to ``path`` as JSON lines."""
    return _logged(path, level="DEBUG", serialize=True)


def work_log(path: Path) -> AbstractContextManager[None]:
    """Append what people would see, logged inside, to ``path``, with time and process number."""
    line = "{time:YYYY-MM-DD HH:mm:ss} {process} {level: <7} {message}\n"  # a format of one's own adds no traceback
    return _logged(path, level="INFO", format=lambda record: line)


@contextmanager
def _logged(path: Path, **options: Any) -> Iterator[None]:
    file = _RotatingFile(path, maxBytes=_LARGEST, backupCount=_KEPT, encoding="utf-8")
    file.terminator = ""  # a message ends its own line

    def write(message: Message) -> None:
        file.handle(makeLogRecord({"msg": message}))

    handler = logger.add(write, backtrace=False, diagnose=False, **options)
    try:
        yield
    finally:
        logger.remove(handler)
        file.close()


class _RotatingFile(RotatingFileHandler):
    """A log file of bounded size. A full disk ends a run where results are written, not where it is talked about."""

    def handleError(self, record: LogRecord) -> None:
        pass


def _write_line(message: Message) -> None:
    """The line for people: warnings and errors say so, line breaks become spaces, tracebacks stay in the file."""
    record = message.record
    prefix = {"WARNING": "warning: ", "ERROR": "error: ", "CRITICAL": "error: "}.get(record["level"].name, "")
    with suppress(OSError):
        sys.stderr.write(prefix + " ".join(record["message"].split()) + "\n")
        sys.stderr.flush()
