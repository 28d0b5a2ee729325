"""One step of several networks, by as many processes as there are: ``mpiexec -n P python steps_over_ranks.py FILE CASE...``.

Rank 0 writes parameters and chains after the step to FILE. The momentum and the drawn samples differ from zero and each other.
"""

import sys

import numpy as np

from nqs_sae_service.engine.ranks import ALONE, MpiRanks, Ranks
from nqs_sae_service.engine.threads import configure_threads
from nqs_sae_service.physics.hamiltonians.tfim import Tfim
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Jastrow, Rbm, Transformer
from nqs_sae_service.vmc.training import Trainer

LATTICE = Chain(kind="chain", length=12).build()
HAMILTONIAN = Tfim(kind="tfim", h=1.0).build(LATTICE)
NETWORK = {"patch": 3, "width": 16, "heads": 2, "layers": 2, "precision": "float64"}
CASES = {
    "positive": (Transformer(**NETWORK), "auto"),
    "complex": (Transformer(**NETWORK, amplitude="complex", attention="full"), "auto"),
    "complex by conjugate gradients": (Transformer(**NETWORK, amplitude="complex"), "cg"),
    "rbm": (Rbm(alpha=2), "cholesky"),
    "rbm by conjugate gradients": (Rbm(alpha=2), "cg"),
    "symmetric rbm": (Rbm(alpha=2, symmetric=True), "cholesky"),
    "weighted complex": (Transformer(**NETWORK, amplitude="complex"), "auto"),
    "weighted rbm": (Rbm(alpha=2), "cholesky"),
    "weighted rbm by conjugate gradients": (Rbm(alpha=2), "cg"),
    "jastrow in the space of its parameters": (Jastrow(amplitude="complex"), "auto"),
}


def step(case: str, ranks: Ranks = ALONE) -> dict[str, np.ndarray]:
    """Parameters, update, chains and history after one step."""
    network, solver = CASES[case]
    state = network.build(LATTICE)
    exponent = 0.6 if case.startswith("weighted") else 1.0
    options = GroundState(
        samples=404, learning_rate=0.05, shift_start=1e-3, solver=solver, exponent=exponent, seed=3
    )
    trainer = Trainer(state, LATTICE, HAMILTONIAN, Sampling(chains=101, burn_in=3), options, ranks=ranks)
    training = trainer.start()
    training.previous = 0.1 * np.random.default_rng(0).normal(size=state.n_parameters)
    trainer.advance(training)
    return training.arrays(ranks)


if __name__ == "__main__":
    configure_threads(1)
    ranks = MpiRanks()
    steps = {f"{case}/{name}": array for case in sys.argv[2:] for name, array in step(case, ranks).items()}
    if ranks.rank == 0:
        np.savez(sys.argv[1], **steps)
