"""Resolved specs: defaults, seeds, inheritance, the command line, sweeps."""

import pytest

from nqs_sae_service.errors import UserError
from nqs_sae_service.interpret.kinds import BY_DEFAULT, DIRECTIONS
from nqs_sae_service.spec import Spec, frozen_point, load_spec


def test_only_name_lattice_and_hamiltonian_are_required(folder):
    (point,) = folder.load(folder.minimal)
    spec = point.spec
    assert point.run == "ring"
    assert point.coordinates == {}
    assert spec.state.kind == "transformer"
    assert spec.sae.kind == "topk"
    assert spec.activations.layers == ("residual_1", "residual_2")
    assert spec.steering.layers == spec.activations.layers
    assert spec.steering.targets == spec.observables.names[:2]


def test_the_top_level_seed_fills_the_others(folder):
    spec = folder.load("seed = 7\n" + folder.minimal + "[samples]\nseed = 3")[0].spec
    assert (spec.ground_state.seed, spec.samples.seed, spec.features.seed, spec.steering.seed) == (7, 3, 7, 7)
    assert spec.completed() == spec


def test_an_integer_will_do_for_a_number(folder):
    spec = folder.load(folder.minimal.replace("h = 1.0", "h = 1"))[0].spec
    assert isinstance(spec.hamiltonian.h, float)


def test_scale_one_is_always_there(folder):
    spec = folder.load(folder.minimal + "[steering]\nscales = [2, 0.5]")[0].spec
    assert spec.steering.scales == (0.5, 1.0, 2.0)


def test_directions_of_steering_have_one_order(folder):
    """So that a list and the same list in another order are one computation; the default is spelled out."""
    text = folder.minimal + "[steering]\ndirections = "
    spec = folder.load(text + "['constant_shift', 'jastrow_dial', 'feature']")[0].spec
    assert spec.steering.directions == ("feature", "jastrow_dial", "constant_shift")
    assert folder.load(folder.minimal)[0].spec.steering.directions == BY_DEFAULT == DIRECTIONS[:6]


def test_chains_are_split_without_a_rest(folder):
    spec = folder.load(folder.minimal)[0].spec
    assert spec.samples.split_chains(1024) == (512, 256, 256)
    for chains in range(8, 200):
        assert sum(spec.samples.split_chains(chains)) == chains
        assert min(spec.samples.split_chains(chains)) >= 2


def test_the_resolved_text_loads_back_to_the_same_spec(folder):
    text = (
        folder.minimal + "[sae]\nkind = 'relu-l1'\n[sweep.grid]\nseed = [3, 4]\n'ground_state.shift' = [1e-7]"
    )
    for point in folder.load(text):
        (again,) = folder.load(point.toml())
        assert again.spec == point.spec
        assert again.toml() == point.toml()


def test_a_frozen_point_is_the_point_without_its_file(folder):
    text = folder.minimal + "[sae]\nkind = 'relu-l1'\n[sweep.grid]\nseed = [3, 4]\n'sae.features' = [64]"
    for point in folder.load(text):
        assert frozen_point(point.toml(), point.run, point.coordinates) == point


@pytest.mark.parametrize("text", ["name = ", "name = 'ring'", "colour = 1"])
def test_a_frozen_point_of_another_version_is_refused(text):
    with pytest.raises(UserError, match=r"ring: its frozen spec does not fit this version .*submit it again"):
        frozen_point(text, "ring", {})


def test_a_spec_made_in_python_is_the_same(folder):
    spec = folder.load("seed = 5\n" + folder.minimal)[0].spec
    made = Spec(name="ring", seed=5, lattice=spec.lattice, hamiltonian=spec.hamiltonian)
    assert made.completed() == spec


def test_records_are_frozen(folder):
    spec = folder.load(folder.minimal)[0].spec
    with pytest.raises(ValueError, match="frozen"):
        spec.lattice.length = 3
    assert isinstance(spec, Spec)


