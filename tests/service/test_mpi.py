"""Runs by several processes: the same numbers, one voice, stopping and failing together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy
import toy_over_ranks

from nqs_sae_service.datasets import read_stage
from nqs_sae_service.engine import ranks as engine_ranks
from nqs_sae_service.errors import UserError
from nqs_sae_service.service import mpi
from nqs_sae_service.service.checkpoint import load_checkpoint
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

CHAIN = [
    name for name in STAGES if name not in ("transfer", "dynamics", "crosscoder", "completeness", "heads")
]  # of a spec without them

REAL = """
name = "ring"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 2
width = 8
heads = 2
layers = 1
[sampling]
chains = 64
burn_in = 5
[ground_state]
steps = 40
samples = 128
learning_rate = 0.15
final_samples = 1024
[samples]
count = 256
[attribution]
samples = 64
ablated = 2
ablation_samples = 16
[engine]
threads = 1
[output]
report = false
figures = false
"""


@pytest.fixture
def start(mpiexec, tmp_path, spawn):
    """``start(results, **environment)`` begins the toy chain with two processes."""
    spec = toy.write_spec(tmp_path)

    def begin(results: Path, **environment: str) -> subprocess.Popen[str]:
        command = [*mpiexec(2), toy_over_ranks.__file__, str(spec), str(results)]
        return spawn(command, env=os.environ | environment)

    return begin


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The toy chain by one process."""
    directory = tmp_path_factory.mktemp("alone")
    plans = make_plan(load_spec(toy.write_spec(directory)), toy_over_ranks.STAGES, directory / "results")
    assert run_plans(plans).code == 0
    return directory / "results" / "toy"


def status(results: Path) -> dict:
    return json.loads((results / "toy" / "status.json").read_text())


def pids(log: Path) -> dict[int, int]:
    """Process numbers by rank, as soon as both are there."""
    for _ in range(4000):
        lines = log.read_text().splitlines() if log.exists() else []
        found = {int(line.split()[1]): int(line.split()[-1]) for line in lines if line.startswith("rank")}
        if len(found) == 2:
            return found
        time.sleep(0.01)
    raise TimeoutError(log)


def test_a_signal_to_any_rank_stops_all_and_any_number_continues(start, undisturbed, tmp_path):
    log, results = tmp_path / "toy.log", tmp_path / "results"
    stopped = start(results, TOY_SLEEP="0.05", TOY_LOG=str(log))
    both = pids(log)
    time.sleep(0.3)
    os.kill(both[1], signal.SIGTERM)
    out, errors = stopped.communicate(timeout=30)
    assert stopped.returncode == 75, errors
    assert out == ""
    assert errors.splitlines()[-1] == "toy: stopped; run the same command again to continue"
    assert status(results)["state"] == "stopped"
    (checkpoint,) = (results / ".store").glob("ground_state-*.checkpoint.npz")
    arrays = load_checkpoint(checkpoint)
    assert arrays is not None
    assert arrays["x"].shape == (7,)
    assert 0 < int(arrays["step"]) < 40
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / ".store").mkdir()
    (tmp_path / "alone" / ".store" / checkpoint.name).write_bytes(checkpoint.read_bytes())

    continued = start(results)
    out, errors = continued.communicate(timeout=60)
    assert continued.returncode == 0, errors
    assert out.splitlines() == [str(results / "toy")]
    assert errors.count("continuing from the checkpoint") == 1
    toy.assert_same(results / "toy", undisturbed)
    with read_stage(results / "toy" / "ground_state.nc") as data:
        assert data.attrs["ranks"] == 2
    with read_stage(results / "toy" / "samples.nc") as data:
        assert data.attrs["ranks"] == 1

    plans = make_plan(load_spec(tmp_path / "toy.toml"), toy_over_ranks.STAGES, tmp_path / "alone")
    assert plans[0].steps[0].reason == "continues from its checkpoint"
    assert run_plans(plans).code == 0
    toy.assert_same(tmp_path / "alone" / "toy", undisturbed)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_alone_ends_all_and_says_why(start, tmp_path, rank):
    process = start(tmp_path / "results", TOY_FAILS=str(rank))
    out, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert out == ""
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "ZeroDivisionError: a bug" in line
    assert ("rank 1 of 2 on " in line) == (rank == 1)
    assert status(tmp_path / "results")["state"] == "failed"
    assert "a bug" in status(tmp_path / "results")["error"]
    assert "Traceback" in (tmp_path / "results" / "toy" / "run.jsonl").read_text()


def test_what_all_ranks_meet_ends_in_order_with_the_last_state_kept(start, tmp_path):
    process = start(tmp_path / "results", TOY_FAILS="all")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: toy: the energy is not finite")
    assert list((tmp_path / "results" / ".store").glob("ground_state-*.checkpoint.npz"))


