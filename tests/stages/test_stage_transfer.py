"""Stage transfer: a teacher, its pupils, their infidelity summed over all configurations; interrupted; refused."""

import numpy as np
import pytest
import xarray as xr
from stopping import Context

from nqs_sae_service.datasets.netcdf import read_stage
from nqs_sae_service.errors import Stopped, UserError
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.service.sources import Unfinished
from nqs_sae_service.spec import load_spec
from nqs_sae_service.spec.files import TEACHER
from nqs_sae_service.stages import STAGES
from nqs_sae_service.stages.starts import state_of
from nqs_sae_service.stages.transfer import run as run_transfer

TEACHER_SPEC = """
name = "teacher"
[lattice]
kind = "chain"
length = 8
[hamiltonian]
kind = "tfim"
h = 1.0
[state]
patch = 1
width = 16
heads = 4
layers = 2
mlp_ratio = 1
precision = "float64"
[sampling]
chains = 64
burn_in = 5
[ground_state]
steps = 30
samples = 64
final_samples = 256
[samples]
count = 1024
[heads]
samples = 64
probes = 1
orders = 3
[output]
report = false
figures = false
"""
PUPIL_SPEC = """
extends = "teacher.toml"
name = "pupil"
[state]
attention = "ranked"
ranking = "teacher"
share = 0.25
[transfer]
teacher = "teacher"
samples = 256
match_steps = 60
infidelity_steps = 6
[ground_state]
steps = 3
[heads]
samples = 0
"""
SEEN_BY_CHANCE = 5  # standard errors


class Lab:
    """Two specs in a folder, and their results."""

    def __init__(self, folder):
        self.folder, self.results = folder, folder / "results"
        (folder / "teacher.toml").write_text(TEACHER_SPEC, encoding="utf-8")
        (folder / "pupil.toml").write_text(PUPIL_SPEC, encoding="utf-8")

    def points(self, name, *sets):
        return load_spec(self.folder / f"{name}.toml", sets)

    def plan(self, name, *sets, until="ground_state"):
        return make_plan(self.points(name, *sets), STAGES, self.results, [until])

    def run(self, name, *sets, until="ground_state"):
        plans = self.plan(name, *sets, until=until)
        assert run_plans(plans).code == 0
        return plans[0]

    def file(self, run, stage):
        return read_stage(self.results / run / f"{stage}.nc")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = Lab(tmp_path_factory.mktemp("transfer"))
    lab.run("teacher", until="heads")
    lab.run("pupil")
    return lab


def infidelity(one, other):
    """1 - F of two real wave functions, summed over all configurations."""
    sigma = all_configurations(8)
    a, b = (np.exp(psi.log_psi(sigma)) for psi in (one, other))
    return 1 - (a @ b) ** 2 / (a @ a) / (b @ b)


def bound(dataset, parameters):
    return state_of(dataset).bind(parameters)


def test_the_first_heads_of_the_ranking_are_full(lab):
    ranks = lab.file("teacher", "heads")["rank"].values.ravel()
    kinds = lab.plan("pupil")[0].point.spec.state.attention
    assert {head for head, kind in enumerate(kinds) if kind == "full"} == set(np.flatnonzero(ranks <= 2))
    assert set(kinds) == {"full", "kernel"}


def test_infidelities_are_those_of_the_whole_sum(lab):
    found, teacher = lab.file("pupil", "transfer"), lab.file("teacher", "ground_state")
    psi = bound(teacher, teacher["parameters"].values)
    pupil = bound(lab.file("pupil", "ground_state"), found["parameters"].values)
    exact = infidelity(pupil, psi)
    assert (
        found.attrs["infidelity_taken_over"]
        > found.attrs["infidelity_matched"]
        > found.attrs["final_infidelity"]
    )
    assert found.attrs["final_infidelity"] < 0.1 * found.attrs["infidelity_matched"]
    assert found.attrs["final_infidelity"] == pytest.approx(exact, rel=0.5)
    assert found["infidelity"].values[-1] == found.attrs["final_infidelity"]
    losses = found["matching_loss"].values
    assert losses.shape == (60, 2)
    assert (losses[-1] < 0.5 * losses[0]).all()


def test_the_training_begins_with_what_was_learned(lab):
    found, trained = lab.file("pupil", "transfer"), lab.file("pupil", "ground_state")
    np.testing.assert_array_equal(trained["initial_parameters"].values, found["parameters"].values)
    before = lab.file("teacher", "ground_state")
    error = np.hypot(trained["energy_error"].values[0], before.attrs["final_energy_error"])
    assert abs(trained["energy"].values[0] - before.attrs["final_energy"]) < SEEN_BY_CHANCE * error


def test_a_network_with_the_heads_of_the_teacher_is_the_teacher(lab):
    (point,) = lab.points("pupil", "state.attention=fixed", "state.share=1.0")
    found = run_transfer(Context(point.spec, {TEACHER: lab.file("teacher", "ground_state")}))
    assert found.attrs["infidelity_taken_over"] < 1e-12


@pytest.mark.parametrize("stop_at", [1, 30, 73])  # burn-in, heads, infidelity
def test_interrupted_and_continued_it_is_the_same(lab, tmp_path, stop_at):
    spec = lab.plan("pupil")[0].point.spec
    upstream = {TEACHER: lab.file("teacher", "ground_state")}
    path = tmp_path / "checkpoint"
    with pytest.raises(Stopped):
        run_transfer(Context(spec, upstream, path, stop_at))
    xr.testing.assert_identical(
        run_transfer(Context(spec, upstream, path)).drop_attrs(),
        lab.file("pupil", "transfer").load().drop_attrs(),
    )


def test_nothing_is_computed_twice_and_the_ranking_counts(lab):
    assert not any(step.runs for step in lab.plan("pupil")[0].steps if step.wanted)
    keys = {lab.plan("pupil", f"state.share={share}")[0].steps[0].key for share in (0.25, 0.5)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["transfer.teacher=nobody"], r"transfer\.teacher: .*nobody"),
        (["state.ranking=nobody"], r"state\.ranking: .*nobody"),
        (["state.layers=3", "state.attention=kernel"], "layers 2, here 3"),
        (
            ["state.layers=3"],
            r"state\.ranking: .* ranks 2 layers of 4 heads, this network has 3 layers of 4 heads",
        ),
        (["state.width=32", "state.attention=kernel"], "width 16, here 32"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_runs(lab, settings, problem):
    text = PUPIL_SPEC
    if "state.attention=kernel" in settings:
        text = text.replace('ranking = "teacher"\nshare = 0.25\n', "")
    (lab.folder / "other.toml").write_text(text.replace('"pupil"', '"other"'), encoding="utf-8")
    with pytest.raises(UserError, match=problem):
        lab.plan("other", *settings)


def test_a_ranking_that_is_not_there_yet_can_be_waited_for(lab):
    lab.run("teacher", "name=bare", until="ground_state")
    with pytest.raises(Unfinished, match=r"no heads\.nc yet"):
        lab.plan("pupil", "state.ranking=bare")
