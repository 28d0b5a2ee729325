"""The content store ``results/.store``: every finished stage once, by the key of what it was made from.

``<stage>-<key>.nc`` is read-only, with its SHA-256 beside it in the format of ``sha256sum``; run directories hold hard links
to it. A file whose content does not match its sum counts as absent. ``<stage>-<key>.checkpoint.npz`` is an interrupted
attempt. One process at a time works on a key; the lock is the kernel's, so it is gone with the process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from .files import is_own_file, link_or_copy, locked, sha256_of, sweep_temporaries, write_text
from .netcdf import Origin, Streamed, write_stage

_INTACT: set[tuple[object, ...]] = (
    set()
)  # files that this process has verified: the points of a sweep share large ones


@dataclass(frozen=True)
class Store:
    """The store in ``directory``, which is created when first written to."""

    directory: Path

    def path(self, stage: str, key: str) -> Path:
        """The file of a finished stage."""
        return self.directory / f"{stage}-{key}.nc"

    def checkpoint(self, stage: str, key: str) -> Path:
        """The file of an interrupted attempt at a stage."""
        return self.directory / f"{stage}-{key}.checkpoint.npz"

    def has(self, stage: str, key: str) -> bool:
        """Whether a finished stage is present (its content is not verified)."""
        return is_own_file(self.path(stage, key)) and is_own_file(self._sum(stage, key))

    def intact(self, stage: str, key: str) -> bool:
        """Whether a present file still has the content it was written with; a process reads it once."""
        path = self.path(stage, key)
        said = self._sum(stage, key).read_bytes()
        status = path.stat()
        seen = (path.absolute(), said, status.st_ino, status.st_size, status.st_mtime_ns)
        if seen not in _INTACT and said.split()[:1] == [sha256_of(path).encode()]:
            _INTACT.add(seen)
        return seen in _INTACT

    def lock(self, stage: str, key: str, wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Hold the key; ``wait()`` is called while another process holds it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return locked(self.lock_file(stage, key), wait)

    def lock_file(self, stage: str, key: str) -> Path:
        """The file whose lock the process holds that works on a key."""
        return self.directory / f"{stage}-{key}.lock"

    def put(self, dataset: xr.Dataset | Streamed, origin: Origin) -> None:
        """Add a finished stage; the caller holds its key. The sum is written last: a file without its sum does not count."""
        path, checksum = self.path(origin.stage, origin.key), self._sum(origin.stage, origin.key)
        sweep_temporaries(self.directory, f"{origin.stage}-{origin.key}*")
        checksum.unlink(missing_ok=True)
        write_stage(dataset, path, origin)
        write_text(checksum, f"{sha256_of(path)}  {path.name}\n")

    def forget(self, stage: str, key: str) -> None:
        """Delete a finished stage and its checkpoint. Run directories keep their links until they are replaced."""
        for path in (self.path(stage, key), self._sum(stage, key), self.checkpoint(stage, key)):
            path.unlink(missing_ok=True)

    def link(self, stage: str, key: str, target: Path) -> None:
        """Make ``target`` show a finished stage: a hard link, or a copy where links fail."""
        link_or_copy(self.path(stage, key), target)

    def _sum(self, stage: str, key: str) -> Path:
        return self.directory / f"{stage}-{key}.nc.sha256"
