"""``status.json``: what a run is doing, for people and programs that look in from outside."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import plain
from .files import write_text

_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run", "state", "stage", "message", "error", "host", "started", "updated"), str),
    **dict.fromkeys(("progress", "eta"), (int, float)),
    "pid": int,
    "coordinates": dict,
}
_EVERY = 2.0  # seconds between updates that only report progress
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def now() -> str:
    """The time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Status:
    """The fields of one run's ``status.json``: run, state, stage, progress (0 to 1), eta (s), pid, host, and the like."""

    def __init__(self, path: Path, run: str, coordinates: dict[str, Any]) -> None:
        self._path = path
        self._written = 0.0
        self._fields: dict[str, Any] = {
            "run": run,
            "coordinates": coordinates,
            "state": "running",
            "stage": None,
            "progress": 0.0,
            "eta": None,
            "message": "",
            "pid": os.getpid(),
            "host": platform.node(),
            "started": now(),
        }

    def set(self, **fields: Any) -> None:
        """Change fields and write the file."""
        self._fields |= fields
        self._written = time.monotonic()
        text = json.dumps(self._fields | {"updated": now()}, indent=2) + "\n"
        try:
            write_text(self._path, text)
        except OSError as problem:
            if problem.errno in _NO_SPACE:
                _overwrite(self._path, text)
            raise

    def report(self, **fields: Any) -> None:
        """Change fields; the file follows at most every two seconds."""
        self._fields |= fields
        if time.monotonic() - self._written >= _EVERY:
            self.set()


def _overwrite(path: Path, text: str) -> None:
    """Write over the file in place, in the space that it has: a full disk does not keep "failed" from being said."""
    content = text.encode()
    with suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            content += b" " * (os.fstat(descriptor).st_size - len(content))
            os.pwrite(descriptor, content, 0)
        finally:
            os.close(descriptor)


def read_status(directory: Path) -> dict[str, Any]:
    """What ``status.json`` in a run directory says, as far as it can be understood: it may be missing, damaged or foreign."""
    path = directory / "status.json"
    if not path.is_file():  # a pipe would be waited for
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except (ValueError, RecursionError):
        return {"state": "unknown", "message": f"{path.name} is not valid JSON"}
    if not isinstance(fields, dict):
        return {}
    known = {name: value for name, value in fields.items() if isinstance(value, _TYPES.get(name, ()))}
    return {name: plain(value) if isinstance(value, str) else value for name, value in known.items()}


def run_directories(results: Path, holding: str) -> list[Path]:
    """The directories of runs, and of the points of sweeps, below ``results`` that hold a file of this name."""
    return sorted(
        path.parent for depth in ("[!.]*", "[!.]*/[!.]*") for path in results.glob(f"{depth}/{holding}")
    )
