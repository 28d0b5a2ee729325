"""The queue as a table: order, states, locks, and what happens to runs whose worker is gone."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest
import toy

from nqs_sae_service.errors import UserError
from nqs_sae_service.service import filesystem
from nqs_sae_service.service.queue import Queue, default_queue
from nqs_sae_service.spec import load_spec


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "queue")


@pytest.fixture
def submit(queue, tmp_path):
    """``submit("name")`` queues a toy run of that name."""

    def put(
        *names: str, priority: int = 0, time_limit: float | None = None, sets: tuple[str, ...] = ()
    ) -> None:
        spec = toy.write_spec(tmp_path)
        points = [load_spec(spec, [f"name='{name}'", *sets])[0] for name in names]
        assert queue.submit(points, tmp_path / "results", priority, time_limit) == list(names)

    return put


def states(queue: Queue) -> dict[str, str]:
    return {entry.run: entry.state for entry in queue.entries()}


def only(queue: Queue):
    (entry,) = queue.entries()
    return entry


def abandon(queue: Queue) -> None:
    """Leave the first queued run as a worker leaves it that was killed: marked as running, its lock free."""
    entry = queue.entries("queued")[0]
    with queue.taken(entry) as mine:
        assert mine


def test_the_most_urgent_come_first_and_then_the_oldest(queue, submit):
    submit("a", "b")
    submit("c", priority=1)
    submit("d", priority=-1)
    submit("e")
    assert [entry.run for entry in queue.entries()] == ["c", "a", "b", "e", "d"]


def test_a_run_is_frozen_when_it_is_submitted(queue, submit, tmp_path):
    submit("a")
    toy.write_spec(tmp_path, "nonsense")
    assert queue.frozen(only(queue)).spec.hamiltonian.h == 1.0
    assert only(queue).directory == tmp_path / "results" / "a"


def test_submitting_again_replaces_what_waits(queue, submit):
    submit("a", "b")
    submit("a", sets=("hamiltonian.h=0.5",))
    assert [entry.run for entry in queue.entries()] == ["b", "a"]
    assert queue.frozen(queue.entries()[1]).spec.hamiltonian.h == 0.5


def test_a_running_run_cannot_be_submitted_again(queue, submit):
    submit("a")
    with queue.taken(only(queue)), pytest.raises(UserError, match=r"a is running; .* another name"):
        submit("b", "a")
    assert states(queue) == {"a": "running"}  # all or none


def test_one_worker_at_a_time(queue, submit, tmp_path):
    submit("a")
    entry, other = only(queue), Queue(tmp_path / "queue")
    with queue.taken(entry) as mine:
        assert mine
        with other.taken(entry) as too:
            assert not too
        assert other.revive() == []
        queue.settle(entry, "done", seconds=3.0)
    assert (only(queue).state, only(queue).seconds) == ("done", 3.0)
    with other.taken(entry) as late:
        assert not late


def test_the_run_of_a_dead_worker_goes_back_into_the_queue(queue, submit):
    submit("a")
    abandon(queue)
    assert states(queue) == {"a": "running"}
    assert queue.revive() == ["a"]
    assert (only(queue).state, only(queue).message) == ("queued", "its worker died")


def test_a_run_that_kills_every_worker_fails_in_the_end(queue, submit):
    submit("a")
    for _ in range(10):
        assert only(queue).state == "queued"
        abandon(queue)
        queue.revive()
    assert only(queue).state == "failed"
    assert "10 workers died at the same point" in only(queue).message


def test_a_run_that_gets_on_does_not(queue, submit, tmp_path):
    submit("a")
    status = tmp_path / "results" / "a" / "status.json"
    status.parent.mkdir(parents=True)
    for attempt in range(25):
        abandon(queue)
        status.write_text(json.dumps({"stage": "ground_state", "progress": attempt // 5 / 10}))
        queue.revive()
        assert only(queue).state == "queued"


def test_cancel_and_retry(queue, submit):
    submit("a", "b")
    a, b = queue.entries()
    assert queue.cancel(a) == "cancelled"
    with queue.taken(a) as mine:
        assert not mine
    with queue.taken(b):
        assert queue.cancel(b) == "cancelling"
        queue.settle(b, "queued", "stopped with a checkpoint")
    assert states(queue) == {"a": "cancelled", "b": "cancelled"}
    assert queue.retry(a) == "queued"
    with queue.taken(a):
        assert queue.cancel(a) == "cancelling"
        queue.settle(a, "done")  # it was faster
    assert states(queue) == {"a": "done", "b": "cancelled"}
    assert (queue.cancel(a), queue.retry(a)) == ("done", "done")


def test_a_cancelled_run_whose_worker_died_is_cancelled(queue, submit):
    submit("a")
    with queue.taken(only(queue)):
        queue.cancel(only(queue))
    queue.revive()
    assert only(queue).state == "cancelled"


def test_only_what_is_done_is_forgotten(queue, submit):
    submit("a", "b", "c")
    a, b, c = queue.entries()
    queue.cancel(a)
    with queue.taken(b):
        queue.settle(b, "done")
    queue.forget([a, b, c])
    assert states(queue) == {"a": "cancelled", "c": "queued"}


def test_a_run_that_was_replaced_meanwhile_is_gone(queue, submit):
    submit("a")
    before = only(queue)
    submit("a", sets=("hamiltonian.h=0.5",))
    assert queue.frozen(before) is None
    assert queue.state(before) is None
    assert queue.cancel(before) == queue.retry(before) == "replaced by another"
    with queue.taken(before) as mine:
        assert not mine
    assert states(queue) == {"a": "queued"}


def test_asking_creates_nothing(tmp_path):
    queue = Queue(tmp_path / "none", create=False)
    assert queue.entries() == []
    assert queue.revive() == []
    queue.forget([])
    assert not (tmp_path / "none").exists()


def test_the_variable_moves_the_queue(monkeypatch, tmp_path):
    monkeypatch.setenv("NQS_SAE_QUEUE", str(tmp_path))
    assert default_queue() == tmp_path
    monkeypatch.delenv("NQS_SAE_QUEUE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_queue() == tmp_path / "state" / "nqs_sae_service" / "queue"


MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
40 21 0:35 / {place} rw shared:2 - {kind} server:/export rw
"""


