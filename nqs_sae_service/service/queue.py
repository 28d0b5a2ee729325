"""The queue: runs that wait, run, or have ended, in one SQLite file on a local disk.

A run is a frozen point of a spec with the directory it goes to; no later edit of the spec file touches it. A worker that takes
a run marks it ``running`` and holds a kernel lock on a file of its own while it computes. The lock is gone with the process,
however it ends: a running row whose lock is free has lost its worker and goes back to ``queued``. No clocks, no leases, no
heartbeats; a stopped process (SIGSTOP) keeps what it has. Delivery is at least once, and what a run writes depends on its
keys only, so a second delivery finds the work done.

    queued -> running -> done | failed | queued again (stopped, postponed, its worker died)
    queued, running -> cancelled;      failed, cancelled -> queued (retry)
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.files import locked
from ..errors import UserError
from .filesystem import is_network, kind_of_filesystem
from .status import now, read_status

if TYPE_CHECKING:
    from ..spec import Point

VARIABLE = "NQS_SAE_QUEUE"
_MOST_DEATHS = 10  # of workers, one after the other, at the same point of a run
_PATIENCE = 30.0  # seconds to wait for another process that writes
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL, results TEXT NOT NULL, spec TEXT NOT NULL, coordinates TEXT NOT NULL,
    priority INTEGER NOT NULL, time_limit REAL,
    state TEXT NOT NULL DEFAULT 'queued', message TEXT NOT NULL DEFAULT '',
    seconds REAL NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, reached TEXT NOT NULL DEFAULT '',
    pid INTEGER, host TEXT, submitted TEXT NOT NULL, started TEXT, ended TEXT,
    UNIQUE (results, run)
);
CREATE INDEX IF NOT EXISTS runs_by_state ON runs (state, priority DESC, id);
"""


@dataclass(frozen=True)
class Entry:
    """A run of the queue. ``seconds``: computing time so far, against ``time_limit``; ``message``: why it is in its state."""

    id: int
    run: str
    results: Path
    coordinates: Mapping[str, Any]
    priority: int
    time_limit: float | None
    state: str
    message: str
    seconds: float
    pid: int | None
    host: str | None
    submitted: str
    started: str | None
    ended: str | None

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.results / self.run


_COLUMNS = ", ".join(field.name for field in fields(Entry))


