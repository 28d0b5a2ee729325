"""Runs: what is computed, what is shared, what is left behind when something goes wrong."""

import json
import os

import numpy as np
import pytest
import toy

from nqs_sae_service import open_run
from nqs_sae_service.datasets import Store, read_stage, same_data
from nqs_sae_service.datasets.files import locked
from nqs_sae_service.service import runner
from nqs_sae_service.service.log import log_to_stderr
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec

STEERING_SWEEP = "[sweep.grid]\n'steering.draws' = [2, 3]\n"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """``lab("section.key=value", ...)`` runs the toy spec, changed that way, and returns the exit code."""
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    spec = toy.write_spec(tmp_path)

    def run(*sets, text=toy.SPEC, results=tmp_path / "results", **options):
        log_to_stderr()
        spec.write_text(text, encoding="utf-8")
        return run_plans(make_plan(load_spec(spec, sets), toy.STAGES, results, **options)).code

    return run


@pytest.fixture
def computed(tmp_path):
    """``computed()`` lists the stages that were computed since it was last asked."""

    def take():
        log = tmp_path / "log"
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return take


@pytest.fixture
def run_directory(tmp_path):
    return tmp_path / "results" / "toy"


def status(directory):
    return json.loads((directory / "status.json").read_text())


def test_a_run_leaves_its_stages_spec_status_and_log_and_no_litter(lab, run_directory, tmp_path, capsys):
    assert lab() == 0
    names = {path.name for path in run_directory.iterdir()}
    assert names == {"ground_state.nc", "samples.nc", "steering.nc", "spec.toml", "status.json", "run.jsonl"}
    assert {path.suffix for path in (tmp_path / "results" / ".store").iterdir()} == {".nc", ".sha256"}
    assert status(run_directory)["state"] == "done"
    assert set(open_run(run_directory).children) == set(toy.STAGES)
    lines = [json.loads(line) for line in (run_directory / "run.jsonl").read_text().splitlines()]
    assert any("ground_state" in line["record"]["message"] for line in lines)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "total" in captured.err.splitlines()[-1]


def test_the_resolved_spec_loads_back_to_the_same_run(lab, run_directory, computed):
    lab("ground_state.steps=7")
    computed()
    resolved = (run_directory / "spec.toml").read_text()
    assert lab(text=resolved) == 0
    assert computed() == []


def test_the_same_seed_gives_the_same_data_and_another_seed_does_not(lab, tmp_path, run_directory):
    for name, sets in {"one": (), "two": (), "three": ("ground_state.seed=2",)}.items():
        lab(*sets, results=tmp_path / name)
    one, two, three = (tmp_path / name / "toy" / "ground_state.nc" for name in ("one", "two", "three"))
    assert same_data(one, two)
    assert not same_data(one, three)


def test_editing_a_section_reruns_only_what_depends_on_it(lab, computed):
    lab()
    assert computed() == ["ground_state", "samples", "steering"]
    lab()
    assert computed() == []
    lab("steering.draws=9")
    assert computed() == ["steering"]
    lab("samples.seed=9", "steering.draws=9")
    assert computed() == ["samples", "steering"]
    lab()
    assert computed() == []


def test_files_of_an_earlier_version_of_the_spec_are_taken_away(lab, run_directory, computed):
    lab()
    lab("samples.seed=9", until=["samples"])
    assert not (run_directory / "steering.nc").exists()
    assert (run_directory / "samples.nc").exists()


def test_a_sweep_computes_what_its_points_share_once(lab, tmp_path, computed):
    assert lab(text=toy.SPEC + STEERING_SWEEP) == 0
    assert computed() == ["ground_state", "samples", "steering", "steering"]
    points = [tmp_path / "results" / "toy" / f"steering.draws={draws}" for draws in (2, 3)]
    assert (points[0] / "ground_state.nc").samefile(points[1] / "ground_state.nc")
    assert not (points[0] / "steering.nc").samefile(points[1] / "steering.nc")
    assert status(points[1])["coordinates"] == {"steering.draws": 3}


def test_a_forced_stage_is_computed_once_in_a_sweep_with_all_that_follows(lab, computed):
    lab(text=toy.SPEC + STEERING_SWEEP)
    computed()
    lab(text=toy.SPEC + STEERING_SWEEP, force=["samples"])
    assert computed() == ["samples", "steering", "steering"]


def test_a_failed_point_does_not_stop_the_others(lab, tmp_path, capsys):
    assert lab(text=toy.SPEC + "[sweep.grid]\n'hamiltonian.h' = [13.0, 1.0]\n") == 1
    sweep = tmp_path / "results" / "toy"
    assert status(sweep / "hamiltonian.h=13.0")["state"] == "failed"
    assert status(sweep / "hamiltonian.h=1.0")["state"] == "done"
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: toy/hamiltonian.h=13.0: the energy is not finite; use a smaller ground_state.learning_rate"
    ]


def test_a_bug_is_one_line_and_its_traceback_is_in_the_log(lab, run_directory, capsys):
    assert lab("hamiltonian.h=17.0") == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(
        "error: toy: unexpected ZeroDivisionError: a bug; the traceback is in "
    )
    assert "Traceback" in (run_directory / "run.jsonl").read_text()


