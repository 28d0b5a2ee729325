"""What a run starts from: found, identified by its content, refused in one line; also from the queue."""

import os
from pathlib import Path

import numpy as np
import pytest
import toy

from nqs_sae_service.cli import app
from nqs_sae_service.errors import UserError
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.queue import Queue
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.service.submission import frozen_text
from nqs_sae_service.service.worker import work
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages.stage import Stage

CHECKED = []


def ground_state(context):
    dataset = toy.ground_state(context)
    before = context.upstream.get("ground_state.start_from")
    return dataset if before is None else dataset.assign(parameters=dataset.parameters + before.parameters)


STAGES = {
    **toy.STAGES,
    "ground_state": Stage(
        "ground_state",
        ("lattice", "hamiltonian", "state", "ground_state"),
        (),
        1,
        ground_state,
        toy.estimate,
        sources=("ground_state.start_from", "state.load"),
        check=lambda spec, sources: CHECKED.append(sources),
    ),
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CHECKED.clear()
    return Lab(tmp_path)


class Lab:
    """Specs in a folder of their own, results in another."""

    def __init__(self, directory):
        self.results = directory / "results"
        self.specs = directory / "specs"
        self.specs.mkdir()

    def points(self, name, *sets, more=""):
        path = self.specs / f"{name}.toml"
        path.write_text(toy.SPEC.replace('"toy"', f'"{name}"') + more, encoding="utf-8")
        return load_spec(path, sets)

    def plan(self, name, *sets, more=""):
        return make_plan(self.points(name, *sets, more=more), STAGES, self.results)

    def run(self, *args, **options):
        plans = self.plan(*args, **options)
        assert run_plans(plans).code == 0
        return plans[0]

    def key(self, *args, **options):
        return self.plan(*args, **options)[0].steps[0].key

    def parameters(self, run):
        import xarray as xr

        with xr.open_dataset(self.results / run / "ground_state.nc") as dataset:
            return dataset.parameters.values


START = "ground_state.start_from"


def test_a_run_starts_from_another_and_is_not_computed_again(lab):
    lab.run("first")
    lab.run("second", f"{START}=first", "ground_state.steps=10")
    lab.run("alone", "ground_state.steps=10")
    np.testing.assert_array_equal(lab.parameters("second"), lab.parameters("alone") + lab.parameters("first"))
    (again,) = lab.plan("second", f"{START}=first", "ground_state.steps=10")
    assert not any(step.runs for step in again.steps)
    assert len(CHECKED) == 1  # of what is in the store nothing has to fit


def test_the_content_of_the_source_counts_and_its_name_does_not(lab):
    lab.run("first")
    lab.run("same")
    key = lab.key("second", f"{START}=first")
    assert key != lab.key("second")
    assert key == lab.key("second", f"{START}=same") == lab.key("second", f"{START}='./results/first'")
    assert key == lab.key("second", f"{START}='{lab.results}/first/ground_state.nc'")
    lab.run("second", f"{START}=first")
    lab.run("first", "ground_state.steps=50")
    (changed,) = lab.plan("second", f"{START}=first")
    assert changed.steps[0].reason == "changed: ground_state.start_from"
    assert changed.steps[0].runs


def test_paths_are_relative_to_the_spec_and_absolute_from_then_on(lab, monkeypatch):
    lab.run("first")
    (lab.specs / "net.npz").write_bytes(b"one")
    spec = toy.SPEC.replace("[state]\n", '[state]\nload = "net.npz"\n').replace('"toy"', '"third"')
    (lab.specs / "third.toml").write_text(spec, encoding="utf-8")
    (point,) = load_spec("specs/third.toml")
    assert point.spec.state.load == str(lab.specs / "net.npz")
    (lab.specs / "base").mkdir()
    (lab.specs / "base" / "base.toml").write_text(spec, encoding="utf-8")
    (lab.specs / "child.toml").write_text('extends = "base/base.toml"\nname = "child"\n', encoding="utf-8")
    assert load_spec("specs/child.toml")[0].spec.state.load == str(lab.specs / "base" / "net.npz")
    (there,) = lab.points("fourth", more="[sweep.grid]\n'ground_state.start_from' = ['../results/first']\n")
    assert there.spec.ground_state.start_from == str(lab.results / "first")
    (here,) = lab.points("fourth", f"{START}='./results/first'")
    assert here.spec.ground_state.start_from == str(lab.results / "first")
    frozen = lab.specs / "points" / "0.toml"
    frozen.parent.mkdir()
    for frozen_point in (point, there, here):
        frozen.write_text(frozen_text(frozen_point), encoding="utf-8")
        assert load_spec(frozen) == [frozen_point]


def test_a_file_counts_by_its_content(lab):
    keys = []
    for name, content in (("a.npz", b"one"), ("b.npz", b"one"), ("c.npz", b"two")):
        (lab.specs.parent / name).write_bytes(content)
        keys.append(lab.key("loaded", f"state.load={name}"))
    assert keys[0] == keys[1] != keys[2]
    assert lab.key("loaded") not in keys


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "nobody",
            "second: ground_state.start_from: .*nobody: no such run; 'nobody' is taken for a run in .*, a path",
        ),
        ("./nowhere", "second: ground_state.start_from: .*nowhere: no such run$"),
        ("./nowhere.nc", "ground_state.start_from: .*nowhere.nc: no such file"),
        (
            "begun",
            "ground_state.start_from: the run in .*begun has no ground state yet .it is not begun.: let it finish",
        ),
        ("second", "ground_state.start_from: a run cannot start from itself"),
        ("swept", "swept: not a run directory .a sweep, its runs are inside: ground_state.steps=3"),
        ("first/samples.nc", "not the ground_state.nc of a run"),
        ("./specs/second.toml/x.nc", "no such file"),
    ],
)
def test_a_source_that_is_none_is_refused_in_one_line(lab, value, message):
    lab.run("first")
    lab.run("swept", more="[sweep.grid]\n'samples.seed' = [3, 4]\n") if value == "swept" else None
    (lab.results / "begun").mkdir()
    (lab.results / "begun" / "spec.toml").touch()
    if value.startswith("first/"):
        value = f"./results/{value}"
    with pytest.raises(UserError, match=message.replace("ground_state.steps=3", "samples.seed=3")) as error:
        lab.plan("second", f"{START}='{value}'")
    assert str(error.value).isprintable()