def default_queue() -> Path:
    """The queue of this user on this machine: ``NQS_SAE_QUEUE``, or in the user's folder for state."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "nqs_sae_service" / "queue"


class Queue:
    """The queue in ``directory``. Every method is one transaction, safe beside any number of other processes.

    Raises UserError when the directory is on a network file system (where neither SQLite nor its locks can be trusted), when it
    was written by a newer version, or when the disk refuses.
    """

    def __init__(self, directory: Path, create: bool = True) -> None:
        self.directory = directory.absolute()
        self._file = self.directory / "queue.sqlite3"
        self.exists = create or self._file.exists()
        if not self.exists:
            return
        if is_network(self.directory):
            raise UserError(
                f"{self.directory} is on a network file system ({kind_of_filesystem(self.directory)}), where a queue can lose "
                f"runs; put it on a local disk with --queue or {VARIABLE}, or use submit --slurm"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA_VERSION:
                raise UserError(
                    f"{self._file} was written by a newer version of this package; update it here too"
                )
            if version < _SCHEMA_VERSION:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def submit(
        self, points: Iterable[Point], results: Path, priority: int, time_limit: float | None
    ) -> list[str]:
        """Freeze points into the queue, all or none; a run that is there already, and not running, is replaced.

        Returns the names of the runs. Raises UserError when one of them is running.
        """
        names = []
        with self._transaction() as database:
            self._revive(database)
            for point in points:
                place = (point.run, str(results.absolute()))
                busy = database.execute(
                    "SELECT 1 FROM runs WHERE run = ? AND results = ? AND state IN ('running', 'cancelling')",
                    place,
                ).fetchone()
                if busy:
                    raise UserError(
                        f"{point.run} is running; wait for its end, cancel it, or give the new one another name"
                    )
                database.execute("DELETE FROM runs WHERE run = ? AND results = ?", place)
                row = (*place, point.toml(), json.dumps(dict(point.coordinates)), priority, time_limit, now())
                database.execute(
                    "INSERT INTO runs (run, results, spec, coordinates, priority, time_limit, submitted) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
                names.append(point.run)
        return names

    def entries(self, *states: str) -> list[Entry]:
        """The runs in these states (in any, without names): those that come next first."""
        if not self.exists:
            return []
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        with self._connected() as database:
            rows = database.execute(
                f"SELECT {_COLUMNS} FROM runs {where} ORDER BY priority DESC, id", states
            ).fetchall()
        return [_entry(row) for row in rows]

    def frozen(self, entry: Entry) -> Point:
        """The point of a run. Raises UserError when this version of the package does not understand it."""
        from ..spec import frozen_point

        with self._connected() as database:
            (text,) = database.execute("SELECT spec FROM runs WHERE id = ?", (entry.id,)).fetchone()
        return frozen_point(text, entry.run, entry.coordinates)

    def state(self, entry: Entry) -> str | None:
        """The present state of a run; None when it has been taken out."""
        with self._connected() as database:
            row = database.execute("SELECT state FROM runs WHERE id = ?", (entry.id,)).fetchone()
        return row[0] if row else None

    @contextmanager
    def taken(self, entry: Entry) -> Iterator[bool]:
        """Mark a queued run as running and hold its lock inside; False when another worker was faster."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._lock(entry.id)))
            except BlockingIOError:
                yield False
                return
            with self._transaction() as database:
                changed = database.execute(
                    "UPDATE runs SET state = 'running', message = '', pid = ?, host = ?, started = ?, ended = NULL "
                    "WHERE id = ? AND state = 'queued'",
                    (os.getpid(), platform.node(), now(), entry.id),
                ).rowcount
            yield changed == 1

    def settle(self, entry: Entry, state: str, message: str = "", seconds: float = 0.0) -> None:
        """Record how an attempt at a running run has ended, ``seconds`` of computing later. A cancelled one stays cancelled."""
        ended = now() if state in ("done", "failed") else None
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = CASE WHEN state = 'cancelling' AND ?1 <> 'done' THEN 'cancelled' ELSE ?1 END, "
                "message = ?2, seconds = seconds + ?3, ended = ?4, pid = NULL, deaths = 0 WHERE id = ?5",
                (state, message, seconds, ended, entry.id),
            )

    def revive(self) -> list[str]:
        """Put runs whose worker has died back into the queue; their names. One that kills every worker fails."""
        if not self.exists:
            return []
        with self._transaction() as database:
            return self._revive(database)

    def cancel(self, entry: Entry) -> str:
        """Take a run out of the queue, or ask its worker to stop it; the state it is in now."""
        with self._transaction() as database:
            self._revive(database)
            database.execute(
                "UPDATE runs SET state = CASE state WHEN 'queued' THEN 'cancelled' WHEN 'running' THEN 'cancelling' "
                "ELSE state END, ended = CASE state WHEN 'queued' THEN ? ELSE ended END WHERE id = ?",
                (now(), entry.id),
            )
            return database.execute("SELECT state FROM runs WHERE id = ?", (entry.id,)).fetchone()[0]

    def retry(self, entry: Entry) -> str:
        """Queue a failed or cancelled run again, with its time limit anew; the state it is in now."""
        with self._transaction() as database:
            self._revive(database)
            database.execute(
                "UPDATE runs SET state = 'queued', message = '', seconds = 0, deaths = 0, reached = '', ended = NULL "
                "WHERE id = ? AND state IN ('failed', 'cancelled')",
                (entry.id,),
            )
            return database.execute("SELECT state FROM runs WHERE id = ?", (entry.id,)).fetchone()[0]

    def forget(self, entries: Iterable[Entry]) -> None:
        """Take runs that have ended out of the table; their files stay."""
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM runs WHERE id = ? AND state IN ('done', 'failed', 'cancelled')",
                [(entry.id,) for entry in entries],
            )

    def _revive(self, database: sqlite3.Connection) -> list[str]:
        """See ``revive``; inside a transaction, so that no worker takes a run meanwhile."""
        revived = []
        rows = database.execute(
            "SELECT id, run, results, state, deaths, reached FROM runs WHERE state IN ('running', 'cancelling')"
        ).fetchall()
        for number, run, results, state, deaths, before in rows:
            try:
                with locked(self._lock(number)):
                    reached = _reached(Path(results, run))
                    deaths = deaths + 1 if reached == before else 1
                    new, message = "queued", "its worker died"
                    if state == "cancelling":
                        new, message = "cancelled", ""
                    elif deaths >= _MOST_DEATHS:
                        new = "failed"
                        message = f"{deaths} workers died at the same point of this run (out of memory?); see logs, then retry"
                    database.execute(
                        "UPDATE runs SET state = ?, message = ?, deaths = ?, reached = ?, pid = NULL WHERE id = ?",
                        (new, message, deaths, reached, number),
                    )
                    revived.append(run)
            except BlockingIOError:
                continue
        return revived

    def _lock(self, number: int) -> Path:
        return self.directory / f"{number}.lock"

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self._file, timeout=_PATIENCE, isolation_level=None)
            try:
                database.execute("PRAGMA synchronous = FULL")
                yield database
            finally:
                database.close()
        except sqlite3.DatabaseError as problem:
            raise UserError(
                f"{self._file}: {problem}; free space or mend the permissions, nothing that was queued is lost"
                if isinstance(problem, sqlite3.OperationalError)
                else f"{self._file}: {problem}; move it away and submit again"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.rollback()
                raise
            database.execute("COMMIT")


def _entry(row: tuple[Any, ...]) -> Entry:
    number, run, results, coordinates, *rest = row
    return Entry(number, run, Path(results), json.loads(coordinates), *rest)


def _reached(directory: Path) -> str:
    """How far a run has come, as a text that changes when it comes further."""
    status = read_status(directory)
    return f"{status.get('stage')} {status.get('progress')}"