def test_a_damaged_file_of_the_store_is_computed_again(lab, tmp_path, run_directory, computed, capsys):
    lab()
    with read_stage(run_directory / "ground_state.nc") as stored_data:
        good = stored_data.load()
    computed()
    (stored,) = (tmp_path / "results" / ".store").glob("ground_state-*.nc")
    os.chmod(stored, 0o644)
    stored.write_bytes(stored.read_bytes()[:-7])
    assert lab() == 0
    assert computed() == ["ground_state"]
    assert "damaged" in capsys.readouterr().err
    assert same_data(good, run_directory / "ground_state.nc")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"x" * 1000])
def test_a_damaged_checkpoint_is_said_and_ignored(lab, tmp_path, computed, capsys, content):
    lab()
    store = Store(tmp_path / "results" / ".store")
    (finished,) = store.directory.glob("ground_state-*.nc")
    key = finished.stem.removeprefix("ground_state-")
    store.forget("ground_state", key)
    store.checkpoint("ground_state", key).write_bytes(content)
    computed()
    assert lab() == 0
    assert computed() == ["ground_state"]
    assert "damaged checkpoint ignored" in capsys.readouterr().err
    assert not store.checkpoint("ground_state", key).exists()


def test_the_checkpoint_of_whoever_was_killed_after_the_stage_was_stored_is_taken_away(
    lab, tmp_path, computed
):
    lab()
    store = Store(tmp_path / "results" / ".store")
    (finished,) = store.directory.glob("ground_state-*.nc")
    left = store.checkpoint("ground_state", finished.stem.removeprefix("ground_state-"))
    left.write_bytes(b"PK")
    computed()
    assert lab() == 0
    assert computed() == []
    assert not left.exists()


def test_a_truncated_checkpoint_is_never_used(lab, tmp_path):
    from nqs_sae_service.service.checkpoint import load_checkpoint, save_checkpoint

    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, {"x": np.arange(100.0), "step": np.int64(3)})
    restored = load_checkpoint(path)
    assert restored is not None
    assert restored["step"] == 3
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert load_checkpoint(path) is None


def test_a_run_directory_in_use_is_left_alone(lab, run_directory, computed, capsys):
    run_directory.mkdir(parents=True)
    with locked(run_directory / ".lock"):
        assert lab() == 75
    assert computed() == []
    assert "locked by another process" in capsys.readouterr().err


def test_leftovers_of_an_interrupted_write_are_swept(lab, run_directory):
    lab()
    leftover = run_directory / ".tmp~123~spec.toml"
    leftover.write_text("half")
    lab()
    assert not leftover.exists()


def test_results_that_are_a_file_are_said_plainly(lab, tmp_path, capsys):
    (tmp_path / "results").write_text("")
    assert lab() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: toy: ")
    assert str(tmp_path / "results") in line


@pytest.mark.parametrize("function", ["save_checkpoint", "write_text", "draw"])
def test_a_full_disk_is_said_plainly(lab, run_directory, monkeypatch, capsys, function):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(runner, function, refuse)
    assert lab() == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == "error: toy: somewhere: No space left on device"
    assert status(run_directory)["state"] == "failed"


def test_a_disk_that_refuses_the_last_word_is_said_plainly(lab, monkeypatch, capsys):
    written = runner.Status.set

    def refuse(self, **fields):
        if fields.get("state") == "done":
            raise OSError(28, "No space left on device", "status.json")
        written(self, **fields)

    monkeypatch.setattr(runner.Status, "set", refuse)
    assert lab() == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: toy: status.json: No space left on device"


def test_a_report_that_fails_does_not_lose_the_run(lab, run_directory, monkeypatch, capsys):
    from nqs_sae_service import report

    def fail(directory, images):
        raise ValueError("no such figure")

    monkeypatch.setattr(report, "write_figures", fail, raising=False)
    assert lab("output.figures=true") == 0
    assert status(run_directory)["state"] == "done"
    assert (
        f"error: {run_directory}: the report failed: no such figure" in capsys.readouterr().err.splitlines()
    )


def test_the_report_is_drawn_when_something_changed_and_only_then(lab, run_directory, monkeypatch):
    from nqs_sae_service import report

    drawn = []
    monkeypatch.setattr(
        report, "write_report", lambda directory, images: drawn.append(directory), raising=False
    )
    lab("output.report=true")
    lab("output.report=true")
    assert drawn == [run_directory]
    lab("output.report=true", "steering.draws=9")
    assert drawn == [run_directory] * 2


def test_a_sweep_has_a_report_of_its_own(lab, tmp_path, monkeypatch):
    from nqs_sae_service import report

    drawn = []
    monkeypatch.setattr(
        report, "write_report", lambda directory, images: drawn.append(directory), raising=False
    )
    lab("output.report=true", text=toy.SPEC + STEERING_SWEEP)
    sweep = tmp_path / "results" / "toy"
    assert drawn == [sweep / "steering.draws=2", sweep / "steering.draws=3", sweep]
