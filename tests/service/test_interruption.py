"""Runs that are killed, stopped, or meet another process end with the same bits as runs that are left in peace."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import toy

from nqs_sae_service.errors import CompilationStopped
from nqs_sae_service.service import stop
from nqs_sae_service.service.stop import StopRequest

STEPS = 40


@pytest.fixture
def start(tmp_path, spawn):
    """``start(results)`` starts a process that runs the toy spec; each step takes 20 ms."""
    spec = toy.write_spec(tmp_path)

    def begin(results: str, *options: str, sleep: float = 0.02) -> subprocess.Popen[str]:
        environment = os.environ | {"TOY_SLEEP": str(sleep), "TOY_LOG": str(tmp_path / f"{results}.log")}
        command = [sys.executable, toy.__file__, str(spec), str(tmp_path / results), *options]
        return spawn(command, env=environment)

    return begin


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(2000):
        if path.exists() and path.stat().st_size:
            return
        assert process.poll() is None
        time.sleep(0.005)
    raise TimeoutError(path)


def test_killed_at_random_moments_it_ends_with_the_same_bits(start, undisturbed, tmp_path):
    rng = np.random.default_rng(7)
    log = tmp_path / "killed.log"
    for moment in rng.uniform(0.02, 0.5, 3):
        log.unlink(missing_ok=True)
        process = start("killed", sleep=0.05)
        wait_for(log, process)
        time.sleep(moment)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    log.unlink()
    final = start("killed")
    assert final.wait() == 0
    assert "continued from" in log.read_text()
    toy.assert_same(tmp_path / "killed" / "toy", undisturbed)
    leftovers = [
        path for path in (tmp_path / "killed").rglob("*") if "tmp~" in path.name or path.suffix == ".npz"
    ]
    assert leftovers == []


def test_asked_to_stop_it_leaves_a_checkpoint_and_continues(start, undisturbed, tmp_path):
    log = tmp_path / "stopped.log"
    process = start("stopped", "--set", "engine.checkpoint_seconds=1000.0")
    wait_for(log, process)
    time.sleep(0.2)
    process.terminate()
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 75
    assert out == ""
    assert "run the same command again to continue" in errors
    assert '"state": "stopped"' in (tmp_path / "stopped" / "toy" / "status.json").read_text()
    assert start("stopped").wait() == 0
    continued = [line for line in log.read_text().splitlines() if line.startswith("continued from")]
    assert len(continued) == 1
    assert 0 < int(continued[0].split()[-1]) < STEPS
    toy.assert_same(tmp_path / "stopped" / "toy", undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_three_signals_ask_to_stop(number, capfd):
    before = signal.getsignal(number)
    with StopRequest() as untroubled:
        assert not untroubled.asked
    assert signal.getsignal(number) is before
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert stop.asked
            assert number.name in capfd.readouterr().err
    finally:
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)


def test_no_kernel_is_compiled_once_the_end_is_asked_for():
    doubled = numba.njit(lambda x: 2 * x)
    with StopRequest(deadline=time.monotonic()), pytest.raises(CompilationStopped):
        doubled(1)
    with StopRequest():
        assert doubled(1) == 2
    with StopRequest(deadline=time.monotonic()):
        assert doubled(2) == 4  # it is compiled
        with pytest.raises(CompilationStopped):
            doubled(1.0)
        with ThreadPoolExecutor() as pool:
            assert pool.submit(doubled, 1.0).result() == 2.0  # a thread that is not asked to stop


def test_the_same_request_twice_is_one(monkeypatch):
    left = []
    moments = iter([0.0, 0.1, 0.4, 0.6])
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    monkeypatch.setattr(stop, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    monkeypatch.setattr(stop, "_leave_at_once", lambda: left.append("at once"))
    try:
        with StopRequest():
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
                os.kill(os.getpid(), number)
            assert left == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert left == ["at once"]
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), handlers, strict=True):
            signal.signal(number, handler)


def test_two_processes_on_one_run_do_not_meet(start, tmp_path):
    first = start("shared", sleep=1.0)
    wait_for(tmp_path / "shared.log", first)
    second = start("shared")
    _, errors = second.communicate(timeout=20)
    assert second.returncode == 75
    assert "locked by another process" in errors
    assert first.poll() is None


def test_two_runs_that_need_the_same_stage_compute_it_once(start, tmp_path):
    first = start("shared")
    wait_for(tmp_path / "shared.log", first)
    second = start("shared", "--set", 'name="other"')
    assert (first.wait(), second.wait()) == (0, 0)
    lines = (tmp_path / "shared.log").read_text().splitlines()
    assert sorted(lines) == ["ground_state", "samples", "steering"]
    results = tmp_path / "shared"
    assert (results / "toy" / "ground_state.nc").samefile(results / "other" / "ground_state.nc")


def test_a_second_signal_leaves_at_once(start, tmp_path):
    process = start("impatient", sleep=30.0)
    wait_for(tmp_path / "impatient.log", process)
    while not list(
        (tmp_path / "impatient" / ".store").glob("*.npz")
    ):  # written at the first tick, before the long step
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)  # into the long step
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("SIGINT received")
    time.sleep(0.6)  # any sooner, it would belong to the first
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 75
