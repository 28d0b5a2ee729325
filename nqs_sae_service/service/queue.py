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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.files import is_locked, locked
from ..datasets.status import now, read_status
from ..errors import UserError
from .filesystem import is_network, kind_of_filesystem

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
        with self._connected() as database:  # looking must not wait for one who writes
            (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise UserError(
                f"{self._file} was written by a newer version of this package; update it here too"
            )
        if version < _SCHEMA_VERSION:
            with self._transaction() as database:
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
        self.revive()
        with self._transaction() as database:
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

    def entries(self, *states: str, most: int = -1) -> list[Entry]:
        """The runs in these states (in any, without names), at most so many: those that come next first."""
        if not self.exists:
            return []
        where = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        with self._connected() as database:
            rows = database.execute(
                f"SELECT {_COLUMNS} FROM runs {where} ORDER BY priority DESC, id LIMIT ?", (*states, most)
            ).fetchall()
        return [_entry(row) for row in rows]

    def frozen(self, entry: Entry) -> Point | None:
        """The point of a run; None when it has been taken out or replaced meanwhile.

        Raises UserError when this version of the package does not understand it.
        """
        from ..spec import frozen_point

        text = self._value("spec", entry)
        return None if text is None else frozen_point(text, entry.run, entry.coordinates)

    def state(self, entry: Entry) -> str | None:
        """The present state of a run; None when it has been taken out or replaced."""
        return self._value("state", entry)

    def _value(self, column: str, entry: Entry) -> str | None:
        with self._connected() as database:
            row = database.execute(f"SELECT {column} FROM runs WHERE id = ?", (entry.id,)).fetchone()
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
        abandoned = [
            entry for entry in self.entries("running", "cancelling") if not is_locked(self._lock(entry.id))
        ]
        if not abandoned:
            return []
        # Files are read outside of the transaction: they may be on a slow file system.
        reached = {entry.id: _reached(entry.directory) for entry in abandoned}
        with self._transaction() as database:
            return [entry.run for entry in abandoned if self._requeue(database, entry.id, reached[entry.id])]

    def cancel(self, entry: Entry) -> str:
        """Take a run out of the queue, or ask its worker to stop it; the state it is in now."""
        self.revive()
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = CASE state WHEN 'queued' THEN 'cancelled' WHEN 'running' THEN 'cancelling' "
                "ELSE state END, ended = CASE state WHEN 'queued' THEN ? ELSE ended END WHERE id = ?",
                (now(), entry.id),
            )
        return self.state(entry) or "replaced by another"

    def retry(self, entry: Entry) -> str:
        """Queue a failed or cancelled run again, with its time limit anew; the state it is in now."""
        self.revive()
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = 'queued', message = '', seconds = 0, deaths = 0, reached = '', ended = NULL "
                "WHERE id = ? AND state IN ('failed', 'cancelled')",
                (entry.id,),
            )
        return self.state(entry) or "replaced by another"

    def forget(self, entries: Sequence[Entry]) -> None:
        """Take runs that are done out of the table; their files stay."""
        if not entries:
            return
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM runs WHERE id = ? AND state = 'done'", [(entry.id,) for entry in entries]
            )

    def _requeue(self, database: sqlite3.Connection, number: int, reached: str) -> bool:
        """Put a run whose worker has died back into the queue; False when it is in somebody's hands after all."""
        row = database.execute(
            "SELECT state, deaths, reached FROM runs WHERE id = ? AND state IN ('running', 'cancelling')",
            (number,),
        ).fetchone()
        if row is None:
            return False
        state, deaths, before = row
        try:
            with locked(self._lock(number)):
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
        except BlockingIOError:
            return False
        return True

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
            raise UserError(f"{self._file}: {problem}; {_remedy(problem)}") from None

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


def _remedy(problem: sqlite3.DatabaseError) -> str:
    if not isinstance(problem, sqlite3.OperationalError):
        return "move it away and submit again"
    if "locked" in str(problem):
        return "another process holds it, perhaps a stopped one; try again"
    return "free space or mend the permissions, nothing that was queued is lost"


def _entry(row: tuple[Any, ...]) -> Entry:
    number, run, results, coordinates, *rest = row
    return Entry(number, run, Path(results), json.loads(coordinates), *rest)


def _reached(directory: Path) -> str:
    """How far a run has come, as a text that changes when it comes further."""
    status = read_status(directory)
    return f"{status.get('stage')} {status.get('progress')}"
