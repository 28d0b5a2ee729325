"""A real Slurm of one node: arrays that are preempted, whose time is over, and that are cancelled.

Slurm comes with `apt-get install slurm-wlm munge`; without it these tests are skipped, and fail where CI=true.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy

from nqs_sae_service.datasets import same_data
from nqs_sae_service.datasets.status import read_status
from nqs_sae_service.errors import UserError
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.service.slurm import cancel_slurm, slurm_jobs
from nqs_sae_service.service.submission import submit_slurm
from nqs_sae_service.spec import load_spec

SWEEP = "[sweep.grid]\n'steering.draws' = [2, 3]\n"
NODE = Path(__file__).with_name("single-node-slurm.sh")
DAEMONS = ("slurmctld", "slurmd", "munged")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The SLURM_CONF of a Slurm that runs while the tests of this module do."""
    missing = [name for name in DAEMONS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        reason = f"no Slurm here ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([NODE, "start", directory], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    yield started.stdout.strip()
    subprocess.run([NODE, "stop", directory], check=True)


@pytest.fixture
def slurm(node, tmp_path, monkeypatch):
    """``slurm(text, seconds of a step)`` submits a spec; the tasks run the toy chain and note what they do in toy.log."""
    monkeypatch.setenv("SLURM_CONF", node)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "toy.log"))

    def submit(text, sleep):
        monkeypatch.setenv("TOY_SLEEP", str(sleep))
        points = load_spec(toy.write_spec(tmp_path, text))
        submit_slurm(points, toy.STAGES, tmp_path / "results", (sys.executable, toy.__file__))
        return tmp_path / "results"

    yield submit
    subprocess.run(["scancel", f"--user={os.getuid()}"], check=True)
    wait_for(lambda: not queue())


def queue():
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


def wait_for(condition, seconds=120):
    """What the condition says as soon as that is something."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, queue()
        time.sleep(0.2)
    return found


def noted(results, line=""):
    log = results.parent / "toy.log"
    return [entry for entry in log.read_text().splitlines() if entry.startswith(line)] if log.exists() else []


def reached(results):
    """How far the first point is with the stage it computes."""
    status = read_status(results / "toy" / "steering.draws=2")
    return status.get("progress", 0.0) if status.get("state") == "running" else 0.0


def test_a_preempted_array_ends_with_the_same_data(slurm, tmp_path, monkeypatch):
    results = slurm(toy.SPEC + SWEEP, sleep=0.2)
    wait_for(lambda: reached(results) > 0.1)
    subprocess.run(
        ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 0.1"], check=True
    )
    wait_for(lambda: noted(results, "continued from"))
    (job,) = [job for job in slurm_jobs(results) if job.state == "RUNNING"]
    assert (job.run, job.until) == ("toy/steering.draws=2", ("samples",))

    # What Slurm does two minutes before the end of the time: USR1 to the shell of the task.
    subprocess.run(["scancel", "--batch", "--signal=USR1", job.job], check=True)
    wait_for(lambda: not slurm_jobs(results))

    steps = [int(line.split()[-1]) for line in noted(results, "continued from")]
    assert len(steps) == 2
    assert 0 < steps[0] <= steps[1] < 40
    assert [len(noted(results, stage)) for stage in toy.STAGES] == [3, 1, 2]
    log = (results / ".slurm" / "toy-1" / "wave-1-task-0.log").read_text()
    assert "DUE TO PREEMPTION" in log
    assert "SIGUSR1 received: writing a checkpoint" in log

    monkeypatch.setenv("TOY_SLEEP", "0")
    alone = tmp_path / "alone"
    points = load_spec(tmp_path / "toy.toml")
    run_plans(make_plan(points, toy.STAGES, alone))
    for point in points:
        status = read_status(results / point.run)
        assert (status["state"], status["run"]) == ("done", point.run)
        assert status["coordinates"] == dict(point.coordinates)
        for stage in toy.STAGES:
            assert same_data(results / point.run / f"{stage}.nc", alone / point.run / f"{stage}.nc")
    assert [path for path in results.rglob("*") if "tmp~" in path.name or path.suffix == ".npz"] == []


def test_a_cancelled_run_stays_cancelled_and_keeps_its_checkpoint(slurm):
    results = slurm(toy.SPEC, sleep=0.2)
    wait_for(lambda: noted(results, "ground_state"))
    with pytest.raises(UserError, match="toy is with Slurm already"):
        slurm(toy.SPEC, sleep=0.2)
    assert [job.run for job in cancel_slurm(results, "toy")] == ["toy"]
    wait_for(lambda: not queue())
    assert read_status(results / "toy")["state"] == "stopped"
    assert list((results / ".store").glob("ground_state-*.npz"))
    assert slurm_jobs(results) == []


def test_what_slurm_refuses_leaves_nothing_behind(slurm):
    with pytest.raises(UserError, match=r"sbatch: .*invalid partition specified: nowhere"):
        slurm(toy.SPEC + "[engine.slurm]\npartition = 'nowhere'\n", sleep=0)
    assert not queue()
