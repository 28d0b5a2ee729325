"""Short trainings of the autoregressive transformer by direct sampling, held against exact diagonalisation."""

import numpy as np
import pytest

from nqs_sae_service.physics.exact import FullSummation, all_configurations
from nqs_sae_service.physics.hamiltonians.heisenberg import Heisenberg
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Autoregressive
from nqs_sae_service.vmc.training import Trainer

SITES, CHAINS = 12, 256


@pytest.mark.parametrize(
    ("hamiltonian", "options", "steps", "tolerance"),
    [
        (Tfim(kind="tfim", h=1.0), {}, 60, 3e-3),
        (Heisenberg(kind="heisenberg", marshall=True), {"patch": 2}, 60, 5e-3),
    ],
    ids=["ising", "heisenberg"],
)
def test_the_energy_comes_close_to_the_exact_one_and_never_below(hamiltonian, options, steps, tolerance):
    sections = {"lattice": Chain(kind="chain", length=SITES), "hamiltonian": hamiltonian}
    sections["state"] = Autoregressive(width=16, heads=2, layers=1, **options)
    sections["sampling"] = Sampling(chains=CHAINS)
    state, sampling = (sections[name].resolved(sections) for name in ("state", "sampling"))
    sampling = sampling.resolved({**sections, "state": state})
    lattice = sections["lattice"].build()
    operator, exact = hamiltonian.build(lattice), hamiltonian.exact_energy(lattice)
    training_options = GroundState(steps=steps, samples=CHAINS, learning_rate=0.2, shift_steps=30)
    trainer = Trainer(state.build(lattice), lattice, operator, sampling, training_options)
    training = trainer.start()
    for _ in range(steps):
        trainer.advance(training)
    history = {name: np.asarray(values) for name, values in training.history.items()}
    assert (history["acceptance"] == 1).all()
    assert (history["energy"] > exact - 4.5 * history["energy_error"]).all()
    last = slice(-10, None)
    mean, error = history["energy"][last].mean(), np.linalg.norm(history["energy_error"][last]) / 10
    assert mean > exact - 3 * error
    psi = trainer.state.bind(training.parameters)
    summed = FullSummation.from_log_psi(SITES, psi.log_psi(all_configurations(SITES)))
    energy = summed.operator_expectation(operator.to_sparse())
    assert exact - 1e-9 <= energy < exact + tolerance * abs(exact)
