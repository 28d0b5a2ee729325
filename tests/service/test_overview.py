"""What ``status``, ``logs``, ``cancel`` and ``retry`` say, and which runs a name means."""

import json
from pathlib import Path

import pytest
import toy
from rich.console import Console
from typer.testing import CliRunner

from nqs_sae_service.cli import app
from nqs_sae_service.datasets.files import locked
from nqs_sae_service.errors import UserError
from nqs_sae_service.service.overview import find, overview, print_overview, run_directory
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.queue import Queue
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.service.slurm import Job
from nqs_sae_service.service.worker import work
from nqs_sae_service.spec import load_spec

SWEEP = toy.SPEC + "[sweep.grid]\n'steering.draws' = [2, 3]\n"


@pytest.fixture
def queue(tmp_path) -> Queue:
    return Queue(tmp_path / "queue")


def points(folder: Path, *sets: str, text: str = toy.SPEC):
    return load_spec(toy.write_spec(folder, text), sets)


def states(lines) -> dict[str, str]:
    return {line["run"]: line["state"] for line in lines}


def test_the_queue_and_what_ran_beside_it_are_one_list(queue, tmp_path):
    results = tmp_path / "results"
    queue.submit(points(tmp_path, text=SWEEP), results, 3, None)
    queue.submit(points(tmp_path, "name='bad'", "hamiltonian.h=13.0"), results, 9, None)
    assert work(queue, toy.STAGES, max_runs=2) == 1
    run_plans(make_plan(points(tmp_path, "name='by-hand'"), toy.STAGES, results))
    lines = overview(queue, results)
    assert states(lines) == {
        "toy/steering.draws=3": "queued",
        "bad": "failed",
        "toy/steering.draws=2": "done",
        "by-hand": "done",
    }
    assert list(states(lines))[:2] == ["toy/steering.draws=3", "bad"]  # what goes on, then what went wrong
    bad = lines[1]
    assert "learning_rate" in bad["message"]
    assert (bad["priority"], bad["directory"]) == (9, str(results / "bad"))
    assert json.loads(json.dumps(lines)) == [dict(line) for line in lines]


def test_a_run_whose_process_is_gone_is_interrupted(queue, tmp_path):
    results = tmp_path / "results"
    run_plans(make_plan(points(tmp_path), toy.STAGES, results))
    status = results / "toy" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "running"}))
    with locked(results / "toy" / ".lock"):
        assert states(overview(queue, results)) == {"toy": "running"}
    assert states(overview(queue, results)) == {"toy": "interrupted"}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"state": 3}', "{}", "\x00", '{"state": "odd", "run": 5, "eta": "x"}']
)
def test_a_damaged_status_is_no_reason_to_stop(queue, tmp_path, text):
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "status.json").write_text(text)
    (line,) = overview(queue, tmp_path / "results")
    assert line["state"] in ("unknown", "odd")
    print_overview([line], Console(quiet=True))


def test_a_name_means_a_run_a_sweep_or_a_directory(queue, tmp_path, monkeypatch):
    results = tmp_path / "results"
    queue.submit(points(tmp_path, text=SWEEP), results, 0, None)
    queue.submit(points(tmp_path, "name='other'"), results, 0, None)

    def found(name: str) -> list[str]:
        return [entry.run for entry in find(queue, name)]

    both = ["toy/steering.draws=2", "toy/steering.draws=3"]
    assert found("toy") == both
    assert found("toy/steering.draws=3") == both[1:]
    assert found("other") == ["other"]
    assert found(str(results / "toy")) == both
    monkeypatch.chdir(results.parent)
    assert found("results/toy/steering.draws=2") == both[:1]
    with pytest.raises(UserError, match="no run of the queue is called 'nope'"):
        found("nope")
    with pytest.raises(UserError, match="toy is a sweep; name one of its runs"):
        run_directory(queue, "toy", results)
    assert run_directory(queue, "other", results) == results / "other"