LATTICES = {
    'kind = "square"\nlength = 4': 16,
    'kind = "square"\nlength = 4\nperiodic = [true, false]': 16,
    'kind = "rectangular"\nlengths = [4, 6]\nperiodic = false': 24,
    'kind = "triangular"\nlengths = [4, 4]': 16,
    'kind = "honeycomb"\nlengths = [2, 4]\nperiodic = [false, true]': 16,
    'kind = "kagome"\nlengths = [2, 2]': 12,
    'kind = "graph"\nsites = 4\nedges = [[0, 1], [1, 2], [2, 3], [3, 0]]': 4,
}


@pytest.mark.parametrize("lattice", LATTICES)
def test_every_kind_of_lattice_loads_and_its_resolved_text_loads_back(folder, lattice):
    text = f'name = "a"\n[lattice]\n{lattice}\n[hamiltonian]\nkind = "heisenberg"\n[state]\nkind = "rbm"\n'
    (point,) = folder.load(text)
    assert point.spec.lattice.build().n_sites == LATTICES[lattice]
    assert folder.load(point.toml())[0].spec == point.spec
    assert frozen_point(point.toml(), point.run, point.coordinates) == point


def test_a_sum_of_pauli_strings_loads_back(folder):
    terms = """[
      {coefficient = -1, string = "ZZ", shell = 1},
      {coefficient = 0.5, string = "XY", sites = [0, 1]},
      {coefficient = -0.7, string = "X"},
    ]"""
    text = (
        f'name = "a"\n[lattice]\nkind = "chain"\nlength = 4\n[hamiltonian]\nkind = "pauli"\nterms = {terms}\n'
    )
    text += '[state]\nkind = "rbm"\n'
    (point,) = folder.load(text)
    assert folder.load(point.toml())[0].spec == point.spec
    assert frozen_point(point.toml(), point.run, point.coordinates) == point


# --- extends


def test_a_base_fills_what_the_spec_does_not_say(folder):
    folder.write(
        folder.minimal + "[state]\npatch = 2\nwidth = 16\n[sampling]\nchains = 64", "bases/base.toml"
    )
    folder.write("extends = '../bases/base.toml'\n[state]\nwidth = 24", "specs/child.toml")
    spec = load_spec("specs/child.toml")[0].spec
    assert (spec.name, spec.state.patch, spec.state.width, spec.sampling.chains) == ("ring", 2, 24, 64)


def test_a_section_of_another_kind_replaces_that_of_the_base(folder):
    folder.write(folder.minimal + "[sae]\nk = 4\nfeatures = 64", "base.toml")
    kept = folder.load("extends = 'base.toml'\n[sae]\nkind = 'topk'\nsteps = 5")[0].spec.sae
    assert (kept.k, kept.features, kept.steps) == (4, 64, 5)
    replaced = folder.load("extends = 'base.toml'\n[sae]\nkind = 'relu-l1'")[0].spec.sae
    assert replaced.features == type(replaced).model_fields["features"].default


def test_problems_name_the_file_that_the_value_came_from(folder):
    folder.write(folder.minimal + "[sampling]\nchains = 0\n[observables]\nnames = ['a', 1, 2]", "base.toml")
    lines = folder.problems("extends = 'base.toml'\nsede = 1\n[observables]\nnames = ['sigma_x', 7]")
    assert lines == [
        'spec.toml:2:1: sede: unknown key (did you mean "seed"?)',
        "spec.toml:4:21: observables.names[1]: must be a string, got 7",
        "base.toml:9:1: sampling.chains: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("extends", "expected"),
    [
        ("'none.toml'", "none.toml: no such file"),
        ("'.'", "is a directory"),
        ("'spec.toml'", "extends this file in turn"),
        ("'loop.toml'", "extends this file in turn"),
        ("'empty.toml'", "the file is empty"),
        ("'binary.toml'", "is not a text file"),
        ("'/etc/hostname'", "relative to this file"),
        ('"a\\u0000b"', "cannot be read"),
        ("['base.toml']", "must be the path of one spec file"),
        ("3", "must be the path of one spec file"),
        ("''", "must be the path of one spec file"),
    ],
)
def test_bases_that_lead_nowhere(folder, extends, expected):
    folder.write("extends = 'spec.toml'", "loop.toml")
    folder.write("", "empty.toml")
    folder.write(b"\xff\xfe\x00", "binary.toml")
    lines = folder.problems(f"extends = {extends}\n[sampling]\nchains = 0")
    assert any(expected in line and ": extends: " in line for line in lines), lines
    # what stands in the spec itself is still checked, but nothing counts as missing
    assert lines[-1].startswith("spec.toml:3:1: sampling.chains: ") or "in turn" in expected
    assert not any("missing" in line for line in lines)


