"""Logs: plain lines on stderr for people, JSON lines in ``run.jsonl`` for programs. Tracebacks go to the file only.

Files are bounded: a full one becomes ``run.jsonl.1``, older ones move on, the oldest goes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

if TYPE_CHECKING:
    from loguru import Message

_POLL = 0.3  # seconds between looks at a log that is followed
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

    def _open(self) -> Any:
        return open(self.baseFilename, "a", encoding="utf-8", opener=_open_own)

    def emit(self, record: LogRecord) -> None:
        with suppress(OSError):
            if self.shouldRollover(record):
                self.doRollover()
            self.stream = self.stream or self._open()
            _append_line(self.stream.fileno(), self.format(record).encode())


def _open_own(path: str, flags: int) -> int:
    """Neither through a link nor into a pipe, whose reader would be waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


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


def read_log(directory: Path, more: Callable[[], bool] = lambda: False) -> Iterator[str]:
    """The lines of a run's log for people, older files first; goes on for as long as ``more()`` says that more may come."""
    path = directory / "run.jsonl"
    for older in sorted(directory.glob("run.jsonl.[1-9]"), reverse=True):
        yield from map(_readable, older.read_text(encoding="utf-8").splitlines())
    with ExitStack() as stack:
        file = None
        while True:
            goes_on = more()  # asked first, so that nothing that is said before the end is missed
            rotated = (
                file is not None
                and path.exists()
                and not os.path.samestat(os.fstat(file.fileno()), path.stat())
            )
            yield from _complete_lines(file)
            if (file is None or rotated) and path.exists():
                file = stack.enter_context(open(path, encoding="utf-8"))
                yield from _complete_lines(file)
            if not goes_on:
                return
            time.sleep(_POLL)


def _complete_lines(file: TextIO | None) -> Iterator[str]:
    while file is not None:
        place = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(place)  # somebody is writing it
            return
        yield _readable(line)


def _readable(line: str) -> str:
    try:
        record = json.loads(line)["record"]
        return f"{record['time']['repr'][:19]} {record['level']['name']:<7} {record['message']}"
    except (ValueError, KeyError, TypeError):
        return line.rstrip("\n")
