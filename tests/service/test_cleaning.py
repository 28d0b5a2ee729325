"""``gc``: what no run shows and none will ask for goes; everything else stays."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import toy

from nqs_sae_service.datasets.files import locked
from nqs_sae_service.errors import UserError
from nqs_sae_service.service.cleaning import leftovers, remove
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.queue import Queue
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder, self.results, self.store = folder, folder / "results", folder / "results" / ".store"
        self.queue = Queue(folder / "queue")

    def points(self, *sets: str):
        return load_spec(toy.write_spec(self.folder), sets)

    def run(self, *sets: str, until: Sequence[str] = ()) -> None:
        assert run_plans(make_plan(self.points(*sets), toy.STAGES, self.results, until)).code == 0

    def age(self) -> None:
        for path in self.store.iterdir():
            os.utime(path, (time.time() - 7200,) * 2)

    def found(self) -> set[str]:
        return {leftover.path.name for leftover in leftovers(self.results, self.queue, toy.STAGES)}

    def stored(self) -> set[str]:
        return {path.name for path in self.store.iterdir()}


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path)


def test_nothing_goes_that_a_run_shows(lab):
    lab.run()
    lab.age()
    assert lab.found() == set()


def test_what_an_edit_left_behind_goes(lab):
    lab.run()
    before = lab.stored()
    lab.run("steering.draws=9")
    old = {name for name in before if name.startswith("steering")}
    assert lab.found() == set()  # it is too young
    lab.age()
    assert lab.found() == old
    assert len(old) == 2
    size = sum((lab.store / name).stat().st_size for name in old)
    assert remove(leftovers(lab.results, lab.queue, toy.STAGES)) == size
    assert not old & lab.stored()
    assert len(lab.stored()) == 6
    (plan,) = make_plan(lab.points("steering.draws=9"), toy.STAGES, lab.results)
    assert [step.reason for step in plan.steps] == ["cached"] * 3


def test_what_an_unfinished_or_queued_run_will_ask_for_stays(lab):
    lab.run(until=["samples"])
    (plan,) = make_plan(lab.points(), toy.STAGES, lab.results)
    mine = plan.store.checkpoint("steering", plan.steps[2].key)
    (other,) = make_plan(lab.points("name='other'", "hamiltonian.h=0.5"), toy.STAGES, lab.results)
    queued = other.store.checkpoint("ground_state", other.steps[0].key)
    for path in (
        mine,
        queued,
        lab.store / "ground_state-0123.checkpoint.npz",
        lab.store / ".tmp~12~samples-0123.nc",
    ):
        path.write_bytes(b"x")
    lab.queue.submit([other.point], lab.results, 0, None)
    lab.age()
    assert lab.found() == {"ground_state-0123.checkpoint.npz", ".tmp~12~samples-0123.nc"}


def test_what_a_process_works_on_stays(lab):
    lab.run()
    (lab.store / "samples-0123.nc").write_bytes(b"x")
    lab.age()
    found = leftovers(lab.results, lab.queue, toy.STAGES)
    with locked(lab.store / "samples-0123.lock"):
        assert remove(found) == 0
    assert (lab.store / "samples-0123.nc").exists()
    assert remove(found) == 1


def test_a_spec_that_cannot_be_read_stops_it(lab):
    lab.run()
    (lab.results / "toy" / "spec.toml").write_text("name = ", encoding="utf-8")
    with pytest.raises(UserError, match=r"toy may need files of the store, but its spec cannot be read"):
        lab.found()
