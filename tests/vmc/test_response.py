"""Susceptibilities from trainings in a field, against linear response of the diagonalised Hamiltonian."""

from dataclasses import replace

import numpy as np
import pytest

from nqs_sae_service.interpret.expectation import infidelity
from nqs_sae_service.physics.exact import FullSummation, all_configurations, ground_state, susceptibility
from nqs_sae_service.physics.hamiltonians import HAMILTONIANS
from nqs_sae_service.physics.lattices import Chain
from nqs_sae_service.physics.observables import make_observable
from nqs_sae_service.spec.sampling import Sampling
from nqs_sae_service.spec.sections import GroundState
from nqs_sae_service.states import Rbm
from nqs_sae_service.vmc.response import AIM, FieldTrainer, Together, in_both_fields
from nqs_sae_service.vmc.training import Trainer

RING = Chain(kind="chain", length=10)
LATTICE = RING.build()
MODEL = HAMILTONIANS["tfim"](kind="tfim", h=1.3)
ALL = all_configurations(10)
OPTIONS = GroundState(steps=150, samples=512, seed=1, learning_rate=0.1)


@pytest.fixture(scope="module")
def trained():
    trainer = Trainer(*arguments())
    training = trainer.start()
    while training.step < OPTIONS.steps:
        trainer.advance(training)
    return training


def arguments(**options):
    sampling = Sampling(chains=128).resolved({"lattice": RING, "hamiltonian": MODEL})
    state = Rbm(kind="rbm", alpha=2).build(LATTICE)
    return state, LATTICE, MODEL.build(LATTICE), sampling, OPTIONS.model_copy(update=options)


def respond(training, name, first, steps=80):
    observable = make_observable(name, LATTICE, MODEL.build(LATTICE))
    ticks = []

    def start(strength):
        given = arguments(steps=steps, seed=7, shift_start=OPTIONS.shift)
        trainer = FieldTrainer(*given, observable=observable, strength=strength)
        return trainer, trainer.start(training.parameters, training.sigma)

    def distance(plus, minus):
        return infidelity(plus.log_psi(ALL) - minus.log_psi(ALL))

    strength, both = in_both_fields(start, first, distance, lambda: ticks.append(1))
    states = [FullSummation.from_log_psi(10, psi.log_psi(ALL)) for psi in both]
    operator = observable.operator.to_sparse() if observable.operator is not None else observable.values(ALL)
    means = [
        s.expectation(operator) if observable.operator is None else s.operator_expectation(operator)
        for s in states
    ]
    exact = susceptibility(MODEL.build(LATTICE).to_sparse(), ground_state(MODEL.build(LATTICE)), operator)
    return (means[0] - means[1]) / (2 * strength), exact, states, strength, len(ticks)


@pytest.mark.parametrize("name", ["abs_magnetization", "sigma_x", "half_chain_correlation"])
def test_the_response_is_that_of_the_diagonalised_hamiltonian(trained, name):
    found, exact, states, _, _ = respond(trained, name, first=0.1)
    assert found == pytest.approx(exact, rel=0.03)
    assert AIM / 8 < states[0].infidelity(states[1]) < AIM * 8


@pytest.mark.parametrize("first", [1e-3, 30.0])
def test_a_field_that_is_much_too_small_or_large_is_mended(trained, first):
    found, exact, _, strength, ticks = respond(trained, "abs_magnetization", first)
    assert found == pytest.approx(exact, rel=0.03)
    assert 0.05 < strength < 2
    assert 80 < ticks <= 80 + 3 * 20


def test_states_side_by_side(trained):
    psi = arguments()[0].bind(trained.parameters)
    other = replace(psi, parameters=trained.parameters * 1.1)
    both = Together((psi, other)).log_psi(ALL[:7])
    np.testing.assert_array_equal(both, np.stack([psi.log_psi(ALL[:7]), other.log_psi(ALL[:7])], axis=1))
