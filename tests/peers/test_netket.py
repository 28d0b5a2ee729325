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
from nqs_sae_service.states import STATES
from nqs_sae_service.vmc.estimators import local_values

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "netket" / "bin" / "python"
SITES, FIELD, SAMPLES = 40, 0.7, 32

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not PYTHON.exists(), reason="NetKet is not installed: run `make bench-peers`"),
]

NETWORKS = {
    f"{attention}-{amplitude}": {
        "kind": "transformer",
        "patch": 4,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "attention": attention,
        "amplitude": amplitude,
        "translation_invariant": False,
    }
    for attention in ("positional", "full")
    for amplitude in ("complex", "positive")
}
NETWORKS |= {"rbm": {"kind": "rbm", "alpha": 4}}


@cache
def ours(name, precision):
    """The wave function with parameters away from their start, and configurations."""
    record = STATES[NETWORKS[name]["kind"]].model_validate({**NETWORKS[name], "precision": precision})
    state = record.build(LATTICES["chain"].model_validate({"kind": "chain", "length": SITES}).build())
    generator = np.random.default_rng(7)
    # float32 numbers, so that both precisions see the same weights; biases and gains are not left at 0 and 1
    parameters = (state.initial_parameters(3) + generator.normal(scale=0.05, size=state.n_parameters)).astype(
        np.float32
    )
    sigma = np.where(generator.random((SAMPLES, SITES)) < 0.5, 1, -1).astype(np.int8)
    return state.bind(parameters.astype(precision)), sigma


@pytest.fixture(scope="module")
def netket(tmp_path_factory):
    """``netket(network, precision)``: what NetKet makes of the parameters, evaluated once."""

    @cache
    def evaluate(name, precision):
        folder = tmp_path_factory.mktemp("netket")
        psi, sigma = ours(name, precision)
        np.savez(
            folder / "in.npz",
            network=json.dumps({**NETWORKS[name], "precision": precision}),
            h=FIELD,
            sigma=sigma,
            **{f"parameter:{key}": array for key, array in psi.weights.items()},
        )
        script = ROOT / "benchmarks" / "peers" / "netket_evaluate.py"
        command = [PYTHON, script, folder / "in.npz", folder / "out.npz"]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(np.load(folder / "out.npz"))

    return evaluate


def local_energy(psi, sigma):
    lattice = LATTICES["chain"].model_validate({"kind": "chain", "length": SITES}).build()
    hamiltonian = HAMILTONIANS["tfim"].model_validate({"kind": "tfim", "h": FIELD}).build(lattice)
    return local_values(psi, [hamiltonian], sigma, psi.log_psi(sigma))[0]


# Relative tolerances of psi and of the local energies: rounding of sums over some 10^4 products.
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 3e-5)])
@pytest.mark.parametrize("name", NETWORKS)
def test_log_psi_and_local_energies_are_those_of_netket(netket, name, precision, tolerance):
    psi, sigma = ours(name, precision)
    theirs = netket(name, precision)
    assert np.ptp(theirs["log_psi"].real) > 0.05  # the network does depend on the configuration
    assert np.abs(np.expm1(psi.log_psi(sigma) - theirs["log_psi"])).max() < tolerance
    np.testing.assert_allclose(
        local_energy(psi, sigma), theirs["local_energy"], rtol=tolerance, atol=SITES * tolerance
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gram_matrix_of_the_log_derivatives_is_that_of_netket(netket, name):
    psi, sigma = ours(name, "float64")
    gradients = psi.per_sample_gradients(sigma)
    gradients = gradients - gradients.mean(axis=0)
    gram = (gradients.conj() @ gradients.T).real
    np.testing.assert_allclose(
        gram, netket(name, "float64")["gram"], rtol=1e-9, atol=1e-9 * np.abs(gram).max()
    )
