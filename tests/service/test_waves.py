"""Waves: what several points need is computed once, before them, and nothing is computed for nobody."""

import itertools

import pytest
import toy

from nqs_sae_service.service.plan import make_plan
from nqs_sae_service.service.runner import run_plans
from nqs_sae_service.service.waves import waves
from nqs_sae_service.spec import load_spec
from nqs_sae_service.stages import STAGES

CHAIN = [
    name
    for name in STAGES
    if name not in ("transfer", "dynamics", "attribution", "crosscoder", "completeness", "heads")
]  # of a spec that asks for none of them

GRID = "[sweep.grid]\n'samples.seed' = [1, 2]\n'steering.draws' = [2, 3]\n"


@pytest.fixture
def planned(tmp_path):
    """``planned(sweep)``: the plans of the toy spec with a sweep."""

    def plan(sweep, stages=toy.STAGES):
        path = toy.write_spec(tmp_path, toy.SPEC + sweep)
        return make_plan(load_spec(path), stages, tmp_path / "results")

    return plan


def words(found):
    """The tasks of each wave as ``1,2 samples``: the swept values and the last stages."""
    return [
        [" ".join([",".join(map(str, task.point.coordinates.values())), *task.until]) for task in wave]
        for wave in found
    ]


def test_a_run_alone_has_one_wave(planned):
    assert words(waves(planned(""))) == [[""]]


def test_a_grid_of_two_stages(planned):
    assert words(waves(planned(GRID))) == [
        ["1,2 ground_state"],
        ["1,2 samples", "2,2 samples"],
        ["1,2", "1,3", "2,2", "2,3"],
    ]


def test_stages_that_the_same_points_need_are_one_task(planned):
    assert words(waves(planned("[sweep.grid]\n'steering.draws' = [2, 3, 4]\n"))) == [
        ["2 samples"],
        ["2", "3", "4"],
    ]


def test_what_the_store_has_is_no_wave(planned):
    plans = planned(GRID)
    run_plans(plans[:1])
    assert words(waves(planned(GRID))) == [["2,2 samples"], ["1,2", "1,3", "2,2", "2,3"]]
    run_plans(plans[2:3])
    assert words(waves(planned(GRID))) == [["1,2", "1,3", "2,2", "2,3"]]


def test_nothing_in_common_is_one_wave(planned):
    assert words(waves(planned("[sweep.grid]\n'hamiltonian.h' = [1.0, 2.0]\n"))) == [["1.0", "2.0"]]


def test_dictionaries_and_scales_of_the_real_chain(planned):
    sweep = "[sweep.grid]\n'sae.features' = [64, 128]\n'steering.scales' = [[0.5], [2.0]]\n"
    first, second, third = waves(planned(sweep, STAGES))
    (shared,) = first
    assert set(shared.until) == {"observables", "activations"}
    assert [task.until for task in second] == [("features",), ("features",)]
    assert [task.point.coordinates["sae.features"] for task in second] == [64, 128]
    assert len(third) == 4


@pytest.mark.parametrize("seed", range(5))
def test_any_sweep_computes_each_key_once_and_in_order(planned, seed):
    keys = (
        "ground_state.steps",
        "samples.seed",
        "observables.names",
        "activations.layers",
        "sae.k",
        "steering.draws",
    )
    values = (
        "1, 2",
        "1, 2",
        "['sigma_x'], ['magnetization']",
        "['residual_1'], ['residual_2']",
        "1, 2",
        "1, 2",
    )
    chosen = [n for n in range(6) if (5 + 11 * seed >> n) & 1][:4]
    plans = planned("[sweep.grid]\n" + "".join(f"'{keys[n]}' = [{values[n]}]\n" for n in chosen), STAGES)
    steps = {plan.point.run: {step.stage.name: step for step in plan.steps} for plan in plans}
    done: set[str] = set()
    for wave in waves(plans):
        assert len({task.point.run for task in wave}) == len(wave)
        now: list[str] = []
        for task in wave:
            wanted = list(task.until or CHAIN)
            for name in wanted:
                wanted += [above for above in STAGES[name].upstream if above in CHAIN and above not in wanted]
            now += [
                steps[task.point.run][name].key
                for name in wanted
                if steps[task.point.run][name].key not in done
            ]
        assert len(now) == len(set(now)), "two tasks of a wave compute the same key"
        done |= set(now)
    assert done == {step.key for step in itertools.chain.from_iterable(plan.steps for plan in plans)}
