"""Projected states are sampled and trained as they are: chi-square, the lowest states of sectors against diagonalisation."""

import numpy as np
import pytest
from scipy import stats

from nqs_sae_service.engine.random import Stream
from nqs_sae_service.physics.exact import all_configurations
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain, Square
from nqs_sae_service.physics.operators import basis_index
from nqs_sae_service.sampling import Metropolis, Moves
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Rbm, Transformer
from nqs_sae_service.states.projection import Symmetry
from nqs_sae_service.vmc.training import Trainer

RING, SQUARE = Chain(kind="chain", length=8), Square(kind="square", length=4)
EVEN = Symmetry(translations=True, point_group=True, spin_flip=1)
SMALL = {"patch": 2, "width": 8, "heads": 2, "layers": 1}


def lowest_energy(hamiltonian, geometry, symmetry):
    """Of the sector, at magnetization zero: H and the projector, summed over the group, on those configurations."""
    lattice = geometry.build()
    group = symmetry.group(lattice)
    states = all_configurations(lattice.n_sites)
    states = states[states.sum(axis=1) == 0]
    place = np.full(2**lattice.n_sites, -1)
    place[basis_index(states)] = np.arange(len(states))
    # One vector per orbit: its projection on the sector.
    copies = np.stack(
        [place[basis_index(states[:, p] * f)] for p, f in zip(group.permutations, group.flips, strict=True)]
    )
    orbits = np.unique(copies.min(axis=0))
    basis = np.zeros((len(states), len(orbits)), complex)
    for column, first in enumerate(orbits):
        np.add.at(basis[:, column], copies[:, first], group.characters)
    norms = np.linalg.norm(basis, axis=0)
    basis = basis[:, norms > 1e-9] / norms[norms > 1e-9]
    index = basis_index(states)
    matrix = hamiltonian.build(lattice).to_sparse()[index][:, index]
    return np.linalg.eigvalsh(basis.conj().T @ (matrix @ basis))[0]


def train(hamiltonian, geometry, record, steps, seed=1, **options):
    lattice = geometry.build()
    sampling = Sampling(chains=64).resolved({"lattice": geometry, "hamiltonian": hamiltonian})
    chosen = GroundState(**({"steps": steps, "samples": 256, "seed": seed} | options))
    trainer = Trainer(record.build(lattice), lattice, hamiltonian.build(lattice), sampling, chosen)
    training = trainer.start()
    while training.step < steps:
        trainer.advance(training)
    return np.asarray(training.history["energy"])


@pytest.mark.parametrize(
    "record",
    [
        Transformer(**SMALL, symmetry=EVEN),
        Rbm(kind="rbm", alpha=2, symmetry=Symmetry(translations=True, momentum=(4,))),
    ],
    ids=["transformer", "rbm"],
)
def test_chi_square_against_the_born_distribution(record):
    state = record.build(RING.build())
    noise = 0.3 * np.random.default_rng(0).normal(size=state.n_parameters)
    psi = state.bind((state.initial_parameters(1) + noise).astype(state.dtype))
    metropolis, chains = Metropolis(8, Moves(0.1, 0.3), seed=4, stream=Stream.SAMPLES), 3000
    walk = metropolis.start(psi, metropolis.random_chains(chains))
    for _ in range(25):
        metropolis.sweep(psi, walk)
    log_p = 2 * psi.log_psi(all_configurations(8)).real
    expected = np.exp(log_p - log_p.max())
    expected *= chains / expected.sum()
    counts = np.bincount(basis_index(walk.sigma), minlength=2**8)
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    assert stats.chisquare(observed, np.append(expected[~rare], expected[rare].sum())).pvalue > 1e-3


@pytest.mark.parametrize(
    ("momentum", "total", "steps", "rate"),
    [((0,), -3.651093, 40, 0.1), ((4,), -2.699628, 60, 0.03)],
    ids=["ground state", "staggered momentum"],
)
def test_the_lowest_state_of_a_sector_of_a_ring(momentum, total, steps, rate):
    heisenberg = HAMILTONIANS["heisenberg"](kind="heisenberg", marshall=True)
    symmetry = Symmetry(translations=True, momentum=momentum, spin_flip=1)
    exact = lowest_energy(heisenberg, RING, symmetry)
    assert exact == pytest.approx(total, abs=1e-5)
    record = Transformer(**SMALL, amplitude="complex", translation_invariant=False, symmetry=symmetry)
    energy = train(heisenberg, RING, record, steps, learning_rate=rate)[-8:]
    assert abs(energy.mean() - exact) < 1e-2 * abs(exact)


def test_progressive_symmetrisation_on_a_frustrated_square():
    """The bare network first, the projected one from step 20 on: lower soon, and never below its sector."""
    hamiltonian = HAMILTONIANS["heisenberg"](kind="heisenberg", J2=0.5)
    exact = lowest_energy(hamiltonian, SQUARE, EVEN)
    assert exact == pytest.approx(hamiltonian.exact_energy(SQUARE.build()), rel=1e-9)
    late = EVEN.model_copy(update={"from_step": 20})
    record = Transformer(**SMALL, amplitude="complex", attention="positional", symmetry=late)
    energy = train(hamiltonian, SQUARE, record, 30, samples=64)
    error = (energy - exact) / abs(exact)
    assert error[15:20].mean() > 1.5 * error[-5:].mean()
    assert error[-5:].mean() > -1e-3
