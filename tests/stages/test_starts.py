"""What a training takes over from another run: parameters always, chains where they are chains of the same problem."""

import numpy as np
import pytest
import xarray as xr

from nqs_sae_service.errors import UserError
from nqs_sae_service.spec import Spec, canonical_json
from nqs_sae_service.stages.starts import start_of

SECTIONS = ("lattice", "hamiltonian", "state", "sampling", "ground_state")


def spec(sites=8, hamiltonian="tfim", chains=16, kind_of="transformer", **state):
    network = {"patch": 2, "width": 8, "heads": 2} if kind_of == "transformer" else {}
    return Spec.model_validate(
        {
            "name": "x",
            "lattice": {"kind": "chain", "length": sites},
            "hamiltonian": {"kind": hamiltonian, **({"h": 1.0} if hamiltonian == "tfim" else {})},
            "state": {"kind": kind_of, **network, **state},
            "sampling": {"chains": chains},
        }
    ).completed()


def build(spec):
    return spec.state.build(spec.lattice.build())


def finished(spec):
    """The ground state of a run, as its file has it."""
    state = build(spec)
    sigma = np.tile(np.array([1, -1], np.int8), (spec.sampling.chains, state.n_sites // 2))
    return xr.Dataset(
        {"parameters": ("parameter", state.initial_parameters(9)), "final_configuration": (("chain", "spin"), sigma)},
        attrs={"sections": canonical_json({name: getattr(spec, name) for name in SECTIONS})},
    )  # fmt: skip


@pytest.mark.parametrize("hamiltonian", ["tfim", "heisenberg"])
def test_the_same_problem_takes_parameters_and_chains(hamiltonian):
    here = spec(hamiltonian=hamiltonian)
    before = finished(here)
    parameters, chains = start_of(here, build(here), before)
    np.testing.assert_array_equal(parameters, before.parameters)
    np.testing.assert_array_equal(chains, before.final_configuration)


@pytest.mark.parametrize(
    ("there", "here"),
    [
        (spec(), spec(chains=32)),
        (spec(), spec(sites=12)),
        (spec(), spec(hamiltonian="heisenberg")),  # free there, a fixed magnetization here
        (spec(hamiltonian="heisenberg"), spec()),
    ],
)
def test_chains_of_another_problem_are_left_behind(there, here):
    parameters, chains = start_of(here, build(here), finished(there))
    assert chains is None
    assert parameters.shape == (build(here).n_parameters,)


def test_another_precision_is_a_conversion():
    there, here = spec(), spec(precision="float64")
    parameters, _ = start_of(here, build(here), finished(there))
    assert parameters.dtype == np.float64
    np.testing.assert_array_equal(parameters.astype(np.float32), build(there).initial_parameters(9))


def test_without_a_start_parameters_are_random():
    here = spec()
    parameters, chains = start_of(here, build(here), None)
    np.testing.assert_array_equal(parameters, build(here).initial_parameters(here.ground_state.seed))
    assert chains is None


def test_a_network_that_does_not_fit_and_one_that_is_not_known():
    with pytest.raises(
        UserError, match=r"ground_state\.start_from: .*embedding\.weight \(2, 8\), needed \(2, 16\)"
    ):
        start_of(spec(width=16), build(spec(width=16)), finished(spec()))
    strange = finished(spec()).assign_attrs(sections='{"state": {"kind": "tree"}, "lattice": {}}')
    with pytest.raises(UserError, match=r"ground_state\.start_from: .*not known to this version"):
        start_of(spec(), build(spec()), strange)


def test_a_projected_state_starts_from_the_bare_one():
    """Progressive symmetrisation: the projection has no parameters of its own."""
    there, here = spec(kind_of="rbm"), spec(kind_of="rbm", symmetry={"translations": True})
    before = finished(there)
    parameters, chains = start_of(here, build(here), before)
    np.testing.assert_array_equal(parameters, before.parameters)
    np.testing.assert_array_equal(chains, before.final_configuration)
    assert build(here).symmetry is not None