def test_only_some_of_many_are_shown(queue, tmp_path, capsys):
    text = toy.SPEC + f"[sweep.grid]\nseed = {list(range(50))}\n"
    queue.submit(points(tmp_path, text=text), tmp_path / "results", 0, None)
    print_overview(overview(queue, tmp_path / "results"), Console(width=160))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 22
    assert out[-1] == "50 queued; the first 20 of each are shown, status --json has all"


def invoke(queue: Queue, *arguments: str):
    return CliRunner().invoke(app, [*arguments, "--queue", str(queue.directory)])


def test_the_commands_of_the_queue(queue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = toy.write_spec(tmp_path)
    assert invoke(queue, "submit", str(spec)).output.splitlines() == ["toy"]
    assert invoke(queue, "cancel", "toy").output == "toy: cancelled\n"
    assert invoke(queue, "retry", "toy").output == "toy: queued\n"
    assert "toy  queued" in invoke(queue, "status").output
    (line,) = json.loads(invoke(queue, "status", "--json").output)
    assert (line["run"], line["state"], line["directory"]) == (
        "toy",
        "queued",
        str(tmp_path / "results" / "toy"),
    )
    assert invoke(queue, "retry", "--failed").output == ""
    assert invoke(queue, "logs", "toy").output == ""
    assert invoke(queue, "gc").output == "0 B freed\n"
    empty = ["gc", "--queue", str(tmp_path / "none")]
    assert CliRunner().invoke(app, empty).output == "0 B freed\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["cancel", "nope"], "no run of the queue is called 'nope'"),
        (["logs", "nope"], "no run of the queue is called 'nope'"),
        (["retry"], "name a run, or say --failed"),
        (["retry", "toy", "--failed"], "name a run, or say --failed"),
        (["work", "--max-time", "soon"], "'soon' is no time span: write it like 2h, 1h30m, 90s or 1d"),
        (["submit", "toy.toml", "--time-limit", "2 years"], "'2 years' is no time span"),
        (
            ["submit", "toy.toml", "--slurm", "--priority", "3"],
            "--slurm takes qos and time from [engine.slurm]",
        ),
        (["submit", "toy.toml", "toy.toml"], "two of the specs write to the run 'toy'"),
    ],
)
def test_what_is_wrong_is_one_plain_line(queue, tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    toy.write_spec(tmp_path)
    result = invoke(queue, *arguments)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert error in line


def test_what_slurm_says_of_its_tasks_is_in_the_list(queue, tmp_path, monkeypatch):
    results = tmp_path / "results"
    run_plans(make_plan(points(tmp_path, text=SWEEP), toy.STAGES, results))
    status = results / "toy" / "steering.draws=2" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "stopped"}))
    jobs = [
        Job("7_0", "toy/steering.draws=2", (), "PENDING", "Priority", results),
        Job("8_0", "toy/steering.draws=3", (), "RUNNING", "", results),
        Job("9_0", "new", (), "PENDING", "Dependency", results),
        Job("9_1", "new", (), "PENDING", "Dependency", results),
    ]
    monkeypatch.setattr("nqs_sae_service.service.overview.slurm_jobs", lambda results: jobs)
    lines = {line["run"]: (line["state"], line["job"], line["message"]) for line in overview(queue, results)}
    assert lines == {
        "toy/steering.draws=2": ("queued", "7_0", "Slurm job 7_0: PENDING, Priority"),
        "toy/steering.draws=3": ("running", "8_0", "Slurm job 8_0: RUNNING"),
        "new": ("queued", "9_0", "Slurm job 9_0: PENDING, Dependency"),
    }


def test_without_slurm_it_says_so(queue, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    toy.write_spec(tmp_path)
    result = CliRunner().invoke(app, ["submit", "toy.toml", "--slurm"])
    assert result.exit_code == 2
    assert result.output.startswith("error: sbatch is not on the PATH")
