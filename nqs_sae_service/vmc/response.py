"""Linear response of a trained state to a field, where the Hamiltonian is too large to be diagonalised.

    chi = d<O>/d lambda of the ground state of H - lambda O  ~  (<O>_+ - <O>_-) / (2 lambda)

Two copies of the state are trained on, one in the field lambda and one in -lambda, with common random numbers: what both do
(the training was not at its end) cancels to first order. Both are measured by reweighting the same samples of the state without
a field, so that the difference has a much smaller error than either mean. A network answers as far as it can: chi is that of
the states it can be, smaller than the exact one by what it cannot follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.arrays import namespace
from ..physics.observables import Observable
from ..states import State, Wavefunction
from .estimators import local_values
from .training import Trainer, Training

AIM = 0.005  # infidelity between the states in both fields: each has moved its observable by a few percent of its spread
_CLOSE = 4.0  # a factor between the infidelity reached and the one wanted that is good enough
_PILOT = 0.25  # share of the steps after which the field is judged
_PILOTS = 4  # fields that are tried at most


class FieldTrainer(Trainer):
    """Trains a state in a field, with H - ``strength`` O; it is projected from the first step on."""

    def __init__(self, *arguments: Any, observable: Observable, strength: float, **more: Any):
        super().__init__(*arguments, **more)
        self.observable, self.strength = observable, strength

    def state_at(self, step: int) -> State:
        """The network, projected if it has a symmetry."""
        return self.state

    def local_energies(self, psi: Wavefunction, sigma: np.ndarray, log_psi: np.ndarray) -> np.ndarray:
        """E_loc - strength O_loc (n,)."""
        operator = self.observable.operator
        if operator is None:
            return super().local_energies(psi, sigma, log_psi) - self.strength * self.observable.values(sigma)
        both = local_values(psi, [self.hamiltonian, operator], sigma, log_psi, self.economy)
        return both[0] - self.strength * both[1]


def in_both_fields(
    start: Callable[[float], tuple[Trainer, Training]],
    strength: float,
    distance: Callable[[Wavefunction, Wavefunction], float],
    tick: Callable[[], None],
) -> tuple[float, tuple[Wavefunction, Wavefunction]]:
    """The strength of the field, and the states in it and in its opposite.

    ``start(strength)`` gives a trainer in a field and a training at the state without one. With the given ``strength`` begins a
    search for one that is neither lost in noise nor beyond linear response: the ``distance`` of the states, an infidelity, is
    to become about ``AIM``. ``tick`` is called before every pair of steps.
    """
    for pilots in reversed(range(_PILOTS)):
        copies = [start(sign * strength) for sign in (1, -1)]
        steps = copies[0][0].options.steps
        for step in range(steps):
            if pilots and step == max(1, round(_PILOT * steps)):
                factor = float(np.clip(np.sqrt(AIM / max(distance(*_states(copies)), 1e-12)), 0.1, 10))
                if not 1 / _CLOSE < factor**2 < _CLOSE:
                    strength *= factor
                    break
            tick()
            for trainer, training in copies:
                trainer.advance(training)
        else:
            break
    return strength, _states(copies)


def _states(copies: list[tuple[Trainer, Training]]) -> tuple[Wavefunction, Wavefunction]:
    plus, minus = (trainer.state.bind(training.parameters) for trainer, training in copies)
    return plus, minus


@dataclass(frozen=True)
class Together:
    """Wave functions of one network side by side."""

    members: tuple[Wavefunction, ...]

    def log_psi(self, sigma: np.ndarray) -> np.ndarray:
        """log psi (n, member) of configurations (n, n_sites)."""
        return namespace(sigma).stack([psi.log_psi(sigma) for psi in self.members], axis=-1)