def test_a_syntax_error_in_a_base_has_its_own_place(folder):
    folder.write("name = ", "base.toml")
    assert folder.problems("extends = 'base.toml'") == ["base.toml:1:8: not valid TOML: Invalid value"]


# --- --set


def test_values_of_the_command_line_override_the_file(folder):
    sets = [
        "state.attention=positional",
        "hamiltonian.h = 0.5",
        "observables.names=['sigma_x']",
        "seed=3",
        "name=x",
    ]
    spec = folder.load(folder.minimal, sets)[0].spec
    assert (spec.name, spec.seed, spec.steering.seed) == ("x", 3, 3)
    assert (spec.state.attention, spec.hamiltonian.h) == ("positional", 0.5)
    assert spec.steering.targets == ("sigma_x",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hamiltonian.h", "must read section.key=value"),
        ("=3", "must read section.key=value"),
        ("lattice.length=", "is not a TOML value"),
        ("lattice.length=abc", 'lattice.length: must be an integer, got "abc"'),
        ("lattice.length=two words", "is not a TOML value"),
        ("lattice.length=1\nname='x'", "must read section.key=value"),
        ("lattice.length=[1", "is not a TOML value"),
        ("lattice.lenght=3", 'lattice.lenght: unknown key (did you mean "length"?)'),
        ("lattice..length=3", "is not a key"),
        ("lattice.length.x=3", "length is a value, not a table"),
        ("lattice=3", "lattice: must be one table, [lattice], got 3"),
        ("sampling.chains=nan", "sampling.chains: must be an integer, got nan"),
        ("observables.names=['sigma_x', 2]", "observables.names[1]: must be a string, got 2"),
        ("extends=other.toml", "cannot be set on the command line"),
        ("samling.chains=3", 'samling: unknown section (did you mean "sampling"?)'),
    ],
)
def test_bad_values_of_the_command_line(folder, text, expected):
    (line,) = folder.problems(folder.minimal, [text])
    assert line.startswith("--set " + text.split("\n")[0])
    assert expected in line


# --- sweeps


def test_a_grid_is_a_product_in_the_order_written(folder):
    points = folder.load(
        folder.minimal + "[sweep.grid]\n'hamiltonian.h' = [0.5, 1]\nsae.k = [2, 4]\nseed = [1]\n[sweep.zip]\n"
        "'state.width' = [8, 16]\n'state.attention' = ['full', 'positional']"
    )
    assert len(points) == 8
    assert points[0].run == ("ring/hamiltonian.h=0.5,sae.k=2,seed=1,state.width=8,state.attention=full")
    assert [(p.spec.hamiltonian.h, p.spec.sae.k, p.spec.state.width) for p in points[:4]] == [
        (0.5, 2, 8),
        (0.5, 2, 16),
        (0.5, 4, 8),
        (0.5, 4, 16),
    ]
    assert points[-1].coordinates == {
        "hamiltonian.h": 1.0,
        "sae.k": 4,
        "seed": 1,
        "state.width": 16,
        "state.attention": "positional",
    }


def test_a_swept_key_need_not_stand_in_its_section(folder):
    text = folder.minimal.replace("h = 1.0\n", "") + "[sweep.grid]\n'hamiltonian.h' = [0.5]"
    assert folder.load(text)[0].run == "ring/hamiltonian.h=0.5"


