"""The real chain, as a user runs it: killed, stopped, edited, swept, diverging."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nqs_sae_service.datasets import differences
from nqs_sae_service.service.checkpoint import load_checkpoint
from nqs_sae_service.service.log import log_to_stderr
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

CHAIN = [name for name in STAGES if name not in ("transfer", "dynamics")]  # of a spec that asks for neither

SPEC = """
name = "ring"
[lattice]
kind = "chain"
length = 12
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
kind = "transformer"
patch = 3
width = 8
heads = 2
layers = 2
attention = "positional"
[sampling]
chains = 64
burn_in = 5
[ground_state]
steps = 60
samples = 128
learning_rate = 0.15
final_samples = 512
checkpoints = [0]
[samples]
count = 512
[activations]
layers = ["residual_2"]
[sae]
kind = "topk"
features = 16
k = 2
steps = 400
batch = 512
seeds = [1, 2, 3]
untrained = 2
[features]
bootstrap = 50
permutations = 50
[steering]
targets = ["abs_magnetization", "sigma_x"]
scales = [0.5, 1.5]
samples = 512
draws = 2
burn_in = 5
[attribution]
samples = 256
ablated = 4
ablation_samples = 64
edges = 2
[crosscoder]
checkpoints = [0]
[completeness]
order = 2
sites = 4
samples = 256
[heads]
samples = 64
probes = 1
orders = 2
[output]
report = false
figures = false
"""
CONTINUED = "continuing from the checkpoint of an earlier attempt"
EAGER = (
    "--set",
    "engine.checkpoint_seconds=0.01",
)  # a checkpoint whenever it costs less than a tenth of the time


@pytest.fixture(scope="module")
def spec(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "ring.toml"
    path.write_text(SPEC, encoding="utf-8")
    return path


def plan(spec: Path, results: Path, *sets: str, until: str | None = None):
    return make_plan(load_spec(spec, sets), STAGES, results, [until] if until else ())


def compute(spec: Path, results: Path, *sets: str, until: str | None = None) -> list[Path]:
    """Run in this process; the run directories."""
    log_to_stderr()
    outcome = run_plans(plan(spec, results, *sets, until=until))
    assert outcome.code == 0
    return list(outcome.directories)


@pytest.fixture(scope="module")
def undisturbed(spec, tmp_path_factory) -> Path:
    return compute(spec, tmp_path_factory.mktemp("undisturbed"))[0]


@pytest.fixture
def start(spec, spawn):
    """``start(results, options...)`` starts ``python -m nqs_sae_service run`` in a process of its own."""

    def begin(results: Path, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "nqs_sae_service",
            "run",
            str(spec),
            "--results",
            str(results),
            *options,
        ]
        return spawn(command)

    return begin


def wait_until(condition, process) -> None:
    """Wait while the process works towards something; it must not end before."""
    for _ in range(12_000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    raise TimeoutError


def checkpoints(results: Path, stage: str = "*") -> list[Path]:
    return list((results / ".store").glob(f"{stage}-*.checkpoint.npz"))


def status(results: Path) -> dict:
    try:
        return json.loads((results / "ring" / "status.json").read_text())
    except (OSError, ValueError):
        return {}


def messages(results: Path) -> list[str]:
    """What the log of the run says, over all attempts."""
    lines = (results / "ring" / "run.jsonl").read_text().splitlines()
    return [json.loads(line)["record"]["message"] for line in lines]


def assert_same(one: Path, other: Path) -> None:
    for stage in CHAIN:
        assert differences(one / f"{stage}.nc", other / f"{stage}.nc") == [], stage


def assert_tidy(results: Path) -> None:
    """Nothing is left but stage files, their sums, and what belongs to the run."""
    assert {path.suffix for path in (results / ".store").iterdir()} == {".nc", ".sha256"}
    assert not [path for path in results.rglob("*") if "tmp~" in path.name or path.name == ".lock"]


def test_killed_in_every_stage_that_checkpoints_it_ends_with_the_same_bits(start, undisturbed, tmp_path):
    rng = np.random.default_rng(11)
    for stage in ("ground_state", "sae", "steering", "crosscoder"):
        process = start(tmp_path, *EAGER)
        wait_until(lambda stage=stage: checkpoints(tmp_path, stage), process)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    final = start(tmp_path, *EAGER)
    out, errors = final.communicate()
    assert final.returncode == 0, errors
    assert out.splitlines() == [str(tmp_path / "ring")]
    assert messages(tmp_path).count(CONTINUED) >= 2
    assert_same(tmp_path / "ring", undisturbed)
    assert_tidy(tmp_path)


def test_sigterm_interrupts_the_compiler(start, tmp_path, monkeypatch):
    """With an empty kernel cache the first step compiles for many seconds and meets no tick."""
    monkeypatch.setenv("NQS_SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    process = start(tmp_path)
    wait_until(lambda: status(tmp_path).get("stage") == "ground_state", process)
    time.sleep(1.0)
    assert not list((tmp_path / "cache").rglob("forward*.nbc"))  # still at it
    process.terminate()
    began = time.monotonic()
    out, errors = process.communicate()
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (75, "")
    assert "Traceback" not in errors
    assert status(tmp_path)["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(start, spec, tmp_path, seed):
    """Moments from the start of the process on: while it imports, compiles, computes, writes."""
    longer = ["ground_state.steps=300", "sae.steps=3000", "steering.draws=20"]
    sets = [part for value in longer for part in ("--set", value)]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    (undisturbed,) = compute(spec, calm, *longer)
    rng = np.random.default_rng(seed)
    process = start(killed, *EAGER, *sets)
    for attempt, moment in enumerate(rng.uniform(0, 1.2, 10)):
        if attempt % 3:  # every third one may die while it imports
            wait_until(lambda process=process: status(killed).get("pid") == process.pid, process)
        time.sleep(moment)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process = start(killed, *EAGER, *sets)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert messages(killed).count(CONTINUED) >= 3
    assert_same(killed / "ring", undisturbed)
    assert_tidy(killed)


def test_asked_to_stop_it_leaves_a_checkpoint_within_seconds_and_continues(
    start, spec, undisturbed, tmp_path
):
    """No checkpoint is due: the one that it continues from was written because it was asked to stop."""
    process = start(tmp_path, "--set", "engine.checkpoint_seconds=1000.0")
    wait_until(lambda: status(tmp_path).get("stage") == "ground_state", process)
    time.sleep(0.7)
    process.terminate()
    asked = time.monotonic()
    out, errors = process.communicate(timeout=20)
    assert time.monotonic() - asked < 10
    assert process.returncode == 75
    assert out == ""
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "ring: stopped; run the same command again to continue"
    assert status(tmp_path)["state"] == "stopped"
    (checkpoint,) = checkpoints(tmp_path)
    arrays = load_checkpoint(checkpoint)
    assert arrays is not None
    assert np.isfinite(arrays["parameters"]).all()
    assert plan(spec, tmp_path)[0].steps[0].reason == "continues from its checkpoint"
    (directory,) = compute(spec, tmp_path)
    assert CONTINUED in messages(tmp_path)
    assert_same(directory, undisturbed)
    assert_tidy(tmp_path)


def reasons(spec: Path, results: Path, *sets: str) -> dict[str, str]:
    """The stages that would run, and why."""
    return {step.stage.name: step.reason for step in plan(spec, results, *sets)[0].steps if step.runs}


def test_editing_steering_runs_steering_alone(spec, undisturbed):
    results = undisturbed.parent
    compute(spec, results, "name='edited'")
    before = {stage: (results / "edited" / f"{stage}.nc").stat().st_ino for stage in CHAIN}
    sets = ("name='edited'", "steering.scales=[0.9]", "steering.draws=1", "steering.targets=['sigma_x']")
    assert reasons(spec, results, *sets) == {
        "steering": "changed: steering.draws, steering.scales, steering.targets"
    }
    (directory,) = compute(spec, results, *sets)
    after = {stage: (directory / f"{stage}.nc").stat().st_ino for stage in CHAIN}
    assert {stage for stage in CHAIN if before[stage] != after[stage]} == {"steering"}
    assert {
        stage for stage in CHAIN if not (directory / f"{stage}.nc").samefile(undisturbed / f"{stage}.nc")
    } == {"steering"}


def test_adding_an_observable_does_not_retrain_the_dictionaries(spec, undisturbed):
    results = undisturbed.parent
    names = "observables.names=['magnetization', 'abs_magnetization', 'half_chain_correlation', 'sigma_x', 'domain_walls']"
    later = {"features", "steering", "attribution", "crosscoder", "heads"}
    assert set(reasons(spec, results, names)) == {"observables", *later}
    (directory,) = compute(spec, results, "name='wider'", names, until="features")
    for stage in ("ground_state", "samples", "activations", "sae"):
        assert (directory / f"{stage}.nc").samefile(undisturbed / f"{stage}.nc")
    assert not (directory / "features.nc").samefile(undisturbed / "features.nc")


def test_a_sweep_over_the_dictionary_trains_one_ground_state(spec, tmp_path):
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(SPEC + "[sweep.grid]\n'sae.k' = [1, 2, 3]\n", encoding="utf-8")
    quick = ("ground_state.steps=2", "sae.steps=5", "sae.seeds=[1]", "sae.untrained=1")
    directories = compute(sweep, tmp_path / "results", *quick, until="sae")
    assert [directory.name for directory in directories] == ["sae.k=1", "sae.k=2", "sae.k=3"]
    stored = [path.name.partition("-")[0] for path in (tmp_path / "results" / ".store").glob("*.nc")]
    assert sorted(stored) == ["activations", "ground_state", "sae", "sae", "sae", "samples"]
    for directory in directories:
        assert (directory / "ground_state.nc").samefile(directories[0] / "ground_state.nc")


def test_a_training_that_diverges_ends_in_one_line_that_names_the_remedy(start, tmp_path):
    """The step is so long, and the matrix so little regularised, that the energy overflows after a few steps."""
    absurd = [
        "learning_rate=10",
        "max_step=1000",
        "shift=1e-12",
        "shift_start=1e-12",
        "final_learning_rate=1.0",
    ]
    sets = [part for value in absurd for part in ("--set", f"ground_state.{value}")]
    process = start(
        tmp_path, *sets, "--set", "engine.checkpoint_seconds=1000.0"
    )  # none is due: it is kept all the same
    out, errors = process.communicate()
    assert process.returncode == 1
    assert out == ""
    (line,) = errors.splitlines()
    assert line.startswith("error: ring: ")
    assert "not finite" in line or "became NaN" in line
    assert "lower ground_state.learning_rate" in line
    assert "Traceback" not in (tmp_path / "ring" / "run.jsonl").read_text()
    assert status(tmp_path)["state"] == "failed"
    (checkpoint,) = checkpoints(tmp_path, "ground_state")
    arrays = load_checkpoint(checkpoint)
    assert arrays is not None
    assert np.isfinite(arrays["parameters"]).all()
    assert np.isfinite(arrays["history_energy"]).all()
    assert not (tmp_path / "ring" / "ground_state.nc").exists()