def test_a_missing_file_to_load(lab):
    with pytest.raises(UserError, match=r"loaded: state\.load: .*net\.npz: no such file"):
        lab.plan("loaded", "state.load=net.npz")


def test_a_source_that_changes_after_the_plan_is_refused(lab):
    lab.run("first")
    plans = lab.plan("second", f"{START}=first")
    lab.run("first", "ground_state.steps=50")
    assert run_plans(plans).code == 1
    assert (
        "has changed since second was planned: run it again" in (lab.results / "second/run.jsonl").read_text()
    )


def test_in_the_queue_a_run_waits_for_the_one_it_starts_from(lab):
    queue = Queue(lab.specs.parent / "queue")
    queue.submit(
        lab.points("second", f"{START}=first"), Path("results"), 5, None
    )  # before the other, and more urgent
    queue.submit(lab.points("first"), Path("results"), 0, None)
    os.chdir("/")
    assert work(queue, STAGES) == 0
    assert {entry.run: entry.state for entry in queue.entries()} == {"first": "done", "second": "done"}
    queue.submit(lab.points("third", f"{START}=nobody"), lab.results, 0, None)
    assert work(queue, STAGES) == 1
    (third,) = queue.entries("failed")
    assert "nobody: no such run" in third.message


def test_the_command_line_says_it_in_one_line(lab, capsys):
    lab.points("second")
    with pytest.raises(SystemExit) as end:
        app(["run", "specs/second.toml", "--set", f"{START}=nobody"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: second: ground_state.start_from: results/nobody: no such run")


def test_two_starts_are_one_too_many(lab):
    with pytest.raises(UserError, match="a training has one start"):
        lab.points("second", f"{START}=first", "state.load=net.npz")
    with pytest.raises(UserError, match="without a step the network stays random"):
        lab.points("second", "ground_state.steps=0")
    assert lab.points("second", "ground_state.steps=0", f"{START}=first")