def test_directories_are_safe_and_differ(folder):
    text = folder.minimal + "[sweep.grid]\n'observables.names' = [['sigma_x'], ['magnetization', 'sigma_x']]"
    runs = [point.run for point in folder.load(text)]
    assert runs == ["ring/observables.names=sigma_x", "ring/observables.names=magnetization+sigma_x"]
    long = [f"correlation_0_{n}" for n in range(1, 16)]
    points = folder.load(folder.minimal + f"[sweep.grid]\n'observables.names' = [{long}, {long[::-1]}]")
    assert len({point.run for point in points}) == 2
    assert all(len(point.run.split("/")[1]) <= 200 for point in points)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ("sweep = 3", "must be a table"),
        ("[sweep.gird]\n'seed' = [1]", "sweep.gird: unknown key: a sweep is written as"),
        ("[sweep]\ngrid = 3", "sweep.grid: must be an array"),
        (
            "[sweep.grid]\n'hamiltonian.h' = 0.5",
            'spec.toml:9:1: sweep.grid."hamiltonian.h": must be an array',
        ),
        ("[sweep.grid]\n'hamiltonian.h' = []", "with at least one element, got []"),
        ("[sweep.grid]\n'hamiltonian.hh' = [1]", '(did you mean "hamiltonian.h"?)'),
        ("[sweep.grid]\n'hamitonian.h' = [1]", '(did you mean "hamiltonian"?)'),
        ("[sweep.grid]\n'name' = ['a']", "cannot be swept"),
        ("[sweep.grid]\n'hamiltonian' = [{kind = 'tfim'}]", "cannot be swept"),
        (
            "[sweep.grid]\n'hamiltonian.h' = [1, 'x', nan]",
            'spec.toml:9:23: hamiltonian.h: must be a number, got "x"',
        ),
        (
            "[sweep.grid]\n'hamiltonian.h' = [1, 'x', nan]",
            "spec.toml:9:28: hamiltonian.h: must be a finite number",
        ),
        ("[sweep.grid]\n'hamiltonian.h' = [1, 1.0]", "two points are both ring/hamiltonian.h=1.0"),
        (
            "[sweep.grid]\n'hamiltonian.h' = [1]\nhamiltonian.h = [2]",
            "is swept twice, first at spec.toml:9:1",
        ),
        (
            "[sweep.zip]\n'hamiltonian.h' = [1]\nseed = [1, 2]",
            "equal lengths: hamiltonian.h has 1, seed has 2",
        ),
        (
            f"[sweep.grid]\n'seed' = {list(range(101))}\n'hamiltonian.h' = {list(range(101))}",
            "makes 10201 points",
        ),
        ("[sweep.grid]\n'lattice.length' = [16, 18]", "at lattice.length=18"),
        (
            "[sweep.grid]\n'observables.names' = [['sigma_x'], ['sigma_y', 'x']]",
            "spec.toml:9:38: observables.names[0]",
        ),
    ],
)
def test_bad_sweeps(folder, sweep, expected):
    text = sweep + "\n" + folder.minimal if sweep.startswith("sweep") else folder.minimal + sweep
    lines = folder.problems(text)
    assert any(expected in line for line in lines), lines
    assert len(lines) == len(set(lines))


def test_a_problem_of_every_point_is_said_once(folder):
    text = folder.minimal + "[sae]\nk = 0\n[sweep.grid]\nseed = [1, 2, 3, 4]"
    assert folder.problems(text) == ["spec.toml:9:1: sae.k: must be at least 1, got 0"]


def test_the_command_line_must_not_set_what_is_swept(folder):
    text = folder.minimal + "[sweep.grid]\n'hamiltonian.h' = [0.5]"
    (line,) = folder.problems(text, ["hamiltonian.h=1"])
    assert line == (
        "--set hamiltonian.h=1: hamiltonian.h: hamiltonian.h is swept, at spec.toml:9:1: change the sweep instead"
    )
    assert folder.load(text, ["sweep.grid={'hamiltonian.h'=[2.0]}"])[0].spec.hamiltonian.h == 2.0


def test_a_spec_must_not_set_what_its_base_sweeps(folder):
    folder.write(folder.minimal + "[sweep.grid]\n'hamiltonian.h' = [0.5]", "base.toml")
    (line,) = folder.problems("extends = 'base.toml'\n[hamiltonian]\nh = 2.0")
    assert line.startswith("spec.toml:3:1: hamiltonian.h: is swept by a base of this spec, at base.toml:9:1")
