"""The table [state.symmetry]: on every kind of state, in the keys of stages only if used, refused where it cannot be."""

import pytest

from nqs_sae_service.spec import canonical_json
from nqs_sae_service.spec.load import frozen_point

SQUARE = """
name = "square"
[lattice]
kind = "square"
length = 4
[hamiltonian]
kind = "heisenberg"
J2 = 0.5
[state]
kind = "transformer"
amplitude = "complex"
[state.symmetry]
translations = true
point_group = true
spin_flip = 1
"""


def test_a_spec_without_the_table_has_the_key_it_had(folder):
    (bare,) = folder.load(folder.minimal)
    assert "symmetry" not in canonical_json({"state": bare.spec.state})
    (projected,) = folder.load(SQUARE)
    assert '"irrep":"A1"' in canonical_json({"state": projected.spec.state})


@pytest.mark.parametrize("kind", ["transformer", "rbm"])
def test_every_kind_of_state_has_it(folder, kind):
    text = SQUARE.replace('kind = "transformer"\namplitude = "complex"', f'kind = "{kind}"')
    (point,) = folder.load(text.replace("[state.symmetry]", "[state.symmetry]\nfrom_step = 7"))
    state = point.spec.state.build(point.spec.lattice.build())
    assert state.n_copies == (64 if kind == "transformer" else 256)
    assert state.symmetry.from_step == 7
    assert frozen_point(point.toml(), "square", {}).spec == point.spec


def test_it_can_be_swept_and_set(folder):
    swept = SQUARE + '\n[sweep.grid]\n"state.symmetry.irrep" = ["A1", "B1"]\n'
    points = folder.load(swept)
    assert [point.spec.state.symmetry.irrep for point in points] == ["A1", "B1"]
    (point,) = folder.load(SQUARE, ["state.symmetry.translations=false"])
    assert not point.spec.state.symmetry.translations


@pytest.mark.parametrize(
    ("sets", "key", "what"),
    [
        (["state.symmetry.momentum=[1, 0, 0]"], "momentum", "at most 2"),
        (["state.symmetry.momentum=[1]"], "momentum", "this lattice has 2 axes"),
        (["state.symmetry.momentum=[0, 4]"], "momentum", "must be 0 ... 3, in units of 2 pi / 4"),
        (["state.symmetry.translations=false", "state.symmetry.momentum=[0, 0]"], "momentum", "translations = true"),
        (
            ["state.symmetry.momentum=[1, 0]", "state.translation_invariant=false", "state.symmetry.irrep=B1"],
            "irrep",
            'no "B1"',
        ),
        (["state.symmetry.momentum=[1, 1]"], "momentum", "state.translation_invariant = false"),
        (["state.symmetry.point_group=false", "state.symmetry.irrep=B1"], "irrep", "point_group = true"),
        (["state.amplitude=positive", "state.symmetry.irrep=B1"], "irrep", "amplitude = \"complex\""),
        (["state.amplitude=positive", "state.symmetry.spin_flip=-1"], "spin_flip", "amplitude = \"complex\""),
        (["lattice.periodic=false"], "translations", "no periodic axis"),
        (["hamiltonian.hz=0.5"], "spin_flip", "the Hamiltonian does not have this symmetry"),
        (["sampling.magnetization=2"], "spin_flip", "changes a magnetization of 2"),
        (["state.symmetry.spin_flip=2"], "spin_flip", "must be -1, 0 or 1"),
        (["state.symmetry.irrep=E"], "irrep", "'A1', 'A2', 'B1' or 'B2'"),
        (["state.symmetry.irreps=A1"], "irreps", 'did you mean "irrep"'),
    ],
)  # fmt: skip
def test_what_is_refused(folder, sets, key, what):
    folder.write(SQUARE)
    lines = folder.problems(sets=sets)
    assert any(f"state.symmetry.{key}" in line and what in line for line in lines), lines


def test_a_graph_and_an_empty_projection(folder):
    graph = 'name = "g"\n[lattice]\nkind = "graph"\nsites = 4\nedges = [[0, 1]]\n[hamiltonian]\nkind = "tfim"\nh = 1.0\n'
    (line,) = folder.problems(graph + "[state.symmetry]\npoint_group = true\n")
    assert "state.symmetry.point_group: this lattice has no rotations and reflections" in line
    (line,) = folder.problems(folder.minimal + "[state.symmetry]\nfrom_step = 5\n")
    assert "state.symmetry.from_step: there is nothing to project on" in line
