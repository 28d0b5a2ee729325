"""What is measured by default, and which names a spec may not ask for."""

import pytest

MAGNET = """\
name = "magnet"
[lattice]
{lattice}
[hamiltonian]
kind = "heisenberg"
{hamiltonian}
[state]
kind = "rbm"
"""
STAGGERED = ("staggered_magnetization", "abs_staggered_magnetization", "staggered_magnetization_squared")


def magnet(lattice="kind = 'square'\nlength = 4", hamiltonian=""):
    return MAGNET.format(lattice=lattice, hamiltonian=hamiltonian)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (magnet(), (*STAGGERED, "spin_correlation_1")),
        (magnet("kind = 'chain'\nlength = 8"), (*STAGGERED, "spin_correlation_1")),
        (
            magnet("kind = 'triangular'\nlengths = [3, 4]"),
            ("nearest_neighbour_correlation", "spin_correlation_1"),
        ),
        (magnet() + "[observables]\nnames = ['local_energy']", ("local_energy",)),
    ],
)
def test_defaults_follow_lattice_and_hamiltonian(folder, text, names):
    (point,) = folder.load(text)
    assert point.spec.observables.names == names
    assert point.spec.steering.targets == names[:2]
    assert point.spec.completed() == point.spec


def test_the_default_of_a_chain_in_a_transverse_field(folder):
    (point,) = folder.load(folder.minimal)
    expected = ("magnetization", "abs_magnetization", "half_chain_correlation", "sigma_x")
    assert point.spec.observables.names == expected


def test_targets_are_observables_with_a_mean(folder):
    text = (
        magnet()
        + "[observables]\nnames = ['renyi2', 'marshall_sign', 'dimer_x', 'energy_variance', 'dimer_zz_y']"
    )
    (point,) = folder.load(text)
    assert point.spec.steering.targets == ("dimer_x", "dimer_zz_y")
    lines = folder.problems(text + "\n[steering]\ntargets = ['renyi2', 'marshall_sign']")
    assert any(
        "renyi2 has no meaning as a mean: it is one number for the whole state" in line for line in lines
    )
    assert any(
        "marshall_sign has no meaning as a mean: it depends on the global phase" in line for line in lines
    )
    lines = folder.problems(magnet() + "[observables]\nnames = ['renyi2']")
    assert any("none of observables.names has a mean" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigma_x", "sigma_x changes the magnetization, which the sampling holds fixed: leave it out"),
        ("half_chain_correlation", "half_chain_correlation: only a chain has it"),
        ("structure_factor_2", "a plane has structure_factor_<kx>_<ky>"),
        ("bond_energy_0_5", "the Hamiltonian has no exchange between sites 0 and 5"),
        ("spin_correlation_99", "k = 99 is outside 1 ... 64"),
        ("stagered_magnetization", '(did you mean "staggered_magnetization"?)'),
    ],
)
def test_refused_names(folder, name, expected):
    lines = folder.problems(magnet() + f"[observables]\nnames = ['{name}']")
    assert any("observables.names[0]: " in line and expected in line for line in lines), lines


def test_free_sampling_may_measure_what_changes_the_magnetization(folder):
    text = magnet() + "[observables]\nnames = ['sigma_x']\n[sampling]\nmagnetization = 'free'"
    assert folder.load(text)[0].spec.observables.names == ("sigma_x",)


def test_a_broken_hamiltonian_does_not_hide_behind_its_bonds(folder):
    text = magnet(hamiltonian="J = 0.0") + "[observables]\nnames = ['bond_energy_0_1']"
    (line,) = folder.problems(text)
    assert "all couplings are zero" in line