@pytest.mark.parametrize(
    ("kind", "refused"), [("nfs4", True), ("lustre", True), ("xfs", False), ("tmpfs", False)]
)
def test_a_network_file_system_is_refused(tmp_path, monkeypatch, kind, refused):
    mounts, place = tmp_path / "mountinfo", tmp_path / "a folder"
    mounts.write_text(MOUNTS.format(place=str(place).replace(" ", "\\040"), kind=kind))
    monkeypatch.setattr(filesystem, "_MOUNTS", mounts)
    assert filesystem.kind_of_filesystem(place / "queue") == kind
    assert filesystem.kind_of_filesystem(tmp_path) == "ext4"
    if not refused:
        Queue(place / "queue")
        return
    with pytest.raises(
        UserError, match=rf"network file system \({kind}\).*--queue or NQS_SAE_QUEUE.*--slurm"
    ):
        Queue(place / "queue")
    assert not place.exists()


def test_a_queue_of_a_newer_version_is_left_alone(queue, tmp_path):
    with sqlite3.connect(tmp_path / "queue" / "queue.sqlite3") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="newer version"):
        Queue(tmp_path / "queue")


def test_a_damaged_queue_is_said_plainly(tmp_path):
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / "queue.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"queue.sqlite3: .*move it away and submit again"):
        Queue(tmp_path / "queue").entries()


def test_a_queue_that_is_held_says_so(queue, submit, tmp_path, monkeypatch):
    submit("a")
    monkeypatch.setattr("nqs_sae_service.service.queue._PATIENCE", 0.1)
    with sqlite3.connect(tmp_path / "queue" / "queue.sqlite3") as database:
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="another process holds it, perhaps a stopped one; try again"):
            submit("b")


def test_a_thousand_queued_runs_cost_nothing(tmp_path):
    """``status`` and ``submit`` as processes, start of Python included, take as long as with an empty queue."""
    spec = tmp_path / "toy.toml"
    spec.write_text(toy.SPEC + f"[sweep.grid]\nseed = {list(range(1000))}\n", encoding="utf-8")
    Queue(tmp_path / "queue").submit(load_spec(spec), tmp_path / "results", 0, None)
    one = toy.write_spec(tmp_path)

    def seconds(folder: str, *arguments: str) -> float:
        command = [sys.executable, "-m", "nqs_sae_service", *arguments, "--queue", str(tmp_path / folder)]
        before = os.times()
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    def submission(i: int) -> tuple[str, ...]:
        return "submit", str(one), "--set", f"name='n{i}'"

    for command in (lambda i: ("status",), lambda i: ("status", "--json"), submission):
        pairs = [(seconds("queue", *command(i)), seconds("empty", *command(i))) for i in range(5)]
        full, empty = map(min, zip(*pairs, strict=True))
        assert full < 1.3 * empty + 0.1
    assert len(Queue(tmp_path / "queue").entries("queued")) == 1005
