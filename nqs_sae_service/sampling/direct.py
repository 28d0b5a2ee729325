"""Direct sampling: a state whose |psi|^2 is a product of conditional probabilities is drawn token after token.

Every sweep gives every chain a new configuration, independent of the one before: there is nothing to thermalise and nothing to
accept. The number that decides about token t of chain c in sweep k is a pure function of (seed, stream, k, t, c), as in
``metropolis.py``. A wave function that is no such product any more (an edited layer, a turned feature) is sampled by Metropolis
moves instead, from the same chains.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.arrays import namespace
from ..engine.random import uniform, words
from ..states import LogPsi, Wavefunction
from ..states.fused import Draws
from .metropolis import Metropolis
from .process import Chains, refuse_nan


@dataclass(frozen=True)
class Direct(Metropolis):
    """Independent samples of a state that has the ability ``Draws``; Metropolis moves for every other wave function."""

    def sweep(self, psi: LogPsi, chains: Chains) -> None:
        """A new configuration for every chain, in place. Raises NumericalError on a NaN log psi."""
        draws = psi.twin(Draws) if isinstance(psi, Wavefunction) else None  # type: ignore[type-abstract]
        if draws is None or not isinstance(psi, Wavefunction):
            super().sweep(psi, chains)
            return
        xp, count = namespace(chains.sigma), len(chains.sigma)
        tokens = psi.state.n_tokens
        random = words(self.seed, self.stream, chains.sweeps, tokens, count, xp, chains.number)
        chains.sigma[:], chains.log_psi[:] = draws.draw(uniform(random[..., 2], random[..., 3]))
        refuse_nan(chains.log_psi)
        chains.accepted += count
        chains.proposed += count
        chains.sweeps += 1
