"""NetKet with our very weights: log psi, local energies and log-derivatives agree to rounding.

NetKet runs in its own environment, ``.venv-peers/netket`` (``make bench-peers``), and gets arrays in a file.
"""

import json
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import LATTICES
from nqs_sae_service.sampling.process import random_configurations
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.states import STATES
from nqs_sae_service.vmc.estimators import local_values

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "netket" / "bin" / "python"
SAMPLES = 32

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="NetKet is not installed: run `make bench-peers`"),
]

RING = {
    "lattice": {"kind": "chain", "length": 40},
    "hamiltonian": {"kind": "tfim", "h": 0.7},
    "sampling": {},
}
SQUARE = {
    "lattice": {"kind": "square", "length": 6},
    "hamiltonian": {"kind": "heisenberg", "J2": 0.5},
    "sampling": {"magnetization": 0, "exchange_shells": 3},
}
ROTATED = {**SQUARE, "hamiltonian": {"kind": "heisenberg", "J": 1.5, "J2": 0.5, "marshall": True}}


def transformer(patch, attention, amplitude, translation_invariant=False):
    return {
        "kind": "transformer",
        "patch": patch,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "attention": attention,
        "amplitude": amplitude,
        "translation_invariant": translation_invariant,
    }


WORKS = {
    f"{attention}-{amplitude}": {**RING, "network": transformer(4, attention, amplitude)}
    for attention in ("positional", "full")
    for amplitude in ("complex", "positive")
}
WORKS |= {
    "invariant": {**RING, "network": transformer(4, "positional", "complex", True)},
    "rbm": {**RING, "network": {"kind": "rbm", "alpha": 4}},
    "square": {**SQUARE, "network": transformer(2, "positional", "complex")},
    "square-full": {**SQUARE, "network": transformer((3, 2), "full", "complex")},
    # Patches and their grid are of unequal sides, so that no axis can be taken for another.
    "square-invariant": {**ROTATED, "network": transformer((2, 3), "positional", "complex", True)},
    "square-rbm": {**ROTATED, "network": {"kind": "rbm", "alpha": 2}},
}


def sections(name):
    """The records of lattice and Hamiltonian, and the lattice."""
    work = WORKS[name]
    lattice = LATTICES[work["lattice"]["kind"]].model_validate(work["lattice"])
    hamiltonian = HAMILTONIANS[work["hamiltonian"]["kind"]].model_validate(work["hamiltonian"])
    return {"lattice": lattice, "hamiltonian": hamiltonian}, lattice.build()


@cache
def ours(name, precision):
    """The wave function with parameters away from their start, and configurations."""
    network = WORKS[name]["network"]
    _, lattice = sections(name)
    state = STATES[network["kind"]].model_validate({**network, "precision": precision}).build(lattice)
    generator = np.random.default_rng(7)
    # float32 numbers, so that both precisions see the same weights; biases and gains are not left at 0 and 1
    parameters = (state.initial_parameters(3) + generator.normal(scale=0.05, size=state.n_parameters)).astype(
        np.float32
    )
    random = generator.integers(2**32, size=(lattice.n_sites, SAMPLES), dtype=np.uint32)
    sigma = random_configurations(random, WORKS[name]["sampling"].get("magnetization"))
    return state.bind(parameters.astype(precision)), sigma


@pytest.fixture(scope="module")
def netket(tmp_path_factory):
    """``netket(name, precision)``: what NetKet makes of the parameters, evaluated once."""

    @cache
    def evaluate(name, precision):
        folder = tmp_path_factory.mktemp("netket")
        psi, sigma = ours(name, precision)
        np.savez(
            folder / "in.npz",
            work=json.dumps({**WORKS[name], "network": {**WORKS[name]["network"], "precision": precision}}),
            sigma=sigma,
            **{f"parameter:{key}": array for key, array in psi.weights.items()},
        )
        script = ROOT / "benchmarks" / "peers" / "netket_evaluate.py"
        command = [PYTHON, script, folder / "in.npz", folder / "out.npz"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(np.load(folder / "out.npz"))

    return evaluate


# Relative tolerances of psi and of the local energies: rounding of sums over some 10^4 products.
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 3e-5)])
@pytest.mark.parametrize("name", WORKS)
def test_log_psi_and_local_energies_are_those_of_netket(netket, name, precision, tolerance):
    psi, sigma = ours(name, precision)
    theirs = netket(name, precision)
    assert np.ptp(theirs["log_psi"].real) > 0.05  # the network does depend on the configuration
    assert np.abs(np.expm1(psi.log_psi(sigma) - theirs["log_psi"])).max() < tolerance
    records, lattice = sections(name)
    (energies,) = local_values(psi, [records["hamiltonian"].build(lattice)], sigma, psi.log_psi(sigma))
    np.testing.assert_allclose(
        energies, theirs["local_energy"], rtol=tolerance, atol=lattice.n_sites * tolerance
    )


@pytest.mark.parametrize("name", WORKS)
def test_the_gram_matrix_of_the_log_derivatives_is_that_of_netket(netket, name):
    psi, sigma = ours(name, "float64")
    gradients = psi.per_sample_gradients(sigma)
    gradients = gradients - gradients.mean(axis=0)
    gram = (gradients.conj() @ gradients.T).real
    np.testing.assert_allclose(
        gram, netket(name, "float64")["gram"], rtol=1e-9, atol=1e-9 * np.abs(gram).max()
    )


def test_the_same_pairs_of_spins_are_exchanged(netket):
    records, lattice = sections("square")
    sampling = Sampling.model_validate(SQUARE["sampling"]).resolved(records)
    expected = sampling.moves(lattice).pairs
    np.testing.assert_array_equal(
        netket("square", "float64")["pairs"], expected[np.lexsort(expected.T[::-1])]
    )
