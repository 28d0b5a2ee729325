"""The plan says for every stage whether it runs, and why."""

import pytest
import toy

from nqs_sae_service.errors import UserError
from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.spec import load_spec


@pytest.fixture
def lab(tmp_path):
    """``lab("section.key=value", ...)`` plans the toy spec, changed that way."""
    spec = toy.write_spec(tmp_path)

    def plan(*sets, text=toy.SPEC, **options):
        spec.write_text(text, encoding="utf-8")
        return make_plan(load_spec(spec, sets), toy.STAGES, tmp_path / "results", **options)

    return plan


def reasons(plans):
    return [{step.stage.name: step.reason for step in plan.steps} for plan in plans]


def running(plans):
    return [[step.stage.name for step in plan.steps if step.runs] for plan in plans]


def test_a_first_run_computes_everything(lab):
    assert reasons(lab()) == [dict.fromkeys(toy.STAGES, "not computed yet")]
    assert running(lab()) == [list(toy.STAGES)]


def test_a_second_run_computes_nothing(lab):
    run_plans(lab())
    assert reasons(lab()) == [dict.fromkeys(toy.STAGES, "cached")]
    assert running(lab()) == [[]]


def test_an_edited_section_runs_its_stage_and_what_follows(lab):
    run_plans(lab())
    assert running(lab("steering.draws=9")) == [["steering"]]
    assert reasons(lab("steering.draws=9"))[0]["steering"] == "changed: steering.draws"
    assert reasons(lab("samples.seed=9")) == [
        {"ground_state": "cached", "samples": "changed: samples.seed", "steering": "upstream runs"}
    ]
    assert running(lab("hamiltonian.h=2.0")) == [list(toy.STAGES)]


def test_how_to_run_changes_nothing(lab):
    run_plans(lab())
    assert running(lab("engine.threads=1", "engine.checkpoint_seconds=5.0", "output.report=true")) == [[]]


def test_going_back_finds_the_old_results(lab):
    run_plans(lab())
    run_plans(lab("samples.seed=9"))
    assert running(lab()) == [[]]


def test_until_leaves_out_what_is_not_needed(lab):
    plans = lab(until=["samples"])
    assert running(plans) == [["ground_state", "samples"]]
    assert reasons(plans)[0]["steering"] == "not asked for"
    assert running(lab(until=["ground_state", "samples"])) == running(plans)


def test_forcing_a_stage_runs_what_follows(lab):
    run_plans(lab())
    assert reasons(lab(force=["samples"])) == [
        {"ground_state": "cached", "samples": "forced", "steering": "upstream runs"}
    ]


def test_points_of_a_sweep_share_what_they_have_in_common(lab):
    plans = lab(text=toy.SPEC + "[sweep.grid]\n'steering.draws' = [2, 3]\n")
    assert running(plans) == [list(toy.STAGES), ["steering"]]
    assert reasons(plans)[1]["ground_state"] == "shared with toy/steering.draws=2"
    forced = lab(text=toy.SPEC + "[sweep.grid]\n'steering.draws' = [2, 3]\n", force=["samples"])
    assert reasons(forced)[1]["samples"] == "shared with toy/steering.draws=2"


@pytest.mark.parametrize("options", [{"until": ["sample"]}, {"force": ["sample"]}])
def test_an_unknown_stage_names_the_nearest(lab, options):
    with pytest.raises(UserError, match=r"'sample' \(did you mean samples\?\)"):
        lab(**options)


def test_forcing_beyond_until_is_a_contradiction(lab):
    with pytest.raises(UserError, match="--force steering"):
        lab(until=["samples"], force=["steering"])