def test_a_run_by_two_processes_draws_the_chains_of_one(mpiexec, tmp_path):
    spec = tmp_path / "ring.toml"
    spec.write_text(REAL, encoding="utf-8")
    command = ["-m", "nqs_sae_service", "run", str(spec), "--until", "observables", "--results"]
    subprocess.run([*mpiexec(2), *command, str(tmp_path / "two")], check=True, timeout=300)
    subprocess.run([sys.executable, *command, str(tmp_path / "one")], check=True, timeout=300)
    one, two = (
        {stage: read_stage(tmp_path / by / "ring" / f"{stage}.nc") for stage in list(CHAIN)[:3]}
        for by in ("one", "two")
    )
    for stage in one:
        assert two[stage].sizes == one[stage].sizes
        assert set(two[stage].variables) == set(one[stage].variables)
        assert two[stage].attrs["key"] == one[stage].attrs["key"]
    energies = [run["ground_state"].attrs["final_energy"] for run in (one, two)]
    errors = [run["ground_state"].attrs["final_energy_error"] for run in (one, two)]
    assert abs(energies[0] - energies[1]) < 4 * np.hypot(*errors)
    assert abs(two["ground_state"].attrs["relative_error"]) < 1e-2
    # Roundings differ from the first step on; after few steps they have turned no decision yet.
    np.testing.assert_allclose(two["ground_state"].energy[:5], one["ground_state"].energy[:5], rtol=1e-4)
    for run in (one, two):
        for data in run.values():
            data.close()


def test_more_processes_than_chains_are_refused(tmp_path):
    plans = make_plan(load_spec(toy.write_spec(tmp_path)), toy.STAGES, tmp_path / "results")
    chains = plans[0].point.spec.sampling.chains
    mpi.refuse_idle_ranks(plans, chains)
    with pytest.raises(UserError, match=f"{chains + 1} processes cannot share sampling.chains = {chains}"):
        mpi.refuse_idle_ranks(plans, chains + 1)


@pytest.fixture
def launched(monkeypatch):
    for size, rank in mpi._LAUNCHERS:
        monkeypatch.delenv(size, raising=False)
        monkeypatch.delenv(rank, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    return monkeypatch


def test_without_mpi4py_several_processes_are_refused(launched):
    launched.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match="3 processes were started together, but mpi4py cannot be used"):
        mpi.processes()
    launched.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert mpi.execute(lambda ranks: pytest.fail("it is alone")) == 1  # quietly: rank 0 has said it


def test_processes_that_believe_to_be_alone_are_refused(launched):
    launched.setattr(mpi, "MpiRanks", engine_ranks.Ranks)
    with pytest.raises(UserError, match="3 processes were started together, but mpi4py sees 1"):
        mpi.processes()


def test_without_a_launcher_mpi_is_not_even_imported(launched):
    launched.delenv("OMPI_COMM_WORLD_SIZE")
    launched.setattr(mpi, "MpiRanks", lambda: pytest.fail("no need"))
    assert mpi.processes() is engine_ranks.ALONE


def test_ranks_of_a_machine_share_its_cores_unless_they_are_dealt_out():
    shared = [("a", set(range(8)))] * 3 + [("b", {0, 1})]
    assert [mpi._part_of_the_machine(shared, rank) for rank in range(4)] == [(2, 0), (2, 1), (2, 2), (2, 0)]
    dealt = [("a", {0, 1, 2}), ("a", {3})]
    assert [mpi._part_of_the_machine(dealt, rank) for rank in range(2)] == [(3, 0), (1, 1)]
    assert mpi._part_of_the_machine([("a", {0})] * 2, 1) == (1, 1)


def test_errors_of_use_are_said_once(mpiexec, tmp_path):
    spec = tmp_path / "ring.toml"
    spec.write_text(REAL.replace("length = 8", "length = -8"), encoding="utf-8")
    command = [*mpiexec(2), "-m", "nqs_sae_service", "run", str(spec), "--dry-run"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert out.returncode == 2
    assert out.stdout == ""
    (line,) = out.stderr.splitlines()
    assert "lattice.length" in line


def test_a_device_that_a_rank_lacks_ends_the_run_in_order(mpiexec, tmp_path):
    """All ranks know that one has no GPU: the run fails in one line, and the next one begins."""
    spec = tmp_path / "ring.toml"
    spec.write_text(REAL + "[sweep.grid]\nseed = [1, 2]\n", encoding="utf-8")
    command = [*mpiexec(2), "-m", "nqs_sae_service", "run", str(spec), "--results", str(tmp_path / "results")]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    out = subprocess.run(
        [*command, "--set", "engine.device=gpu"], capture_output=True, text=True, timeout=100, env=environment
    )
    assert (out.returncode, out.stdout) == (1, "")
    lines = out.stderr.splitlines()
    assert len(lines) == 2
    assert all("rank 0 of 2: engine.device" in line for line in lines)
