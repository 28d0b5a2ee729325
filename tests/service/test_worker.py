"""Workers: one, several, stopped, killed, paused, from cron; what they make is what an undisturbed run makes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import toy

from nqs_sae_service.datasets.files import locked
from nqs_sae_service.service import runner
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.queue import Queue
from nqs_sae_service.service.slots import Slots
from nqs_sae_service.service.worker import work
from nqs_sae_service.spec import load_spec


class Lab:
    """A queue, a results directory, and processes that work on them."""

    def __init__(self, folder: Path, spawn) -> None:
        self.spawn = spawn
        self.folder, self.results, self.log = folder, folder / "results", folder / "log"
        self.queue = Queue(folder / "queue")

    def submit(
        self, *sets: str, text: str = toy.SPEC, priority: int = 0, time_limit: float | None = None
    ) -> None:
        points = load_spec(toy.write_spec(self.folder, text), sets)
        self.queue.submit(points, self.results, priority, time_limit)

    def work(self, **options) -> int:
        return work(self.queue, toy.STAGES, **options)

    def start(self, *options: str, sleep: float = 0.02) -> subprocess.Popen[str]:
        environment = os.environ | {"TOY_SLEEP": str(sleep), "TOY_LOG": str(self.log)}
        command = [sys.executable, toy.__file__, "work", "--queue", str(self.queue.directory), *options]
        return self.spawn(command, env=environment)

    def states(self) -> dict[str, str]:
        return {entry.run: entry.state for entry in self.queue.entries()}

    def computed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_until(self, condition) -> None:
        for _ in range(4000):
            if condition():
                return
            time.sleep(0.01)
        raise TimeoutError


@pytest.fixture
def lab(tmp_path, monkeypatch, spawn):
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    return Lab(tmp_path, spawn)


def test_it_computes_what_is_queued_the_most_urgent_first(lab, undisturbed):
    lab.submit()
    lab.submit("name='first'", "hamiltonian.h=0.5", priority=5)
    assert lab.work() == 0
    assert lab.states() == {"toy": "done", "first": "done"}
    began = [entry.started for entry in sorted(lab.queue.entries(), key=lambda entry: -entry.priority)]
    assert began == sorted(began)
    toy.assert_same(lab.results / "toy", undisturbed)
    assert lab.work(drain=True) == 0


def test_a_run_that_fails_does_not_hold_up_the_others(lab, capsys):
    lab.submit("name='bad'", "hamiltonian.h=13.0")
    lab.submit()
    assert lab.work() == 1
    assert lab.states() == {"bad": "failed", "toy": "done"}
    assert "learning_rate" in lab.queue.entries("failed")[0].message
    assert lab.work() == 0  # nothing is left to do


def test_a_frozen_spec_that_fits_no_more_fails_alone(lab):
    lab.submit("name='old'")
    lab.submit()
    with lab.queue._transaction() as database:
        database.execute("UPDATE runs SET spec = 'name = ' WHERE run = 'old'")
    assert lab.work() == 1
    assert lab.states() == {"old": "failed", "toy": "done"}
    assert "submit it again" in lab.queue.entries("failed")[0].message


def test_a_full_disk_ends_the_worker_and_the_runs_stay(lab, undisturbed, monkeypatch):
    lab.submit()
    lab.submit("name='other'")
    with monkeypatch.context() as patch:

        def refuse(*_, **__):
            raise OSError(28, "No space left on device", "somewhere")

        patch.setattr(runner, "save_checkpoint", refuse)
        assert lab.work(drain=True) == 1
    assert lab.states() == {"toy": "queued", "other": "queued"}
    assert lab.computed().count("ground_state") == 1  # the second one was not burned on the same disk
    assert "No space left on device" in lab.queue.entries()[0].message
    assert lab.work() == 0
    toy.assert_same(lab.results / "toy", undisturbed)


def test_a_stage_that_does_not_fit_on_the_disk_stays_in_the_queue(lab, undisturbed, monkeypatch):
    lab.submit()
    with monkeypatch.context() as patch:
        patch.setattr("nqs_sae_service.datasets.netcdf._OVERHEAD", 2**70)
        assert lab.work() == 1
    (entry,) = lab.queue.entries("queued")
    assert "No space left on device" in entry.message
    assert lab.work() == 0
    toy.assert_same(lab.results / "toy", undisturbed)


def test_at_most_so_many_runs(lab):
    for name in "abc":
        lab.submit(f"name='{name}'")
    assert lab.work(max_runs=2) == 0
    assert Counter(lab.states().values()) == {"done": 2, "queued": 1}


def test_at_most_so_long(lab, undisturbed, monkeypatch):
    lab.submit()
    monkeypatch.setenv("TOY_SLEEP", "0.02")
    assert lab.work(max_time=0.4) == 75
    (entry,) = lab.queue.entries()
    assert (entry.state, entry.message) == ("queued", "stopped with a checkpoint")
    monkeypatch.delenv("TOY_SLEEP")
    assert lab.work() == 0
    assert [line for line in lab.computed() if line.startswith("continued")]
    toy.assert_same(lab.results / "toy", undisturbed)


def test_a_run_that_takes_longer_than_it_may_fails_and_can_be_continued(lab, undisturbed, monkeypatch):
    lab.submit(time_limit=0.4)
    lab.submit("name='other'", "hamiltonian.h=0.5", time_limit=100.0)
    monkeypatch.setenv("TOY_SLEEP", "0.02")
    assert lab.work() == 1
    assert lab.states() == {"toy": "failed", "other": "done"}
    (entry,) = lab.queue.entries("failed")
    assert "time limit of 0.4 s is over; retry continues it" in entry.message
    monkeypatch.delenv("TOY_SLEEP")
    assert lab.queue.retry(entry) == "queued"
    assert lab.work() == 0
    toy.assert_same(lab.results / "toy", undisturbed)


def test_the_time_limit_counts_all_attempts(lab, monkeypatch):
    lab.submit(time_limit=0.6)
    monkeypatch.setenv("TOY_SLEEP", "0.02")
    assert lab.work(max_time=0.4) == 75
    assert lab.work() == 1
    assert lab.states() == {"toy": "failed"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_asked_to_stop_it_gives_the_run_back(lab, undisturbed, number):
    lab.submit("engine.checkpoint_seconds=1000.0")
    process = lab.start("--drain")
    lab.wait_until(lab.computed)
    time.sleep(0.2)
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert (process.returncode, out) == (75, "")
    assert "Traceback" not in errors
    assert lab.states() == {"toy": "queued"}
    assert lab.work() == 0
    assert [line for line in lab.computed() if line.startswith("continued")]
    toy.assert_same(lab.results / "toy", undisturbed)


def test_a_killed_worker_loses_nothing(lab, undisturbed):
    lab.submit()
    process = lab.start(sleep=0.05)
    lab.wait_until(lambda: list((lab.results / ".store").glob("*.npz")))
    process.kill()
    process.wait()
    assert lab.states() == {"toy": "running"}
    assert lab.work() == 0
    toy.assert_same(lab.results / "toy", undisturbed)


def test_a_paused_worker_keeps_its_run(lab, undisturbed):
    """SIGSTOP: the process still holds its locks, so nobody takes over; after SIGCONT it ends well."""
    lab.submit()
    process = lab.start(sleep=0.02)
    lab.wait_until(lab.computed)
    process.send_signal(signal.SIGSTOP)
    assert lab.work() == 0
    time.sleep(1.0)
    assert lab.work() == 0
    assert lab.states() == {"toy": "running"}
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=30) == 0
    assert lab.states() == {"toy": "done"}
    assert lab.computed() == ["ground_state", "samples", "steering"]
    toy.assert_same(lab.results / "toy", undisturbed)


def test_a_running_run_can_be_cancelled(lab):
    lab.submit()
    lab.submit("name='next'", "hamiltonian.h=0.5")
    process = lab.start("--slots", "1", sleep=0.05)
    lab.wait_until(lab.computed)
    assert lab.queue.cancel(lab.queue.entries("running")[0]) == "cancelling"
    assert process.wait(timeout=30) == 0
    assert lab.states() == {"toy": "cancelled", "next": "done"}


def test_eight_dictionaries_over_one_ground_state(lab):
    """Two workers at a time: one trains the ground state, once; no stage is computed twice."""
    lab.submit(text=toy.SPEC + "[sweep.grid]\n'steering.draws' = [1, 2, 3, 4, 5, 6, 7, 8]\n")
    workers = [lab.start("--drain", "--slots", "2") for _ in range(2)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
    assert Counter(lab.states().values()) == {"done": 8}
    assert Counter(lab.computed()) == {"ground_state": 1, "samples": 1, "steering": 8}


def test_a_worker_that_would_wait_takes_other_work(lab):
    """The second run needs the stage that the first worker computes; the second worker does the third run instead."""
    lab.submit()
    lab.submit("name='twin'", "steering.draws=3")
    first = lab.start("--slots", "2", "--max-runs", "1", sleep=0.2)
    lab.wait_until(lab.computed)
    lab.submit("name='other'", "hamiltonian.h=0.5")
    second = lab.start("--slots", "2")
    assert second.wait(timeout=60) == 0
    assert lab.states() == {"toy": "running", "twin": "queued", "other": "done"}
    assert first.wait(timeout=60) == 0
    assert lab.work() == 0
    assert lab.computed().count("ground_state") == 2


def test_waiting_for_another_process_does_not_count(lab):
    """The stage that the run needs is held for longer than its time limit."""
    lab.submit(time_limit=1.5)
    (plan,) = make_plan(load_spec(lab.folder / "toy.toml"), toy.STAGES, lab.results)
    with plan.store.lock("ground_state", plan.steps[0].key, lambda: None):
        process = lab.start("--drain", sleep=0.0)
        lab.wait_until(lambda: lab.states() == {"toy": "running"})
        time.sleep(2.5)
        assert lab.states() == {"toy": "running"}
    assert process.wait(timeout=30) == 0
    assert lab.states() == {"toy": "done"}
    assert lab.queue.entries()[0].seconds < 1.5


def test_drain_waits_for_a_run_that_is_in_use(lab, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.service.worker._REST", 0.5)
    lab.submit()
    (lab.results / "toy").mkdir(parents=True)
    with locked(lab.results / "toy" / ".lock"):
        assert lab.work() == 0
        assert lab.states() == {"toy": "queued"}
        assert "is locked by another process" in lab.queue.entries()[0].message
        process = lab.start("--drain", sleep=0.0)
        time.sleep(2.0)
        assert process.poll() is None
    assert process.wait(timeout=30) == 0
    assert lab.states() == {"toy": "done"}


def test_a_sweep_is_drawn_when_its_last_run_has_ended(lab, monkeypatch):
    drawn = []
    monkeypatch.setattr("nqs_sae_service.service.worker.draw", lambda sweep, spec: drawn.append(sweep.name))
    text = toy.SPEC + "[sweep.grid]\n'hamiltonian.h' = [1.0, 0.5, 13.0]\n"
    lab.submit(text=text)
    assert lab.work(max_runs=2) == 0
    assert drawn == []
    assert lab.work() == 1  # the last one fails
    assert drawn == ["toy"]


def test_workers_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("nqs_sae_service.service.slots.cores", lambda: {0, 1})
    alone, two, four = (Slots(tmp_path, at_once) for at_once in (0, 2, 4))
    assert [slots.needed(0) for slots in (alone, two, four)] == [2, 1, 1]
    assert [alone.needed(threads) for threads in (1, 2, 64)] == [1, 2, 2]
    with two.taken(0) as first, two.taken(0) as second, two.taken(0) as third, four.taken(0) as fourth:
        assert (first, second, third, fourth) == (True, True, False, True)
    with two.taken(0) as first, alone.taken(0) as all_of_them:
        assert (first, all_of_them) == (True, False)
    with alone.taken(0) as again:
        assert again


def test_a_run_stays_on_the_cores_of_its_slots(tmp_path):
    before = os.sched_getaffinity(0)
    with Slots(tmp_path, len(before)).taken(0) as enough:
        assert enough
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_every_gpu_goes_to_one_worker(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with Slots(tmp_path).one_gpu() as first:
        assert first
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        with Slots(tmp_path).one_gpu() as second:
            assert second
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
            with Slots(tmp_path).one_gpu() as third:
                assert not third
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with Slots(tmp_path).one_gpu() as none:
        assert not none


def test_in_cron_it_is_silent_and_needs_no_environment(lab, undisturbed):
    """Another working directory, no variables, no terminal: nothing is said when all goes well or nothing is to do."""
    lab.submit()
    command = [sys.executable, toy.__file__, "work", "--drain", "--queue", str(lab.queue.directory)]
    for _ in range(2):
        done = subprocess.run(
            command, cwd="/", env={}, capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    toy.assert_same(lab.results / "toy", undisturbed)
    assert "toy: begins" in (lab.queue.directory / "work.log").read_text()


def test_in_cron_a_failure_is_one_line(lab):
    lab.submit("hamiltonian.h=13.0")
    process = lab.start()
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: toy: the energy is not finite")


def test_while_another_worker_has_the_machine_it_ends_silently(lab):
    lab.submit()
    lab.submit("name='other'")
    first = lab.start(sleep=0.2)
    lab.wait_until(lab.computed)
    second = lab.start("--drain")
    out, errors = second.communicate(timeout=60)
    assert (second.returncode, out, errors) == (0, "", "")
    assert first.poll() is None


def test_the_log_of_a_run_can_be_followed(lab):
    lab.submit()
    command = [sys.executable, toy.__file__, "logs", "toy", "-f", "--queue", str(lab.queue.directory)]
    reader = lab.spawn(command, cwd=lab.folder)
    time.sleep(0.5)
    assert reader.poll() is None  # it waits for the run to begin
    lab.start(sleep=0.01)
    out, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert "toy: ground_state done" in out
    assert "total" in out.splitlines()[-1]
