"""Peak memory of local estimators, measured in a process of their own: bounded by the chunk, not by the number of samples."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import sys
import numpy as np
from nqs_sae_service.engine.economy import Economy
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.states import Transformer
from nqs_sae_service.vmc.estimators import local_values

lattice = Chain(kind="chain", length=100).build()
state = Transformer(patch=4, width=8, heads=2, layers=1, attention="positional").build(lattice)
hamiltonian = Tfim(kind="tfim", h=1.0).build(lattice)
psi = state.bind(state.initial_parameters(0))
economy = Economy(2048, duplicates=sys.argv[1] == "duplicates", increments=sys.argv[2] == "increments")

def peak(n):
    sigma = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), size=(n, 100))
    local_values(psi, [hamiltonian], sigma, psi.log_psi(sigma), economy)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(peak(3000), peak(20000))
"""
CONNECTED = 20_000 * 100 * 100  # bytes of all connected configurations of the second call, as int8 alone


@pytest.mark.parametrize("duplicates", ["duplicates", ""])
@pytest.mark.parametrize("increments", ["increments", ""])
def test_peak_memory_does_not_grow_with_the_samples(duplicates, increments):
    command = [sys.executable, "-c", SCRIPT, duplicates, increments]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    few, many = map(int, answer.split())
    assert many - few < CONNECTED / 5
