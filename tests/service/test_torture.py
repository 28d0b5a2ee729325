"""Many runs, four workers, kill -9 of a random worker again and again until the queue is empty.

Then every run is done, every stage is in the store once, and the data are bit for bit those of an undisturbed run.
"""

import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import toy

from nqs_sae_service.datasets import differences
from nqs_sae_service.datasets.files import sha256_of
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.queue import Queue
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

_WORKERS = 4

REAL = """
name = "ring"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
patch = 2
width = 8
heads = 2
[sampling]
chains = 64
burn_in = 5
[ground_state]
steps = 30
samples = 128
final_samples = 512
[samples]
count = 512
[activations]
layers = ["residual_2"]
[sae]
features = 16
k = 2
steps = 200
batch = 512
seeds = [1, 2]
untrained = 1
[features]
bootstrap = 20
permutations = 20
[steering]
targets = ["abs_magnetization"]
scales = [0.5, 1.5]
samples = 512
draws = 1
burn_in = 2
[engine]
checkpoint_seconds = 0.05
[output]
report = false
figures = false
"""


def torture(folder: Path, text: str, program: list[str], every: float, seed: int) -> tuple[Queue, int]:
    """Queue all points of a spec, let workers compute them, and kill one of them every so many seconds, at random.

    On a busy machine less often: a worker that always dies while it starts would get nowhere.
    """
    spec, queue, rng = folder / "spec.toml", Queue(folder / "queue"), np.random.default_rng(seed)
    spec.write_text(text, encoding="utf-8")
    queue.submit(load_spec(spec), folder / "results", 0, None)
    command = [*program, "work", "--drain", "--slots", str(_WORKERS), "--queue", str(queue.directory)]
    began = time.monotonic()
    subprocess.run([*program, "work", "--queue", str(folder / "empty")], check=True, cwd="/")
    every = max(every, 0.6 * (time.monotonic() - began))
    errors = open(folder / "errors", "w", encoding="utf-8")  # noqa: SIM115  (the workers write to it)
    workers: list[subprocess.Popen] = []
    kills = 0
    deadline = time.monotonic() + 3000
    try:
        while queue.entries("queued", "running"):
            assert time.monotonic() < deadline
            workers = [worker for worker in workers if worker.poll() is None]
            while len(workers) < _WORKERS:
                workers.append(subprocess.Popen(command, stdout=errors, stderr=errors, cwd="/"))
            time.sleep(rng.exponential(every))
            workers[rng.integers(len(workers))].kill()
            kills += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
        errors.close()
    assert (folder / "errors").read_text(encoding="utf-8") == ""
    return queue, kills


def assert_undamaged(queue: Queue, folder: Path, stages, stored: Counter[str]) -> None:
    """Every run done and complete; the store holds each stage once, as its sum says; nothing else is left behind."""
    entries = queue.entries()
    assert {entry.state for entry in entries} == {"done"}, Counter(entry.state for entry in entries)
    calm = make_plan([queue.frozen(entry) for entry in entries], stages, folder / "calm")
    assert run_plans(calm).code == 0
    for entry, plan in zip(entries, calm, strict=True):
        for stage in stages:
            found = differences(entry.directory / f"{stage}.nc", plan.directory / f"{stage}.nc")
            assert found == [], (entry.run, stage, found)
    store = folder / "results" / ".store"
    files = list(store.glob("*.nc"))
    assert Counter(path.name.partition("-")[0] for path in files) == stored
    for path in files:
        assert Path(f"{path}.sha256").read_text(encoding="utf-8").split() == [sha256_of(path), path.name]
    kept = {*files, *(Path(f"{path}.sha256") for path in files)}
    # A worker that was killed just after the last stage leaves an empty lock file, which nothing minds.
    assert [path for path in store.iterdir() if path not in kept and path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("seeds", "draws", "every"), [pytest.param(2, 6, 0.8), pytest.param(10, 10, 0.7, marks=pytest.mark.slow)]
)
def test_killed_at_random_nothing_is_lost_of_a_chain_of_tiny_stages(
    tmp_path, monkeypatch, seeds, draws, every
):
    monkeypatch.setenv("TOY_SLEEP", "0.01")
    axes = {
        "seed": list(range(seeds)),
        "samples.count": [1024, 2048],
        "steering.draws": list(range(1, draws + 1)),
    }
    sweep = "[sweep.grid]\n" + "".join(f"'{key}' = {values}\n" for key, values in axes.items())
    program = [sys.executable, toy.__file__]
    queue, kills = torture(tmp_path, toy.SPEC + sweep, program, every, seed=seeds)
    runs = len(list(product(*axes.values())))
    print(f"{runs} runs, {kills} kills")
    assert kills >= 5
    monkeypatch.delenv("TOY_SLEEP")
    stored = Counter(ground_state=seeds, samples=2 * seeds, steering=runs)
    assert_undamaged(queue, tmp_path, toy.STAGES, stored)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_random_nothing_is_lost_of_the_real_chain(tmp_path):
    """200 runs: 10 ground states, 20 dictionaries, 10 steerings with each."""
    axes = {
        "ground_state.seed": list(range(10)),
        "sae.k": [1, 2],
        "steering.draws": list(range(1, 11)),
    }
    sweep = "[sweep.grid]\n" + "".join(f"'{key}' = {values}\n" for key, values in axes.items())
    program = [sys.executable, "-m", "nqs_sae_service"]
    (tmp_path / "warm.toml").write_text(REAL, encoding="utf-8")
    warm = [*program, "run", str(tmp_path / "warm.toml"), "--results", str(tmp_path / "warm")]
    subprocess.run(
        warm, check=True, capture_output=True
    )  # kernels are compiled once, by nobody who is compared
    queue, kills = torture(tmp_path, REAL + sweep, program, every=1.5, seed=1)
    print(f"200 runs, {kills} kills")
    assert kills > 20
    stored = Counter(
        ground_state=10, samples=10, observables=10, activations=10, sae=20, features=20, steering=200
    )
    assert_undamaged(queue, tmp_path, STAGES, stored)
