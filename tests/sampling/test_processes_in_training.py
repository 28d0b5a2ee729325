"""Tempering and exact draws inside a training: the energy they measure, and a checkpoint that holds all walkers."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Jastrow
from nqs_sae_service.vmc.training import Trainer, Training

RING = Chain(kind="chain", length=6)
HEISENBERG = Heisenberg(kind="heisenberg")


def trainer(**options):
    sections = {"lattice": RING, "hamiltonian": HEISENBERG}
    sampling = Sampling(chains=128, **options).resolved(sections)
    lattice = RING.build()
    return Trainer(
        Jastrow().build(lattice), lattice, HEISENBERG.build(lattice), sampling, GroundState(samples=1024, steps=10)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "shape"),
    [({"replicas": 3}, (128, 3, 6)), ({"method": "exact"}, (128, 6))],
    ids=["tempering", "exact"],
)
def test_a_training_goes_on_from_its_checkpoint(options, shape):
    one = trainer(**options)
    training = one.start()
    assert training.sigma.shape == shape
    one.advance(training)
    copy = Training.from_arrays({name: array.copy() for name, array in training.arrays().items()})
    assert copy.sigma.shape == shape
    psi = one.state.bind(training.parameters)
    exact = FullSummation.from_log_psi(6, np.where(
        all_configurations(6).sum(axis=1) == 0, psi.log_psi(all_configurations(6)), -np.inf
    ))  # fmt: skip
    one.advance(training)
    one.advance(copy)
    np.testing.assert_array_equal(training.parameters, copy.parameters)
    np.testing.assert_array_equal(training.sigma, copy.sigma)
    energy = exact.operator_expectation(one.hamiltonian.to_sparse())
    error = training.history["energy_error"][1]
    assert abs(training.history["energy"][1] - energy) < 5 * error + 1e-6
    assert (training.history["acceptance"][1] == 1) == (options.get("method") == "exact")
