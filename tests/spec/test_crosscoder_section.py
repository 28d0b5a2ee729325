"""The section ``[crosscoder]`` and ``ground_state.checkpoints``: what they mean, and what is wrong, where, and what to do."""

import pytest

from nqs_sae_service.spec.keys import canonical_json

KEPT = "ground_state.checkpoints=[0, 20]"


def spec(folder, *sets):
    (point,) = folder.load(folder.minimal, sets)
    return point.spec


def test_there_is_none_unless_views_are_named(folder):
    plain = spec(folder)
    assert not plain.crosscoder.wanted
    assert plain.crosscoder.layers == ()
    assert spec(folder, "crosscoder.layers=['residual_1', 'residual_2']").crosscoder.wanted


def test_the_last_recorded_layer_is_meant_where_only_networks_are_named(folder):
    found = spec(folder, KEPT, "crosscoder.checkpoints=[20]").crosscoder
    assert found.layers == ("residual_2",)
    assert (found.n_networks, found.n_views) == (2, 2)
    both = spec(
        folder,
        KEPT,
        "crosscoder.checkpoints=[0, 20]",
        "crosscoder.layers=['embedding', 'head']",
        "sae.input=pooled",
    )
    assert (both.crosscoder.n_networks, both.crosscoder.n_views) == (3, 6)


def test_it_may_have_its_own_size(folder):
    layers = "crosscoder.layers=['residual_1', 'residual_2']"
    own = spec(folder, layers, "crosscoder.features=512", "crosscoder.k=5")
    record = own.crosscoder.record(own.sae)
    assert (record.features, record.k, record.kind) == (512, 5, own.sae.kind)
    same = spec(folder, layers)
    assert same.crosscoder.record(same.sae) is same.sae


def test_no_checkpoints_leave_the_key_of_the_ground_state_alone(folder):
    assert "checkpoints" not in canonical_json({"ground_state": spec(folder).ground_state})
    assert "checkpoints" in canonical_json({"ground_state": spec(folder, KEPT).ground_state})


LAYERS = "crosscoder.layers=['residual_1', 'residual_2']"


@pytest.mark.parametrize(
    ("sets", "key", "told"),
    [
        (["ground_state.checkpoints=[400]"], "ground_state.checkpoints[0]", "400 is beyond the 300 steps"),
        (["ground_state.checkpoints=[5, 5]"], "ground_state.checkpoints[1]", "5 is listed twice"),
        (
            ["crosscoder.layers=['residual_1']"],
            "crosscoder.layers",
            "one view needs no crosscoder: name a second layer",
        ),
        (
            ["crosscoder.layers=['residual_1', 'residual_9']"],
            "crosscoder.layers[1]",
            'no layer "residual_9"; its layers',
        ),
        (
            ["crosscoder.layers=['residual_1', 'hidden_1']"],
            "crosscoder.layers[1]",
            "hidden_1 is wider than the other layers: look at it in a spec of its own",
        ),
        (
            [LAYERS, "activations.layers=['hidden_1', 'residual_1']"],
            "activations.layers[0]",
            "hidden_1 is wider than the other layers: look at it in a spec of its own",
        ),
        (
            ["crosscoder.layers=['residual_1', 'residual_1']"],
            "crosscoder.layers[1]",
            '"residual_1" is listed twice',
        ),
        (["crosscoder.layers=['residual_1', 'head']"], "crosscoder.layers[1]", 'set sae.input = "pooled"'),
        (
            [KEPT, "crosscoder.checkpoints=[10]"],
            "crosscoder.checkpoints[0]",
            "not listed in ground_state.checkpoints: add",
        ),
        ([KEPT, "crosscoder.checkpoints=[20, 20]"], "crosscoder.checkpoints[1]", "20 is listed twice"),
        (
            ["crosscoder.checkpoints=[300]"],
            "crosscoder.checkpoints[0]",
            "which is a view anyway: leave it out",
        ),
        (["crosscoder.runs=['a', 'a']"], "crosscoder.runs[1]", '"a" is listed twice'),
        (
            [LAYERS, "crosscoder.k=300"],
            "crosscoder.k",
            "300 active features of 256: k must not exceed features",
        ),
        ([LAYERS, "crosscoder.features=4"], "crosscoder.features", "8 active features of 4"),
        (
            [LAYERS, "sae.kind='relu-l1'", "crosscoder.k=4"],
            "crosscoder.k",
            "has no number of active features: leave it out",
        ),
        (
            ["crosscoder.features=4"],
            "crosscoder.features",
            "there is no crosscoder: name views in crosscoder.layers",
        ),
        (
            [LAYERS, "dynamics.duration=1.0", "state.amplitude=complex"],
            "crosscoder.layers",
            "leave [crosscoder] out, or set dynamics.duration = 0",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_a_remedy(folder, sets, key, told):
    problems = folder.problems(folder.minimal, sets)
    assert len(problems) == 1
    assert f"{key}:" in problems[0]
    assert told in problems[0]
